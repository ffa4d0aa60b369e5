"""Which stage may stand behind which, so that a recipe is refused before the long work.

What a stage leaves behind, needs and refuses are constants in its own file, as spectrim.stages
describes them. The stages say the same of a model that they find otherwise than they need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.registry import Registry

ENDS_ARE_OUTSIDE = (
    "factorize buys embedding and head, which are outside the linear maps; keep a part of the "
    "whole model, such as keep: 25% of bytes, or leave out ends"
)
BITS_SAVE_BYTES = (
    "factorize offers few bits, which save no numbers; keep a part of the bytes, such as "
    "keep: 25% of linear bytes"
)
_STAGES = Registry("stage", "spectrim.stages")
_GIVEN = ("bits", "group", "symmetric", "protect")  # of quantize, where factorize chooses


def refuse_order(stages: Sequence[tuple[str, Any]]) -> None:
    """Raise SpectrimError where a stage cannot do its work behind those in front of it.

    stages: name and checked options of each, in order.
    """
    left: dict[str, str] = {}  # what is true of the model, and the stage that made it so
    for at, (name, options) in enumerate(stages):
        for fact, sentence in _facts("NEEDS", name, options).items():
            if fact not in left:
                raise SpectrimError(sentence)
        for fact, sentence in _facts("REFUSES", name, options).items():
            if fact in left:
                raise SpectrimError(sentence.format(earlier=left[fact]))
        for fact in _facts("CLEARS", name, options):
            left.pop(fact, None)
        left |= dict.fromkeys(_facts("LEAVES", name, options), name)
        if name == "factorize" and (options.bits or options.ends):
            _refuse_bits(options, [made for one, made in stages[at:] if one == "quantize"])


def _facts(constant: str, name: str, options: Any) -> dict[str, str]:
    """Return the facts in a stage's constant that hold with these options, with its sentences.

    A fact that ends in "if OPTION" or "unless OPTION" holds where that option is set, or is not.
    """
    written = _STAGES.constant(name, constant) or ()
    sentences = written if isinstance(written, dict) else dict.fromkeys(written, "")
    found = {}
    for text, sentence in sentences.items():
        fact, unless, option = text.partition(" unless ")
        if not unless:
            fact, _, option = text.partition(" if ")
        if not option or bool(getattr(options, option)) != bool(unless):
            found[fact] = sentence
    return found


def _refuse_bits(factorize: Any, quantize: list[Any]) -> None:
    if not quantize:
        raise SpectrimError(
            "factorize chooses bits, which the stage quantize gives; add the stage quantize "
            "behind it, or leave out bits"
        )
    if factorize.ends and not factorize.bits:
        raise SpectrimError(
            "factorize buys embedding and head along with the bits of the maps; name bits too, "
            "such as bits: [2, 3, 4, 8], or leave out ends"
        )
    if factorize.ends and quantize[0].ends:
        raise SpectrimError(
            "factorize chooses the bits of embedding and head, so ends of quantize would say "
            "nothing; leave out one of the two"
        )
    usual = type(quantize[0])()
    for key in _GIVEN:
        given, allowed = getattr(quantize[0], key), [getattr(usual, key)]
        allowed += [factorize.group] if key == "group" else []
        if given not in allowed:
            raise SpectrimError(
                f"factorize chooses the bits of every map, so {key} of quantize would say nothing; "
                f"leave out {key}, or the bits of factorize"
            )
