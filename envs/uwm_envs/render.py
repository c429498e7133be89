"""Rendering MuJoCo scenes: two named profiles and a camera renderer that owns its GL context.

| profile | anti-aliasing | shadows | reflections | look |
|---|---|---|---|---|
| `fast` | off | off | off | flat, about a quarter of the cost in software rendering |
| `quality` | 4 samples | on | on | robosuite's own |

The profiles give different pixels, so a store and a checkpoint carry the profile's name and must not mix them.
"""

import atexit
import weakref
from dataclasses import dataclass

import numpy as np

from uwm_envs.simulator import choose_gl

choose_gl()


@dataclass(frozen=True)
class Profile:
    """How a frame is drawn: `samples` per pixel (0 is no anti-aliasing), and whether shadows and reflections show."""

    samples: int
    shadows: bool
    reflections: bool


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

    `model` and `data` are MuJoCo's own MjModel and MjData. Frames are uint8 (size, size, 3), upright.
    """

    def __init__(self, model, size: int, profile: Profile):
        import mujoco

        # Multisampling is fixed when the off-screen buffer is made: setting it later has no effect.
        model.vis.quality.offsamples = profile.samples
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        self.profile = profile
        self._renderer = mujoco.Renderer(model, height=size, width=size)
        _close_at_exit(self)
        self._shadow_flag = int(mujoco.mjtRndFlag.mjRND_SHADOW)
        self._reflection_flag = int(mujoco.mjtRndFlag.mjRND_REFLECTION)
        self._shown = mujoco.MjvOption()
        self._shown.geomgroup[0] = 0  # robosuite keeps collision shapes in group 0 and the visible ones in group 1
        self._shown.geomgroup[1] = 1

    def draw(self, data, camera: str | int) -> np.ndarray:
        """Draw one frame from a named camera: uint8 (size, size, 3), first row at the top."""
        self._renderer.update_scene(data, camera=camera, scene_option=self._shown)
        # update_scene resets the scene's flags, so they are set again for every frame.
        flags = self._renderer.scene.flags
        flags[self._shadow_flag] = self.profile.shadows
        flags[self._reflection_flag] = self.profile.reflections
        return self._renderer.render()

    def close(self) -> None:
        """Free the GL context; calling it twice is harmless."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


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
