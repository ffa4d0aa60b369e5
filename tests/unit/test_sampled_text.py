"""Text drawn from the model itself: told as it goes, and the same where a run was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spectrim.model import sources
from spectrim.text import default_mix
from tiny_folders import tiny_folder

SIZE = (5, 12)  # sequences, tokens in each
SEED = 3


class Progress:
    """Keeps what it is told, and interrupts the work at a place of it."""

    def __init__(self, interrupt_at: int = -1) -> None:
        self.told: list[int] = []
        self.interrupt_at = interrupt_at

    def __call__(self, done: int, total: int, what: str) -> None:
        assert (total, what) == (60, default_mix.SAMPLING)
        self.told.append(done)
        if done == self.interrupt_at:
            raise KeyboardInterrupt


def test_an_interrupted_sampling_goes_on_to_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_mix, "SAMPLED_AT_ONCE", 2)  # pieces: 24 tokens
    source = sources.resolve(str(tiny_folder(tmp_path / "model")), tmp_path / "cache")
    tokenizer = sources.tokenizer(source)
    before = torch.random.get_rng_state()

    whole = Progress()
    wanted = default_mix.sample(source, tokenizer, SIZE, SEED, whole, tmp_path / "whole")
    assert (wanted.shape, whole.told[-1]) == (SIZE, 60)
    assert whole.told == sorted(whole.told)

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        default_mix.sample(source, tokenizer, SIZE, SEED, Progress(38), kept)
    assert kept.exists()
    rest = Progress()
    assert torch.equal(default_mix.sample(source, tokenizer, SIZE, SEED, rest, kept), wanted)
    assert min(rest.told) > 24
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_seed_is_another_text(tmp_path: Path) -> None:
    source = sources.resolve(str(tiny_folder(tmp_path / "model")), tmp_path / "cache")
    tokenizer = sources.tokenizer(source)
    one, other = (
        default_mix.sample(source, tokenizer, SIZE, seed, Progress(), tmp_path / f"kept{seed}")
        for seed in (0, 1)
    )
    assert not torch.equal(one, other)
