"""An output folder as `spectrim shrink` leaves it, made of plausible random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import report_suite
from report_suite import quality, score

SHAPES = {
    "q": (576, 576, "self_attn.q_proj"),
    "k": (192, 576, "self_attn.k_proj"),
    "v": (192, 576, "self_attn.v_proj"),
    "o": (576, 576, "self_attn.o_proj"),
    "gate": (1536, 576, "mlp.gate_proj"),
    "up": (1536, 576, "mlp.up_proj"),
    "down": (576, 1536, "mlp.down_proj"),
}
DENSE_NUMBERS = 134_515_008
LINEAR_NUMBERS = 106_168_320
ENDINGS = (
    " was built in 1858 and stands on a low rock of granite. Its light can be seen from twenty "
    "miles away, and on clear nights the beam sweeps the whole bay",
    " plants turn light into chemical energy. The light is taken up by chlorophyll in the leaves, "
    "which is why most plants look green to us",
)


def spectra(blocks: int, seed: int) -> dict[tuple[int, str], np.ndarray]:
    """Return all singular values of every site: power laws that bend, deeper ones flatter."""
    draw = np.random.default_rng(seed)
    found = {}
    for block in range(blocks):
        for role, (out, inner, _) in SHAPES.items():
            full = min(out, inner)
            rank = np.arange(1, full + 1)
            scale = 1.6 * (1 + 2 * (role in ("v", "down"))) * np.exp(draw.normal(0, 0.25))
            fall = 0.75 + 0.3 * draw.random() - 0.2 * block / blocks
            bend = np.exp(-((rank / full) ** 3) * 3)
            found[block, role] = scale * rank**-fall * bend
    return found


def decisions(blocks: int, keep: float, seed: int) -> list[dict[str, Any]]:
    """Return a decision for every site, the ranks shared by one price over all of them."""
    values = spectra(blocks, seed)
    price = np.quantile(np.concatenate([one**2 for one in values.values()]), 1 - keep**1.6)
    made = []
    for (block, role), sigma in values.items():
        out, inner, path = SHAPES[role]
        rank = max(8, int((sigma**2 > price).sum()) // 8 * 8)
        stored = rank * (out + inner - rank)
        dense = stored >= 0.97 * out * inner
        made.append(
            {
                "site": f"model.layers.{block}.{path}",
                "block": block,
                "role": role,
                "out_features": out,
                "in_features": inner,
                "format": "dense" if dense else "pivoted",
                "rank": min(out, inner) if dense else rank,
                "stored": out * inner if dense else stored,
                "dense": out * inner,
                "predicted_loss": 0.0 if dense else float(0.5 * (sigma[rank:] ** 2).sum()),
            }
        )
    return made


def curves(blocks: int, seed: int) -> dict[str, Any]:
    """Return 64 points of every site's spectrum."""
    found = {}
    for (block, role), sigma in spectra(blocks, seed).items():
        picked = np.unique(np.linspace(1, len(sigma), 64).astype(int))
        found[f"model.layers.{block}.{SHAPES[role][2]}"] = {
            "ranks": picked.tolist(),
            "losses": [float(0.5 * (sigma[rank:] ** 2).sum()) for rank in picked],
            "singular_values": [float(sigma[rank - 1]) for rank in picked],
        }
    return found


def row(label: str, loss: float, linear: int, speed: float) -> dict[str, Any]:
    """Return a row of scores."""
    numbers = DENSE_NUMBERS - LINEAR_NUMBERS + linear
    texts = {
        text: quality(label, text, 2.99 + shift, worse * (loss - 2.99))
        for text, shift, worse in (("wikitext-2", 0.0, 1.0), ("c4", 0.4, 1.7), ("code", -0.9, 1.2))
    }
    attention = {"settings": {"context": 1024}}
    timed = {"n": 5, "interval": [0.96 * speed, 1.05 * speed]}
    cost = {
        "numbers": score(numbers, "numbers", "lower"),
        "linear_numbers": score(linear, "numbers", "lower"),
        "embedding_share": score(28_311_552 / numbers, "share", "none"),
        "bytes_of_weights": score(2 * numbers, "bytes", "lower"),
        "bytes_in_memory": score(2 * numbers + 256, "bytes", "lower"),
        "multiply_adds": score(numbers, "per token", "lower"),
        "attention_multiply_adds": score(35_389_440, "per token", "lower", **attention),
        "prefill": score(9.3 * speed, "tokens/s", "higher", **timed),
        "decode": score(speed, "tokens/s", "higher", **timed),
    }
    if label != "dense":
        cost["decode_ratio"] = score(speed / 31.4, "x", "higher", n=5)
        cost["prefill_ratio"] = score(0.97 * speed / 31.4, "x", "higher", n=5)
    return {"label": label, **texts["wikitext-2"], **cost, "texts": texts, "tasks": {}}


def scores(excess: float, linear: int) -> dict[str, Any]:
    """Return everything that scores.json holds."""
    budgets = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6]
    measured = [0.006, 0.021, 0.066, 0.14, 0.23, 0.33, 0.45, 0.57]
    return {
        "model": "demo",
        "settings": {
            "text": "wikitext-2",
            "window": 1024,
            "stride": 1024,
            "tokens": 16368,
            "seed": 0,
            "dtype": {"dense": "bfloat16", "small": "bfloat16"},
            "threads": 2,
            "machine": "AMD EPYC 7763 64-Core Processor",
            "versions": {"spectrim": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            "date": "2026-11-22T02:10:44+00:00",
        },
        "rows": [
            row("dense", 2.99, LINEAR_NUMBERS, 31.4),
            row("small", 2.99 + excess, linear, 27.9),
        ],
        "samples": [
            {
                "prompt": "The old lighthouse at the end of the harbour",
                "dense": ENDINGS[0],
                "small": ENDINGS[0].replace("granite", "sandstone").replace("bay", "coast\n\nIt"),
            },
            {
                "prompt": "Photosynthesis is the process by which",
                "dense": ENDINGS[1],
                "small": " plants make energy from light. " * 4,
            },
            {
                "prompt": "def mean(values):\n",
                "dense": "    return sum(values) / len(values)\n\n\nprint(mean([1, 2, 3]))",
                "small": "    return sum(values) / len(values)\n\n\ndef median(x):\n    return",
            },
        ],
        "warnings": [
            "Dense: 100% of the dense weights in the blocks lie on a four-bit grid. They were "
            "quantised before; a file that stores them in four bits is about a quarter of a "
            "16-bit one, whatever this report counts.",
            "Small: decode runs at 0.89 x the dense speed here.",
        ],
        "refinement": {"used": True, "search_loss_before": 3.161, "search_loss_after": 3.132},
        "prediction": {
            "budgets": budgets,
            "predicted": [0.004, 0.017, 0.049, 0.098, 0.17, 0.28, 0.42, 0.61],
            "measured": measured,
            "correlation": 0.9937,
        },
    }


def write(
    folder: Path,
    *,
    blocks: int = 30,
    keep: float = 0.8,
    excess: float = 0.14,
    suite: bool = False,
) -> Path:
    """Write an output folder, the model itself apart, and return its path; with a suite's tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = decisions(blocks, keep, seed=0)
    linear = sum(one["stored"] for one in chosen)
    told = scores(excess, linear)
    plan = {
        "version": 1,
        "model": "demo",
        "fingerprint": "0f3c" * 16,
        "method": "loss_aware_svd",
        "allocator": "global",
        "format": "pivoted",
        "budget": {"keep": keep, "of": "linear", "numbers": linear},
        "predicted_loss": sum(one["predicted_loss"] for one in chosen),
        "calibration": {"text": "default", "tokens": "48x1024", "seed": 0},
        "refine": True,
        "decisions": chosen,
    }
    files = {
        "plan.json": plan,
        "curves.json": curves(blocks, seed=0),
        "scores.json": report_suite.with_tasks(told) if suite else told,
        "config.json": {"model_type": "llama", "quantization_config": {"sites": {}}},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        "model: demo\nkeep: 80% of linear\ncalibration: {text: default, tokens: 48x1024}\nstages:\n"
        "  - factorize: {method: loss_aware_svd, allocator: global, format: pivoted}\nseed: 0\n",
        encoding="utf-8",
    )
    return folder
