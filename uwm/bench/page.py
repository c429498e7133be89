"""The demo's page: sections of HTML from figures. Everything is inside, nothing is loaded from elsewhere."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uwm.bench import gates as verdicts
from uwm.bench import pictures, provenance

POLICIES = ("streaming", "chunked")
TONES = {verdicts.HOLDS: "good", verdicts.FAILS: "bad", verdicts.NOT_JUDGED: "open"}
QUIET = ("stage", "step", "seconds", "rate", "gradient_norm")  # of a log line: what is no error

def versions(figures: dict) -> dict[str, str]:
    """Versions of this process and of the worlds that the data came from."""
    return {**provenance.versions(), **figures.get("card", {}).get("versions", {})}


def checkpoint(figures: dict) -> dict:
    """The part of a checkpoint's card that a reader wants."""
    names = ("env", "robot", "rate_hz", "cameras", "image_size", "image_orientation", "render_profile", "data_checksum", "step")
    return {name: figures["card"][name] for name in names if name in figures.get("card", {})}


def finite(value: object) -> object:
    """The same with None for numbers that JSON has no word for, and paths and arrays made plain."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def page(figures: dict, examples: Mapping, videos: Mapping, plan_pictures: Mapping, curves: list[dict], films: Mapping) -> str:
    """The whole page; nothing in it is loaded from elsewhere."""
    style = Path(__file__).with_name("report.css").read_text()
    parts = [
        _head(figures),
        _tiles(figures),
        _section("Gates", _gate_table(figures["gates"]), "What this run had to reach. <i>Not judged</i> means too little evidence."),
        _section("Streaming against chunked", _policies(figures), _POLICY_NOTE),
        _section("Rollouts", _videos(videos, figures), "Closed loop, seeds that were not trained on, at the robot's own speed."),
        _section("The buffer", _films(films), _FILMS_NOTE),
        _section("Predicted beside true", _frames(examples), _FRAMES_NOTE),
        _section("Joint imagination", _ways(examples, figures), _WAYS_NOTE),
        _section("All modes of one checkpoint", _modes(figures), _MODES_NOTE),
        _section("Plans", _plans(plan_pictures), _PLANS_NOTE),
        _section("Training", _curves(curves), "Mean squared error of the prediction, running mean, over optimiser steps."),
        _section("Set-up", _setup(figures), ""),
    ]
    title = f"uwm: {_text(checkpoint(figures).get('env', 'report'))}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<style>\n{style}</style></head><body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


_POLICY_NOTE = (
    "The same weights, sampler steps and seeds. The chunked policy denoises the whole horizon at every call and throws most of "
    "it away; the streaming policy keeps it in a buffer and needs only the few calls that clean the next chunk. Whiskers are "
    "Wilson 95 % intervals; latency is one policy call, observation encoding included, divided by the actions it sent."
)
_FILMS_NOTE = (
    "What each policy holds at every tick. Left of the mark: what was executed; right of it: what is still to come, the paler the "
    "noisier. The streaming buffer is revised and rolls; the chunked policy has a clean plan, and another one at every call."
)
_FRAMES_NOTE = (
    "Held-out episodes. <b>true</b> is what the camera saw; the others are decoded samples: <b>forward</b> was given the "
    "actions, <b>video</b> nothing but the present, <b>joint</b> sampled actions and frames together."
)
_WAYS_NOTE = (
    "The same windows: the frames that <b>joint</b> expects at the end, what was seen then, and the way to there, as it was sampled "
    "together with those frames and as it was executed (actions one after the other; displacements are summed up). Where there are "
    "several good ways, to imagine another one is no mistake."
)
_MODES_NOTE = (
    "Relative error is the model's error over its baseline's; below 1 beats the baseline. The floor is what the autoencoder "
    "loses on the true frames. Intervals are 95 % bootstrap."
)
_PLANS_NOTE = "A mode is a picture of noise levels: one line is one network call, dark is noise, a dot is given, blank is deleted."


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, body: str, note: str) -> str:
    return f"<section><h2>{title}</h2>" + (f'<p class="soft">{note}</p>' if note else "") + body + "</section>" if body else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), kind: str = "") -> str:
    """Cells are HTML already; columns in `numbers` stand to the right."""
    place = [' class="number"' if index in numbers else "" for index in range(len(header))]
    lines = [list(zip(header, place, strict=True)), *[list(zip(row, place, strict=True)) for row in rows]]
    marked = zip(["th"] + ["td"] * len(rows), lines, strict=True)
    body = "".join("<tr>" + "".join(f"<{mark}{at}>{cell}</{mark}>" for cell, at in line) + "</tr>" for mark, line in marked)
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def _chip(verdict: str) -> str:
    return f'<span class="chip {TONES.get(verdict, "open")}">{_text(verdict)}</span>'


def _number(value: float | None, digits: int = 3) -> str:
    """Three figures, or a dash where there is no number."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def _range(interval: Sequence[float] | None) -> str:
    return "–" if not interval else f"{_number(interval[0])} to {_number(interval[1])}"


def _head(figures: dict) -> str:
    about = checkpoint(figures)
    verdict = verdicts.overall(gate["verdict"] for gate in figures["gates"])
    what = ", ".join(str(about[name]) for name in ("robot", "env") if name in about)
    cameras = " and ".join(about.get("cameras", ()))
    line = f"{what}: from {cameras or 'its cameras'} and proprioception, one transformer, one noise level per token, every mode a plan."
    words = {verdicts.HOLDS: "every gate holds", verdicts.FAILS: "a gate does not hold", verdicts.NOT_JUDGED: "not judged"}
    chip = f'<span class="chip {TONES[verdict]}">{words[verdict]}</span>'
    return f'<h1>One streaming unified world model {chip}</h1><p class="soft">{_text(line)}</p>'


def _tiles(figures: dict) -> str:
    streaming, chunked = figures["streaming"], figures["chunked"]
    low, high = streaming["interval"]
    fewer = chunked["calls_per_action"] / streaming["calls_per_action"]
    quick, slow = streaming["latency_ms"]["p50"], chunked["latency_ms"]["p50"]
    tiles = [
        ("streaming success", f"{100 * streaming['success']:.0f} %",
         f"{streaming['successes']} of {streaming['rollouts']}; 95 %: {100 * low:.0f} to {100 * high:.0f} %"),
        ("calls per action", _number(streaming["calls_per_action"]), f"{fewer:.1f}x fewer than chunked"),
        ("latency per action", f"{quick:.1f} ms", f"p50; chunked {slow:.1f} ms"),
        ("inverse dynamics", f"{_number(figures['inverse']['relative_error'], 2)}x", "of predict-the-mean's error"),
        ("forward dynamics", f"{_number(figures['forward']['relative_error'], 2)}x", "of copy-the-last-frame's error"),
        ("whole run", f"{figures['seconds'] / 60:.1f} min", provenance.machine()),
    ]  # fmt: skip
    words = ("streaming success", "calls per action", None, "inverse", "forward", None)
    tones = [_tone(figures["gates"], word) for word in words]
    cells = [
        f'<div class="tile {tone}"><div class="name">{_text(name)}</div><div class="value">{_text(value)}</div>'
        f'<div class="under">{_text(under)}</div></div>'
        for (name, value, under), tone in zip(tiles, tones, strict=True)
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _tone(gates: Sequence[Mapping], word: str | None) -> str:
    """The colour of the first gate whose name has this word."""
    found = [gate["verdict"] for gate in gates if word and word in gate["name"]]
    return TONES.get(found[0], "open") if found else ""


def _gate_table(gates: Sequence[Mapping]) -> str:
    rows = [
        [_text(gate["name"]), _text(gate.get("baseline") or "–"), _number(gate["value"]), _range(gate.get("interval")),
         _text(gate["gate"]), _chip(gate["verdict"])]
        for gate in gates
    ]  # fmt: skip
    return _table(["gate", "compared with", "value", "95 % interval", "must be", "verdict"], rows, (2, 3, 4))


def _policies(figures: dict) -> str:
    both = [figures[name] for name in POLICIES]
    bars = pictures.rates([(name, figures[name]["success"], tuple(figures[name]["interval"])) for name in POLICIES], 0.9)
    rows = [
        ["success", *[f"{100 * f['success']:.0f} % ({f['successes']} of {f['rollouts']})" for f in both]],
        ["Wilson 95 % interval", *[f"{100 * f['interval'][0]:.0f} to {100 * f['interval'][1]:.0f} %" for f in both]],
        ["network calls per executed action", *[_number(f["calls_per_action"]) for f in both]],
        *[[f"latency per action, {q} (ms)", *[_number(f["latency_ms"][q]) for f in both]] for q in ("p50", "p95", "p99")],
        ["mean ticks per episode", *[f"{f['mean_ticks']:.0f}" for f in both]],
        ["failed seeds", *[_text(", ".join(map(str, f["failed_seeds"])) or "none") for f in both]],
    ]
    return bars + _table(["", *POLICIES], rows, (1, 2))


def _videos(videos: Mapping, figures: dict) -> str:
    rate = float(figures.get("card", {}).get("rate_hz", 20))
    cells = []
    for name, frames in videos.items():
        mark = '<span class="chip bad">failed</span>' if "fail" in name else ""
        words = _text(name.replace("_", " "))
        cells.append(_film(pictures.mp4_bytes(list(frames), rate), f"{words} ({len(frames) / rate:.1f} s) {mark}"))
    return f'<div class="videos">{"".join(cells)}</div>' if cells else '<p class="note">no rollout was recorded</p>'


def _films(films: Mapping) -> str:
    return "".join(_film(content, _text(name.replace("_", " "))) for name, content in films.items())


def _film(content: bytes, caption: str) -> str:
    """The content of an MP4 file, with a caption in HTML."""
    film = f'<video src="{pictures.uri("video/mp4", content)}" controls loop muted autoplay playsinline></video>'
    return f"<figure>{film}<figcaption>{caption}</figcaption></figure>"


def _frames(examples: Mapping[str, np.ndarray]) -> str:
    """Per camera a table of small pictures: a row is a window, a group of columns is a future frame."""
    cameras = [name.partition("/")[2] for name in examples if name.startswith("present/")]
    kinds = [kind for kind in ("true", "forward", "video", "joint") if any(name.startswith(kind + "/") for name in examples)]
    parts = []
    for camera in cameras:
        header = ["present", *[f"{kind} +{tick}" for tick in examples["ticks"] for kind in kinds]]
        rows = [
            [_image(examples[f"present/{camera}"][row])]
            + [_image(examples[f"{kind}/{camera}"][row][index]) for index in range(len(examples["ticks"])) for kind in kinds]
            for row in range(len(examples["window"]))
        ]
        parts.append(f"<h3>{_text(camera)}</h3>" + _table(header, rows, kind="frames"))
    return "".join(parts)


def _ways(examples: Mapping[str, np.ndarray], figures: dict) -> str:
    """A row per window: the last frame of every camera as imagined and as seen, and both ways in the first axes of the action."""
    if not len(examples.get("window", ())) or "actions/joint" not in examples:
        return ""
    cameras, card = [name.partition("/")[2] for name in examples if name.startswith("joint/")], figures.get("card", {}).get("action", {})
    kinds, names = {"joint": "imagined", "true": "happened"}, card.get("names", [])
    planes = [(0, axis) for axis in range(1, min(3, examples["actions/true"].shape[2]))]
    axes = [" and ".join(_text(names[axis] if axis < len(names) else axis) for axis in plane) for plane in planes]
    rows = []
    for row in range(len(examples["window"])):
        told = {word: examples[f"actions/{kind}"][row] for kind, word in kinds.items()}
        if card.get("mode") == "delta":
            told = {word: np.cumsum(np.pad(way, ((1, 0), (0, 0))), axis=0) for word, way in told.items()}
        frames = [_image(examples[f"{kind}/{camera}"][row][-1]) for camera in cameras for kind in kinds]
        rows.append(frames + [pictures.ways({word: way[:, plane] for word, way in told.items()}) for plane in map(list, planes)])
    header = [f"{_text(camera)}, {word}" for camera in cameras for word in kinds.values()]
    return _table([*header, *axes], rows, kind="frames")


def _image(frame: np.ndarray) -> str:
    return f'<img alt="" src="{pictures.png(frame)}">'


def _modes(figures: dict) -> str:
    actions = [("inverse dynamics: actions", "inverse"), ("policy: actions (video deleted)", "policy")]
    images = [("forward dynamics: frames", "forward"), ("video prediction: frames (actions deleted)", "video")]
    parts = [(name, figures[key], "predict the mean") for name, key in actions if key in figures]
    parts += [(name, figures[key], "copy the last frame") for name, key in images if key in figures]
    if "joint" in figures:
        parts.append(("joint: actions", figures["joint"]["action"], "predict the mean"))
        parts.append(("joint: frames", figures["joint"]["image"], "copy the last frame"))
    rows = [
        [_text(name), baseline, _number(part.get("rmse", part.get("mse"))), _number(part.get("mean_rmse", part.get("copy_mse"))),
         f"<b>{_number(part['relative_error'])}</b>", _range(part.get("interval")), _number(part.get("relative_floor"))]
        for name, part, baseline in parts
    ]  # fmt: skip
    header = ["mode", "baseline", "error", "baseline's", "relative", "95 % interval", "floor"]
    return _table(header, rows, (2, 3, 4, 5, 6)) + _details(figures)


def _details(figures: dict) -> str:
    """Forward dynamics per camera and frame, inverse dynamics per action dimension."""
    names = figures.get("card", {}).get("action", {}).get("names", [])
    dimensions = figures["inverse"].get("dimensions", [])
    rows = [
        [_text(names[index] if index < len(names) else index), *[_number(d[key]) for key in ("rmse", "mean_rmse", "relative_error")]]
        for index, d in enumerate(dimensions)
    ]
    cameras = figures["forward"].get("cameras", {})
    frames = [
        [_text(camera), f"+{tick}", *[_number(f[key]) for key in ("mse", "copy_mse", "floor_mse", "relative_error")]]
        for camera, part in cameras.items()
        for tick, f in part["frames"].items()
    ]
    inverse = _table(["action", "RMSE", "mean's", "relative"], rows, (1, 2, 3)) if rows else ""
    forward = _table(["camera", "frame", "MSE", "copy's", "floor", "relative"], frames, (2, 3, 4, 5)) if frames else ""
    return f"<details><summary>by action dimension, camera and frame</summary><h3>inverse</h3>{inverse}<h3>forward</h3>{forward}</details>"


def _plans(plan_pictures: Mapping[str, str]) -> str:
    cells = [f"<div><h3>{_text(name.replace('_', ' '))}</h3><pre>{_text(text)}</pre></div>" for name, text in plan_pictures.items()]
    return f'<div class="plans">{"".join(cells)}</div>' if cells else ""


def _curves(curves: list[dict]) -> str:
    parts = []
    for stage in dict.fromkeys(line.get("stage", "train") for line in curves):
        lines = [line for line in curves if line.get("stage", "train") == stage]
        names = [name for name in dict.fromkeys(key for line in lines for key in line) if name not in QUIET]
        points = {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}
        series = {name: tuple(zip(*found, strict=True)) for name, found in points.items()}
        seconds = lines[-1].get("seconds", 0.0) - lines[0].get("seconds", 0.0)
        parts.append(f"<h3>{_text(stage)}, {seconds / 60:.1f} min</h3>{pictures.curve(series, 'steps')}")
    return "".join(parts)


def _setup(figures: dict) -> str:
    seeds = figures["streaming"].get("seeds", [])
    words = {name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value for name, value in checkpoint(figures).items()}
    rows = [[_text(name.replace("_", " ")), _text(value)] for name, value in words.items()]
    rows += [["rollout seeds", f"{min(seeds)} to {max(seeds)}"]] if seeds else []
    rows += [["held-out windows", _text(figures["windows"])]] if "windows" in figures else []
    rows += [["versions", _text(", ".join(f"{name} {value}" for name, value in versions(figures).items()))]]
    rows += [["machine", _text(provenance.machine())]]
    commands = figures.get("commands", ["python3 run.py demo", "uwm bench modes", "uwm explain demo"])
    again = "<h3>The commands</h3><pre>" + _text("\n".join(commands)) + "</pre>"
    settings = json.dumps(finite(figures.get("settings", {})), indent=1)
    return _table(["", ""], rows) + again + f"<details><summary>all settings</summary><pre>{_text(settings)}</pre></details>"
