"""robosuite's demonstration files are a source of episodes like any other format, and fetching them trusts nothing."""

import hashlib
import json
import pickle
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("robosuite")

from foreign import mutations, survives
from recordings import record, write_demonstrations
from uwm import cli, fetch, human
from uwm_data import EpisodeStore
from uwm_data.conversion import convert
from uwm_data.errors import FormatError
from uwm_data.streams import check_episode

HUMAN = Path(__file__).resolve().parents[2] / "shared" / "data" / "robosuite_human"
FORMATS = {"store": "uwm_data.formats.own", "robomimic": "uwm_data.formats.robomimic", "robosuite": "uwm.human"}


@pytest.fixture(scope="module")
def lift():
    return record("Lift", seed=5, ticks=8)


@pytest.fixture(scope="module")
def stack():
    return record("Stack", seed=5, ticks=5)


@pytest.fixture
def file(tmp_path, lift):
    return write_demonstrations(tmp_path / "demo.hdf5", [lift[:2], lift[:2]])


def test_a_demonstration_file_becomes_legal_episodes_that_show_what_was_seen(file, lift):
    source = human.read(file, image_size=24)
    assert len(source) == 2
    assert list(source.streams) == ["agentview", "wrist", "proprio", "action", "action_recorded", "states"]
    raw = pickle.loads(pickle.dumps(source)).read(1)
    arrays = check_episode(source.streams, raw.arrays)
    assert len(arrays["action"]) == 8 and len(arrays["states"]) == 9
    assert np.array_equal(arrays["states"], lift[0]), "float64, bit for bit"
    for name, seen in lift[2].items():
        assert np.array_equal(arrays[name], seen), name
    assert raw.meta["task"] == "Lift" and raw.meta["instruction"] == "lift the red cube" and raw.meta["success"] is False
    assert raw.meta["source"] == {"format": "robosuite", "file": "demo.hdf5", "demo": "demo_2", "version": "1.5.2"}
    assert raw.meta["robosuite"]["date"] == "1-2-2026"
    assert set(raw.meta["robosuite"]["clipped"]) == {"values", "share", "largest"} and raw.meta["robosuite"]["clipped"]["largest"] < 1.3
    assert json.dumps(raw.meta)
    source.close()


def test_the_card_says_what_the_world_says_and_where_it_came_from(file):
    source = human.read(file, cameras=["agentview"], image_size=32, render="quality")
    card = source.card
    assert card["action"]["mode"] == "delta" and card["action"]["frame"] == "robot base"
    assert card["policy"] == {"cameras": ["agentview"], "proprio": ["proprio"], "action": "action"}
    assert (card["env"], card["robot"], card["rate_hz"], card["image_orientation"]) == ("Lift", "Panda", 20, "upright")
    assert (card["image_size"], card["render_profile"], card["cameras"]) == (32, "quality", ["agentview"])
    assert card["source"]["names"] == {"action_recorded": "actions", "states": "states"}
    assert "model_file" in source.left_out[0]


def test_it_converts_into_a_store_in_a_process_and_again_without_a_word(file, lift, tmp_path):
    for _ in range(2):
        report = convert(file, tmp_path / "lift.zarr", workers=1, source_options={"image_size": 24}, formats=FORMATS)
        assert (report.format, report.episodes) == ("robosuite", 2)
    with EpisodeStore.open(tmp_path / "lift.zarr") as store:
        assert np.array_equal(store.read(1, "wrist"), lift[2]["wrist"])
        assert store.card["env"] == "Lift" and 0 < store.meta(0)["robosuite"]["clipped"]["largest"] < 1.3


def test_a_folder_with_several_tasks_is_one_dataset_with_a_stream_of_states_for_each(tmp_path, lift, stack):
    write_demonstrations(tmp_path / "a.hdf5", [lift[:2]])
    write_demonstrations(tmp_path / "b.hdf5", [stack[:2]], task="Stack", version="1.4.0")
    write_demonstrations(tmp_path / "c.hdf5", [lift[:2]], task="TwoArmHandover", robots=["Panda", "Panda"])
    write_demonstrations(tmp_path / "d.hdf5", [lift[:2]], robots="Sawyer")
    (tmp_path / "notes.txt").write_text("hello")
    assert human.recognise(tmp_path)
    source = human.read(tmp_path, cameras=(), image_size=24)
    assert len(source) == 2 and source.card["env"] == "unknown"
    assert source.streams["states_Lift"].shape == (32,) and source.streams["states_Stack"].shape == (45,)
    told = "\n".join(source.left_out)
    assert "TwoArmHandover" in told and "two arms" in told and "Sawyer" in told
    first, second = (check_episode(source.streams, source.read(index).arrays) for index in range(2))
    assert len(first["states_Lift"]) == 9 and not len(first["states_Stack"])
    assert len(second["states_Stack"]) == 6 and not len(second["states_Lift"])
    assert source.read(1).meta["source"]["version"] == "1.4.0"
    source.close()


def test_other_files_are_not_taken_for_demonstrations_of_robosuite(tmp_path, lift):
    def made(name, change):
        path = write_demonstrations(tmp_path / name, [lift[:2]])
        with h5py.File(path, "a") as opened:
            change(opened["data"])
        return path

    assert human.recognise(made("plain.hdf5", lambda data: None))
    assert not human.recognise(made("robomimic.hdf5", lambda data: data["demo_1"].create_group("obs")))
    assert not human.recognise(made("libero.hdf5", lambda data: data.attrs.update(bddl_file_name="x.bddl")))
    assert not human.recognise(made("nameless.hdf5", lambda data: data.attrs.__delitem__("env")))
    assert not human.recognise(made("stateless.hdf5", lambda data: data["demo_1"].__delitem__("states")))
    (tmp_path / "text.hdf5").write_text("not hdf5")
    (tmp_path / "empty").mkdir()
    for other in ("text.hdf5", "empty", "missing.hdf5"):
        assert not human.recognise(tmp_path / other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.attrs.update(env="TwoArmHandover"), "TwoArmHandover.*two arms"),
        (lambda data: data.attrs.update(env="Juggling"), "Juggling.*Lift, Stack"),
        (lambda data: data.attrs.update(env_info='{"robots": ["Panda", "Panda"]}'), "Panda and Panda; demonstrations of one Panda"),
        (lambda data: data.attrs.update(env_info="{not json"), "env_info is not the JSON"),
        (lambda data: data["demo_2"].__delitem__("states"), "demo_2 has no `states`"),
        (lambda data: data["demo_2"].__delitem__("actions"), "demo_2 has no dataset `actions`"),
        (lambda data: [data.__delitem__(name) for name in ("demo_1", "demo_2")], "no demonstration"),
    ],
)
def test_what_cannot_be_replayed_is_refused_before_anything_is_read(file, change, message):
    with h5py.File(file, "a") as opened:
        change(opened["data"])
    with pytest.raises(FormatError, match=f"demo.hdf5.*{message}"):
        human.read(file)


def test_trouble_inside_a_demonstration_names_file_and_demo_and_leaves_the_others(file):
    with h5py.File(file, "a") as opened:
        opened["data/demo_1/states"][3, 4] = np.nan
    source = human.read(file, cameras=())
    with pytest.raises(FormatError, match=r"demo\.hdf5: demo_1: state 3 is not finite: nan at number 4"):
        source.read(0)
    assert len(source.read(1).arrays["action"]) == 8
    with pytest.raises(FormatError, match="0 to 1, asked for 2"):
        source.read(2)
    source.close()


def test_a_file_that_was_cut_off_is_an_error_of_ours(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert not human.recognise(file)
    with pytest.raises(FormatError, match=r"demo\.hdf5"):
        human.read(file)


@settings(max_examples=12)
@given(st.data())
def test_no_damage_to_a_file_does_more_than_an_error_of_ours(tmp_path_factory, lift, data):
    path = tmp_path_factory.mktemp("fuzz") / "demo.hdf5"
    write_demonstrations(path, [(lift[0][:3], lift[1][:3])])
    path.write_bytes(data.draw(mutations(path.read_bytes())))

    def read_all():
        human.recognise(path)
        for recording in human.read(path).recordings:
            for name in ("states", "actions"):
                recording.file.array(f"data/{recording.name}/{name}")

    survives(read_all)


def test_the_demonstrations_by_people_are_read_as_one_dataset():
    if not HUMAN.is_dir():
        pytest.skip(f"{HUMAN} is not here; `uwm data fetch human` gets such files")
    source = human.read(HUMAN, cameras=("agentview",), image_size=16)
    tasks = [recording.task for recording in source.recordings]
    assert sorted(set(tasks)) == ["Door", "Lift", "NutAssembly", "PickPlace", "Stack", "Wipe"] and len(tasks) == 9
    assert any("TwoArmHandover" in line for line in source.left_out)
    wipe = source.read(tasks.index("Wipe"))
    assert "success" not in wipe.meta, "its dirt is not in the states, so nobody knows"
    assert len(check_episode(source.streams, wipe.arrays)["action"]) == 173
    source.close()


# -------------------------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages with small files in the place of the real ones; returns their folder and the list of downloads."""
    contents = {file: f"{file.name} {'x' * 50}".encode() for file in fetch.FILES}
    monkeypatch.setattr(fetch, "FILES", tuple(_with_hash(file, content) for file, content in contents.items()))
    folder, asked = tmp_path / "packages", []
    folder.mkdir()
    for version in ("1.0.1", "1.4.1"):
        with zipfile.ZipFile(folder / f"robosuite-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"robosuite-{version}.dist-info/LICENSE", f"MIT License of {version}")
            wheel.writestr("../../escaped.txt", "outside")
            for file, content in contents.items():
                if file.version == version:
                    wheel.writestr(f"robosuite/models/assets/demonstrations/{file.folder}/demo.hdf5", content)

    def downloads(version, target):
        asked.append(version)
        wheel = next(folder.glob(f"robosuite-{version}-*.whl"), folder / "missing")
        return [["false"], ["cp", str(wheel), target]]

    monkeypatch.setattr(fetch, "_downloads", downloads)
    return folder, asked


def _with_hash(file, content):
    return fetch.Remote(file.version, file.folder, file.name, hashlib.sha256(content).hexdigest())


def test_fetching_brings_every_file_and_the_licences_and_nothing_else(packages, tmp_path, capsys):
    out = tmp_path / "human"
    assert fetch.fetch_human(out) == 0
    names = {file.name for file in fetch.FILES} | {"LICENSE-robosuite-1.0.1", "LICENSE-robosuite-1.4.1"}
    assert {path.name for path in out.iterdir()} == names and len(fetch.FILES) == 7
    assert not list(tmp_path.rglob("escaped.txt"))
    assert (out / "LICENSE-robosuite-1.4.1").read_text() == "MIT License of 1.4.1"
    assert f"uwm convert {out}" in capsys.readouterr().out


def test_the_command_fetches_into_the_folder_that_it_is_told(packages, tmp_path, capsys):
    assert cli.main(["data", "fetch", "human", "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / "door-1.0.1.hdf5").exists()
    next(packages[0].glob("*1.4.1*")).unlink()
    (tmp_path / "here" / "lift-1.4.1.hdf5").unlink()
    assert cli.main(["data", "fetch", "human", "--out", str(tmp_path / "here")]) == 1
    assert capsys.readouterr().err.startswith("uwm: error: robosuite 1.4.1 could not be downloaded")


def test_fetching_again_downloads_only_what_is_missing_or_damaged(packages, tmp_path):
    out = tmp_path / "human"
    fetch.fetch_human(out)
    packages[1].clear()
    fetch.fetch_human(out)
    assert packages[1] == [], "all there"
    (out / "lift-1.4.1.hdf5").write_bytes(b"half")
    fetch.fetch_human(out)
    assert packages[1] == ["1.4.1"]
    assert (out / "lift-1.4.1.hdf5").read_bytes().startswith(b"lift-1.4.1")


def test_a_file_with_another_hash_is_refused_and_not_kept(packages, tmp_path, monkeypatch):
    changed = [fetch.Remote(f.version, f.folder, f.name, "0" * 64) if f.name == "door-1.0.1.hdf5" else f for f in fetch.FILES]
    monkeypatch.setattr(fetch, "FILES", changed)
    with pytest.raises(FormatError, match=r"door/panda/demo\.hdf5 of robosuite 1\.0\.1 is not the file"):
        fetch.fetch_human(tmp_path / "human")
    assert not (tmp_path / "human" / "door-1.0.1.hdf5").exists()


def test_a_package_that_is_missing_damaged_or_huge_is_one_error(packages, tmp_path, monkeypatch):
    folder, _ = packages
    wheel = folder / "robosuite-1.0.1-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:100])
    with pytest.raises(FormatError, match="arrived damaged"):
        fetch.fetch_human(tmp_path / "human")
    wheel.unlink()
    with pytest.raises(FormatError, match=r"could not be downloaded.*pip download --no-deps robosuite==1\.0\.1"):
        fetch.fetch_human(tmp_path / "human")
    wheel.write_bytes(whole)
    monkeypatch.setattr(fetch, "_MOST_BYTES", 20)
    with pytest.raises(FormatError, match="larger than 20 bytes"):
        fetch.fetch_human(tmp_path / "human")


def test_a_folder_that_an_installer_unpacked_does_as_well(packages, tmp_path, monkeypatch):
    folder, _ = packages

    @contextmanager
    def unpacked(version):
        place = tmp_path / version
        with zipfile.ZipFile(folder / f"robosuite-{version}-py3-none-any.whl") as wheel:
            wheel.extractall(place)
        yield fetch._root(place)
        shutil.rmtree(place)

    monkeypatch.setattr(fetch, "_package", unpacked)
    assert fetch.fetch_human(tmp_path / "human") == 0


def test_there_is_a_way_to_download_here_and_every_hash_is_that_of_the_real_file():
    commands = fetch._downloads("1.0.1", "somewhere")
    assert commands and all("robosuite==1.0.1" in command and "--no-deps" in command for command in commands)
    assert len({file.sha256 for file in fetch.FILES}) == len({file.name for file in fetch.FILES}) == 7
    for file in fetch.FILES:
        task, version = file.name.removesuffix(".hdf5").rsplit("-", 1)
        copy = HUMAN / f"rsx{version}_{task}.hdf5"
        assert not copy.exists() or hashlib.sha256(copy.read_bytes()).hexdigest() == file.sha256
