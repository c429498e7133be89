"""Sample episodes for tests of other formats, and fuzzing that survives whatever a library does to a broken file."""

import os
import resource
import signal
import traceback

import numpy as np
from hypothesis import strategies as st

from uwm_data import StoreError, StreamSpec

RATE = 20.0
STREAMS = {
    "front": StreamSpec((32, 48, 3), "uint8", RATE, "video"),
    "wrist": StreamSpec((24, 24, 3), "uint8", RATE, "video"),
    "arm": StreamSpec((3,), "float32", RATE, "state", ("m", "m", "rad"), ("x", "y", "angle")),
    "action": StreamSpec((2,), "float32", RATE, "action", ("m", "m"), ("dx", "dy")),
    "reward": StreamSpec((), "float32", RATE, "label", closing=False),
}
CARD = {
    "env": "Toy",
    "robot": "planar arm",
    "image_orientation": "upright",
    "rate_hz": RATE,
    "action": {
        "names": ["dx", "dy"], "units": ["m", "m"], "convention": "displacement per tick", "mode": "delta", "frame": "world",
        "gripper": "none",
    },
    "policy": {"cameras": ["front", "wrist"], "proprio": ["arm"], "action": "action"},
}  # fmt: skip


def smooth_video(random, count, height, width):
    """Frames whose corners have known colours (top left red, bottom right blue) and whose middle moves; video codecs like it."""
    row, column, frame = np.meshgrid(np.arange(height), np.arange(width), np.arange(count), indexing="ij")
    phase = random.uniform(0, 6)
    waves = 110 + 60 * np.sin(row / 7 + frame / 5 + phase) + 40 * np.cos(column / 9 - frame / 7)
    video = np.repeat(waves.transpose(2, 0, 1)[..., None], 3, axis=3)
    video[:, : height // 4, : width // 4] = (230, 20, 20)
    video[:, -(height // 4) :, -(width // 4) :] = (20, 20, 230)
    return video.clip(0, 255).astype(np.uint8)


def episode(ticks, seed, streams=STREAMS):
    """(arrays, meta) of one legal episode of `streams`, all at one rate."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, spec in streams.items():
        count = spec.frames(ticks, RATE)
        if spec.kind == "video":
            arrays[name] = smooth_video(random, count, *spec.shape[:2])
        else:
            arrays[name] = random.uniform(-1, 1, (count, *spec.shape)).astype(spec.dtype)
    text = ["push the block", "open the drawer"][seed % 2]
    return arrays, {"task": text.replace(" ", "_"), "instruction": text, "seed": seed, "success": seed % 3 != 2}


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """Damaged copies of a file: cut off, bytes changed, a run of zeros, a piece repeated or removed, numbers made huge."""
    place = st.integers(0, max(len(data) - 1, 0))

    def changed(edits):
        out = bytearray(data)
        for at, value in edits:
            out[at] = value
        return bytes(out)

    def huge(at):
        return data[:at] + b"\xff" * 8 + data[at + 8 :]

    return st.one_of(
        place.map(lambda end: data[:end]),
        st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6).map(changed),
        st.tuples(place, st.integers(1, 64)).map(lambda t: data[: t[0]] + bytes(t[1]) + data[t[0] + t[1] :]),
        st.tuples(place, st.integers(1, 64)).map(lambda t: data[: t[0]] + data[t[0] : t[0] + t[1]] * 2 + data[t[0] + t[1] :]),
        st.tuples(place, st.integers(1, 64)).map(lambda t: data[: t[0]] + data[t[0] + t[1] :]),
        place.map(huge),
    )


def survives(action, seconds: int = 20, extra_bytes: int = 1 << 30) -> str:
    """Run `action` in a forked child: "fine" or "refused" (our own error class); anything else fails the test.

    The child may take `extra_bytes` of address space more than now and `seconds` of wall time, so a hang, a crash of a C
    library or a size that was only claimed shows.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 3
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, resource.RLIM_INFINITY))
            try:
                action()
                code = 0
            except StoreError:
                code = 2
            except BaseException:  # noqa: BLE001 - whatever it is, the parent shows it
                os.write(writing, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        told = file.read().decode()
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise AssertionError(f"the reader died of {name} ({'it hung' if name == 'SIGALRM' else 'a crash'})")
    code = os.WEXITSTATUS(status)
    assert code in (0, 2), told or f"exit code {code}"
    return {0: "fine", 2: "refused"}[code]
