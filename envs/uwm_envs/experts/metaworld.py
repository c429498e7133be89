"""Meta-World's own scripted policies in the protocol of our experts: start, then act -> (executed, intended)."""

import warnings

import numpy as np

from uwm_envs.experts.motion import Disturbance
from uwm_envs.metaworld import load_metaworld


class MetaWorldExpert:
    """The scripted policy of whatever Meta-World task it is started in.

    `noise` scales slow noise and pushes on the hand's motion in action units (`motion.Disturbance`), never on the gripper.
    """

    strategies = ("scripted",)

    def __init__(self, noise: float = 0.0, strategy: str = "random"):
        if strategy not in (*self.strategies, "random"):
            raise ValueError(f"no strategy {strategy!r}: expected random or one of {', '.join(self.strategies)}")
        if not noise >= 0.0:
            raise ValueError(f"noise is {noise}, expected a number of at least 0")
        self.noise, self.strategy = noise, self.strategies[0]

    def start(self, env, rng: np.random.Generator) -> None:
        """Begin an episode after `env.reset`; all noise comes from `rng`."""
        load_metaworld()
        from metaworld.policies import ENV_POLICY_MAP

        self._policy = ENV_POLICY_MAP[f"{env.unwrapped.task}-v3"]()
        self._disturb = Disturbance(self.noise, rng)

    def act(self, env) -> tuple[np.ndarray, np.ndarray]:
        """The action to execute and the one intended without noise, both float32 (4,) within [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its gains exceed the limits, at every tick
            wanted = self._policy.get_action(env.unwrapped.privileged()["observation"])
        intended = np.clip(wanted, -1.0, 1.0)
        action = intended.copy()
        action[:3] = np.clip(action[:3] + self._disturb()[:3], -1.0, 1.0)
        return action.astype(np.float32), intended.astype(np.float32)
