"""The one error that users see: a single line saying what was wrong and what to do about it."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")  # as numpy says it, without a number


class SpectrimError(Exception):
    """Something the user can put right; the message is one line, the command line exits with 2.

    Write it as `<what is wrong>; <what was expected, or what to do>`.
    """


class UnavailableError(SpectrimError):
    """A data set or a library is not there: a suite goes on without, an explicit request fails."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> SpectrimError:
    """Return the error for a name that nothing answers to, with the nearest one and all others.

    kind: what was looked for, in the singular ("method"). known: the names that would have done.
    """
    names = sorted(known)
    listed = f"{kind}s: {', '.join(names)}" if names else f"there are no {kind}s yet"
    hint = did_you_mean(name, names)
    return SpectrimError(
        f"no {kind} named '{name}'" + (f"{hint} ({listed})" if hint else f"; {listed}")
    )


def one_line(error: BaseException) -> str | None:
    """Return what to tell the user in one line, or None for an error that is a fault of ours."""
    if isinstance(error, SpectrimError):
        return " ".join(str(error).split())
    if _disk_full(error):
        return "the disk is full; free some space and run the same command again"
    if out_of_memory(error):
        return "there is too little memory; close other programs, or read fewer tokens"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use '{error.filename}'; {error.strerror}"
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch and safetensors say so in a RuntimeError."""
    told = isinstance(error, RuntimeError) and re.search(
        "allocate memory|not enough memory", str(error)
    )
    return isinstance(error, MemoryError) or bool(told)


def _disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk, or a quota, is behind it; libraries wrap OSError in their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        if isinstance(error, OSError) and _CUT_SHORT.fullmatch(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
