"""Episodes on disk: a crash-safe zarr v3 store, windows over it, statistics and checks. Knows no model and no simulator."""

from uwm_data.check import Finding, Report, check, main_check, repair
from uwm_data.copying import copy_store
from uwm_data.errors import FormatError, StoreError
from uwm_data.loader import Loader
from uwm_data.mixture import Mixture
from uwm_data.order import share_of_episodes, shuffled, split_episodes
from uwm_data.rates import ActionRates
from uwm_data.statistics import statistics
from uwm_data.store import EpisodeStore
from uwm_data.streams import StreamSpec
from uwm_data.windows import WindowBatch, Windows, clamp_frames

__all__ = [
    "ActionRates",
    "EpisodeStore",
    "Finding",
    "FormatError",
    "Loader",
    "Mixture",
    "Report",
    "StoreError",
    "StreamSpec",
    "WindowBatch",
    "Windows",
    "check",
    "clamp_frames",
    "copy_store",
    "main_check",
    "repair",
    "share_of_episodes",
    "shuffled",
    "split_episodes",
    "statistics",
]
