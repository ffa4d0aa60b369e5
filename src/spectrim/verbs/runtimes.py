"""Models in processes of their own, one each, which are asked one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import spectrim
from spectrim.errors import SpectrimError
from spectrim.verbs.runnable import Runnable


class Runtime:
    """A process that holds one model; as a context manager, it is gone at the end."""

    def __init__(self, model: Runnable, prompt: int, new: int, threads: int) -> None:
        self.model = model
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spectrim.engines._timed_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, encoding="utf-8", env=_environment(threads),
        )  # fmt: skip
        self._asked = {
            "path": str(model.path.resolve()), "engine": model.engine, "threads": threads,
            "context": prompt + new, "prompt": prompt,
        }  # fmt: skip
        self._new = new
        self._tokens: list[int] = []

    def __enter__(self) -> Runtime:
        """Load the model."""
        try:
            self._tokens = self._answer(self._asked)["prompt"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def round(self) -> tuple[float, float]:
        """Return the seconds of reading the prompt and of decoding after it."""
        found = self._answer({"prompt": self._tokens, "new": self._new})
        return found["prefill"], found["decode"]

    def peak(self) -> int:
        """Return the most bytes that the process has had in memory, and end it."""
        return int(self._answer({})["peak"])

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SpectrimError(f"{self.model.name} could not be run: {self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise SpectrimError(f"{self.model.name}: {found['error']}")
        return found

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"its process ended with status {status}"


def _environment(threads: int) -> dict[str, str]:
    """Return an environment in which the process finds this very package, and asks no network."""
    package = str(Path(spectrim.__file__).parents[1])
    known = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(known),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
