"""The scores as lines of a table: the same ones in terminal, card and page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectrim.report import words
from spectrim.report.folder import interval, rows, value


@dataclass(frozen=True)
class Line:
    """One measure: its name, what is better, a cell for each row of the scores, the change.

    ``key`` names the score that it shows; of a line about a text it is empty.
    """

    group: str
    name: str
    arrow: str
    cells: tuple[str, ...]
    change: str
    key: str = ""


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
    _Measure("Quality", "JS from dense, nats/token", "jensen_shannon", _nats),
    _Measure("Quality", "Same first choice as dense", "agreement", _parts, better="higher"),
    _Measure("Quality", "Next token right", "next_token", _parts, "difference", "higher"),
    _Measure("Quality", "  lost, gained; McNemar", "lost", _parts, better="none"),
    _Measure("Size", "Numbers in linear maps", "linear_numbers", words.count, "ratio"),
    _Measure("Size", "  zeros among them, stored all the same", "zeros", _parts, better="none"),
    _Measure("Size", "Numbers in all", "numbers", words.count, "ratio"),
    _Measure("Size", "Bytes of weights", "bytes_of_weights", words.bytes_, "ratio"),
    _Measure("Size", "  against dense in fp16", "fp16_part", _parts),
    _Measure("Size", "  against dense in fp32", "fp32_part", _parts),
    _Measure("Size", "Bytes on disk, entropy-coded", "bytes_on_disk", words.bytes_, "ratio"),
    _Measure("Size", "Bytes in memory", "bytes_in_memory", words.bytes_, "ratio"),
    _Measure("Size", "Share of embedding and head", "embedding_share", _parts, better="none"),
    _Measure("Cost", "Multiply-adds per token", "multiply_adds", words.count, "ratio"),
    _Measure("Cost", "  attention", "attention_multiply_adds", words.count, "ratio"),
    _Measure("Cost", "Prefill, tokens/s", "prefill", words.plain, "ratio", "higher"),
    _Measure("Cost", "Decoding, tokens/s", "decode", words.plain, "ratio", "higher"),
    _Measure("Cost", "Time to first token, ms", "first_token", words.plain, "ratio"),
    _Measure("Cost", "Peak memory of a process", "peak_memory", words.bytes_, "ratio"),
    _Measure("Cost", "  without the libraries", "model_memory", words.bytes_, "ratio"),
)

# Said elsewhere, or in other words: as the change of another line, in a warning, beside a row.
_UNSAID = (
    *("gained", "mcnemar_p", "four_bit_grid", "linear_share", "numbers_share"),
    *("bytes_as_fp16", "bytes_as_fp32"),
)


def lines(scores: dict[str, Any]) -> list[Line]:
    """Return a line for every measure that some row has, in order of groups.

    Measures that are not listed here, of plug-ins for example, follow under their own names.
    """
    table = [_with_parts(row, next(iter(rows(scores).values()))) for row in rows(scores).values()]
    measures = (*_MEASURES, *_further(table))
    return [
        Line(
            measure.group,
            _named(measure, table),
            words.ARROWS[measure.better],
            tuple(_cell(measure, row) for row in table),
            _change(measure, table),
            measure.key,
        )
        for measure in measures
        if any(measure.key in row for row in table)
    ]


def _further(table: list[dict[str, Any]]) -> list[_Measure]:
    """Return a measure for every score that none of the listed ones shows."""
    listed = {measure.key for measure in _MEASURES} | set(_UNSAID)
    found: dict[str, _Measure] = {}
    for row in table:
        for key, score in row.items():
            if (
                key not in listed
                and not key.endswith("_ratio")
                and isinstance(score, dict)
                and "value" in score
            ):
                found.setdefault(key, _plain_measure(key, score))
    return list(found.values())


def _plain_measure(key: str, score: dict[str, Any]) -> _Measure:
    unit, better = str(score.get("unit", "")), str(score.get("better", "none"))
    name = key.replace("_", " ").capitalize()
    show = {"share": _parts, "bytes": words.bytes_, "numbers": words.count}.get(unit)
    named = name if show or not unit else f"{name}, {unit}"
    known = better if better in words.ARROWS else "none"
    return _Measure("Further", named, key, show or words.plain, "ratio", known)


def flips(row: dict[str, Any] | None) -> str:
    """Return what was right with dense and is wrong now, and the other way round, with p."""
    if value(row, "lost") is None:
        return ""
    shares = f"{words.share(value(row, 'lost'))}, {words.share(value(row, 'gained'))}"
    return f"{shares}; {words.probability(value(row, 'mcnemar_p'))}"


def texts(scores: dict[str, Any]) -> list[Line]:
    """Return a line for every text: dense loss, small loss, excess, KL, agreement, flips."""
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
            flips(row),
        )
        found.append(Line("Texts", text, "", cells, ""))
    return found


def columns(scores: dict[str, Any]) -> list[str]:
    """Return the rows' labels, in order."""
    return list(rows(scores))


def _with_parts(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """Add the bytes of weights as parts of the dense model in other dtypes."""
    numbers, stored = value(dense, "numbers"), value(row, "bytes_of_weights")
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
    if measure.key == "lost":
        return flips(row)
    score = row[measure.key]
    if isinstance(score, dict) and (score.get("settings") or {}).get("not_measured"):
        return words.NOT_MEASURED
    return measure.show(value(row, measure.key))


def _broken(measure: _Measure, table: list[dict[str, Any]]) -> bool:
    """Return whether both rows have the score, and one of them is no number by mistake."""
    scores = [row.get(measure.key) for row in table[:2]]
    return all(
        isinstance(one, dict) and not (one.get("settings") or {}).get("not_measured")
        for one in scores
    )


def _excess(row: dict[str, Any]) -> str:
    ends = interval(row, "excess_loss")
    shown = words.fixed(value(row, "excess_loss"), sign=True)
    return f"{shown} ± {words.fixed((ends[1] - ends[0]) / 2)}" if ends else shown


def _change(measure: _Measure, table: list[dict[str, Any]]) -> str:
    if len(table) < 2 or not measure.change:
        return ""
    before, after = value(table[0], measure.key), value(table[1], measure.key)
    if before is None or after is None:
        return words.MISSING if _broken(measure, table) else ""
    if measure.change == "difference":
        return words.change(after - before, "share" if measure.show is _parts else "")
    # Speeds are compared round by round, which is steadier than the ratio of two medians.
    ratio = value(table[1], f"{measure.key}_ratio")
    return words.times(ratio if ratio is not None else after / before if before else None)
