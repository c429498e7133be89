"""Audit log, recording and bags: what they hold is what happened, and neither kills nor full disks cost more than they must."""

import base64
import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from mcap.reader import make_reader
from PIL import Image

from robot_ticks import SPEC, make_tick
from uwm.robot import audit, bag
from uwm.robot.audit import Audit, AuditError, files_of
from uwm.robot.interface import Reading, RobotSpec, SensorSpec
from uwm.robot.recording import Recorder, RecordingError, recover, recover_all, streams_for
from uwm.robot.safety import Verdict
from uwm_data import EpisodeStore, StoreError, StreamSpec, check


def full_disk(monkeypatch, after):
    """From write number `after` on, every write takes a part and then fails; returns a switch that gives room again."""
    real, state = os.write, {"left": after}

    def write(handle, data):
        state["left"] -= 1
        if state["left"] > 0:
            return real(handle, data)
        if state["left"] == 0:
            return real(handle, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    return lambda: state.update(left=10**9)


# ---- the audit log ---------------------------------------------------------------------------------------------


def test_the_log_tells_what_was_proposed_what_was_sent_and_why_it_differs(tmp_path):
    log = Audit(tmp_path)
    log.tick(make_tick(1))
    log.tick(make_tick(2, proposed=np.array([np.nan, np.inf]), sent=None, verdict=Verdict(None, "stop", "enough")))
    log.tick(make_tick(3, proposed="nonsense"))
    log.tick(make_tick(4, proposed=np.zeros((40, 40))))
    log.close()
    log.close()
    opened, first, second, third, fourth, closed = audit.read(tmp_path)
    assert (opened["kind"], closed["kind"]) == ("opened", "closed") and [r["n"] for r in audit.read(tmp_path)] == list(range(6))
    assert np.float32(first["proposed"]).tobytes() == make_tick(1).proposed.tobytes()
    assert np.float32(first["sent"]).tobytes() == make_tick(1).sent.tobytes()
    assert (first["behaviour"], first["reason"], first["changed"]) == ("send", "limited by velocity", ["velocity"])
    assert first["stamps"] == {"front": 100.0, "proprio": 100.05 - 0.003} and first["began_s"] == 100.051
    assert (second["proposed"], second["sent"], second["behaviour"]) == (["nan", "inf"], None, "stop")
    assert third["proposed"] == "nonsense" and fourth["proposed"] == "array of float64 (40, 40)"


LOG_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from robot_ticks import make_tick
from uwm.robot.audit import Audit
log, index = Audit(sys.argv[1], max_bytes=20_000), 0
while True:
    log.tick(make_tick(index))
    index += 1
    print(index, flush=True)
"""


def killed_after(count, program, *arguments):
    """Run a program that prints numbers, kill it -9 once it printed `count`; the last number it printed."""
    command = [sys.executable, "-c", program, *map(str, arguments), os.path.dirname(__file__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= count:
                break
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        assert process.wait() == -signal.SIGKILL
    return int(rest[-2] if len(rest) > 1 else line)  # the very last one may be cut


def test_a_process_that_is_killed_leaves_every_tick_that_it_logged_and_the_next_one_continues(tmp_path):
    logged = killed_after(300, LOG_FOREVER, tmp_path)
    ticks = [record["index"] for record in audit.read(tmp_path) if record["kind"] == "tick"]
    assert len(ticks) >= logged and ticks == list(range(len(ticks)))
    assert len(files_of(tmp_path)) > 3
    log = Audit(tmp_path, keep=0)
    log.tick(make_tick(7))
    log.close()
    assert [record["index"] for record in audit.read(tmp_path) if record["kind"] == "tick"] == [*ticks, 7]


@pytest.mark.parametrize("cut", [1, 5, 12, 60])
def test_a_torn_last_line_is_left_out(tmp_path, cut):
    log = Audit(tmp_path)
    for index in range(3):
        log.tick(make_tick(index))
    path = files_of(tmp_path)[0]
    os.truncate(path, path.stat().st_size - cut)
    assert [record["n"] for record in audit.read(tmp_path)] == [0, 1, 2]
    log.close()


@pytest.mark.parametrize("line", [1, 2, 4])
def test_a_line_that_was_changed_afterwards_is_refused_by_file_and_number(tmp_path, line):
    log = Audit(tmp_path)
    for index in range(2):
        log.tick(make_tick(index))
    log.close()
    path = files_of(tmp_path)[0]
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = lines[line - 1].replace(b'"kind"', b'"kine"')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(AuditError, match=f"audit-000001.log, line {line} of 4"):
        list(audit.read(tmp_path))


def test_files_are_of_the_size_that_was_asked_for_and_only_the_newest_are_kept(tmp_path):
    log = Audit(tmp_path, max_bytes=2000, keep=3)
    for index in range(60):
        log.tick(make_tick(index))
    log.close()
    files = files_of(tmp_path)
    assert len(files) == 3 and all(path.stat().st_size <= 2000 for path in files)
    assert [r["index"] for r in audit.read(tmp_path) if r["kind"] == "tick"][-1] == 59


def test_a_full_disk_never_stops_a_tick_and_is_told_once_there_is_room(tmp_path, monkeypatch):
    log = Audit(tmp_path)
    room = full_disk(monkeypatch, 3)
    for index in range(10):
        log.tick(make_tick(index))
    assert log.lost == 8 and "No space left" in log.trouble
    room()
    log.tick(make_tick(10))
    log.close()
    records = list(audit.read(tmp_path))
    assert [record["index"] for record in records if record["kind"] == "tick"] == [0, 1, 10]
    assert records[3]["lost"] == 8 and records[3]["n"] - records[2]["n"] == 9 and "lost" not in records[4]


# ---- recording -------------------------------------------------------------------------------------------------


def make_store(path):
    return EpisodeStore.create(path, {name: StreamSpec(**told) for name, told in streams_for(SPEC).items()}, {"robot": "toy arm"})


def test_a_run_becomes_an_episode_with_what_was_seen_proposed_and_executed_in_every_tick(tmp_path):
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool", {"task": "reach"})
        for index in range(8):
            recorder.tick(make_tick(index))
        assert recorder.end(success=True, readings=make_tick(8).readings, seed=3) == 0
        meta = store.meta(0)
        assert (meta["task"], meta["success"], meta["seed"]) == ("reach", True, 3)
        for index in range(9):
            for name, reading in make_tick(index).readings.items():
                assert (store.read(0, name, [index])[0] == reading.value).all()
            assert store.read(0, "stamps", [index])[0].tolist() == [r.stamp_s for r in make_tick(index).readings.values()]
        for index in range(8):
            expected = make_tick(index)
            assert (store.read(0, "action", [index])[0] == expected.sent).all()
            assert (store.read(0, "action_intended", [index])[0] == expected.proposed).all()
            told = [store.read(0, name, [index])[0] for name in ("moment_s", "latency_s", "calls", "behaviour")]
            assert told == [expected.began_s, expected.latency_s, expected.calls, 0]
        assert store.length(0, "action") == 8
    assert not list((tmp_path / "spool").iterdir()) and not recorder.trouble
    assert check(tmp_path / "s.zarr").findings == []


def test_without_readings_after_the_last_action_the_last_tick_closes_the_episode(tmp_path):
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        for episode in range(2):
            for index in range(5):
                recorder.tick(make_tick(index + episode))
            assert recorder.end() == episode
        recorder.tick(make_tick(0))
        recorder.close()
        recorder.close()
        assert [store.length(index, "action") for index in range(2)] == [4, 4] and len(store) == 2  # one tick is no episode


def test_bad_readings_and_proposals_are_recorded_as_the_last_good_ones_with_their_own_stamps(tmp_path):
    bad = {"front": Reading(np.zeros((5, 6, 3), np.uint8), 101.0), "proprio": Reading(np.full(3, np.nan, np.float32), 101.0)}
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        recorder.tick(make_tick(0, readings={"front": make_tick(0).readings["front"]}, sent=None))  # nothing of proprio yet: not begun
        recorder.tick(make_tick(1, sent=None))  # and nothing executed
        recorder.tick(make_tick(2))
        recorder.tick(make_tick(3, readings=bad, proposed=np.full(2, np.inf)))
        recorder.tick(make_tick(4, readings={}, proposed=None, sent=None, verdict=Verdict(None, "hold")))
        recorder.tick(make_tick(5, proposed=np.zeros(7)))
        assert recorder.end(readings={}) == 0
        good = [reading.stamp_s for reading in make_tick(2).readings.values()]
        last = [reading.stamp_s for reading in make_tick(5).readings.values()]
        assert store.read(0, "stamps").tolist() == [good] * 3 + [last] * 2
        assert (store.read(0, "front")[1] == make_tick(2).readings["front"].value).all()
        executed = [make_tick(2).sent, make_tick(3).sent, np.array([0, -1], np.float32), make_tick(5).sent]
        assert (store.read(0, "action") == executed).all()
        assert (store.read(0, "action_intended")[1:] == executed[1:]).all()
        assert store.read(0, "behaviour").tolist() == [0, 0, 1, 0]


def test_a_robot_that_uses_its_picture_buffer_again_does_not_change_what_was_recorded(tmp_path):
    picture = np.zeros((6, 5, 3), np.uint8)
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        for index in range(6):
            picture[:] = index
            readings = make_tick(index).readings | {"front": Reading(picture, float(index))}
            recorder.tick(make_tick(index, readings=readings))
        recorder.end()
        assert store.read(0, "front")[:, 0, 0, 0].tolist() == list(range(6))


RECORD_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from robot_ticks import SPEC, make_tick
from uwm.robot.recording import Recorder
recorder, index = Recorder(SPEC, None, sys.argv[1], {"task": "reach"}), 0
while True:
    recorder.tick(make_tick(index))
    index += 1
    if index >= 20:
        while recorder._waiting.qsize() > 10:
            pass
    if recorder.trouble:
        raise SystemExit(recorder.trouble)
    print(index, flush=True)
"""


def test_a_process_that_is_killed_loses_at_most_the_last_second_and_the_next_start_appends_the_rest(tmp_path):
    recorded = killed_after(100, RECORD_FOREVER, tmp_path / "spool")
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        assert recorder.recovered == [0] and recorder.troubles == []
        meta, ticks = store.meta(0), store.length(0, "action")
        assert meta["recovered"] and meta["task"] == "reach" and "success" not in meta
        assert ticks >= recorded - SPEC.rate_hz - 1
        assert (store.read(0, "action") == [make_tick(index).sent for index in range(ticks)]).all()
        assert (store.read(0, "front", [ticks])[0] == make_tick(ticks).readings["front"].value).all()
    assert not list((tmp_path / "spool").iterdir()) and check(tmp_path / "s.zarr").findings == []


def spooled(tmp_path, count=6):
    """The spool of an episode whose store failed."""

    class Broken:
        def append(self, data, meta):
            raise StoreError("the disk is full")

    recorder = Recorder(SPEC, Broken(), tmp_path / "spool")
    for index in range(count):
        recorder.tick(make_tick(index))
    assert recorder.end() is None and "the disk is full" in recorder.trouble
    return next((tmp_path / "spool").iterdir())


def test_an_episode_that_the_store_refuses_stays_in_its_spool_until_a_store_takes_it_and_only_once(tmp_path):
    path = spooled(tmp_path)
    kept = path.read_bytes()
    with make_store(tmp_path / "s.zarr") as store:
        assert recover_all(tmp_path / "spool", store) == ([0], [])
        path.write_bytes(kept)  # as if killed after the store had it and before the file was removed
        assert recover_all(tmp_path / "spool", store) == ([], []) and len(store) == 1
    assert not path.exists()


@pytest.mark.parametrize("where", ["torn", "damaged", "not a spool", "empty"])
def test_a_spool_gives_what_is_whole_and_says_what_is_not(tmp_path, where):
    path = spooled(tmp_path)
    content = bytearray(path.read_bytes())
    size = len(content)
    if where == "torn":
        path.write_bytes(content[:-40])
        assert recover(path).ticks == 4
    elif where == "damaged":
        content[-200] ^= 1
        path.write_bytes(content)
        assert recover(path).ticks < 5 and recover(path).damaged >= 1
    else:
        path.write_bytes(b"" if where == "empty" else bytes(size))
        with pytest.raises(RecordingError, match="not the spool of an episode"):
            recover(path)
        with make_store(tmp_path / "s.zarr") as store:
            added, troubles = recover_all(tmp_path / "spool", store)
        assert added == [] and str(path) in troubles[0] and path.exists()


def test_the_spool_of_a_recorder_that_lives_is_left_alone(tmp_path):
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        for index in range(4):
            recorder.tick(make_tick(index))
        while not list((tmp_path / "spool").iterdir()):
            pass
        assert recover_all(tmp_path / "spool", store) == ([], [])
        assert recorder.end() == 0


def test_a_disk_that_fills_up_ends_the_recording_of_the_episode_with_a_reason_and_not_the_run(tmp_path, monkeypatch):
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool", waits=True)
        room = full_disk(monkeypatch, 6)
        for index in range(50):
            recorder.tick(make_tick(index))
        assert recorder.end() is None and "No space left" in recorder.trouble and len(store) == 0
        room()
        for index in range(5):
            recorder.tick(make_tick(index))
        assert recorder.end() == 0
        added, troubles = recover_all(tmp_path / "spool", store)
        assert added == [1] and not troubles
        assert store.length(1, "action") == 3  # head and four whole frames had been written
    assert check(tmp_path / "s.zarr").findings == []


def test_a_disk_that_hangs_holds_no_tick_up(tmp_path, monkeypatch):
    free = threading.Event()
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        real = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: free.wait() and real(handle, data))
        for index in range(60):
            recorder.tick(make_tick(index))
        assert "a second of frames waits for the disk" in recorder.trouble
        free.set()
        assert recorder.end() is None and len(store) == 0


def test_sensors_whose_names_cannot_be_streams_are_refused():
    sensors = {"observation/image": SensorSpec((3,), "float32", 20.0)}
    with pytest.raises(RecordingError, match="observation/image"):
        streams_for(RobotSpec("arm", 20.0, SPEC.action, sensors))


# ---- bags ------------------------------------------------------------------------------------------------------


def messages(path):
    with path.open("rb") as file:
        return [(s.name, c.topic, m.log_time, json.loads(m.data)) for s, c, m in make_reader(file, validate_crcs=True).iter_messages()]


def picture_of(message):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(message["data"]))))


def assert_bag_tells(found, count, reason):
    pictures = [(time_ns, told) for schema, topic, time_ns, told in found if topic == "/camera/front"]
    assert len(pictures) == (count + 1) // 2  # what was not new is written once
    for frame, (time_ns, told) in enumerate(pictures):
        expected = make_tick(2 * frame).readings["front"]
        assert time_ns == round(expected.stamp_s * 1e9) and told["stamp_s"] == expected.stamp_s and told["format"] == "png"
        assert told["timestamp"]["sec"] * 10**9 + told["timestamp"]["nsec"] == time_ns
        assert (picture_of(told) == expected.value).all()
    numbers = [(told["stamp_s"], told["values"]) for _, topic, _, told in found if topic == "/sensor/proprio"]
    assert numbers == [(make_tick(i).readings["proprio"].stamp_s, make_tick(i).readings["proprio"].value.tolist()) for i in range(count)]
    for index, told in enumerate(told for schema, _, _, told in found if schema == "uwm.Tick"):
        expected = make_tick(index)
        assert (told["index"], told["stamp_s"], told["behaviour"], told["reason"]) == (index, expected.began_s, "send", reason)
        assert (told["latency_s"], told["calls"]) == (expected.latency_s, expected.calls)
        assert told["proposed"] == expected.proposed.tolist() and told["sent"] == expected.sent.tolist()


def test_a_bag_read_by_mcaps_own_reader_gives_the_same_stamps_numbers_and_pictures(tmp_path):
    bag.export(map(make_tick, range(7)), SPEC, tmp_path / "run.mcap")
    assert_bag_tells(messages(tmp_path / "run.mcap"), 7, "limited by velocity")
    with (tmp_path / "run.mcap").open("rb") as file:
        reader = make_reader(file)
        schemas = {schema.name: json.loads(schema.data) for schema in reader.get_summary().schemas.values()}
        about = {record.name: record.metadata for record in reader.iter_metadata()}
    assert {schema["type"] for schema in schemas.values()} == {"object"} and about["run"]["robot"] == "toy arm"
    assert {"timestamp", "frame_id", "data", "format"} <= set(schemas["foxglove.CompressedImage"]["properties"])


def test_a_recorded_episode_becomes_the_same_bag(tmp_path):
    with make_store(tmp_path / "s.zarr") as store:
        recorder = Recorder(SPEC, store, tmp_path / "spool")
        for index in range(7):
            recorder.tick(make_tick(index))
        recorder.end(readings=make_tick(7).readings)
        arrays = {name: store.read(0, name) for name in store.streams}
    bag.export(bag.recorded(arrays, SPEC), SPEC, tmp_path / "run.mcap")
    assert_bag_tells(messages(tmp_path / "run.mcap"), 7, "")


def test_a_bag_takes_bad_readings_and_proposals_as_they_are(tmp_path):
    bad = {"front": Reading(np.zeros((2, 2)), 1.0), "proprio": Reading(np.array([np.nan, 1, 2], np.float32), 1.0)}
    bag.export([make_tick(0, readings=bad, proposed=np.array([np.nan, np.inf]), sent=None)], SPEC, tmp_path / "run.mcap", epoch_s=1e9)
    found = {topic: (time_ns, told) for _, topic, time_ns, told in messages(tmp_path / "run.mcap")}
    assert found["/sensor/proprio"][1]["values"] == ["nan", 1.0, 2.0] and found["/sensor/proprio"][0] == 1_000_000_001 * 10**9
    assert found["/tick"][1]["proposed"] == ["nan", "inf"] and found["/tick"][1]["sent"] is None


def test_a_bag_on_a_full_disk_ends_with_a_reason_and_leaves_no_file_that_looks_whole(tmp_path, monkeypatch):
    writing = bag.Bag(SPEC, tmp_path / "run.mcap")
    monkeypatch.setattr(writing._writer, "add_message", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    for index in range(5):
        writing.tick(make_tick(index))
    writing.close()
    assert "No space left" in writing.trouble and not (tmp_path / "run.mcap").exists()
