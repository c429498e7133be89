"""robomimic and LIBERO files in the exact layout of each era, written by h5py alone, for tests of their readers."""

import json

import h5py
import numpy as np

from foreign import smooth_video

FLAT = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "damping": 1, "impedance_mode": "fixed", "control_delta": True,
    "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
COMPOSITE = {
    "type": "BASIC",
    "body_parts": {
        "right": {
            "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "input_type": "delta",
            "input_ref_frame": "world", "gripper": {"type": "GRIP"},
        }
    },
}  # fmt: skip
ERAS = {
    "v0.2": {"env_version": "1.2.0", "controller_configs": FLAT},
    "v0.3": {"env_version": "1.4.1", "controller_configs": FLAT},
    "v0.5": {"env_version": "1.5.1", "controller_configs": COMPOSITE},
}
MASKS = {"train": ["demo_10", "demo_0", "demo_11"], "valid": ["demo_2"], "20_percent": ["demo_0"], "better": [], "worse_valid": ["demo_2"]}
TICKS = {"demo_0": 7, "demo_2": 5, "demo_10": 9, "demo_11": 1}


def env_args(era, **more):
    """The JSON that robomimic keeps about the world."""
    told = ERAS[era]
    kwargs = {
        "robots": ["Panda"], "controller_configs": told["controller_configs"], "control_freq": 20, "reward_shaping": False,
        "camera_names": ["agentview", "robot0_eye_in_hand"], "camera_heights": 16, "ignore_done": True, **more,
    }  # fmt: skip
    return {"env_name": "Lift", "env_version": told["env_version"], "type": 1, "env_kwargs": kwargs}


def observations(random, era, count, with_images):
    """`count` consecutive observations."""
    keys = {
        "object": 10,
        "robot0_eef_pos": 3,
        "robot0_eef_quat": 4,
        "robot0_gripper_qpos": 2,
        "robot0_joint_pos": 7,
        "robot0_joint_pos_cos": 7,
    }
    seen = {key: random.normal(size=(count, size)) for key, size in keys.items()}
    if with_images:
        seen["agentview_image"] = smooth_video(random, count, 16, 24)
        seen["robot0_eye_in_hand_image"] = smooth_video(random, count, 16, 16)
        if era == "v0.5":
            seen["agentview_depth"] = random.uniform(0, 1, (count, 16, 24, 1)).astype(np.float32)
    return seen


def write_robomimic(path, era="v0.3", images=True, next_obs=True, absolute=False, masks=None, ticks=TICKS, compress=False, kwargs=None):
    """A file as robomimic's own converters write it; returns {demo: {path: array}}."""
    written = {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for seed, (name, count) in enumerate(reversed(ticks.items())):  # not in the order of their numbers
            arrays = demo_arrays(np.random.default_rng(seed), era, count, images, next_obs, absolute)
            demo = data.create_group(name)
            for key, values in arrays.items():
                packed = {"compression": "gzip"} if compress and values.dtype == np.uint8 and values.ndim == 4 else {}
                demo.create_dataset(key, data=values, **packed)
            demo.attrs["model_file"] = f'<mujoco model="{name}">' + "<geom/>" * 400 + "</mujoco>"
            if era == "v0.5":
                demo.attrs["ep_meta"] = json.dumps({"lang": "lift the cube", "layout_id": 3})
            demo.attrs["num_samples"] = count
            written[name] = arrays
        data.attrs["total"] = sum(ticks.values())
        data.attrs["env_args"] = json.dumps(env_args(era, **(kwargs or {})), indent=4)
        for key, names in (masks or {}).items():
            file[f"mask/{key}"] = np.array(names, dtype="S")
    return written


def demo_arrays(random, era, count, images, next_obs, absolute):
    """The datasets of one demonstration."""
    seen = observations(random, era, count + 1, images)
    arrays = {f"obs/{key}": values[:-1] for key, values in seen.items()}
    if next_obs:
        arrays |= {f"next_obs/{key}": values[1:] for key, values in seen.items()}
    arrays["actions"] = random.uniform(-1, 1, (count, 7))
    arrays["states"] = random.normal(size=(count, 32))
    arrays["rewards"] = np.array([0.0] * (count - 1) + [1.0])
    arrays["dones"] = np.array([0] * (count - 1) + [1])
    if absolute:
        arrays["actions_abs"] = random.uniform(-1, 1, (count, 7))
        for prefix in ("rel_", "abs_"):
            for key, size in (("pos", 3), ("rot_axis_angle", 3), ("rot_6d", 6)):
                arrays[f"action_dict/{prefix}{key}"] = random.normal(size=(count, size)).astype(np.float32)
        arrays["action_dict/gripper"] = random.normal(size=(count, 1)).astype(np.float32)
    return arrays


def content(path):
    """Everything in an HDF5 file: {path: array} of datasets, {(path, name): value} of attributes."""
    datasets, attributes = {}, {}
    with h5py.File(path, "r") as file:

        def note(name, thing):
            for key, value in thing.attrs.items():
                attributes[name, key] = value
            if isinstance(thing, h5py.Dataset):
                datasets[name] = thing[()]

        note("", file)
        file.visititems(note)
    return datasets, attributes


def write_libero(path, ticks=(6, 4), states=20, convention="opengl", instruction="pick up the black bowl"):
    """A task's file as LIBERO's recorder writes it; returns {demo: {path: array}} with images as stored: upside down."""
    written = {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {**env_args("v0.3")["env_kwargs"], "bddl_file_name": "bowl.bddl"}
        told = {"type": 1, "env_name": "Libero_Kitchen", "problem_name": "libero_kitchen", "bddl_file": "bowl.bddl", "env_kwargs": kwargs}
        data.attrs["env_name"] = "Libero_Kitchen"
        data.attrs["problem_info"] = json.dumps({"problem_name": "libero_kitchen", "language_instruction": instruction})
        data.attrs["macros_image_convention"] = convention
        data.attrs["bddl_file_name"] = "libero_goal/bowl.bddl"
        data.attrs["bddl_file_content"] = f"(define (problem kitchen)\n  (:language {instruction})\n)"
        data.attrs["env_args"] = json.dumps(told)
        for number, count in enumerate(ticks):
            random = np.random.default_rng(number)
            ee = random.normal(size=(count, 6))
            arrays = {
                "obs/agentview_rgb": smooth_video(random, count, 16, 24)[:, ::-1],
                "obs/eye_in_hand_rgb": smooth_video(random, count, 16, 16)[:, ::-1],
                "obs/gripper_states": random.normal(size=(count, 2)),
                "obs/joint_states": random.normal(size=(count, 7)),
                "obs/ee_states": ee,
                "obs/ee_pos": ee[:, :3],
                "obs/ee_ori": ee[:, 3:],
                "actions": random.uniform(-1, 1, (count, 7)),
                "states": random.normal(size=(count, states)),
                "robot_states": random.normal(size=(count, 9)),
                "rewards": np.array([0] * (count - 1) + [1], np.uint8),
                "dones": np.array([0] * (count - 1) + [1], np.uint8),
            }
            demo = data.create_group(f"demo_{number}")
            for key, values in arrays.items():
                demo[key] = values
            demo.attrs["num_samples"] = count
            demo.attrs["model_file"] = "<mujoco/>" * 200
            demo.attrs["init_state"] = arrays["states"][0]
            written[f"demo_{number}"] = arrays
        data.attrs["num_demos"] = len(ticks)
        data.attrs["total"] = sum(ticks)
    return written
