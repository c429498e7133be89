"""Gates and the runner: thin evidence is never a pass, and the exit code says what the last line says."""

import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import bench_figures as figures
from uwm.bench import gates, modes_bench, render_bench, results_table, runner
from uwm.bench.gates import Gate
from uwm.core.config import ConfigError

GOOD, BAD, THIN = Gate("good", 0.3, "<=", 0.5), Gate("bad", 0.7, "<=", 0.5), Gate("thin", 0.3, "<=", 0.5, enough=False)


@pytest.fixture
def bench(monkeypatch):
    """Registers a bench `made_up` with these gates."""

    def register(*found):
        result = runner.Result("A claim.", found, (1, 2), {"nan": math.nan})
        monkeypatch.setitem(runner.BENCHES, "made_up", "made_up_bench")
        monkeypatch.setitem(sys.modules, "made_up_bench", SimpleNamespace(run=lambda quick, out: result))

    return register


@pytest.mark.parametrize(
    ("found", "verdict", "code"),
    [
        ((GOOD, GOOD), "holds", 0),
        ((GOOD, BAD), "does not hold", 1),
        ((GOOD, THIN), "not judged", 1),
        ((THIN, BAD), "does not hold", 1),
        ((), "not judged", 1),
    ],
)
def test_only_gates_that_all_hold_give_exit_code_0(bench, capsys, tmp_path, found, verdict, code):
    bench(*found)
    assert runner.main("made_up", out=tmp_path / "deep" / "made_up.json") == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"made_up: {verdict} (")
    record = json.loads((tmp_path / "deep" / "made_up.json").read_text(), parse_constant=pytest.fail)
    assert record["verdict"] == verdict
    assert [gate["verdict"] for gate in record["gates"]] == [gate.verdict for gate in found]
    assert {"seeds", "versions", "machine", "command", "figures", "seconds", "claim"} <= set(record)
    assert record["figures"]["nan"] is None


@pytest.fixture
def two_parts(monkeypatch):
    """Registers a bench `two` of the parts a and b, that measures what `reading` holds."""
    reading = {"a": 0.1, "b": 0.2}

    def run(quick, out, only=()):
        figures = {part: {"error": reading[part]} for part in only or reading}
        figures = runner.beside(figures, only, out, tuple(reading))
        gates_of = [Gate(part, found["error"], "<=", 0.5) for part, found in figures.items()]
        return runner.Result("A claim.", gates_of, (1,), figures)

    monkeypatch.setitem(runner.BENCHES, "two", "two_bench")
    monkeypatch.setitem(sys.modules, "two_bench", SimpleNamespace(run=run, PARTS=("a", "b")))
    return reading


def test_one_part_is_measured_anew_and_judged_beside_the_others_of_the_record(two_parts, tmp_path, monkeypatch):
    out = tmp_path / "two.json"
    assert runner.main("two", out=out) == 0 and "two.json), `uwm bench two`, " in results_table.build_table(tmp_path)
    before = json.loads(out.read_text())
    two_parts |= {"a": 0.3, "b": 0.7}
    monkeypatch.setattr(runner.provenance, "machine", lambda: "another machine")
    assert runner.main("two", out=out, only=["b"]) == 1
    record = json.loads(out.read_text())
    assert record["figures"] == {"a": {"error": 0.1}, "b": {"error": 0.7}} and [gate["value"] for gate in record["gates"]] == [0.1, 0.7]
    assert record["parts"]["a"] == before["parts"]["a"] == {key: before[key] for key in before["parts"]["a"]}
    assert record["parts"]["b"]["machine"] == "another machine" and record["command"] == "uwm bench two --only b"
    page = results_table.build_table(tmp_path)
    assert "(two.json), a: `uwm bench two`, " in page and "(two.json), b: `uwm bench two --only b`, " in page
    out.write_text(json.dumps({key: value for key, value in before.items() if key != "parts"}))  # a record of before there were parts
    assert runner.main("two", out=out, only=["a"]) == 0
    assert json.loads(out.read_text())["parts"]["b"] == before["parts"]["b"]


def test_one_part_alone_is_judged_alone(two_parts, capsys):
    assert runner.main("two", only=["b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "two: holds (1 of 1 gates hold)"


def test_parts_that_are_not_there_and_records_of_something_else_are_refused(two_parts, bench, tmp_path):
    bench(GOOD)
    out = tmp_path / "made_up.json"
    runner.main("made_up", out=out)
    for name, told, match in (
        ("two", {"only": ["c"]}, "benchmark two: unknown part 'c'.*valid parts: a, b"),
        ("two", {"only": ["a"], "quick": True}, "a quick run is one toy world"),
        ("made_up", {"only": ["a"]}, "made_up: it is measured as a whole"),
        ("two", {"only": ["a"], "out": out}, "no full record of benchmark two"),
    ):
        with pytest.raises(ConfigError, match=match):
            runner.main(name, **told)


def test_the_table_shows_metric_baseline_value_interval_gate_and_verdict(bench, capsys):
    bench(Gate("error", 0.421, "<=", 0.5, baseline="the mean", interval=(0.4, 0.44)))
    runner.main("made_up")
    line = capsys.readouterr().out.splitlines()[2]
    assert re.split(r"\s{2,}", line) == ["error", "the mean", "0.421", "0.4 to 0.44", "<= 0.5", "holds"]


def test_an_unknown_bench_lists_what_exists():
    with pytest.raises(ConfigError, match=r"did you mean 'modes'.*modes, pusa, radd, render"):
        runner.main("mode")


def test_a_value_that_is_not_a_number_fails_even_on_thin_evidence():
    assert Gate("broken", math.nan, "<", 1.0, enough=False).verdict == "does not hold"
    assert gates.relative("forward", {"relative_error": None}, "<", 1.0, "copy").verdict == "does not hold"


@pytest.mark.parametrize(("sense", "at_limit"), [("<", "does not hold"), ("<=", "holds"), (">", "does not hold"), (">=", "holds")])
def test_a_value_at_the_limit(sense, at_limit):
    assert Gate("edge", 0.5, sense, 0.5).verdict == at_limit


def test_an_unknown_sense_is_refused():
    with pytest.raises(ValueError, match="sense must be one of"):
        Gate("edge", 0.5, "=<", 0.5)


def demo_verdicts(**changes):
    return [gate.verdict for gate in gates.of_demo({**figures.demo_figures(), **changes})]


def test_the_demos_gates_hold_at_their_very_limits():
    limits = {"streaming": figures.closed_loop(45, 0.75), "chunked": figures.closed_loop(47, 3.0), "inverse": figures.action_figures(0.5)}
    assert demo_verdicts(**limits) == ["holds"] * 5


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"streaming": figures.closed_loop(44, 0.5), "chunked": figures.closed_loop(44, 3.0)}, 0),
        ({"streaming": figures.closed_loop(48, 0.76)}, 1),
        ({"streaming": figures.closed_loop(46, 0.5), "chunked": figures.closed_loop(49, 3.0)}, 2),
        ({"inverse": figures.action_figures(0.51)}, 3),
        ({"forward": figures.image_figures(1.0)}, 4),
    ],
)
def test_each_of_the_demos_gates_can_fail_alone(changes, failing):
    assert demo_verdicts(**changes) == ["does not hold" if index == failing else "holds" for index in range(5)]


def test_success_over_fewer_than_50_rollouts_is_not_judged():
    few = {"streaming": figures.closed_loop(10, 0.5, 10), "chunked": figures.closed_loop(10, 3.0, 10)}
    assert demo_verdicts(**few) == ["not judged", "holds", "not judged", "holds", "holds"]


def test_the_modes_bench_judges_only_with_enough_windows():
    many = modes_bench.gates(figures.demo_figures())
    assert [gate.verdict for gate in many] == ["holds"] * 6
    few = modes_bench.gates({**figures.demo_figures(), "windows": modes_bench.QUICK[0]})
    assert {gate.verdict for gate in few} == {"not judged"}


def test_the_modes_bench_says_how_to_get_the_checkpoint_that_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(modes_bench, "CHECKPOINT", tmp_path / "model")
    with pytest.raises(ValueError, match="uwm demo"):
        modes_bench.run(True, None)


class ThreeEpisodes:
    """Windows over episodes of 10, 4 and 9 ticks, as far as `spread` looks at them."""

    place = np.repeat([0, 1, 2], [10, 4, 9])
    tick = np.concatenate([np.arange(10), np.arange(4), np.arange(9)])

    def __len__(self):
        return len(self.place)

    def locate(self, indices):
        return self.place[indices], self.tick[indices]


def test_the_modes_bench_takes_windows_whose_future_frames_all_exist():
    # An episode of T ticks has T + 1 observations: frame tick + 6 exists up to tick T - 6.
    assert modes_bench.spread(ThreeEpisodes(), 6, 100).tolist() == [0, 1, 2, 3, 4, 14, 15, 16, 17]
    assert modes_bench.spread(ThreeEpisodes(), 6, 3).tolist() == [0, 4, 17]
    with pytest.raises(ValueError, match="longer than 11 ticks"):
        modes_bench.spread(ThreeEpisodes(), 11, 3)


def test_the_render_bench_takes_the_median_of_enough_runs():
    gate = render_bench.gate([0.2, 0.9, 0.1, 0.2, 0.3, 0.1])
    assert (gate.value, gate.interval, gate.verdict) == (0.2, (0.1, 0.9), "holds")
    assert render_bench.gate([0.4] * 6).verdict == "does not hold"
    assert render_bench.gate([0.1]).verdict == "not judged"


def test_the_results_table_is_made_from_the_records(bench, tmp_path):
    bench(GOOD, BAD)
    runner.main("made_up", out=tmp_path / "made_up.json")
    page = results_table.build_table(tmp_path)
    assert "## made_up: does not hold" in page
    assert "| bad | - | 0.7 | - | <= 0.5 | does not hold |" in page
    assert "`uwm bench made_up`" in page
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is not the record of a bench"):
        results_table.build_table(tmp_path)
