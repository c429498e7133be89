"""Rendering MuJoCo scenes: two named profiles and a camera renderer that owns its GL context.

| profile | anti-aliasing | shadows | reflections | look |
|---|---|---|---|---|
| `fast` | off | off | off | flat, about a quarter of the cost in software rendering |
| `quality` | 4 samples | on | on | robosuite's own |

The profiles give different pixels, so a store and a checkpoint carry the profile's name and must not mix them.
"""

import atexit
import os
import time
import weakref
from dataclasses import dataclass

import numpy as np

from uwm_envs.simulator import load_mujoco


@dataclass(frozen=True)
class Profile:
    """How a frame is drawn: `samples` per pixel (0 is no anti-aliasing), and whether shadows and reflections show."""

    samples: int
    shadows: bool
    reflections: bool


_OUT_OF_VIEW = 5  # a geom group that neither robosuite nor we draw

PROFILES = {
    "fast": Profile(samples=0, shadows=False, reflections=False),
    "quality": Profile(samples=4, shadows=True, reflections=True),
}


def profile_named(name: str) -> Profile:
    """Return a profile; ValueError lists the known names."""
    if name not in PROFILES:
        raise ValueError(f"no render profile {name!r}: expected one of {', '.join(PROFILES)}")
    return PROFILES[name]


class CameraRenderer:
    """Draws square frames of one MuJoCo model; owns a GL context, so close it in the process that made it.

    `model` and `data` are MuJoCo's own MjModel and MjData. Frames are uint8 (size, size, 3), upright. Of MuJoCo's groups of
    shapes, 0 to 2 are drawn without `hidden_groups`: robosuite keeps collision shapes in 0 and the visible ones in 1.
    """

    def __init__(self, model, size: int, profile: Profile, hidden_groups=(0,)):
        mujoco = load_mujoco()
        # Multisampling is fixed when the off-screen buffer is made: setting it later has no effect.
        model.vis.quality.offsamples = profile.samples
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self.profile = profile
        try:
            self._renderer = mujoco.Renderer(model, height=size, width=size)
        except (mujoco.FatalError, RuntimeError) as error:
            raise RuntimeError(
                f"no off-screen rendering ({error}) with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r}: import uwm_envs "
                "before mujoco, or set MUJOCO_GL=egl (osmesa where there is no EGL) before Python starts"
            ) from error
        _close_at_exit(self)
        self._shadow_flag = int(mujoco.mjtRndFlag.mjRND_SHADOW)
        self._reflection_flag = int(mujoco.mjtRndFlag.mjRND_REFLECTION)
        self._shown = mujoco.MjvOption()
        for group in (*hidden_groups, _OUT_OF_VIEW):
            self._shown.geomgroup[group] = 0
        self._model = model

    def draw(self, data, camera: str | int) -> np.ndarray:
        """Draw one frame from a named camera: uint8 (size, size, 3), first row at the top."""
        if self.profile.reflections or self.profile.shadows:  # what is out of view may still be seen in them
            self._renderer.update_scene(data, camera=camera, scene_option=self._shown)
        else:
            self._update_scene_in_view(data, camera)
        # update_scene resets the scene's flags, so they are set again for every frame.
        flags = self._renderer.scene.flags
        flags[self._shadow_flag] = self.profile.shadows
        flags[self._reflection_flag] = self.profile.reflections
        return self._renderer.render()

    def _update_scene_in_view(self, data, camera) -> None:
        """Leave shapes that the camera cannot see out of the scene: the same pixels for less than half the vertices."""
        groups = self._model.geom_group
        own_groups = groups.copy()
        try:
            groups[out_of_view(self._model, data, self._model.camera(camera).id)] = _OUT_OF_VIEW
            self._renderer.update_scene(data, camera=camera, scene_option=self._shown)
        finally:
            groups[:] = own_groups

    def close(self) -> None:
        """Free the GL context; calling it twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def out_of_view(model, data, camera: int) -> np.ndarray:
    """Which shapes lie wholly outside a camera's square picture: bool (number of geoms,).

    Each shape is taken as the box around it; it is out of view when the box lies wholly beyond one of the four side
    planes of the view pyramid, or behind the camera. The camera looks along its own -z.

            \\   o  /     o is in view
             \\    /  x    x is beyond the right plane by more than its extent along the plane's normal
              [cam]
    """
    half_angle = np.deg2rad(model.cam_fovy[camera]) / 2.0
    c, s = np.cos(half_angle), np.sin(half_angle)
    normals = np.array([[c, 0, s], [-c, 0, s], [0, c, s], [0, -c, s], [0, 0, 1.0]]) @ data.cam_xmat[camera].reshape(3, 3).T
    axes = data.geom_xmat.reshape(-1, 3, 3)
    centre = data.geom_xpos + np.einsum("gij,gj->gi", axes, model.geom_aabb[:, :3])
    distance = (centre - data.cam_xpos[camera]) @ normals.T
    extent = np.einsum("gpj,gj->gp", np.abs(normals @ axes), model.geom_aabb[:, 3:] * 1.01 + 1e-4)
    outside = (distance > extent).any(axis=1)
    return outside & (model.geom_rbound > 0.0)  # an endless plane has radius 0 here


_open_renderers: weakref.WeakSet = weakref.WeakSet()


def _close_at_exit(renderer: CameraRenderer) -> None:
    """Free a forgotten context before MuJoCo shuts EGL down; afterwards every free prints a traceback.

    Exit functions run last in, first out, so ours must be registered after MuJoCo's, which a first Renderer does.
    """
    if not _open_renderers:
        atexit.unregister(_close_open_renderers)
        atexit.register(_close_open_renderers)
    _open_renderers.add(renderer)


def _close_open_renderers() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


def measure(name: str, frames: int = 60, image_size: int = 64, camera: str = "agentview", seed: int = 0) -> dict:
    """Cost of one frame in one process, three ways in turn on the same moving scene.

    `robosuite` is its own default camera path (`sim.render` on its own context), `quality` and `fast` are the profiles
    here. Returns {"way": {"wall_ms_p50", "cpu_ms_p50"}}, "fast_over_robosuite" (ratio of the wall medians) and the
    settings. `name` is one of the robosuite worlds.
    """
    from uwm_envs.manipulation import Manipulation

    worlds = {way: Manipulation(name, cameras=(), image_size=image_size, render=way) for way in PROFILES}
    reference = Manipulation(name, cameras=())
    draws = {"robosuite": _robosuite_draw(reference, camera, image_size)}
    draws.update({way: lambda world=world: world.frame(camera) for way, world in worlds.items()})
    everyone = (reference, *worlds.values())
    try:
        for world in everyone:
            world.reset(seed=seed)
        times = _time_in_turn(draws, everyone, frames)
    finally:
        for world in everyone:
            world.close()
    result = {way: {"wall_ms_p50": _median(t, 0), "cpu_ms_p50": _median(t, 1)} for way, t in times.items()}
    ratio = result["fast"]["wall_ms_p50"] / result["robosuite"]["wall_ms_p50"]
    settings = {"env": name, "frames": frames, "image_size": image_size, "camera": camera, "gl": os.environ.get("MUJOCO_GL", "")}
    return {**result, "fast_over_robosuite": ratio, "settings": settings}


def _robosuite_draw(world, camera: str, size: int):
    """robosuite's own off-screen context with its default options, as its camera observations use it."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    sim = world.sim
    context = MjRenderContextOffscreen(sim, device_id=-1)
    context.vopt.geomgroup[0] = 0
    context.vopt.geomgroup[1] = 1

    def draw():
        # Several contexts live in this process; robosuite assumes that its own is still the current one.
        context.gl_ctx.make_current()
        return sim.render(camera_name=camera, width=size, height=size)[::-1]

    return draw


def _time_in_turn(draws, worlds, frames: int) -> dict[str, list[tuple[float, float]]]:
    """Let every world act a little, then time each way once; repeat. (wall, CPU) in milliseconds."""
    times = {way: [] for way in draws}
    generator = np.random.default_rng(0)
    for k in range(frames + 3):
        action = generator.uniform(-0.5, 0.5, 7).astype(np.float32)
        for world in worlds:
            world.step(action)
        for way, draw in draws.items():
            wall, cpu = time.perf_counter(), time.process_time()
            draw()
            if k >= 3:  # the first frames pay for shader compilation and texture upload
                times[way].append(((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3))
    return times


def _median(times, column: int) -> float:
    return float(np.median([pair[column] for pair in times]))
