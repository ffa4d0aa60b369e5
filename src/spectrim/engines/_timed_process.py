"""Run as a module, in a process of its own: holds one model in one engine, and times what is asked.

Reads one JSON object a line from standard input, and writes one back for each: first {"path",
"engine", "threads", "context", "prompt": length} → {"prompt": tokens}; then any number of
{"prompt": tokens, "new"} → {"prefill", "decode"}, in seconds; and {} → {"peak": bytes}, after which
it ends. What the user can put right comes back as {"error": line}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from spectrim.engines import Running, engines
from spectrim.errors import SpectrimError, one_line
from spectrim.processes import peak

_TEXT = (
    "The river rose in the night, and by morning the lower fields lay under a sheet of brown water "
    "that carried fences, branches and a door past the mill. Nobody had slept. In the school they "
    "counted blankets, wrote down 47 names, and asked each other what the radio had said. "
)


def prompt(running: Running, length: int) -> list[int]:
    """Return tokens of English text, so many.

    Raises:
        SpectrimError: the vocabulary has none of them.
    """
    found = running.encode(_TEXT)
    if not found:
        raise SpectrimError("its tokenizer has no token for English text")
    return (found * (length // len(found) + 1))[:length]


def timed(running: Running, tokens: list[int], new: int) -> dict[str, float]:
    """Return the seconds in which a prompt is read and in which greedy tokens follow it."""
    running.clear()
    start = perf_counter()
    token = int(running.feed(tokens).argmax())
    middle = perf_counter()
    for _ in range(new):
        token = int(running.feed([token]).argmax())
    return {"prefill": middle - start, "decode": perf_counter() - middle}


def main() -> None:
    """Do what standard input asks for."""
    # What engines write to standard output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _answer(answers)
    except Exception as error:
        message = one_line(error)
        if message is None:
            raise
        _say(answers, {"error": message})


def _answer(answers: TextIO) -> None:
    first = json.loads(sys.stdin.readline())
    opened = engines.get(first["engine"])
    running: Running = opened(Path(first["path"]), first["threads"], first["context"])
    if running.context < first["context"]:
        raise SpectrimError(
            f"the model has {running.context} positions; give a shorter --prompt or fewer --new"
        )
    _say(answers, {"prompt": prompt(running, first["prompt"])})
    for line in sys.stdin:
        asked = json.loads(line)
        if not asked:
            break
        _say(answers, timed(running, asked["prompt"], asked["new"]))
    _say(answers, {"peak": peak()})
    running.close()


def _say(answers: TextIO, what: dict[str, Any]) -> None:
    print(json.dumps(what), file=answers, flush=True)


if __name__ == "__main__":
    main()
