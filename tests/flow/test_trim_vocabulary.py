"""Models that lose tokens, end to end by a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spectrim.cli.main import main
from spectrim.errors import SpectrimError
from spectrim.job.opening import open_job
from spectrim.metrics import Evaluation
from spectrim.metrics.size import bytes_of_weights
from spectrim.model import sources
from spectrim.model.fewer_rows import kept_tokens
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Keep, Recipe
from spectrim.stages import stages
from spectrim.stages.trim_vocabulary import refuse_other_pieces
from spectrim.text import used_tokens
from spectrim.text.tokens import Tokens
from spectrim.verbs import auto
from spectrim.verbs.evaluate import evaluate
from spectrim.verbs.shrink import shrink
from tiny_models import config
from tiny_runs import load, plan_of
from tiny_words import ENGLISH, RUSSIAN, words_folder

KINDS = [("llama", "llama", True), ("gemma2", "gemma", True), ("gpt2", "gpt2", True),
         ("qwen3", "llama3", False), ("phi", "gpt2", False)]  # fmt: skip
TRIM: dict[str, Any] = {"trim_vocabulary": {}}


@dataclass(frozen=True)
class Made:
    """A tiny model with words of its own, and what is left of it."""

    source: Path
    text: Path
    small: Path


def write_source(folder: Path, family: str, words: str, *, tied: bool) -> None:
    """Write a tiny model with a trained tokenizer and more rows than that has tokens."""
    tokens = words_folder(folder, words).get_vocab_size()
    settings = config(family, tie=tied)
    settings.vocab_size, settings.pad_token_id = tokens + 7, 2
    settings.bos_token_id, settings.eos_token_id = 1, [2, tokens - 1]
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        if model.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
        model.generation_config.eos_token_id = [2, tokens - 1]
        model.save_pretrained(folder)


def asked(folder: Path, *stages: Any) -> Recipe:
    return Recipe.build(None, {
        "model": str(folder / "source"), "calibration.text": str(folder / "text.txt"),
        "calibration.tokens": "4x40", "stages": list(stages) or None,
    })  # fmt: skip


def run(folder: Path, name: str, *stages: Any) -> Path:
    with quiet():
        return shrink(asked(folder, *stages), folder / name, cache=folder / "cache", evaluate=False)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny model without what English text never uses."""
    family, words, tied = request.param
    folder = tmp_path_factory.mktemp(family)
    write_source(folder / "source", family, words, tied=tied)
    (folder / "text.txt").write_text(varied())
    stage = {"trim_vocabulary": {"text": str(folder / "text.txt")}}
    return Made(folder / "source", folder / "text.txt", run(folder, "small", stage))


def varied() -> str:
    """Return English text long enough to be parted into splits that share nothing."""
    words = ENGLISH.split()
    return " ".join(
        words[(turn * turn + 3 * at) % len(words)] for turn in range(60) for at in range(7)
    )


def test_texts_have_the_same_pieces_under_other_numbers(made: Made) -> None:
    kept, text = kept_tokens(made.small), made.text.read_text()
    old, new = AutoTokenizer.from_pretrained(made.source), AutoTokenizer.from_pretrained(made.small)
    assert kept is not None and len(new) == len(kept) < len(old) - 50
    ids = new(text).input_ids
    assert [kept[one] for one in ids] == old(text).input_ids
    assert new.decode(ids) == old.decode(old(text).input_ids)
    chat = [{"role": "user", "content": "The letters"}]
    said = new.apply_chat_template(chat, return_dict=False)
    assert [kept[one] for one in said] == old.apply_chat_template(chat, return_dict=False)


def test_logits_of_the_kept_tokens_are_the_same(made: Made) -> None:
    kept = torch.tensor(kept_tokens(made.small))
    ids = torch.randint(len(kept), (2, 24), generator=torch.Generator().manual_seed(0))
    whole, small = load(made.source), load(made.small)
    with torch.no_grad():
        old, new = whole(kept[ids]).logits, small(ids).logits
    assert new.shape[-1] == len(kept) == small.config.vocab_size
    torch.testing.assert_close(new, old[..., kept], rtol=0, atol=2e-6)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        for name, tensor in getattr(small, part)().state_dict().items():
            assert torch.equal(tensor, getattr(whole, part)().state_dict()[name][kept])


def test_configs_name_the_same_tokens(made: Made) -> None:
    kept = kept_tokens(made.small)
    assert kept is not None
    for name in ("config.json", "generation_config.json"):
        old, new = (json.loads((one / name).read_text()) for one in (made.source, made.small))
        assert [kept[one] for one in new["eos_token_id"]] == old["eos_token_id"]
        assert kept[new["bos_token_id"]] == old["bos_token_id"]
    old, new = (AutoTokenizer.from_pretrained(one) for one in (made.source, made.small))
    assert kept[new.eos_token_id] == old.eos_token_id
    assert [one.content for one in new.added_tokens_decoder.values()] == [
        one.content for one in old.added_tokens_decoder.values()
    ]


def test_the_card_says_what_went(made: Made) -> None:
    note = plan_of(made.small).about["found"]["trimmed"]
    rows = json.loads((made.source / "config.json").read_text())["vocab_size"]
    assert note["tokens"] == rows and note["gone"] == rows - len(kept_tokens(made.small) or ())
    assert f"{note['gone']} of {rows} tokens have left" in (made.small / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny Llama and an English text."""
    write_source(tmp_path / "source", "llama", "gpt2", tied=True)
    (tmp_path / "text.txt").write_text(varied())
    return tmp_path


def test_text_set_aside_tells_what_trimming_costs(folder: Path) -> None:
    """The report split has words of its own, which become more pieces; no text is lost."""
    recipe = asked(folder, TRIM)
    found = sources.resolve(str(folder / "source"), folder / "cache")
    job = open_job(recipe, found, folder / "cache", lambda done, total, what: None)
    whole = AutoTokenizer.from_pretrained(folder / "source")
    words = whole(RUSSIAN, add_special_tokens=False).input_ids[:18]
    aside = Tokens.full(torch.tensor(words).reshape(6, 3))
    job.splits = replace(job.splits, report=aside)
    stages.get("trim_vocabulary")(job, recipe.stages[0].options)
    note, fewer = job.notes["trimmed"], sources.tokenizer(job.source)
    now = job.splits.report
    assert note["more"] == pytest.approx(now.counted() / 18 - 1) and note["more"] > 0.2
    assert isfinite(note["cost"]) and note["proven"] > 0
    for row, mask, before in zip(now.ids, now.mask, aside.ids, strict=True):
        assert fewer.decode(row[mask]) == whole.decode(before)


def test_scripts_alone_are_proven_too(folder: Path) -> None:
    stage = {"trim_vocabulary": {"scripts": "Cyrillic"}}
    small = run(folder, "small", stage)
    note = plan_of(small).about["found"]["trimmed"]
    whole = AutoTokenizer.from_pretrained(folder / "source")
    pieces = used_tokens.of_scripts(["Cyrillic"], whole)
    assert pieces <= set(kept_tokens(small) or ()) and note["proven"] > len(pieces)
    made = AutoTokenizer.from_pretrained(small)
    kept = list(kept_tokens(small) or ())
    shifted = [kept[-1], *kept[:-1]]
    with pytest.raises(SpectrimError, match="cuts a text into other pieces"):
        refuse_other_pieces(whole, made, shifted, [whole.decode([max(pieces)])])


def test_texts_and_scripts_that_are_named_keep_their_tokens(folder: Path) -> None:
    (folder / "more.txt").write_text(RUSSIAN)
    options = {"text": str(folder / "more.txt"), "scripts": "Latin"}
    small = run(folder, "small", {"trim_vocabulary": options})
    kept, words = kept_tokens(small), AutoTokenizer.from_pretrained(small)
    whole = AutoTokenizer.from_pretrained(folder / "source")
    for text in (RUSSIAN, ENGLISH.upper(), "Straße"):
        assert [kept[one] for one in words(text).input_ids] == whole(text).input_ids
    assert "nor more.txt uses nor text in Latin" in (small / "README.md").read_text()


def test_later_stages_go_on_with_it_and_it_is_measured_like_any(folder: Path) -> None:
    (folder / "other.txt").write_text(RUSSIAN + " ".join(reversed(varied().split())))
    quantize = {"quantize": {"bits": 4, "group": 32, "ends": 8}}
    small = run(folder, "small", TRIM, quantize)
    with quiet():
        scores = evaluate(str(small), text=str(folder / "other.txt"), tokens="2x40",
                          against=str(folder / "source"), cache=folder / "cache",
                          tasks=Evaluation(rounds=0, sample_tokens=1))  # fmt: skip
    assert any("tokens that the smaller one has left" in one for one in scores["warnings"])
    assert abs(scores["rows"][1]["excess_loss"]["value"]) < 0.1  # of a model that knows nothing
    assert (kept_tokens(small) or [0])[-1] > len(kept_tokens(small) or [])


def test_it_stands_in_front_of_all_that_changes_the_model(folder: Path) -> None:
    drop = {"drop_blocks": {"drop": 1, "protect_first": 0, "protect_last": 0}}
    for earlier in (drop, "factorize", "sparsify"):
        with pytest.raises(SpectrimError, match="takes the model as it came; put trim_vocabulary"):
            asked(folder, earlier, TRIM)
    with pytest.raises(SpectrimError, match="all tokens at once"):
        asked(folder, TRIM, TRIM)
    assert asked(folder, TRIM, drop, "factorize", "quantize")


def test_a_text_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(SpectrimError, match="there is no text file"):
        run(folder, "small", {"trim_vocabulary": {"text": "nowhere.txt"}})


def test_the_option_puts_the_stage_in_front(tmp_path: Path) -> None:
    made = Recipe.build(None, {"model": "demo"}).trimmed("text.txt")
    assert [stage.name for stage in made.stages] == ["trim_vocabulary", "factorize"]
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == made


def test_the_option_does_not_go_with_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--trim-vocabulary", "a.txt", "--for", "llama.cpp", "--size", "9MB"]
    with pytest.raises(SystemExit) as ended:
        main(["shrink", "demo", *words, "-o", str(tmp_path / "small")])
    assert ended.value.code == 2
    assert "trim first, by a recipe" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["60%", "18% of linear bytes"])  # bits alone; ways are tried
def test_a_size_is_reached_behind_it(folder: Path, size: str) -> None:
    small, text = folder / "small", str(folder / "text.txt")
    with quiet():
        made = auto.choose(
            asked(folder).trimmed(text), Keep.parse(size), small, cache=folder / "cache",
            progress=lambda done, total, what: None,
        )  # fmt: skip
        shrink(made.recipe, small, cache=folder / "cache", evaluate=False, why=made.why)
    names = [one.name for one in made.recipe.stages]
    assert names[0] == "trim_vocabulary" and names[-2:] == ["factorize", "quantize"]
    assert (
        len(kept_tokens(small) or ()) < AutoTokenizer.from_pretrained(folder / "source").vocab_size
    )
    if size == "60%":
        assert bytes_of_weights(small) <= 0.6 * bytes_of_weights(folder / "source")
