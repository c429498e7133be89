"""HDF5 files that nobody trusts: only plain data, only what is really stored, nothing outside the file."""

import os
import pickle
import zlib

import h5py
import numpy as np
import pytest

from foreign import survives
from uwm_data import FormatError
from uwm_data.formats.hdf5 import Hdf5File, from_json, looks_like_hdf5, to_json


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.hdf5"


def plain(path):
    with h5py.File(path, "w") as file:
        file["g/numbers"] = np.arange(12.0).reshape(4, 3)
        file["g/big_endian"] = np.arange(3, dtype=">i4")
        file["g/half"] = np.arange(3, dtype=np.float16)
        file["g/truth"] = np.array([True, False])
        file["g/scalar"] = 3.5
        file["g/nothing"] = np.zeros((0, 2))
        file["g/bytes"] = np.array([b"one", b"three"])
        file["g/text"] = ["one", "zwölf"]
        file.create_dataset("g/lzf", data=np.arange(1000), chunks=(100,), compression="lzf", shuffle=True, fletcher32=True)
        file.create_dataset("g/gzip", data=np.arange(1000), chunks=(300,), compression="gzip")
        file["g"].attrs["name"] = "x"
        file["g/same"] = h5py.SoftLink("/g/numbers")
        file["g/near"] = h5py.SoftLink("numbers")


def test_plain_data_reads_as_it_is(path):
    plain(path)
    file = Hdf5File(path)
    assert not file.structure.refused and file.structure.groups[""] == ("g",)
    with h5py.File(path) as sound:
        for name in ("numbers", "big_endian", "half", "truth", "scalar", "nothing", "bytes", "lzf", "gzip", "same", "near"):
            values = file.array(f"g/{name}")
            assert np.array_equal(values, sound[f"g/{name}"][()]) and values.dtype.isnative, name
    assert file.texts("g/text") == ["one", "zwölf"] and file.texts("g/bytes") == ["one", "three"]
    assert file.array("g/numbers", slice(1, 3)).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert file.attributes("g") == {"name": "x"} and file.attribute("g", "none", 7) == 7


def test_a_file_pickles_and_every_process_opens_it_anew(path):
    plain(path)
    file = Hdf5File(path)
    file.array("g/numbers")
    copy = pickle.loads(pickle.dumps(file))
    assert np.array_equal(copy.array("g/numbers"), file.array("g/numbers"))

    def in_child():
        mine = file.handle
        assert file._open[0] == os.getpid() and mine is file.handle
        assert file.array("g/numbers")[3, 2] == 11

    assert survives(in_child) == "fine"
    assert file.array("g/gzip")[-1] == 999


def objects(file):
    kind = np.dtype([("a", "f4"), ("b", "i4")])
    file["bad/compound"] = np.zeros(3, kind)
    file["bad/reference"] = np.array([file["g"].ref, file["g"].ref], h5py.ref_dtype)
    file.create_dataset("bad/ragged", (2,), h5py.vlen_dtype(np.int32))
    file["bad/opaque"] = np.array([b"abc"], "V3")
    file["bad/complex"] = np.zeros(2, complex)
    file["bad/type"] = np.dtype("f8")
    file["bad/long"] = np.zeros(2, np.longdouble)
    file.create_dataset("bad/pairs", (2,), np.dtype((np.float32, (2,))))


def leading_out(file):
    file["bad/external"] = h5py.ExternalLink("/etc/passwd", "/x")
    file["bad/soft"] = h5py.SoftLink("/bad/external")
    file["bad/dangling"] = h5py.SoftLink("/nowhere")
    file["bad/above"] = h5py.SoftLink("../../../g")
    file.create_dataset("bad/outside", (4,), "f8", external=[("other.bin", 0, 32)])
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", (4,))
    file.create_virtual_dataset("bad/virtual", layout)


def only_claimed(file):
    file.create_dataset("bad/contiguous", (1 << 40,), "f8")
    file.create_dataset("bad/chunked", (1 << 40,), "u1", chunks=(1 << 20,))
    file.create_dataset("bad/partly", (100,), "f8", chunks=(10,))[:10] = 1
    file.create_dataset("bad/chunk", (4, 4), "f8", chunks=(1 << 13, 1 << 13), maxshape=(None, None), compression="gzip")
    file.create_dataset("bad/filter", data=np.arange(100), chunks=(10,), scaleoffset=4)


def in_a_circle(file):
    file["bad/again"] = file["/"]


@pytest.mark.parametrize("make", [objects, leading_out, only_claimed, in_a_circle])
def test_what_is_not_plain_data_in_this_file_is_refused_by_name(path, make):
    plain(path)
    with h5py.File(path, "r+") as file:
        make(file)
        names = {f"bad/{name}" for name in file["bad"]}
    file = Hdf5File(path)
    assert set(file.structure.refused) == names
    with pytest.raises(FormatError, match="not read here"):
        file.below("bad")
    for name in names:
        with pytest.raises(FormatError, match=f"{name}"):
            file.array(name)
    assert file.below("g")


def test_an_attribute_that_is_not_plain_is_not_read(path):
    plain(path)
    with h5py.File(path, "r+") as file:
        file["g"].attrs["reference"] = file["g"].ref
        file["g"].attrs["compound"] = np.zeros(2, np.dtype([("a", "f4")]))
    file = Hdf5File(path)
    assert file.attributes("g") == {"name": "x"}
    assert set(file.structure.refused) == {"g@reference", "g@compound"}


def test_a_chunk_that_inflates_to_more_than_it_declares_is_refused(path):
    with h5py.File(path, "w") as file:
        bomb = file.create_dataset("bomb", (400, 1024), "u1", chunks=(400, 1024), compression="gzip")
        bomb.id.write_direct_chunk((0, 0), zlib.compress(bytes(800 << 20), 9))
        sound = file.create_dataset("sound", (3000, 1024), "u1", chunks=(3000, 1024), compression="gzip")
        sound[:] = np.random.default_rng(0).integers(0, 255, sound.shape)  # large and packed: looked at, and fine
    assert path.stat().st_size < 5 << 20
    file = Hdf5File(path)
    assert file.array("sound").shape == (3000, 1024)
    # The library would ask for 800 MB here.
    assert survives(lambda: file.array("bomb"), extra_bytes=300 << 20) == "refused"
    with pytest.raises(FormatError, match="inflates to more than the 409600 bytes"):
        file.array("bomb")


def test_many_names_for_one_long_text_do_not_fill_the_memory(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("texts", (200_000,), h5py.string_dtype(), chunks=(200_000,))
        file["texts"][:2] = ["x" * 50_000, "y"]
        raw = file["texts"].id.read_direct_chunk((0,))[1]
        file["texts"].id.write_direct_chunk((0,), raw[:16] * 200_000)
    assert path.stat().st_size < 8 << 20
    with pytest.raises(FormatError, match=r"more memory|cannot be read"):
        Hdf5File(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read as HDF5.*if it was cut off"),
        (lambda data: data[:8] + b"\x07" + data[9:], "version 7 of the HDF5 superblock"),
        (lambda data: b"PK\x03\x04" + data[4:], "is not an HDF5 file"),
        (lambda data: b"", "is not an HDF5 file"),
    ],
)
def test_files_that_cannot_be_opened_are_refused(path, change, words):
    plain(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match=words):
        Hdf5File(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for place in (tmp_path / "none", tmp_path):
        assert not looks_like_hdf5(place)
        with pytest.raises(FormatError, match="cannot be read"):
            Hdf5File(place)


def test_a_file_that_changes_after_it_was_looked_at_is_refused(path):
    plain(path)
    file = Hdf5File(path)
    with h5py.File(path, "r+") as other:
        other["g/more"] = np.zeros(1000)
    with pytest.raises(FormatError, match="has changed"):
        file.array("g/numbers")


@pytest.mark.parametrize(
    "value",
    [
        "text", "long " * 1000, "", b"bytes", np.bytes_(b"fixed"), 3, 2.5, True, np.int32(4), np.float32(0.1), np.float64("nan"),
        np.uint8(7), np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 3)), np.array([b"ab", b"c"]),
        np.array(["a", "b" * 2000], object), np.bool_(1),
    ],
)  # fmt: skip
def test_attributes_go_through_json_and_hdf5_without_a_change(path, value):
    with h5py.File(path, "w") as file:
        file.attrs["x"] = value
    before = Hdf5File(path).attributes("")["x"]
    after = from_json(to_json(before))
    one, other = np.asarray(before), np.asarray(after)
    assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def test_a_kept_attribute_that_is_no_such_thing_is_refused():
    for value in ({"zlib": "no base64!"}, {"zlib": "AAAA"}, {"data": "", "dtype": "O", "shape": [1]}, {"texts": 3}, {}):
        with pytest.raises(FormatError):
            from_json(value)
    bomb = to_json("x" * (1 << 20))
    with pytest.raises(FormatError, match="inflates to more"):
        from_json(bomb, most_bytes=1 << 10)
