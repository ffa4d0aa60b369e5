"""Processes: how many a run has and which one this is, its memory's peak, and its processor."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def processes() -> int:
    """Return how many processes this run has, as accelerate's launcher and torchrun tell them."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def process() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def own(name: str) -> str:
    """Return a name that no other process of the same run takes."""
    return f"{name}-{process()}" if process() else name


def peak() -> int:
    """Return the most bytes that this process has had in memory so far.

    Linux's ``ru_maxrss`` starts at what the parent had, so the kernel's own mark is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def machine() -> str:
    """Return the name of the processor."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
