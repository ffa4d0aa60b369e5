"""Tokens into text as they come: whole letters only, and nothing of what a stop sequence ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 8  # tokens of one letter, after which it is no letter


class TextStream:
    """The text of one answer.

    decode: tokens → text. stop: texts that end the answer and are left out of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._shown = 0  # tokens whose text was given out
        self._before = 0  # tokens before them that their text depends on, such as by a space
        self._held = ""  # may be the beginning of a stop sequence
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that has become certain with one more token."""
        self._tokens.append(token)
        return self._checked(self._new(whole=True))

    def finish(self) -> str:
        """Return what was still held back, at the end of an answer that no stop sequence ended."""
        rest = self._checked(self._new(whole=False))
        rest, self._held = rest + self._held, ""
        return "" if self.stopped and not rest else rest

    def _new(self, whole: bool) -> str:
        """Return the text of the tokens that were not given out, if it ends with a whole letter."""
        known = self._decode(self._tokens[self._before : self._shown])
        text = self._decode(self._tokens[self._before :])
        broken = text.endswith(_BROKEN) and len(self._tokens) - self._shown < _LONGEST
        if (whole and broken) or len(self._tokens) == self._shown:
            return ""
        self._before, self._shown = self._shown, len(self._tokens)
        return text[len(known) :]

    def _checked(self, new: str) -> str:
        """Return what is certain of the held and the new text; note whether a sequence ended it."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for one in self._stop if (place := text.find(one)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, one) for one in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many letters at the end of a text may be the beginning of a stop sequence."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
