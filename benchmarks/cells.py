"""How a measured number with its uncertainty is written in the cell of a table."""

from __future__ import annotations

from collections.abc import Sequence


def around(pair: Sequence[float], digits: int = 3) -> str:
    """Return a value and half its interval."""
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def between(three: Sequence[float | None], digits: int = 2) -> str:
    """Return a value with both ends, its lower end alone, or neither."""
    value, *ends = (None if one is None else f"{one:.{digits}f}" for one in three)
    if not ends:
        return str(value)
    return f"{value} ({ends[0]} and more)" if ends[1] is None else f"{value} ({' to '.join(ends)})"  # type: ignore[arg-type]


def together(values: Sequence[float] | None, how: str) -> str:
    """Return one number for each text, all in one format; nothing where there are none."""
    return " / ".join(format(value, how) for value in values or ())
