"""How big a model is, in every way that people mean it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from spectrim.formats.packed import entropy
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._census import all_numbers, embedding_numbers, linear_maps
from spectrim.model import tensor_files


@dataclass(frozen=True)
class Size:
    """Counts of one model; what lies on disk is None where no folder was given.

    ``numbers`` are all parameters, tied ones once; ``linear_numbers`` those of the linear maps in
    the blocks, biases apart; ``embedding_numbers`` those of embedding and head.
    A packed number is a number, its step none. ``bytes_in_memory`` are parameters and buffers, not
    what a forward pass needs besides. ``bytes_of_weights`` are those of the checkpoint's tensors as
    they are read, which sizes and plans count; ``bytes_on_disk`` those of its files, in which
    packed codes are entropy-coded.
    """

    numbers: int
    linear_numbers: int
    embedding_numbers: int
    bytes_in_memory: int
    bytes_of_weights: int | None
    bytes_on_disk: int | None


def size(model: PreTrainedModel, folder: Path | None = None) -> Size:
    """Return the size of a model and of the folder that it came from.

    Raises:
        SpectrimError: the folder holds no readable safetensors file, or the family is unknown.
    """
    held = [*model.parameters(), *model.buffers()]  # both leave repeated tensors out
    return Size(
        numbers=all_numbers(model),
        linear_numbers=sum(one.numbers for one in linear_maps(model) if one.place == "block"),
        embedding_numbers=embedding_numbers(model),
        bytes_in_memory=sum(one.numel() * one.element_size() for one in held),
        bytes_of_weights=None if folder is None else bytes_of_weights(folder),
        bytes_on_disk=None if folder is None else bytes_on_disk(folder),
    )


def bytes_on_disk(folder: Path) -> int:
    """Return the bytes of all tensors in the safetensors files that transformers would load.

    File headers and every other file are left out, so that equal weights count equal.

    Raises:
        SpectrimError: there is no such file, or one is damaged.
    """
    return sum(entry.size for entry in tensor_files.stored(folder).values())


def bytes_of_weights(folder: Path) -> int:
    """Return the bytes of all tensors once they are read, packed codes decoded to their bits.

    Raises:
        SpectrimError: as `bytes_on_disk` does, or a coded tensor is damaged.
    """
    return sum(tensor_bytes(folder).values())


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of every tensor once it is read, by its name in the files.

    Raises:
        SpectrimError: as `bytes_of_weights` does.
    """
    return {
        name: entropy.plain_bytes(name, tensor_files.head(entry, entropy.HEAD))
        if entropy.is_coded(name)
        else entry.size
        for name, entry in tensor_files.stored(folder).items()
    }


def measure(pair: Pair) -> Measurement:
    """Return the size of every model, with the bytes that its numbers would take as fp16 and fp32.

    ``linear_share`` and ``numbers_share`` are kept shares against the first model of the pair.
    Baselines keep all numbers in fewer bits: they get no shares, and the bytes that they would take
    packed; their bytes in memory, where they are not packed, say nothing.
    """
    folders, baselines = pair.evaluation.folders, pair.evaluation.baselines
    sizes = {label: size(model, folders.get(label)) for label, model in pair.models.items()}
    reference = next(iter(sizes.values()))
    return {
        label: _of_baseline(one, baselines[label])
        if label in baselines and label not in folders
        else _scores(one, reference)
        for label, one in sizes.items()
    }


def _of_baseline(one: Size, bytes_packed: int) -> list[Score]:
    packed = replace(one, bytes_of_weights=bytes_packed, bytes_on_disk=None)
    return [score for score in _scores(packed, packed) if score.name != "bytes_in_memory"]


def _scores(one: Size, reference: Size) -> list[Score]:
    scores = [
        Score("numbers", one.numbers, "numbers", "lower"),
        Score("linear_numbers", one.linear_numbers, "numbers", "lower"),
        Score("embedding_share", one.embedding_numbers / max(one.numbers, 1), "share", "none"),
        Score("bytes_in_memory", one.bytes_in_memory, "bytes", "lower"),
        Score("bytes_as_fp16", 2 * one.numbers, "bytes", "lower"),
        Score("bytes_as_fp32", 4 * one.numbers, "bytes", "lower"),
    ]
    if one.bytes_of_weights is not None:
        scores.append(Score("bytes_of_weights", one.bytes_of_weights, "bytes", "lower"))
    if one.bytes_on_disk is not None:
        scores.append(Score("bytes_on_disk", one.bytes_on_disk, "bytes", "lower"))
    if one is not reference:
        linear = one.linear_numbers / max(reference.linear_numbers, 1)
        scores.append(Score("linear_share", linear, "share", "lower"))
        scores.append(Score("numbers_share", one.numbers / reference.numbers, "share", "lower"))
    return scores
