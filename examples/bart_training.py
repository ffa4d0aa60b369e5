"""Dialogues and their summaries, a tokenizer of their own, and a BART trained in a given time.

Used by bart_summariser.py. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bart_denoising
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

FILES = ("dialogue/dialogsum/dialogsum.dev.jsonl", "dialogue/samsum/samsum_train_first200.jsonl")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in BART's order
DIALOGUE, SUMMARY = 256, 64  # tokens; what is longer loses its end
BATCH = 8
DENOISING = 0.6  # part of the time; so few dialogues alone do not teach the decoder to read
DENOISED = 1600  # pieces of what is called an epoch of it
DROPOUT = 0.1
PEAK = 1e-3  # learning rate, after WARM steps, falling to 0 as the time runs out
WARM = 50
KEPT_EVERY = 20.0  # seconds of training between two checkpoints

Pairs = list[tuple[list[int], list[int]]]
"""Token ids of a dialogue and of its summary, both ending in </s>."""


@dataclass(frozen=True)
class Settings:
    """How big the model is and how long it is trained: minutes of training, checkpoints apart."""

    minutes: float
    seed: int
    width: int
    blocks: int
    vocabulary: int


@dataclass(frozen=True)
class Splits:
    """Rows with "dialogue" and "summary"; no dialogue is in two splits."""

    train: list[dict[str, str]]
    search: list[dict[str, str]]
    report: list[dict[str, str]]


def read(data: Path, seed: int, limit: int | None = None) -> Splits:
    """Return what the folder holds of DialogSum and SAMSum, shuffled and cut 11 : 1 : 2.

    limit: take so many rows only. FileNotFoundError where the folder has none of the files.
    """
    found = [data / name for name in FILES if (data / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{data} holds none of {', '.join(FILES)}; name it with --data")
    lines = [line for file in found for line in file.read_text(encoding="utf-8").splitlines()]
    rows = {row["dialogue"].strip(): row["summary"].strip() for row in map(json.loads, lines)}
    all_rows = [{"dialogue": key, "summary": value} for key, value in rows.items()]
    random.Random(seed).shuffle(all_rows)
    all_rows = all_rows[:limit]
    report, search = len(all_rows) // 7, len(all_rows) // 14
    head = report + search
    return Splits(all_rows[head:], all_rows[report:head], all_rows[:report])


def new_tokenizer(rows: Sequence[dict[str, str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return byte-level pairs learnt from these rows; a text ends in </s>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL,
                                  initial_alphabet=alphabet, show_progress=False)  # fmt: skip
    made.train_from_iterator((text for row in rows for text in row.values()), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    begin, pad, end, unknown, mask = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=begin, pad_token=pad, eos_token=end, unk_token=unknown,
        mask_token=mask, model_max_length=DIALOGUE,
    )  # fmt: skip


def new_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> Any:
    """Return a BART with random weights; its embeddings are shared by encoder, decoder and head."""
    torch.manual_seed(settings.seed)
    size: dict[str, Any] = {"d_model": settings.width, "max_position_embeddings": DIALOGUE}
    for side in ("encoder", "decoder"):
        size[f"{side}_layers"] = settings.blocks
        size[f"{side}_attention_heads"] = settings.width // 48 or 1
        size[f"{side}_ffn_dim"] = 4 * settings.width
    end = tokenizer.eos_token_id
    special = {
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end, "decoder_start_token_id": end, "forced_eos_token_id": None,
    }  # fmt: skip
    # BART's own 0.02 is for a width of 768; here attention would begin at next to nothing
    size |= {"init_std": settings.width**-0.5, "dropout": DROPOUT}
    config = BartConfig(vocab_size=len(tokenizer), **size, **special)
    return BartForConditionalGeneration(config)


def encoded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, str]]) -> Pairs:
    """Return the token ids of every dialogue and summary."""

    def ids(text: str, longest: int) -> list[int]:
        return list(tokenizer(text, truncation=True, max_length=longest).input_ids)

    return [(ids(row["dialogue"], DIALOGUE), ids(row["summary"], SUMMARY)) for row in rows]


def padded(sequences: Sequence[Sequence[int]], fill: int, length: int = 0) -> Tensor:
    """Return the sequences as one tensor, padded on the right to the longest or to ``length``."""
    length = length or max(map(len, sequences))
    return torch.tensor([[*one, *[fill] * (length - len(one))] for one in sequences])


def inputs(pairs: Pairs, pad: int) -> dict[str, Tensor]:
    """Return what the model's forward takes."""
    ids = padded([one for one, _ in pairs], pad)
    lengths = torch.tensor([[len(one)] for one, _ in pairs])
    mask = (torch.arange(ids.shape[1])[None] < lengths).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": padded([s for _, s in pairs], -100)}


def loss(model: Any, pairs: Pairs) -> float:
    """Return the mean cross-entropy of the summaries' tokens, in nats."""
    nats = tokens = 0.0
    model.eval()
    for start in range(0, len(pairs), BATCH):
        batch = inputs(pairs[start : start + BATCH], model.config.pad_token_id)
        count = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            nats += float(model(**batch).loss) * count
        tokens += count
    return nats / tokens


def train(folder: Path, data: Path, splits: Splits, settings: Settings) -> dict[str, Any]:
    """Train until the time is up; ``folder`` holds the model that was best on the search split.

    More than half of the time goes into denoising, the rest into summaries. Where an earlier
    call was interrupted it goes on from its last checkpoint, and one that was finished is not
    repeated; SystemExit where that had other settings or dialogues. Returns what is known of it.
    """
    known = folder / "training.json"
    if known.is_file():
        about: dict[str, Any] = json.loads(known.read_text())
        _check(known, about.get("identity"), _identity(settings, splits))
        return about
    torch.manual_seed(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = new_tokenizer(splits.train, settings.vocabulary)
    tokenizer.save_pretrained(folder)
    run = _Run(folder, tokenizer, splits, settings)
    run.pieces = bart_denoising.pieces(data, splits.train, tokenizer)
    while run.seconds < 60 * settings.minutes:
        run.epoch()
    known.write_text(json.dumps(run.about(), indent=1))
    run.state.unlink()
    return run.about()


def _identity(settings: Settings, splits: Splits) -> str:
    """Return a hash of everything that a training is asked for."""
    asked = json.dumps([vars(settings), vars(splits)], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _check(file: Path, held: str | None, asked: str) -> None:
    if held != asked:
        raise SystemExit(
            f"{file} is of a training with other settings or dialogues; repeat those, or name "
            "another folder with -o"
        )


class _Run:
    """One training: model, optimiser, time used so far, and the best loss on the search split."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, splits: Splits, settings: Settings
    ) -> None:
        self.folder, self.settings, self.tokenizer = folder, settings, tokenizer
        self.pieces: list[list[int]] = []
        self.pairs = encoded(tokenizer, splits.train)
        self.search = encoded(tokenizer, splits.search)
        self.model = new_model(tokenizer, settings)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=PEAK, weight_decay=0.01)
        self.state = folder / "training.pt"
        self.identity = _identity(settings, splits)
        self.epochs = self.steps = 0
        self.seconds, self.tokens, self.best = 0.0, 0, math.inf
        self.history: list[dict[str, Any]] = []
        self._resume()

    def _resume(self) -> None:
        if self.state.is_file():
            held = torch.load(self.state)
            _check(self.state, held.pop("identity", None), self.identity)
            self.model.load_state_dict(held.pop("model"))
            self.optimiser.load_state_dict(held.pop("optimiser"))
            torch.set_rng_state(held.pop("random"))
            vars(self).update(held)

    def _keep(self) -> None:
        counts = ("epochs", "steps", "seconds", "tokens", "best", "history")
        held = {name: getattr(self, name) for name in counts}
        held |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        partial = self.state.with_suffix(".partial")
        held |= {"identity": self.identity, "random": torch.get_rng_state()}
        torch.save(held, partial)
        partial.replace(self.state)  # whole or not at all

    def epoch(self) -> None:
        """Train on every pair once, or until the time is up; keep the model if it is the best."""
        kept, summed, count = self.seconds, 0.0, 0
        whole = 60 * self.settings.minutes
        denoising = self.seconds < DENOISING * whole
        for batch in self._denoised() if denoising else self._batches():
            began = time.perf_counter()
            summed, count = summed + self._step(batch), count + 1
            self.seconds += time.perf_counter() - began
            if self.seconds - kept > KEPT_EVERY:
                kept = self.seconds
                self._keep()
            if self.seconds >= (DENOISING * whole if denoising else whole):
                break
        self.epochs += 1
        self._judge(summed / count, denoising)
        self._keep()

    def _batches(self) -> Iterator[Pairs]:
        """Yield all pairs in an order of their own each epoch, those of like length together."""
        drawn = random.Random(f"{self.settings.seed} {self.epochs}")
        order = sorted(self.pairs, key=lambda pair: len(pair[0]) * drawn.uniform(0.8, 1.25))
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        drawn.shuffle(batches)
        yield from batches

    def _denoised(self) -> Iterator[Pairs]:
        """Yield some pieces of text with holes, others each epoch."""
        drawn = random.Random(f"{self.settings.seed} {self.epochs}")
        chosen = drawn.sample(self.pieces, min(DENOISED, len(self.pieces)))
        pairs = [bart_denoising.with_holes(piece, self.tokenizer, drawn) for piece in chosen]
        for at in range(0, len(pairs), BATCH):
            yield pairs[at : at + BATCH]

    def _step(self, pairs: Pairs) -> float:
        left = 1 - self.seconds / (60 * self.settings.minutes)
        for group in self.optimiser.param_groups:
            group["lr"] = PEAK * min((self.steps + 1) / WARM, max(left, 0.01))
        self.model.train()
        found = self.model(**inputs(pairs, self.model.config.pad_token_id)).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.steps += 1
        self.tokens += sum(len(one) + len(other) for one, other in pairs)
        return float(found.detach())

    def _judge(self, train_loss: float, denoising: bool) -> None:
        found = loss(self.model, self.search)
        task = "denoising" if denoising else "summaries"
        self.history.append({"task": task, "train": train_loss, "search": found})
        print(
            f"epoch {self.epochs} ({task}): {self.seconds:.0f} s, loss {train_loss:.3f}; "
            f"of summaries on the search split {found:.3f}",
            flush=True,
        )
        if found < self.best:
            self.best = found
            self.model.eval().save_pretrained(self.folder)

    def about(self) -> dict[str, Any]:
        """Return what a table says of the training."""
        numbers = sum(one.numel() for one in self.model.parameters())
        return {
            **vars(self.settings), "numbers": numbers, "epochs": self.epochs, "steps": self.steps,
            "tokens_read": self.tokens, "seconds": self.seconds, "search_loss": self.best,
            "history": self.history, "identity": self.identity,
        }  # fmt: skip
