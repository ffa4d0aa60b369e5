"""Which decisions of a plan the stage quantize can carry out."""

from __future__ import annotations

from spectrim.errors import SpectrimError
from spectrim.formats import formats
from spectrim.formats.packed.trellis_matrix import LEAST, MOST, UNIT
from spectrim.plan import Decision
from spectrim.rounding.few_bits import FORMATS

BITS = (1, 2, 3, 4, 8)


def refuse_unpackable(one: Decision) -> None:
    """Raise SpectrimError for a map that cannot be stored in the bits that a plan gives it."""
    if one.format not in FORMATS:
        raise SpectrimError(
            f"the plan stores {one.site} as {one.format} in {one.bits} bits, and only "
            f"{', '.join(FORMATS)} can be; set its bits to 0"
        )
    if one.trellis:
        _refuse_path(one)
        return
    if one.bits not in BITS or one.group < 0:
        raise SpectrimError(
            f"the plan stores {one.site} in {one.bits} bits in groups of {one.group}; "
            "expected 1, 2, 3, 4 or 8 bits, and groups of 0 (a row) or more"
        )
    if one.bits > 1:
        return
    if one.group or not one.symmetric:
        raise SpectrimError(
            f"the plan stores {one.site} in signs in groups of {one.group}; set its group to 0 and "
            "symmetric to true"
        )
    if one.format != "dense":
        raise SpectrimError(
            f"the plan stores {one.site}, a {one.format}, in signs, which whole matrices are; "
            "make it dense, or give it 2, 3, 4 or 8 bits"
        )
    largest = formats.get(one.stored_as).largest(one.out_features, one.in_features)
    if not 0 < one.rank <= largest:
        raise SpectrimError(
            f"the plan gives {one.site} rank {one.rank}; expected 1 to {largest}, from which on "
            "signs take as much as codes of three bits"
        )


def _refuse_path(one: Decision) -> None:
    """Raise SpectrimError for columns that cannot be paths through a trellis."""
    if one.block < 0:
        raise SpectrimError(
            f"the plan stores {one.site} as paths through a trellis, and only maps of the blocks "
            "can be; set its trellis to 0"
        )
    if one.bits or one.group or one.symmetric or one.correction or one.format != "dense":
        raise SpectrimError(
            f"the plan stores {one.site} as paths through a trellis, which whole matrices are and "
            "which have no bits, group or correction of their own; make it dense, with 0 and false "
            "for these, or set trellis to 0"
        )
    if not LEAST <= one.trellis <= MOST:
        raise SpectrimError(
            f"the plan gives {one.site} {one.trellis} bits for {UNIT} numbers; expected {LEAST} to "
            f"{MOST}"
        )
