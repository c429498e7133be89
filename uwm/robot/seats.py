"""Sessions of a policy server: who sits where, who comes back to his memory, and who has to go.

```
new client ---> a seat of its own: session, memory, secret name
     '-- its first request names an earlier seat --> that one again, and the new one goes
connection lost --> the seat stays `idle_s` for its client to come back; a full server gives it away before, the longest unused first
```
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from uwm.robot.clock import Clock
from uwm.robot.metrics import Metrics
from uwm.robot.server_config import ServerConfig
from uwm.robot.session import RequestError, Served, Session


@dataclass
class Seat:
    """A session on this server: its secret name, the connection that has it now, and its rate."""

    name: str
    number: int
    session: Session
    used_s: float
    next_s: float = 0.0
    connection: Any = None
    last_ms: float | None = None


class Seats:
    """All seats of a server by their names; lives in its event loop. `seed` of every session's noise."""

    def __init__(self, served: Served, config: ServerConfig, clock: Clock, metrics: Metrics, seed: int):
        self.served, self.config, self.clock, self.metrics, self.seed = served, config, clock, metrics, seed
        self._seats: dict[str, Seat] = {}
        self._closing: set[asyncio.Future] = set()

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[str]:
        return iter(self._seats)

    def by_use(self) -> list[Seat]:
        """All seats, the one used last first."""
        return sorted(self._seats.values(), key=lambda seat: -seat.used_s)

    def has_room(self) -> bool:
        """Whether one more session fits, after those have gone that no connection holds, the longest unused first."""
        while len(self._seats) >= self.config.sessions:
            left = [seat for seat in self._seats.values() if seat.connection is None]
            if not left:
                return False
            self._drop(min(left, key=lambda seat: seat.used_s))
        return True

    def new(self) -> Seat | None:
        """A seat with a session that begins; None when the server is full."""
        if not self.has_room():
            return None
        self.metrics.add("sessions_opened")
        number = self.metrics.counts["sessions_opened"]
        # The name lets a client come back to its memory: a secret, so not from a seeded generator.
        seat = Seat(secrets.token_hex(16), number, Session(self.served, self.seed), self.clock.now_s())
        self._seats[seat.name] = seat
        return seat

    def resume(self, seat: Seat, request: Mapping, connection: Any) -> tuple[Seat, bool]:
        """The session that the request names, if it is still here; else the connection's own."""
        name = request.get("session", seat.name)
        if not isinstance(name, str):
            raise RequestError(f"'session' must be the text from the metadata, got {type(name).__name__}")
        if name == seat.name:
            return seat, True
        earlier = self._seats.get(name)
        if earlier is None:
            return seat, False  # a server that was started anew, or a session that expired: the answer says so
        if earlier.connection not in (None, connection):
            self._close(earlier.connection, "this session goes on in another connection")
        self._drop(seat, expired=False)
        self.metrics.add("sessions_resumed")
        earlier.connection = connection
        return earlier, True

    def leave(self, seat: Seat, connection: Any) -> None:
        """The connection is gone; its session waits for its client, if there is anything to come back to."""
        if seat.connection is connection:
            seat.connection = None
            if not seat.session.requests:
                self._drop(seat, expired=False)

    async def expire(self) -> None:
        """Drops sessions that nobody asked for in `idle_s`, and tells their connections; until it is cancelled."""
        while True:
            await asyncio.sleep(min(self.config.idle_s / 4, 5.0))
            for seat in list(self._seats.values()):
                if self.clock.now_s() - seat.used_s > self.config.idle_s:
                    self._drop(seat)
                    if seat.connection is not None:
                        self._close(seat.connection, f"no request for {self.config.idle_s:g} s")

    def _drop(self, seat: Seat, expired: bool = True) -> None:
        self._seats.pop(seat.name, None)
        self.metrics.add("sessions_expired", int(expired))

    def _close(self, connection: Any, reason: str) -> None:
        """Closes a connection without waiting for its client."""
        closing = asyncio.ensure_future(connection.close(1001, reason))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
