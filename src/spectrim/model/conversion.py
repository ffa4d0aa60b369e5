"""Models written once into the cache in another shape, wholly or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig

from spectrim.errors import SpectrimError
from spectrim.model.tensor_files import main_dtype, stored
from spectrim.model.weights import auto_class, quiet

BESIDE = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "tekken.json",
    "LICENSE*",
)
"""What belongs to a model folder beside its config and weights."""
SHARD = "2GB"
_VERSION = 1  # goes up when a conversion writes something else, so that old ones are not reused
_HALF = ".half-"
_STALE = 24 * 3600  # seconds after which a half-written folder is taken for a killed run's


def once(cache: Path, key: str, write: Callable[[Path], None]) -> Path:
    """Return the cache's folder for ``key``; ``write`` fills it where it is not there yet.

    It is filled beside and then renamed, so that it is there wholly or not at all; where two
    processes fill it at the same time, the first to be done wins.
    Raises SpectrimError if the cache cannot be written to, and leaves nothing in it then.
    """
    target = cache / "models" / f"{key}-{_VERSION}"
    if target.is_dir():
        return target
    made = [folder for folder in (target.parent, cache) if not folder.exists()]
    try:
        _fill(target, write)
    except (OSError, SafetensorError) as error:
        raise SpectrimError(
            f"the model cannot be written to {target.parent} ({first_line(error)}); make room "
            "there or choose another cache"
        ) from error
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # works only while it is empty
    return target


def rearrange(folder: Path, trust_remote_code: bool, target: Path) -> None:
    """Write a model with its tensors as the model itself has them (experts packed, for one).

    Needs memory for the whole model once.
    Raises SpectrimError if transformers cannot make every tensor of the model.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    dtype = main_dtype(stored(folder).values())
    try:
        with quiet():
            whole, report = auto_class(config).from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
            )
    except Exception as error:  # a tensor of a wrong shape surfaces anywhere in the conversion
        raise SpectrimError(
            f"the tensors in {folder} do not fit its config.json ({first_line(error)}); "
            "fetch the model again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise SpectrimError(
            f"{folder} lacks {len(missing)} of the model's tensors, '{missing[0]}' first; "
            "fetch the model again"
        )
    with quiet():
        whole.save_pretrained(target, save_original_format=False, max_shard_size=SHARD)
    for file in (path for pattern in BESIDE for path in folder.glob(pattern)):
        shutil.copyfile(file, target / file.name)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing.

    Where that line ends in a colon, what it announces belongs to it.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else type(error).__name__


def _fill(target: Path, write: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    beside = Path(tempfile.mkdtemp(prefix=_HALF, dir=target.parent))
    try:
        write(beside)
        os.rename(beside, target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_HALF}*"):
        if time.time() - folder.stat().st_mtime > _STALE:
            shutil.rmtree(folder, ignore_errors=True)
