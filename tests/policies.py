"""Policies for tests of the server and its clients, a server in a thread, and a line between them that can be cut."""

import asyncio
import itertools
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import torch

import tiny
from uwm.robot.policy import Policy, PolicyConfig
from uwm.robot.server import PolicyServer, ServerConfig
from uwm.robot.session import Schema, Served

FAST_LIMITS = {"requests_hz": 1e5}


class Counting:
    """A policy that answers at once and whose memory tells what it was asked: (acts so far, sum of the first numbers executed).

    An action is [acts, that sum, state 0], so an answer shows what was lost, repeated or mixed up.
    """

    def __init__(self, delay_s=0.0, fails_at=None):
        self.calls, self.delay_s, self.fails_at = 0, delay_s, fails_at
        self.entered = 0

    def start(self, seeds):
        return (0, 0.0)

    def act(self, memory, observation):
        self.entered += 1
        assert self.entered == 1, "two threads are in the policy at once"
        time.sleep(self.delay_s)
        acts, executed = memory
        self.entered -= 1
        if acts == self.fails_at:
            raise KeyError("the network is broken")
        self.calls += 2
        row = torch.tensor([float(acts), executed, float(observation.proprio[0, 0])])
        return (acts + 1, executed), row.expand(1, 2, 3)

    def done(self, memory, executed):
        return (memory[0], memory[1] + float(executed[0, :, 0].sum()))


def counting(delay_s=0.0, fails_at=None):
    schema = Schema(("agentview", "wrist"), 8, 2, 3, 2)
    return Served(Counting(delay_s, fails_at), schema, {"checkpoint": "counting"}, lambda memory: [0.0, 0.25, 1.0])


def streaming(seed=0):
    """The tiny model as a streaming policy; weights and answers depend on the seed only."""
    policy = Policy(tiny.model(seed), PolicyConfig(rows=8, chunk=2, chunks=4, past=2))
    return Served(policy, Schema(tiny.CAMERAS, 32, 2, 2, 2), {"checkpoint": "tiny"})


def observation(step=0, side=8):
    pixels = np.random.default_rng(step).integers(0, 255, (2, side, side, 3), dtype=np.uint8)
    return {"observation/image": pixels[0], "observation/wrist_image": pixels[1], "observation/state": np.array([step, 0.5])}


@contextmanager
def serving(served, clock=None, **config):
    """A server in a thread on a free port; when it leaves, the server has drained."""
    server = PolicyServer(served, ServerConfig(**{"port": 0, **FAST_LIMITS, **config}), clock)
    ready, code = threading.Event(), []
    thread = threading.Thread(target=lambda: code.append(asyncio.run(server.serve(ready.set))), daemon=True)
    thread.start()
    assert ready.wait(60), "the server did not start"
    try:
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server hangs"
    server.code = code[0]


class Line:
    """A TCP proxy on a free port: bytes pass until the line is cut, stalls, or loses what comes back.

    `cut()` breaks every open connection; `swallow` answers are read from the server and never delivered, then the line is
    cut: the server has acted and its client does not know. `stall_s` holds the next bytes
    and all behind them up for a while.
    """

    def __init__(self, port):
        self.port_there, self.stall_s, self.swallow = port, 0.0, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._open, self._ids = {}, itertools.count()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        for pair in list(self._open.values()):
            for end in pair:
                _abort(end)

    def close(self):
        self._listening.close()
        self.cut()

    def _accept(self):
        while True:
            try:
                ours, _ = self._listening.accept()
            except OSError:
                return
            try:
                theirs = socket.create_connection(("127.0.0.1", self.port_there), 5)
            except OSError:
                _abort(ours)
                continue
            name = next(self._ids)
            self._open[name] = (ours, theirs)
            for source, target, back in ((ours, theirs, False), (theirs, ours, True)):
                threading.Thread(target=self._carry, args=(source, target, back, name), daemon=True).start()

    def _carry(self, source, target, back, name):
        shaken = False
        try:
            while data := source.recv(65536):
                stall_s, self.stall_s = self.stall_s, 0.0
                time.sleep(stall_s)
                if back and shaken and self.swallow:
                    self.swallow -= 1
                    break
                shaken = shaken or data.find(b"\r\n\r\n") >= 0
                target.sendall(data)
        except OSError:
            pass
        for end in self._open.pop(name, (source, target)):
            _abort(end)


def _abort(end):
    """Closes at once with a reset, as a lost network does to those who still write."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()
