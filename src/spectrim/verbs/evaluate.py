"""Measuring models: which text, which reference, and that the text was not used before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spectrim.errors import SpectrimError
from spectrim.metrics import Evaluation, check_tasks
from spectrim.model import sources
from spectrim.model.fewer_rows import kept_tokens, renumbered, with_tokens
from spectrim.model.sources import Source
from spectrim.outputs.folder import output_file
from spectrim.outputs.manifest import are_scores
from spectrim.outputs.refusals import refuse_file
from spectrim.progress import Progress
from spectrim.recipe.options import parse_tokens
from spectrim.recipe.recipe import Calibration, Recipe
from spectrim.text import default_mix, documents
from spectrim.text.readable import refuse_length, refuse_tokens
from spectrim.text.splits import calibration_splits
from spectrim.text.tokens import MOST_SHARED, Tokens, overlap
from spectrim.verbs.comparison import compare_folders, second_text


def write_scores(scores: dict[str, Any], path: Path) -> None:
    """Write a scores dict as JSON, whole or not at all; a link to a file is followed.

    Raises:
        SpectrimError: anything but scores of ours lies there.
    """
    refuse_file(path, are_scores)
    with output_file(path) as partial:
        partial.write_text(
            json.dumps(scores, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def evaluate(
    name: str,
    *,
    text: str | Sequence[str] = "default",
    against: str | None = None,
    tokens: str = "16x1024",
    tasks: Evaluation | None = None,
    cache: Path | None = None,
    json_path: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the scores of a model beside another on a text that was not used to make it.

    Python's documentation is measured too: what is lost shows first on text unlike the calibration
    text.

    Args:
        name: folder of a smaller model, or any model.
        text: one or several, as for calibration, the headline first; those with a name are
            their report splits.
        against: the reference; None for the model that the folder was made from.
        tokens: how many windows of how many tokens, from the beginning of the text.
        tasks: suite, tasks, limit, data and whether to ask afresh; None for the texts alone.
        cache: as in ``shrink``; it also keeps every answer, so that interrupted work goes on.
        json_path: also write the scores there.
        progress: called as ``progress(done, total, what)``.

    Raises:
        SpectrimError: the text is too short or was used for calibration, a model or a task is not
            there (a task that nobody has is refused before any model is looked for), or the two
            models do not share a tokenizer.
    """
    if json_path is not None:
        refuse_file(json_path, are_scores)
    tasks = tasks or Evaluation()
    check_tasks(tasks.tasks)  # before models are fetched, which may take long
    cache = cache or sources.default_cache()
    progress = progress or (lambda done, total, what: None)
    small = sources.resolve(name, cache)
    dense = sources.resolve(against or made_from(small.folder), cache)
    whole, dense = dense, with_same_tokens(dense, small, cache)
    tokenizer = sources.tokenizer(small)
    texts = {}
    asked = [text] if isinstance(text, str) else list(text)
    for one in asked:
        source = whole if one in default_mix.NAMES else dense  # whose text those are
        windows, used = held_out(one, tokens, source, small.folder, cache, progress)
        if source is not dense and (kept := kept_tokens(dense.folder)):
            windows = replace(windows, ids=renumbered(windows.ids, kept, used))
        refuse_used(windows, small.folder, used if one in default_mix.NAMES else one)
        texts[used] = windows.ids
    if not set(asked) & set(default_mix.NAMES):  # which are mixes already
        second = second_text(tokenizer, next(iter(texts.values())))
        if not _used(Tokens.full(*second.values()), small.folder):
            texts |= second
    chosen = replace(tasks, cache=cache)
    scores = compare_folders(dense, small, texts, chosen, progress, name)
    scores |= _made_with(small.folder)
    if json_path is not None:
        write_scores(scores, json_path)
    return scores


def with_same_tokens(dense: Source, small: Source, cache: Path) -> Source:
    """Return a model with the tokens that a smaller one has left.

    Raises:
        SpectrimError: the two do not share a tokenizer otherwise.
    """
    words = sources.tokenizer(small).get_vocab()
    if words == sources.tokenizer(dense).get_vocab():
        return dense
    if kept := kept_tokens(small.folder):
        old = {kept[place]: word for word, place in words.items() if place < len(kept)}
        known = {place: word for word, place in sources.tokenizer(dense).get_vocab().items()}
        if all(known.get(place) == word for place, word in old.items()):
            return with_tokens(dense, kept, cache)
    raise SpectrimError(
        f"{small.name} and {dense.name} do not share a tokenizer, so their losses do not compare"
    )


def _made_with(folder: Path) -> dict[str, Any]:
    """Return what only the run that made a folder could measure, from its own scores."""
    try:
        known = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or none that can be read: nothing is known
        return {}
    return {name: known[name] for name in ("refinement", "found", "prediction") if known.get(name)}


def made_from(folder: Path) -> str:
    """Return the name of the model that an output folder was made from."""
    try:
        return str(json.loads((folder / "plan.json").read_text(encoding="utf-8"))["model"])
    except (OSError, KeyError, ValueError):
        raise SpectrimError(
            f"{folder} does not say what it was made from, as an original does not; name a model "
            "to compare it with by --against"
        ) from None


def held_out(
    name: str, tokens: str, source: Source, small: Path, cache: Path, progress: Progress
) -> tuple[Tokens, str]:
    """Return the first windows of a text, and what to call it.

    The default text is the report split of the one that the model in ``small`` was made with.
    """
    sequences, length = parse_tokens(tokens)
    refuse_length(source, length)
    if name in default_mix.NAMES:
        asked = Recipe(model=source.name, calibration=Calibration(tokens=f"48x{length}"))
        if (small / "recipe.yaml").is_file():
            asked = Recipe.from_yaml(small / "recipe.yaml")
        calibration = Calibration(text=name, tokens=asked.calibration.tokens)
        splits, used = calibration_splits(calibration, asked.seed, source, cache, progress)
        found, used = splits.report, f"report split of {used}"
    else:
        found, used = (
            documents.read(name, sources.tokenizer(source), length, sequences),
            _shown(name),
        )
        refuse_tokens(source, found, used)
    full = int(found.mask.all(dim=1).sum())
    if full < min(sequences, len(found)) or full < sequences and name not in default_mix.NAMES:
        raise SpectrimError(
            f"{name} gives {full} full windows of {length} tokens and {sequences} are "
            "wanted; ask for fewer or shorter ones with --tokens, or bring more text"
        )
    return Tokens.full(found.ids[:sequences]), used


def _shown(name: str) -> str:
    """Return a text's name without where it lies, which cards would otherwise publish."""
    path = Path(name)
    return f"{path.parent.name}/{path.name}".lstrip("/") if path.is_file() else name


def _used(windows: Tokens, folder: Path) -> float:
    """Return which part of these tokens the model in a folder was calibrated on, if too much."""
    record = folder / "calibration.json"
    if not record.exists():
        return 0.0
    known = torch.tensor(json.loads(record.read_text(encoding="utf-8"))["fingerprints"])
    shared = overlap(windows, known)
    return shared if shared > MOST_SHARED else 0.0


def refuse_used(windows: Tokens, folder: Path, name: str) -> None:
    """Raise SpectrimError where the model in a folder was calibrated on these tokens."""
    if shared := _used(windows, folder):
        raise SpectrimError(
            f"{name} and the text that {folder} was calibrated on share {shared:.0%}, so the "
            "result would be flattered; measure on other text"
        )
