"""The scores as lines of a table: the same ones in terminal, card and page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectrim.report import words
from spectrim.report.folder import interval, rows, value


@dataclass(frozen=True)
class Line:
    """One measure: its name, what is better, a cell for each row of the scores, the change."""

    group: str
    name: str
    arrow: str
    cells: tuple[str, ...]
    change: str


@dataclass(frozen=True)
class _Measure:
    group: str
    name: str
    key: str
    show: Callable[[float | None], str]
    change: str = ""  # "difference", "ratio", or nothing
    better: str = "lower"


def _nats(number: float | None) -> str:
    return words.fixed(number, 3)


def _parts(number: float | None) -> str:
    return words.share(number)


_MEASURES = (
    _Measure("Quality", "Loss, nats/token", "loss", _nats, "difference"),
    _Measure("Quality", "Perplexity", "perplexity", words.plain, "ratio"),
    _Measure("Quality", "Excess loss, nats/token", "excess_loss", _nats),
    _Measure("Quality", "KL from dense, nats/token", "kl", _nats),
    _Measure("Quality", "Same first choice as dense", "agreement", _parts, better="higher"),
    _Measure("Size", "Numbers in linear maps", "linear_numbers", words.count, "ratio"),
    _Measure("Size", "Numbers in all", "numbers", words.count, "ratio"),
    _Measure("Size", "Bytes on disk", "bytes_on_disk", words.bytes_, "ratio"),
    _Measure("Size", "  against dense in fp16", "fp16_part", _parts),
    _Measure("Size", "  against dense in fp32", "fp32_part", _parts),
    _Measure("Size", "Bytes in memory", "bytes_in_memory", words.bytes_, "ratio"),
    _Measure("Size", "Share of embedding and head", "embedding_share", _parts, better="none"),
    _Measure("Cost", "Multiply-adds per token", "multiply_adds", words.count, "ratio"),
    _Measure("Cost", "  attention", "attention_multiply_adds", words.count, "ratio"),
    _Measure("Cost", "Prefill, tokens/s", "prefill", words.plain, "ratio", "higher"),
    _Measure("Cost", "Decoding, tokens/s", "decode", words.plain, "ratio", "higher"),
)


def lines(scores: dict[str, Any]) -> list[Line]:
    """Return a line for every measure that some row has, in order of groups."""
    table = [_with_parts(row, next(iter(rows(scores).values()))) for row in rows(scores).values()]
    return [
        Line(
            measure.group,
            _named(measure, table),
            words.ARROWS[measure.better],
            tuple(_cell(measure, row) for row in table),
            _change(measure, table),
        )
        for measure in _MEASURES
        if any(measure.key in row for row in table)
    ]


def texts(scores: dict[str, Any]) -> list[Line]:
    """Return a line for every text: dense loss, small loss, excess, KL, agreement."""
    table = list(rows(scores).values())
    if len(table) < 2:
        return []
    dense, small = table[0].get("texts", {}), table[1].get("texts", {})
    found = []
    for text, row in small.items():
        cells = (
            words.fixed(value(dense.get(text), "loss")),
            words.fixed(value(row, "loss")),
            _excess(row),
            words.fixed(value(row, "kl")),
            words.share(value(row, "agreement")),
        )
        found.append(Line("Texts", text, "", cells, ""))
    return found


def columns(scores: dict[str, Any]) -> list[str]:
    """Return the rows' labels, in order."""
    return list(rows(scores))


def _with_parts(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """Add the bytes on disk as parts of the dense model in other dtypes."""
    numbers, stored = value(dense, "numbers"), value(row, "bytes_on_disk")
    if not numbers or stored is None:
        return row
    return row | {"fp16_part": stored / (2 * numbers), "fp32_part": stored / (4 * numbers)}


def _named(measure: _Measure, table: list[dict[str, Any]]) -> str:
    if measure.key != "attention_multiply_adds":
        return measure.name
    context = table[0].get(measure.key, {}).get("settings", {}).get("context")
    return f"{measure.name} to {context} tokens" if context else measure.name


def _cell(measure: _Measure, row: dict[str, Any]) -> str:
    if measure.key not in row:
        return ""
    if measure.key == "excess_loss":
        return _excess(row)
    return measure.show(value(row, measure.key))


def _excess(row: dict[str, Any]) -> str:
    ends = interval(row, "excess_loss")
    shown = words.fixed(value(row, "excess_loss"), sign=True)
    return f"{shown} ± {words.fixed((ends[1] - ends[0]) / 2)}" if ends else shown


def _change(measure: _Measure, table: list[dict[str, Any]]) -> str:
    if len(table) < 2 or not measure.change:
        return ""
    before, after = value(table[0], measure.key), value(table[1], measure.key)
    if before is None or after is None:
        return words.MISSING
    if measure.change == "difference":
        return words.fixed(after - before, sign=True)
    # Speeds are compared round by round, which is steadier than the ratio of two medians.
    ratio = value(table[1], f"{measure.key}_ratio")
    return words.times(ratio if ratio is not None else after / before if before else None)
