"""Strict mappings into frozen dataclasses: what is accepted, what is refused in which words, and the way back."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwm.core.config import ConfigError, from_mapping, to_mapping, unknown


class Path_(Enum):
    COSINE = "cosine"
    FLOW = "flow"


@dataclass(frozen=True)
class Net:
    width: int
    depth: int = 2
    dropout: float = 0.0


@dataclass(frozen=True)
class Run:
    net: Net
    name: str = "lift"
    path: Path_ = Path_.COSINE
    solver: Literal["ddim", "heun", 2] = "ddim"
    levels: tuple[float, ...] = (0.0, 1.0)
    grid: tuple[int, int] = (4, 4)
    seed: int | None = None
    chunk: int | str = "all"
    ema: bool = True
    out: Path = Path("runs")
    weights: dict[str, float] = field(default_factory=dict)
    nets: tuple[Net, ...] = ()
    names: list[str] = field(default_factory=list)
    anything: Any = None
    token: int = field(default=3, init=False)


@dataclass(frozen=True)
class Positive:
    rate_hz: float

    def __post_init__(self):
        if self.rate_hz <= 0:
            raise ValueError(f"rate_hz must be positive, got {self.rate_hz}")


@dataclass(frozen=True)
class Robot:
    control: Positive


def test_nested_values_arrive_as_declared():
    run = from_mapping(Run, {
        "net": {"width": 64, "dropout": 1}, "path": "flow", "solver": 2, "levels": [0, 0.5], "grid": [2, 8], "seed": None, "chunk": 4,
        "out": "runs/x", "weights": {"action": 1}, "nets": [{"width": 1}, {"width": 2}], "names": ("a",), "anything": {"x": [1]},
    })  # fmt: skip
    assert run.net == Net(64, 2, 1.0) and type(run.net.dropout) is float
    assert (run.path, run.solver, run.chunk, run.seed) == (Path_.FLOW, 2, 4, None)
    assert run.levels == (0.0, 0.5) and all(type(level) is float for level in run.levels)
    assert run.grid == (2, 8) and run.nets == (Net(1), Net(2)) and run.names == ["a"]
    assert run.out == Path("runs/x") and run.weights == {"action": 1.0} and type(run.weights["action"]) is float
    assert run.anything == {"x": [1]} and run.token == 3


@pytest.mark.parametrize(
    ("mapping", "parts"),
    [
        ({"net": {"widht": 4}}, ["demo.net", "unknown key 'widht', did you mean 'width'?", "valid keys: depth, dropout, width"]),
        ({"net": {"width": 4}, "zzz": 1}, ["demo: unknown key 'zzz'; valid keys: anything, chunk"]),
        ({"net": {"width": 4}, "token": 1}, ["demo: unknown key 'token'"]),
        ({"name": "x"}, ["demo: Run also needs net (Net)", "given are name"]),
        ({}, ["demo: Run also needs net (Net)", "given are no keys"]),
        ({"net": {}}, ["demo.net: Net also needs width (int)"]),
        ({"net": 3}, ["demo.net: expected keys and values for Net, got int 3"]),
        ({"net": {"width": "4"}}, ["demo.net.width: expected int, got str '4'", "without quotes"]),
        ({"net": {"width": 4.0}}, ["demo.net.width: expected int, got float 4.0", "write 4"]),
        ({"net": {"width": True}}, ["demo.net.width: expected int, got bool True"]),
        ({"net": {"width": None}}, ["demo.net.width: expected int, got NoneType None"]),
        ({"net": {"width": 4, "dropout": "1e-3"}}, ["demo.net.dropout: expected float, got str '1e-3'", "as 0.001"]),
        ({"net": {"width": 4}, "ema": 1}, ["demo.ema: expected bool, got int 1"]),
        ({"net": {"width": 4}, "path": "cosin"}, ["demo.path: expected one of 'cosine', 'flow', got str 'cosin'"]),
        ({"net": {"width": 4}, "solver": "huen"}, ["demo.solver: expected one of 'ddim', 'heun', 2", "did you mean 'heun'?"]),
        ({"net": {"width": 4}, "solver": True}, ["demo.solver: expected one of", "got bool True"]),
        ({"net": {"width": 4}, "levels": [0, "a"]}, ["demo.levels[1]: expected float, got str 'a'"]),
        ({"net": {"width": 4}, "levels": "01"}, ["demo.levels: expected a list, got str '01'"]),
        ({"net": {"width": 4}, "grid": [1, 2, 3]}, ["demo.grid: expected 2 values (int, int), got 3"]),
        ({"net": {"width": 4}, "seed": "x"}, ["demo.seed: expected int, got str 'x'"]),
        ({"net": {"width": 4}, "chunk": 1.5}, ["demo.chunk: expected int or str, got float 1.5"]),
        ({"net": {"width": 4}, "weights": {"a": "b"}}, ["demo.weights.a: expected float, got str 'b'"]),
        ({"net": {"width": 4}, "weights": [1]}, ["demo.weights: expected keys and values, got list"]),
        ({"net": {"width": 4}, "nets": [{"width": 1}, {"deep": 1}]}, ["demo.nets[1]: unknown key 'deep'"]),
        ({"net": {"width": 4}, 5: 1}, ["demo: unknown key '5'"]),
    ],
)
def test_what_is_not_meant_is_refused_with_its_place_and_what_to_try(mapping, parts):
    with pytest.raises(ConfigError) as refusal:
        from_mapping(Run, mapping, "demo")
    for part in parts:
        assert part in str(refusal.value)


def test_a_class_that_refuses_its_values_is_quoted_with_the_place():
    with pytest.raises(ConfigError, match=r"^robot\.control: rate_hz must be positive, got -1\.0$"):
        from_mapping(Robot, {"control": {"rate_hz": -1}}, "robot")


def test_something_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match="config: expected keys and values for Net, got list"):
        from_mapping(Net, {"net": []}["net"])


def test_long_values_are_shortened_in_errors():
    with pytest.raises(ConfigError) as refusal:
        from_mapping(Net, {"width": "x" * 1000})
    assert len(str(refusal.value)) < 200


nets = st.builds(Net, st.integers(), st.integers(), st.floats(allow_nan=False))
runs = st.builds(
    Run, nets, st.text(), st.sampled_from(Path_), st.sampled_from(["ddim", "heun", 2]),
    st.lists(st.floats(allow_nan=False)).map(tuple), st.tuples(st.integers(), st.integers()), st.none() | st.integers(),
    st.integers() | st.text(), st.booleans(), st.sampled_from([Path("a/b"), Path("c")]),
    st.dictionaries(st.text(), st.floats(allow_nan=False)), st.lists(nets, max_size=3).map(tuple), st.lists(st.text()),
)  # fmt: skip


@given(runs)
def test_there_and_back_is_the_identity(run):
    plain = to_mapping(run)
    assert from_mapping(Run, plain) == run
    assert to_mapping(from_mapping(Run, plain)) == plain


def test_the_way_back_is_plain_enough_for_yaml_and_json():
    assert to_mapping(Run(Net(1), path=Path_.FLOW, nets=(Net(2),), weights={"a": 1.0})) == {
        "net": {"width": 1, "depth": 2, "dropout": 0.0}, "name": "lift", "path": "flow", "solver": "ddim", "levels": [0.0, 1.0],
        "grid": [4, 4], "seed": None, "chunk": "all", "ema": True, "out": "runs", "weights": {"a": 1.0},
        "nets": [{"width": 2, "depth": 2, "dropout": 0.0}], "names": [], "anything": None,
    }  # fmt: skip


def test_an_unknown_word_far_from_all_valid_ones_gets_no_guess():
    assert unknown("qqq", ["width"]) == "unknown key 'qqq'; valid keys: width"
    said = unknown("sterming", ["streaming", "chunked"], "mode")
    assert said == "unknown mode 'sterming', did you mean 'streaming'? valid modes: chunked, streaming"
