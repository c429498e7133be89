"""The report: one page that loads nothing, and JSON with the promised keys."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import bench_figures as figures
from uwm.bench import gates, page, pictures, report

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Checks that tags close in order, and gathers everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "poster", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    content = figures.demo_figures()
    content["gates"] = gates.of_demo(content)
    film = [np.full((32, 32, 3), 10 * tick, np.uint8) for tick in range(8)]
    log = [{"stage": "train", "step": step, "seconds": step / 2, "loss": 1 / step, "rate": 1e-3} for step in range(10, 60, 10)]
    videos = {"streaming_success_101": film, "streaming_failure_100": film}
    report.write(folder, content, figures.examples(), videos, {"policy": "row 0 ..@@ <script>"}, log, {"streaming_buffer_100": b"film"})
    return folder


def parsed(folder):
    page = Page()
    page.feed((folder / "report.html").read_text())
    page.close()
    return page


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(written):
    page, text = parsed(written), (written / "report.html").read_text()
    assert not page.open
    assert page.sources
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_page_shows_every_video_and_frame_and_the_figures(written):
    page, text = parsed(written), (written / "report.html").read_text()
    assert page.tags.count("video") == 2 + 1 and "streaming buffer 100" in text
    # cameras, windows, present and 2 ticks of 4 kinds; and the last tick of two kinds once more, with the ways in two planes
    assert page.tags.count("img") == 2 * 2 * (1 + 2 * 4) + 2 * 2 * 2 and text.count(">happened</text>") == 2 * 2
    for wanted in ("96 %", "48 of 50", "6.0x fewer", "0.42x", "streaming failure 100", "&lt;script&gt;", "every gate holds"):
        assert wanted in text


def test_the_json_has_the_promised_keys_and_only_numbers_that_json_knows(written):
    content = json.loads((written / "report.json").read_text(), parse_constant=pytest.fail)
    for policy in ("streaming", "chunked"):
        part = content[policy]
        assert {"success", "interval", "calls_per_action"} <= set(part)
        assert set(part["latency_ms"]) == {"p50", "p95", "p99"}
    assert content["inverse"]["relative_error"] == 0.42
    assert content["forward"]["relative_error"] == 0.6
    assert (content["rollouts"], content["seconds"]) == (50, 1000.0)
    assert [gate["verdict"] for gate in content["gates"]] == ["holds"] * 5
    assert all({"name", "value", "gate", "verdict"} <= set(gate) for gate in content["gates"])
    assert content["versions"]["mujoco"] == "3.9"  # of the world that made the data, not of this process


def test_a_picture_survives_its_png():
    image = pytest.importorskip("PIL.Image")
    frame = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    content = base64.b64decode(pictures.png(frame).partition(",")[2])
    assert (np.asarray(image.open(io.BytesIO(content))) == frame).all()


def test_a_sheet_puts_frames_side_by_side_with_white_between():
    frames = [np.full((2, 3, 3), value, np.uint8) for value in range(4)]
    drawn = pictures.sheet([frames[:2], frames[2:]], scale=2, gap=1)
    assert drawn.shape == (2 * (2 + 1 + 2), 2 * (3 + 1 + 3), 3)
    assert [drawn[0, 0, 0], drawn[0, -1, 0], drawn[-1, 0, 0], drawn[-1, -1, 0]] == [0, 1, 2, 3]
    assert (drawn[4:6] == 255).all() and (drawn[:, 6:8] == 255).all()


def test_the_page_comes_with_one_picture(written):
    assert (written / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_video_survives_its_mp4():
    av = pytest.importorskip("av")
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (20, 120, 220)]
    content = base64.b64decode(pictures.mp4(frames, 20).partition(",")[2])
    with av.open(io.BytesIO(content)) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        back = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert [frame.shape for frame in back] == [(pictures.SIDE, pictures.SIDE, 3)] * 3
    assert np.allclose([frame.mean() for frame in back], [20, 120, 220], atol=4)


def test_a_picture_of_floats_and_an_empty_video_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        pictures.png(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="at least one frame"):
        pictures.mp4([], 20)


def test_ways_share_one_scale_and_displacements_are_summed_up():
    drawn = pictures.ways({"imagined": np.array([[0.0, 0.0], [2.0, 1.0]]), "happened": np.array([[0.0, 0.0], [0.0, 1.0]])})
    assert re.findall(r'points="([^"]*)"', drawn) == ["10.0,140.0 140.0,75.0", "10.0,140.0 10.0,75.0"]
    shown = {**figures.examples(1), "actions/true": np.ones((1, 4, 2)), "actions/joint": np.ones((1, 4, 2))}
    points = [re.findall(r'points="([^"]*)"', page._ways(shown, {"card": {"action": {"mode": mode}}})) for mode in ("delta", "absolute")]
    assert points[0] == [" ".join(f"{x:.1f},{150 - x:.1f}" for x in (10, 42.5, 75, 107.5, 140))] * 2
    assert points[1] == [" ".join(["10.0,140.0"] * 4)] * 2
    assert page._ways({}, {}) == ""


def test_a_curve_leaves_out_what_has_no_logarithm():
    drawn = pictures.curve({"loss": ([1, 2, 3, 4], [1.0, 0.0, math.nan, 0.1])}, "steps")
    assert len(re.search(r'points="([^"]*)"', drawn)[1].split()) == 2
    assert "nothing was logged" in pictures.curve({}, "steps")
