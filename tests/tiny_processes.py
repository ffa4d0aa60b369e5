"""Command lines in processes of their own, forked from one that has imported everything.

Starting Python and importing torch and transformers takes longer than a tiny model does. Such a
process can be killed at any moment, and says how it ended, as one that a shell started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from spectrim.cli import main

IMPORTED = ["spectrim.verbs.shrink", "spectrim.report.terminal", __name__]


def start(
    arguments: list[str], log: Path, *, folder: Path | None = None, **environment: str
) -> ForkServerProcess:
    """Start `spectrim ARGUMENTS`; log: the file for what it says; folder: where it runs."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_run, args=(arguments, log, folder, environment))
    process.start()
    return process


def _run(
    arguments: list[str], log: Path, folder: Path | None, environment: Mapping[str, str]
) -> None:
    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    main.main(arguments)
