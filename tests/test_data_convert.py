"""Conversion: exact, parallel, going on after any stop, and every trouble named with the episode that it came from."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import fake_formats
from data_episodes import assert_holds, make_store
from fake_formats import FORMATS, fine, script
from uwm_data import EpisodeStore, FormatError, StoreError, check, conversion, copy_store, durable, repair
from uwm_data.conversion import convert
from uwm_data.formats import own
from uwm_data.note import place_of


def converted(source, target, **options):
    return convert(source, target, **{"workers": 0, "formats": FORMATS, **options})


def holds_fine(path, numbers):
    """The store at `path` is whole and has exactly the sound episodes with these numbers."""
    store = EpisodeStore.open(path)
    assert len(store) == len(numbers)
    for place, number in enumerate(numbers):
        arrays, meta = fine(number)
        assert store.meta(place) == meta
        for name, values in arrays.items():
            assert store.read(place, name).tobytes() == values.tobytes()
    assert not check(path).findings
    return True


# ------------------------------------------------------------------------------------------------------------- store to store


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_becomes_a_store_with_the_same_streams_card_metadata_and_checksum(tmp_path, workers):
    episodes = make_store(tmp_path / "a.zarr")
    report = convert(tmp_path / "a.zarr", tmp_path / "b.zarr", workers=workers, verify=True)
    before, after = EpisodeStore.open(tmp_path / "a.zarr"), EpisodeStore.open(tmp_path / "b.zarr")
    assert_holds(after, episodes)
    assert after.card == before.card and after.streams == before.streams and after.checksum == before.checksum
    assert [after.meta(index) for index in after.episodes] == [before.meta(index) for index in before.episodes]
    assert report.episodes == report.added == 4 and report.ticks == 7 + 12 + 1 + 30
    assert all(like.exact for like in report.likeness.values()) and set(report.likeness) == set(before.streams)
    assert not report.left_out["source"] and not report.left_out["target"]


def test_episodes_that_a_repair_set_aside_are_left_out_and_named(tmp_path):
    episodes = make_store(tmp_path / "a.zarr")
    with EpisodeStore.open(tmp_path / "a.zarr", write=True) as store:
        store.set_aside({1: "a scratch"})
    report = converted(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert_holds(EpisodeStore.open(tmp_path / "b.zarr"), [episodes[0], *episodes[2:]])
    assert report.left_out["source"] == ["episodes 1, which a repair set aside as damaged"]


def test_only_a_store_is_recognised_as_one(tmp_path):
    make_store(tmp_path / "a.zarr", (3,))
    assert own.recognise(tmp_path / "a.zarr") and own.recognise(str(tmp_path / "a.zarr"))
    for text in ("", "{", "[]", '{"attributes": 3}', '{"attributes": {"uwm_data": []}}', "[" * 100_000, "\0\xff"):
        (tmp_path / "zarr.json").write_text(text)
        assert own.recognise(tmp_path) is False
    assert not own.recognise(tmp_path / "nowhere") and not own.recognise(tmp_path / "zarr.json")


def test_a_store_that_holds_something_else_is_not_continued(tmp_path):
    make_store(tmp_path / "a.zarr", (3,))
    streams = EpisodeStore.open(tmp_path / "a.zarr").streams
    with pytest.raises(FormatError, match="stream 'reward'"):
        own.write(tmp_path / "a.zarr", {name: spec for name, spec in streams.items() if name != "reward"}, {})
    with pytest.raises(FormatError, match="image_orientation is 'upright' in it and 'upside down' in the episodes to add"):
        own.write(tmp_path / "a.zarr", streams, {"image_orientation": "upside down"})
    own.write(tmp_path / "a.zarr", streams, {}).close()  # and nobody holds its lock


def test_a_store_at_a_url_is_converted_and_no_other_format_is_looked_for_there(tmp_path):
    episodes = make_store(tmp_path / "a.zarr")
    copy_store(tmp_path / "a.zarr", "memory://lab/a.zarr")
    report = converted("memory://lab/a.zarr", tmp_path / "b.zarr", verify=True)
    assert report.source == "memory://lab/a.zarr" and report.format == "store"
    assert_holds(EpisodeStore.open(tmp_path / "b.zarr"), episodes)
    assert converted("memory://lab/a.zarr", tmp_path / "b.zarr").added == 0
    with pytest.raises(FormatError, match="unknown format 'fake'; there are store"):
        converted("memory://lab/a.zarr", tmp_path / "c.zarr", from_="fake")
    with pytest.raises(StoreError, match="memory://lab/nothing"):
        converted("memory://lab/nothing", tmp_path / "c.zarr")
    converted(f"file://{tmp_path}/a.zarr", tmp_path / "d.zarr")  # a path in other words
    assert_holds(EpisodeStore.open(tmp_path / "d.zarr"), episodes)


# ------------------------------------------------------------------------------------------------------------------- parallel


def test_parallel_gives_what_one_after_another_gives(tmp_path):
    source = script(tmp_path / "s.json", *["slow", "fine", "fine", "fine"] * 2, *["fine"] * 8)
    one, many = converted(source, tmp_path / "one.zarr"), converted(source, tmp_path / "many.zarr", workers=3)
    assert holds_fine(tmp_path / "many.zarr", range(16))
    assert EpisodeStore.open(tmp_path / "one.zarr").checksum == EpisodeStore.open(tmp_path / "many.zarr").checksum
    assert (one.episodes, one.ticks, one.added) == (many.episodes, many.ticks, many.added) == (16, one.ticks, 16)
    assert one.left_out["source"] == ["the smell"]


def test_workers_go_only_a_few_episodes_ahead_of_the_one_that_is_waited_for(tmp_path, monkeypatch):
    source = script(tmp_path / "s.json", *["fine"] * 40)
    ahead = []
    real = own.StoreSink.append

    def slow(sink, encoded):
        time.sleep(0.03)
        ahead.append(len((tmp_path / "s.log").read_text().split()) - len(sink))
        real(sink, encoded)

    monkeypatch.setattr(own.StoreSink, "append", slow)
    converted(source, tmp_path / "t.zarr", workers=2)
    # 2 workers + 2 ahead of the next one, and that one itself
    assert len(ahead) == 40 and 2 <= max(ahead) <= 5


# --------------------------------------------------------------------------------------------------------------------- resume


def test_a_finished_conversion_is_complete_and_adds_nothing(tmp_path):
    source = script(tmp_path / "s.json", "fine", "fine")
    converted(source, tmp_path / "t.zarr")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "t.zarr").rglob("c.*")}
    report = converted(source, tmp_path / "t.zarr")
    assert (report.episodes, report.added) == (2, 0) and "already complete" in report.lines()[0]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "t.zarr").rglob("c.*")} == before
    assert json.loads(place_of(tmp_path / "t.zarr").read_text())["report"]["episodes"] == 2


def test_a_moved_source_is_still_the_same_source(tmp_path):
    source = script(tmp_path / "s.json", "fine", "refused", "fine")
    with pytest.raises(FormatError):
        converted(source, tmp_path / "t.zarr")
    moved = source.rename(tmp_path / "elsewhere.json")
    with pytest.raises(FormatError, match=r"episode 1: 'arm' is cut off. The 1 episodes before it"):
        converted(moved, tmp_path / "t.zarr")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: script(s, "fine", "fine", "fine", "fine"), "before .*s.json was changed"),
        (lambda s: script(s.with_name("other.json"), "fine", "fine"), "from .*s.json.*not from .*other.json"),
    ],
)
def test_another_source_is_refused_by_name_and_the_target_stays_as_it_is(tmp_path, change, words):
    source = script(tmp_path / "s.json", "fine", "fine", "fine")
    converted(source, tmp_path / "t.zarr")
    with pytest.raises(FormatError, match=words):
        converted(change(source), tmp_path / "t.zarr")
    assert holds_fine(tmp_path / "t.zarr", range(3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source_options": {"pause_s": 0.001}}, "source_options {}, now they are {'pause_s': 0.001}"),
        ({"target_options": {"shard_bytes": 4000}}, "target_options {}, now they are {'shard_bytes': 4000}"),
        ({"to": "fake"}, "to 'store', now they are 'fake'"),
    ],
)
def test_other_options_are_refused_by_name(tmp_path, options, words):
    source = script(tmp_path / "s.json", "fine")
    converted(source, tmp_path / "t.zarr")
    with pytest.raises(FormatError, match=words):
        converted(source, tmp_path / "t.zarr", **options)


def test_a_target_that_no_conversion_made_is_left_alone(tmp_path):
    source = script(tmp_path / "s.json", "fine")
    make_store(tmp_path / "mine.zarr", (3,))
    (tmp_path / "notes.txt").write_text("mine")
    for target in ("mine.zarr", "notes.txt"):
        with pytest.raises(FormatError, match="was not begun by a conversion"):
            converted(source, tmp_path / target)
    assert len(EpisodeStore.open(tmp_path / "mine.zarr")) == 1 and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_damaged_note_says_what_to_remove(tmp_path):
    source = script(tmp_path / "s.json", "fine")
    converted(source, tmp_path / "t.zarr")
    for text in ("{", "[]", '{"wrong": 1}', ""):
        place_of(tmp_path / "t.zarr").write_text(text)
        with pytest.raises(FormatError, match=r"t\.zarr\.conversion\.json is damaged .*remove it and t\.zarr"):
            converted(source, tmp_path / "t.zarr")


def test_an_empty_folder_and_a_folder_that_is_not_there_are_fine_targets(tmp_path):
    source = script(tmp_path / "s.json", "fine")
    (tmp_path / "empty").mkdir()
    for target in ("empty", "new/deep/t.zarr"):
        converted(source, tmp_path / target)
        assert holds_fine(tmp_path / target, [0])


CONVERT = """
import sys
sys.path.insert(0, sys.argv[3])
from fake_formats import FORMATS
from uwm_data.conversion import convert
if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], workers=2, formats=FORMATS, source_options={"pause_s": 0.01}, skip_bad=True)
    print("done", flush=True)
"""


def start(tmp_path, source, target):
    program = tmp_path / "program.py"
    program.write_text(CONVERT)
    command = [sys.executable, program, source, target, os.path.dirname(__file__)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def journal_lines(target):
    try:
        return (target / "episodes.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    assert condition()


def test_a_kill_of_all_processes_at_any_moment_costs_no_episode(tmp_path):
    """Killed again and again at random moments, it still ends with every episode once, in order, the damaged one left out."""
    source = script(tmp_path / "s.json", *["fine"] * 20, "refused", *["fine"] * 40)
    target, chance, kills = tmp_path / "t.zarr", random.Random(5), 0
    while kills < 4:
        child, before = start(tmp_path, source, target), journal_lines(target)
        wait_until(lambda child=child, before=before: journal_lines(target) > before + 2 or child.poll() is not None)
        time.sleep(chance.uniform(0, 0.05))
        if child.poll() is not None:
            break
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        kills += 1
    assert kills >= 2
    report = converted(source, target, source_options={"pause_s": 0.01}, skip_bad=True, workers=2)
    assert report.episodes == 60 and report.skipped == {20: "'arm' is cut off"}
    assert holds_fine(target, [*range(20), *range(21, 61)])


KILLED_BEFORE_IT_WAS_PUT_TOGETHER = """
import sys
sys.path.insert(0, sys.argv[3])
from fake_formats import AND_ROBOMIMIC
from uwm_data.conversion import convert
convert(sys.argv[1], sys.argv[2], "robomimic", workers=0, formats=AND_ROBOMIMIC, skip_bad=True)
"""


def test_a_format_that_is_put_together_at_the_end_is_gone_on_with_and_keeps_its_note(tmp_path):
    source, target = script(tmp_path / "s.json", "fine", "refused", "fine", "killed once", "fine"), tmp_path / "t.hdf5"
    command = [sys.executable, "-c", KILLED_BEFORE_IT_WAS_PUT_TOGETHER, source, target, os.path.dirname(__file__)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not target.exists() and place_of(target).exists()
    options = {"to": "robomimic", "formats": fake_formats.AND_ROBOMIMIC}
    with pytest.raises(FormatError, match=r"was begun from .*s\.json.*not from .*other\.json"):
        converted(script(tmp_path / "other.json", "fine", "fine"), target, **options)
    report = converted(source, target, verify=True, **options)
    assert (report.episodes, report.added) == (4, 2) and report.skipped == {1: "'arm' is cut off"}
    assert all(like.exact for like in report.likeness.values())


def test_workers_go_without_leaving_anything_behind(tmp_path):
    child = start(tmp_path, script(tmp_path / "s.json", *["fine"] * 5), tmp_path / "t.zarr")
    said, told = child.communicate(timeout=120)
    assert (child.returncode, said, told) == (0, "done\n", "")  # no warning of semaphores that were never given back


def test_workers_of_a_killed_parent_end_by_themselves(tmp_path):
    source = script(tmp_path / "s.json", *["fine"] * 500)
    child = start(tmp_path, source, tmp_path / "t.zarr")
    wait_until(lambda: journal_lines(tmp_path / "t.zarr") > 3)
    os.kill(child.pid, signal.SIGKILL)  # the parent alone
    child.communicate()  # returns when the last process that has its stdout is gone
    log = tmp_path / "s.log"
    size = log.stat().st_size
    time.sleep(0.2)
    assert log.stat().st_size == size


def test_ctrl_c_leaves_whole_episodes_and_no_process(tmp_path):
    source = script(tmp_path / "s.json", *["fine"] * 500)
    child = start(tmp_path, source, tmp_path / "t.zarr")
    wait_until(lambda: journal_lines(tmp_path / "t.zarr") > 3)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, told = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGINT and told.count("Traceback") == 1 and told.rstrip().endswith("KeyboardInterrupt"), told
    assert "leaked" not in told
    have = len(EpisodeStore.open(tmp_path / "t.zarr"))
    assert 3 < have < 500 and holds_fine(tmp_path / "t.zarr", range(have))


def test_ctrl_c_while_an_episode_is_added_takes_effect_when_it_is_whole(tmp_path, monkeypatch):
    real, log = fake_formats.Folder.append, []

    def interrupted(sink, encoded):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        real(sink, encoded)
        log.append(len(sink))

    source = script(tmp_path / "s.json", "fine", "fine")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fake_formats.Folder, "append", interrupted)
        converted(source, tmp_path / "t", to="fake")
    assert log == [1]
    assert converted(source, tmp_path / "t", to="fake", verify=True).added == 1


# ------------------------------------------------------------------------------------------------------------ trouble of disks


def test_a_full_disk_is_named_and_the_same_call_goes_on_when_there_is_space(tmp_path, monkeypatch):
    source = script(tmp_path / "s.json", *["fine"] * 6)
    real, calls = os.pwrite, []

    def failing(descriptor, payload, offset):
        calls.append(1)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, payload, offset)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="the disk is full while adding episode"):
        patch.setattr(durable.os, "pwrite", failing)
        converted(source, tmp_path / "t.zarr", skip_bad=True)
    have = len(EpisodeStore.open(tmp_path / "t.zarr"))
    assert 0 < have < 6
    if check(tmp_path / "t.zarr").problems:  # on a full disk even the summary could not be written
        repair(tmp_path / "t.zarr")
    report = converted(source, tmp_path / "t.zarr", skip_bad=True)
    assert report.added == 6 - have and not report.skipped and holds_fine(tmp_path / "t.zarr", range(6))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_really_full(tmp_path, workers):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        source = script(tmp_path / "s.json", *["fine"] * 100)
        with pytest.raises(StoreError, match="the disk is full while adding episode"):
            converted(source, disk / "t.zarr", workers=workers, skip_bad=True)
        have = len(EpisodeStore.open(disk / "t.zarr"))
        assert 3 < have < 100
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert converted(source, disk / "t.zarr", workers=workers, skip_bad=True).added == 100 - have
        assert holds_fine(disk / "t.zarr", range(100))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_writer_of_another_format_that_runs_out_of_space_is_explained(tmp_path, monkeypatch):
    source = script(tmp_path / "s.json", "fine", "fine")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(FormatError, match=r"No space left on device.*run the same command again"):
        patch.setattr(fake_formats.np, "savez", full)
        converted(source, tmp_path / "t", to="fake", skip_bad=True)
    assert converted(source, tmp_path / "t", to="fake").added == 2


# --------------------------------------------------------------------------------------------------------- trouble of episodes

TROUBLES = {
    "refused": "'arm' is cut off",
    "nan": "stream 'arm': nan at frame 2 dimension (1,)",
    "memory": "does not fit into memory",
    "gone": "cannot be read: No such file or directory",
    "abort": "died (SIGABRT); the file is probably damaged",
    "killed": "died (SIGKILL); probably memory ran out",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_bad_episode_stops_the_conversion_with_its_number_and_what_is_wrong(tmp_path, trouble):
    source = script(tmp_path / "s.json", "fine", "fine", trouble, "fine")
    with pytest.raises(FormatError) as refused:
        converted(source, tmp_path / "t.zarr", workers=2)
    told = str(refused.value)
    assert told.startswith(f"{source}: episode 2") and TROUBLES[trouble] in told and told.count("episode 2") == 1
    assert "The 2 episodes before it are in" in told
    assert holds_fine(tmp_path / "t.zarr", [0, 1])


def test_skip_bad_takes_all_others_and_lists_what_it_left_out(tmp_path):
    behaviours = ["fine", *TROUBLES, "fine", "fine"]
    source = script(tmp_path / "s.json", *behaviours)
    report = converted(source, tmp_path / "t.zarr", workers=2, skip_bad=True)
    assert holds_fine(tmp_path / "t.zarr", [0, 7, 8])
    assert report.episodes == report.added == 3
    for index, trouble in enumerate(TROUBLES, start=1):
        assert TROUBLES[trouble] in report.skipped[index]
        assert any(line.startswith(f"skipped episode {index}: ") for line in report.lines())
    again = converted(source, tmp_path / "t.zarr", workers=2)
    assert (again.episodes, again.added) == (3, 0) and again.skipped == report.skipped


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_of_a_reader_stays_a_bug(tmp_path, workers):
    source = script(tmp_path / "s.json", "fine", "bug")
    with pytest.raises((ZeroDivisionError, RuntimeError), match="by me"):
        converted(source, tmp_path / "t.zarr", workers=workers, skip_bad=True)
    assert holds_fine(tmp_path / "t.zarr", [0])


def test_workers_that_cannot_start_are_no_fault_of_an_episode(tmp_path):
    source = script(tmp_path / "s.json", "fine")
    program = tmp_path / "unguarded.py"
    program.write_text(CONVERT.replace('if __name__ == "__main__":', "if True:"))
    command = [sys.executable, program, source, tmp_path / "t.zarr", os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode and "could not start" in done.stderr and "if __name__ == '__main__':" in done.stderr


# ------------------------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "nowhere"}, "nowhere does not exist"),
        ({"source": "text.txt"}, r"text.txt is not a dataset that is known here \(store, fake\)"),
        ({"source": "empty.json"}, "holds no episodes"),
        ({"from_": "fakke"}, "unknown format 'fakke'; there are fake, store"),
        ({"to": "stroe"}, "unknown format 'stroe'"),
        ({"to": "read-only"}, "read-only can be read, but not written"),
        ({"source_options": {"pause": 1}}, "reading fake has no option 'pause', did you mean 'pause_s'"),
        ({"target_options": {"path": 1}}, "writing store has no option 'path'; it has shard_bytes, compression"),
        ({"target": "s.json"}, "are the same place"),
        ({"target": "s.json/x"}, "one is inside the other"),
        ({"target": "s3://bucket/t.zarr"}, "convert to a local path"),
        ({"target": "text.txt/t.zarr"}, r"t\.zarr\.conversion\.json cannot be written \(File exists|Not a directory\)"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, change, words):
    script(tmp_path / "s.json", "fine")
    script(tmp_path / "empty.json")
    (tmp_path / "text.txt").write_text("hello")
    before = sorted(tmp_path.iterdir())
    arguments = {"source": "s.json", "target": "t.zarr", **change}
    source, target = (path if "://" in path else tmp_path / path for path in (arguments.pop("source"), arguments.pop("target")))
    formats = {**FORMATS, "read-only": "read_only_format"} if change.get("to") == "read-only" else FORMATS
    sys.modules["read_only_format"] = type(sys)("read_only_format")
    with pytest.raises(FormatError, match=words):
        converted(source, target, formats=formats, **arguments)
    assert sorted(tmp_path.iterdir()) == before


# ---------------------------------------------------------------------------------------------------------------- verification


def test_verification_says_how_like_its_source_each_stream_is(tmp_path):
    source = script(tmp_path / "s.json", "fine", "refused", "fine")
    options = {"to": "fake", "verify": True, "skip_bad": True}
    exact = converted(source, tmp_path / "exact", **options)
    assert all(like.exact for like in exact.likeness.values()) and len(exact.likeness) == 4
    rounded = converted(source, tmp_path / "rounded", target_options={"spoil": "rounding"}, **options)
    assert 0 < rounded.likeness["reward"].error < 1e-6 and rounded.likeness["action"].exact
    noisy = converted(source, tmp_path / "noisy", target_options={"spoil": "noise"}, **options)
    assert 35 < noisy.likeness["front"].psnr_db < 45 and "PSNR at least" in noisy.lines()[2]
    partial = converted(source, tmp_path / "partial", target_options={"lose": "reward"}, **options)
    assert set(partial.likeness) == {"front", "arm", "action"} and partial.left_out["target"] == ["the stream reward"]


@pytest.mark.parametrize(
    ("target_options", "words"),
    [
        ({"spoil": "video"}, "differently in 'front': a frame has a PSNR of"),
        ({"spoil": "number"}, "differently in 'action': by up to"),
        ({"spoil": "length"}, "episode 0 reads back with .* frames of 'arm'"),
        ({"spoil": "meta"}, "episode 0 reads back with success False, True was written"),
        ({"lose": "reward", "silent": True}, "reads back with 0 frames of 'reward'"),
    ],
)
def test_verification_finds_what_a_writer_lost_without_saying_so(tmp_path, target_options, words):
    source = script(tmp_path / "s.json", "fine", "fine")
    with pytest.raises(FormatError, match=words):
        converted(source, tmp_path / "t", to="fake", verify=True, target_options=target_options)


def test_verification_counts_episodes(tmp_path):
    source = script(tmp_path / "s.json", "fine", "fine")
    converted(source, tmp_path / "t", to="fake")
    np.savez(tmp_path / "t" / "2.npz", x=np.zeros(1))
    with pytest.raises(FormatError, match="holds 3 episodes, its source only 2"):
        converted(source, tmp_path / "t", to="fake", verify=True)


def test_default_workers_are_at_least_one_and_at_most_eight():
    assert 1 <= conversion.default_workers() <= 8
