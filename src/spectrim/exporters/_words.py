"""What an export says of itself."""

from __future__ import annotations

from collections.abc import Mapping

from spectrim.report.words import bytes_


def bytes_beside(written: int, held: int) -> str:
    """Return what a file gains or loses against the folder it was made from, both in bytes."""
    if written == held:
        return f"{bytes_(written)} of weights, as many as in the folder"
    how = "more" if written > held else "less"
    part = abs(written - held) / max(held, 1)
    return f"{bytes_(written)} of weights, {part:.1%} {how} than the {bytes_(held)} of the folder"


def filled_up(widths: Mapping[str, int], width: int, filled: int) -> list[str]:
    """Return a line on MLPs that were filled up with zeros to one width, none where none was.

    widths: how many neurons each block's MLP has. filled: bytes of the zeros.
    """
    narrow = sum(one < width for one in widths.values())
    if not narrow:
        return []
    return [
        f"{narrow} of {len(widths)} MLPs are narrower than {width} neurons and were filled up with "
        f"zeros, {bytes_(filled)}"
    ]
