"""Our checkpoint format: safetensors plus a `quantization_config` that transformers can read.

After ``import spectrim``, `from_pretrained` builds every format empty from its ``shape()`` on the
meta device and loads the factors into it; no dense copy of a factored matrix is ever allocated.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from spectrim.errors import SpectrimError
from spectrim.formats import formats, link
from spectrim.formats.packed import entropy
from spectrim.model.architectures import Place, architecture_of
from spectrim.model.decoding import use_kernels
from spectrim.model.experts import unpack_experts
from spectrim.model.fused import split_fused
from spectrim.model.sites import replace
from spectrim.model.tensor_files import DTYPES, Entry, stored_in

NAME = "spectrim"
VERSION = 3  # 1 stored steps of packed numbers otherwise, 2 no codes entropy-coded
SHARD_BYTES = 5_000_000_000
COPIED = 1 << 22  # bytes at a time
ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")  # in a file


@register_quantization_config(NAME)
class SpectrimConfig(QuantizationConfigMixin):
    """What `config.json` says about a smaller model.

    sites: dotted path -> {"format": name, **keywords of its ``shape()``}; paths that are not named
        hold their ordinary dense maps.
    shared_blocks: block -> the block whose parameters it shares; they are stored once.
    version: of this layout; a newer one is refused by older code.
    """

    def __init__(
        self,
        sites: dict[str, dict[str, Any]] | None = None,
        version: int = VERSION,
        quant_method: str = NAME,
        shared_blocks: dict[str, str] | None = None,
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]  # theirs is an enumeration
        self.version = version
        self.sites = sites or {}
        self.shared_blocks = shared_blocks or {}


@register_quantizer(NAME)
class SpectrimQuantizer(HfQuantizer):
    """Puts empty formats into the skeleton before transformers loads the weights."""

    requires_calibration = True

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        config: Any = self.quantization_config
        if config.version > VERSION:
            raise SpectrimError(
                f"this model was written in layout {config.version} and this spectrim reads up to "
                f"{VERSION}; install a newer spectrim"
            )
        packed = any(said["format"].startswith("quantized_") for said in config.sites.values())
        if config.version < 2 and packed:
            raise SpectrimError(
                f"this model was written in layout {config.version}, whose packed numbers this "
                f"spectrim does not read; shrink the model again"
            )
        install(model, config.sites)
        share(model, config.shared_blocks)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        use_kernels(model)
        target: Any = model  # or `save_pretrained` would write plain codes under coded names
        target._weight_conversions = [
            one for one in target._weight_conversions or [] if not _decodes(one)
        ]
        return model

    def get_weight_conversions(self) -> list[Any]:
        """Return what decodes entropy-coded codes while transformers loads them."""
        return [
            WeightConverter([rf"\.{part}{suffix}$"], [f".{part}"], [Decode(suffix)], force_cpu=True)
            for part in entropy.PARTS
            for suffix in (entropy.BYTES, entropy.SIX_BITS)
        ]

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Return True: `save_pretrained` writes the factors as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Return True: every factor is an ordinary parameter."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Return True, as transformers' Trainer refuses to train anything quantised otherwise."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Return True: `torch.compile` sees ordinary linear maps."""
        return True


class Decode(ConversionOps):
    """Packed codes as they are in memory, of those that a file holds entropy-coded.

    suffix: of the coded tensor's name.
    """

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the decoded tensor under its own name.

        kwargs: ``model``, and ``full_layer_name``, that of the tensor in it.
        """
        name: str = kwargs["full_layer_name"]
        (frame,) = next(iter(input_dict.values()))
        like = kwargs["model"].get_buffer(name)
        return {name: entropy.decoded(frame, name + self.suffix, like)}


def _decodes(conversion: Any) -> bool:
    return any(isinstance(one, Decode) for one in getattr(conversion, "operations", ()))


def install(model: PreTrainedModel, sites: dict[str, dict[str, Any]]) -> None:
    """Replace the named linear maps of a model by empty formats of the given shapes.

    Raises:
        SpectrimError: a format or a site that does not exist.
    """
    architecture = architecture_of(model.config)
    if architecture.experts is not None:
        for stack in architecture.stacks:
            for index, block in enumerate(model.get_submodule(stack.path).children()):
                path = f"{Place(stack, index).prefix}{architecture.experts}"
                if any(name.startswith(path + ".") for name in sites):
                    unpack_experts(block, architecture.experts)
    split_fused(model, sites)
    for name, about in sites.items():
        replace(model, name, empty(about, model.dtype))
    link(model, {name: about["owner"] for name, about in sites.items() if "owner" in about})
    _untie(model, {f"{name}.weight" for name in sites})


def _untie(model: PreTrainedModel, weights: set[str]) -> None:
    """Have transformers tie no weight of a module that was replaced, as that has none any more."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
            known = getattr(module, attribute, None) or {}
            left = {key: tied for key, tied in known.items() if prefix + key not in weights}
            if len(left) < len(known):
                setattr(module, attribute, left)


def share(model: PreTrainedModel, blocks: dict[str, str]) -> None:
    """Have transformers tie the parameters of blocks that repeat others.

    A repeated block stays a module of its own, with its own number and therefore its own place in
    the cache. ``_tied_weights_keys`` is what `save_pretrained` leaves out of the file.
    """
    target: Any = model
    if blocks:
        target._adjust_bias = _leave_bias
    for name, source in blocks.items():
        parameters = model.get_submodule(source).named_parameters()
        tied = {f"{name}.{part}": f"{source}.{part}" for part, _ in parameters}
        target.all_tied_weights_keys |= tied
        target._tied_weights_keys = {**(target._tied_weights_keys or {}), **tied}


def _leave_bias(tied: nn.Module, source: torch.Tensor) -> None:
    """Stand in for the fitting of a tied head's bias to the rows of its weight.

    The weights of GPT-2's maps lie the other way round, so that it would cut their biases.
    """


def empty(about: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """Return the format that ``about`` names, on the meta device, its numbers in ``dtype``."""
    shape = {key: value for key, value in about.items() if key != "format"}
    with torch.device("meta"):
        module: nn.Module = formats.get(about["format"]).from_shape(shape)
    return module.to(dtype)


def attach(model: PreTrainedModel, sites: dict[str, dict[str, Any]]) -> None:
    """Tell a model in memory what it holds, so that its `save_pretrained` writes our format."""
    config = SpectrimConfig(sites)
    target: Any = model
    target.config.quantization_config = config
    target.hf_quantizer = SpectrimQuantizer(config)
    target.is_quantized = True


def entropy_coded(part: Path, target: Path) -> Path:
    """Return a file of the same tensors, packed codes entropy-coded; part itself without any."""
    if not any(name.rpartition(".")[2] in entropy.PARTS for name in stored_in(part)):
        return part
    tensors = dict(entropy.coded(name, tensor) for name, tensor in load_file(part).items())
    save_file(tensors, target)
    return target


def write_shards(parts: list[Path], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Merge safetensors files into the sharded checkpoint that `save_pretrained` would write.

    Bytes are copied from file to file, so that memory does not grow with the model.
    """
    groups: list[list[Path]] = [[]]
    filled = 0
    for part in parts:
        size = part.stat().st_size
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(part)
        filled += size
    if len(groups) == 1:
        _merge(groups[0], folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    total = 0
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        header = _merge(group, folder / name)
        weight_map.update(dict.fromkeys(header, name))
        total += sum(end - begin for begin, end in (e["data_offsets"] for e in header.values()))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _merge(parts: list[Path], target: Path) -> dict[str, Any]:
    """Write the tensors of all parts into one safetensors file and return its header.

    They are ordered as safetensors orders them, so that each lies where its numbers are aligned.
    """
    found = {name: entry for part in parts for name, entry in stored_in(part).items()}
    codes = {dtype: code for code, dtype in DTYPES.items()}
    names = sorted(found, key=lambda name: (ORDER.index(codes[found[name].dtype]), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        entry = found[name]
        places = [end, end := end + entry.size]
        code, shape = codes[entry.dtype], list(entry.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": places}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            _copy(found[name], out)
    return header


def _copy(entry: Entry, out: BinaryIO) -> None:
    with entry.file.open("rb") as source:
        source.seek(entry.start)
        for begin in range(0, entry.size, COPIED):
            out.write(source.read(min(COPIED, entry.size - begin)))
