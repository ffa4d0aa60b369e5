"""The comparison as a whole: what scores.json holds."""

from __future__ import annotations

import copy
import json
from math import inf, nan
from pathlib import Path

import pytest
import torch
from transformers import BatchEncoding, LlamaConfig, LlamaForCausalLM

from spectrim.errors import SpectrimError
from spectrim.metrics import Evaluation, Score, compare, metrics
from spectrim.metrics._samples import continuations

VOCABULARY = 48
QUICK = Evaluation(name="tiny", rounds=1, prompt_tokens=4, new_tokens=2, sample_tokens=5)


class Letters:
    """A tokenizer of single letters."""

    def __call__(self, text: str, return_tensors: str) -> BatchEncoding:
        ids = torch.tensor([[ord(letter) % VOCABULARY for letter in text]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(97 + int(index) % 26) for index in ids)


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def texts(*names: str, sequences: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randint(VOCABULARY, (sequences, 10)) for name in names}


def test_every_promised_score_is_there_with_unit_and_direction(tmp_path: Path) -> None:
    dense = llama()
    dense.save_pretrained(tmp_path)
    folders = {"dense": tmp_path, "small": tmp_path}
    chosen = Evaluation(name="tiny", folders=folders, rounds=1, prompt_tokens=4, new_tokens=2)
    found = compare(dense, llama(1), Letters(), texts("wiki", "code"), chosen)  # type: ignore[arg-type]
    big, small = found["rows"]
    both = "perplexity loss bytes_on_disk bytes_in_memory numbers linear_numbers multiply_adds"
    for name in f"{both} prefill decode attention_multiply_adds embedding_share".split():
        assert big[name]["unit"] == small[name]["unit"]
        assert small[name]["better"] in ("lower", "higher", "none")
    for name in ("kl", "agreement", "excess_loss", "linear_share", "decode_ratio"):
        assert name in small and name not in big
    assert (big["label"], small["label"]) == ("dense", "small")
    assert big["bytes_as_fp16"]["value"] * 2 == big["bytes_on_disk"]["value"]
    assert len(found["samples"]) >= 3 and set(found["samples"][0]) == {"prompt", "dense", "small"}


def test_the_headline_is_the_first_text_and_all_texts_are_kept() -> None:
    small = compare(llama(), llama(1), None, texts("wiki", "code"), QUICK)["rows"][1]
    assert set(small["texts"]) == {"wiki", "code"}
    assert small["texts"]["wiki"]["kl"] == small["kl"] != small["texts"]["code"]["kl"]
    assert small["kl"]["settings"]["text"] == "wiki"


def test_identical_models_differ_in_nothing() -> None:
    model = llama()
    small = compare(model, model, None, texts("wiki"), QUICK)["rows"][1]
    assert small["excess_loss"]["value"] == small["kl"]["value"] == 0
    assert small["excess_loss"]["interval"] == [0, 0]
    assert small["agreement"]["value"] == small["linear_share"]["value"] == 1


def test_the_excess_is_surer_than_the_losses_themselves() -> None:
    dense = llama()
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.05)
    rows = compare(dense, other, None, texts("wiki"), QUICK)["rows"]
    width = {
        name: rows[1][name]["interval"][1] - rows[1][name]["interval"][0]
        for name in ("loss", "excess_loss")
    }
    assert width["excess_loss"] < width["loss"] / 5
    difference = rows[1]["loss"]["value"] - rows[0]["loss"]["value"]
    assert rows[1]["excess_loss"]["value"] == pytest.approx(difference)


def test_settings_say_how_it_was_measured() -> None:
    chosen = Evaluation(name="tiny", rounds=0, seed=7)
    found = compare(llama(), llama(1), None, texts("wiki"), chosen)
    settings = found["settings"]
    assert found["model"] == "tiny"
    assert (settings["text"], settings["window"], settings["stride"]) == ("wiki", 10, 10)
    assert settings["tokens"] == 8 * 9
    assert settings["seed"] == 7 and settings["threads"] == 1
    assert settings["dtype"] == {"dense": "float32", "small": "float32"}
    assert settings["versions"]["torch"] == torch.__version__
    assert settings["machine"] and settings["date"]


def test_a_model_alone_is_measured_without_comparison() -> None:
    found = compare(None, llama(), Letters(), texts("wiki"), QUICK)  # type: ignore[arg-type]
    assert [row["label"] for row in found["rows"]] == ["small"]
    assert "kl" not in found["rows"][0] and "decode" in found["rows"][0]
    assert set(found["samples"][0]) == {"prompt", "small"}


def test_scores_are_plain_json_even_where_a_model_is_broken() -> None:
    broken = llama()
    with torch.no_grad():
        broken.lm_head.weight.fill_(nan)
    found = compare(llama(), broken, None, texts("wiki"), QUICK)
    json.dumps(found, allow_nan=False)
    assert found["rows"][1]["loss"]["value"] is None
    assert "The loss of small on wiki is not a finite number." in found["warnings"]
    assert Score("x", 1.0, "", "none", interval=(0.0, inf)).as_dict()["interval"] is None


def test_warnings_speak_of_a_small_sample_and_of_nothing_saved() -> None:
    said = " ".join(compare(llama(), llama(1), None, texts("w", sequences=2), QUICK)["warnings"])
    assert "Dense on w: measured on 2 sequence(s) only" in said
    assert "Small: the linear maps store as many numbers as in the dense model" in said
    assert "Small on w" not in said and "four-bit" not in said


def test_a_four_bit_origin_is_told() -> None:
    dense = llama()
    with torch.no_grad():
        for weight in dense.model.layers[0].parameters():
            weight.copy_((weight * 100).round().clamp(-7, 8) / 100)
    said = " ".join(compare(dense, copy.deepcopy(dense), None, texts("w"), QUICK)["warnings"])
    assert said.count("four-bit grid") == 1
    assert "Dense: 100% of the dense weights in the blocks lie on a four-bit grid." in said


def test_progress_is_told_and_nothing_printed(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int, str]] = []
    compare(llama(), llama(1), Letters(), texts("a", "b"), QUICK, lambda *args: seen.append(args))  # type: ignore[arg-type]
    ends = {what for done, total, what in seen if done == total}
    assert ends == {
        "reading a, dense and small",
        "reading b, dense and small",
        "timing",
        "writing samples",
    }
    assert capsys.readouterr() == ("", "")


def test_samples_are_greedy_whatever_the_model_prefers() -> None:
    model = llama()
    plain = continuations({"small": model}, Letters(), ("lighthouse",), 9)  # type: ignore[arg-type]
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    again = continuations({"small": model}, Letters(), ("lighthouse",), 9)  # type: ignore[arg-type]
    assert plain == again
    assert len(plain[0]["small"]) == 9


def test_every_metric_file_keeps_the_contract() -> None:
    promised = {"divergence", "grid", "multiply_adds", "perplexity", "size", "speed"}
    assert promised <= set(metrics.names())
    with pytest.raises(SpectrimError, match="no metric named 'perplexty'; did you mean"):
        metrics.get("perplexty")
    for name in metrics.names():
        assert callable(metrics.get(name))
