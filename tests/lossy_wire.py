"""The whole control loop against a policy server on the far end of a bad wire, in a process of its own.

```
controller, fake arm --TCP--> tun device ---> this process: loses, doubles, reorders packets ---> tun device --TCP--> server's process
                                              or all of them for two seconds                                          killed, begun anew
phase   fine   lossy   dark   back   killed   again
```

unshare --user --map-root-user --net python tests/lossy_wire.py wire     prints what happened as JSON; tests/test_robot_faults.py
                                     python tests/lossy_wire.py cuts     judges it

A tun device needs a network of one's own; packets that arrive are sent back with their two addresses exchanged, so both ends are on
this machine and the system's own TCP copes with what becomes of them. `cuts` needs nothing of the system: connections through
`policies.Line` are cut, stalled and robbed of answers.
"""

import fcntl
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import policies
import robot_in_trouble as trouble
from uwm.core.config import to_mapping
from uwm.robot.client import PolicyClient
from uwm.robot.clock import MonotonicClock
from uwm.robot.controller import Controller
from uwm.robot.inference import ThreadWorker
from uwm.robot.recording import Recorder
from uwm.robot.session import Schema, Served

HERE, THERE, PORT = "10.77.0.1", "10.77.0.2", 8765
LOSS, DOUBLED, LATE, DARK_S = 0.05, 0.05, 0.2, 2.0
PHASES = ("fine", "lossy", "dark", "back", "killed", "again")
GOOD = 20  # ticks in a row with a planned action: all is well


class Wire:
    """A tun device whose packets come back from its other address, if they do. `mode` as a phase."""

    def __init__(self):
        self.mode, self.chance, self.counts = "fine", random.Random(0), {"passed": 0, "lost": 0, "doubled": 0, "late": 0}
        self.tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.tun, 0x400454CA, struct.pack("16sH", b"lossy", 0x0001 | 0x1000))  # TUNSETIFF: packets, without a head
        for words in ("link set lo up", f"addr add {HERE}/24 dev lossy", "link set lossy up"):
            subprocess.run(["ip", *words.split()], check=True)
        self.server, self.url = (HERE, PORT), f"ws://{THERE}:{PORT}"
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self):
        held = None
        while True:
            packet = bytearray(os.read(self.tun, 65536))
            if packet[0] >> 4 != 4:
                continue
            packet[12:16], packet[16:20] = packet[16:20], packet[12:16]  # sums over both, so no checksum changes
            fate, lossy = self.chance.random(), self.mode == "lossy"
            if self.mode == "dark" or (lossy and fate < LOSS):
                self.counts["lost"] += 1
                continue
            out = [packet] * (2 if lossy and fate < LOSS + DOUBLED else 1)
            self.counts["doubled"] += len(out) - 1
            if held is None and lossy and fate > 1 - LATE:
                held = packet  # overtaken by the next
                self.counts["late"] += 1
                continue
            for each in [*out, *([held] if held is not None else [])]:
                os.write(self.tun, each)
            self.counts["passed"], held = self.counts["passed"] + 1, None


class Cuts:
    """A proxy in the place of a wire: what TCP makes of a bad one, an answer that is late, or a connection that is lost."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.server = found.getsockname()
        self.line = policies.Line(self.server[1])
        self.url, self.counts, self._mode = f"ws://127.0.0.1:{self.line.port}", {"cut": 0, "lost": 0, "late": 0}, "fine"
        self.chance = random.Random(0)

    @property
    def mode(self):
        return self._mode

    @mode.setter
    def mode(self, mode):
        if mode == "dark" and self._mode != "dark":
            self.line.stall_s = DARK_S
        self._mode = mode

    def tick(self):
        kind = self.chance.choice(["", "", "", "cut", "lost", "late"]) if self.mode == "lossy" else ""
        if kind == "cut":
            self.line.cut()
        if kind == "lost":
            self.line.swallow = 1
        if kind == "late":
            self.line.stall_s = 0.2
        if kind:
            self.counts[kind] += 1


class OwnNetwork(policies.ServerConfig):
    """Nobody else is in this network, so what asks for a token and TLS beyond loopback is left out."""

    def __post_init__(self):
        pass


def serve(host, port):
    """The server's process: plans of the arm's own steady policy, whatever it was asked before."""
    told = {"checkpoint": "steady", "policy": to_mapping(trouble.CARD.config), "room": trouble.CARD.room}
    served = Served(policies.Counting(), Schema(("front",), 6, 3, 3, 2), told, planner=trouble.steady)
    return policies.PolicyServer(served, OwnNetwork(host, int(port))).run(lambda: print("ready", flush=True))


class Server:
    """That process."""

    def __init__(self, address):
        self.command = [sys.executable, __file__, *map(str, address)]
        self.begin()
        assert self.process.stdout.readline() == "ready\n"

    def begin(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Story:
    """Goes from phase to phase, and remembers every tick of each."""

    def __init__(self, wire, server):
        self.wire, self.server, self.ticks, self.changed_s = wire, server, {phase: [] for phase in PHASES}, time.monotonic()

    def tick(self, tick):
        phase = self.wire.mode
        self.ticks[phase].append((tick.verdict.behaviour, tick.plan if tick.proposed is not None else None, tick.failure))
        if isinstance(self.wire, Cuts):
            self.wire.tick()
        if phase != PHASES[-1] and self._over(phase):
            self._begin(PHASES[PHASES.index(phase) + 1])

    def close(self):
        pass

    def _over(self, phase):
        seconds, seen = time.monotonic() - self.changed_s, self.ticks[phase]
        if phase in ("dark", "killed"):
            return seconds > DARK_S
        good = len(seen) >= GOOD and all(plan is not None for _, plan, _ in seen[-GOOD:])
        return good and (phase != "lossy" or seconds > 3.0)

    def _begin(self, phase):
        if phase == "killed":
            self.server.kill()
        if phase == "again":
            self.server.begin()
        self.wire.mode, self.changed_s = phase, time.monotonic()

    def ended(self, _):
        return "told" if self.wire.mode == "again" and self._over("again") else ""


def main(kind):
    """The whole story."""
    wire = {"wire": Wire, "cuts": Cuts}[kind]()
    server = Server(wire.server)
    story, shelf, robot = Story(wire, server), trouble.Shelf(), trouble.FakeRobot(MonotonicClock())
    try:
        with tempfile.TemporaryDirectory() as folder, PolicyClient(wire.url, robot.clock, timeout_s=60) as client:
            client.timeout_s = 0.5
            worker = ThreadWorker(client.plan, robot.clock, hung_after_s=5.0)
            listeners = [story, Recorder(trouble.SPEC, shelf, folder)]
            safety = trouble.safety(stop_after_s=60.0)
            statistics = Controller(robot, trouble.CARD, robot.clock, worker, trouble.NAIVE, listeners, safety).run(1500, story.ended)
            worker.close()
    finally:
        server.kill()
    trouble.assert_inside_limits(robot.received)
    print(json.dumps({
        "counts": wire.counts, "ticks": story.ticks, "ended": statistics.ended, "stops": robot.stops,
        "reconnects": client.reconnects, "failures": statistics.failures, "errors": statistics.listener_errors,
        "episodes": len(shelf.episodes),
    }))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]) if sys.argv[1:] in (["wire"], ["cuts"]) else serve(*sys.argv[1:]))
