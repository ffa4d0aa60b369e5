"""What the stages found out on their way, as sentences."""

from __future__ import annotations

from typing import Any

from spectrim.report import words

SCALED = "all, scaled"  # as stages/_mixture.py calls it
NAMED = 6  # sites; of more, the rest is counted


def sentences(scores: dict[str, Any]) -> list[str]:
    """Return what scores.json has under "found" that a reader should know, one sentence each."""
    found = scores.get("found") or {}
    said = [found["chosen"]] if "chosen" in found else []
    said += [_allocation(found["allocation"])] if "allocation" in found else []
    said += [_mixture(found["mixture"])] if "mixture" in found else []
    said += [_unreached(found["without_tokens"])] if found.get("without_tokens") else []
    said += [_blocks(stage) for stage in found.get("dropped", [])]
    said += [_zeros(stage) for stage in found.get("sparsified", [])]
    said += [_bits(found["quantized"])] if "quantized" in found else []
    said += [_compensated(found["compensated"])] if "compensated" in found else []
    return said + [_healed(stage) for stage in found.get("healed", [])]


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
        + (", its predicted losses scaled so." if found["chosen"] == SCALED else ".")
    )


def _unreached(sites: list[str]) -> str:
    more = f" and {len(sites) - NAMED} more" if len(sites) > NAMED else ""
    many = f"{len(sites)} linear maps, which keep their"
    keeps = "1 linear map, which keeps its" if len(sites) == 1 else many
    return (
        f"No token of the calibration text came to {keeps} weights: "
        f"{', '.join(sites[:NAMED])}{more}."
    )


def _blocks(stage: dict[str, Any]) -> str:
    order, loss = stage["blocks"], stage["search_loss"]
    chosen = f", chosen by {stage['importance']}" if stage["importance"] else ""
    twice = len(order) - len(set(order))
    return (
        f"The model runs {len(order)} blocks{chosen}: {_ranges(order)}"
        + (f", {twice} of them again" if twice else "")
        + f". Loss on the search split {words.fixed(loss['before'])} before, "
        f"{words.fixed(loss['after'])} after."
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


def _zeros(stage: dict[str, Any]) -> str:
    left = len(stage["without_tokens"])
    return (
        f"In {stage['sites']} linear maps {stage['pattern']} of the weights were kept (chosen by "
        f"{stage['score']}) and the others set to zero, which stores as many numbers as before; "
        f"predicted to cost {words.plain(stage['predicted_loss'], 2)} nats/token."
        + (f" {left} maps that no token came to were left alone." if left else "")
    )


def _bits(found: dict[str, Any]) -> str:
    each = [f"{count} in {bits} bits" for bits, count in found["bits"].items()]
    how = {"gptq": "by GPTQ", "nearest": "to the nearest"}[found["rounding"]]
    left, unreached = len(found["left"]), len(found["without_tokens"])
    return (
        f"Linear maps stored in few bits, rounded {how}: {', '.join(each)}"
        + (f"; {left} are not" if left else "")
        + f". Predicted to cost {words.plain(found['predicted_loss'], 2)} nats/token"
        + (f", {unreached} maps that no token came to apart" if unreached else "")
        + "."
        + (
            f" Embedding and head in {found['ends']} bits, which no loss was predicted for."
            if found.get("ends")
            else ""
        )
    )


def _healed(stage: dict[str, Any]) -> str:
    loss, stopped = stage["search_loss"], stage.get("stopped")
    each = f" for each of {stage['windows']} windows" if "windows" in stage else ""
    steps = f"{stage['steps']} steps{each}"
    licence = f" (licence of the dense model: {stage['licence']})" if stage["licence"] else ""
    memory = stage.get("bytes")
    return (
        f"Healed by {stage['stage']}, {steps}, on {stage['tokens']} tokens of {stage['text']}"
        f"{licence}: loss on the search split, the split it was judged on, "
        f"{words.fixed(loss['before'])} before, {words.fixed(loss['after'])} after"
        + ("" if stage["used"] else ", so the model was kept as it was")
        + (f"; {stopped}" if stopped else "")
        + (
            f"; {memory / 2**20:.0f} MiB of weights, gradients and optimiser (counted), "
            f"AdamW's would be "
            f"{stage['bytes_of_adamw'] / 2**20:.0f}"
            if memory
            else ""
        )
        + "."
    )


def _compensated(found: dict[str, Any]) -> str:
    return (
        f"Factors of rank {found['rank']} beside {found['sites']} linear maps make up for what was "
        f"rounded or set to zero: predicted to cost {words.plain(found['predicted_before'], 2)} "
        f"nats/token without them, {words.plain(found['predicted_after'], 2)} with them."
    )
