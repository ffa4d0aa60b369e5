"""How a benchmark ends that was asked for what cannot be: with one line, as the command does."""

from __future__ import annotations

from collections.abc import Callable

from spectrim.errors import SpectrimError


def told(main: Callable[[], object]) -> None:
    """Run a benchmark; raise SystemExit with the message of a SpectrimError."""
    try:
        main()
    except SpectrimError as error:
        raise SystemExit(str(error)) from error
