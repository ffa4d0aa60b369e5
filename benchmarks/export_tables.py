"""Tables of what exported models, kernels and the server say and how fast they are."""

from __future__ import annotations

from statistics import median
from typing import Any

from cells import between

Row = dict[str, Any]
Lines = list[list[str]]
LOSSES = ("loss", "loss_gguf", "loss_dense")  # here, in llama.cpp, of the dense folder
COMPARED = {"argmax_alike": ".1%", "largest_difference": ".4f", "loss": ".4f",
            "onnx_loss": ".4f", "megabytes": ".1f", "onnx_megabytes": ".1f"}  # fmt: skip


def exports(rows: list[Row]) -> Lines:
    """Return the lines on what a GGUF file and a dense folder say against their model."""
    head = ["model", "tokens of texts", "greedy tokens equal", "logits apart at most",
            "all in float32", "transformers, as stored", "loss here", "loss in llama.cpp",
            "as a dense folder", "MB, folder", "MB, GGUF"]  # fmt: skip
    wide = [row["logits_float32"] for row in rows]
    each = ["not measured" if one is None else f"{one:.4f}" for one in wide]
    return [head, *(
        [row["model"], "equal" if row["tokens_equal"] else "others",
         f"{row['greedy'][0]} of {row['greedy'][1]}", f"{row['logits']:.3f}", exact,
         f"{row['logits_as_stored']:.2f}" if "logits_as_stored" in row else "not measured",
         *(f"{row[one]:.4f}" for one in LOSSES),
         f"{row['megabytes_folder']:.1f}", f"{row['megabytes']:.1f}"]
        for row, exact in zip(rows, each, strict=True)
    )]  # fmt: skip


def rounded_inputs(rows: list[Row]) -> Lines:
    """Return the lines on what rounding to float16 moves, of single inputs the worst."""
    return [["rounded to float16", "logits move by at most"],
            *([row["rounded"], f"{row['logits']:.4f}"] for row in rows)]  # fmt: skip


def rounded_activations(rows: list[Row]) -> Lines:
    """Return the lines on what activations of eight bits cost packed exports, by matrices."""
    return [["model", "in float16", "MB", "loss above the folder's", "divergence"], *(
        [row["model"], row["wide"], f"{row['megabytes']:.1f}",
         "{:.4f} ± {:.4f}".format(*row["more"]), f"{row['divergence']:.4f}"] for row in rows
    )]  # fmt: skip


def adapters(rows: list[Row]) -> Lines:
    """Return the lines on factored maps in llama.cpp: multiplied out, or as an adapter."""
    return [["numbers kept", "in llama.cpp", "MB", "decode, tokens/s"], *(
        [row["keep"], row["way"], f"{row['megabytes']:.1f}",
         between([median(row["decoded"]), min(row["decoded"]), max(row["decoded"])], 1)]
        for row in rows
    )]  # fmt: skip


def exports_onnx(rows: list[Row]) -> Lines:
    """Return the lines on what ONNX Runtime says and how fast it is, against the folder."""
    head = ["folder", "greedy texts equal", "first tokens equal", "logits apart at most",
            "loss here", "in ONNX Runtime", "MB, folder", "MB, ONNX"]  # fmt: skip
    lines = [[*head, "decode, tokens/s", "x dense", "prefill, tokens/s", "x dense"]]
    for row in rows:
        greedy = row.get("greedy_alike")
        cells = [row["model"], "" if greedy is None else f"{greedy} of 10"]
        for key, how in COMPARED.items():
            cells.append(format(row[key], how) if key in row else "")
        for what in ("decoded", "read"):
            timed = f"{what}_per_second" in row
            cells.append(f"{row[f'{what}_per_second']:.0f}" if timed else "")
            cells.append(between(row[f"{what}_ratio"]) if timed else "")
        lines.append(cells)
    return lines


def kernels(rows: list[Row]) -> Lines:
    """Return the lines on how fast products straight from packed bits are."""
    lines = [["model", "prefill of 256, tokens/s", "x dense (rounds)", "decode, tokens/s",
              "x dense (rounds)"]]  # fmt: skip
    for row in rows:
        cells = [
            one
            for part in ("prefill", "decode")
            for one in (f"{row[part]:.1f}", between(row[f"{part}_ratio"]))
        ]
        lines.append([row["model"], *cells])
    return lines


def kernels_loss(rows: list[Row]) -> Lines:
    """Return the lines on what products with int8 activations lose."""
    return [["products by", "loss"], *([row["model"], f"{row['loss']:.4f}"] for row in rows)]


def serving(rows: list[Row]) -> Lines:
    """Return the lines on what many clients at once get of the server."""
    lines = [["clients", "seconds", "answers", "dropped", "mixed up",
              "swaps that would be found", "tokens/s, all together", "first token, s",
              "slot freed within, s", "requests", "memory of the server, MB"]]  # fmt: skip
    for row in rows:
        memory = " → ".join(f"{one:.0f}" for one in row["memory_mb"])
        lines.append(
            [str(row["clients"]), f"{row['seconds']:.0f}", str(row["answers"]), str(row["dropped"]),
             f"{row['mixed_up']}",
             f"{row['swaps_found']} of {row['swaps']}",
             f"{row['tokens_per_second']:.0f}",
             f"{row['first_token']:.2f}", f"{row['slot_freed']:.2f}", str(row["requests"]), memory]
        )  # fmt: skip
    return lines


def routes(rows: list[Row]) -> Lines:
    """Return the lines on how fast a made model is by each way to run it."""
    lines = [["run by", "MB", "decode, tokens/s", "x dense (rounds)", "x Q4_0 (rounds)",
              "prefill of 256, tokens/s", "x dense (rounds)"]]  # fmt: skip
    for row in rows:
        lines.append([
            row["model"], f"{row['megabytes']:.0f}", f"{row['decode']:.1f}",
            between(row["decode_of_dense"]), between(row["decode_of_q4_0"]),
            f"{row['prefill']:.0f}", between(row["prefill_of_dense"]),
        ])  # fmt: skip
    return lines
