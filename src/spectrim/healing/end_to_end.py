"""Healing of the whole model at once: options, text and flow that three stages share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.files import atomic_file, key_of, locked
from spectrim.healing.balanced import balance
from spectrim.healing.judging import ensure_plan, keep_if_better, text_name
from spectrim.healing.learned_codes import learn
from spectrim.healing.objective import LossWeights, Objective, cross_entropy
from spectrim.healing.student import Prepare, Reader, student, write
from spectrim.healing.teacher import Question, ask
from spectrim.healing.training import Optimizer, Run, Schedule, State, train
from spectrim.job.blocks import next_step
from spectrim.job.job import BATCH, Job
from spectrim.model import sources
from spectrim.processes import processes
from spectrim.recipe.options import Amount, Part, parse_tokens
from spectrim.text import default_mix, documents, shipped
from spectrim.text.tokens import Tokens, fingerprints, overlap, refuse_overlap
from spectrim.walk.walk import BlockWalk

SEED = 1_001  # of sampled text: other than any that calibration is likely to be drawn with
SHIPPED = "shipped"  # the name of the text that ships with Spectrim
SAMPLED = "sampled"  # the name of the text that the dense model writes itself


class Healing(Part):
    """What stages that train the whole model have in common.

    text: what is read: a text or JSONL file, a hub data set, "sampled", written by the dense model
        itself, or "shipped", all of the text that ships with Spectrim but what search and report
        hold; none takes the text of the calibration.
    tokens: how much of it, such as 200x512; none takes as much as the calibration's text has, and
        all of "shipped".
    steps: of the optimiser. warmup: of these, in which the learning rate rises; after them it falls
        along half a cosine.
    learning_rate: the highest.
    batch: sequences in one pass; 0 takes as many as make 1024 tokens.
    divergence: from the dense model's distribution: "forward" KL, "reverse" KL or "js".
    temperature: of both distributions.
    top_k: tokens of the dense model's distribution that are kept; the others count as one.
    hidden: weight of the error of the states in front of the head, 0 for none.
    next_token: weight of the plain loss on the text; without it a dense model learns nothing from
        itself.
    every: steps between two looks at the search split, each of which writes a checkpoint.
    patience: looks without a gain after which training ends.
    """

    text: str | None = None
    tokens: Amount | None = None
    steps: int = Field(default=200, ge=1)
    warmup: int = Field(default=10, ge=0)
    learning_rate: float = Field(gt=0)
    batch: int = Field(default=0, ge=0)
    divergence: Literal["forward", "reverse", "js"] = "forward"
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=64, ge=1)
    hidden: float = Field(default=0.0, ge=0)
    next_token: float = Field(default=0.0, ge=0)
    every: int = Field(default=20, ge=1)
    patience: int = Field(default=5, ge=1)

    @property
    def per_step(self) -> int:
        """Batches of one step."""
        return int(getattr(self, "accumulation", 1))


@dataclass(frozen=True)
class Ready:
    """A model that is made ready for training, and how it becomes an ordinary one again."""

    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    finish: Callable[[], None] = lambda: None


def heal(
    job: Job,
    name: str,
    options: Healing,
    ready: Callable[[PreTrainedModel], Ready],
    note: Callable[[], dict[str, Any]] = dict,
    prepare: Prepare = lambda block: learn(balance(block)),
) -> None:
    """Train the whole model as a stage wants it and keep it where the search split gains.

    ready: names the parameters and the optimiser. note: what the stage adds to its own note.
    prepare: makes a block ready; usually pivoted maps become two balanced factors, and scales and
        offsets of packed ones parameters.
    """
    ensure_plan(job)
    tokens = healing_text(job, options)
    walk = _walk(job, tokens, options)
    question = Question(options.top_k, options.temperature, options.hidden > 0)
    teacher = ask(job, walk, question)
    folder = next_step(job, name)
    model = student(job, prepare)
    made = ready(model)
    reader = Reader(model)
    weights = LossWeights(
        options.divergence, options.temperature, options.hidden, options.next_token
    )
    objective = Objective(reader, walk, teacher, weights)
    search = _walk(job, job.splits.search, options)
    run = Run(model, made.parameters, made.optimizer, objective.loss,
              partial(_evaluate, reader, search), list(walk.starts))  # fmt: skip
    state = train(run, _schedule(job, options), folder / "training", job.progress)
    reader.close()
    made.finish()
    told = {**_note(job, name, options, tokens, state), **note()}
    if state.best_at:
        keep_if_better(job, folder, told, write(job, folder, model))
    else:
        keep_if_better(job, None, told)


def _evaluate(reader: Reader, walk: BlockWalk, run: nn.Module) -> float:
    return cross_entropy(reader, run, walk)


def _walk(job: Job, tokens: Tokens, options: Healing) -> BlockWalk:
    """Return the batches of a text; nothing is run block by block here."""
    batch = options.batch or max(1, BATCH // tokens.ids.shape[1])
    return BlockWalk(job.model, job.architecture, job.weights, tokens, batch)


def _schedule(job: Job, options: Healing) -> Schedule:
    return Schedule(
        options.steps,
        options.learning_rate,
        options.warmup,
        options.per_step,
        options.every,
        options.patience,
        seed=job.seed,
    )


def _note(job: Job, name: str, options: Healing, tokens: Tokens, state: State) -> dict[str, Any]:
    text = "text sampled from the dense model" if options.text == SAMPLED else options.text
    return {
        "stage": name,
        "steps": state.at,
        "best_step": state.best_at,
        "stopped": state.stopped,
        "tokens": tokens.counted(),
        "text": text_name(job, text),
        **({"processes": processes()} if processes() > 1 else {}),  # which no recipe says
    }


def healing_text(job: Job, options: Healing) -> Tokens:
    """Return the sequences to heal on.

    Raises:
        SpectrimError: there are too few, or they hold passages of the search or the report split.
    """
    calibration = job.splits.calibration
    size = parse_tokens(options.tokens) if options.tokens else tuple(calibration.ids.shape)
    if options.text is None:
        if options.tokens is not None and size[1] != calibration.ids.shape[1]:
            raise SpectrimError(
                f"the calibration has sequences of {calibration.ids.shape[1]} tokens, not "
                f"{size[1]}; write tokens with that length, or name a text"
            )
        found = calibration
    elif options.text == SHIPPED:
        found = _shipped(job, size[1])
        size = (len(found), size[1]) if options.tokens is None else size
    elif options.text == SAMPLED:
        found = _sampled(job, (size[0], size[1]))
    else:
        found = documents.read(
            options.text, sources.tokenizer(job.source), size[1], at_most=size[0]
        )
    if len(found) < size[0]:
        raise SpectrimError(
            f"the healing text gives {len(found)} sequences of {size[1]} tokens and {size[0]} are "
            "wanted; ask for fewer with tokens, or bring more text"
        )
    found = Tokens(found.ids[: size[0]], found.mask[: size[0]])
    for part in ("search", "report"):
        if len(split := getattr(job.splits, part)):
            refuse_overlap(found, split, f"the healing text and the {part} split")
    return found


def _shipped(job: Job, length: int) -> Tokens:
    """Return the sequences of the shipped text of which neither search nor report split holds any.

    Not whole ones alone: those of other lengths than the splits' may hold a part of one.
    """
    found = documents.encode(shipped.passages(), sources.tokenizer(job.source), length)
    runs = torch.cat([fingerprints(part) for part in (job.splits.search, job.splits.report)])
    kept = [
        at
        for at, row in enumerate(found.ids)
        if bool(found.mask[at].all()) and not overlap(Tokens.full(row[None]), runs)
    ]
    return Tokens(found.ids[kept], found.mask[kept])


def _sampled(job: Job, size: tuple[int, int]) -> Tokens:
    """Return text that the dense model writes itself, the same in every run."""
    source = job.original or job.source
    key = key_of("healing", 1, source.fingerprint, size, *[job.seed] * bool(job.seed))
    file = job.cache / "text" / f"{key}.safetensors"
    with locked(file):
        if not file.exists():
            tokenizer = sources.tokenizer(source)
            seed, kept = SEED + job.seed, file.with_name(f"{key}-{default_mix.SAMPLED}")
            ids = default_mix.sample(source, tokenizer, size, seed, job.progress, kept)
            with atomic_file(file) as partial_file:
                save_file({"ids": ids}, partial_file)
            kept.unlink(missing_ok=True)
    return Tokens.full(load_file(file)["ids"])
