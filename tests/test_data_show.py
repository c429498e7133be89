"""Looking at a dataset: the report in words and as JSON, the contact sheet, and the recording for Rerun."""

import builtins
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

import fake_formats
import foreign
from data_episodes import make_store
from fake_formats import script
from test_envs_pusht_store import PLACE
from uwm_data import EpisodeStore, FormatError, StoreError, StreamSpec, copy_store
from uwm_data.look import look, spread
from uwm_data.show import main_show
from uwm_data.view import main_view


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def foreign_store(path, count=3, **card):
    with EpisodeStore.create(path, foreign.STREAMS, {**foreign.CARD, **card}) as store:
        for seed in range(count):
            arrays, meta = foreign.episode(8 + seed, seed)
            store.append(arrays, {**meta, "source": {"format": "toy", "number": seed}})
    return path


def said(capsys):
    """What was printed, with single spaces."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------------------------------------------------------- the words


def test_the_report_tells_card_streams_statistics_episodes_and_where_the_sheet_is(here, capsys):
    foreign_store(here / "toy.zarr")
    assert main_show("toy.zarr") == 0
    lines = said(capsys)
    assert lines[0] == "toy.zarr (store): 3 episodes, 27 ticks, 1.4 s, success 2 of 3"
    for line in (
        "cameras front 48 x 32, wrist 24 x 24; images upright",
        "rate 20 ticks per second",
        "action mode: delta, frame: world, gripper: none",
        "displacement per tick",
        "policy sees front, wrist, arm; sends action",
        "robot planar arm",
        "reward label 1 float32 20 Hz ends before the last action",
        "statistics over 3 of 3 episodes",
        "action (27 frames)",
        "index ticks seconds task instruction success source",
        "1 9 0.5 open_the_drawer open the drawer yes toy 1",
        "2 10 0.5 push_the_block push the block no toy 2",
        f"contact sheet: {here / 'toy_sheet.png'}",
    ):
        assert line in lines, line
    assert not any(line.startswith("not told") for line in lines)


def test_what_the_card_does_not_tell_is_named(here, capsys):
    make_store(here / "s.zarr", (3,))
    main_show("s.zarr")
    told = " ".join(said(capsys))
    assert "not told env, robot, action.names, action.units, action.convention, action.mode, action.frame, action.gripper" in told


def test_statistics_are_those_of_every_frame_and_odd_dimensions_are_marked(here, capsys):
    streams = {
        "camera": StreamSpec((4, 4, 1), "uint8", 5, "video"),
        "state": StreamSpec((3,), "float32", 5, "state", ("m", "m", "m"), ("still", "moves", "seldom")),
        "action": StreamSpec((1,), "float32", 5, "action"),
    }
    random, every = np.random.default_rng(0), []
    with EpisodeStore.create(here / "s.zarr", streams) as store:
        for _ in range(40):
            state = np.stack([np.full(21, 2.5), random.normal(size=21), np.zeros(21)], 1).astype(np.float32)
            every.append(state)
            arrays = {"camera": random.integers(0, 256, (21, 4, 4, 1), np.uint8), "action": np.ones((20, 1), np.float32)}
            state[3, 2] = random.choice([0, 100], p=[0.9, 0.1])
            store.append({**arrays, "state": state})
    assert main_show("s.zarr", as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    state = np.concatenate(every).astype(np.float64)
    np.testing.assert_allclose(told["statistics"]["state"]["mean"], state.mean(0))
    np.testing.assert_allclose(told["statistics"]["state"]["std"], state.std(0))
    assert told["statistics"]["state"]["count"] == 40 * 21 and told["statistics"]["camera"]["count"] == 24 * 21
    assert told["statistics_episodes"] == {"numbers": 40, "video": 24}
    main_show("s.zarr")
    lines = said(capsys)
    assert "statistics over 40 of 40 episodes, of video over 24 (--all for all)" in lines
    marks = {line.split()[0]: line for line in lines if line.split()[:2] in (["still", "(m)"], ["moves", "(m)"], ["seldom", "(m)"])}
    assert marks["still"].endswith("constant") and marks["seldom"].endswith("heavy-tailed") and marks["moves"][-1].isdigit()


def test_a_long_table_is_shortened_and_all_shows_it_whole(here, capsys):
    make_store(here / "s.zarr", [2] * 40)
    main_show("s.zarr")
    short = said(capsys)
    assert "... 16 more (--all)" in short and "39 2 0.1 lift no" in short and "25 2 0.1 lift no" not in short
    main_show("s.zarr", everything=True)
    whole = said(capsys)
    assert all(f"{index} 2 0.1 lift {'no' if index % 2 else 'yes'}" in whole for index in range(40))


def test_json_holds_everything_that_is_known(here, capsys):
    foreign_store(here / "toy.zarr")
    assert main_show("toy.zarr", as_json=True, sheet_file=here / "sheet.png") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["episodes"], told["not_told"], told["unreadable"]) == ("store", 3, [], {})
    assert told["card"]["action"] == foreign.CARD["action"] and told["sheet"] == str(here / "sheet.png")
    row = {"index": 1, "ticks": 9, "seconds": 0.45, "task": "open_the_drawer", "instruction": "open the drawer"}
    assert told["table"][1] == {**row, "success": True, "source": "toy 1"}
    assert {name: StreamSpec(**spec) for name, spec in told["streams"].items()} == foreign.STREAMS


def test_a_dataset_of_another_format_is_looked_at_in_evenly_spaced_episodes(here, capsys, monkeypatch):
    source = script(here / "s.json", *["fine"] * 120)
    assert main_show(source, formats=fake_formats.FORMATS) == 0
    lines = said(capsys)
    assert "in the 50 that were looked at (--all for all)" in lines[0] and "statistics over 50 of 120 episodes" in lines
    assert "not shown the smell" in lines and (here / "s_sheet.png").exists()
    read = [int(line) for line in (here / "s.log").read_text().split()]
    assert read[0] == 0 and read[-1] == 119 and len(read) == 50 and max(np.diff(read)) <= 3


def test_an_episode_that_cannot_be_read_is_named_and_the_others_are_shown(here, capsys):
    source = script(here / "s.json", "fine", "refused", "fine")
    assert main_show(source, formats=fake_formats.FORMATS) == 1
    told = capsys.readouterr()
    assert "statistics over 2 of 3 episodes" in told.out and "'arm' is cut off" in told.err and "episode 1" in told.err


def test_the_committed_pusht_episodes_are_shown_without_a_picture(here, capsys):
    before = {file: file.stat().st_mtime_ns for file in PLACE.rglob("*")}
    assert main_show(PLACE) == 0
    lines = said(capsys)
    assert "150 episodes, 10641 ticks" in lines[0] and "cameras none" in lines and "rate 10 ticks per second" in lines
    assert lines[-1] == "no contact sheet: there is no camera" and not list(here.iterdir())
    assert {file: file.stat().st_mtime_ns for file in PLACE.rglob("*")} == before
    with pytest.raises(StoreError, match="has no camera"):
        main_show(PLACE, sheet_file=here / "x.png")


def test_a_store_at_a_url_is_shown_and_its_sheet_is_drawn_here(here, capsys):
    copy_store(foreign_store(here / "toy.zarr"), "memory://lab/toy.zarr")
    assert main_show("memory://lab/toy.zarr") == 0
    assert said(capsys)[-1] == f"contact sheet: {here / 'toy_sheet.png'}"


def test_what_is_no_dataset_is_refused_by_name(here):
    (here / "text.txt").write_text("hello")
    with pytest.raises(FormatError, match=r"text\.txt is not a dataset that is known here"):
        main_show("text.txt", formats=fake_formats.FORMATS)


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, None, list(range(9))), (0, 4, [])])
def test_spread_takes_both_ends(count, most, expected):
    assert spread(count, most) == expected


# ----------------------------------------------------------------------------------------------------------------- the picture


def test_the_contact_sheet_shows_the_true_frames_of_each_camera_upright(here, capsys):
    foreign_store(here / "toy.zarr")
    main_show("toy.zarr", sheet_file=here / "deep" / "sheet.png")
    sheet = np.asarray(Image.open(here / "deep" / "sheet.png"))
    assert sheet.shape[1] > 1500 and sheet.shape[2] == 3
    # A film frame has red in its top left corner and blue in its bottom right one: 3 episodes of 2 cameras at 5 times.
    red, blue = (np.all(sheet == colour, axis=2) for colour in ((230, 20, 20), (20, 20, 230)))
    assert blobs(red) == blobs(blue) == 3 * 2 * 5
    assert np.argwhere(red).min(0)[0] < np.argwhere(blue).min(0)[0] and np.argwhere(red).min(0)[1] < np.argwhere(blue).min(0)[1]


def blobs(mask):
    """Separate rectangles in a mask: their top left corners."""
    padded = np.pad(mask, 1)
    corner = padded[1:-1, 1:-1] & ~padded[:-2, 1:-1] & ~padded[1:-1, :-2]
    return int(corner.sum())


def test_a_sheet_of_a_store_in_which_cameras_are_missing_grey_or_tiny(here, capsys):
    streams = {
        "grey": StreamSpec((6, 90, 1), "uint8", 5, "video"),
        "off": StreamSpec((200, 100, 4), "uint8", 5, "video", optional=True),
        "action": StreamSpec((1,), "float32", 5, "action"),
    }
    arrays = {"grey": np.full((4, 6, 90, 1), 77, np.uint8), "off": np.zeros((0, 200, 100, 4), np.uint8)}
    with EpisodeStore.create(here / "s.zarr", streams) as store:
        store.append({**arrays, "action": np.ones((3, 1), np.float32)}, {"instruction": "a very long instruction " * 20})
    assert main_show("s.zarr") == 0
    sheet = np.asarray(Image.open(here / "s_sheet.png"))
    assert (sheet == 77).all(2).sum() > 1000 and sheet.shape[1] < 12_000


def test_a_sheet_is_replaced_in_one_move_and_no_rest_stays(here, capsys):
    foreign_store(here / "toy.zarr", 1)
    main_show("toy.zarr")
    first = (here / "toy_sheet.png").read_bytes()
    main_show("toy.zarr")
    assert (here / "toy_sheet.png").read_bytes() == first
    assert sorted(file.name for file in here.iterdir()) == ["toy.zarr", "toy_sheet.png"]


def test_looking_takes_the_memory_of_an_episode_and_not_of_the_dataset(here):
    source = fake_formats.read(script(here / "s.json", *["fine"] * 30))
    alive, most, real = [], [], source.read

    def counted(index):
        import gc
        import weakref

        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        raw = real(index)
        alive.append(weakref.ref(raw.arrays["front"]))
        return raw

    source.read = counted
    look(source)
    assert len(most) == 30 and max(most) <= 2


# -------------------------------------------------------------------------------------------------------------------- the view


def recorded(path):
    """The rows of a recording by column, over seconds."""
    import rerun.dataframe

    table = rerun.dataframe.load_recording(path).view(index="seconds", contents="/**").select().read_all()
    return {name: table[name].to_pylist() for name in table.column_names}


def test_a_recording_holds_every_frame_and_number_at_its_time(here, capsys):
    foreign_store(here / "toy.zarr")
    assert main_view("toy.zarr", episode=1, save=here / "deep" / "x.rrd") == 0
    assert "episode 1 of toy.zarr: written to" in capsys.readouterr().out
    columns = recorded(here / "deep" / "x.rrd")
    arrays, _ = foreign.episode(9, 1)
    seconds = np.array([moment / np.timedelta64(1, "s") if isinstance(moment, np.timedelta64) else moment.total_seconds()
                        for moment in columns["seconds"]])  # fmt: skip
    np.testing.assert_allclose(seconds, np.arange(10) / 20)
    for name, column in (("arm", "/state/arm:Scalar"), ("action", "/action/action:Scalar"), ("reward", "/label/reward:Scalar")):
        rows = [row for row in columns[column] if row]
        np.testing.assert_allclose(rows, arrays[name].reshape(len(arrays[name]), -1).astype(np.float64))
    for name in ("front", "wrist"):
        blobs = [bytes(row[0]) for row in columns[f"/camera/{name}:Blob"]]
        for blob, frame in zip(blobs, arrays[name], strict=True):
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(blob))), frame)
    text = str(columns["/about:Text"])
    assert "open the drawer" in text and "displacement per tick" in text
    assert columns["/state/arm:Name"][0] == ["x", "y", "angle"]


def test_the_episode_is_named_as_in_the_table_also_behind_one_that_was_set_aside(here, capsys):
    foreign_store(here / "toy.zarr")
    with EpisodeStore.open(here / "toy.zarr", write=True) as store:
        store.set_aside({1: "a scratch"})
    main_show("toy.zarr", as_json=True)
    assert [row["index"] for row in json.loads(capsys.readouterr().out)["table"]] == [0, 2]
    main_view("toy.zarr", episode=2, save=here / "x.rrd")
    assert len(recorded(here / "x.rrd")["seconds"]) == 11
    for number in (1, 3):
        with pytest.raises(FormatError, match=f"there is no episode {number}"):
            main_view("toy.zarr", episode=number, save=here / "y.rrd")


def test_a_recording_of_any_format_that_is_known(here):
    source = script(here / "s.json", "fine")
    main_view(source, save=here / "x.rrd", formats=fake_formats.FORMATS)
    assert {"/camera/front:Blob", "/state/arm:Scalar", "/about:Text"} <= set(recorded(here / "x.rrd"))


def test_without_rerun_the_error_names_the_extra(here, monkeypatch):
    foreign_store(here / "toy.zarr", 1)
    real = builtins.__import__

    def lacking(name, *rest, **named):
        if name.partition(".")[0] == "rerun":
            raise ModuleNotFoundError("No module named 'rerun'", name="rerun")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(ImportError, match=r"pip install 'uwm\[view\]'"):
        main_view("toy.zarr", save=here / "x.rrd")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a screen")
def test_without_a_screen_the_error_says_what_to_do(here, monkeypatch):
    foreign_store(here / "toy.zarr", 1)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FormatError, match=r"no screen .*--save FILE\.rrd"):
        main_view("toy.zarr")


def test_a_place_that_cannot_be_written_is_an_error(here):
    foreign_store(here / "toy.zarr", 1)
    with pytest.raises((FormatError, OSError)):
        main_view("toy.zarr", save=here / "toy.zarr" / "zarr.json" / "x.rrd")
    assert os.listdir(here) == ["toy.zarr"]
