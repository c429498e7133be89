"""The same store at any URL: an S3 server on this machine, fsspec's memory, a web server; a cache that keeps its limit."""

import contextlib
import functools
import http.server
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
from itertools import islice

import fsspec
import numpy as np
import pytest
import zarr

from data_episodes import STREAMS, assert_holds, make_episode, make_store
from uwm_data import EpisodeStore, Loader, StoreError, Windows, check, copy_store, copying, remote, repair, shuffled
from uwm_data.block_cache import BlockCache

OFFSETS = {"camera": [-1, 0, 3], "state": [0], "action": range(-2, 5)}


@pytest.fixture(scope="module")
def server():
    """Storage options of an S3 server on this machine, with an empty bucket `episodes`."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    options = {"key": "nobody", "secret": "nothing", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    fsspec.filesystem("s3", **options).mkdir("episodes")
    yield options
    running.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A local store and its episodes."""
    path = tmp_path_factory.mktemp("local") / "s.zarr"
    return path, make_store(path)


@pytest.fixture(scope="module")
def uploaded(server, local):
    """(URL, options of `open`) of a copy of the local store on the server."""
    copy_store(local[0], "s3://episodes/uploaded/s.zarr", target_options=server)
    return "s3://episodes/uploaded/s.zarr", {"storage_options": server}


@pytest.fixture
def cache(tmp_path):
    return {"cache_dir": tmp_path / "cache"}


def requests_of(store, monkeypatch):
    """The ranges (file, start, stop) that are asked for from now on."""
    asked, filesystem = [], store.path.remote.connect()[0]
    original = filesystem.cat_ranges

    def counted(paths, starts, stops, **options):
        asked.extend(zip(paths, starts, stops, strict=True))
        return original(paths, starts, stops, **options)

    monkeypatch.setattr(filesystem, "cat_ranges", counted)
    return asked


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_store_on_s3_reads_as_it_does_locally(uploaded, local, cache):
    url, options = uploaded
    store, here = EpisodeStore.open(url, **options, **cache), EpisodeStore.open(local[0])
    assert_holds(store, local[1])
    assert store.card == here.card and store.checksum == here.checksum and str(store.path) == url
    assert [store.meta(index) for index in store.episodes] == [here.meta(index) for index in here.episodes]
    for cache_bytes in (0, 1 << 20):
        theirs, ours = Windows(store, OFFSETS, cache_bytes=cache_bytes), Windows(here, OFFSETS, cache_bytes=0)
        numbers = next(shuffled(len(ours), 33, 0))
        for name, values in ours.batch(numbers).values.items():
            np.testing.assert_array_equal(theirs.batch(numbers).values[name], values)


def test_plain_zarr_reads_the_same_url(uploaded, local):
    url, options = uploaded
    group = zarr.open_group(url, mode="r", storage_options=options["storage_options"])
    np.testing.assert_array_equal(group["camera"][:], np.concatenate([episode["camera"] for episode in local[1]]))
    np.testing.assert_array_equal(group["state"][:], np.concatenate([episode["state"] for episode in local[1]]))


def test_what_was_read_once_comes_from_the_cache_in_another_opening_too(uploaded, cache, monkeypatch):
    url, options = uploaded
    first = EpisodeStore.open(url, **options, **cache)
    expected = first.read(3, "camera")
    second = EpisodeStore.open(url, **options, **cache)
    asked = requests_of(second, monkeypatch)
    np.testing.assert_array_equal(second.read(3, "camera"), expected)
    assert asked == []
    second.read(3, "reward")
    assert {name.split("/")[-2] for name, _, _ in asked} == {"reward"}


def test_the_ranges_of_a_batch_are_asked_for_together(uploaded, monkeypatch):
    url, options = uploaded
    store = EpisodeStore.open(url, **options, cache_bytes=0)
    windows, calls = Windows(store, {"camera": [0]}, cache_bytes=0), []
    windows.batch([0])
    asked = requests_of(store, monkeypatch)
    counted = store.path.remote.connect()[0].cat_ranges
    monkeypatch.setattr(store.path.remote.connect()[0], "cat_ranges", lambda *some, **more: calls.append(1) or counted(*some, **more))
    windows.batch(range(len(windows)))
    assert len(asked) > 20 and len(calls) == 1  # the table of the shard is known


def _read_in_child(url, options, results):
    with EpisodeStore.open(url, **options) as store:
        results.put(store.read(1, "state").tobytes())


def _read_inherited(store, results):
    results.put(store.read(1, "state").tobytes())


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_other_processes_read_at_the_same_time(uploaded, local, cache, way):
    url, options = uploaded
    store = EpisodeStore.open(url, **options, **cache)
    store.read(0, "state")  # a connection, a thread and an event loop are there when the process forks
    context = multiprocessing.get_context(way)
    results = context.Queue()
    workers = [context.Process(target=_read_inherited, args=(store, results)) for _ in range(2)]
    workers += [context.Process(target=_read_in_child, args=(url, {**options, **cache}, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert found == [local[1][1]["state"].tobytes()] * 4
    assert store.read(1, "state").tobytes() == found[0]


def test_a_loaders_workers_read_a_remote_store(uploaded, local, cache):
    url, options = uploaded
    here = Windows(EpisodeStore.open(local[0]), OFFSETS)
    orders = list(islice(shuffled(len(here), 16, 0), 6))
    with Loader(Windows(EpisodeStore.open(url, **options, **cache), OFFSETS), orders, workers=2) as batches:
        for numbers, batch in zip(orders, batches, strict=True):
            for name, values in here.batch(numbers).values.items():
                np.testing.assert_array_equal(batch.values[name], values)


def test_a_remote_store_pickles_small_and_without_its_connection(uploaded, local, cache):
    url, options = uploaded
    store = EpisodeStore.open(url, **options, **cache)
    store.read(0, "camera")
    sent = pickle.dumps(store)
    assert len(sent) < 20_000
    assert_holds(pickle.loads(sent), local[1])


def test_a_web_server_that_serves_ranges_is_enough(local, cache):
    with web_server(local[0].parent, Ranges) as url:
        store = EpisodeStore.open(f"{url}/s.zarr", **cache)
        assert_holds(store, local[1])
        assert check(f"{url}/s.zarr").problems == []


def test_a_web_server_that_ignores_ranges_is_refused_and_not_believed(local, cache):
    with web_server(local[0].parent, http.server.SimpleHTTPRequestHandler) as url:
        store = EpisodeStore.open(f"{url}/s.zarr", cache_bytes=0)
        with pytest.raises(StoreError, match="does not serve ranges"):
            store.read(3, "camera", [5])


def test_a_file_url_is_a_path(local):
    store = EpisodeStore.open(f"file://{local[0]}")
    assert store.path == local[0]
    assert_holds(store, local[1])


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_store_that_grows_or_is_replaced_is_never_served_from_old_blocks(tmp_path, cache):
    url = "memory://grows/s.zarr"
    episodes = make_store(tmp_path / "s.zarr", (6, 5))
    copy_store(tmp_path / "s.zarr", url)
    reader = EpisodeStore.open(url, **cache)
    assert_holds(reader, episodes)
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as store:
        episodes.append(make_episode(9, 5))
        store.append(episodes[-1])
    copy_store(tmp_path / "s.zarr", url)
    assert_holds(reader, episodes[:2])  # the view that it opened with
    assert reader.refresh() == 3
    assert_holds(reader, episodes)
    fsspec.filesystem("memory").rm("/grows", recursive=True)
    others = make_store(tmp_path / "other.zarr", (6, 5, 9), compression="none")
    copy_store(tmp_path / "other.zarr", url)
    assert_holds(EpisodeStore.open(url, **cache), others)
    changed = [{name: values[::-1].copy() for name, values in episode.items()} for episode in others]
    with EpisodeStore.create(tmp_path / "third.zarr", STREAMS, shard_bytes=2000, compression="none") as store:
        for episode in changed:
            store.append(episode)  # the same sizes everywhere, other frames
    fsspec.filesystem("memory").rm("/grows", recursive=True)
    copy_store(tmp_path / "third.zarr", url)
    assert_holds(EpisodeStore.open(url, **cache), changed)


def test_without_any_sign_of_change_from_the_server_the_journal_tells_it(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(remote, "_BY_CONTENT", ())
    monkeypatch.setattr(remote, "_BY_TIME", ())
    for seed, name in enumerate(("one", "two")):
        with EpisodeStore.create(tmp_path / name, {"camera": STREAMS["camera"]}, compression="none") as store:
            store.append({"camera": np.full((3, 4, 5, 3), seed, np.uint8)})
        if fsspec.filesystem("memory").exists("/silent"):
            fsspec.filesystem("memory").rm("/silent", recursive=True)
        copy_store(tmp_path / name, "memory://silent/s.zarr")
        assert EpisodeStore.open("memory://silent/s.zarr", **cache).read(0, "camera").max() == seed


def test_a_damaged_block_in_the_cache_is_fetched_again(uploaded, local, cache):
    url, options = uploaded
    store = EpisodeStore.open(url, **options, **cache)
    store.read(3, "camera")
    for file in cache["cache_dir"].glob("??/*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    assert_holds(EpisodeStore.open(url, **options, **cache), local[1])  # found by the check sum of the block
    for file in cache["cache_dir"].glob("??/*"):
        file.write_bytes(b"\0" * file.stat().st_size)
    assert_holds(store, local[1])  # known as whole before, so found by the check sum of the chunk


def test_trouble_of_a_moment_is_waited_for_and_lasting_trouble_is_told(uploaded, local, monkeypatch):
    url, options = uploaded
    store = EpisodeStore.open(url, **options, cache_bytes=0)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.001)
    filesystem = store.path.remote.connect()[0]
    original, failures = filesystem.cat_ranges, [2]

    def flaky(paths, *some, **more):
        found = original(paths, *some, **more)
        if failures[0]:
            failures[0] -= 1
            found[0] = TimeoutError("the network is away")
            found[-1] = found[-1][:-1] if isinstance(found[-1], bytes) else found[-1]
        return found

    monkeypatch.setattr(filesystem, "cat_ranges", flaky)
    np.testing.assert_array_equal(store.read(3, "camera"), local[1][3]["camera"])
    failures[0] = 100
    with pytest.raises(StoreError, match=r"could not read .*tried 4 times: .*check the address, the network and the credentials"):
        store.read(2, "camera")


def test_damage_at_the_source_is_named(tmp_path, local, cache):
    copy_store(local[0], "memory://damaged/s.zarr")
    files = fsspec.filesystem("memory")
    name = "/damaged/s.zarr/camera/c.0.0.0.0"
    data = files.cat_file(name)
    files.pipe_file(name, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    store = EpisodeStore.open("memory://damaged/s.zarr", **cache)
    with pytest.raises(StoreError, match=r"memory://damaged/s.zarr: stream 'camera' of episode 0 is damaged.*check sum"):
        store.read(0, "camera")
    assert [finding.episode for finding in check("memory://damaged/s.zarr").problems] == [0]
    files.pipe_file(name, data[:-1])
    with pytest.raises(StoreError, match=r"camera/c\.0\.0\.0\.0 has \d+ of \d+ committed bytes"):
        EpisodeStore.open("memory://damaged/s.zarr", **cache)
    files.rm_file(name)
    with pytest.raises(StoreError, match="is missing"):
        EpisodeStore.open("memory://damaged/s.zarr", **cache)
    with pytest.raises(StoreError, match="repair the local store"):
        repair("memory://damaged/s.zarr")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://nothing/here.zarr", "is not an episode store"),
        ("nonsense://x/y", "not a URL that can be read"),
    ],
)
def test_urls_without_a_store_are_explained(url, words):
    with pytest.raises(StoreError, match=words):
        EpisodeStore.open(url, cache_bytes=0)


def test_a_missing_bucket_and_wrong_credentials_are_explained(server, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_S", 0.001)
    with pytest.raises(StoreError, match="is not an episode store"):
        EpisodeStore.open("s3://no-such-bucket/s.zarr", storage_options=server, cache_bytes=0)
    away = {**server, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}, "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(StoreError, match="tried 4 times"):
        EpisodeStore.open("s3://episodes/s.zarr", storage_options=away, cache_bytes=0)


def test_writing_stays_local(uploaded):
    url, options = uploaded
    with pytest.raises(StoreError, match=r"added on a local disk.*copy_store"):
        EpisodeStore.open(url, write=True, **options)
    with pytest.raises(StoreError, match=r"added on a local disk.*copy_store"):
        EpisodeStore.create("memory://new/s.zarr", STREAMS)
    with pytest.raises(StoreError, match="open for reading"):
        EpisodeStore.open(url, cache_bytes=0, **options).append(make_episode(3, 0))


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "s3fs":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from uwm_data import EpisodeStore
EpisodeStore.open("s3://episodes/s.zarr", cache_bytes=0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "ImportError" in done.stderr and "pip install 'uwm[s3]'" in done.stderr


# ---- the cache -------------------------------------------------------------------------------------------------------


def bytes_in(folder):
    total = 0
    for file in folder.glob("??/*"):
        with contextlib.suppress(FileNotFoundError):  # the process that fills the cache makes room meanwhile
            total += file.stat().st_size
    return total


def test_the_cache_keeps_its_limit_and_what_was_used_last(tmp_path):
    cache, block = BlockCache(tmp_path, 10_000), bytes(996)
    for number in range(30):
        cache.put({f"{number:04x}": block})
        assert cache.get("0000", 0, 10) == bytes(10)  # used all the time, so it stays
        assert bytes_in(tmp_path) <= 10_000
    assert cache.get("0001", 0, 10) is None and cache.get("001d", 990, 996) == bytes(6)
    cache.put({"ffff": bytes(9000)})
    assert cache.get("ffff", 0, 1) is None  # larger than half of it all: not worth clearing everything


def test_a_store_larger_than_the_cache_is_read_right(uploaded, local, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 512)
    url, options = uploaded
    store = EpisodeStore.open(url, **options, cache_dir=tmp_path, cache_bytes=4000)
    for _ in range(2):
        assert_holds(store, local[1])
        assert 0 < bytes_in(tmp_path) <= 4000


def _fill(folder, start, limit):
    cache = BlockCache(folder, limit)
    for number in range(start, start + 200):
        cache.put({f"{number % 256:02x}{number}": bytes([number % 256]) * 500})
        data = cache.get(f"{number % 256:02x}{number}", 0, 500)
        assert data in (None, bytes([number % 256]) * 500)


def test_several_processes_share_a_cache_and_its_limit(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, start, 20_000)) for start in (0, 100, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert 10_000 < bytes_in(tmp_path) <= 20_000


def test_a_process_that_is_killed_leaves_a_cache_that_works(tmp_path):
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_fill_for_ever, args=(tmp_path,))
    worker.start()
    while bytes_in(tmp_path) < 5000:
        assert worker.is_alive()
    worker.kill()
    worker.join()
    old = tmp_path / "ab" / "ab1.1.1.partial"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(bytes(100))
    os.utime(old, (1, 1))
    _fill(tmp_path, 5000, 20_000)
    assert bytes_in(tmp_path) <= 20_000 and not old.exists()


def _fill_for_ever(folder):
    for number in range(0, 10**9, 200):
        _fill(folder, number, 20_000)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="name another cache_dir"):
        BlockCache(tmp_path / "file" / "cache", 1000)


# ---- copies ----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("to", ["folder", "memory"])
def test_a_copy_that_stops_anywhere_is_no_store_and_goes_on(tmp_path, local, monkeypatch, to):
    place = copying._Folder if to == "folder" else copying._Url
    original, left = place.write, [0]
    monkeypatch.setattr(copying, "_GROUP_BYTES", 1)

    def mortal(self, files):
        if not left[0]:
            raise Killed
        left[0] -= 1
        original(self, files)

    monkeypatch.setattr(place, "write", mortal)
    committed = sum(sum(sizes.values()) for sizes in EpisodeStore.open(local[0]).journal.sizes.values())
    sent, writes = 0, 0
    while sent != committed:
        target = tmp_path / f"{writes}.zarr" if to == "folder" else f"memory://stops/{writes}/s.zarr"
        left[0] = writes
        try:
            sent = copy_store(local[0], target)
        except Killed:
            with pytest.raises(StoreError):
                EpisodeStore.open(target, cache_bytes=0)
            left[0] = 1000
            rest = copy_store(local[0], target)
            assert rest < committed if writes > 1 else rest == committed
        assert_holds(EpisodeStore.open(target, cache_bytes=0), local[1])
        assert check(target).findings == []
        writes += 1
    assert writes == 1 + 8  # none, then the marker, four shards, the streams' zarr.json, the group's and the journal


def test_a_copy_comes_back_from_s3_whole_and_can_be_continued(uploaded, local, tmp_path, server):
    seen = []
    copy_store(uploaded[0], tmp_path / "back.zarr", source_options=server, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert check(tmp_path / "back.zarr").findings == []
    with EpisodeStore.open(tmp_path / "back.zarr", write=True) as store:
        assert store.checksum == EpisodeStore.open(local[0]).checksum
        store.append(make_episode(4, 9))
    assert check(tmp_path / "back.zarr").problems == []


def test_only_what_is_new_is_sent_to_an_older_copy(tmp_path):
    make_store(tmp_path / "s.zarr", (40, 40))
    first = copy_store(tmp_path / "s.zarr", "memory://older/s.zarr")
    assert copy_store(tmp_path / "s.zarr", "memory://older/s.zarr") == 0
    with EpisodeStore.open(tmp_path / "s.zarr", write=True) as store:
        store.append(make_episode(2, 7))
    assert 0 < copy_store(tmp_path / "s.zarr", "memory://older/s.zarr") < first
    assert EpisodeStore.open("memory://older/s.zarr", cache_bytes=0).checksum == EpisodeStore.open(tmp_path / "s.zarr").checksum


def test_the_unfinished_end_of_a_source_is_not_copied(tmp_path):
    episodes = make_store(tmp_path / "s.zarr", (6, 5))
    with (tmp_path / "s.zarr" / "camera" / "c.0.0.0.0").open("ab") as file:
        file.write(b"an episode that was never committed")
    copy_store(tmp_path / "s.zarr", tmp_path / "copy.zarr")
    assert check(tmp_path / "copy.zarr").findings == []
    assert_holds(EpisodeStore.open(tmp_path / "copy.zarr"), episodes)


def test_a_copy_never_touches_anything_else(tmp_path, local):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        copy_store(local[0], tmp_path / "full")
    make_store(tmp_path / "other.zarr", (3,))
    before = {file: file.read_bytes() for file in (tmp_path / "other.zarr").rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match="holds another store"):
        copy_store(local[0], tmp_path / "other.zarr")
    assert before == {file: file.read_bytes() for file in (tmp_path / "other.zarr").rglob("*") if file.is_file()}
    fsspec.filesystem("memory").pipe_file("/theirs/s.zarr/copying.json", b"{}")
    with pytest.raises(StoreError, match="unfinished copy of another"):
        copy_store(local[0], "memory://theirs/s.zarr")


def test_a_copy_to_a_bucket_that_is_not_there_is_explained(server, local, monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE_S", 0.001)
    with pytest.raises(StoreError, match="make the bucket"):
        copy_store(local[0], "s3://no-such-bucket/s.zarr", target_options=server)


# ---- a web server ----------------------------------------------------------------------------------------------------


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves `bytes=a-b`, as every real web server does and Python's does not."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = self.translate_path(self.path)
        if not asked or not os.path.isfile(path):
            super().do_GET()
            return
        with open(path, "rb") as file:
            file.seek(int(asked[1]))
            data = file.read(int(asked[2]) - int(asked[1]) + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{os.path.getsize(path)}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class web_server:
    """`with web_server(folder, handler) as url`."""

    def __init__(self, folder, handler):
        class Quiet(handler):
            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
