"""Which stage may stand behind which, so that a recipe is refused before the long work.

The stages ask again what they find; here the order alone is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.errors import SpectrimError

HEALING = ("distil", "distil_blocks", "lora", "low_memory")  # the stages that train
_MATRICES = ("drop_blocks", "sparsify", "factorize")  # the stages that take maps as they came
_GIVEN = ("bits", "group", "symmetric", "protect")  # of quantize, where factorize chooses


def refuse_order(stages: Sequence[tuple[str, Any]]) -> None:
    """Raise SpectrimError where a stage cannot do its work behind those in front of it.

    stages: name and checked options of each, in order.
    """
    names = [name for name, _ in stages]
    for at, (name, options) in enumerate(stages):
        before = names[:at]
        _refuse_late(name, before)
        if name == "compensate":
            _refuse_nothing_missing(before)
        if name == "quantize" and name in before:
            raise SpectrimError("quantize packs the numbers only once; leave out the second one")
        if name == "lora" and "sparsify" in before:
            raise SpectrimError("lora would fill the zeros that sparsify made; take distil instead")
        if name == "factorize" and options.bits:
            _refuse_bits([one for one in stages[at:] if one[0] == "quantize"])


def _refuse_late(name: str, before: list[str]) -> None:
    changing = [one for one in before if one not in ("drop_blocks", "sparsify")]
    if name in _MATRICES and changing:
        raise SpectrimError(
            f"{name} needs dense weights as they came, and {changing[0]} changes them; put it "
            f"in front of {changing[0]}"
        )


def _refuse_nothing_missing(before: list[str]) -> None:
    losing = [at for at, one in enumerate(before) if one in ("quantize", "sparsify")]
    if not losing:
        raise SpectrimError(
            "compensate makes up for quantize or sparsify; put one of these before it in the recipe"
        )
    healed = [one for one in before[losing[-1] :] if one in HEALING]
    if healed:
        raise SpectrimError(
            f"compensate would undo what {healed[0]} has trained; put it in front of {healed[0]}"
        )


def _refuse_bits(quantize: list[tuple[str, Any]]) -> None:
    if not quantize:
        raise SpectrimError(
            "factorize chooses bits, which the stage quantize gives; add the stage quantize "
            "behind it, or leave out bits"
        )
    ((_, options), *_) = quantize
    usual = type(options)()
    said = [key for key in _GIVEN if getattr(options, key) != getattr(usual, key)]
    if said:
        raise SpectrimError(
            f"factorize chooses the bits of every map, so {said[0]} of quantize would say nothing; "
            f"leave out {said[0]}, or the bits of factorize"
        )
