"""Proves a built wheel: installed alone, it shrinks a tiny model that transformers then loads.

    python tests/repository/wheel.py dist

Exits with 1 and one line where the files in dist are not those of this version, where the wheel
does not install, or where what it writes cannot be read. Takes minutes: torch is installed anew.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny_folders import tiny_folder
from tiny_runs import write_text

ROOT = Path(__file__).resolve().parent.parent.parent
KEEP = "70% of linear"

# Runs in the fresh environment, and so may use the wheel and what that brings, nothing else.
LOADED = """
import json, pathlib, sys
import spectrim, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

version, environment = sys.argv[1:]
assert spectrim.__version__ == version, f"the wheel says {spectrim.__version__}"
assert pathlib.Path(spectrim.__file__).is_relative_to(environment), spectrim.__file__
from spectrim.kernels.library import library
assert library() is not None, "the wheel brings no compiled kernels"
decisions = json.loads(pathlib.Path("small/plan.json").read_text())["decisions"]
assert any(one["format"] != "dense" for one in decisions), "no map was made smaller"
assert pathlib.Path("small/report.html").read_text().startswith("<!"), "the report is no page"
model, loading = AutoModelForCausalLM.from_pretrained("small", output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
ids = AutoTokenizer.from_pretrained("small")("w3 w4 w5", return_tensors="pt").input_ids
with torch.no_grad():
    logits = model(ids).logits
assert logits.shape == (1, 3, model.config.vocab_size) and logits.isfinite().all(), logits
whole = AutoModelForCausalLM.from_pretrained("model")
assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
"""


def built(folder: Path, version: str) -> Path:
    """Return the wheel in a folder that holds a wheel and an sdist of this version, no more.

    The wheel is for one platform, as it holds the compiled kernels.
    """
    wheels = list(folder.glob(f"spectrim-{version}-py3-none-*.whl"))
    expected = [*(one.name for one in wheels), f"spectrim-{version}.tar.gz"]
    found = sorted(file.name for file in folder.iterdir())
    if found != expected or len(wheels) != 1 or wheels[0].stem.endswith("-any"):
        sys.exit(f"{folder} holds {found}; expected an sdist and a wheel for one platform")
    return wheels[0].resolve()


def run(*command: str | Path, folder: Path) -> None:
    """Run a command in a folder, shown first; it sees nothing of this repository."""
    print("$", *(str(word).partition("\n")[0] for word in command), flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"the wheel fails: exit code {done.returncode} of {Path(command[0]).name}")


def prove(wheel: Path, version: str, folder: Path) -> None:
    """Install the wheel into a new environment in this folder, and use it there."""
    environment = folder / "environment"
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "venv", environment, folder=folder)
    for wanted in ("torch", wheel):  # torch alone first, as in the Makefile
        run(
            programs / "python", "-m", "pip", "install", "--quiet",
            "-c", ROOT / "constraints.txt", wanted, folder=folder,
        )  # fmt: skip
    tiny_folder(folder / "model")
    write_text(folder / "text.txt", words=64 * 32)
    run(
        programs / "spectrim", "shrink", "model", "--keep", KEEP, "--calibration", "text.txt",
        "--tokens", "12x32", "--cache", "cache", "-o", "small", folder=folder,
    )  # fmt: skip
    run(programs / "python", "-c", LOADED, version, environment, folder=folder)


if __name__ == "__main__":
    told = runpy.run_path(str(ROOT / "src" / "spectrim" / "version.py"))["__version__"]
    file = built(Path(sys.argv[1]), told)
    with tempfile.TemporaryDirectory() as place:
        prove(file, told, Path(place).resolve())
    print(f"{file.name} installs, shrinks a model and loads it")
