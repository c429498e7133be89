"""`uwm serve CKPT`: a checkpoint behind a policy server, warm before the first client comes.

```
checkpoint -> model, card -> policy -> Served (schema, words, buffer levels) -> warm-up -> server -> SIGTERM -> drained, 0
```
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from uwm.core import plans
from uwm.core.config import ConfigError, from_mapping, to_mapping
from uwm.learn.checkpoint import CheckpointError
from uwm.robot.chunking import ChunkingConfig, Planner
from uwm.robot.policy import Policy, PolicyConfig
from uwm.robot.server import PolicyServer
from uwm.robot.server_config import ServerConfig, is_loopback
from uwm.robot.session import Schema, Served, Session
from uwm.sample.roll import Buffer
from uwm.training import load_model

TOKEN = "UWM_TOKEN"  # the environment's name for it: a token in a config or on a command line would be read by others


@dataclass(frozen=True)
class ServeRun:
    """`checkpoint` served as `policy`; `chunking` of controllers that send jobs; `member`: whose robot of a mixture; `seed` of every
    session's noise; `threads` of the model.

    `names`: further names of observation keys, {theirs: ours}. `token_file`: a file with the token (or the environment's UWM_TOKEN).
    """

    checkpoint: str = "runs/lift/model"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    member: str = ""
    seed: int = 0
    threads: int = 1
    token_file: str | None = None
    names: dict[str, str] | None = None


def serve(config: dict) -> int:
    """Serves a checkpoint until SIGTERM or SIGINT; prints where. 0 when drained."""
    token = _token(config.get("token_file"))
    given = {**config, "server": {**config.get("server", {}), **({"token": token} if token else {})}}
    try:
        run = from_mapping(ServeRun, given, "serve")
    except ConfigError as error:
        if "can be reached by others" not in str(error):
            raise
        make = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > token"
        raise ConfigError(f"{error}. A token: {make}, then token_file=token") from error
    torch.set_num_threads(run.threads)
    served = load(run)
    first_ms, warm_ms = warm_up(served)
    server = PolicyServer(served, run.server, seed=run.seed)
    print(f"serve: {run.checkpoint}: first answer {first_ms:.0f} ms, warm {warm_ms:.1f} ms for {served.schema.chunk} actions", flush=True)
    between = [tick for tick in served.schema.history if tick % served.schema.chunk]
    unseen = f"\nserve: what was seen {between} ticks ago is absent for clients that ask once a chunk, and known to controllers"
    return server.run(lambda: print(_welcome(server) + (unseen if between else ""), flush=True))


def load(run: ServeRun) -> Served:
    """A checkpoint as something that sessions can ask."""
    model, card = load_model(run.checkpoint, run.member)
    if card.get("acts") is False:
        raise CheckpointError(f"{run.checkpoint} was trained without actions: it predicts video and is no policy")
    policy, config = Policy(model, run.policy), model.config
    sizes = config.sizes(run.member or config.acting)
    action = card.get("action") or {}
    low, high = action.get("low"), action.get("high")
    schema = Schema(
        policy.cameras, config.autoencoder.image_size, sizes[1], sizes[0], run.policy.chunk, _names(run, policy.cameras),
        None if low is None or high is None else tuple(low), None if low is None or high is None else tuple(high),
        config.history, model.hears,
    )  # fmt: skip
    told = {**about(run, card), "policy": to_mapping(run.policy), "chunking": to_mapping(run.chunking), "room": policy.room}
    told["language"] = config.language.kind
    example = {name: value.numpy() for name, value in policy.start([0]).tensors().items()}
    return Served(policy, schema, told, levels(run.policy), Planner(policy, run.chunking), example, model.words)


def about(run: ServeRun, card: dict) -> dict:
    """What a client may know of the checkpoint: its conventions and units, and nothing of this machine's paths."""
    told = ("robot", "env", "rate_hz", "image_orientation", "action", "proprio", "instruction", "step")
    kept = {name: card[name] for name in told if card.get(name) is not None}
    kept["serves"] = f"{run.policy.kind}, {run.policy.rows} rows, {run.policy.chunks} chunks of {run.policy.chunk}"
    return {"checkpoint": f"{Path(run.checkpoint).name}, step {card['step']}, data {card.get('data_checksum', 'unknown')[:8]}", **kept}


def levels(config: PolicyConfig) -> Callable[[Buffer], list[float]]:
    """Noise level per chunk of a memory's buffer after a tick: the first chunk is clean and sent."""

    def read(memory: Buffer) -> list[float]:
        if config.kind == "chunked":
            return [0.0] * config.chunks
        remaining = plans.streaming_remaining(config.rows, config.chunks, memory.tick)[0]
        return ((remaining - remaining[0]) / config.rows).tolist()

    return read


def warm_up(served: Served, repeats: int = 3) -> tuple[float, float]:
    """Milliseconds of the first answer and of the last of a few, on a blank observation; nothing is left behind."""
    from time import perf_counter

    schema = served.schema
    blank = {name: np.zeros((schema.image_size, schema.image_size, 3), np.uint8) for name in schema.cameras}
    blank |= {"proprio": np.zeros(schema.proprio_size, np.float32), "prompt": "do it"}  # so that an encoder of words is open, too
    session, times = Session(served), []
    for _ in range(repeats):
        began = perf_counter()
        session.answer(blank)
        times.append(1e3 * (perf_counter() - began))
    return times[0], times[-1]


def _names(run: ServeRun, cameras: tuple[str, ...]) -> dict[str, str]:
    wrong = {theirs: ours for theirs, ours in (run.names or {}).items() if ours not in ("proprio", *cameras)}
    if wrong:
        raise ConfigError(f"serve.names: {wrong} leads nowhere; the checkpoint has {['proprio', *cameras]}")
    return dict(run.names or {})


def _token(file: str | None) -> str:
    if file is None:
        return os.environ.get(TOKEN, "")
    token = Path(file).read_text().strip()
    if not token:
        raise ConfigError(f"serve.token_file: {file} is empty; it holds the token and nothing else")
    return token


def _welcome(server: PolicyServer) -> str:
    page = server.url.replace("ws", "http", 1)
    who = "this machine only" if is_loopback(server.config.host) else "other machines too"
    needs = "clients need the token" if server.config.token else "no token"
    return f"serve: {server.url} ({who}, {needs}); page {page}/, metrics {page}/metrics; Ctrl-C drains"
