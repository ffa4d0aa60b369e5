"""A model that writes what it is told to, and a tokenizer whose tokens are letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from spectrim.metrics import Evaluation, Pair

Rows = Sequence[Mapping[str, Any]]


class Letters:
    """One token for each letter; 0 pads."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __call__(self, text: str, **settings: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(chr(one) for one in row if one > 2) for row in rows.tolist()]


class Writer(nn.Module):
    """Answers each prompt with ``reply(prompt)`` and remembers prompts and allowed lengths."""

    def __init__(self, reply: Callable[[str], str], *, kind: str = "llama") -> None:
        super().__init__()
        self.reply = reply
        self.encoder_decoder = kind in ("t5", "bart")
        self.config = SimpleNamespace(is_encoder_decoder=self.encoder_decoder, model_type=kind)
        self.generation_config = SimpleNamespace(
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=0
        )
        self.prompts: list[str] = []
        self.allowed: set[int] = set()

    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any
    ) -> torch.Tensor:
        most = generation_config.max_new_tokens
        read = [
            "".join(map(chr, row[mask.bool()].tolist()))
            for row, mask in zip(input_ids, attention_mask, strict=True)
        ]
        self.prompts += read
        self.allowed.add(most)
        said = torch.zeros(len(read), most, dtype=torch.long)
        for row, one in enumerate(read):
            letters = [ord(letter) for letter in self.reply(one)[:most]]
            said[row, : len(letters)] = torch.tensor(letters, dtype=torch.long)
        before = torch.zeros_like(said[:, :1]) if self.encoder_decoder else input_ids
        return torch.cat((before, said), dim=1)


def writing(folder: Path, models: Mapping[str, Writer], task: str, **chosen: Any) -> Pair:
    """Return a pair of writers that are asked one task with the data in a folder."""
    evaluation = Evaluation(data=folder, tasks=(task,), **{"suite": "quick", **chosen})
    return Pair(models, {}, evaluation, tokenizer=Letters())  # type: ignore[arg-type]


def put_rows(file: Path, rows: Rows) -> None:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
