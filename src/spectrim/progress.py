"""How far long work has come: the callback that every step of a run is given."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
