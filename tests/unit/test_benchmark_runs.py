"""A finished benchmark writes a run file, and the tables of the documents can be made of it."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import report_folder
from spectrim.report import table, tasks
from spectrim.report.folder import read
from spectrim.report.runs import merged

DENSE = [3.0, 3.1, 2.9]
VERSIONS = ("torch", "transformers")


@pytest.fixture(scope="module")
def bench(root: Path) -> Iterator[Any]:
    """Return what imports a module of benchmarks/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        patch.setattr(sys, "argv", ["benchmarks/some.py", "-o", "run/"])
        yield import_module


def losses(over: float, *texts: str) -> dict[str, Any]:
    """Return losses by text, every window of them ``over`` above the dense model's."""
    windows = [loss + over for loss in DENSE]
    return {text: {"loss": sum(windows) / len(windows), "windows": windows} for text in texts}


def kept(output: Path, *rows: dict[str, Any]) -> Path:
    """Write rows as a benchmark keeps them."""
    known = {f"{row['calibration']} | {row['label']} | {row['keep']:g}": row for row in rows}
    (output / "rows.json").write_text(json.dumps(known))
    return output


def row(label: str, keep: float, calibration: str = "", **more: Any) -> dict[str, Any]:
    return {"label": label, "keep": keep, "calibration": calibration, "commit": "abc", **more}


def published(bench: Any, output: Path, name: str) -> tuple[dict[str, Any], str]:
    """Return the run that a benchmark wrote, checked, and the tables that it shows."""
    run_files: ModuleType = bench("run_files")
    run = json.loads((output / f"{name}.json").read_text())
    assert [field for field in run_files.FIELDS if field not in run] == []
    assert set(run["machine"]) == set(run_files.MACHINE)
    assert run["command"] == "python benchmarks/some.py -o run/" and run["commit"] == "abc"
    return run, (output / "results.md").read_text()


def test_parts(bench, tmp_path):
    module = bench("parts")
    texts = ["WikiText-2", *bench("measuring").OUTSIDE]
    first, second, *_ = module.ROWS
    three = {"budgets": [0.9], "predicted": [0.01], "measured": [0.02]}
    own = "WikiText-2"
    rows = [
        row("dense", 1.0, own, **losses(0, *texts)),
        row(first, 0.8, own, stored=0.799, **losses(0.4, *texts)),
        row(second, 0.8, own, stored=0.8, **losses(0.1, *texts)),
        row("prediction", 0.0, own, **three),
    ]
    module._write(kept(tmp_path, *rows))
    run, said = published(bench, tmp_path, "parts")
    assert "0.100 ± 0.000 | 22.2 | 0.250 / 0.250 / 0.250 / 0.250 |" in said
    assert "| 90% | 0.0100 | 0.0200 |" in said
    assert [one["table"] for one in run["rows"]] == ["parts"] * 3 + ["predictions"]


def test_methods(bench, tmp_path):
    module = bench("methods")
    more = {"stored": 0.8, "predicted": 0.1, "seconds": 7.4, "decode": [0.9, 1.1, 1.0]}
    rows = [
        row("dense", 1.0, **losses(0, *module.WINDOWS)),
        row("one", 0.8, **losses(0.2, *module.WINDOWS), **more),
        row("two", 0.8, cannot="two cannot keep so much"),
        row("one,two", 0.8, **losses(0.1, *module.WINDOWS), **more),
    ]
    module._write(kept(tmp_path, *rows))
    said = published(bench, tmp_path, "methods")[1]
    assert "| 80% | one | 80.0% | 0.200 ± 0.000 | 0.200 ± 0.000 |" in said
    assert "| 0.100 | 1.00 (0.90 to 1.10) | 7 |" in said
    assert "| 80% | 2 | one | -0.100 ± 0.000 | -0.100 ± 0.000 |" in said
    assert "two: two cannot keep so much" in said


def test_claims(bench, tmp_path):
    module = bench("claims")
    dropped = {"dropped": [{"rounds": [{"removed": 17}, {"removed": 16}]}]}
    rows = [
        row("dense", 0.0, "4x8", notes={}, **losses(0, *module.WINDOWS)),
        row("drop 2", 0.0, "4x8", notes=dropped, **losses(0.3, *module.WINDOWS)),
    ]
    module._write(kept(tmp_path, *rows))
    said = published(bench, tmp_path, "claims")[1]
    assert "| drop 2 | 4x8 | 0.300 ± 0.000 | 0.300 ± 0.000 | 27.1 / 27.1 | removed 17, 16 |" in said


def test_heal(bench, tmp_path):
    module = bench("heal")
    texts = ("WikiText-2", "C4")

    def stages(cut: float, healed: float) -> list[dict[str, Any]]:
        found = zip(("dense", "factorize", "distil"), (0, cut, healed), strict=True)
        return [{"after": name, "minutes": 1.5, **losses(over, *texts)} for name, over in found]

    rows = [
        row(module.SVD_LABEL, 0.6, stages=stages(0.8, 0.4)),
        row("end to end", 0.6, stages=stages(0.6, 0.3)),
    ]
    module._write(kept(tmp_path, *rows))
    said = published(bench, tmp_path, "heal")[1]
    assert "| factorize + distil, by SVD alone | 1.5 | 0.400 ± 0.000 |" in said
    assert "| 50 % / 50 % | 63 % / 63 % |" in said


def test_memory(bench, tmp_path):
    module = bench("healing_memory")
    rows = [
        row("distil", 0.6, before=1e9, peak=3e9),
        row("lora", 0.6, before=1e9, peak=2.5e9),
    ]
    module._write(kept(tmp_path, *rows))
    assert "| lora | 2500 | 1500 | 75% |" in published(bench, tmp_path, "memory")[1]


def test_decode(bench):
    module = bench("decode")
    one = {"rates": [20.0, 22.0, 21.0], "ratios": [0.9, 1.0, 1.2], "bytes": 81_500_000}
    found = {"model": {"small": one | {"limit": 0.3}}, "compiled": {"small": one | {"limit": 0.4}}}
    tables = bench("tables")
    _, *lines = tables.TABLES["decode"].lines(module.rows_of(found))
    assert lines[0] == ["small", "21.0", "1.00 (0.90 to 1.20)", "81.5", "30%"]
    assert lines[1][0] == "small, torch.compile"


def test_the_suite_writes_what_the_report_shows(bench, tmp_path):
    folders = [
        report_folder.write(tmp_path / name, excess=over, suite=True)
        for name, over in (("80", 0.21), ("60", 0.92))
    ]
    found = [read(folder) for folder in folders]
    suite_rows = bench("suite")._run(found, folders)
    shown = {
        name: bench("tables")
        .TABLES[f"suite_{name}"]
        .lines([one for one in suite_rows if one["table"] == f"suite_{name}"])
        for name in ("measures", "texts", "tasks")
    }
    together = merged(found[0], found[1:])
    report = [[one.name.strip(), one.arrow, *one.cells] for one in table.lines(together)]
    assert shown["measures"][1:] == report and len(report) >= 20
    report = [
        [one.task, one.name, one.arrow, one.count, *one.cells] for one in tasks.lines(together)
    ]
    assert shown["tasks"][1:] == report and len(report) > 5
    assert shown["texts"][1][-1] == "+0.920 ± 0.110"


def test_profiles_are_gathered(bench):
    def found(by: str, *losses: float) -> dict[str, Any]:
        names = ("q", "k", "v", "o", "up") if by == "role" else (None,) * 5
        rows = [
            {
                "size": 0.6,
                "cut": "alone",
                "role": role,
                "block": at,
                "measured": loss,
                "error": 0.01,
            }
            for at, (role, loss) in enumerate(zip(names, losses, strict=True))
        ]
        about = {"model": "demo", "seed": 0, "threads": 2, "versions": dict.fromkeys(VERSIONS, "1")}
        about |= {"text": "my.txt", "calibration": "4x32", "sequences": 4, "length": 32}
        return about | {"by": by, "sizes": [0.6], "rows": rows[::-1] if by == "block" else rows}

    run = bench("gather").profile([found("role", 1, 2, 3, 4, 5), found("block", 5, 1, 2, 3, 4)])
    tables = bench("tables")
    roles, blocks = (tables.measured(name, run).splitlines() for name in ("roles", "blocks"))
    assert roles[0] == "| each map keeps | q | k | v | o | up |"
    assert roles[2].startswith("| 60% | 1.000 ± 0.010 | 2.000 ± 0.010 |")
    assert blocks[0] == "| all maps of a block keep | block 0 | 1 | 2 | 3 | 4 |"
    assert blocks[2].startswith("| 60% | 5.000 | 1.000 (1.000 to 1.000) |")


def test_the_ranks_of_the_example_are_gathered(bench):
    plain = {"method": "dense", "format": "dense", "rank": 48, "loss": 3.857, "runtime": 1.0}
    plain |= {"rouge1": 0.2542, "rouge2": 0.04, "rougeL": 0.2, "multiply_adds": 2e6, "bytes": 1e7}
    small = plain | {"rank": 12, "method": "svd", "bytes": 8e6, "rougeL_difference": -0.01}
    small |= {"rougeL_interval": [-0.02, 0.005]}
    training, splits = {"numbers": 2_560_000, "seed": 3}, {"train": 550, "search": 50}
    about = {"training": training, "splits": splits, "machine": "x86_64, one thread"}
    run = bench("gather").ranks({"about": about, "rows": [plain, small]})
    said = bench("tables").measured("ranks", run)
    assert run["seed"] == 3 and "2.56 M" in run["model"]
    assert "| 48 | dense | dense | 25.42 | 4.00 | 20.00 |  | 3.857 |" in said
    assert "| -1.00 [-2.00, +0.50] | 3.857 | 1.00 | 2.00 M (100%) | 8.00 M (80%) |" in said
