"""The text that ships with Spectrim: what is in it, and the splits made of it."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path
from string import ascii_letters
from unittest.mock import Mock

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from spectrim.errors import SpectrimError
from spectrim.healing.end_to_end import Healing, healing_text
from spectrim.job.job import Job
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.recipe.recipe import Calibration
from spectrim.text import default_mix, shipped
from spectrim.text.splits import calibration_splits
from spectrim.text.tokens import Splits, fingerprints, overlap
from tiny_folders import change_config, tiny_folder

SHARES = {"prose": 0.45, "explanation": 0.25, "code": 0.2, "dialogue": 0.1}


def rows() -> list[dict[str, str]]:
    """Return the rows of the file as it lies there."""
    lines = gzip.decompress(shipped.FILE.read_bytes()).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a tiny model that reads text byte by byte."""
    folder = tiny_folder(tmp_path_factory.mktemp("bytes") / "model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0} | {letter: index for index, letter in enumerate(letters, start=1)}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>").save_pretrained(folder)
    change_config(folder, vocab_size=257)
    return Source(str(folder), folder, "bytes")


def made(source: Source, cache: Path, text: str, tokens: str, seed: int = 0) -> tuple[Splits, str]:
    asked = Calibration.parse(text, tokens)
    return calibration_splits(asked, seed, source, cache, lambda done, total, what: None)


def decoded(source: Source, ids: Tensor) -> list[str]:
    return [str(text) for text in sources.tokenizer(source).batch_decode(ids)]


def test_the_text_is_half_a_megabyte_in_the_shares_that_are_told() -> None:
    found = rows()
    sizes = Counter[str]()
    for row in found:
        sizes[row["kind"]] += len(row["text"])
    assert 450_000 < sizes.total() < 600_000
    assert {kind: sizes[kind] / sizes.total() for kind in SHARES} == pytest.approx(SHARES, abs=0.05)
    assert len({row["text"] for row in found}) == len(found)


def test_every_source_is_listed_with_its_size_and_licence() -> None:
    listed = shipped.FILE.with_name("SOURCES.md").read_text(encoding="utf-8")
    table = [re.split(r"\s*\|\s*", line)[1:-1] for line in listed.splitlines() if line[:1] == "|"]
    told = Counter({(kind, size) for _, kind, size, _, licence in table[2:] if licence})
    sizes = Counter[tuple[str, str]]()
    for row in rows():
        sizes[row["kind"], row["source"]] += len(row["text"])
    assert told == Counter({(kind, f"{size:,}") for (kind, _), size in sizes.items()})
    assert f"{len(rows())} passages, {sizes.total():,} characters" in listed


def test_no_split_has_a_line_of_another_and_each_is_a_mix(
    bytes_model: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*asked: object, **options: object) -> None:
        raise AssertionError("neither the hub nor the model is asked for text")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(default_mix, "sample", refuse)
    splits, words = made(bytes_model, tmp_path, "default", "48x2048")
    assert words == "the text that ships with Spectrim"
    parts = (splits.calibration, splits.search, splits.report)
    assert [tuple(part.ids.shape) for part in parts] == [(48, 2048), (4, 2048), (8, 2048)]
    lines = [{line for text in decoded(bytes_model, part.ids) for line in text.split("\n")}
             for part in parts]  # fmt: skip
    long = [{line for line in found if len(line) > 60} for found in lines]
    assert all(long) and not (long[0] & long[1] or long[0] & long[2] or long[1] & long[2])
    kinds = [{"".join(row["text"].split()): row["kind"] for row in rows()}, set()]
    for text in decoded(bytes_model, splits.report.ids):
        middle = "".join(text.split())[400:460]
        kinds[1] |= {kind for whole, kind in kinds[0].items() if middle in whole}
    assert len(kinds[1]) >= 3


@pytest.mark.parametrize("tokens", [None, "1900x256", "680x700"])
def test_all_of_it_is_learnt_from_but_what_the_other_splits_hold(
    tokens: str | None, bytes_model: Source, tmp_path: Path
) -> None:
    splits, _ = made(bytes_model, tmp_path, "default", "48x512")
    job = Mock(spec=Job, splits=splits, source=bytes_model)
    found = healing_text(job, Healing(learning_rate=1, text="shipped", tokens=tokens))
    many, length = (int(one) for one in (tokens or "800x512").split("x"))
    assert found.ids.shape[1] == length and found.mask.all()
    assert len(found) == many if tokens else len(found) > many
    for part in (splits.search, splits.report):
        assert not overlap(found, fingerprints(part))


def test_the_seed_draws_other_passages(bytes_model: Source, tmp_path: Path) -> None:
    first, again, other = (
        made(bytes_model, tmp_path / str(number), "default", "8x256", seed)[0].calibration.ids
        for number, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_the_text_does_not_hold_is_sampled_and_told(
    bytes_model: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = shipped.passages()[:6]  # 24,000 bytes: some 46 sequences of 512
    monkeypatch.setattr(shipped, "passages", lambda: short)

    def drawn(source: Source, tokenizer: object, size: tuple[int, int], *rest: object) -> Tensor:
        return torch.randint(1, 257, size, generator=torch.Generator().manual_seed(3))

    monkeypatch.setattr(default_mix, "sample", drawn)
    splits, words = made(bytes_model, tmp_path, "default", "48x512")
    held = int(re.search(r"gives (\d+) of 48 sequences, and text sampled", words)[1])  # type: ignore[index]
    assert 30 < held < 48
    whole = "".join("".join(short).split())
    ours = ["".join(text.split())[:40] in whole
            for text in decoded(bytes_model, splits.calibration.ids)]  # fmt: skip
    assert len(ours) == 48
    assert held - 4 <= sum(ours) <= held  # a window may lie across two passages


def test_tokens_that_the_model_has_no_row_for_are_refused(
    bytes_model: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    tiny_folder(folder)
    sources.tokenizer(bytes_model).save_pretrained(folder)
    change_config(folder, vocab_size=90)
    few = Source(str(folder), folder, "few")
    with pytest.raises(
        SpectrimError, match="the text that ships with Spectrim has .* only 90 rows"
    ):
        made(few, tmp_path, "default", "4x64")


def test_the_mix_of_the_hub_is_asked_for_by_name_alone(
    bytes_model: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, *rest: object, **options: object) -> list[dict[str, str]]:
        asked.append(name)
        letters = random.Random(name)
        texts = ["".join(letters.choices(ascii_letters, k=150)) for _ in range(400)]
        return [{"text": text, "content": text, "article": text} for text in texts]

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits, words = made(bytes_model, tmp_path, "hub", "12x128")
    assert len(splits.calibration) == 12
    assert asked == [name.partition(":")[0] for name, _ in default_mix.HUB_MIX]
    assert words.startswith("the mix of hub data sets (Salesforce/wikitext")
