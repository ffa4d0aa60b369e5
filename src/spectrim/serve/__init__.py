"""A made model as a server that speaks OpenAI's API."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much is served at once."""

    slots: int = 16
    """Answers made at the same time; one where the engine holds one sequence."""
    queue: int = 64
    """Requests that wait for a slot; those beyond are refused with status 429."""
    context: int | None = None
    """Tokens of prompt and answer together; None for what the model has, at most 4096."""
