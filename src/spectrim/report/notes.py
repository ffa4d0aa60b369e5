"""What the stages found out on their way, as sentences.

The sentence of a stage stands in its own file, as the constant REPORT, a template that is filled
with the note of the stage:

    {field}, {field:form}  a value of the note, "search_loss.before" one within another; the forms
                           are the functions in FORMS, and "counted UNIT" is "3 in 4 UNIT" of {4: 3}
    [field|text]           the text where the value is neither missing, nothing, false nor empty;
    [!field|text]          otherwise; [field=value|text]: where it is just that
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from spectrim.registry import Registry
from spectrim.report import words

NAMED = 6  # sites; of more, the rest is counted
HEALED = (  # of every stage that trains and has no sentence of its own
    "Healed by {stage}, {steps} steps[windows| for each of {windows} windows], on {tokens} tokens "
    "of {text}[licence| (licence of the dense model: {licence})]: loss on the search split, the "
    "split it was judged on, {search_loss.before:fixed} before, {search_loss.after:fixed} after"
    "[!used|, so the model was kept as it was][stopped|; {stopped}][bytes|; {bytes:mebibytes} MiB "
    "of weights, gradients and optimiser (counted), AdamW's would be {bytes_of_adamw:mebibytes}]."
)
_STAGES = Registry("stage", "spectrim.stages")
_CHOICE = re.compile(r"\[(!?)([\w.:]+)(?:=(\w+))?\|([^]]*)\]")
_FIELD = re.compile(r"\{([\w.]+(?::[^}]+)?)\}")


def sentences(scores: dict[str, Any]) -> list[str]:
    """Return what scores.json has under "found" that a reader should know, one sentence each."""
    found = scores.get("found") or {}
    told = [found["chosen"]] if "chosen" in found else []
    told += [_allocation(found["allocation"])] if "allocation" in found else []
    told += [_mixture(found["mixture"])] if "mixture" in found else []
    told += [_unreached(found["without_tokens"])] if found.get("without_tokens") else []
    return told + _of_stages(found)


def _of_stages(found: dict[str, Any]) -> list[str]:
    """Return the sentences of all stages in the order of their notes; healing comes last."""
    own = {name: _STAGES.constant(name, "REPORT") for name in _STAGES.names()}
    keys = {_STAGES.constant(name, "NOTE"): sentence for name, sentence in own.items()}
    told, healed = [], []
    for key, note in found.items():
        for entry in note if isinstance(note, list) else [note]:
            if key == "healed":
                healed.append(filled(own.get(entry["stage"]) or HEALED, entry))
            elif keys.get(key):
                told.append(filled(keys[key], entry))
    return told + healed


def filled(template: str, note: dict[str, Any]) -> str:
    """Return the sentence that a template makes of a note."""

    def chosen(choice: re.Match[str]) -> str:
        negated, field, wanted, text = choice.groups()
        value = _value(note, field)
        holds = value == wanted if wanted else bool(value)
        return text if holds != bool(negated) else ""

    return _FIELD.sub(lambda field: str(_value(note, field[1])), _CHOICE.sub(chosen, template))


def _value(note: dict[str, Any], field: str) -> Any:
    path, _, form = field.partition(":")
    value: Any = note
    for key in path.split("."):
        value = value.get(key)
    if form.startswith("counted "):
        return ", ".join(f"{count} in {key} {form[8:]}" for key, count in value.items())
    return FORMS[form](value) if form else value


def _allocation(found: dict[str, Any]) -> str:
    count = found["evaluations"]
    cost = f"measured {count} choices" if count else "measured nothing"
    own, other = found["search_loss"], found["search_loss_of_global"]
    return (
        f"The allocator {found['allocator']} {cost}; loss on the search split"
        + (", the split it chose on, " if count else " ")
        + f"{words.fixed(own)}, with the allocator global {words.fixed(other)}."
    )


def _mixture(found: dict[str, Any]) -> str:
    scales = ", ".join(f"{name} {words.fixed(one)}" for name, one in found["scales"].items())
    losses = ", ".join(f"{name} {words.fixed(one)}" for name, one in found["search_losses"].items())
    return (
        f"Several methods were weighed against each other by {found['evaluations']} measured "
        f"choices; true rise of the loss over the predicted one: {scales}. Loss on the search "
        f"split, which chose: {losses}; taken: {found['chosen']}"
        + (", its predicted losses scaled so." if found.get("scaled") else ".")
    )


def _unreached(sites: list[str]) -> str:
    more = f" and {len(sites) - NAMED} more" if len(sites) > NAMED else ""
    many = f"{len(sites)} linear maps, which keep their"
    keeps = "1 linear map, which keeps its" if len(sites) == 1 else many
    return (
        f"No token of the calibration text came to {keeps} weights: "
        f"{', '.join(sites[:NAMED])}{more}."
    )


def _ranges(order: list[int]) -> str:
    """Return block numbers as runs, "0-4, 6-29"."""
    runs: list[list[int]] = []
    for index in order:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


FORMS: dict[str, Callable[[Any], object]] = {
    "fixed": words.fixed,
    "plain": lambda value: words.plain(value, 2),
    "count": len,
    "bits": lambda value: f"{value:.1f}",
    "percent": lambda value: f"{value:.1%}",
    "ranges": _ranges,
    "repeats": lambda values: len(values) - len(set(values)),
    "mebibytes": lambda value: f"{value / 2**20:.0f}",
}
