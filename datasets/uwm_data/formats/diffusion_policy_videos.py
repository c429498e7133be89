"""The cameras of a real robot's recording: one video a camera and episode, beside the replay buffer.

    replay_buffer.zarr      rows at the robot's rate           row       0   1   2   3      10 Hz
    videos/0/0.mp4          episode 0, camera 0                frame     0   3   6   9      of a video of 30 Hz
    videos/0/1.mp4 ...

A video begins with the first row of its episode; a row gets the newest frame at its time, which is what diffusion_policy's
own loader takes. A camera that an episode lacks is absent there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uwm_data.errors import FormatError
from uwm_data.streams import StreamSpec

_SLACK = 1e-6  # of one frame


class EpisodeVideos:
    """`videos/<episode>/<camera>.mp4`; `size` (height, width) scales and crops all of them, by default to the first one's."""

    def __init__(self, folder: Path, episodes: int, size: tuple[int, int] | None):
        self.folder = folder
        found = {int(each.name): each for each in folder.iterdir() if each.name.isdecimal() and each.is_dir()}
        if beyond := [number for number in sorted(found) if number >= episodes]:
            raise FormatError(f"{folder} has videos of episode {beyond[0]}, and the replay buffer has {episodes} episodes")
        self._files = {(number, file.stem): file for number, each in found.items() for file in each.glob("*.mp4")}
        self.cameras = sorted({camera for _, camera in self._files})
        self._everywhere = {camera for camera in self.cameras if all((number, camera) in self._files for number in range(episodes))}
        self._sizes = {camera: size or self._first_size(camera) for camera in self.cameras}

    def _first_size(self, camera: str) -> tuple[int, int]:
        from uwm_data.formats.video import VideoFile

        with VideoFile(next(file for (_, name), file in sorted(self._files.items()) if name == camera)) as video:
            return video.height, video.width

    def spec(self, camera: str, rate_hz: float) -> StreamSpec:
        """The stream of a camera at the rate of the rows."""
        return StreamSpec((*self._sizes[camera], 3), "uint8", rate_hz, "video", closing=False, optional=camera not in self._everywhere)

    def read(self, episode: int, camera: str, rows: int, rate_hz: float) -> np.ndarray:
        """A frame for each row, none where the episode lacks the camera; FormatError when the video is too short."""
        from uwm_data.formats.video import VideoFile

        file = self._files.get((episode, camera))
        if file is None:
            return np.empty((0, *self._sizes[camera], 3), np.uint8)
        with VideoFile(file) as video:
            numbers = np.floor(np.arange(rows) * float(video.rate) / rate_hz + _SLACK).astype(np.int64)
            return video.pick(numbers, self._sizes[camera])
