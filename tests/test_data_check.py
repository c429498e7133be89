"""`check` names what is wrong; `repair` makes a store usable again and throws nothing away unseen."""

import subprocess
import sys

import numpy as np
import pytest

from data_episodes import STREAMS, assert_holds, make_episode, make_store
from uwm_data import EpisodeStore, StoreError, Windows, check, main_check, repair
from uwm_data.journal import Episode, Span, digest_of

TICKS = (7, 12, 30, 20, 9)


@pytest.fixture
def damaged(tmp_path):
    """A store with five episodes in several shards, and the episodes."""
    return tmp_path / "s.zarr", make_store(tmp_path / "s.zarr", TICKS)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def kinds(report):
    return [finding.kind for finding in report.problems]


def test_a_whole_store_has_no_findings(damaged, capsys):
    path, _ = damaged
    assert check(path).findings == []
    assert main_check(path) == 0
    assert capsys.readouterr().out == f"{path}: 5 episodes, 0 problems\n"


def test_an_unfinished_tail_is_found_and_dropped(damaged, capsys):
    path, episodes = damaged
    last = max((path / "state").glob("c.*"))
    with last.open("ab") as file:
        file.write(b"half an episode")
    (path / "action" / "c.9.0").write_bytes(b"a shard of it")
    with (path / "episodes.jsonl").open("ab") as file:
        file.write(b'{"episode": 5, "meta"')
    assert kinds(check(path)) == ["unfinished"]
    assert main_check(path) == 1
    assert "try `uwm data check" in capsys.readouterr().out
    report = repair(path)
    assert report.findings == []
    assert "c.9.0" in report.done[0] and "episodes.jsonl" in report.done[0]
    assert not (path / "action" / "c.9.0").exists()
    assert_holds(EpisodeStore.open(path), episodes)


def test_a_damaged_frame_sets_aside_its_episode_and_no_other(damaged):
    path, episodes = damaged
    flip(path / "camera" / "c.0.0.0.0", 5)
    report = check(path)
    assert kinds(report) == ["unreadable chunk"]
    assert report.problems[0].episode == 0
    after = repair(path)
    assert after.problems == [] and "set aside" in after.done[0]
    store = EpisodeStore.open(path)
    assert len(store) == 5 and store.episodes == [1, 2, 3, 4] and list(store.damaged) == [0]
    with pytest.raises(StoreError, match="episode 0 was set aside"):
        store.read(0, "action")
    for index in store.episodes:
        np.testing.assert_array_equal(store.read(index, "camera"), episodes[index]["camera"])
    windows = Windows(store, {"camera": [0]})
    assert set(windows.batch(range(len(windows))).episode) == {1, 2, 3, 4}


def test_a_wrong_digest_is_a_checksum_mismatch_of_that_episode(damaged):
    path, _ = damaged
    lines = (path / "episodes.jsonl").read_bytes().splitlines()
    episode = Episode.from_line(lines[2])
    episode.spans["state"] = Span(episode.spans["state"].start, episode.spans["state"].stop, digest_of(b"other bytes"))
    lines[2] = episode.to_line()[:-1]
    (path / "episodes.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    report = check(path)
    assert [(f.kind, f.episode) for f in report.problems] == [("checksum mismatch", 2)]
    assert check(path, verify=False).findings == []


def test_a_missing_shard_costs_only_the_episodes_in_it_and_the_store_can_be_continued(damaged):
    path, _ = damaged
    max((path / "camera").glob("c.*")).unlink()
    report = check(path)
    assert set(kinds(report)) == {"missing shard"}
    lost = [finding.episode for finding in report.problems]
    assert 4 in lost and 0 not in lost
    assert repair(path).problems == []
    with EpisodeStore.open(path, write=True) as store:
        episode = make_episode(15, 77)
        assert store.append(episode) == 5
    store = EpisodeStore.open(path)
    assert store.episodes == [*(index for index in range(5) if index not in lost), 5]
    np.testing.assert_array_equal(store.read(5, "camera"), episode["camera"])
    np.testing.assert_array_equal(store.read(5, "state"), episode["state"])
    assert check(path).problems == []


def test_a_cut_shard_is_found_without_reading_it(damaged):
    path, _ = damaged
    shard = path / "state" / "c.0.0"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(StoreError, match=r"state.c\.0\.0 has \d+ of \d+ committed bytes"):
        EpisodeStore.open(path)
    assert "missing shard" in kinds(check(path, verify=False))


def test_a_damaged_last_chunk_does_not_block_the_next_episode(damaged):
    path, _ = damaged
    shard = max((path / "reward").glob("c.*"))
    table_bytes = 16 * EpisodeStore.open(path).shards["reward"].chunks_per_shard + 4
    flip(shard, shard.stat().st_size - table_bytes - 8)
    with EpisodeStore.open(path, write=True) as store:
        with pytest.raises(StoreError, match=r"'reward' of episode .* is damaged"):
            store.append(make_episode(6, 8))
    assert repair(path).problems == []
    with EpisodeStore.open(path, write=True) as store:
        index = store.append(make_episode(6, 8))
        np.testing.assert_array_equal(store.read(index, "reward"), make_episode(6, 8)["reward"])
    assert check(path).problems == []


@pytest.mark.parametrize("number", [0, 2, 3])  # 3 ends a shard that no later line speaks for
def test_a_damaged_journal_line_is_refused_and_then_set_aside(damaged, number):
    path, episodes = damaged
    lines = (path / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    bad = lines[number] = lines[number].replace(b"lift", b"left")
    (path / "episodes.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match=rf"line {number + 1} \(episode {number}\) is damaged: its digest.*--repair"):
        EpisodeStore.open(path)
    assert kinds(check(path)) == ["metadata"]
    shards = {file: file.read_bytes() for file in path.glob("*/c.*")}
    report = repair(path)
    assert {file: file.read_bytes() for file in path.glob("*/c.*")} == shards
    assert report.problems == [] and "moved 1 unreadable journal lines" in report.done[0]
    assert (path / "episodes.jsonl.damaged").read_bytes() == bad
    store = EpisodeStore.open(path)
    assert store.episodes == [index for index in range(5) if index != number]
    for index in store.episodes:
        for name in STREAMS:
            np.testing.assert_array_equal(store.read(index, name), episodes[index][name])


def test_a_damaged_last_journal_line_is_kept_beside_the_journal(damaged):
    path, episodes = damaged
    flip(path / "episodes.jsonl", -5)
    with pytest.raises(StoreError, match="line 5"):
        EpisodeStore.open(path, write=True)
    report = repair(path)
    assert "cut off" in report.done[0] and report.problems == []
    assert (path / "episodes.jsonl.damaged").exists()
    assert_holds(EpisodeStore.open(path), episodes[:4])


def test_stray_files_are_noted_and_left_alone(damaged, capsys):
    path, _ = damaged
    (path / "notes.txt").write_text("mine")
    (path / "camera" / "thumb.png").write_text("mine too")
    assert main_check(path, repair_it=True) == 0
    out = capsys.readouterr().out
    assert "note: stray file: notes.txt" in out and "camera/thumb.png" in out
    assert (path / "notes.txt").read_text() == "mine"


def test_a_repair_while_somebody_writes_is_refused(damaged, capsys):
    path, _ = damaged
    with EpisodeStore.open(path, write=True):
        assert main_check(path, repair_it=True) == 2
    assert "is being written by process" in capsys.readouterr().err


def test_a_foreign_folder_is_a_finding_and_not_a_crash(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main_check(tmp_path) == 1
    assert "not an episode store" in capsys.readouterr().out
    assert main_check(tmp_path, repair_it=True) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_checking_changes_nothing(damaged):
    path, _ = damaged
    flip(path / "camera" / "c.0.0.0.0", 5)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    check(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_the_name_datasets_is_never_ours(tmp_path):
    code = "import importlib.util, uwm_data; spec = importlib.util.find_spec('datasets'); print(spec and spec.origin)"
    folder = str(__import__("pathlib").Path(__file__).parent.parent)
    origin = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    assert not origin.startswith(folder + "/datasets"), origin
