"""Video files frame by frame: decoding by frame number, encoding that gives equal bytes for equal frames, joining by copying packets.

Frame k of a video stands k / rate after its first frame. A file that says otherwise (a variable rate, a hole, a repeated
time) has no frame numbers, and is refused rather than read one frame off.

    key frames   K . K . K . K . K .        encoded here: every second frame, so a seek decodes one frame too many at most
    read(3, 4)       ^ seek
                     d [3 4 5 6]            d is decoded and dropped

Nothing that a file claims is believed: sizes are looked at before anything is allocated, only containers that hold frames
themselves are opened (a play list would name other files), and every decoded frame is looked at again.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from uwm_data.errors import FormatError

try:
    import av
except ImportError as error:
    raise ImportError("videos need PyAV: pip install 'uwm[data]'") from error

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
MAX_PIXELS = 1 << 25  # of one frame: 8K is 33 million
TOLERANCE_S = 1e-4  # how far a frame may stand from k / rate; LeRobot's own
_KEY_EVERY = "2"
_KNOWN_TROUBLE = (av.error.FFmpegError, MemoryError, ValueError, OverflowError, EOFError)


@dataclass(frozen=True)
class Codec:
    """How frames become a stream: FFmpeg's encoder, the format of the frames it is given, its usual crf, and its options.

    `crf` None means that nothing is lost, so there is no quality to choose. `even` tells that height and width must be.
    """

    encoder: str
    pixel_format: str
    crf: int | None
    options: dict[str, str]
    even: bool


# One thread and no look-ahead across threads: equal frames give equal bytes. Without B-frames a packet's time is its frame's.
CODECS = {
    "h264": Codec("libx264", "yuv420p", 18, {"bf": "0"}, even=True),
    "av1": Codec("libsvtav1", "yuv420p", 30, {"preset": "12", "svtav1-params": "lp=1"}, even=True),
    "h264-lossless": Codec("libx264rgb", "rgb24", None, {"bf": "0", "qp": "0", "preset": "veryfast"}, even=False),
}


def exact_rate(rate_hz: float) -> Fraction:
    """A rate as a fraction: 29.97002997 is 30000/1001, 20.0 is 20."""
    return Fraction(rate_hz).limit_denominator(1001)


# ---- decoding ------------------------------------------------------------------------------------------------------


class VideoFile:
    """A video, open for reading. `rate_hz` is what the dataset tells; without it the file's own average counts.

    Raises FormatError where there is no video, its size is absurd or changes, or its frames do not come at a constant rate.
    """

    def __init__(self, path: str | Path, rate_hz: float | None = None):
        self.path = Path(path)
        self._open()
        try:
            with self._explained():
                self.height, self.width = self._stream.codec_context.height, self._stream.codec_context.width
                self._refuse_absurd()
                self.rate = self._told_rate(rate_hz)
        except BaseException:
            self.close()
            raise
        self.promised = self._stream.frames  # 0 where the container does not tell
        self._tolerance_s = max(TOLERANCE_S, float(self._stream.time_base))

    def _open(self) -> None:
        with self._explained():
            options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
            self._container = av.open(f"file:{self.path}", options=options, metadata_errors="replace")
        try:
            with self._explained():
                self._stream = self._first_stream()
        except BaseException:
            self.close()
            raise

    def _first_stream(self):
        videos = [stream for stream in self._container.streams.video if stream.codec_context]
        if not videos:
            raise FormatError(f"{self.path} holds no video that can be decoded")
        stream = videos[0]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
        return stream

    def _refuse_absurd(self) -> None:
        if not (0 < self.height and 0 < self.width and self.height * self.width <= MAX_PIXELS):
            raise FormatError(f"{self.path} claims frames of {self.height} x {self.width}; up to {MAX_PIXELS} pixels are read")

    def _told_rate(self, rate_hz: float | None) -> Fraction:
        rate = exact_rate(rate_hz) if rate_hz else self._stream.average_rate
        if not (rate and self._stream.time_base and 0 < rate < 1e5):
            raise FormatError(f"{self.path} does not tell how many frames it has per second")
        return rate

    @property
    def pixel_format(self) -> str:
        """How the stream keeps colours, in FFmpeg's words."""
        return self._stream.codec_context.pix_fmt or "unknown"

    @property
    def codec(self) -> str:
        """The codec's short name, h264 or av1 for instance."""
        return self._stream.codec_context.codec.canonical_name

    def count(self) -> int:
        """Frames in the file, by looking at every packet's time and decoding none; refuses holes and a cut-off end."""
        with self._explained():
            self._container.seek(0, stream=self._stream)
            times = sorted(packet.pts for packet in self._packets() if packet.pts is not None)
        for number, time in enumerate(times):
            self._expect(number, self._number(time))
        if len(times) < self.promised:
            raise FormatError(f"{self.path} is cut off: it promises {self.promised} frames and holds {len(times)}")
        if not times:
            raise FormatError(f"{self.path} holds no frame")
        return len(times)

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames (count, height, width, 3) uint8 RGB from number `start` on; memory grows with `count` only."""
        return self.pick(np.arange(start, start + count), (self.height, self.width))

    def pick(self, numbers: np.ndarray, size: tuple[int, int], quarter_turns: int = 0) -> np.ndarray:
        """Frames (len(numbers), *size, 3) of these numbers, ascending, repeats allowed; turned counter-clockwise, then fitted.

        A frame of another size is scaled until it covers `size`; what stands over on two sides is cut off evenly.
        """
        first, last = int(numbers[0]), int(numbers[-1])
        if self.promised and last >= self.promised:
            raise FormatError(f"{self.path} has {self.promised} frames, frames {first} to {last} are asked for")
        with self._explained():
            frames = np.empty((len(numbers), *size, 3), np.uint8)
            filled = 0
            for number, frame in enumerate(self._frames(first, last + 1 - first), first):
                stop = filled + int(np.searchsorted(numbers[filled:], number, side="right"))
                if stop > filled:
                    frames[filled:stop] = _fitted(frame, size, quarter_turns)
                filled = stop
        if filled < len(numbers):
            raise FormatError(f"{self.path} ends before frame {numbers[filled]}, frames {first} to {last} are asked for")
        return frames

    def quarter_turns(self) -> int:
        """How often a player turns the frames by 90 degrees counter-clockwise (telephones note how they were held), 0 to 3."""
        with self._explained():
            first = next(iter(self._frames(0, 1)), None)
        if first is None:
            raise FormatError(f"{self.path} holds no frame that can be decoded")
        return round(first.rotation / 90) % 4

    def _frames(self, start: int, count: int) -> Iterator[av.VideoFrame]:
        due = start
        for number, frame in self._from_key_frame_before(start):
            if number < start:
                continue
            self._expect(due, number)
            if (frame.height, frame.width) != (self.height, self.width):
                raise FormatError(
                    f"{self.path}: frame {number} is {frame.height} x {frame.width}, those before {self.height} x {self.width}"
                )
            yield frame
            due += 1
            if due == start + count:
                return

    def _from_key_frame_before(self, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their numbers, from a key frame at or before `start` on."""
        decoded = self._decoded()
        try:
            self._container.seek(self._time(start), stream=self._stream)
            first = next(decoded, None)
        except (FormatError, *_KNOWN_TROUBLE):
            first = None
        if first is None or first[0] > start:
            # Some containers' indexes lead too far, or between key frames. Then the beginning is the safe place.
            self.close()
            self._open()
            decoded = self._decoded()
            first = next(decoded, None)
        if first is not None:
            yield first
            yield from decoded

    def _decoded(self) -> Iterator[tuple[int, av.VideoFrame]]:
        for packet in self._packets():
            for frame in packet.decode():
                if frame.pts is None:
                    raise FormatError(f"{self.path} has frames without a time, so they have no numbers; convert it to mp4")
                if frame.is_corrupt:
                    raise FormatError(f"{self.path}: frame {self._number(frame.pts)} is damaged")
                yield self._number(frame.pts), frame

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                raise FormatError(f"{self.path} is damaged or cut off near {float(packet.pts or 0) * self._stream.time_base:.3f} s")
            yield packet

    def _time(self, number: int) -> int:
        return (self._stream.start_time or 0) + int(Fraction(number) / self.rate / self._stream.time_base)

    def _number(self, pts: int) -> int:
        seconds = (pts - (self._stream.start_time or 0)) * self._stream.time_base
        number = round(seconds * self.rate)
        if abs(seconds - number / self.rate) > self._tolerance_s:
            told = f"{float(self.rate):g} frames a second"
            raise FormatError(f"{self.path}: a frame at {float(seconds):.4f} s does not fit {told}; its rate varies or is another")
        return number

    def _expect(self, due: int, number: int) -> None:
        if number != due:
            raise FormatError(f"{self.path}: frame {number} comes where frame {due} is due; its rate varies or frames are missing")

    @contextmanager
    def _explained(self):
        try:
            yield
        except FormatError:
            raise
        except OSError as error:
            raise FormatError(f"{self.path} cannot be opened: {error.strerror or error}") from error
        except _KNOWN_TROUBLE as error:
            raise FormatError(f"{self.path} cannot be decoded ({_in_words(error)}); it is damaged, cut off or not a video") from error

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _fitted(frame: av.VideoFrame, size: tuple[int, int], quarter_turns: int) -> np.ndarray:
    height, width = size[::-1] if quarter_turns % 2 else size
    if (frame.height, frame.width) != (height, width):
        scale = max(height / frame.height, width / frame.width)
        tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
        frame = frame.reformat(width=wide, height=tall, format="rgb24", interpolation="AREA")
    pixels = frame.to_ndarray(format="rgb24")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.rot90(pixels[top : top + height, left : left + width], quarter_turns)


def _in_words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ---- encoding ------------------------------------------------------------------------------------------------------


def codec_of(name: str, crf: int | None = None) -> Codec:
    """The codec of that name; FormatError lists the known ones and refuses a crf where none is due."""
    if name not in CODECS:
        raise FormatError(f"unknown codec {name!r}; there are {', '.join(CODECS)}")
    if crf is not None and (CODECS[name].crf is None or not 0 <= crf <= 63):
        raise FormatError(f"crf {crf} does not suit {name}: 0 (best) to 51 with h264, 63 with av1, none with h264-lossless")
    return CODECS[name]


def can_hold(name: str, shape: Sequence[int]) -> bool:
    """Whether the codec takes frames (H, W, C): three channels, an even height and width where colours are halved."""
    return len(shape) == 3 and shape[2] == 3 and not (codec_of(name).even and (shape[0] % 2 or shape[1] % 2))


def encode(frames: np.ndarray, rate_hz: float, codec: str = "h264", crf: int | None = None) -> bytes:
    """An mp4 of frames (n, H, W, 3) uint8 RGB, n >= 1, as bytes; equal input gives equal bytes."""
    how = codec_of(codec, crf)
    if not len(frames) or not can_hold(codec, frames.shape[1:]):
        raise FormatError(f"{codec} cannot hold {len(frames)} frames of shape {frames.shape[1:]}: it takes RGB of even size, at least one")
    os.environ.setdefault("SVT_LOG", "1")  # errors only; SVT-AV1 greets on stderr otherwise
    held = io.BytesIO()
    with _scheduling_kept(), av.open(held, "w", format="mp4") as container:
        stream = _new_stream(container, how, crf, frames.shape[1:3], exact_rate(rate_hz))
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, stream.codec_context.time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return held.getvalue()


def _new_stream(container, how: Codec, crf: int | None, size: tuple[int, int], rate: Fraction):
    quality = {} if how.crf is None else {"crf": str(how.crf if crf is None else crf)}
    options = {**how.options, **quality, **_repeatable(how.encoder), "g": _KEY_EVERY}
    stream = container.add_stream(how.encoder, rate=rate, options=options)
    stream.height, stream.width = size
    stream.pix_fmt = how.pixel_format
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = stream.time_base = 1 / rate
    return stream


@contextmanager
def _scheduling_kept() -> Iterator[None]:
    """Run by root, SVT-AV1 makes the thread that calls it a real-time one, which would starve the machine from then on."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)


def _repeatable(encoder: str) -> dict[str, str]:
    """x264's code for AVX-512 gives other bytes from one encoding to the next, so where a processor has it AVX2 is the limit."""
    return {"x264-params": "asm=MMX2,SSE2Fast,SSSE3,SSE4.2,AVX,AVX2"} if encoder.startswith("libx264") and _has_avx512() else {}


@cache
def _has_avx512() -> bool:
    try:
        return "avx512" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def join(pieces: Sequence[Path], target: BinaryIO, expected: int) -> None:
    """Write the frames of several mp4 behind one another into one, without decoding; times stay exact.

    The pieces must come from one `encode` recipe (size, rate, codec, headers); `expected` frames must arrive. Memory is
    one packet. Raises FormatError where pieces do not belong together, OSError when the disk fails.
    """
    written = 0
    with av.open(target, "w", format="mp4") as container:
        headers, stream = None, None
        for piece in pieces:
            with VideoFile(piece) as source:
                found = _headers(source)
                if stream is None:
                    headers, stream = found, container.add_stream_from_template(source._stream, opaque=True)
                    stream.time_base = source._stream.time_base
                if found != headers:
                    raise FormatError(f"{piece} was encoded differently from {pieces[0]}; they cannot share a file")
                written += _copy(source, stream, container.mux, written)
    if written != expected:
        raise FormatError(f"{written} frames came out of {len(pieces)} pieces, expected {expected}")


def _headers(source: VideoFile) -> tuple:
    stream = source._stream
    return source.height, source.width, source.rate, stream.time_base, source.codec, bytes(stream.codec_context.extradata or b"")


def _copy(source: VideoFile, stream, mux: Callable, frames_before: int) -> int:
    copied, offset = 0, int(Fraction(frames_before) / source.rate / stream.time_base)
    for packet in source._packets():
        if packet.dts is None:
            continue  # the empty packet that ends a file
        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
        mux(packet)
        copied += 1
    return copied
