"""What a stage makes of a model as a whole model folder, kept in the cache and gone on with."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from spectrim.files import key_of
from spectrim.job.job import Job
from spectrim.model.checkpoint import write_shards
from spectrim.model.conversion import once

WRITTEN = {"config.json", "plan.json", "curves.json", "calibration.json", "scores.json"}
COMPANIONS = {".json", ".jinja", ".model", ".txt"}  # tokenizer, chat template, generation settings


def remake(
    job: Job, key: tuple[object, ...], config: dict[str, Any], blocks: Iterable[dict[str, Tensor]]
) -> None:
    """Write a model folder and let the job go on with it; where it is there already, only the last.

    key: what, beside the model itself, decides the result.
    config: entries of config.json that change; read last, so the blocks' maker may fill it.
    blocks: the tensors of one block after the other, by their new names; tensors outside the
        blocks stay.
    """
    name = key_of("stage", 1, job.source.fingerprint, key)

    def write(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".half-") as parts:
            files = []
            for number, tensors in enumerate(chain([job.rest()], blocks)):
                files.append(Path(parts) / f"{number}.safetensors")
                save_file({k: t.contiguous() for k, t in tensors.items()}, files[-1])
            write_shards(files, target)
        known = json.loads((job.source.folder / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**known, **config}, indent=2) + "\n")
        copy_companions(job.source.folder, target)

    job.adopt_model(once(job.cache, name, write))


def copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a model beside config, weights, and what is written of every run."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in COMPANIONS and not is_written(path):
            shutil.copyfile(path, target / path.name)


def is_written(path: Path) -> bool:
    """Return whether a file of a model folder is written anew rather than copied."""
    return path.name in WRITTEN or ".safetensors" in path.name
