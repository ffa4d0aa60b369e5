"""What healing wins back at 60 % of the linear numbers, in how many minutes: one run, one table.

    python benchmarks/heal.py -o run/ [--chains "end to end,control"]  # whole labels

The demo model off its grid (rotated.py), calibrated and healed on disjoint mixed text
(mixed_text.py), measured after every stage on text like WikiText-2 and on text unlike it. The
control trains the dense model on the same text with the same steps, so that learning the measured
text's kind is not called recovery; it has nothing to learn from itself, so the next token is what
it is trained on. A chain that was interrupted goes on; the minutes of the stage in which it was are
then those of its last part. Chains are kept by label: after a change take a new folder. Statistics
are there before the minutes begin; decompositions and the dense model's answers are not, and every
chain makes its own.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from measuring import (
    ROTATED,
    arguments,
    commit_here,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    losses_of,
    publish,
    read_arguments,
    texts_of,
    two_halves,
)
from mixed_text import mixed
from one_line_errors import told
from rotated import chosen

from spectrim.files import key_of
from spectrim.job.job import Job
from spectrim.job.loss import walk_now
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.recipe.recipe import Recipe
from spectrim.report.progress import shown
from spectrim.stages import stages
from spectrim.text import documents
from spectrim.text.tokens import Tokens, refuse_overlap

PLAYS = "lm/tinyshakespeare/input.txt"  # like the dialogues of the mix in form, not in words
LENGTH = 512  # tokens of a window, and of a sequence that is healed on
EVERY = 100  # steps of healing between two looks at the search split
KEEP = "60% of linear"
SVD_LABEL, CONTROL_LABEL = "SVD end to end", "control"
ABOUT = ("after", "minutes")  # of a stage, beside its losses by text
SVD: dict[str, Any] = {"factorize": {"method": "loss_aware_svd", "refine": "off"}}
CUT: dict[str, Any] = {
    "factorize": {"method": "loss_aware_svd,loss_aware_neuron_selection", "refine": "off"}
}


def main() -> None:
    """Run all chains, resuming, and write results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default output/rotated")
    parser.add_argument("--chains", default="", help="labels; all")
    parser.add_argument("--sequences", type=int, default=400, help="of 512 tokens")
    parser.add_argument("--passes", type=int, default=2, help="over these")
    asked = read_arguments(parser)
    folder = chosen(asked)
    first, second = two_halves(asked.data / "lm/wikitext2_tokens/valid.txt", asked.output)
    calibration, healing = mixed(asked.data, first, asked.output)
    wanted = asked.chains.split(",") if asked.chains else list(chains("", 4, 1))
    for label, chain in chains(str(healing), asked.sequences, asked.passes).items():
        if label not in wanted:
            continue
        recipe = Recipe.model_validate(
            {
                "model": str(folder), "keep": KEEP, "stages": chain,
                "calibration": {"text": str(calibration), "tokens": "48x1024"},
            }
        )  # fmt: skip
        keep_row(
            asked.output, f"{asked.passes} x {asked.sequences}x512", label, 0.6,
            lambda recipe=recipe: healed(asked, recipe, second, healing),  # type: ignore[misc]
        )  # fmt: skip
    _write(asked.output)


def chains(healing: str, sequences: int, passes: int) -> dict[str, list[dict[str, Any]]]:
    """Return the stages of every chain by its label, all on the same healing text."""
    distil = {
        "text": healing, "tokens": f"{sequences}x{LENGTH}", "steps": passes * sequences,
        "batch": 1, "every": EVERY,
    }  # fmt: skip
    return {
        SVD_LABEL: [SVD, {"distil": distil}],
        "end to end": [CUT, {"distil": distil}],
        "block by block first": [CUT, {"distil_blocks": {}}, {"distil": distil}],
        CONTROL_LABEL: [{"distil": {**distil, "next_token": 1.0}}],
    }


def healed(
    asked: argparse.Namespace, recipe: Recipe, second: Path, healing: Path
) -> dict[str, Any]:
    """Return losses by text after every stage, with the minutes that each stage took."""
    source = sources.resolve(recipe.model, asked.cache)
    with shown() as progress:
        job = open_job(recipe, source, asked.cache, progress)
        job.work = asked.output / "work" / key_of(recipe.to_yaml(), commit_here())[:12]
        job.statistics()
        job.cache = _own_cache(job)
        texts = _windows(job, second, asked, healing)
        found = [{"after": "dense", "minutes": 0.0, **_losses(job, texts)}]
        for stage in recipe.stages:
            began = time.perf_counter()
            stages.get(stage.name)(job, stage.options)
            minutes = (time.perf_counter() - began) / 60
            said = {"after": stage.name, "minutes": minutes, **_losses(job, texts)}
            found.append(said)
            print(stage.name, {name: said[name]["loss"] for name in texts}, flush=True)
    shutil.rmtree(job.work)
    return {"stages": found, "notes": job.notes.get("healed", [])}


def _own_cache(job: Job) -> Path:
    """Return a cache with the statistics and nothing else that would shorten the minutes."""
    own = job.work / "cache"
    own.mkdir(parents=True, exist_ok=True)
    if not (own / "statistics").exists():
        (own / "statistics").symlink_to((job.cache / "statistics").resolve())
    return own


def _losses(job: Job, texts: dict[str, Tokens]) -> dict[str, Any]:
    return losses_of({name: walk_now(job, one) for name, one in texts.items()}, job.blocks, job)


def _windows(job: Job, second: Path, asked: argparse.Namespace, healing: Path) -> dict[str, Tokens]:
    tokenizer = sources.tokenizer(job.source)
    texts = texts_of(job.source, second, asked.data, 8, LENGTH)
    plays = documents.read(str(asked.data / PLAYS), tokenizer, LENGTH, at_most=6)
    texts["plays"] = Tokens.full(plays.ids[:6])
    trained = documents.read(str(healing), tokenizer, LENGTH)
    for name, windows in texts.items():
        refuse_overlap(job.splits.calibration, windows, f"calibration and {name}")
        refuse_overlap(trained, windows, f"the healing text and {name}")
    return texts


def _write(output: Path) -> None:
    """Publish the excess over the dense model, and what is closed of a cut's.

    Of the chain's own cut, and of one by ranks alone, so that what a better cut wins shows too.
    """
    known = known_rows(output)
    texts = [name for name in next(iter(known.values()))["stages"][0] if name not in ABOUT]
    svd = next((row["stages"][1] for row in known.values() if row["label"] == SVD_LABEL), None)
    rows = []
    for row in known.values():
        dense, cut, *_ = row["stages"]
        for at, found in enumerate(row["stages"][1:], start=1):
            name = " + ".join(one["after"] for one in row["stages"][1 : at + 1])
            if row["label"] == SVD_LABEL:
                name += ", by SVD alone"
            control = row["label"] == CONTROL_LABEL
            other = None if control or row["label"] == SVD_LABEL else svd
            rows.append(
                {"table": "heal", "minutes": found["minutes"],
                 "stages": "dense, trained on the same text" if control else name,
                 "excess": {text: excess_of(found[text], dense[text]) for text in texts},
                 "closed": _closed(cut if at > 1 else None, found, dense, texts),
                 "closed_of_svd": _closed(other, found, dense, texts)}
            )  # fmt: skip
    said = publish(
        output, "heal", rows, model=ROTATED, commit=commits_of(known.values()),
        windows=f"{LENGTH} tokens: 8 of WikiText-2, 6 of each other text",
    )  # fmt: skip
    print(said)


def _closed(
    cut: dict[str, Any] | None, found: dict[str, Any], dense: dict[str, Any], texts: list[str]
) -> list[float] | None:
    """Return the part of a cut's excess loss that is gone, by text; None where there is no cut."""
    if cut is None:
        return None
    lost = [(cut[text]["loss"], found[text]["loss"], dense[text]["loss"]) for text in texts]
    return [(before - after) / (before - whole) for before, after, whole in lost]


if __name__ == "__main__":
    told(main)
