"""What a store tells about itself: filled in where the streams know it, named where nobody does, compared field by field."""

import json

import pytest

import uwm_envs
from foreign import CARD, STREAMS
from uwm_data import EpisodeStore, StreamSpec, cards


def test_a_complete_card_stays_as_it_is():
    full = cards.complete(CARD, STREAMS)
    assert full == {**full, **CARD} and not cards.missing(full)
    assert cards.complete(full, STREAMS) == full


def test_what_streams_know_is_filled_in_and_the_rest_is_named_as_unknown():
    card = cards.complete({}, STREAMS)
    assert card["cameras"] == ["front", "wrist"] and card["rate_hz"] == 20 and card["rates_hz"]["arm"] == 20
    assert card["policy"] == {"cameras": ["front", "wrist"], "proprio": ["arm"], "action": "action"}
    assert card["action"]["names"] == ["dx", "dy"] and card["action"]["mode"] == "unknown"
    unknown = ["env", "robot", "image_orientation", "action.convention", "action.mode", "action.frame", "action.gripper"]
    assert cards.missing(card) == unknown


def test_a_store_without_cameras_or_actions_is_asked_for_neither():
    card = cards.complete({"env": "e", "robot": "r"}, {"state": StreamSpec((3,), "float32", 5, "state")})
    assert card["rate_hz"] == 5 and card["policy"]["action"] is None and "action" not in card
    assert cards.missing(card) == []


def test_dimensions_without_names_are_missing():
    card = cards.complete(CARD | {"action": {}}, {**STREAMS, "action": StreamSpec((2,), "float32", 20, "action")})
    assert {"action.names", "action.units"} <= set(cards.missing(card))


def test_every_store_tells_everything_that_must_be_told(tmp_path):
    with EpisodeStore.create(tmp_path / "s.zarr", STREAMS, {"robot": "arm"}) as store:
        assert store.card["robot"] == "arm" and store.card["action"]["frame"] == "unknown" and store.card["checksum"]


@pytest.mark.parametrize("world", ["Toy", "PushT", "Lift"])
def test_every_world_tells_the_whole_convention_of_its_action(world):
    env = uwm_envs.make(world, cameras=())
    action = json.loads(json.dumps(env.unwrapped.card))["action"]
    env.close()
    assert all(action[key] for key in cards.ACTION_KEYS)
    assert action["mode"] in cards.MODES and action["frame"] in cards.FRAMES and action["gripper"] in cards.GRIPPERS


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {}),
        ({"rate_hz": 20}, {}),
        ({"rate_hz": 10}, {"rate_hz": (20.0, 10)}),
        ({"cameras": ["front"]}, {"cameras": (["front", "wrist"], ["front"])}),
        ({"cameras": ("front", "wrist")}, {}),
        ({"cameras": []}, {"cameras": (["front", "wrist"], [])}),
        ({"action": {**CARD["action"], "mode": "absolute"}}, {"action.mode": ("delta", "absolute")}),
        ({"action": {**CARD["action"], "mode": "unknown"}}, {}),
        ({"action": {"names": ["dx", "dy"]}}, {}),
        ({"action": {"names": ["dx", "dz"], "units": []}}, {"action.names": (["dx", "dy"], ["dx", "dz"])}),
        ({"image_orientation": "upside down"}, {"image_orientation": ("upright", "upside down")}),
        ({"image_orientation": "unknown", "robot": None}, {}),
        ({"created": "yesterday", "checksum": "1"}, {}),
    ],
)
def test_differences_name_every_field_that_both_tell_and_that_is_not_the_same(change, expected):
    card = cards.complete(CARD, STREAMS)
    assert cards.differences(card, {**card, **change}) == expected


def test_only_the_fields_asked_for_are_compared_and_they_may_be_dotted():
    card = cards.complete(CARD, STREAMS)
    other = {**card, "robot": "hand", "action": {**card["action"], "frame": "gripper"}}
    assert cards.differences(card, other, ["action.frame", "image_orientation"]) == {"action.frame": ("world", "gripper")}


def test_the_sentence_names_field_and_values_of_both_sides():
    told = cards.sentence({"action.mode": ("delta", "absolute"), "rate_hz": (20, 10)}, "lift.zarr", "can.zarr")
    assert told == "action.mode is 'delta' in lift.zarr and 'absolute' in can.zarr; rate_hz is 20 in lift.zarr and 10 in can.zarr"
