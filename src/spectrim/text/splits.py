"""The splits of a calibration text: for statistics, for choices, for the report."""

from __future__ import annotations

from pathlib import Path

from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.progress import Progress
from spectrim.recipe.recipe import Calibration
from spectrim.text import default_mix, documents
from spectrim.text.readable import refuse_length, refuse_tokens
from spectrim.text.tokens import Splits, split


def calibration_splits(
    calibration: Calibration, seed: int, source: Source, cache: Path, progress: Progress
) -> tuple[Splits, str]:
    """Return the three splits of the calibration text, and in words which text was used."""
    sequences, length = calibration.sequences, calibration.length
    refuse_length(source, length)
    if calibration.text in default_mix.NAMES:
        return default_mix.splits(
            calibration.text, source, (sequences, length), seed, cache, progress
        )
    tokenizer = sources.tokenizer(source)
    tokens = documents.read(calibration.text, tokenizer, length, at_most=2 * sequences)
    refuse_tokens(source, tokens, calibration.text)
    return split(tokens, sequences, seed, calibration.text), calibration.text
