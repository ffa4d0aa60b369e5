"""Weights and skeletons: a model of any size, read and built part by part, equal to the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.model.weights import Weights, auto_class, match, quantised, quiet, skeleton_of
from tiny_folders import WEIGHTS, change_config, change_tensors, raw_file, tiny_folder
from tiny_models import FAMILIES, logits, tokens

LAYER = "model.layers.1."


def loaded(folder: Path) -> PreTrainedModel:
    """Return the model as transformers loads it, in the dtype that it is stored in."""
    empty = skeleton_of(folder)
    with quiet():
        return auto_class(empty.config).from_pretrained(folder, dtype=empty.dtype)


def filled(folder: Path) -> PreTrainedModel:
    """Return the model as we build it: skeleton first, then every tensor."""
    model = skeleton_of(folder)
    weights = Weights(folder, model)
    model.load_state_dict(weights.read(weights.names()), strict=False, assign=True)
    model.tie_weights(recompute_mapping=False)
    return model


@pytest.mark.parametrize("tie", [None, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_filled_skeleton_is_the_model(tmp_path: Path, family: str, tie: bool | None) -> None:
    folder = tiny_folder(tmp_path, family, tie=tie, original=False)
    whole, ours = loaded(folder), filled(folder)
    assert not any(parameter.is_meta for parameter in ours.parameters())
    assert list(dict(ours.named_parameters())) == list(dict(whole.named_parameters()))
    assert torch.equal(logits(ours, tokens()), logits(whole, tokens()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_everything_but_weights(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    folder = tiny_folder(tmp_path, family, dtype=dtype, original=False)
    whole, empty = loaded(folder), skeleton_of(folder)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {p.dtype for p in empty.parameters()} == {p.dtype for p in whole.parameters()} == {dtype}
    assert not empty.training
    assert empty.config._attn_implementation == whole.config._attn_implementation
    theirs, ours = dict(whole.named_buffers()), dict(empty.named_buffers())
    assert theirs.keys() == ours.keys()
    for name, buffer in theirs.items():
        assert buffer.dtype == ours[name].dtype
        assert torch.equal(buffer, ours[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_block_are_what_the_block_loads(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path, family, original=False)
    model = skeleton_of(folder)
    weights = Weights(folder, model)
    stack = next(n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList))
    block = model.get_submodule(f"{stack}.1")
    block.load_state_dict(weights.read_prefix(f"{stack}.1."), strict=True, assign=True)
    assert not any(parameter.is_meta for parameter in block.parameters())


def test_the_skeleton_generates_as_the_model_does(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert skeleton_of(folder).generation_config.eos_token_id == [2, 7]


def test_tensors_come_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, shard="50KB")
    weights, tensors = Weights(folder), loaded(folder).state_dict()
    assert weights.dtype() == torch.float32
    backwards = weights.names()[::-1]
    read = weights.read(backwards)
    assert list(read) == backwards
    for name in backwards:
        assert weights.has(name)
        assert weights.shape(name) == tuple(tensors[name].shape)
        assert torch.equal(read[name], tensors[name])
    inside = weights.read_prefix(LAYER)
    assert inside.keys() == {n.removeprefix(LAYER) for n in backwards if n.startswith(LAYER)}
    assert torch.equal(inside["mlp.up_proj.weight"], tensors[f"{LAYER}mlp.up_proj.weight"])


@pytest.mark.skipif(sys.platform != "linux", reason="open files are listed as Linux does it")
def test_no_file_stays_open(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, shard="50KB")
    weights = Weights(folder)
    tensors = weights.read(weights.names())
    assert tensors
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in opened if path.startswith(str(tmp_path))]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def rename(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Return the tensors with a prefix of their names replaced."""
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("gpt2", "transformer.", ""),
        ("llama", "model.", ""),
        ("bart", "model.", ""),
        ("opt", "model.", ""),
        ("llama", "model.", "model.model."),
        ("gpt_neox", "lm_head.", "embed_out."),
    ],
)
def test_other_names_for_the_same_tensors(tmp_path: Path, family: str, old: str, new: str) -> None:
    folder = tiny_folder(tmp_path, family, original=False)
    own = Weights(folder)
    before = own.read(own.names())
    change_tensors(folder, lambda tensors: rename(tensors, old, new))
    assert before.keys() != load_file(folder / WEIGHTS).keys()
    after = Weights(folder).read(own.names())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_buffers_of_old_checkpoints_are_left_out(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, "gpt2")
    names = Weights(folder).names()
    old = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
        "transformer.h.0.attn.masked_bias": torch.tensor(-torch.inf),
        "transformer.h.0.rotary_emb.inv_freq": torch.ones(4),
    }
    change_tensors(folder, lambda tensors: tensors | old)
    assert Weights(folder).names() == names


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart"])
def test_a_tied_tensor_has_the_name_it_is_tied_to(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path, family)
    ties = skeleton_of(folder).all_tied_weights_keys
    own = ties["lm_head.weight"]
    names, table = Weights(folder).names(), Weights(folder).read([own])[own]
    assert own in names
    assert not ties.keys() & set(names)
    change_tensors(folder, lambda tensors: rename(tensors, own, "lm_head.weight"))
    assert Weights(folder).names() == names
    assert torch.equal(Weights(folder).read([own])[own], table)
    change_tensors(folder, lambda tensors: tensors | {own: table.clone()})
    assert Weights(folder).names() == names
    empty = skeleton_of(folder)
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_what_is_stored_apart_is_not_tied(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path, family)
    own = skeleton_of(folder).all_tied_weights_keys["lm_head.weight"]
    change_tensors(folder, lambda tensors: tensors | {"lm_head.weight": tensors[own] * 2})
    weights, empty = Weights(folder), skeleton_of(folder)
    assert weights.has(own)
    assert weights.has("lm_head.weight")
    assert empty.get_output_embeddings().weight is not empty.get_input_embeddings().weight
    assert torch.equal(logits(filled(folder), tokens()), logits(loaded(folder), tokens()))


def test_a_shrunken_model_keeps_its_names(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    change_config(folder, quantization_config={"quant_method": "spectrim"})
    assert quantised(folder) == "spectrim"
    change_tensors(folder, lambda tensors: rename(tensors, "model.norm", "model.pivot"))
    assert Weights(folder).has("model.pivot.weight")


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    weights = Weights(tiny_folder(tmp_path))
    assert not weights.has("model.norm.bias")
    with pytest.raises(SpectrimError, match="the checkpoint has no tensor 'model.norm.bias'"):
        weights.read(["model.norm.bias"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_no_number(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    folder = tiny_folder(tmp_path, dtype=dtype)
    name = f"{LAYER}mlp.up_proj.weight"

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name][3, 5] = value

    change_tensors(folder, spoil)
    weights = Weights(folder)
    line = f"tensor '{name}' in {folder / WEIGHTS} holds a NaN or an infinity"
    with pytest.raises(SpectrimError, match=line):
        weights.read_prefix(LAYER)
    assert weights.read_prefix("model.layers.0.")


def test_a_tensor_that_the_model_needs(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)

    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"], tensors[f"{LAYER}mlp.up_proj.weight"]

    change_tensors(folder, drop)
    with pytest.raises(SpectrimError, match=f"lacks 2 of the model's tensors, '{LAYER}mlp.up_proj"):
        Weights(folder)
    assert not match(skeleton_of(folder), {}).convertible


MISSING = {
    "torch.compile": (lambda held: {f"_orig_mod.{name}": t for name, t in held.items()},
                      "as torch.compile put '_orig_mod.' before all names; save the model without"),
    "no head": (lambda held: {name: t for name, t in held.items() if name != "lm_head.weight"},
                "it has no output head, as models for embeddings have none"),
    "GPTQ": (lambda held: {name.replace("proj.weight", "proj.qweight"): t
                           for name, t in held.items()}, "as its weights are quantised; expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_what_a_folder_is_instead(tmp_path: Path, case: str) -> None:
    folder = tiny_folder(tmp_path)
    change, line = MISSING[case]
    change_tensors(folder, change)
    with pytest.raises(SpectrimError, match=line):
        Weights(folder)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    change_tensors(folder, lambda tensors: tensors | {"model.norm.weight": torch.ones(47)})
    line = r"holds 'model.norm.weight' as \[47\], but its config.json makes it \[48\]"
    with pytest.raises(SpectrimError, match=line):
        Weights(folder)


BLOCK_BY_BLOCK = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from spectrim.model.weights import Weights, skeleton_of
torch.set_num_threads(1)
folder = Path(sys.argv[1])
skeleton_of(folder)  # imports what it takes, so that the limit is on tensors alone
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (192 << 20), resource.RLIM_INFINITY))
try:
    load_file(folder / "model.safetensors")
    sys.exit("the limit is no limit")
except (MemoryError, RuntimeError, OSError):
    pass
weights = Weights(folder, skeleton_of(folder))
for block in range(8):
    tensors = weights.read_prefix(f"model.layers.{block}.")
    assert sum(tensor.nbytes for tensor in tensors.values()) > 60 << 20
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does it")
def test_a_checkpoint_larger_than_the_memory(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = auto_class(config).from_config(config, dtype=torch.float32).state_dict()
    header, end = {}, 0
    for name, tensor in shapes.items():
        places = [end, end + 4 * tensor.numel()]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": places}
        end = places[1]
    assert end > 500 << 20
    file = raw_file(tmp_path / WEIGHTS, header, b"")
    os.truncate(file, file.stat().st_size + end)  # zeros that take no room on the disk
    subprocess.run([sys.executable, "-c", BLOCK_BY_BLOCK, str(tmp_path)], check=True)
