"""The quick suite on the demo model at two sizes: every measure, dense beside small, and its time.

    python benchmarks/suite.py -o run/ [--keeps 80,60]

Shrinks by the default text, measures with the command line as a user would, and writes suite.json,
results.md with its tables, which are those of docs/results.md, and report.html, one page on all
sizes. The second size finds the dense model's answers in the cache. An interrupted run goes on
where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import publish

from spectrim.report import table, tasks, words
from spectrim.report.folder import Output, interval, read, rows, value
from spectrim.report.page import write_page
from spectrim.report.runs import merged

TEXTS = ("lm/wikitext2_tokens/valid.txt", "lm/exllamav2_cal/c4.utf8")
TOKENS = "8x1024"  # of each text
BETTER = {arrow: better for better, arrow in words.ARROWS.items()}


def main() -> None:
    """Shrink and measure every size, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SPECTRIM_DATA", "../shared/data"))
    )
    parser.add_argument("--keeps", default="80,60")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    if not asked.data.is_dir():
        raise SystemExit(f"no data in {asked.data}; set SPECTRIM_DATA to their folder")
    cache = ["--cache", str(asked.cache or asked.output / "cache")]
    folders = [asked.output / f"{keep}" for keep in asked.keeps.split(",")]
    for folder in folders:
        if not (folder / "plan.json").exists():
            kept = f"{folder.name}% of linear"
            _spectrim("shrink", "demo", "--keep", kept, "-o", folder, "--no-evaluate", *cache)
        if not (folder / "minutes.json").exists():
            _measure(folder, asked.data, cache)
    found = [read(folder) for folder in folders]
    write_page(folders[0], asked.output / "report.html", folders[1:])
    minutes = [json.loads((one / "minutes.json").read_text(encoding="utf-8")) for one in folders]
    text = f"calibrated on the default text; measured on {TOKENS} tokens of each text"
    print(publish(asked.output, "suite", _run(found, folders), text=text, minutes=minutes))
    print("\n".join(f"- {said}" for said in tasks.unmeasured(found[0].scores)))


def _measure(folder: Path, data: Path, cache: list[str]) -> None:
    began = time.perf_counter()
    texts = [part for text in (*TEXTS, "default") for part in ("--text", _path(data, text))]
    asked = ["--suite", "quick", "--data", data, "--tokens", TOKENS, *texts]
    _spectrim("evaluate", folder, *asked, "--json", folder / "scores.json", *cache)
    taken = (time.perf_counter() - began) / 60
    (folder / "minutes.json").write_text(json.dumps(taken), encoding="utf-8")


def _path(data: Path, text: str) -> object:
    return text if text == "default" else data / text


def _spectrim(*arguments: object) -> None:
    command = "from spectrim.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", command, *map(str, arguments)], check=True)


def _run(found: list[Output], folders: list[Path]) -> list[dict[str, Any]]:
    """Return the rows of the three tables."""
    together = merged(found[0], found[1:])
    labels = ["dense", *(f"{folder.name} %" for folder in folders)]
    return [*_measures(together, labels), *_texts(found, labels[-1]), *_tasks(together, labels)]


def _measures(together: dict[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    models = list(rows(together).values())
    found = []
    for line in table.lines(together):
        own = [row.get(line.key) for row in models]
        unit = next((one["unit"] for one in own if isinstance(one, dict)), "share")
        cells = [_held(row, line.key) for row in models]
        if line.key.endswith("_part"):  # which the report works out: bytes beside the dense model's
            width = {"fp16_part": 2, "fp32_part": 4}[line.key]
            whole = width * (value(models[0], "numbers") or 0.0)
            stored = [value(row, "bytes_of_weights") for row in models]
            cells = [None if one is None else one / whole for one in stored]
        about = {"measure": line.name.strip(), "better": BETTER[line.arrow], "unit": unit}
        models_ = dict(zip(labels, cells, strict=True))
        found.append({"table": "suite_measures", **about, "models": models_})
    return found


def _held(row: dict[str, Any], key: str) -> Any:
    """Return what a model has of a measure, as suite_tables.py writes it."""
    score = row.get(key)
    if score is None:
        return None
    if (score.get("settings") or {}).get("not_measured"):
        return words.NOT_MEASURED
    if key == "lost":
        return _flips(row)
    ends = interval(row, key) if key == "excess_loss" else None
    return [value(row, key), (ends[1] - ends[0]) / 2] if ends else value(row, key)


def _flips(row: dict[str, Any]) -> dict[str, Any] | None:
    if value(row, "lost") is None:
        return None
    return {"p": value(row, "mcnemar_p")} | {key: value(row, key) for key in ("lost", "gained")}


def _texts(found: list[Output], last: str) -> list[dict[str, Any]]:
    """Return the excess of every model on every text: the first size, baselines, the others."""
    first = rows(found[0].scores)
    others = [rows(other.scores)["small"] for other in found[1:]]
    labels = [*list(first)[1:], *(last for _ in others)]
    models = [*list(first.values())[1:], *others]
    return [
        {"table": "suite_texts", "text": text,
         "excess": {label: _held(model["texts"].get(text) or {}, "excess_loss")
                    for label, model in zip(labels, models, strict=True)}}
        for text in first["dense"]["texts"]
    ]  # fmt: skip


def _tasks(together: dict[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    models = [row["tasks"] for row in rows(together).values() if row.get("tasks")]
    found = []
    for task in dict.fromkeys(task for row in models for task in row):
        own = [row.get(task, {}) for row in models]
        for name in tasks.measures(own):
            first = next(row[name] for row in own if name in row)
            found.append(
                {"table": "suite_tasks", "task": task, "measure": tasks.named(name, first),
                 "better": first["better"], "unit": first["unit"], "n": first.get("n"),
                 "models": dict(zip(labels, (_score(row.get(name)) for row in own), strict=True))}
            )  # fmt: skip
        if any("lost" in row for row in own):
            found.append(
                {"table": "suite_tasks", "task": task, "measure": "lost, gained; McNemar",
                 "better": "none", "unit": "", "n": None,
                 "models": dict(zip(labels, map(_flips, own), strict=True))}
            )  # fmt: skip
    return found


def _score(score: dict[str, Any] | None) -> Any:
    if score is None or (score.get("settings") or {}).get("not_measured"):
        return score and words.NOT_MEASURED
    return {key: score[key] for key in ("value", "interval") if score.get(key) is not None}


if __name__ == "__main__":
    main()
