"""Size and multiply-adds against known counts and torch's own flop counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from spectrim.errors import SpectrimError
from spectrim.formats import from_factors
from spectrim.metrics.multiply_adds import multiply_adds
from spectrim.metrics.size import bytes_on_disk, size
from spectrim.model import sites

VOCABULARY, HIDDEN, INNER, BLOCKS, HEADS, PAIRS, TOKENS = 50, 16, 24, 2, 4, 2, 12
ATTENTION = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * (HIDDEN // HEADS * PAIRS)
LINEAR = BLOCKS * (ATTENTION + 3 * HIDDEN * INNER)
NORMS = (2 * BLOCKS + 1) * HIDDEN
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": PAIRS,
}


def llama(tie: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=tie)).eval()


def mixtral(unpacked: bool) -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2)
    model = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("eager")  # the others multiply more than they need
    if unpacked:
        for block in model.model.layers:
            sites.unpack_experts(block, "mlp.experts")
    return model


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=BLOCKS, n_head=HEADS)
    ).eval()


def bart() -> BartForConditionalGeneration:
    heads = {f"{side}_attention_heads": HEADS for side in ("encoder", "decoder")}
    layers = {f"{side}_layers": BLOCKS for side in ("encoder", "decoder")}
    inner = {f"{side}_ffn_dim": INNER for side in ("encoder", "decoder")}
    config = BartConfig(vocab_size=VOCABULARY, d_model=HIDDEN, **heads, **layers, **inner)
    return BartForConditionalGeneration(config).eval()


def t5() -> T5ForConditionalGeneration:
    # Heads wider together than the hidden size, as T5 allows.
    config = T5Config(
        vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=INNER, num_layers=2, num_heads=HEADS
    )
    return T5ForConditionalGeneration(config).eval()


def factored(model: PreTrainedModel, name: str, path: str, rank: int) -> PreTrainedModel:
    module = model.get_submodule(path)
    left = torch.randn(module.out_features, rank)
    right = torch.randn(rank, module.in_features)
    sites.replace(model, path, from_factors(name, left, right, None, torch.float32))
    return model


def counted(model: PreTrainedModel) -> tuple[float, float]:
    """Return what torch counts per token: multiply-adds of matrices, and of attention."""
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=torch.manual_seed(0))
    inputs = {"input_ids": ids, "use_cache": False}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**inputs)
    found = {str(op): count / 2 / TOKENS for op, count in counter.flop_counts["Global"].items()}
    attention = sum(count for op, count in found.items() if "attention" in op)
    matrices = sum(count for op, count in found.items() if op in ("aten.mm", "aten.addmm"))
    return matrices, attention


@pytest.mark.parametrize("make", [llama, gpt2, bart, t5])
def test_multiply_adds_are_what_torch_counts(make: object) -> None:
    model = make()  # type: ignore[operator]
    cost = multiply_adds(model, context=TOKENS)
    matrices, attention = counted(model)
    assert cost.maps == matrices
    if attention:  # T5 multiplies its attention out by hand, where it cannot be told apart
        assert cost.attention == attention


@pytest.mark.parametrize("unpacked", [False, True])
def test_experts_cost_the_share_of_them_that_a_token_visits(unpacked: bool) -> None:
    model = mixtral(unpacked)
    cost = multiply_adds(model, context=TOKENS)
    assert cost.maps == counted(model)[0]
    assert cost.linear == BLOCKS * (ATTENTION + 2 * 3 * HIDDEN * INNER)
    assert cost.other == BLOCKS * 4 * HIDDEN
    assert size(model).linear_numbers == BLOCKS * (ATTENTION + 4 * 3 * HIDDEN * INNER)


@pytest.mark.parametrize("name", ["low_rank", "pivoted"])
def test_factored_maps_cost_and_store_what_their_formula_says(name: str) -> None:
    before, rank = llama(), 5
    model = factored(llama(), name, "model.layers.1.mlp.down_proj", rank)
    saved = HIDDEN * INNER - rank * (HIDDEN + INNER - (rank if name == "pivoted" else 0))
    assert multiply_adds(model).maps == multiply_adds(before).maps - saved == counted(model)[0]
    assert size(model).linear_numbers == LINEAR - saved
    assert size(model).numbers == size(before).numbers - saved


@pytest.mark.parametrize("name", ["low_rank", "pivoted"])
def test_a_model_factored_throughout_costs_what_torch_counts(name: str) -> None:
    model = llama()
    for site in sites.find(model):
        if site.block >= 0:
            factored(model, name, site.name, rank=3 + site.block)
    assert multiply_adds(model, context=TOKENS).maps == counted(model)[0]
    assert multiply_adds(model).maps < multiply_adds(llama()).maps


def test_attention_grows_with_the_context_up_to_the_window() -> None:
    config = MistralConfig(**COMMON, sliding_window=8)
    model = MistralForCausalLM(config)
    costs = [multiply_adds(model, context).attention for context in (4, 8, 100)]
    assert costs == [2 * HIDDEN * BLOCKS * seen for seen in (4, 8, 8)]


def test_sliding_and_full_blocks_are_told_apart() -> None:
    model = llama()
    model.config.sliding_window = 3
    model.config.layer_types = ["sliding_attention", "full_attention"]
    assert multiply_adds(model, 10).attention == 2 * HIDDEN * (3 + 10)


@pytest.mark.parametrize("tie", [False, True])
def test_numbers_of_a_llama(tie: bool) -> None:
    found = size(llama(tie))
    ends = (1 if tie else 2) * VOCABULARY * HIDDEN
    assert found.linear_numbers == LINEAR
    assert found.embedding_numbers == ends
    assert found.numbers == LINEAR + ends + NORMS
    rotary = HIDDEN // HEADS // 2
    assert 4 * (found.numbers + rotary) <= found.bytes_in_memory <= 4 * (found.numbers + 2 * rotary)
    assert found.bytes_on_disk is None


@pytest.mark.parametrize("shard", ["1GB", "4KB"])
@pytest.mark.parametrize("tie", [False, True])
def test_bytes_on_disk_are_those_of_the_tensors(tmp_path: Path, tie: bool, shard: str) -> None:
    model = llama(tie).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "4KB")
    assert size(model, tmp_path).bytes_on_disk == 2 * size(model).numbers


def test_only_the_files_that_are_loaded_count(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    expected = bytes_on_disk(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"not even one")
    assert bytes_on_disk(tmp_path) == expected


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(SpectrimError, match=r"has no weights; expected model.safetensors or"):
        bytes_on_disk(tmp_path)


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((99).to_bytes(8, "little") + b"{")
    with pytest.raises(SpectrimError, match="is cut off inside its header"):
        bytes_on_disk(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SpectrimError, match=r"00001.* is missing; fetch the model again"):
        bytes_on_disk(tmp_path)
