"""torchcodec beside PyAV: films that we encode or join, and films that torchcodec encodes, frame by frame."""

import numpy as np
import pytest

import foreign
from judges import judging
from uwm_data.formats import video

JUDGE = "video"
RATES = {"h264": 20.0, "av1": 15.0, "h264-lossless": 30000 / 1001}
COUNT = 15


def film(seed, count=COUNT):
    return foreign.smooth_video(np.random.default_rng(seed), count, 64, 96)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{name: path} of our films, and what torchcodec made of them."""
    folder = tmp_path_factory.mktemp("films")
    paths = {}
    for codec, rate in RATES.items():
        for part in (0, 1):
            paths[f"{codec}-{part}"] = folder / f"{codec}-{part}.mp4"
            paths[f"{codec}-{part}"].write_bytes(video.encode(film(part), rate, codec))
        paths[f"{codec}-joined"] = folder / f"{codec}-joined.mp4"
        with open(paths[f"{codec}-joined"], "wb") as file:
            video.join([paths[f"{codec}-0"], paths[f"{codec}-1"]], file, 2 * COUNT)
    request = {"films": {name: str(path) for name, path in paths.items()}, "out": str(folder / "out")}
    told = judging.ask(JUDGE, "video_reads", request, folder / "home")["films"]
    return paths, told, judging.load(folder / "out")


def ours(path, count, rate):
    with video.VideoFile(path, rate) as file:
        return file.read(0, count)


@pytest.mark.parametrize("codec", RATES)
@pytest.mark.parametrize("name", ["0", "1", "joined"])
def test_torchcodec_sees_the_frames_that_we_see_at_the_times_that_we_wrote(written, codec, name):
    paths, told, arrays = written
    name, rate, count = f"{codec}-{name}", RATES[codec], COUNT * (2 if name == "joined" else 1)
    assert told[name]["frames"] == count and told[name]["rate"] == pytest.approx(rate, rel=1e-6)
    assert told[name]["codec"] == ("av1" if codec == "av1" else "h264")
    np.testing.assert_allclose(arrays[f"{name}.times"], np.arange(count) / rate, atol=1e-4)
    np.testing.assert_array_equal(arrays[f"{name}.frames"], arrays[f"{name}.backwards"])
    mean, largest = judging.image_error(arrays[f"{name}.frames"], ours(paths[name], count, rate))
    print(f"{name}: mean {mean:.3f}, largest {largest} grey levels between the decoders")
    assert mean < 0.5 and largest <= 2  # both turn the same YUV into RGB, with other rounding


@pytest.mark.parametrize("codec", RATES)
def test_what_torchcodec_sees_is_what_we_filmed(written, codec):
    _, _, arrays = written
    expected = np.concatenate([film(0), film(1)])
    mean, largest = judging.image_error(arrays[f"{codec}-joined.frames"], expected)
    print(f"{codec}: mean {mean:.3f}, largest {largest} grey levels from the original")
    if codec == "h264-lossless":
        assert largest == 0
    else:
        assert mean < 2.5
        shifted, _ = judging.image_error(arrays[f"{codec}-joined.frames"][1:], expected[:-1])
        assert shifted > 1.5 * mean  # so one frame off would show


def test_we_read_what_torchcodec_encodes(tmp_path):
    options = {
        "usual": {"codec": "libx264", "pixel_format": "yuv420p", "crf": 18},  # with B-frames and few key frames
        "lossless": {"codec": "libx264rgb", "pixel_format": "rgb24", "extra_options": {"qp": 0}},
        "av1": {"codec": "libsvtav1", "pixel_format": "yuv420p", "crf": 30, "preset": 12},
    }
    films = {
        name: {"frames": judging.save(tmp_path / f"{name}-frames", {"frames": film(3)}), "path": str(tmp_path / f"{name}.mp4"),
               "rate": 24.0, "options": told}
        for name, told in options.items()
    }  # fmt: skip
    judging.ask(JUDGE, "video_writes", {"films": films}, tmp_path / "home")
    request = {"films": {name: told["path"] for name, told in films.items()}, "out": str(tmp_path / "out")}
    judging.ask(JUDGE, "video_reads", request, tmp_path / "home")
    arrays = judging.load(tmp_path / "out")
    for name, told in films.items():
        with video.VideoFile(told["path"], 24.0) as file:
            assert file.count() == COUNT
            seen = np.concatenate([file.read(8, COUNT - 8), file.read(0, 8)])  # a seek into the middle, and back
        mean, largest = judging.image_error(np.roll(seen, 8, axis=0), arrays[f"{name}.frames"])
        print(f"{name}: mean {mean:.3f}, largest {largest} grey levels between the decoders")
        assert (largest == 0) if name == "lossless" else (mean < 0.5 and largest <= 2)
