"""Runs as files: benchmarks/runs/NAME.json, from which the tables of the documents are made.

A benchmark writes such a file into its output folder; copied to benchmarks/runs/ and committed, its
numbers stand in the documents after `make docs`. The file says how they were obtained (``command``,
``commit``, ``seed``, ``machine``, ``model``, ``text``) and has them in ``rows``, each with the name
of its ``table``. What is not known is null. Where there are ``windows`` or ``minutes``, a line
behind the table says how it was measured. Of what is no benchmark, gather.py makes a run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUNS = Path(__file__).with_name("runs")
FIELDS = ("command", "commit", "seed", "machine", "model", "text", "rows")
"""What every run says; more may follow before the rows."""
MACHINE = ("cores", "threads", "arch", "torch", "transformers")

Run = dict[str, Any]


def read(name: str) -> Run:
    """Return the committed run of that name."""
    found: Run = json.loads((RUNS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def names() -> list[str]:
    """Return the names of all committed runs."""
    return sorted(path.stem for path in RUNS.glob("*.json"))


def write(run: Run, file: Path) -> None:
    """Write a run, a row a line, so that a change of one number is a change of one line."""
    about = {key: value for key, value in run.items() if key != "rows"}
    head = json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in run["rows"])
    file.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def how_measured(run: Run) -> str:
    """Return how a run's losses were measured; nothing where it does not say its windows."""
    if "minutes" in run:
        return f"Minutes of the suite: {', '.join(f'{one:.1f}' for one in run['minutes'])}."
    if "windows" not in run:
        return ""
    machine = run["machine"]
    counts = [(machine["cores"], "core"), (machine["threads"], "thread")]
    said = [f"{count} {word}{'s' * (count != 1)}" for count, word in counts if count]
    own = [row["commit"] for row in run["rows"] if "commit" in row]
    commits = list(dict.fromkeys([*run["commit"].split(", "), *own]))
    return (
        f"Excess loss over the dense model, nats per token, {run['error']}. "
        f"Windows of {run['windows']}; seed {run['seed']}; bf16; "
        f"{', '.join([*said, machine['arch']])}; torch {machine['torch']}, "
        f"transformers {machine['transformers']}; "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}. {run.get('note', '')}"
    ).rstrip()
