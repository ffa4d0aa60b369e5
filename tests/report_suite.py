"""Scores of models, of baselines and on tasks, as a suite leaves them: plausible numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


def score(value: float, unit: str, better: str, **more: Any) -> dict[str, Any]:
    """Return a score as scores.json holds it."""
    plain = {"n": 1, "interval": None, "settings": {}}
    return {"value": value, "unit": unit, "better": better} | plain | more


def quality(label: str, text: str, dense: float, over: float) -> dict[str, Any]:
    """Return the scores of one model on one text, ``over`` above the dense model's loss."""
    loss = dense + over
    where = {"n": 16, "settings": {"text": text, "tokens": 16368}}
    found = {
        "loss": score(loss, "nats/token", "lower", interval=[loss - 0.11, loss + 0.11], **where),
        "perplexity": score(float(np.exp(loss)), "", "lower", **where),
    }
    if label != "dense":
        ends = [0.88 * over, 1.12 * over]
        found["excess_loss"] = score(over, "nats/token", "lower", interval=ends, **where)
        found["kl"] = score(0.8 * over, "nats/token", "lower", **where)
        found["agreement"] = score(float(np.exp(-0.9 * over)), "share", "higher", **where)
        found["jensen_shannon"] = score(0.18 * over, "nats/token", "lower", **where)
        found["lost"] = score(0.05, "share", "lower", **where)
        found["gained"] = score(0.025, "share", "none", **where)
        found["mcnemar_p"] = score(0.0004, "probability", "none", **where)
    found["next_token"] = score(0.42 - 0.1 * over, "share", "higher", **where)
    return found


def baseline(label: str, loss: float, size: int) -> dict[str, Any]:
    """Return the row of a dense model stored in fewer bits: its bytes are counted, no tasks."""
    texts = {"wikitext-2": quality(label, "wikitext-2", 2.99, loss - 2.99)}
    held = {"bytes_of_weights": score(size, "bytes", "lower")}
    return {"label": label, **texts["wikitext-2"], **held, "texts": texts, "tasks": {}}


def with_tasks(scores: dict[str, Any], *, baselines: bool = True) -> dict[str, Any]:
    """Return the scores with tasks, baselines, and what could not be measured."""
    dense, small = scores["rows"]
    dense["four_bit_grid"] = score(1.0, "share", "none")
    for row, worse in ((dense, 0.0), (small, 0.05)):
        row["tasks"] = tasks(row["label"], worse)
        why = {"not_measured": "this machine has no meter that a program can read"}
        row["energy"] = score(None, "J/token", "lower", settings=why)
    rows = [dense, small]
    if baselines:
        rows += [baseline("int8", 2.991, 136_000_000), baseline("int4", 3.004, 78_300_000)]
    left_out = {"topics": "needs the package bertopic; pip install 'spectrim[evaluation]'"}
    earlier = {"name": "runs/monday", "bytes_of_weights": 221_000_000, "loss": 3.17}
    earlier |= {"excess_loss": 0.18, "linear_share": 0.78, "small": "5a", "date": "2026-11-20"}
    return scores | {"rows": rows, "left_out": left_out, "earlier": earlier if baselines else None}


def tasks(label: str, worse: float) -> dict[str, Any]:
    """Return what one model makes of the tasks; the dense one has nothing to be compared with."""
    found = {
        "ARC-Easy": {"accuracy": _right(0.62 - worse, 200)},
        "BoolQ": {"accuracy": _right(0.58 - worse / 2, 200)},
        "SQuAD": {"exact_match": _right(0.31 - worse, 100), "f1": _right(0.44 - worse, 100)},
        "StereoSet": {
            "icat": score(68.4 - 20 * worse, "points", "higher", n=400, interval=[63.0, 73.5]),
            "stereotype": score(57.1 - 10 * worse, "points", "none", n=400, interval=[52.0, 62.0]),
        },
        "Banking77, linear probe": {"macro_f1": _right(0.71 - worse, 300)},
        "Hidden states": {},
        "Attention": {},
    }
    if label != "dense":
        for task in ("ARC-Easy", "BoolQ"):
            found[task] |= {
                "lost": score(0.11, "share", "lower", n=200, interval=[0.07, 0.16]),
                "gained": score(0.06, "share", "none", n=200, interval=[0.03, 0.1]),
                "mcnemar_p": score(0.121, "probability", "none", n=200),
            }
        alone = score(0.5, "probability", "none", n=300)  # without shares of flips
        found["Banking77, linear probe"]["mcnemar_p"] = alone
        cosines = [1 - 0.004 * block - 0.12 * (block > 25) for block in range(30)]
        settings = {"task": "Hidden states", "blocks": cosines}
        found["Hidden states"]["cosine"] = score(
            float(np.mean(cosines)), "cosine", "higher", n=960, settings=settings
        )
        found["Hidden states"]["breaking_block"] = score(26, "block", "none", n=16)
        found["Attention"]["moved"] = score(0.11, "share", "lower", n=270, settings=attention())
    return {task: own for task, own in found.items() if own}


def _right(share: float, count: int) -> dict[str, Any]:
    return score(share, "share", "higher", n=count, interval=[share - 0.066, share + 0.064])


def attention(tokens: int = 24) -> dict[str, Any]:
    """Return the settings of the score on attention: a diagonal, and one that forgot half of it."""
    words = "The old light house keeper climb ed the narrow stairs , lit the lamp before dusk , and"
    said = [
        f" {word}" for word in (words + " waited for the ships to come home .").split()[:tokens]
    ]
    sharp = np.tril(np.exp(-0.7 * np.abs(np.subtract.outer(range(tokens), range(tokens)))))
    sharp[:, 0] += 1.5
    even = np.tril(np.ones((tokens, tokens)))
    maps = {}
    for label, one in (("dense", sharp), ("small", sharp + 0.3 * even)):
        maps[label] = one / one.sum(axis=1, keepdims=True)
    spectra = {
        label: np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(one)))) for label, one in maps.items()
    }
    return {
        "task": "Attention",
        "block": 17,
        "head": 3,
        "tokens": said,
        "maps": {label: one.round(4).tolist() for label, one in maps.items()},
        "fourier": {label: one.round(4).tolist() for label, one in spectra.items()},
    }
