"""A model whose embedding, head, tokenizer and config have only some of the tokens."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spectrim.errors import SpectrimError
from spectrim.files import key_of
from spectrim.model import fewer_tokens, sources
from spectrim.model.architectures import Place, architecture_of
from spectrim.model.checkpoint import write_shards
from spectrim.model.conversion import once
from spectrim.model.sources import Source
from spectrim.model.weights import Weights

KEPT = "kept_tokens.json"
"""File of a folder with fewer tokens: the ids that these had in the model it was made from."""
_BESIDE = ("generation_config.json", "LICENSE*", "README.md")
_TOKENS = re.compile(r".+_token_(id|ids|index)|(begin_)?suppress_tokens")


def needed(source: Source, used: Iterable[int]) -> list[int]:
    """Return the tokens of a model that have to stay where some are used: ids, in order.

    Raises:
        SpectrimError: its tokenizer is of a kind that cannot be trimmed.
    """
    rows = sources.config(source).get_text_config().vocab_size
    named = {one for said in _configs(source) for one in _ids(said)}
    found = {*fewer_tokens.needed(_said(source), used), *named}
    return sorted(one for one in found if 0 <= one < rows)  # some have no row at all


def with_tokens(source: Source, kept: Sequence[int], cache: Path) -> Source:
    """Return the model with these tokens alone, numbered anew in their order; made once.

    All else is the same to the bit, and so are the logits of these tokens.

    Args:
        source: a model whose weights are whole.
        kept: ids in rising order, as `needed` returns them.
        cache: folder that keeps it.

    Raises:
        SpectrimError: the tokenizer cannot be trimmed, or embedding and head are not the only
            tables of the vocabulary.
    """
    key = key_of("tokens", 1, source.fingerprint, _said(source), list(kept))

    def write(target: Path) -> None:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".half-") as parts:
            write_shards([*_parts(source, kept, Path(parts))], target)
        _write_words(source, kept, target)
        _refuse_other_tables(source, target)

    folder = once(cache, key, write)
    return Source(source.name, folder, sources.fingerprint(folder), source.trust_remote_code)


def kept_tokens(folder: Path) -> list[int] | None:
    """Return the ids that a folder's tokens had before others went, None where none did.

    Raises:
        SpectrimError: the file that says so is damaged.
    """
    file = folder / KEPT
    if not file.is_file():
        return None
    try:
        return [int(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise SpectrimError(f"{file} is no list of tokens; make the folder anew") from error


def renumbered(
    ids: Int[Tensor, "sequences length"], kept: Sequence[int], text: str
) -> Int[Tensor, "sequences length"]:
    """Return a text's tokens as the model with the kept tokens numbers them; text: its name.

    Raises:
        SpectrimError: one of them has gone.
    """
    table = torch.full((max(int(ids.max()), *kept) + 1,), -1)
    table[torch.tensor(kept)] = torch.arange(len(kept))
    found: Tensor = table[ids]
    if gone := int((found < 0).sum()):
        raise SpectrimError(
            f"{text} has {gone} tokens that were left out of the model's vocabulary; name another"
        )
    return found


def _parts(source: Source, kept: Sequence[int], folder: Path) -> Iterator[Path]:
    """Write all tensors in files of a block each, tables of the vocabulary narrowed."""
    model = sources.skeleton(source)
    weights, architecture = Weights(source.folder, model), architecture_of(model.config)
    tables = [f"{architecture.embed}.weight"]
    tables += [f"{architecture.head}.{name}" for name in ("weight", "bias")]
    stacks = tuple(f"{stack.path}." for stack in architecture.stacks)
    rest = weights.read(name for name in weights.names() if not name.startswith(stacks))
    rows = torch.tensor(kept)
    narrow = {name: one[rows] if name in tables else one for name, one in rest.items()}
    yield _saved(folder / "rest.safetensors", narrow)
    for stack in architecture.stacks:
        for index in range(len(list(model.get_submodule(stack.path).children()))):
            place = Place(stack, index)
            block = weights.read(one for one in weights.names() if one.startswith(place.prefix))
            yield _saved(folder / f"{place.name}.safetensors", block)


def _saved(file: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def _said(source: Source) -> dict[str, Any]:
    """Return what the tokenizer.json of a model says, or would say."""
    tokenizer = sources.tokenizer(source)
    if not tokenizer.is_fast:
        raise SpectrimError(
            f"the tokenizer of {source.name} runs by code of its own, and trim_vocabulary knows "
            "those of the library tokenizers; leave out trim_vocabulary"
        )
    said: dict[str, Any] = json.loads(_backend(tokenizer).to_str())
    return said


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    return getattr(tokenizer, "backend_tokenizer")  # noqa: B009 - only fast ones have it


def _write_words(source: Source, kept: Sequence[int], target: Path) -> None:
    """Write tokenizer, config and what else a model folder has, with the new ids."""
    sources.tokenizer(source).save_pretrained(target)
    new = {old: place for place, old in enumerate(kept)}
    _write(target / "tokenizer.json", fewer_tokens.trimmed(_said(source), kept))
    file = target / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    added = settings.get("added_tokens_decoder") or {}
    if added:
        settings["added_tokens_decoder"] = {
            str(new[int(old)]): one for old, one in added.items() if int(old) in new
        }
    _write(file, settings)
    for pattern in _BESIDE:
        for path in source.folder.glob(pattern):
            shutil.copyfile(path, target / path.name)
    for name in ("config.json", "generation_config.json"):
        if (file := source.folder / name).is_file():
            said = json.loads(file.read_text(encoding="utf-8"))
            _write(target / name, _with_new_ids(said, new))
    _write(target / KEPT, list(kept))


def _write(file: Path, said: object) -> None:
    indent = None if file.name in (KEPT, "tokenizer.json") else 2
    file.write_text(json.dumps(said, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _configs(source: Source) -> list[dict[str, Any]]:
    files = [source.folder / name for name in ("config.json", "generation_config.json")]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def _ids(said: Mapping[str, Any]) -> Iterator[int]:
    """Yield all tokens that a config names."""
    for name, value in said.items():
        if isinstance(value, dict):
            yield from _ids(value)
        elif _TOKENS.fullmatch(name):
            yield from (one for one in _listed(value) if type(one) is int)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _with_new_ids(said: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Return a config with the size of the vocabulary and the tokens that it names changed."""
    found: dict[str, Any] = {}
    for name, value in said.items():
        if isinstance(value, dict):
            found[name] = _with_new_ids(value, new)
        elif name == "vocab_size":
            found[name] = len(new)
        elif _TOKENS.fullmatch(name) and isinstance(value, list):
            found[name] = [new[one] for one in value if one in new]
        elif _TOKENS.fullmatch(name) and type(value) is int:
            found[name] = new.get(value)  # none where the embedding has no row for it
        else:
            found[name] = value
    return found


def _refuse_other_tables(source: Source, target: Path) -> None:
    made = Source(source.name, target, "", source.trust_remote_code)
    try:
        Weights(target, sources.skeleton(made))
    except SpectrimError as error:
        raise SpectrimError(
            f"{source.name} has more tables of its vocabulary than embedding and head "
            f"({error}); leave out trim_vocabulary"
        ) from error
