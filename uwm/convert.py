"""Datasets of every format from the command line: `uwm convert`, `uwm data show` and `uwm data view`.

To the formats that files alone explain, this adds the ones that need a simulator.
"""

import argparse
import json
from collections.abc import Iterable
from typing import Any

from uwm.core.config import ConfigError
from uwm_data.formats import FORMATS as FILE_FORMATS

FORMATS = {**FILE_FORMATS, "robosuite": "uwm.human"}
# What the ending of a target says about its format.
ENDINGS = {".zarr": "store", ".hdf5": "robomimic", ".h5": "robomimic"}


def main(parsed: argparse.Namespace) -> int:
    """`uwm convert`: 0 when every episode was converted, 1 when bad ones were skipped."""
    from uwm_data.conversion import convert

    report = convert(
        parsed.source,
        parsed.target,
        parsed.to or format_of(parsed.target),
        parsed.from_,
        workers=parsed.workers,
        source_options=values(parsed.option, "--option"),
        target_options=values(parsed.set, "--set"),
        progress=True,
        skip_bad=parsed.skip_bad,
        verify=parsed.verify,
        formats=FORMATS,
    )
    print("\n".join(report.lines()))
    return 1 if report.skipped else 0


def show(parsed: argparse.Namespace) -> int:
    """`uwm data show`."""
    from uwm_data.show import main_show

    return main_show(
        parsed.store,
        parsed.from_,
        options=values(parsed.option, "--option"),
        sheet_file=parsed.sheet,
        everything=parsed.all,
        as_json=parsed.json,
        formats=FORMATS,
    )


def view(parsed: argparse.Namespace) -> int:
    """`uwm data view`."""
    from uwm_data.view import main_view

    options = values(parsed.option, "--option")
    return main_view(parsed.store, parsed.from_, options=options, episode=parsed.episode, save=parsed.save, formats=FORMATS)


def format_of(target: str) -> str:
    """The format that the ending of a target stands for; ConfigError when it tells nothing."""
    for ending, name in ENDINGS.items():
        if target.rstrip("/").endswith(ending):
            return name
    known = ", ".join(f"{ending} ({name})" for ending, name in ENDINGS.items())
    raise ConfigError(f"{target!r} does not tell its format: add --to FORMAT, or end it with one of {known}")


def values(words: Iterable[str], option: str) -> dict[str, Any]:
    """KEY=VALUE words as a dict; a value is JSON where it can be, else text."""
    found = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} expects KEY=VALUE, got {word!r}")
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

