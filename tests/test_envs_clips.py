"""Clips repeat themselves, pictures agree with poses and matrices, motion with actions, and caches are not trusted."""

import numpy as np
import pytest

from uwm_envs import clips as package
from uwm_envs.clips import arm, cameras, grammar
from uwm_envs.clips.grammar import COLOURS, Goal


@pytest.fixture(scope="module")
def clips():
    return package.make(6, seed=3, frames=8, side=48)


def test_clips_repeat_themselves_and_each_is_its_own(clips):
    fewer = package.make(4, seed=3, frames=8, side=48)
    for name, frames in fewer.frames.items():
        np.testing.assert_array_equal(frames, clips.frames[name][:4])
    np.testing.assert_array_equal(fewer.action, clips.action[:4])
    assert fewer.instruction == clips.instruction[:4] and len(clips) == 6
    other = package.make(2, seed=4, frames=8, side=48)
    assert not np.array_equal(other.tip, clips.tip[:2])


def test_arrays_have_their_shapes_and_texts_their_meaning(clips):
    assert set(clips.frames) == set(clips.depth) == set(clips.segmentation) == {"top", "front", "side"}
    assert clips.frames["top"].shape == (6, 8, 48, 48, 3) and clips.depth["top"].shape == (6, 8, 48, 48)
    assert clips.action.shape == (6, 7, 2) and clips.proprio.shape == (6, 8, 6) and clips.touched.shape == (6, 7, 4)
    for instruction, plan in zip(clips.instruction, clips.plan, strict=True):
        assert grammar.reaches(grammar.parse_instruction(instruction), grammar.parse_plan(plan))


def test_depth_and_segmentation_agree_with_poses_and_matrices(clips):
    """Every pixel that is said to show a block lies, at its depth, on that block; and a point of the table projects to where it is seen."""
    for name, depth in clips.depth.items():
        intrinsics, extrinsics = clips.intrinsics[name], clips.extrinsics[name]
        v, u = np.mgrid[0:48, 0:48] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(intrinsics).T
        for clip in range(3):
            points = (rays * depth[clip, 0][..., None] - extrinsics[:, 3]) @ extrinsics[:, :3]
            label = clips.segmentation[name][clip, 0]
            for index in range(len(COLOURS)):
                on = points[label == index + 1]
                if len(on):
                    distance = np.linalg.norm(on[:, :2] - clips.blocks[clip, 0, index], axis=1)
                    assert distance.max() < arm.BLOCK + 1e-3 and on[:, 2].min() > -1e-3 and on[:, 2].max() < cameras.HEIGHT + 1e-3
            table = points[(label == 0) & (depth[clip, 0] < cameras.FAR)]
            assert np.abs(table[:, 2]).max() < 1e-3 and np.abs(table[:, :2]).max() < 1 + 1e-3


def test_colours_are_those_of_the_segmentation(clips):
    for name, label in clips.segmentation.items():
        red = label == 1
        shown = clips.frames[name][red].astype(int)
        assert (shown[:, 0] > 2 * shown[:, 1]).all() and red.any()


def test_blocks_move_when_they_are_touched_and_seldom_otherwise():
    clips = package.make(40, seed=0, side=8, views=("top",))
    moved = np.linalg.norm(np.diff(clips.blocks, axis=1), axis=-1) > 1e-6
    assert (moved | ~clips.touched).mean() > 0.99, "what is touched gives way, but at the table's edge"
    assert (moved & ~clips.touched).sum() < 0.2 * moved.sum(), "others only when pushed by a block"
    way = []
    for clip in range(len(clips)):
        goal = grammar.parse_plan(clips.plan[clip])[0].goal
        index = COLOURS.index(goal.colour)
        way.append((clips.blocks[clip, -1, index] - clips.blocks[clip, 0, index]) @ np.array(arm.WAY[goal.direction]))
    assert np.mean(way) > 0.4 and np.mean(np.array(way) > 0.1) > 0.8, "the expert does what the plan says first"


def test_the_arm_obeys_its_action_within_reach_and_its_joints_lead_to_its_tip():
    table = arm.draw_table(np.random.default_rng(0), Goal("red", "left"))
    before = table.tip.copy()
    table.move(np.array([0.0, -0.1]))
    np.testing.assert_allclose(table.tip - before, [0.0, -0.1], atol=1e-9)
    lower, upper = arm.joints(table.tip)
    tip = arm.BASE + arm.LINKS[0] * np.array([np.cos(lower), np.sin(lower)]) + arm.LINKS[1] * np.array([np.cos(upper), np.sin(upper)])
    np.testing.assert_allclose(tip, table.tip, atol=1e-9)
    for _ in range(40):
        table.move(np.array([0.2, 0.2]))
    assert np.linalg.norm(table.tip - arm.BASE) <= sum(arm.LINKS) - 0.02 + 1e-9 and (np.abs(table.tip) <= 0.97).all()
    overlap = [np.linalg.norm(a - b) for i, a in enumerate(table.blocks) for b in table.blocks[:i]]
    assert min(overlap) > 2 * arm.BLOCK - 0.02
    with pytest.raises(ValueError, match="two finite numbers"):
        table.move(np.array([np.nan, 0.0]))


def test_a_cache_is_read_back_and_one_that_is_damaged_or_of_other_settings_is_made_anew(tmp_path):
    asked = {"count": 2, "seed": 1, "frames": 3, "side": 8, "cache": tmp_path}
    drawn, told = [], []
    first = package.make(**asked, on_clip=drawn.append)
    again = package.make(**asked, on_clip=told.append)
    assert drawn == [0, 1] and told == []
    for name in first.frames:
        np.testing.assert_array_equal(first.frames[name], again.frames[name])
        np.testing.assert_array_equal(first.depth[name], again.depth[name])
    assert again.instruction == first.instruction and again.touched.dtype == bool
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    package.make(**asked, on_clip=told.append)
    assert told == [0, 1]
    package.make(**{**asked, "seed": 2})
    assert len(list(tmp_path.glob("*.npz"))) == 2


@pytest.mark.parametrize("wrong", [{"count": 0}, {"frames": 1}, {"side": 2}, {"seed": -1}, {"views": ("above",)}, {"views": ()}])
def test_what_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(ValueError, match=r"cameras are|there must be a clip"):
        package.make(**{"count": 1, **wrong})
