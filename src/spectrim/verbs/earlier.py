"""Earlier runs on the same dense model: a new one is shown beside the best of its size so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spectrim.files import atomic_file, locked
from spectrim.text.tokens import content


def record(
    cache: Path,
    scores: Mapping[str, Any],
    identities: Mapping[str, str],
    texts: Mapping[str, Tensor],
    name: str = "",
) -> dict[str, Any] | None:
    """Keep a run's row and return the best earlier one, as ``best`` does, on its headline text.

    Args:
        cache: folder kept between runs.
        scores: what ``compare`` returned.
        identities: what stands for the content of "dense" and "small".
        texts: token windows [sequences, length] by name, the headline text first.
        name: what to call the run, such as its folder.
    """
    row = _row(scores, identities, texts, name)
    keep(cache, row)
    headline = next(iter(texts), None)
    if row["bytes_of_weights"] is None or headline not in row["texts"]:
        return None
    known = row["texts"][headline]["hash"]
    return best(cache, row["dense"], row["bytes_of_weights"], known, but_not=row["small"])


def keep(cache: Path, row: Mapping[str, Any]) -> None:
    """Add a row to the dense model's file; an older one of the same smaller model goes.

    What the older row says of other texts is taken over.
    """
    file = _file(cache, row["dense"])
    with locked(file):
        rows = list(_rows(file))
        older = [one for one in rows if one["small"] == row["small"]]
        texts = {known: one for old in older for known, one in old["texts"].items()}
        rows = [one for one in rows if one["small"] != row["small"]]
        rows.append({**row, "texts": texts | row["texts"]})
        with atomic_file(file) as partial:
            lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
            partial.write_text("".join(lines), encoding="utf-8")


def best(
    cache: Path, dense: str, most_bytes: float, text: str, *, but_not: str = ""
) -> dict[str, Any] | None:
    """Return the earlier run with the lowest excess loss on a text, None where there is none.

    The row holds name, small, bytes_of_weights, linear_share, and loss and excess on that text.

    Args:
        cache: folder kept between runs.
        dense: the dense model's identity.
        most_bytes: bytes of weights that it may have at most.
        text: ``content`` of the text's windows.
        but_not: identity of a smaller model that does not count.
    """
    found = []
    for row in _rows(_file(cache, dense)):
        on = next((one for one in row["texts"].values() if one["hash"] == text), None)
        small_enough = row["bytes_of_weights"] is not None and (
            row["bytes_of_weights"] <= most_bytes
        )
        if on and on["excess_loss"] is not None and small_enough and row["small"] != but_not:
            measured = {"loss": on["loss"], "excess_loss": on["excess_loss"]}
            found.append({key: row[key] for key in _KEPT} | measured)
    return min(found, key=lambda one: (one["excess_loss"], one["bytes_of_weights"]), default=None)


_KEPT = ("name", "small", "date", "bytes_of_weights", "linear_share")


def _row(
    scores: Mapping[str, Any],
    identities: Mapping[str, str],
    texts: Mapping[str, Tensor],
    name: str,
) -> dict[str, Any]:
    small = next(row for row in scores["rows"] if row["label"] == "small")
    return {
        "dense": identities["dense"],
        "small": identities["small"],
        "name": name,
        "date": scores["settings"]["date"],
        "bytes_of_weights": _value(small, "bytes_of_weights"),
        "linear_share": _value(small, "linear_share"),
        "texts": {
            text: {
                "hash": content(texts[text]),
                "loss": _value(on, "loss"),
                "excess_loss": _value(on, "excess_loss"),
            }
            for text, on in small["texts"].items()
        },
    }


def _value(row: Mapping[str, Any], name: str) -> float | None:
    value: float | None = row.get(name, {}).get("value")
    return value


def _file(cache: Path, dense: str) -> Path:
    return cache / "runs" / f"{dense}.jsonl"


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, leaving out lines that are damaged."""
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"small", "texts", *_KEPT} <= row.keys():
            yield row
