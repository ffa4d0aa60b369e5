"""A tokenizer.json with fewer tokens, which gives every text that needs no others the same pieces.

Merging pairs never undoes a merge. So a text is still cut into the same pieces where all merges
that its tokens were made by are kept in their order, whatever others go. The best path of a Unigram
model stays the best one, too, where only pieces that are not on it go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from spectrim.errors import SpectrimError

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_FIXED = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")  # of BPE
_KINDS = ("BPE", "Unigram", "WordLevel")


def needed(said: Mapping[str, Any], used: Iterable[int]) -> list[int]:
    """Return the tokens that have to stay where some are used: ids, in order.

    Those that the used ones are merged from, all that stand for bytes, added and special ones, and
    what the tokenizer itself names stay too.

    Args:
        said: what tokenizer.json says.
        used: ids of tokens.

    Raises:
        SpectrimError: it is none of BPE, Unigram and WordLevel, or BPE that marks parts of words.
    """
    _refuse(said["model"])
    words = _words(said)
    names = {place: word for word, place in words.items()}
    found = {one for one in used if one in names}
    found |= {one["id"] for one in said.get("added_tokens") or ()} | _named(said)
    found |= {place for word, place in words.items() if _BYTE.fullmatch(word)}
    model = said["model"]
    if model["type"] == "BPE":
        found |= {words[one] for one in ByteLevel.alphabet() if _bytewise(said) and one in words}
        ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}
        parts = {part for one in found & names.keys() for part in _parts(names[one], ranks)}
        found |= {words[part] for part in parts if part in words}
    if model["type"] == "Unigram":  # by which unknown letters are scored
        least = min(score for _, score in model["vocab"])
        found |= {place for place, (_, score) in enumerate(model["vocab"]) if score == least}
    return sorted(found)


def trimmed(said: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return what tokenizer.json says with these tokens alone, numbered anew in their order.

    kept: ids in rising order, as `needed` returns them; an added token that is none of them goes.
    """
    new = {old: place for place, old in enumerate(kept)}
    added = [{**one, "id": new[one["id"]]} for one in said.get("added_tokens") or ()
             if one["id"] in new]  # fmt: skip
    found = {**said, "added_tokens": added, "model": _trimmed_model(said["model"], new)}
    if found.get("padding"):
        found["padding"] = {**found["padding"], "pad_id": new[found["padding"]["pad_id"]]}
    found["post_processor"] = _renumbered(found.get("post_processor"), new)
    return found


def _trimmed_model(model: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    found = dict(model)
    if model["type"] == "Unigram":
        found["vocab"] = [one for place, one in enumerate(model["vocab"]) if place in new]
        if model.get("unk_id") is not None:
            found["unk_id"] = new[model["unk_id"]]
        return found
    vocabulary = {word: new[old] for word, old in model["vocab"].items() if old in new}
    found["vocab"] = dict(sorted(vocabulary.items(), key=lambda one: one[1]))
    if model["type"] == "BPE":
        found["merges"] = [
            written
            for written, (left, right) in zip(model["merges"], _pairs(model), strict=True)
            if {left, right, left + right} <= vocabulary.keys()
        ]
    return found


def _refuse(model: Mapping[str, Any]) -> None:
    kind = str(model["type"])
    if kind not in _KINDS:
        raise SpectrimError(
            f"the tokenizer is of type {kind}, and trim_vocabulary knows {', '.join(_KINDS)}; "
            "leave out trim_vocabulary"
        )
    marked = next((name for name in _FIXED if model.get(name)), None)
    if marked is not None:
        raise SpectrimError(
            f"the tokenizer has a {marked}, which trim_vocabulary does not know; leave out "
            "trim_vocabulary"
        )


def _words(said: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token, the added ones apart that the model lacks."""
    vocabulary = said["model"]["vocab"]
    if said["model"]["type"] == "Unigram":
        return {piece: place for place, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is merged, in order; older files write a pair as one text."""
    pairs = []
    for one in model["merges"]:
        left, right = one if isinstance(one, list) else one.split(" ")
        pairs.append((left, right))
    return pairs


def _parts(word: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Return all that a token is merged from, letters first, by merging it as the tokenizer does.

    In a longer word the same merges make it: of all pairs the first in rank is merged, and none
    that reaches over the token's ends can have been before it was made.
    """
    pieces = list(word)
    found = list(word)
    while len(pieces) > 1:
        pairs = list(zip(pieces, pieces[1:], strict=False))
        best = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
        if pairs[best] not in ranks:
            break
        pieces[best : best + 2] = ["".join(pairs[best])]
        found.append(pieces[best])
    return found


def _bytewise(said: Mapping[str, Any]) -> bool:
    """Return whether text is cut into letters that stand for its bytes."""
    step = said.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    return any(one.get("type") == "ByteLevel" for one in steps)


def _named(said: Mapping[str, Any]) -> set[int]:
    """Return the ids that a tokenizer names: of padding, of what it puts around texts, unknown."""
    model = said["model"]
    found = _around(said.get("post_processor"))
    if said.get("padding"):
        found.add(said["padding"]["pad_id"])
    if model.get("unk_id") is not None:
        found.add(model["unk_id"])
    if model["type"] != "Unigram" and model.get("unk_token") in model["vocab"]:
        found.add(model["vocab"][model["unk_token"]])
    return found


def _around(step: Mapping[str, Any] | None) -> set[int]:
    step = step or {}
    found = {one for inner in step.get("processors", ()) for one in _around(inner)}
    for one in (step.get("special_tokens") or {}).values():
        found |= set(one["ids"])
    return found | {step[name][1] for name in ("sep", "cls") if name in step}


def _renumbered(step: Mapping[str, Any] | None, new: Mapping[int, int]) -> dict[str, Any] | None:
    """Return a step that puts tokens around texts, with their new ids."""
    if step is None:
        return None
    found = dict(step)
    if "processors" in found:
        found["processors"] = [_renumbered(one, new) for one in found["processors"]]
    if found.get("special_tokens"):
        found["special_tokens"] = {
            name: {**one, "ids": [new[old] for old in one["ids"]]}
            for name, one in found["special_tokens"].items()
        }
    for name in ("sep", "cls"):
        if name in found:
            found[name] = [found[name][0], new[found[name][1]]]
    return found
