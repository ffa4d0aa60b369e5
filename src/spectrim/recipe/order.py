"""Which stage may stand behind which, so that a recipe is refused before the long work.

The stages say the same of a model that they find otherwise than they need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.errors import SpectrimError

HEALING = ("distil", "distil_blocks", "lora", "low_memory")  # the stages that train
LATE = {  # stages that need whole matrices, which only some leave
    "drop_blocks": "drop_blocks takes a model with whole maps; put drop_blocks first",
    "sparsify": "sparsify needs dense weights, and an earlier stage has cut them; "
    "put sparsify first",
    "factorize": "factorize needs the maps as they came, and an earlier stage has changed them; "
    "put factorize first",
}
PACKED = "quantize has packed the numbers already; leave out the second one"
NOTHING_MISSING = (
    "compensate makes up for quantize or sparsify; put one of these before it in the recipe"
)
FILLED = "lora would fill the zeros that sparsify made; take distil instead"
WHOLE_NUMBERS = (
    "stored as whole numbers, to which lora cannot be merged; put lora before that stage, or take "
    "distil, which trains steps, offsets and numbers"
)
NO_NUMBERS = (
    "distil trains whole numbers, and no stage before it packs any; put quantize in front of it, "
    "or leave out numbers"
)
BITS_SAVE_BYTES = (
    "factorize offers few bits, which save no numbers; keep a part of the bytes, such as "
    "keep: 25% of linear bytes"
)
_GIVEN = ("bits", "group", "symmetric", "protect")  # of quantize, where factorize chooses


def refuse_order(stages: Sequence[tuple[str, Any]]) -> None:
    """Raise SpectrimError where a stage cannot do its work behind those in front of it.

    stages: name and checked options of each, in order.
    """
    for at, (name, options) in enumerate(stages):
        before = stages[:at]
        names = [one for one, _ in before]
        if name in LATE and any(one not in ("drop_blocks", "sparsify") for one in names):
            raise SpectrimError(LATE[name])
        if name == "quantize":
            _refuse_packing(names)
        if name == "compensate":
            _refuse_nothing_missing(before)
        if name == "lora":
            _refuse_merging(before)
        if name == "distil" and options.numbers and "quantize" not in names:
            raise SpectrimError(NO_NUMBERS)
        if name == "factorize" and options.bits:
            _refuse_bits(options, [made for one, made in stages[at:] if one == "quantize"])


def _refuse_packing(before: list[str]) -> None:
    if "quantize" in before:
        raise SpectrimError(PACKED)
    if "compensate" in before:
        raise SpectrimError(
            "quantize cannot pack what compensate has added to; put it in front of compensate"
        )


def _refuse_nothing_missing(before: Sequence[tuple[str, Any]]) -> None:
    missing, healed = False, ""
    for name, options in before:
        if name == "compensate":
            raise SpectrimError("compensate makes up for all at once; leave out the second one")
        if name in ("quantize", "sparsify"):
            missing, healed = True, ""
        elif name == "drop_blocks" or (name == "factorize" and options.split_fused):
            missing = False  # other blocks, to which nothing can be compared
        elif name in HEALING:
            healed = name
    if not missing:
        raise SpectrimError(NOTHING_MISSING)
    if healed:
        raise SpectrimError(
            f"compensate would undo what {healed} has trained; put it in front of {healed}"
        )


def _refuse_merging(before: Sequence[tuple[str, Any]]) -> None:
    for name, options in before:
        if name == "sparsify":
            raise SpectrimError(FILLED)
        if name == "quantize" and not options.protect:
            raise SpectrimError(f"behind quantize all maps are {WHOLE_NUMBERS}")


def _refuse_bits(factorize: Any, quantize: list[Any]) -> None:
    if not quantize:
        raise SpectrimError(
            "factorize chooses bits, which the stage quantize gives; add the stage quantize "
            "behind it, or leave out bits"
        )
    usual = type(quantize[0])()
    for key in _GIVEN:
        said, alike = getattr(quantize[0], key), [getattr(usual, key)]
        alike += [factorize.group] if key == "group" else []
        if said not in alike:
            raise SpectrimError(
                f"factorize chooses the bits of every map, so {key} of quantize would say nothing; "
                f"leave out {key}, or the bits of factorize"
            )
