"""The few large numbers at the head of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spectrim.report import words
from spectrim.report.folder import interval, rows, value


@dataclass(frozen=True)
class Headline:
    """One large number, what it is, and what stands behind it."""

    number: str
    unit: str
    name: str
    detail: str


def headlines(scores: dict[str, Any]) -> list[Headline]:
    """Return what the smaller model keeps and loses; nothing where it stands alone."""
    table_rows = list(rows(scores).values())
    if len(table_rows) < 2:
        return []
    dense, small = table_rows[0], table_rows[1]
    return [
        *_quality(dense, small),
        _kept(dense, small, "linear_numbers", "of the linear numbers kept", words.count),
        _kept(dense, small, "bytes_of_weights", "of the bytes of weights kept", words.bytes_),
        *_speed(dense, small),
    ]


def _quality(dense: dict[str, Any], small: dict[str, Any]) -> list[Headline]:
    ends = interval(small, "excess_loss")
    perplexity = [words.plain(value(row, "perplexity")) for row in (dense, small)]
    detail = f"95 % interval {words.span(ends)}. " if ends else ""
    detail += f"Perplexity {perplexity[0]} → {perplexity[1]}."
    excess = words.fixed(value(small, "excess_loss"), sign=True)
    kl = f"KL from dense {words.fixed(value(small, 'kl'))} nats/token."
    return [
        Headline(excess, "nats/token", "loss above dense", detail),
        Headline(words.share(value(small, "agreement")), "", "same first choice as dense", kl),
    ]


def _kept(dense: dict[str, Any], small: dict[str, Any], key: str, name: str, show: Any) -> Headline:
    before, after = value(dense, key), value(small, key)
    part = after / before if before and after is not None else None
    detail = f"{show(after)} of {show(before)}."
    numbers = value(dense, "numbers")
    if key == "bytes_of_weights" and numbers and after is not None:
        halves = [words.share(after / (width * numbers), 0) for width in (2, 4)]
        detail += f" Of dense in fp16 {halves[0]}, in fp32 {halves[1]}."
    return Headline(words.share(part), "", name, detail)


def _speed(dense: dict[str, Any], small: dict[str, Any]) -> list[Headline]:
    if value(small, "decode") is None:
        return []
    before, after = (words.plain(value(row, "decode")) for row in (dense, small))
    prefill = words.times(value(small, "prefill_ratio"))
    detail = f"{before} → {after} tokens/s. Prefill {prefill}."
    return [Headline(words.times(value(small, "decode_ratio")), "", "decoding speed", detail)]
