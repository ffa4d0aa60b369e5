"""A checkpoint's tensors under the model's own names, read one by one, and the model without them.

A model never has to fit in memory: `skeleton` builds it empty, `Weights` fills in any part of it.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from spectrim.errors import SpectrimError, out_of_memory
from spectrim.model.architectures import architecture_of
from spectrim.model.config_values import refuse_ends
from spectrim.model.missing import missing_tensors
from spectrim.model.tensor_files import Entry, main_dtype, read, same_content, stored


class Weights:
    """The tensors of a model folder under the model's own names, read when they are asked for.

    model: the folder's skeleton, where the caller has it already; else it is built for its names.
    Raises SpectrimError if a file is damaged, or if tensors are missing or have other shapes than
    the model's.
    """

    def __init__(self, folder: Path, model: PreTrainedModel | None = None) -> None:
        entries = stored(folder)
        names: Mapping[str, str] = {name: name for name in entries}
        if not quantised(folder):  # smaller models of ours have parts the plain model lacks
            names = _own_names(model or skeleton_of(folder), entries, folder)
        self._entries = {own: entries[name] for own, name in names.items()}

    def names(self) -> list[str]:
        """Return the names of all tensors, in the model's order; a tied tensor has one name."""
        return list(self._entries)

    def has(self, name: str) -> bool:
        """Return whether the checkpoint holds this tensor."""
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._entry(name).shape

    def bytes(self) -> int:
        """Return the bytes of all tensors, a tied one counted once."""
        return sum(entry.size for entry in self._entries.values())

    def dtype(self) -> torch.dtype:
        """Return the floating-point type that takes the most bytes."""
        return main_dtype(self._entries.values())

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return these tensors; each owns its memory, and no file stays open.

        Raises SpectrimError if there is no such tensor, if one holds a NaN or an infinity, or if
        its file has become shorter.
        """
        entries = {name: self._entry(name) for name in names}
        found: dict[str, Tensor] = {}
        for file in sorted({entry.file for entry in entries.values()}):
            inside = [(name, entry) for name, entry in entries.items() if entry.file == file]
            with file.open("rb", buffering=0) as stream:
                for name, entry in sorted(inside, key=lambda item: item[1].start):
                    found[name] = _finite(read(stream, entry), name, file)
        return {name: found[name] for name in entries}

    def read_prefix(self, prefix: str) -> dict[str, Tensor]:
        """Return all tensors whose names start with ``prefix``, under what comes behind it."""
        names = [name for name in self._entries if name.startswith(prefix)]
        return {name.removeprefix(prefix): tensor for name, tensor in self.read(names).items()}

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """Return the tensors that ``names`` (new name → name so far) lists, under the new names."""
        other = copy.copy(self)
        other._entries = {new: self._entry(known) for new, known in names.items()}
        return other

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise SpectrimError(f"the checkpoint has no tensor '{name}'; names() lists what it has")
        return self._entries[name]


@dataclass(frozen=True)
class Match:
    """How the names in a checkpoint's files answer to those of a model."""

    names: Mapping[str, str]
    """The model's own name → the name in the files."""
    missing: tuple[str, ...]
    """The model's tensors that no name in the files answers to."""
    convertible: bool
    """Whether transformers would make missing tensors out of several others (or of a part)."""


def skeleton_of(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a folder's model in eval mode: parameters on the meta device, buffers real.

    Its dtype is the checkpoint's, and what the checkpoint ties is tied.
    """
    entries = stored(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    try:
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = auto_class(config).from_config(
                config, dtype=main_dtype(entries.values()), trust_remote_code=trust_remote_code
            )
    except Exception as error:  # each class takes its values apart in its own way
        if out_of_memory(error):
            raise
        raise SpectrimError(
            f"{folder / 'config.json'} makes no model ({_reason(error)}); put it right"
        ) from error
    for name in match(model, entries).names.keys() & model.all_tied_weights_keys.keys():
        del model.all_tied_weights_keys[name]  # stored apart, with another content
    model.tie_weights(recompute_mapping=False)  # moving parameters to the meta device untied them
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = _generation(folder)
    model.eval()
    return model


def _generation(folder: Path) -> GenerationConfig:
    """Return what generation_config.json says; SpectrimError where it cannot be read."""
    file = folder / "generation_config.json"
    try:
        found = GenerationConfig.from_pretrained(folder)
        refuse_ends(found.eos_token_id)
    except Exception as error:  # transformers checks its values in many ways
        raise SpectrimError(
            f"{file} is damaged ({str(error).partition(chr(10))[0]}); put it right"
        ) from error
    return found


def _reason(error: Exception) -> str:
    """Return in one line what a class of transformers could not take."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0]}" if said else type(error).__name__


def auto_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers that builds this config's language model."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def quantised(folder: Path) -> str | None:
    """Return the method that a folder's weights are quantised with, or None where they are not."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantisation = settings.get("quantization_config")
    return str(quantisation.get("quant_method")) if quantisation else None


def match(model: PreTrainedModel, entries: Mapping[str, Entry]) -> Match:
    """Return which name in the files answers to which of the model's own.

    Old names and a base-model prefix that the files lack or have too much are bridged as
    `from_pretrained` does; what the model has no use for is left out. Of tied tensors only the one
    that the others are tied to is kept, unless the files hold others with another content.
    """
    expected = dict.fromkeys(model.state_dict(), True)
    bridged = _bridge(model, entries, expected)
    names = {own: name for name, (own, whole) in bridged.items() if whole}
    _merge_tied(names, model, entries)
    tied = model.all_tied_weights_keys
    spare = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    absent = [own for own in expected if own not in names and tied.get(own) not in names]
    return Match(
        names={own: names[own] for own in expected if own in names},
        missing=tuple(own for own in absent if not any(part.search(own) for part in spare)),
        convertible=any(not whole for _, whole in bridged.values()),
    )


def _bridge(
    model: PreTrainedModel, names: Iterable[str], expected: dict[str, bool]
) -> dict[str, tuple[str, bool]]:
    """Return the model's own name for those in the files, and whether that is all of the tensor."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    bridged = {}
    for name in names:
        own, pattern = name, None
        if name not in expected:
            prefix = model.base_model_prefix
            own, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if own in expected:
            bridged[name] = own, pattern is None
    return bridged


def _merge_tied(
    names: dict[str, str], model: PreTrainedModel, entries: Mapping[str, Entry]
) -> None:
    for target, source in model.all_tied_weights_keys.items():
        if target in names and source not in names:
            names[source] = names.pop(target)
        elif target in names and same_content(entries[names[target]], entries[names[source]]):
            del names[target]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars off the screen; not all of them have a switch."""
    with redirect_stderr(StringIO()):
        yield


def _own_names(
    model: PreTrainedModel, entries: Mapping[str, Entry], folder: Path
) -> Mapping[str, str]:
    found = match(model, entries)
    if found.missing:
        head = architecture_of(model.config).head
        raise SpectrimError(missing_tensors(folder, entries.keys(), found.missing, head))
    for own, tensor in model.state_dict().items():
        if own in found.names and entries[found.names[own]].shape != tuple(tensor.shape):
            stored_shape = list(entries[found.names[own]].shape)
            raise SpectrimError(
                f"{folder} holds '{own}' as {stored_shape}, but its config.json makes it "
                f"{list(tensor.shape)}; fetch the model again"
            )
    return found.names


def _finite(tensor: Tensor, name: str, file: Path) -> Tensor:
    """Return the tensor; a NaN shows in both extremes, and finding them allocates nothing."""
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.aminmax(tensor)
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            raise SpectrimError(
                f"tensor '{name}' in {file} holds a NaN or an infinity; fetch the model again"
            )
    return tensor
