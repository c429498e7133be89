"""Whatever happens while an episode is added, the episodes before it stay and the store can be continued."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from data_episodes import STREAMS, assert_holds, make_episode, make_store
from uwm_data import EpisodeStore, StoreError, check, durable, repair

TICKS = (7, 12)

# Appends an episode; the call number N of an operation is done by half (if it writes), then the process is killed.
APPEND_AND_DIE = """
import os, signal, sys
sys.path.insert(0, sys.argv[4])
from data_episodes import make_episode
from uwm_data import EpisodeStore
path, operation, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, real, calls = EpisodeStore.open(path, write=True), getattr(os, operation), 0

def fatal(*arguments):
    global calls
    calls += 1
    if calls == number:
        if operation == "pwrite":
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2], arguments[2])
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

setattr(os, operation, fatal)
store.append(make_episode(48, 2))
os._exit(0 if calls else 3)
"""


def append_and_die(path, operation, number):
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", APPEND_AND_DIE, str(path), operation, str(number), here]
    return subprocess.run(command, check=False).returncode


@pytest.mark.parametrize(
    ("operation", "number"), [("pwrite", 1), ("pwrite", 2), ("pwrite", 5), ("fsync", 1), ("fsync", 4), ("close", 2), ("pwrite", -1)]
)
def test_a_kill_at_any_write_costs_only_the_episode_being_added(tmp_path, operation, number):
    path = tmp_path / "s.zarr"
    episodes = make_store(path, TICKS)
    number = number if number > 0 else count_writes(tmp_path)  # the last write is the journal line: the commit itself
    assert append_and_die(path, operation, number) == -signal.SIGKILL
    assert_holds(EpisodeStore.open(path), episodes)
    report = check(path)
    assert {finding.kind for finding in report.problems} == {"unfinished"}, report
    with EpisodeStore.open(path, write=True) as store:
        episodes.append(make_episode(9, 7))
        store.append(episodes[-1])
    assert_holds(EpisodeStore.open(path), episodes)
    assert check(path).findings == []


def count_writes(tmp_path):
    make_store(tmp_path / "count.zarr", TICKS)
    calls, real = [], durable.os.pwrite
    with EpisodeStore.open(tmp_path / "count.zarr", write=True) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable.os, "pwrite", lambda *arguments: calls.append(1) or real(*arguments))
        store.append(make_episode(48, 2))
    assert len(calls) == 6  # one per stream, one more as the camera crosses into a second shard, and the journal line
    return len(calls)


def test_a_kill_after_the_commit_keeps_the_episode(tmp_path):
    path = tmp_path / "s.zarr"
    episodes = make_store(path, TICKS)
    assert append_and_die(path, "pwrite", 10_000) == 0  # ends without closing the store
    assert_holds(EpisodeStore.open(path), [*episodes, make_episode(48, 2)])
    assert [finding.kind for finding in check(path).problems] == ["summary"]
    assert repair(path).findings == []


APPEND_FOREVER = """
import sys
sys.path.insert(0, sys.argv[2])
from data_episodes import make_episode
from uwm_data import EpisodeStore
store = EpisodeStore.open(sys.argv[1], write=True)
while True:
    print(store.append(make_episode(len(store) % 40 + 1, len(store))), flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.003, 0.031, 0.057])
def test_a_kill_at_a_random_moment_keeps_every_episode_that_was_reported(tmp_path, delay_s):
    path = tmp_path / "s.zarr"
    make_store(path, ())
    with subprocess.Popen(
        [sys.executable, "-c", APPEND_FOREVER, path, os.path.dirname(__file__)], stdout=subprocess.PIPE, text=True
    ) as child:
        reported = [int(child.stdout.readline())]
        time.sleep(delay_s)
        child.kill()
        reported += [int(line) for line in child.stdout]
    store = EpisodeStore.open(path)
    assert len(store) - len(reported) in (0, 1)  # the last one may have been committed and not yet reported
    assert_holds(store, [make_episode(index % 40 + 1, index) for index in range(len(store))])


def fail_at(patch, number, error):
    """The write call `number` from now on writes half and then fails, as a disk that fills up does."""
    real, calls = os.pwrite, []

    def failing(descriptor, payload, offset):
        calls.append(1)
        if len(calls) == number:
            return real(descriptor, bytes(payload)[: len(payload) // 2], offset)
        if len(calls) > number:
            raise error
        return real(descriptor, payload, offset)

    patch.setattr(durable.os, "pwrite", failing)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_full_disk_is_explained_and_the_store_goes_on_afterwards(tmp_path, number):
    path = tmp_path / "s.zarr"
    episodes = make_store(path, TICKS)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "writer.lock"}
    with EpisodeStore.open(path, write=True) as store:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, number, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(StoreError, match=r"s\.zarr: the disk is full.*MB needed, .*MB free.*2 episodes before it stay"):
                store.append(make_episode(48, 2))
        after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "writer.lock"}
        assert after == before
        episodes.append(make_episode(48, 2))
        store.append(episodes[-1])
    assert_holds(EpisodeStore.open(path), episodes)
    assert check(path).findings == []


def test_a_disk_that_stays_full_does_not_hide_the_first_error(tmp_path):
    path = tmp_path / "s.zarr"
    episodes = make_store(path, TICKS)
    with pytest.raises(StoreError, match="while adding episode 2"), pytest.MonkeyPatch.context() as patch:
        with EpisodeStore.open(path, write=True) as store:
            fail_at(patch, 2, OSError(errno.ENOSPC, "No space left on device"))
            store.append(make_episode(48, 2))
    assert_holds(EpisodeStore.open(path), episodes)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", tmp_path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine forbids mounting")
    try:
        store, episodes = EpisodeStore.create(tmp_path / "s.zarr", STREAMS), []
        with pytest.raises(StoreError, match="the disk is full"):
            for seed in range(1000):
                store.append(make_episode(200, seed))
                episodes.append(make_episode(200, seed))
        assert len(episodes) > 3
        assert_holds(EpisodeStore.open(tmp_path / "s.zarr"), episodes)
        store.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("number", [1, 3, 6])
def test_ctrl_c_leaves_a_whole_store_that_can_be_continued(tmp_path, number):
    path = tmp_path / "s.zarr"
    episodes = make_store(path, TICKS)
    with EpisodeStore.open(path, write=True) as store:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, number, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                store.append(make_episode(48, 2))
        episodes.append(make_episode(5, 3))
        assert store.append(episodes[-1]) == 2
    assert_holds(EpisodeStore.open(path), episodes)
    assert check(path).findings == []


def test_a_failed_creation_leaves_nothing_behind(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uwm_data.durable.os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(StoreError, match=r"cannot create a store at .*No space left"):
            EpisodeStore.create(tmp_path / "s.zarr", STREAMS)
    assert list(tmp_path.iterdir()) == []
    EpisodeStore.create(tmp_path / "s.zarr", STREAMS).close()
