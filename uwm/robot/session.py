"""One client's episode with a policy: its own memory, and answers that are given once however often they are asked for.

```
request    sequence 7, observation, executed (what became of the actions of answer 6)
                |
           7 asked before? -- yes --> the same answer again, nothing moves
                | no
           memory <- done(memory, executed)      the actions that went to the robot become the given past
           memory, actions <- act(memory, observation)
                |
answer     sequence 7, actions (chunk, A), calls
```

The same `Session` stands behind the server, the in-process client and the shared-memory client: one set of rules. A request
is a plain dict of arrays and numbers (`uwm.robot.wire` makes bytes of it); its fields besides the observation are

| field | means |
|---|---|
| `sequence` | number of the request, counting up; without it every request is a new one |
| `executed` | (chunk, A) what was really sent since the last answer; without it, that answer as it was |
| `reset`, `seed` | true begins a new episode first, with this seed of the noise |
| `stamp_s` | when the observation was made, in the client's seconds: comes back as it was |
| `plan` | the fields of a `uwm.robot.inference.Job` in the place of all others but `sequence` |

A policy with a history looks at earlier observations of the session: those of its requests, each a chunk of ticks behind the last.
What fell on no request is not known, and absent; a client that sees every tick sends jobs, which carry their `earlier` observations.

A job carries its memory with it and takes the new one home, so a controller's episode lives in the controller: any server of
the same checkpoint goes on with it, also one that was started a moment ago, with the very same actions.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import interpolate

from uwm.robot.history import History, observe
from uwm.robot.inference import Answer, Job

LONGEST = 1000  # actions in a job's queue, or executed since the last one
FIELDS = ("session", "sequence", "executed", "reset", "seed", "stamp_s", "deadline_s", "prompt")


class RequestError(ValueError):
    """A request that the policy cannot answer: what was expected, what arrived, what to try. The session stays as it was."""


class Acting(Protocol):
    """What a session needs of a policy (`uwm.robot.policy.Policy` has it): no state of an episode, `calls` counts up."""

    calls: int

    def start(self, seeds: Any) -> Any: ...

    def act(self, memory: Any, observation: Any) -> tuple[Any, Any]: ...

    def done(self, memory: Any, executed: Any) -> Any: ...


@dataclass(frozen=True)
class Schema:
    """What an observation must be: cameras with the side of their square pictures, proprioception and action sizes.

    `names`: other names for our keys, e.g. {"observation/image": "agentview"}. `low`, `high`: what actions are clipped to.
    `history`: how many ticks ago the earlier observations are that the policy looks at.
    """

    cameras: tuple[str, ...]
    image_size: int
    proprio_size: int
    action_size: int
    chunk: int
    names: Mapping[str, str] = field(default_factory=dict)
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    history: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("low", "high"):
            if len(getattr(self, name) or [0] * self.action_size) != self.action_size:
                raise ValueError(f"{name} needs {self.action_size} limits, one per number of an action, got {getattr(self, name)}")

    @property
    def keys(self) -> dict[str, str]:
        """Every name that a request may use for an observation, and ours for it: openpi's names first."""
        found = {"observation/state": "proprio"}
        for name in self.cameras:
            found.setdefault("observation/wrist_image" if _on_the_hand(name) else "observation/image", name)
        for name in ("proprio", *self.cameras):
            found |= {name: name, f"observation/{name}": name}
        return {**found, **self.names}

    def observation(self, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The request's observation under our names, pictures at the model's size. RequestError says what does not fit.

        A camera may be missing (the model then does without it), but not all of them, and not the proprioception.
        """
        found = self._named(request)
        if "proprio" not in found:
            raise RequestError(f"the observation has no robot state: send {self.proprio_size} numbers as 'observation/state'")
        if self.cameras and len(found) == 1:
            raise RequestError(f"the observation has no picture: send at least one of {list(self.cameras)}")
        return found

    def _named(self, request: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What there is of an observation."""
        found: dict[str, np.ndarray] = {}
        for key, value in request.items():
            if key in self.keys:
                name = self.keys[key]
                if name in found:
                    raise RequestError(f"{name!r} is there twice, the second time as {key!r}: send it once")
                found[name] = self._proprio(key, value) if name == "proprio" else self._image(key, value)
            elif key not in FIELDS:
                close = difflib.get_close_matches(str(key), self.keys, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise RequestError(f"unknown key {key!r:.60}: {hint}an observation has {sorted(self.keys)}")
        try:
            return History(1).add(found).seen[-1]
        except ValueError as error:  # NaN, with its place
            raise RequestError(str(error)) from error

    def _proprio(self, key: str, value: Any) -> np.ndarray:
        value = np.asarray(value) if isinstance(value, list | tuple | np.ndarray) else None
        if value is None or value.dtype.kind not in "iuf" or value.shape != (self.proprio_size,):
            arrived = "no array" if value is None else f"{value.dtype} {value.shape}"
            raise RequestError(f"{key!r} must be {self.proprio_size} numbers, got {arrived}: state in the order of the training data")
        return value.astype(np.float32)

    def _image(self, key: str, value: Any) -> np.ndarray:
        wanted = f"{key!r} must be a uint8 picture (height, width, 3)"
        if not isinstance(value, np.ndarray):
            raise RequestError(f"{wanted}, got {type(value).__name__}: send a numpy array")
        if value.dtype != np.uint8:
            raise RequestError(f"{wanted}, got {value.dtype}: values 0 to 255, not fractions of 1")
        if value.ndim != 3 or value.shape[2] != 3:
            hint = "the colours come last: transpose it" if value.ndim == 3 and value.shape[0] == 3 else "no batch axis, three colours"
            raise RequestError(f"{wanted}, got {value.shape}: {hint}")
        if min(value.shape) < 1 or max(value.shape) > 4096:
            raise RequestError(f"{wanted} of at most 4096 pixels a side, got {value.shape}")
        return resized(value, self.image_size)

    def actions(self, request: Mapping[str, Any], name: str, count: int | None = None) -> np.ndarray:
        """Some actions of a request in physical units, (count, A), or any number of them up to LONGEST."""
        value = request.get(name)
        fits = isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.ndim == 2 and value.shape[1] == self.action_size
        if not fits or len(value) != (len(value) if count is None else count) or len(value) > LONGEST or not np.isfinite(value).all():
            arrived = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            many = f"at most {LONGEST}" if count is None else count
            raise RequestError(f"{name!r} must be an array of {many} actions of {self.action_size} finite numbers, got {arrived}")
        return value.astype(np.float32)

    def job(self, plan: Any) -> Job:
        """A controller's job that arrived as a map. RequestError says what does not fit; the memory is checked apart."""
        if not isinstance(plan, Mapping) or not isinstance(plan.get("observation"), Mapping) or set(plan) - set(Job.__dataclass_fields__):
            raise RequestError(f"'plan' must be a map with the fields of a job, {sorted(Job.__dataclass_fields__)}")
        numbers = {
            name: _number(plan, name, default) for name, default in (("index", 0), ("tick", 0), ("delay", 0), ("count", 1), ("seed", 0))
        }
        if not 1 <= numbers["count"] <= LONGEST:
            raise RequestError(f"'count' must be 1 to {LONGEST} chunks, got {numbers['count']}")
        arrays = {name: self.actions(plan, name) for name in ("queue", "executed")}
        observation, earlier = self.observation(plan["observation"]), self._earlier(plan.get("earlier", ()))
        return Job(observation=observation, restart=plan.get("restart") is True, **numbers, **arrays, earlier=earlier)

    def _earlier(self, told: Any) -> tuple[dict[str, np.ndarray], ...]:
        if not isinstance(told, list | tuple) or len(told) not in (0, len(self.history)) or not all(isinstance(e, Mapping) for e in told):
            raise RequestError(f"'earlier' lists what was seen {list(self.history)} ticks ago, a map each, or nothing; got {told!r:.40}")
        return tuple(self._named(each) for each in told)

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Actions inside the limits of the training data's robot, as in evaluation."""
        return actions if self.low is None else np.clip(actions, np.float32(self.low), np.float32(self.high))


def _on_the_hand(camera: str) -> bool:
    return any(part in camera.lower() for part in ("wrist", "hand", "gripper"))


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A uint8 picture (H, W, 3) as (side, side, 3) by the rule of training: bilinear, averaging where it shrinks."""
    if image.shape[:2] == (side, side):
        return image
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float()
    small = interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small[0].round().clamp(0, 255).to(torch.uint8).movedim(0, -1).numpy()


@dataclass(frozen=True)
class Served:
    """A policy that can be asked: what observations it takes, what is told about it, and how full its buffer is.

    `about`: plain values for a client (checkpoint, units, rate). `levels`: memory -> one noise level per chunk of the buffer.
    `planner`: what answers a controller's jobs; `example`: a job's memory, to which those that arrive are compared.
    """

    policy: Acting
    schema: Schema
    about: Mapping[str, Any] = field(default_factory=dict)
    levels: Callable[[Any], list[float]] | None = None
    planner: Callable[[Job], Answer] | None = None
    example: Mapping[str, np.ndarray] = field(default_factory=dict)

    def memory(self, arrived: Any) -> dict[str, np.ndarray] | None:
        """A job's memory, refused unless it has the names, dtypes and shapes of ours (any number of samples of the moment)."""
        if arrived is None:
            return None
        fits = isinstance(arrived, Mapping) and set(arrived) == set(self.example)
        if not fits or not all(_alike(arrived[name], like) for name, like in self.example.items()):
            raise RequestError("the job's memory is none of this policy's: start the episode anew with memory None")
        return {name: np.array(value) for name, value in arrived.items()}


class Session:
    """The episode of one client. `answer` is not for two threads at once; sessions share nothing but the policy's weights."""

    def __init__(self, served: Served, seed: int = 0):
        self.served, self.seed = served, seed
        self.memory: Any = None
        self.sent: np.ndarray | None = None  # the last actions, until it is known what became of them
        self.sequence = -1
        self.last: dict[str, Any] | None = None
        self.seen: dict[str, np.ndarray] = {}
        self.history = History.reaching(served.schema.history)
        self.calls = self.actions = self.requests = 0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request; to the last one asked again, the same answer with `repeated` true."""
        sequence = _number(request, "sequence", self.sequence + 1)
        if self.last is not None and sequence == self.sequence:
            return {**self.last, "repeated": True}
        if sequence < self.sequence:
            raise RequestError(f"sequence {sequence} was answered before {self.sequence}: count up, or reset with a new number")
        reset = request.get("reset", False)
        if not isinstance(reset, bool | np.bool_):
            raise RequestError(f"'reset' must be true or false, got {reset!r:.40}")
        stamp = _stamp(request)
        nothing_to_see = bool(reset) and not any(key in self.served.schema.keys for key in request)
        if "plan" in request:
            answer = self._planned(request)
        else:
            answer = self._begun(request) if nothing_to_see else self._acted(request, bool(reset))
        self.requests += 1
        self.sequence, self.last = sequence, {**answer, "sequence": sequence, **stamp}
        return {**self.last, "repeated": False}

    def levels(self) -> list[float]:
        """Noise level per chunk of the action buffer, clean first; empty before the first action."""
        return [] if self.memory is None or self.served.levels is None else self.served.levels(self.memory)

    def _begun(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.memory, self.sent, self.seen = self.served.policy.start([_number(request, "seed", self.seed)]), None, {}
        self.history = History(self.history.length)
        return {"reset": True, "calls": 0}

    def _planned(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A controller's job: nothing of the episode stays here."""
        if self.served.planner is None:
            raise RequestError("this policy takes no jobs of a controller, only observations")
        others = set(request) - {"plan", "session", "sequence", "deadline_s"}
        if others:
            raise RequestError(f"a request with a 'plan' has nothing else in it, got also {sorted(map(str, others))}")
        job, memory = self.served.schema.job(request["plan"]), self.served.memory(request["plan"].get("memory"))
        answer = self.served.planner(replace(job, memory=memory))
        self.seen = job.observation
        self.calls, self.actions = self.calls + answer.calls, self.actions + len(answer.actions)
        return {"actions": answer.actions, "memory": answer.memory, "calls": answer.calls}

    def _acted(self, request: Mapping[str, Any], reset: bool) -> dict[str, Any]:
        """Nothing of the session changes unless all of it went well."""
        policy, schema = self.served.policy, self.served.schema
        seen = schema.observation(request)
        executed = schema.actions(request, "executed", schema.chunk) if "executed" in request else None
        memory, sent = (None, None) if reset else (self.memory, self.sent)
        history = History(self.history.length) if memory is None else self.history
        if memory is None:
            memory = policy.start([_number(request, "seed", self.seed)])
        executed = sent if executed is None else executed
        if executed is not None:
            # Also into a fresh memory: after a restart of the server the next chunk begins from what the robot did.
            memory = policy.done(memory, torch.from_numpy(executed)[None])
            history = history.missed(schema.chunk - 1)
        before, history = policy.calls, history.add(seen)
        memory, actions = policy.act(memory, observe([seen], schema.cameras, [history.earlier(schema.history)]))
        actions = schema.clip(np.array(actions[0], np.float32))
        if not np.isfinite(actions).all():
            raise RequestError("the policy produced an action that is not finite; check the observation and the checkpoint")
        calls = policy.calls - before
        self.memory, self.sent, self.seen, self.history = memory, actions, seen, history
        self.calls, self.actions = self.calls + calls, self.actions + len(actions)
        return {"actions": actions, "calls": calls, "reset": reset}


def _alike(arrived: Any, like: np.ndarray) -> bool:
    """Whether an array is as another but for its first axis, the number of samples."""
    return (
        isinstance(arrived, np.ndarray)
        and (arrived.ndim, arrived.dtype) == (like.ndim, like.dtype)
        and arrived.shape[1:] == like.shape[1:]
        and 0 < len(arrived) <= 64 * len(like)
    )


def _number(request: Mapping[str, Any], name: str, default: int) -> int:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise RequestError(f"{name!r} must be a whole number from 0 on, got {value!r:.40}")
    return int(value)


def _stamp(request: Mapping[str, Any]) -> dict[str, Any]:
    stamp = request.get("stamp_s")
    if stamp is not None and (isinstance(stamp, bool) or not isinstance(stamp, int | float | np.floating | np.integer)):
        raise RequestError(f"'stamp_s' must be seconds, got {stamp!r:.40}")
    return {} if stamp is None else {"stamp_s": float(stamp)}
