"""A gymnasium world as a robot: it lives on the clock, whether anybody controls it or not.

```
period            0         1         2         3         4        one step of the world each
boundary          |---------|---------|---------|---------|
send              a    .    b    .         .    c    .
latch                  a         b        rest       c              the newest action at mid-period is what is executed
readings shown    o0        o1        o2        o3        o4       stamped with the boundary at the step's end
```

The grid begins with the tick of the first action (the `read` before it); until then the world waits and its sensors keep
measuring. An action may be half a period early or late and still meets its period; a period without one is a gap, in which
the robot does what its mode means: velocities and deltas are zero (the gripper keeps its value), an absolute target stays.

A step is computed at its latch and shown at its end, so a robosuite world in its own thread has half a period to compute and
`read` never waits for it. Where that is too short by more than a period the grid slips: the world runs in slow motion, and
`slipped` counts the periods.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from uwm.robot.clock import Clock, VirtualClock
from uwm.robot.interface import ActionSpec, Reading, RobotError, RobotSpec, SensorSpec
from uwm.robot.robots.hold import Hold

LATCH = 0.5  # of a period
EARLY = 0.05  # of a period: so much before its end a step is shown, for a controller whose first tick was the late one
LONGEST_PAUSE_S = 10.0  # a longer one is a jump of the clock: the grid moves and the world does not live through it
WAIT_S = 10.0  # for the world's thread to end


class SimulatedRobot:
    """`env` (a gymnasium world with a card) on `clock`. Each `connect` begins an episode with the next seed.

    `threaded`: the world runs in a thread of its own, for the wall clock; env must not have drawn a frame elsewhere, because
    a rendering context belongs to one thread. Otherwise steps are computed when somebody asks, which is deterministic on a
    virtual clock; then `read` and `send` belong to one thread. `velocity`, `acceleration`, `workspace`: see `spec_of`.
    `name`: refuses a second controller in any process of this machine (`uwm.robot.robots.hold`).

    `steps`, `gaps` (steps without an action), `slipped` (periods that the world could not keep up with), `success` and `ended`
    tell of the episode; a world that has ended goes on. `instruction`: what this episode asks for, "" where all ask for the card's.
    """

    def __init__(self, env: Any, clock: Clock, seed: int = 0, threaded: bool = False, name: str = "", **limits: Any):
        if threaded and isinstance(clock, VirtualClock):
            raise ValueError("a thread that sleeps on a virtual clock would move time for everybody: use threaded=False")
        self.env, self.clock = env, clock
        self.spec = spec_of(env, **limits)
        self._next_seed = seed
        self._hold, self._guard = Hold(name), threading.Lock()
        self._world = ThreadPoolExecutor(1, "world") if threaded else None
        self._life: Future | None = None
        self._stopped = False

    def connect(self) -> None:
        """Take hold and begin an episode. RobotError when another controller has it, or the world fails."""
        self._hold.take()
        try:
            self._begin()
        except BaseException:
            self._hold.release()
            raise

    def read(self) -> dict[str, Reading]:
        """The newest observation whose end has come; RobotError when the world failed."""
        self._hold.demand()
        self._keep_up()
        now = self.clock.now_s()
        with self._guard:
            self._asked_s = now
            while self._coming and self._coming[0][0] <= now + EARLY * self.spec.period_s:
                end_s, observation = self._coming.popleft()
                self._shown = (min(end_s, now), observation)
            stamp, observation = self._shown
            if not self._moves:  # a world that waits looks the same at each of its boundaries
                stamp += np.floor((now - stamp) * self.spec.rate_hz + 1e-9) * self.spec.period_s
        return {sensor: Reading(np.array(observation[sensor]), float(stamp)) for sensor in self.spec.sensors}

    def send(self, action: np.ndarray) -> np.ndarray:
        """Take `action` (A,) for the period whose latch comes next; returned as clipped to the limits. RobotError for NaN."""
        self._hold.demand()
        sent = clipped(self.spec.action, action)
        self._keep_up()
        with self._guard:
            if self._stopped:
                raise RobotError("the robot was stopped and stands still; close and connect it again to go on")
            if not self._moves:
                now = self.clock.now_s()
                thinking = now - self._asked_s < LATCH * self.spec.period_s
                self._origin_s = self._asked_s if thinking else now
                self._shown = (self._origin_s, self._shown[1])
                self._moves = True  # last: the world's thread looks at it first
            self._command = sent
        return sent.copy()

    def stop(self) -> None:
        """Stand still from the next latch on; refuses actions until it is connected again."""
        with self._guard:
            self._stopped, self._command = True, None

    def close(self) -> None:
        """Stop and let go. The world itself stays open: it belongs to whoever made it."""
        self.stop()
        life, self._life = self._life, None
        self._hold.release()
        if life is not None and not wait([life], timeout=WAIT_S).done:
            raise RobotError(f"the simulated world is still computing after {WAIT_S:g} s: end the process")

    def shut(self) -> None:
        """Close the robot and its world, in the world's own thread; it cannot be connected again."""
        self.close()
        self._in_world(self.env.close)
        if self._world is not None:
            self._world.shutdown()

    def __enter__(self) -> SimulatedRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    def _begin(self) -> None:
        seed, self._next_seed = self._next_seed, self._next_seed + 1
        observation, told = self._in_world(lambda: self.env.reset(seed=seed))
        self.instruction = str(told.get("instruction", ""))
        self.seed, self.steps, self.gaps, self.slipped, self.success, self.ended = seed, 0, 0, 0, False, False
        self._moves, self._stopped = False, False
        self._command, self._last = None, np.zeros(self.spec.action.size, np.float32)
        self._coming: deque[tuple[float, dict]] = deque()
        self._origin_s, self._asked_s = self.clock.now_s(), -np.inf
        self._shown = (self._origin_s, observation)
        if self._world is not None:
            self._life = self._world.submit(self._live)

    def _in_world(self, work: Any) -> Any:
        return work() if self._world is None else self._world.submit(work).result()

    def _live(self) -> None:
        """The world's thread: asleep from latch to latch until the hold is released."""
        while self._hold.taken:
            self._advance()
            now = self.clock.now_s()
            nap = now + 0.1 * self.spec.period_s  # short: a first action or the end may come at any time
            self.clock.sleep_until(min(nap, self._next_latch_s()) if self._moves else nap)

    def _keep_up(self) -> None:
        if self._world is None:
            self._advance()
        elif self._life is not None and self._life.done() and self._life.exception() is not None:
            raise RobotError(f"the simulated world failed: {self._life.exception()}") from self._life.exception()

    def _next_latch_s(self) -> float:
        return self._origin_s + (self.steps + LATCH) * self.spec.period_s

    def _advance(self) -> None:
        """Run every step whose latch has come."""
        now = self.clock.now_s()
        behind_s = now - self._next_latch_s()
        if self._moves and behind_s > LONGEST_PAUSE_S:
            self._origin_s += np.floor(behind_s * self.spec.rate_hz) * self.spec.period_s
        while self._moves and self._next_latch_s() <= now + 1e-9:
            self._step()

    def _step(self) -> None:
        with self._guard:
            command, self._command = self._command, None
            self.gaps += command is None and not self._stopped
            self._last = rest(self.spec.action, self._last) if command is None else command
            action = self._last
        try:
            observation, _, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise RobotError(f"the simulated world failed: {error}") from error
        with self._guard:
            self.steps += 1
            self.success |= bool(info.get("success", False))
            self.ended |= bool(terminated or truncated)
            end_s = self._origin_s + self.steps * self.spec.period_s
            if self._world is not None:
                late = max(0, int((self.clock.now_s() - end_s) * self.spec.rate_hz))
                self.slipped, self._origin_s, end_s = self.slipped + late, *(t + late * self.spec.period_s for t in (self._origin_s, end_s))
            self._coming.append((end_s, observation))


def rest(spec: ActionSpec, last: np.ndarray) -> np.ndarray:
    """The action (A,) of standing still after `last`: its target, or zeros with the gripper kept, inside the limits."""
    if spec.mode == "absolute":
        return last.copy()
    still = np.clip(np.zeros_like(last), spec.low, spec.high).astype(np.float32)
    still[list(spec.gripper)] = last[list(spec.gripper)]
    return still


def clipped(spec: ActionSpec, action: np.ndarray) -> np.ndarray:
    """`action` as float32 (A,) inside the limits, as a copy; RobotError for another shape, for NaN and for what is no number."""
    try:
        vector = np.array(action, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise RobotError(f"an action is {spec.size} numbers ({', '.join(spec.names)}), got {action!r}") from error
    if vector.shape != (spec.size,):
        raise RobotError(f"an action is {spec.size} numbers ({', '.join(spec.names)}), got shape {vector.shape}")
    if not np.isfinite(vector).all():
        index = int(np.argmin(np.isfinite(vector)))
        raise RobotError(f"action {spec.names[index]} is {vector[index]}: nothing was sent; check the policy that made it")
    return np.clip(vector, spec.low, spec.high).astype(np.float32)


def spec_of(
    env: Any,
    velocity: float | np.ndarray = np.inf,
    acceleration: float | np.ndarray = np.inf,
    workspace: dict[int, tuple[float, float]] | None = None,
    stale_after_s: float = 0.5,
) -> RobotSpec:
    """The specification of a world, from its card and spaces.

    `velocity`, `acceleration`: limits of the action's change, per second, for all dimensions or (A,); without them none, so
    that a world behaves as in evaluation. `workspace`: {proprio dimension: (low, high)} in the proprioception's units.
    """
    card, space = env.unwrapped.card, env.observation_space
    told, size = card["action"], len(card["action"]["names"])
    low, high = (np.asarray(value, np.float32).copy() for value in (env.action_space.low, env.action_space.high))
    fill = lambda value: np.broadcast_to(np.asarray(value, np.float32), (size,)).copy()  # noqa: E731
    gripper = tuple(index for index, name in enumerate(told["names"]) if "gripper" in name)
    action = ActionSpec(
        tuple(told["names"]), tuple(told["units"]), low, high, fill(velocity), fill(acceleration), told["mode"], gripper
    )  # fmt: skip
    sensors = {
        name: SensorSpec(box.shape, str(box.dtype), card["rate_hz"], tuple(card.get(name, {}).get("units", ())), stale_after_s)
        for name, box in space.spaces.items()
    }
    return RobotSpec(f"simulated {card['env']}", card["rate_hz"], action, sensors, dict(workspace or {}), card)
