"""Peak memory of a process that loads a model folder and decodes: what one needs to use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectrim.errors import UnavailableError
from spectrim.metrics import Measurement, Pair, Score

TASKS = ("memory",)

_PROCESS = Path(__file__).with_name("_fresh_process.py")


def peak_memory(folder: Path | None, prompt: Sequence[int] = (), new_tokens: int = 1) -> int:
    """Return the peak resident bytes of a fresh process that loads a model and decodes on the CPU.

    Pages of the weight file that are mapped into memory count: they are what loading needs.

    Args:
        folder: what ``from_pretrained`` reads; None measures the imports alone.
        prompt: token ids that are read first, at least one.
        new_tokens: tokens decoded after it.

    Raises:
        UnavailableError: the process failed, as for want of memory.
    """
    asked = {
        "folder": None if folder is None else str(folder),
        "prompt": list(prompt),
        "new_tokens": new_tokens,
        "threads": torch.get_num_threads(),
    }
    # -P: the files beside the script must not be found in the place of packages of their names.
    done = subprocess.run(
        [sys.executable, "-P", str(_PROCESS)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        what = folder or "the imports"
        raise UnavailableError(f"the memory of {what} could not be measured: {said[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return int(found["peak"])


def measure(pair: Pair) -> Measurement:
    """Return the peak of each model that has a folder, and what remains without the libraries.

    ``model_memory`` is the peak less that of a process that only imports the libraries.

    Raises:
        UnavailableError: no model has a folder, or a process failed.
    """
    chosen = pair.evaluation
    folders = {label: chosen.folders[label] for label in pair.models if label in chosen.folders}
    if not folders:
        raise UnavailableError("memory is measured on model folders, and none is given")
    first = next(iter(pair.texts.values()), torch.ones(1, chosen.prompt_tokens, dtype=torch.long))
    prompt = first[0, : chosen.prompt_tokens].tolist()
    said = pair.said("memory")
    said(0, len(folders))
    libraries = peak_memory(None)
    found: Measurement = {}
    for done, (label, folder) in enumerate(folders.items(), 1):
        peak = peak_memory(folder, prompt, chosen.new_tokens)
        found[label] = _scores(peak, libraries, len(prompt), chosen.new_tokens)
        said(done, len(folders))
    return found


def _scores(peak: int, libraries: int, prompt: int, new_tokens: int) -> list[Score]:
    how = {
        "libraries": libraries,
        "prompt_tokens": prompt,
        "new_tokens": new_tokens,
        "threads": torch.get_num_threads(),
        "device": "cpu",
    }
    return [
        Score("peak_memory", peak, "bytes", "lower", settings=how),
        Score("model_memory", max(0, peak - libraries), "bytes", "lower", settings=how),
    ]


def _environment() -> dict[str, str]:
    """Return an environment in which the process finds this very package, and asks no network."""
    package = str(Path(__file__).parents[2])
    known = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known), "HF_HUB_OFFLINE": "1"}
