"""Asking a policy for actions: in this process, in another one through shared memory, or over a network; one interface.

```
session.act(observation, executed=None) -> actions (chunk, A)     an episode there: reset(seed=None), close()
session.plan(job) -> answer                                       a controller's job, which carries its memory

LocalSession          the policy itself
SharedMemorySession   observation --shared block--> process --shared block--> actions        no network, no copies by a socket
PolicyClient          observation --WebSocket--> `uwm serve`                                  reconnects
```

`executed` is what really went to the robot since the last answer; left out, the last answer as it was. Every request has a
number. A client that loses its connection asks again *with the same number*; the server, if it acted already, gives the same
answer: no action is lost, none is computed twice. What cannot be had in time is a `PolicyError`, never an old action.
"""

from __future__ import annotations

import inspect
import ssl
import struct
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

import numpy as np

from uwm.core.config import from_mapping
from uwm.robot import wire
from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.inference import Answer, Job
from uwm.robot.policy import PolicyCard, PolicyConfig
from uwm.robot.processes import deaf_to_interrupts
from uwm.robot.session import Served, Session

EXTRA = "speaking to a policy server needs websockets: pip install 'uwm[serve]'"


class PolicyError(RuntimeError):
    """No actions: what happened, and what to try. The controller answers with its safe behaviour."""


class PolicyTimeout(PolicyError):
    """No actions in time; asking again is sensible."""


class ActingSession(Protocol):
    """One episode with a policy, wherever that runs. `answer` is all that came with the last actions (calls, timing, stale)."""

    answer: Mapping[str, Any]

    def act(self, observation: Mapping[str, np.ndarray], executed: np.ndarray | None = None, stamp_s: float | None = None) -> np.ndarray:
        """Actions (chunk, A) in physical units. PolicyError when there are none in time."""

    def plan(self, job: Job) -> Answer:
        """The answer to a controller's job."""

    def reset(self, seed: int | None = None) -> None:
        """Begins a new episode with its next `act`."""

    def close(self) -> None:
        """Lets go of the policy."""


class _Numbered:
    """What the three ways share: numbering requests, remembering a reset, and reading an answer."""

    def __init__(self):
        self.sequence = 0
        self.answer: Mapping[str, Any] = {}
        self._reset: dict[str, Any] = {}

    def act(self, observation: Mapping[str, np.ndarray], executed: np.ndarray | None = None, stamp_s: float | None = None) -> np.ndarray:
        """Actions (chunk, A) in physical units. PolicyError when there are none in time."""
        extra = {"executed": executed, "stamp_s": stamp_s}
        given = {name: value for name, value in extra.items() if value is not None}
        actions = self._asked({**observation, **self._reset, **given})
        self._reset = {}
        return actions

    def plan(self, job: Job) -> Answer:
        """What a `Planner` there makes of a controller's job: give this method to a worker. PolicyError when nothing comes in time."""
        fields = {name: getattr(job, name) for name in Job.__dataclass_fields__ if name != "submitted_s"}
        actions = self._asked({"plan": fields})
        memory = {name: np.array(value) for name, value in self.answer["memory"].items()}
        return Answer(actions, memory, self.answer["calls"])

    def _asked(self, request: dict) -> np.ndarray:
        number, self.sequence = self.sequence, self.sequence + 1  # whatever happens now, the number is used for no other request
        answer = self._ask({**request, "sequence": number})
        if answer.get("sequence") != number or not isinstance(answer.get("actions"), np.ndarray):
            raise PolicyError(f"an answer {answer.get('sequence')!r:.20} came to request {number}: what answers is no server of ours")
        self.answer = answer
        return np.array(answer["actions"], np.float32)

    def reset(self, seed: int | None = None) -> None:
        """Begins a new episode with its next `act`."""
        self._reset = {"reset": True} if seed is None else {"reset": True, "seed": seed}

    def _ask(self, request: dict) -> Mapping[str, Any]:
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Lets go of the policy."""


class LocalSession(_Numbered):
    """The policy in this process."""

    def __init__(self, served: Served, seed: int = 0):
        super().__init__()
        self.session = Session(served, seed)

    def _ask(self, request: dict) -> Mapping[str, Any]:
        try:
            return self.session.answer(request)
        except ValueError as error:
            raise PolicyError(str(error)) from error


# ------------------------------------------------------------------------------------------------------- shared memory


class SharedMemorySession(_Numbered):
    """The policy in a process of its own, observations and actions in shared memory, a pipe to ring the bell.

    ```
    block   | request                        | answer        |
    pipe    --- length -->   <-- length ---
    ```

    One request at a time, so each half of the block has one writer and one reader, and the bell says whose turn it is.
    `make() -> Served` is called in the new process; it must be importable there. A process that dies is a PolicyError at
    once; one that hangs is a PolicyTimeout after `timeout_s`, and its late answer is thrown away.
    """

    def __init__(self, make: Callable[[], Served], seed: int = 0, timeout_s: float = 2.0, start_s: float = 120.0, size: int = 2**24):
        super().__init__()
        self.timeout_s, self._size, self._waiting = timeout_s, size, False
        context = get_context("spawn")
        self._block = SharedMemory(create=True, size=2 * size)
        self._bell, theirs = context.Pipe()
        self._process = context.Process(target=_answer_from_memory, args=(self._block.name, size, theirs, make, seed), daemon=True)
        try:
            with deaf_to_interrupts():
                self._process.start()
            theirs.close()
            self._wait(start_s, "did not start")
        except BaseException:
            self.close()
            raise

    def _ask(self, request: dict) -> Mapping[str, Any]:
        if self._waiting:
            self._wait(self.timeout_s, "is still busy with an earlier request")  # thrown away: it is too old
        data = wire.pack(request)
        if len(data) > self._size:
            raise PolicyError(f"the observation has {len(data)} bytes, the shared block {self._size}: make it larger (size=)")
        self._block.buf[: len(data)] = data
        self._waiting = True
        try:
            self._bell.send_bytes(struct.pack("<Q", len(data)))
        except OSError as error:
            raise self._died() from error
        answer = wire.unpack(self._wait(self.timeout_s, "did not answer"))
        if "error" in answer:
            raise PolicyError(answer["error"])
        return answer

    def _wait(self, timeout_s: float, what: str) -> bytes:
        """The next answer's bytes, copied out of the block."""
        try:
            if not self._bell.poll(timeout_s):
                raise PolicyTimeout(f"the policy process {what} within {timeout_s:g} s")
            (length,) = struct.unpack("<Q", self._bell.recv_bytes(8))
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._waiting = False
        return bytes(self._block.buf[self._size : self._size + length])

    def _died(self) -> PolicyError:
        self._process.join(1.0)
        return PolicyError(f"the policy process died (exit code {self._process.exitcode}): start a new session")

    def close(self) -> None:
        """Ends the process, at once if it does not end by itself, and frees the block. Twice does no harm."""
        self._bell.close()
        if self._process.pid is not None:
            self._process.join(1.0)
            self._process.kill()
            self._process.join()
        try:
            self._block.close()
            self._block.unlink()
        except FileNotFoundError:
            pass


def _answer_from_memory(name: str, size: int, bell: Any, make: Callable[[], Served], seed: int) -> None:
    """The other process: answers until the pipe closes."""
    block = SharedMemory(name)
    session = Session(make(), seed)

    def ring(data: bytes) -> None:
        block.buf[size : size + len(data)] = data
        bell.send_bytes(struct.pack("<Q", len(data)))

    ring(b"")
    try:
        while True:
            (length,) = struct.unpack("<Q", bell.recv_bytes(8))
            try:
                answer = session.answer(wire.unpack(bytes(block.buf[:length])))
            except ValueError as error:
                answer = {"error": str(error)}
            ring(wire.pack(answer))
    except (EOFError, OSError):
        block.close()


# -------------------------------------------------------------------------------------------------------------- network


class PolicyClient(_Numbered):
    """A policy server's client that comes back after a lost connection, with its session and the number of its request.

    ```
    request 7 --> x        connection lost; wait 0.05 s, 0.1 s, 0.2 s ... 1 s
    connect, request 7 (same session) --> answer 7        once, also if the server had acted before the line broke
    ```

    `timeout_s` bounds every `act`, reconnecting included. `connect(url, timeout_s)` makes a connection with `send`, `recv(timeout)` and
    `close`; tests give their own. A server that was started anew knows no sessions: it begins from `executed`, and
    `answer["resumed"]` is false. One that serves another policy than before is refused.
    """

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        token: str = "",
        timeout_s: float = 2.0,
        certificate: str | None = None,
        connect: Callable[[str, float], Any] | None = None,
    ):
        super().__init__()
        self.url, self.timeout_s, self.clock = url, timeout_s, clock or MonotonicClock()
        self._connect = connect or _websocket(token, certificate)
        self._connection: Any = None
        self._session: str | None = None
        self.metadata: dict[str, Any] = {}
        self.reconnects = -1  # the first connection is none
        self._until(self._connected)

    @property
    def card(self) -> PolicyCard:
        """What a controller must know of the policy over there."""
        if "room" not in self.metadata:
            raise PolicyError(f"{self.url} takes no jobs of a controller: it is no `uwm serve`, or of another version")
        config = from_mapping(PolicyConfig, self.metadata["policy"], self.url)
        return PolicyCard(config, self.metadata["room"], tuple(self.metadata["cameras"]), tuple(self.metadata.get("history", ())))

    def _ask(self, request: dict) -> Mapping[str, Any]:
        answer = self._until(lambda until_s: self._exchange(request, until_s))
        self._session = answer.get("session", self._session)
        return answer

    def _exchange(self, request: dict, until_s: float) -> Mapping[str, Any]:
        """Sends and receives once, on a connection that may have to be made first."""
        connection = self._connected(until_s)
        named = {} if self._session is None else {"session": self._session}
        connection.send(wire.pack({**request, **named}))
        reply = connection.recv(self._left_s(until_s))
        if isinstance(reply, str):
            self._dropped()
            raise PolicyError(f"the policy server refused: {reply}")
        answer = self._read(reply)
        if answer.get("sequence") != request["sequence"]:
            self._dropped()  # or every later answer would be another request's, too
        return answer

    def _read(self, reply: bytes) -> dict:
        try:
            return wire.unpack(reply)
        except wire.WireError as error:
            raise PolicyError(f"what answers at {self.url} is no policy server: {error}") from error

    def _left_s(self, until_s: float) -> float:
        return max(until_s - self.clock.now_s(), 1e-3)

    def _until(self, attempt: Callable[[float], Any]) -> Any:
        """`attempt` until it succeeds or `timeout_s` is over, with longer and longer pauses between."""
        until_s, pause_s = self.clock.now_s() + self.timeout_s, 0.05
        while True:
            try:
                return attempt(until_s)
            except Exception as error:
                if not _passing(error):
                    raise
                self._dropped()
                now_s = self.clock.now_s()
                if now_s + pause_s >= until_s:
                    why = str(error) or type(error).__name__
                    raise PolicyTimeout(
                        f"no answer from {self.url} within {self.timeout_s:g} s ({why}): is `uwm serve` running?"
                    ) from error
            self.clock.sleep_until(now_s + pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _connected(self, until_s: float) -> Any:
        if self._connection is None:
            connection = self._connect(self.url, self._left_s(until_s))
            try:
                metadata = self._read(connection.recv(self._left_s(until_s)))
                self._refuse_another_policy(metadata)
            except BaseException:
                connection.close()
                raise
            self._connection, self.metadata = connection, metadata
            self._session = self._session or metadata.get("session")
            self.reconnects += 1
        return self._connection

    def _refuse_another_policy(self, metadata: Mapping[str, Any]) -> None:
        names = ("checkpoint", "action_size", "proprio_size", "chunk", "cameras", "history")
        wrong = [name for name in names if self.metadata and metadata.get(name) != self.metadata.get(name)]
        if wrong:
            told = "; ".join(f"{name} was {self.metadata.get(name)!r}, now {metadata.get(name)!r}" for name in wrong)
            raise PolicyError(f"another policy answers at {self.url} now: {told}. Start the controller anew if that is meant")

    def _dropped(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def close(self) -> None:
        """Leaves the server."""
        self._dropped()


def _passing(error: Exception) -> bool:
    """Whether it may work a moment later: the network, or a server that is full, starting or going away."""
    if isinstance(error, ssl.SSLCertVerificationError):
        raise PolicyError(f"the server's certificate is not trusted: {error.verify_message}; give its own as certificate=") from error
    if isinstance(error, PolicyError):
        return False
    response = getattr(error, "response", None)  # an HTTP answer instead of a WebSocket
    if response is not None and response.status_code < 500:
        raise PolicyError(f"the server answers {response.status_code}: {response.body.decode(errors='replace').strip()}") from error
    return isinstance(error, OSError | EOFError | TimeoutError) or type(error).__module__.startswith("websockets")


def _websocket(token: str, certificate: str | None) -> Callable[[str, float], Any]:
    """Makes connections; `certificate` is the server's own, where no authority has signed it."""
    try:
        from websockets.sync.client import connect
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(EXTRA, name="websockets") from error
    headers = {"Authorization": f"Api-Key {token}"} if token else None
    options: dict[str, Any] = {"compression": None, "max_size": 2**24, "additional_headers": headers, "close_timeout": 0.2}
    if "proxy" in inspect.signature(connect).parameters:
        options["proxy"] = None  # a robot's actions take no detour
    if certificate:
        options["ssl"] = ssl.create_default_context(cafile=certificate)
    # From 17 on a connection is opened by entering; before, it was open and entering returned it.
    return lambda url, timeout_s: connect(url, open_timeout=timeout_s, **options).__enter__()
