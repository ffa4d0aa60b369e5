"""An ordinary folder of transformers, which loads without spectrim: every map written out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from spectrim.exporters._dense_tensors import DenseTensors, padded
from spectrim.exporters._words import bytes_beside, filled_up
from spectrim.job.remake import copy_companions
from spectrim.model.checkpoint import write_shards
from spectrim.model.tensor_files import stored
from spectrim.progress import Progress

WRITES = "folder"


def dense(source: Path, output: Path, progress: Progress | None) -> list[str]:
    """Fill a folder with the model as transformers' own class has it, and say what that costs.

    MLPs that differ in width are filled up with zeros to that of the widest, which changes nothing
    of what they compute. Memory is needed for the model as it is stored and for one block of it.

    Raises:
        SpectrimError: a map stands for no matrix, or has a bias for which there is no place.
    """
    held = DenseTensors(source)
    groups, filled = _by_block(held.names()), 0
    with tempfile.TemporaryDirectory(dir=output, prefix=".parts-") as folder:
        parts: list[Path] = []
        for group in groups:
            tensors = {}
            for name in group:
                own = held.tensor(name).contiguous()
                tensors[name] = padded(own, held.shape(name)).clone()
                filled += tensors[name].nbytes - own.nbytes
            parts.append(Path(folder) / f"{len(parts)}.safetensors")
            save_file(tensors, parts[-1])
            if progress is not None:
                progress(len(parts), len(groups), "writing out")
        write_shards(parts, output)
    config = json.dumps(held.settings, indent=2) + "\n"
    (output / "config.json").write_text(config, encoding="utf-8")
    copy_companions(source, output)
    written = sum(entry.size for entry in stored(output).values())
    return [*filled_up(held.widths, max(held.widths.values(), default=0), filled),
            bytes_beside(written, held.bytes())]  # fmt: skip


def _by_block(names: list[str]) -> list[list[str]]:
    """Return the names in groups: those of each block, and those of no block."""
    groups: dict[str, list[str]] = {}
    for name in names:
        words = name.split(".")
        at = next((place for place, word in enumerate(words) if word.isdigit()), None)
        groups.setdefault(".".join(words[: at + 1]) if at is not None else "", []).append(name)
    return list(groups.values())
