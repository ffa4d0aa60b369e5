"""A tiny model that has learnt something: each word of its text follows from the one before."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.model.weights import quiet
from spectrim.text.tokens import Tokens
from tiny_models import VOCABULARY
from tiny_runs import family_folder

SURE = 0.7  # how often the likely word follows


def write_learnable(file: Path, *, words: int = 24 * 32, seed: int = 0) -> Path:
    """Write words of which most follow from the one before; one token each."""
    drawn, likely = random.Random(seed), random.Random(1)
    after = [likely.randrange(3, VOCABULARY) for _ in range(VOCABULARY)]
    said, word = [], 3
    for _ in range(words):
        word = after[word] if drawn.random() < SURE else drawn.randrange(3, VOCABULARY)
        said.append(f"w{word}")
    file.write_text(" ".join(said))
    return file


def trained_folder(folder: Path, family: str = "llama", *, steps: int = 120) -> Path:
    """Save a family's tiny model, trained on such text for a second or two."""
    family_folder(folder, family)
    source = Source(str(folder), folder, "")
    text = write_learnable(folder.with_suffix(".txt"), words=64 * 32, seed=5)
    ids = sources.tokenizer(source)(text.read_text(), return_tensors="pt").input_ids
    windows = Tokens.full(ids[:, : 64 * 32].view(64, 32)).ids
    model = sources.model(source)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = windows[step % 4 * 16 : step % 4 * 16 + 16]
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimiser.step()
    with quiet():
        model.save_pretrained(folder)
    return folder
