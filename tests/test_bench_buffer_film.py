"""The film of the buffer: a picture a tick, paler where it is noisier, and what was executed where it was."""

import numpy as np
import pytest

import tiny
import uwm_envs
from uwm.bench import buffer_film, pictures
from uwm.robot.evaluate import Moment, Rollout, rollout
from uwm.robot.policy import Policy, PolicyConfig


def moment(first, level, value=0.0, count=2):
    return Moment(first, np.full((4, 2), value, np.float32), np.asarray(level, np.float32), np.full((count, 2), value, np.float32))


def test_every_tick_has_a_picture_and_noise_is_pale():
    ladder, clean = [0.0, 0.0, 0.5, 1.0], [0.0] * 4
    films = [Rollout(0, True, 4, 2, moments=[moment(0, level), moment(2, level)]) for level in (ladder, clean)]
    shown = [buffer_film.film(each, ["x", "y"]) for each in films]
    assert [len(each) for each in shown] == [4, 4]
    ink = [sum((frame == buffer_film.INK).all(axis=-1).sum() for frame in each) for each in shown]
    assert 0 < ink[0] < ink[1]
    assert all(frame.shape == shown[0][0].shape and frame.shape[0] % 2 == 0 == frame.shape[1] % 2 for frame in shown[0])
    assert pictures.mp4_bytes(shown[0], 10.0)[4:8] == b"ftyp"


@pytest.mark.parametrize("kind", ["streaming", "chunked"])
def test_a_watched_rollout_keeps_what_the_buffer_held_when_its_first_chunk_was_sent(kind):
    env = uwm_envs.make("Toy", cameras=tiny.CAMERAS, image_size=32, max_steps=7)
    policy = Policy(tiny.model(), PolicyConfig(kind, rows=4, chunk=2, chunks=4))
    watched = rollout(env, policy, 0, "agentview", watched=True)
    assert [each.first for each in watched.moments] == [0, 2, 4, 6] and watched.ticks == 7
    assert [len(each.executed) for each in watched.moments] == [2, 2, 2, 1], "an episode may end inside a chunk"
    sent = watched.moments[0]
    np.testing.assert_allclose(np.clip(sent.future[:2], env.action_space.low, env.action_space.high), sent.executed, rtol=1e-5)
    assert not sent.level[:2].any() and bool((sent.level[2:] > 0).all()) is (kind == "streaming")
    assert len(buffer_film.film(watched, env.unwrapped.card["action"]["names"])) == 7
    assert not rollout(env, policy, 0).moments
    env.close()


def test_what_was_not_watched_makes_no_film():
    with pytest.raises(ValueError, match="watched rollout"):
        buffer_film.film(Rollout(0, True, 4, 2), ["x"])
    with pytest.raises(ValueError, match="2 numbers, 1 names"):
        buffer_film.film(Rollout(0, True, 4, 2, moments=[moment(0, [0.0] * 4)]), ["x"])
