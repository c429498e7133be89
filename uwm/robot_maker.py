"""The robots that a control run can name, made from its `options`; none is connected here."""

import importlib
import pkgutil
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from uwm.core.config import ConfigError, unknown
from uwm.robot.clock import Clock
from uwm.robot.interface import Robot, RobotError
from uwm.runs import ControlRun


def make_robot(run: ControlRun, clock: Clock, threaded: bool = True) -> Robot:
    """The robot of a run, not connected; a simulated world lives in its own thread on the wall clock.

    ConfigError for options that it does not have or lacks; RobotError where its maker's client is not installed.
    """
    options = dict(run.options or {})
    try:
        robot = _simulated(run, clock, options, threaded) if run.robot == "simulated" else _MAKERS[run.robot](run, clock, options)
    except TypeError as error:  # an option that the robot does not have, or one that it lacks
        raise ConfigError(f"control.options of {run.robot}: {error}") from error
    if run.rate_hz is not None and abs(run.rate_hz - robot.spec.rate_hz) > 1e-6:
        raise ConfigError(f"control.rate_hz: {robot.spec.name} acts at {robot.spec.rate_hz:g} Hz, not {run.rate_hz:g}; leave it out")
    return robot


def _simulated(run: ControlRun, clock: Clock, options: dict, threaded: bool) -> Robot:
    from uwm.build import make_world
    from uwm.robot.robots.simulated import SimulatedRobot

    return SimulatedRobot(make_world(run.world), clock, run.seed, threaded, **options)


def _replay(run: ControlRun, clock: Clock, options: dict) -> Robot:
    import uwm_data
    from uwm.robot.robots.replay import ReplayRobot, recorded

    if "data" not in options:
        raise ConfigError("a replay needs options={data: STORE, episode: N}")
    with uwm_data.EpisodeStore.open(options.pop("data")) as store:
        episode = options.pop("episode", next(iter(store.episodes), 0))
        if episode not in store.episodes:
            raise ConfigError(f"control.options of replay: no episode {episode} in the store, which has {_range(store.episodes)}")
        arrays, spec = recorded(store, episode)
    return ReplayRobot(arrays, spec, clock, **options)


def _range(episodes: Sequence[int]) -> str:
    return f"{episodes[0]} to {episodes[-1]}" if len(episodes) else "none"


def _franka(run: ControlRun, clock: Clock, options: dict) -> Robot:
    from uwm.robot.robots.franka import FrankaRobot

    rate = {} if run.rate_hz is None else {"rate_hz": run.rate_hz}
    return FrankaRobot(clock=clock, **rate, **options)


def _dds(run: ControlRun, clock: Clock, options: dict) -> Robot:
    from uwm.robot.robots.dds import COMMANDS, DdsRobot

    if "limits" not in options or run.rate_hz is None:
        raise ConfigError("a robot on ROS 2 needs rate_hz and options={limits: {joint1: [-2.9, 2.9], ...}}")
    topic = options.get("commands", COMMANDS)
    whose = _file_name(f"dds-{options.get('domain', 0)}-{topic}")  # two controllers of one topic would fight
    return DdsRobot(clock=clock, rate_hz=run.rate_hz, **{"name": whose, **options})


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


# --------------------------------------------------------------------------------------------------------------- LeRobot


def _lerobot(run: ControlRun, clock: Clock, options: dict) -> Robot:
    """LeRobot's robot of `type` with its own `config` (cameras included); the other options are `LeRobotRobot`'s."""
    from uwm.robot.robots.lerobot import LeRobotRobot

    if not {"type", "limits"} <= set(options) or run.rate_hz is None:
        raise ConfigError("a LeRobot robot needs rate_hz and options={type: so101_follower, config: {port: ...}, limits: {...}}")
    kind, config = options.pop("type"), options.pop("config", None) or {}
    whose = _file_name("-".join(["lerobot", kind, *(str(config[key]) for key in ("id", "port") if config.get(key))]))
    return LeRobotRobot(_theirs(kind, config), clock, run.rate_hz, **{"name": whose, **options})


def _theirs(kind: str, config: dict) -> Any:
    """LeRobot's own robot object, from its registry and by its own reading of configs."""
    try:
        import draccus
        from lerobot.robots import RobotConfig, make_robot_from_config
    except ModuleNotFoundError as error:
        raise RobotError(f"robot=lerobot needs LeRobot beside us: pip install lerobot ({error})") from error
    missing = _register("lerobot.robots") | _register("lerobot.cameras")
    with suppress(ImportError):  # installed packages called lerobot_robot_..., where this LeRobot knows of such
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
    if kind not in RobotConfig.get_known_choices():
        hint = f"; not all could be looked at: {', '.join(sorted(missing))} missing" if missing else ""
        raise ConfigError(f"control.options of lerobot: {unknown(kind, RobotConfig.get_known_choices(), 'type')}{hint}")
    try:
        return make_robot_from_config(draccus.decode(RobotConfig, {"type": kind, **config}))
    except Exception as error:
        raise ConfigError(f"control.options of lerobot: LeRobot cannot make a {kind}: {' '.join(str(error).split())}") from error


def _register(package: str) -> set[str]:
    """Import what is in a package of LeRobot, which enters its choices in a registry; returns the names of packages that were missing."""
    missing = set()
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        try:
            importlib.import_module(module.name)
        except Exception as error:  # noqa: BLE001 - the motors' and cameras' own packages, which only who has them installs
            missing.add(getattr(error, "name", None) or module.name)
    return missing


_MAKERS = {"replay": _replay, "franka": _franka, "dds": _dds, "lerobot": _lerobot}
