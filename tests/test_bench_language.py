"""The bench of language: wordings name the colours they should, gates follow the figures, and a quick run drives every arm."""

import pytest

import sentences
from oracle import unchecked_shapes
from uwm.bench import language_bench as bench
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED
from uwm.nn.language import LanguageConfig
from uwm_envs.toy_colours import COLOURS, WORDINGS


def test_a_wrong_instruction_names_another_colour_and_other_words_are_new():
    for seed in range(12):
        for wanted, colour in enumerate(COLOURS):
            assert colour in bench.ARMS["right"](seed, wanted) and colour in bench.ARMS["other words"](seed, wanted)
            assert colour not in bench.ARMS["wrong"](seed, wanted) and bench.ARMS["none"](seed, wanted) == ""
    named = {colour for colour in COLOURS for seed in range(12) if colour in bench.ARMS["wrong"](seed, 0)}
    assert len(named) == 3, "each of the others in turn"
    assert not set(bench.OTHERS) & set(WORDINGS)


def test_gates_follow_the_figures():
    def found(right, other, wrong, none):
        counts = {"right": right, "other words": other, "wrong": wrong, "none": none}
        return {arm: {"succeeded": [True] * n + [False] * (100 - n), "interval": (0.0, 1.0)} for arm, n in counts.items()}

    assert [gate.verdict for gate in bench.judged(found(90, 85, 5, 30), True)] == [HOLDS] * 4
    assert [gate.verdict for gate in bench.judged(found(70, 55, 50, 50), True)] == [FAILS] * 4
    assert {gate.verdict for gate in bench.judged(found(90, 85, 5, 30), False)} == {NOT_JUDGED}


def test_a_quick_run_drives_every_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "LANGUAGE", LanguageConfig("minilm", str(sentences.minilm(tmp_path))))
    with unchecked_shapes():
        result = bench.run(True, None)
    assert set(result.figures) == set(bench.ARMS) and result.verdict == NOT_JUDGED
    assert result.figures["none"]["followed"] == 0.0 and result.figures["right"]["mean_ticks"] == pytest.approx(6)
