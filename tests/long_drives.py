"""Hundreds of requests through a server, in a process of their own: checking every call's types as the tests do would take minutes.

python tests/long_drives.py     prints {drive: what came out} as JSON; tests/test_robot_server.py judges it
"""

import json
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed

import policies
from uwm.robot.client import PolicyClient


def openpis_client(steps=1000):
    """openpi's client, its `infer` untouched; who uses it connects anew after a loss, and then has a new session."""
    chance, served, since, losses, given, wanted = random.Random(0), policies.counting(), 0, 0, [], []
    with policies.serving(served) as server:
        line = policies.Line(server.port)
        client = WebsocketClientPolicy("127.0.0.1", line.port)
        while len(given) < steps:
            if chance.random() < 0.02:
                line.cut()
            elif chance.random() < 0.01:
                line.swallow = 1  # the server acts, and the answer is lost
            try:
                actions = client.infer(policies.observation(len(given)))["actions"]
            except ConnectionClosed:
                losses, since, line.swallow = losses + 1, 0, 0
                client = WebsocketClientPolicy("127.0.0.1", line.port)
                continue
            wanted.append([since, len(given)])
            given.append(actions[0].tolist()[0::2])
            since += 1
        line.close()
        return {"given": given, "wanted": wanted, "losses": losses, "sessions": len(server.seats), "most": server.config.sessions}


def our_client(steps=1000):
    """Our client: the actions tell which act they come from and what was executed before, so any loss or repetition shows."""
    chance, served, executed, given, wanted, told = random.Random(1), policies.counting(), None, [], [], 0.0
    with policies.serving(served) as server:
        line = policies.Line(server.port)
        lost, client = 0, PolicyClient(f"ws://127.0.0.1:{line.port}", timeout_s=60)
        for step in range(steps):
            kind = chance.choices(("fine", "cut", "swallow"), (30, 1, 1))[0]
            if kind == "cut":
                line.cut()
            if kind == "swallow":
                line.swallow, lost = 1, lost + 1
            given.append(client.act(policies.observation(step), executed)[0].tolist())
            told += 0.0 if executed is None else float(executed[:, 0].sum())
            wanted.append([step, told, step])
            executed = np.full((2, 3), chance.randrange(8) / 4, np.float32)
        line.close()
        client.close()
        repeats = server.metrics.counts["repeats"]
    return {
        "given": given,
        "wanted": wanted,
        "lost": lost,
        "repeats": repeats,
        "reconnects": client.reconnects,
        "calls": served.policy.calls,
    }


def hundred_clients(rounds=5):
    """A hundred clients that begin at the same moment."""
    served, together = policies.counting(), threading.Barrier(100)

    def drive(index):
        with PolicyClient(server.url, timeout_s=60) as client:
            together.wait(60)
            return [client.act(policies.observation(index))[0].tolist()[0::2] for _ in range(rounds)]

    with policies.serving(served) as server, ThreadPoolExecutor(100) as pool:
        given = list(pool.map(drive, range(100)))
        requests = server.metrics.counts["requests"]
    wanted = [[[step, index] for step in range(rounds)] for index in range(100)]
    return {"given": given, "wanted": wanted, "requests": requests, "calls": served.policy.calls}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # openpi's client opens connections as websockets 14 wanted it
    print(json.dumps({drive.__name__: drive() for drive in (openpis_client, our_client, hundred_clients)}))
