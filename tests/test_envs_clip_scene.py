"""The MuJoCo scene of clips is that of the drawn ones: same poses, same cameras; its arm obeys, its contacts are told."""

import numpy as np
import pytest

from uwm_envs import clips as package
from uwm_envs.clips import arm, cameras
from uwm_envs.clips.grammar import COLOURS, Goal

pytest.importorskip("mujoco")
from uwm_envs.clips.scene import Scene


@pytest.fixture(scope="module")
def scene():
    made = Scene(64)
    yield made
    made.close()


@pytest.mark.parametrize("view", cameras.CAMERAS)
def test_it_shows_the_same_things_in_the_same_places_as_ray_casting(scene, view):
    table = arm.draw_table(np.random.default_rng(0), Goal("red", "left"))
    scene.place(table)
    frame, depth, label = scene.picture(view)
    _, exact, wanted = cameras.picture(table, cameras.CAMERAS[view], 64)
    assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8
    both = (label == wanted) & (exact < cameras.FAR) & (depth < cameras.FAR)
    assert (label == wanted).mean() > 0.998 and np.abs(depth - exact)[both].mean() < 1e-3
    red = frame[label == 1].astype(int)
    assert (red[:, 0] > 2 * red[:, 1]).all() and len(red)


def test_the_fingertip_follows_its_action_and_the_joints_lead_to_it(scene):
    scene.place(arm.Table(np.array([0.0, 0.5]), np.array([[-0.8, -0.8], [-0.8, 0.8], [0.8, -0.8], [0.8, 0.8]])))
    for action in ((0.15, 0.0), (0.0, -0.15), (-0.1, -0.1)):
        before = scene.tip
        scene.move(np.array(action))
        np.testing.assert_allclose(scene.tip - before, action, atol=0.01)
        assert not scene.touched.any()
    (sin_a, sin_b, cos_a, cos_b), tip = scene.proprio[:4], scene.proprio[4:]
    reached = arm.BASE + arm.LINKS[0] * np.array([cos_a, sin_a]) + arm.LINKS[1] * np.array([cos_b, sin_b])
    np.testing.assert_allclose(reached, tip, atol=1e-6)
    with pytest.raises(ValueError, match="two finite numbers"):
        scene.move(np.array([np.nan, 0.0]))


def test_what_is_pushed_moves_and_is_told(scene):
    blocks = np.array([[0.0, 0.0], [0.35, 0.0], [0.8, -0.8], [0.8, 0.8]])
    scene.place(arm.Table(np.array([-0.3, 0.0]), blocks))
    touched = np.zeros(4, bool)
    for _ in range(3):
        scene.move(np.array([0.15, 0.0]))
        touched |= scene.touched
    assert touched.tolist() == [True, False, False, False], "the second is pushed by the first"
    moved = scene.blocks - blocks
    assert moved[0, 0] > 0.15 and moved[1, 0] > 0.02 and np.abs(moved[2:]).max() < 1e-6
    assert np.abs(scene.blocks).max() <= 1 - arm.BLOCK + 1e-3


def test_clips_of_the_scene_repeat_themselves_and_their_depth_fits_their_poses():
    clips, again = (package.make(2, seed=3, frames=4, side=48, world="mujoco") for _ in range(2))
    for name, frames in clips.frames.items():
        np.testing.assert_array_equal(frames, again.frames[name])
    np.testing.assert_array_equal(clips.blocks, again.blocks)
    drawn = package.make(2, seed=3, frames=4, side=48)
    assert clips.instruction == drawn.instruction and not np.array_equal(clips.blocks, drawn.blocks)
    for name, depth in clips.depth.items():
        v, u = np.mgrid[0:48, 0:48] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(clips.intrinsics[name]).T
        points = (rays * depth[0, -1][..., None] - clips.extrinsics[name][:, 3]) @ clips.extrinsics[name][:, :3]
        for index in range(len(COLOURS)):
            on = points[clips.segmentation[name][0, -1] == index + 1]
            if len(on):
                assert np.linalg.norm(on[:, :2] - clips.blocks[0, -1, index], axis=1).max() < arm.BLOCK + 0.02


def test_a_world_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'table', 'mujoco'"):
        package.make(1, world="isaac")
