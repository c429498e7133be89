"""Video files by frame number, and folders of plain videos as episodes without actions."""

import json
import os
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from foreign import mutations, smooth_video, survives
from uwm_data import EpisodeStore, FormatError
from uwm_data.formats import pictures, videos
from uwm_data.formats.video import CODECS, VideoFile, encode, exact_rate, join

RATES = (20.0, 29.97, 30000 / 1001, 12.5, 3.0)


def frames(count, height=32, width=48, seed=0):
    return smooth_video(np.random.default_rng(seed), count, height, width)


def recorded(path, pictures_of, rate=20, codec="libx264", times=None, turned=0, **options):
    """Somebody else's video: any container, B-frames and long groups of pictures as encoders make them by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=options)
        stream.height, stream.width = pictures_of.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned)
        for number, picture in enumerate(pictures_of):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def near(found, wanted, mean=5):
    return found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < mean


# ---- one file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate", RATES)
def test_frames_come_back_by_number_from_a_file_and_from_a_joined_one(tmp_path, codec, rate):
    parts = [frames(count, seed=count) for count in (7, 1, 12, 2)]
    paths = []
    for number, part in enumerate(parts):
        paths.append(tmp_path / f"{number}.mp4")
        paths[-1].write_bytes(encode(part, rate, codec))
        assert encode(part, rate, codec) == paths[-1].read_bytes()
    with open(tmp_path / "joined.mp4", "wb") as file:
        join(paths, file, 22)
    with VideoFile(tmp_path / "joined.mp4", rate) as joined:
        assert (joined.promised, joined.count(), joined.rate, joined.codec) == (22, 22, exact_rate(rate), codec.partition("-")[0])
        whole = joined.read(0, 22)
        start = 0
        for path, part in zip(paths, parts, strict=True):
            with VideoFile(path) as single:
                alone = single.read(0, len(part))
            assert np.array_equal(joined.read(start, len(part)), alone), "nothing is encoded again"
            assert np.array_equal(alone, part) if codec == "h264-lossless" else near(alone, part)
            start += len(part)
        for number in np.random.default_rng(1).permutation(22):
            assert np.array_equal(joined.read(int(number), 1)[0], whole[number])


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9"),
                                             ("a.mov", "mpeg4"), ("a.mp4", "libsvtav1"), ("a.m2ts", "libx264")])  # fmt: skip
def test_seeking_is_exact_in_files_of_others(tmp_path, name, codec):
    """Long groups of pictures, B-frames and coarse clocks: frame k is frame k, wherever one starts."""
    options = {"g": "50", "bf": "3"} if codec == "libx264" else {"g": "20"}
    path = recorded(tmp_path / name, frames(60, 64, 64), 30, codec, **options)
    with VideoFile(path, 30) as file:
        assert file.count() == 60
        whole = file.read(0, 60)
        assert near(whole, frames(60, 64, 64), 12)
        for start in (59, 0, 31, 17, 18, 58, 1):
            assert np.array_equal(file.read(start, min(3, 60 - start)), whole[start : start + 3])
        with pytest.raises(FormatError, match=r"ends before frame 60|has 60 frames"):
            file.read(58, 4)


def test_only_the_frames_asked_for_are_decoded(tmp_path, monkeypatch):
    (tmp_path / "long.mp4").write_bytes(encode(frames(400), 20))
    decoded = []
    number_of = VideoFile._number
    monkeypatch.setattr(VideoFile, "_number", lambda self, pts: decoded.append(pts) or number_of(self, pts))
    with VideoFile(tmp_path / "long.mp4") as file:
        file.read(301, 10)
    assert len(decoded) <= 12


def test_a_variable_rate_is_refused(tmp_path):
    times = [0, 50, 100, 150, 230, 280]
    for name in ("a.mp4", "a.mkv"):
        path = recorded(tmp_path / name, frames(6), 20, times=times, bf="0")
        with VideoFile(path, 20) as file, pytest.raises(FormatError, match="rate varies"):
            file.read(0, 6)
        with VideoFile(path) as file, pytest.raises(FormatError, match="rate varies"):
            file.count()


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_refused(tmp_path, keep):
    """Also one whose index stands in front, so that it opens."""
    for name, options in (("a.mp4", {}), ("front.mp4", {"movflags": "faststart"}), ("a.mkv", {})):
        path = tmp_path / name
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=20)
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
            for picture in frames(40):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        whole = path.read_bytes()
        path.write_bytes(whole[: keep if keep in (0, 40) else int(keep * len(whole))])
        with pytest.raises(FormatError, match=name), VideoFile(path) as file:
            file.read(0, 40)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nother.mp4\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "other.mp4").write_bytes(encode(frames(4), 20))
    (tmp_path / "folder.mp4").mkdir()
    for name in ("list.mp4", "concat.mp4", "text.mp4", "folder.mp4", "nowhere.mp4", "concat:other.mp4"):
        with pytest.raises(FormatError, match=name):
            VideoFile(tmp_path / name)


@pytest.mark.parametrize("side", [30_000, 2**31 - 1])
def test_a_size_that_is_only_claimed_allocates_nothing(tmp_path, side):
    path = recorded(tmp_path / "a.avi", frames(4), 20, "rawvideo")
    whole = bytearray(path.read_bytes())
    where = whole.index(b"strf") + 12  # width and height of the bitmap header, four bytes each
    whole[where : where + 8] = side.to_bytes(4, "little") * 2
    path.write_bytes(whole)

    def read():
        with VideoFile(path) as file:
            file.read(0, 4)

    assert survives(read, extra_bytes=300 << 20) == "refused"


def test_pieces_that_do_not_belong_together_are_not_joined(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(frames(4), 20))
    others = {"size": encode(frames(4, 24, 48), 20), "rate": encode(frames(4), 10), "codec": encode(frames(4), 20, "av1")}
    for what, data in others.items():
        (tmp_path / f"{what}.mp4").write_bytes(data)
        with open(tmp_path / "joined.mp4", "wb") as file, pytest.raises(FormatError, match="encoded differently"):
            join([tmp_path / "a.mp4", tmp_path / f"{what}.mp4"], file, 8)
    with open(tmp_path / "joined.mp4", "wb") as file, pytest.raises(FormatError, match="8 frames came out of 2 pieces, expected 9"):
        join([tmp_path / "a.mp4"] * 2, file, 9)


def test_a_full_disk_while_joining_is_an_error_of_the_disk(tmp_path):
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def seek(self, *_):
            return 0

        def tell(self):
            return 0

    (tmp_path / "a.mp4").write_bytes(encode(frames(4), 20))
    with pytest.raises(OSError, match="No space left"):
        join([tmp_path / "a.mp4"] * 50, Full(), 200)


def test_what_a_codec_cannot_hold_is_refused():
    for bad, codec, words in (
        (frames(3, 31, 48), "h264", "even size"),
        (frames(0), "h264", "cannot hold 0 frames"),
        (frames(3)[..., :1], "h264", "cannot hold"),
        (frames(3), "divx", "unknown codec"),
    ):
        with pytest.raises(FormatError, match=words):
            encode(bad, 20, codec)
    with pytest.raises(FormatError, match="does not suit"):
        encode(frames(3), 20, "h264-lossless", crf=3)
    assert len(encode(frames(9), 20, crf=40)) < len(encode(frames(9), 20, crf=5))


# ---- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "recordings"
    recorded(root / "b" / "clip_10.mp4", frames(9, seed=1), 20)
    recorded(root / "b" / "clip_2.mkv", frames(7, seed=2), 20)
    recorded(root / "a.avi", frames(6, seed=3), 20, "mpeg4")
    recorded(root / "c" / "d.webm", frames(5, seed=4), 20, "libvpx-vp9")
    (root / "b" / "clip_2.txt").write_text(" open the drawer \n")
    lines = [{"video": "a.avi", "instruction": "wipe the table"}, {"video": "b/clip_10.mp4", "text": "lift"}]
    (root / "instructions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    return root


def test_a_folder_of_videos_becomes_episodes_without_actions(folder, tmp_path):
    assert videos.recognise(folder) and videos.recognise(folder / "a.avi") and not videos.recognise(tmp_path / "nowhere")
    source = videos.read(folder)
    names = ["a.avi", "b/clip_2.mkv", "b/clip_10.mp4", "c/d.webm"]
    found = [source.read(index) for index in range(len(source))]
    assert [raw.meta["source"]["name"] for raw in found] == names
    assert [len(raw.arrays["video"]) for raw in found] == [6, 7, 9, 5]
    assert [raw.meta.get("instruction") for raw in found] == ["wipe the table", "open the drawer", "lift", None]
    for raw, count, seed in zip(found, (6, 7, 9, 5), (3, 2, 1, 4), strict=True):
        assert near(raw.arrays["video"], frames(count, seed=seed), 6)
    assert source.left_out == ['instructions.jsonl, line 3: expected {"video": name, "instruction": text}']
    assert source.card["policy"] == {"cameras": ["video"], "proprio": [], "action": None}
    with EpisodeStore.create(tmp_path / "s", source.streams, source.card) as store:
        for raw in found:
            store.append(raw.arrays, raw.meta)
    single = videos.read(folder / "b" / "clip_10.mp4")
    assert len(single) == 1 and single.read(0).meta["source"] == {"format": "videos", "name": "clip_10.mp4", "first_frame": 0}


def test_what_cannot_be_used_is_told_with_its_reason_and_never_a_crash(folder):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    whole = (folder / "b" / "clip_10.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    recorded(folder / "small.mp4", frames(6, 16, 16), 20)
    recorded(folder / "slow.mp4", frames(6), 10)
    recorded(folder / "uneven.mp4", frames(6), 20, times=[0, 50, 100, 150, 230, 280], bf="0")
    (folder / "link.mp4").symlink_to("nowhere.mp4")
    source = videos.read(folder)
    assert len(source) == 4
    told = {line.partition(":")[0]: line for line in source.left_out if ".jsonl" not in line}
    assert set(told) == {"empty.mp4", "noise.mp4", "cut.mp4", "small.mp4", "slow.mp4", "uneven.mp4", "link.mp4"}
    reasons = {"empty.mp4": "empty", "small.mp4": "16 x 16, expected 32 x 48", "slow.mp4": "10 Hz", "uneven.mp4": "varies"}
    assert all(words in told[name] for name, words in reasons.items())


def test_size_and_rate_fit_what_differs(folder):
    recorded(folder / "slow.mp4", frames(6, 64, 64, seed=8), 10)
    source = videos.read(folder, size=(16, 16), rate_hz=20)
    found = {raw.meta["source"]["name"]: raw.arrays["video"] for raw in map(source.read, range(len(source)))}
    assert len(found) == 5 and {values.shape[1:] for values in found.values()} == {(16, 16, 3)}
    slow = found["slow.mp4"]
    assert len(slow) == 11 and np.array_equal(slow[0], slow[1]) and not np.array_equal(slow[1], slow[2])
    corner = frames(6, 64, 64, seed=8)[0].reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert near(slow[0], corner, 6), "scaled as a whole, for both are square"
    wide = found["a.avi"]  # 32 x 48: half its height, and the middle third of its width
    assert near(wide, frames(6, seed=3)[:, :, 8:40].reshape(6, 16, 2, 16, 2, 3).mean((2, 4)), 9)
    thinned = videos.read(folder, size=(32, 48), rate_hz=10)
    assert np.array_equal(thinned.read(0).arrays["video"], videos.read(folder).read(0).arrays["video"][::2])


def test_long_videos_are_cut_into_episodes(folder):
    source = videos.read(folder, frames_per_episode=4)
    whole = {raw.meta["source"]["name"]: raw.arrays["video"] for raw in map(videos.read(folder).read, range(4))}
    parts: dict = {}
    for raw in map(source.read, range(len(source))):
        name, first = raw.meta["source"]["name"], raw.meta["source"]["first_frame"]
        assert 2 <= len(raw.arrays["video"]) <= 4 and first == sum(map(len, parts.get(name, [])))
        parts.setdefault(name, []).append(raw.arrays["video"])
    assert all(np.array_equal(np.concatenate(some), whole[name]) for name, some in parts.items())
    with pytest.raises(FormatError, match="at least 1"):
        videos.read(folder, frames_per_episode=-1)


@pytest.mark.parametrize("turned", [90, 180, -90])
def test_a_telephone_held_sideways_still_gives_upright_frames(tmp_path, turned):
    upright = frames(4, 48, 32) if turned != 180 else frames(4)
    stored = np.rot90(upright, -turned // 90, axes=(1, 2))  # what its sensor saw; a player turns it back
    recorded(tmp_path / "v" / "a.mp4", np.ascontiguousarray(stored), 20, turned=turned)
    assert near(videos.read(tmp_path / "v").read(0).arrays["video"], upright)


def test_folders_of_numbered_pictures_are_videos_too(folder, tmp_path):
    some = frames(12, seed=6)
    (folder / "take").mkdir()
    for number, picture in enumerate(some):
        (folder / "take" / f"img_{number + 8}.png").write_bytes(pictures.encode_png(picture))
    source = videos.read(folder)
    taken = next(raw for raw in map(source.read, range(len(source))) if raw.meta["source"]["name"] == "take")
    assert np.array_equal(taken.arrays["video"], some)
    alone = tmp_path / "alone"
    shutil.copytree(folder / "take", alone / "take")
    with pytest.raises(FormatError, match="tell no rate; give rate_hz"):
        videos.read(alone)
    assert np.array_equal(videos.read(alone, rate_hz=5).read(0).arrays["video"], some)
    (alone / "take" / "img_11.png").unlink()
    with pytest.raises(FormatError, match="not numbered one after another"):
        videos.read(alone, rate_hz=5)


def test_a_folder_without_videos_and_bad_options_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert not videos.recognise(tmp_path / "empty")
    for path, options, words in (
        (tmp_path / "empty", {}, "holds no video"),
        (folder, {"size": (0, 4)}, "size must be"),
        (folder, {"rate_hz": -1}, "rate_hz must be positive"),
    ):
        with pytest.raises(FormatError, match=words):
            videos.read(path, **options)
    with pytest.raises(FormatError, match="only read"):
        videos.write(tmp_path / "x", {}, {})


# ---- fuzz ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mp4", "libsvtav1")])
def test_damaged_videos_end_in_our_own_error_or_in_frames(tmp_path, name, codec):
    path = recorded(tmp_path / name, frames(8), 20, codec)
    whole = path.read_bytes()

    def read():
        with VideoFile(path) as file:
            file.count()
            file.read(0, 8)
        videos.read(tmp_path).read(0)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutations(whole))
    def run(damaged):
        path.write_bytes(damaged)
        survives(read)

    run()


def test_encoding_leaves_the_process_no_real_time_process():
    """SVT-AV1, run by root, would make it one."""
    before = os.sched_getscheduler(0)
    for codec in CODECS:
        encode(np.zeros((3, 64, 64, 3), np.uint8), 20.0, codec)
    assert os.sched_getscheduler(0) == before
