"""Whether a run that is killed while it heals, and given again, ends in the same bits.

    python benchmarks/interrupted.py -o run/

The demo model off its grid (rotated.py), cut to 60 % of its linear numbers and healed for ten steps
on mixed text: once at a stretch, once killed three times (SIGKILL), each time soon after another
checkpoint. Prints which files of the two outputs are the same, and fails where any is not.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from measuring import arguments, read_arguments, two_halves
from mixed_text import mixed
from one_line_errors import told
from rotated import chosen

from spectrim.errors import SpectrimError
from spectrim.recipe.recipe import Recipe

KILLS = 3
AFTER = 1.0  # seconds behind a checkpoint
DISTIL = {"tokens": "8x256", "steps": 10, "batch": 2, "every": 2, "patience": 100, "warmup": 2}
NAMED = "README.md"  # says in which folder it lies


def main() -> None:
    """Run both ways and compare."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    asked = read_arguments(parser)
    folder = chosen(asked)
    first, _ = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    calibration, healing = mixed(asked.data, first, asked.output)
    methods = "loss_aware_svd,loss_aware_neuron_selection"
    stages = [
        {"factorize": {"method": methods, "refine": "off"}},
        {"distil": {"text": str(healing), **DISTIL}},
    ]
    recipe = Recipe.model_validate(
        {
            "model": str(folder), "keep": "60% of linear", "stages": stages,
            "calibration": {"text": str(calibration), "tokens": "48x1024"},
        }
    )  # fmt: skip
    (asked.output / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    whole, killed = asked.output / "whole", asked.output / "killed"
    _run(asked, whole)
    for _ in range(KILLS):
        _kill(asked, killed)
    _run(asked, killed)
    _compare(whole, killed)


def _start(asked: argparse.Namespace, output: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("spectrim")), "shrink"]
    said = ["--recipe", asked.output / "recipe.yaml", "--cache", asked.cache, "-o", output]
    return subprocess.Popen([*command, *map(str, said), "--no-evaluate"])


def _run(asked: argparse.Namespace, output: Path) -> None:
    if _start(asked, output).wait():
        raise SpectrimError(f"the run that writes {output} failed")


def _kill(asked: argparse.Namespace, output: Path) -> None:
    """Begin a run, or go on with it, and kill it soon after it has written a checkpoint."""
    process, seen = _start(asked, output), _written(asked.cache)
    while process.poll() is None and _written(asked.cache) in (seen, 0):
        time.sleep(0.02)
    time.sleep(AFTER)
    if process.poll() is not None:
        raise SpectrimError("the run ended before it could be killed")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    print("killed", flush=True)


def _written(cache: Path) -> int:
    """Return when a checkpoint of training was last written, 0 where there is none."""
    found = cache.glob("work/*/*/training/checkpoint.safetensors")
    return max((file.stat().st_mtime_ns for file in found), default=0)


def _compare(whole: Path, killed: Path) -> None:
    names = sorted(file.name for file in whole.iterdir() if file.name != NAMED)
    for name in names:
        same = (whole / name).read_bytes() == (killed / name).read_bytes()
        print(f"{name}: {'the same' if same else 'DIFFERENT'}")
        if not same:
            raise SpectrimError(f"{name} differs")


if __name__ == "__main__":
    told(main)
