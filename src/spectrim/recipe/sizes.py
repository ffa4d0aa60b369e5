"""Sizes in bytes, as people write them: 600MB, 1.5GiB."""

from __future__ import annotations

import re

from spectrim.errors import SpectrimError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_WRITTEN = re.compile(r"\s*(-?\d{1,18}(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE | re.ASCII)


def in_bytes(text: str) -> bool:
    """Return whether a size is one in bytes rather than a part of the model."""
    found = _WRITTEN.fullmatch(text)
    return found is not None and found[2].upper() in UNITS


def parse_bytes(text: str, name: str = "size") -> int:
    """Return how many bytes a text such as '600MB' or '1.5GiB' means.

    name: what the user calls it.

    SpectrimError where it cannot be read, or is not above 0.
    """
    found = _WRITTEN.fullmatch(text)
    if found is None or found[2].upper() not in UNITS:
        raise SpectrimError(
            f"cannot read {name} '{text}'; write a number of bytes with its unit, such as '600MB' "
            "or '1.5GiB'"
        )
    if (size := round(float(found[1]) * UNITS[found[2].upper()])) <= 0:
        raise SpectrimError(f"{name} '{text}' is out of range; ask for more than 0 bytes")
    return size


def shown(size: float) -> str:
    """Return a size as it is written in text: '600.0 MB'."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
