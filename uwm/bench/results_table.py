"""docs/results/README.md from the JSON files beside it: `python -m uwm.bench.results_table`."""

import json
from pathlib import Path

from uwm.bench.runner import cells

FOLDER = Path("docs/results")
HEAD = """# Results of full runs

Made by `python -m uwm.bench.results_table` from the JSON files in this folder; each was written by the
command in its section with `--out docs/results/NAME.json`. *Not judged* means that the
evidence was too thin; *does not hold* is a result too.

What a small model of clips generates, fills in, goes on with and says: [gallery.html](gallery.html), made by
`uwm media train --out runs/clips` (five minutes on a core) and `uwm media gallery runs/clips --count 3 --out docs/results/gallery.html`.
"""


def build_table(folder: Path) -> str:
    """The page for all records in a folder, in the order of their names; ValueError names a file that is no record."""
    parts = [HEAD]
    for file in sorted(Path(folder).glob("*.json")):
        record = json.loads(file.read_text())
        if not {"bench", "claim", "gates", "verdict", "command"} <= set(record):
            raise ValueError(f"{file} is not the record of a bench: write it with `uwm bench NAME --out {file}`")
        parts.append(_section(record, file.name))
    return "\n".join(parts)


def _section(record: dict, name: str) -> str:
    lines = [f"## {record['bench']}: {record['verdict']}", "", record["claim"], ""]
    lines += ["| metric | baseline | value | 95 % interval | gate | verdict |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(cells(gate)) + " |" for gate in record["gates"]]
    runs = _runs(record)
    lines += ["", *(f"[{name}]({name}), {', '.join(parts)}{': ' if parts else ''}{run}.  " for run, parts in runs.items())]
    return "\n".join([*lines[:-1], lines[-1].rstrip(), ""])


def _runs(record: dict) -> dict[str, list[str]]:
    """{how figures came about, in words: the parts of which it is true}; no parts where it is true of all."""
    runs: dict[str, list[str]] = {}
    for part, told in record.get("parts", {}).items():
        runs.setdefault(_run(told), []).append(part)
    return runs if len(runs) > 1 else {_run(record): []}


def _run(told: dict) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
    return f"`{told['command']}`, {told['seconds']:.0f} s on {told['machine']}; {versions}"


def main() -> None:
    """Writes the page."""
    page = build_table(FOLDER)
    (FOLDER / "README.md").write_text(page)
    print(f"{FOLDER / 'README.md'} written")


if __name__ == "__main__":
    main()
