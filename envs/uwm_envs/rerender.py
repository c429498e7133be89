"""Seeing the same scene in another look: changed colours, lights and camera poses, with the physics left alone.

Paired data for representation learning and for testing how much a policy leans on looks.

    reset / step --> observation  "agentview"              the plain picture
                                  "agentview_rerendered"   the same instant in the episode's own look
"""

from contextlib import contextmanager
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces

_CHANGED = ("mat_rgba", "geom_rgba", "light_diffuse", "light_ambient", "light_pos", "cam_pos", "cam_quat")


@dataclass(frozen=True)
class Strength:
    """How far a look may stray from the plain one: 0 leaves that part as it is.

    `colour`: each material's red, green and blue are multiplied by factors in [1 - colour, 1].
    `light`: each light's brightness by a factor in [1 - light, 1 + light], its position moved by as many metres.
    `camera_m`, `camera_rad`: standard deviations of each camera's shift (metres, per axis) and turn (radians, per axis).
    """

    colour: float = 0.6
    light: float = 0.4
    camera_m: float = 0.02
    camera_rad: float = 0.03


def draw_look(model, generator: np.random.Generator, strength: Strength) -> dict[str, np.ndarray]:
    """Draw changed copies of the model's colours, lights and camera poses; the model itself stays as it is."""
    look = {name: getattr(model, name).copy() for name in _CHANGED}
    for name in ("mat_rgba", "geom_rgba"):
        look[name][:, :3] *= generator.uniform(1.0 - strength.colour, 1.0, look[name][:, :3].shape)
    brightness = generator.uniform(1.0 - strength.light, 1.0 + strength.light, (model.nlight, 1))
    look["light_diffuse"] *= brightness
    look["light_ambient"] *= brightness
    look["light_pos"] += generator.uniform(-strength.light, strength.light, (model.nlight, 3))
    look["cam_pos"] += strength.camera_m * generator.standard_normal((model.ncam, 3))
    turns = strength.camera_rad * generator.standard_normal((model.ncam, 3))
    look["cam_quat"] = np.stack([_turned(quat, turn) for quat, turn in zip(look["cam_quat"], turns, strict=True)])
    return look


def _turned(quat: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Quaternion (w, x, y, z) turned by a small rotation vector (3,), radians, in its own frame."""
    w, v = quat[0], quat[1:]
    half = turn / 2.0  # sin(angle / 2) is angle / 2 to third order; the result is normalised
    product = np.concatenate([[w - v @ half], w * half + v + np.cross(v, half)])
    return product / np.linalg.norm(product)


@contextmanager
def wearing(world, look: dict[str, np.ndarray]):
    """Draw inside this block in a look; afterwards model and camera poses are as before, bit for bit."""
    plain = {name: getattr(world.model, name).copy() for name in look}
    try:
        _put(world, look)
        yield
    finally:
        _put(world, plain)


def _put(world, values) -> None:
    for name, value in values.items():
        getattr(world.model, name)[:] = value
    world.place_cameras()


class Rerender(gymnasium.Wrapper):
    """Adds "<camera>_rerendered", uint8 like the camera itself, in a look that lasts for an episode.

    `seed` fixes the looks: after `reset(seed=s)` the look depends on (`seed`, `s`) only; after a reset without a seed it
    is the next of the wrapper's own generator. The world's generator and its physics are never touched. Works for the
    robosuite worlds; TypeError for a world that has no MuJoCo scene to repaint.
    """

    def __init__(self, env: gymnasium.Env, seed: int, strength: Strength = Strength()):
        super().__init__(env)
        if not hasattr(env.unwrapped, "place_cameras"):
            raise TypeError(f"{type(env.unwrapped).__name__} cannot be re-rendered: expected one of the robosuite worlds")
        self._seed, self._strength = seed, strength
        self._generator = np.random.default_rng(seed)
        self._look = self._drawn(self._generator)
        members = dict(env.observation_space.spaces)
        members.update({f"{camera}_rerendered": members[camera] for camera in env.unwrapped.cameras})
        self.observation_space = spaces.Dict(members)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        # The world's model is rebuilt by nothing but close(), so a look drawn now fits the whole episode.
        generator = self._generator if seed is None else np.random.default_rng((self._seed, seed))
        self._look = self._drawn(generator)
        return self._with_variant(observation), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_variant(observation), reward, terminated, truncated, info

    def render_variant(self, seed: int) -> dict[str, np.ndarray]:
        """The current instant from every camera in the look that belongs to `seed`: {camera: uint8 (H, W, 3)}."""
        return self._frames(self._drawn(np.random.default_rng(seed)))

    def _drawn(self, generator):
        return draw_look(self.env.unwrapped.model, generator, self._strength)

    def _with_variant(self, observation):
        frames = self._frames(self._look)
        return {**observation, **{f"{camera}_rerendered": frame for camera, frame in frames.items()}}

    def _frames(self, look):
        world = self.env.unwrapped
        with wearing(world, look):
            return {camera: world.frame(camera) for camera in world.cameras}
