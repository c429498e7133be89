"""Demonstrations recorded as robosuite's own tools record them, in a world of ours, so that it is known what replaying must give."""

import json

import h5py
import numpy as np

import uwm_envs


def record(task="Lift", seed=0, ticks=None, image_size=24, noise=0.1):
    """(states (T + 1, S), actions (T + 1, 7), observations {name: (T + 1, ...)}) of the expert; the last action leads nowhere."""
    env = uwm_envs.make(task, image_size=image_size)
    expert = uwm_envs.make_expert(task, noise=noise)
    observations, info = [env.reset(seed=seed)[0]], {"success": False}
    expert.start(env, np.random.default_rng(seed))
    states, actions = [_flat(env.unwrapped.data)], []
    while not info["success"] and len(actions) != ticks:
        actions.append(expert.act(env)[0])
        observation, _, _, _, info = env.step(actions[-1])
        observations.append(observation)
        states.append(_flat(env.unwrapped.data))
    actions.append(np.zeros(7, np.float32))
    env.close()
    stacked = {name: np.stack([seen[name] for seen in observations]) for name in observations[0]}
    return np.stack(states), np.stack(actions).astype(np.float64), stacked


def _flat(data):
    return np.concatenate([[data.time], data.qpos, data.qvel])


def write_demonstrations(path, demonstrations, task="Lift", version="1.5.2", robots="Panda", **attributes):
    """A file as robosuite's collect_human_demonstrations writes it; `demonstrations` are (states, actions) pairs."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update({"date": "1-2-2026", "time": "3:4:5", "repository_version": version, "env": task})
        data.attrs["env_info"] = json.dumps({"env_name": task, "robots": robots})
        data.attrs.update(attributes)
        for number, (states, actions) in enumerate(demonstrations, start=1):
            group = data.create_group(f"demo_{number}")
            group.attrs["model_file"] = "<mujoco/>"
            group["states"], group["actions"] = states, actions
    return path
