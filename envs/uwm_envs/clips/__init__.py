"""Short clips of a planar arm that pushes blocks: frames, depth, segmentation, poses, contacts, actions and words."""

from uwm_envs.clips.record import Clips, make

__all__ = ["Clips", "make"]
