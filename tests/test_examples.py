"""The examples run, in seconds, and show what they are for."""

from uwm.examples import adapting, frames, roles, wavefront, words


def test_roles_answers_in_every_direction():
    assert min(roles.main().values()) > 0.9


def test_frames_are_held_and_a_last_one_helps():
    found = frames.main()
    assert found["held frames moved"] == 0.0
    assert found["between two"] < 0.6 * found["from a frame"], "where a point ends tells which way it went round"


def test_adapting_teaches_levels_per_frame_and_can_be_taken_away():
    found = adapting.main()
    assert found["changed with the adapter off"] == 0.0
    assert found["between two, adapted"] < 0.85 * found["between two, before"]


def test_wavefront_needs_fewer_calls_with_more_frames_in_flight_and_finds_the_way():
    found = wavefront.main()
    # Two given frames are read, the first new one takes 12 rows, the others follow, and each but the last is read once more.
    assert [found[f"gap {gap}, calls"] for gap in (2, 6, 12)] == [2 + 12 + 5 * gap + 5 for gap in (2, 6, 12)]
    assert max(found[f"gap {gap}, apart"] for gap in (2, 6, 12)) < 0.5


def test_words_fills_sentences_in_with_a_call_per_new_word_at_most():
    found = words.main()
    assert found["right, nothing given"] > 0.8 and found["right, colour missing"] > 0.8
    assert found["calls in 100 rows"] <= 7
