"""Reading an output folder: whatever of its files is there."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrim.errors import SpectrimError

# Neither HTML nor a terminal may get these; a broken model can write them.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Output:
    """What an output folder says about how its model was made and how good it is.

    What has no file is empty. ``config`` is the model's own config.json.
    """

    name: str
    scores: dict[str, Any]
    plan: dict[str, Any]
    curves: dict[str, Any]
    recipe: str
    config: dict[str, Any]


def read(folder: Path, *, unmeasured: bool = False) -> Output:
    """Return what the folder holds, control characters replaced.

    Args:
        folder: where ``spectrim shrink`` or ``spectrim evaluate`` wrote.
        unmeasured: whether scores.json may be missing.

    Raises:
        SpectrimError: there is no scores.json, or a file is no JSON object.
    """
    if not unmeasured and not (folder / "scores.json").is_file():
        if (folder / "plan.json").is_file():
            raise SpectrimError(
                f"'{folder}' was not measured yet; run 'spectrim evaluate {folder} --json "
                f"{folder / 'scores.json'}' first"
            )
        raise SpectrimError(
            f"no scores.json in '{folder}'; expected a folder that 'spectrim shrink' or "
            "'spectrim evaluate' has written"
        )
    recipe = folder / "recipe.yaml"
    return Output(
        name=clean(folder.resolve().name),
        scores=_object(folder / "scores.json"),
        plan=_object(folder / "plan.json"),
        curves=_object(folder / "curves.json"),
        recipe=clean(recipe.read_text(encoding="utf-8")) if recipe.is_file() else "",
        config=_object(folder / "config.json"),
    )


def clean(text: str) -> str:
    """Return the text with control characters and lone surrogates shown as the sign for unknown."""
    return _CONTROL.sub("\ufffd", text)


def rows(scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return label → row, in order."""
    return {row["label"]: row for row in scores.get("rows", [])}


def value(row: dict[str, Any] | None, name: str) -> float | None:
    """Return one score's value; None where it is missing or was not finite."""
    score = (row or {}).get(name)
    found = score.get("value") if isinstance(score, dict) else score
    return float(found) if isinstance(found, (int, float)) else None


def interval(row: dict[str, Any] | None, name: str) -> tuple[float, float] | None:
    """Return one score's interval; None where it has none."""
    score = (row or {}).get(name)
    ends = score.get("interval") if isinstance(score, dict) else None
    return (float(ends[0]), float(ends[1])) if ends else None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SpectrimError(f"'{path}' is not JSON; write it again, or leave it out") from None
    if not isinstance(found, dict):
        raise SpectrimError(f"'{path}' is not a JSON object; write it again, or leave it out")
    cleaned: dict[str, Any] = _cleaned(found)
    return cleaned


def _cleaned(item: Any) -> Any:
    if isinstance(item, str):
        return clean(item)
    if isinstance(item, dict):
        return {clean(key): _cleaned(content) for key, content in item.items()}
    return [_cleaned(one) for one in item] if isinstance(item, list) else item
