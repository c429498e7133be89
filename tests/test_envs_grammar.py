"""The language of instructions and plans: what is said is read back, chances add up, and other texts are refused in words."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uwm_envs.clips import grammar
from uwm_envs.clips.grammar import Goal, GrammarError, Part


@given(seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_what_is_said_is_read_back_word_for_word_and_number_for_number(seed):
    generator = np.random.default_rng(seed)
    goals = grammar.draw_instruction(generator)
    plan = grammar.draw_plan(goals, generator)
    instruction, text = grammar.say_instruction(goals), grammar.say_plan(plan)
    assert len(instruction.split()) == grammar.INSTRUCTION and len(text.split()) == grammar.PLAN
    assert grammar.parse_instruction(instruction) == goals and grammar.parse_plan(text) == plan
    assert grammar.text_of(grammar.numbers(text)) == text
    assert grammar.reaches(goals, plan) and grammar.reaches(goals[::-1], plan) and grammar.chance(goals, plan) > 0


def every_part(goal):
    sides = (grammar.OPPOSITE[goal.direction], "behind")
    return [Part(goal, *ways) for ways in product(grammar.PACES, sides, grammar.PUSHES[goal.direction])]


def test_the_chances_of_all_plans_of_an_instruction_add_up_to_one_and_are_how_often_they_are_drawn():
    goals = (Goal("red", "left"), Goal("blue", "top"))
    firsts, seconds = every_part(goals[0]), every_part(goals[1])
    plans = [pair for a, b in product(firsts, seconds) for pair in ((a, b), (b, a))]
    assert sum(grammar.chance(goals, plan) for plan in plans) == pytest.approx(1.0)
    generator = np.random.default_rng(0)
    drawn = [grammar.draw_plan(goals, generator) for _ in range(4000)]
    slow = np.mean([plan[0].pace == "slowly" for plan in drawn])
    first = np.mean([plan[0].goal == goals[0] for plan in drawn])
    assert slow == pytest.approx(0.5, abs=0.03) and first == pytest.approx(0.5, abs=0.03)


def test_a_plan_for_something_else_does_not_reach():
    goals = (Goal("red", "left"), Goal("blue", "top"))
    other = grammar.draw_plan((Goal("red", "left"), Goal("green", "top")), np.random.default_rng(0))
    assert not grammar.reaches(goals, other) and grammar.chance(goals, other) == 0.0


RED = "go quickly to red from right push left once then"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("begin done", "expected 22 words, got 2"),
        (f"begin go slowly to blue from left push top twice then {RED} done", "from bottom or behind"),
        (f"begin go slowly to block from bottom push top twice then {RED} done", "word 5 is 'block'"),
    ],
)
def test_other_texts_are_no_plans(text, words):
    with pytest.raises(GrammarError, match=words):
        grammar.parse_plan(text)


def test_an_instruction_names_two_blocks_and_only_known_words():
    with pytest.raises(GrammarError, match="got red twice"):
        grammar.parse_instruction("push the red block to the left and the red block to top")
    with pytest.raises(GrammarError, match="no word 'purple'"):
        grammar.numbers("push the purple block")
