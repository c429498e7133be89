"""A policy behind a WebSocket, spoken as openpi's clients speak it, with a memory of its own for every client.

```
client                                   server (one event loop)                 worker (one thread)
connect  ------------------------------>  token? room? -> session
         <---- metadata (binary) -------
observation (binary) ------------------>  size, rate, msgpack ------- queue ---> schema, memory, network
         <---- actions (binary) --------  <------------------------------------- answer kept under its number
         <---- text, close 1011 --------  anything that is wrong, in words
GET /healthz /metrics /status.json /     plain HTTP on the same port
```

What openpi's own client ignores rides along: `session` in the metadata and `sequence` in request and answer. A client that
comes back sends both with its next request and has its memory again; a number that was already answered gets the same answer
(`uwm.robot.session`). A session without a connection waits `idle_s` for that.

The protocol: openpi, `scripts/serve_policy.py` and `WebsocketClientPolicy`. Needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import signal
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from uwm import __version__
from uwm.core.config import ConfigError
from uwm.robot import wire
from uwm.robot.clock import Clock, MonotonicClock
from uwm.robot.metrics import Metrics
from uwm.robot.model_thread import ModelThread
from uwm.robot.seats import Seat, Seats
from uwm.robot.server_config import ServerConfig
from uwm.robot.server_page import PAGE, is_upgrade, respond, seat_status
from uwm.robot.session import RequestError, Served, Session

log = logging.getLogger(__name__)
PICTURED = 4  # sessions with pictures on the page


class PolicyServer:
    """Serves one policy. `run()` blocks until SIGTERM or SIGINT; in a test or a thread, `serve()` and `stop()`."""

    def __init__(self, served: Served, config: ServerConfig, clock: Clock | None = None, seed: int = 0):
        self.served, self.config = served, config
        self.clock = clock or MonotonicClock()
        self.metrics, self.worker = Metrics(), ModelThread()
        self.seats = Seats(served, config, self.clock, self.metrics, seed)
        self.port = config.port
        self._began_s = self.clock.now_s()
        self._busy = 0
        self._handlers: dict[Any, asyncio.Task] = {}  # of every open connection
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{'wss' if self.config.certificate else 'ws'}://{host}:{self.port}"

    # ------------------------------------------------------------------------------------------------------ life

    def run(self, ready: Callable[[], None] = lambda: None) -> int:
        """Serves until SIGTERM or SIGINT, then drains. 0, or 1 when a request was still running after `drain_s`."""
        return asyncio.run(self.serve(ready, signals=True))

    def stop(self) -> None:
        """Begins to drain; may be called from any thread, also when that has happened already."""
        if self._loop and self._draining:
            with contextlib.suppress(RuntimeError):  # the loop has ended: there is nothing left to stop
                self._loop.call_soon_threadsafe(self._draining.set)

    async def serve(self, ready: Callable[[], None] = lambda: None, signals: bool = False) -> int:
        """Listens, calls `ready` once `port` is known, and returns when drained."""
        from websockets.asyncio.server import serve

        self._loop, self._draining = asyncio.get_running_loop(), asyncio.Event()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._draining.set)
        # origins=[None]: a browser always tells an origin, so no web page can drive a robot through somebody's browser.
        listening = serve(
            self._converse, self.config.host, self.config.port, process_request=self._plain_http, origins=[None], compression=None,
            max_size=self.config.message_bytes, max_queue=2, close_timeout=2, ssl=self._tls(), logger=_quiet, server_header="uwm",
        )  # fmt: skip
        async with listening as server:
            self.port = server.sockets[0].getsockname()[1]
            expiring = asyncio.create_task(self.seats.expire())
            ready()
            await self._draining.wait()
            server.close(close_connections=False)
            left = await self._finish()
            expiring.cancel()
            for connection, handler in list(self._handlers.items()):  # whose request never came back, or who does not listen
                handler.cancel()
                connection.transport.abort()
        self.worker.close()
        return 1 if left else 0

    async def _finish(self) -> int:
        """Waits for running requests, at most `drain_s`; how many are left."""
        until = self.clock.now_s() + self.config.drain_s
        while self._handlers and self.clock.now_s() < until:
            await asyncio.sleep(0.01)
        return self._busy

    def _tls(self) -> ssl.SSLContext | None:
        if not self.config.certificate:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.config.certificate, self.config.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"certificate {self.config.certificate} and key {self.config.key} cannot be used: {error}") from error
        return context

    # --------------------------------------------------------------------------------------------- one connection

    async def _converse(self, connection: Any) -> None:
        """Metadata, then request and answer in turn, until the client leaves, errs, or the server drains."""
        from websockets.exceptions import ConnectionClosed

        seat = self.seats.new()
        if seat is None:  # filled up since the handshake
            return await connection.close(1013, "the server is full")
        self._handlers[connection] = asyncio.current_task()
        seat.connection = connection
        try:
            await connection.send(wire.pack(self.metadata(seat)))
            before_ms = 0.0
            while (frame := await self._next_frame(connection)) is not None:
                seat, answer = await self._handle(seat, connection, frame, before_ms)
                if answer is None:
                    return
                await connection.send(answer)
                before_ms = seat.last_ms
        except ConnectionClosed:
            pass  # the session waits for its client
        finally:
            self._handlers.pop(connection)
            self.seats.leave(seat, connection)

    async def _next_frame(self, connection: Any) -> bytes | str | None:
        """The next message, or None once the server drains and nothing has arrived."""
        receiving = asyncio.ensure_future(connection.recv())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((receiving, draining), return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
        finally:
            draining.cancel()
            receiving.cancel()
        await connection.close(1001, "the server is going away: connect again later")
        return None

    async def _handle(self, seat: Seat, connection: Any, frame: bytes | str, before_ms: float) -> tuple[Seat, bytes | None]:
        """The answer to one frame, or None after an error was told and the connection closed."""
        arrived_s = self.clock.now_s()
        self._busy += 1
        try:
            request = self._request(frame)
            seat, resumed = self.seats.resume(seat, request, connection)
            await self._throttle(seat)
            answer = await self.worker.submit(lambda: self._timed(seat.session, request))
        except Exception as error:  # noqa: BLE001 (whatever it is, the client is told and the others live on)
            await self._tell(connection, error)
            return seat, None
        finally:
            self._busy -= 1
            seat.used_s = self.clock.now_s()
        return seat, wire.pack(self._finished(seat, request, answer, arrived_s, before_ms) | {"resumed": resumed})

    def _request(self, frame: bytes | str) -> dict:
        if isinstance(frame, str):
            raise wire.WireError("a request is a binary msgpack frame, got a text frame")
        request = wire.unpack(frame, wire.Limits(self.config.message_bytes))
        if not isinstance(request, dict):
            raise wire.WireError(f"a request is a map of observations, got {type(request).__name__}")
        return request

    def _timed(self, session: Session, request: dict) -> dict:
        """In the worker: the session's answer, and how long it took."""
        began_s = self.clock.now_s()
        answer = session.answer(request)
        return {**answer, "infer_s": self.clock.now_s() - began_s}

    def _finished(self, seat: Seat, request: dict, answer: dict, arrived_s: float, before_ms: float) -> dict:
        """The answer with what only the server knows; everything is counted here."""
        took_s, infer_s = self.clock.now_s() - arrived_s, answer.pop("infer_s")
        seat.last_ms = 1e3 * took_s
        stale = took_s > min(self.config.deadline_s, _positive(request, "deadline_s", self.config.deadline_s))
        self.metrics.latency(took_s)
        self.metrics.add("requests")
        self.metrics.add("stale", int(stale))
        if answer["repeated"]:
            self.metrics.add("repeats")
        else:
            self.metrics.add("calls", answer["calls"])
            self.metrics.add("actions", len(answer.get("actions", ())))
        timing = {"infer_ms": 1e3 * infer_s, "queue_ms": 1e3 * (took_s - infer_s), "prev_total_ms": before_ms}
        return {**answer, "session": seat.name, "stale": stale, "server_timing": timing}

    async def _throttle(self, seat: Seat) -> None:
        """Waits where a session asks faster than it may: its client is slowed down, nothing is lost."""
        now_s = self.clock.now_s()
        # A quarter of a second's requests, or one, may come at once: a client that was held up catches up.
        period_s = 1 / self.config.requests_hz
        seat.next_s = max(seat.next_s, now_s - max(0.25, period_s)) + period_s
        if seat.next_s > now_s:
            self.metrics.add("throttled")
            await asyncio.sleep(seat.next_s - now_s)

    async def _tell(self, connection: Any, error: Exception) -> None:
        """The protocol's error: a text frame in words, then close 1011."""
        kind = {wire.WireError: "message", RequestError: "request"}.get(type(error), "policy")
        self.metrics.error(kind)
        text = str(error) if isinstance(error, ValueError) else f"the policy failed: {type(error).__name__}: {error}"
        if kind == "policy":
            log.error("the policy failed", exc_info=error)
        await connection.send(text[:2000])
        await connection.close(1011, "error; see the text before")

    # ---------------------------------------------------------------------------------------------- what is told

    def metadata(self, seat: Seat) -> dict:
        """The first frame: what the policy wants and gives, and the name of the session."""
        schema, config = self.served.schema, self.config
        return {
            "server": f"uwm {__version__}",
            "session": seat.name,
            "cameras": {name: [schema.image_size, schema.image_size, 3] for name in schema.cameras},
            "proprio_size": schema.proprio_size,
            "action_size": schema.action_size,
            "chunk": schema.chunk,
            "history": schema.history,
            "keys": schema.keys,
            "limits": {"message_bytes": config.message_bytes, "requests_hz": config.requests_hz, "deadline_s": config.deadline_s},
            **self.served.about,
        }

    def gauges(self) -> dict[str, float]:
        """What is so now, for the metrics."""
        return {
            "sessions": len(self.seats),
            "connections": len(self._handlers),
            "queue": self.worker.waiting,
            "uptime_seconds": round(self.clock.now_s() - self._began_s, 3),
            "draining": int(self._draining is not None and self._draining.is_set()),
        }

    def status(self) -> dict:
        """What the page shows. Session names are secret and not in it."""
        now_s = self.clock.now_s()
        return {
            "about": {name: value for name, value in self.served.about.items() if isinstance(value, str | int | float)},
            "gauges": self.gauges(),
            "counts": dict(self.metrics.counts),
            "errors": dict(self.metrics.errors),
            "latency_ms": self.metrics.percentiles_ms(),
            "calls_per_action": self.metrics.calls_per_action(),
            "sessions": [seat_status(seat, now_s, index < PICTURED) for index, seat in enumerate(self.seats.by_use())],
        }

    def _plain_http(self, connection: Any, request: Any) -> Any:
        """Answers plain GETs; None lets a WebSocket handshake go on."""
        path = urlsplit(request.path).path
        if path == "/healthz":
            return connection.respond(200, "OK\n")
        if path == "/" and not is_upgrade(request):
            return respond(PAGE.read_text(), "text/html")  # holds no numbers: it asks for a token where one is needed
        if not self._allowed(request):
            self.metrics.error("token")
            return connection.respond(401, "send the server's token as 'Authorization: Api-Key TOKEN' (or Bearer)\n")
        if path == "/metrics":
            return respond(self.metrics.text(self.gauges()), "text/plain; version=0.0.4")
        if path == "/status.json":
            return respond(json.dumps(self.status()), "application/json")
        if not is_upgrade(request):
            return connection.respond(404, "there are /, /healthz, /metrics and /status.json; policies connect by WebSocket\n")
        if self._draining.is_set() or not self.seats.has_room():
            self.metrics.error("refused")
            return connection.respond(503, f"no room: {len(self.seats)} sessions, or the server is going away; try again later\n")
        return None

    def _allowed(self, request: Any) -> bool:
        if not self.config.token:
            return True
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        same = hmac.compare_digest(shown.strip().encode(), self.config.token.encode())  # takes as long for a near miss
        return same and scheme.lower() in ("api-key", "bearer")


_quiet = logging.getLogger(f"{__name__}.connections")
_quiet.setLevel(logging.CRITICAL)  # whoever knocks with rubbish would fill the log


def _positive(request: Mapping, name: str, default: float) -> float:
    value = request.get(name, default)
    return float(value) if isinstance(value, int | float) and value > 0 else default
