"""Episodes on disk: a crash-safe zarr v3 store, windows over it, statistics and checks. Knows no model and no simulator."""

from uwm_data.errors import StoreError
from uwm_data.store import EpisodeStore
from uwm_data.streams import StreamSpec

__all__ = ["EpisodeStore", "StoreError", "StreamSpec"]
