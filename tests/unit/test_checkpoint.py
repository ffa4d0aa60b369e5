"""Our checkpoints: files merged as safetensors would write them, and models built from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, from_factors
from spectrim.model import checkpoint
from spectrim.model.checkpoint import SpectrimConfig, attach, empty, install, write_shards
from spectrim.model.sites import replace
from spectrim.model.tensor_files import stored
from spectrim.model.weights import quiet
from tiny_folders import change_config
from tiny_models import build, build_empty, logits, tokens


def part(file: Path, **tensors: Tensor) -> Path:
    save_file(tensors, file)
    return file


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parts(folder: Path) -> list[Path]:
    """Files whose lengths are odd, so that what comes after does not begin where it should."""
    folder.mkdir(exist_ok=True)
    return [
        part(folder / "0", embed=drawn(5, 3, dtype=torch.bfloat16)),
        part(
            folder / "1",
            order=torch.arange(7, dtype=torch.int32),
            rows=drawn(3, 3, dtype=torch.bfloat16, seed=1),
            norm=drawn(3, seed=2),
            mask=torch.tensor([True, False, True]),
        ),
        part(folder / "2", order2=torch.arange(4), bias=drawn(1, dtype=torch.float64)),
    ]


def together(files: list[Path]) -> dict[str, Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_parts_are_merged_bit_for_bit(tmp_path: Path) -> None:
    files = parts(tmp_path / "parts")
    write_shards(files, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "parts"]
    assert_same(load_file(tmp_path / "model.safetensors"), together(files))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert stored(tmp_path).keys() == together(files).keys()


def test_merging_writes_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    files = parts(tmp_path / "parts")
    write_shards(files, tmp_path)
    save_file(together(files), tmp_path / "whole", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "whole").read_bytes()


def test_every_tensor_begins_at_a_multiple_of_its_numbers_size(tmp_path: Path) -> None:
    """Readers that map the file need that."""
    write_shards(parts(tmp_path / "parts"), tmp_path)
    for name, entry in stored(tmp_path).items():
        assert entry.start % entry.dtype.itemsize == 0, name


def test_above_the_limit_the_checkpoint_is_sharded(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    files = [part(folder / str(at), **{f"block{at}": drawn(64, 64, seed=at)}) for at in range(5)]
    write_shards(files, tmp_path, shard_bytes=2 * 64 * 64 * 4 + 500)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]
    assert max((tmp_path / shard).stat().st_size for shard in shards) < 2 * 64 * 64 * 4 + 500
    found = [load_file(tmp_path / shard) for shard in shards]
    assert [list(held) for held in found] == [["block0", "block1"], ["block2", "block3"],
                                              ["block4"]]  # fmt: skip
    assert_same({name: t for held in found for name, t in held.items()}, together(files))

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 64 * 64 * 4
    assert index["weight_map"] == {
        name: shard for shard, held in zip(shards, found, strict=True) for name in held
    }
    assert stored(tmp_path).keys() == together(files).keys()


def test_a_part_above_the_limit_is_a_shard_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    files = [part(folder / str(at), **{f"block{at}": drawn(64, 64)}) for at in range(2)]
    write_shards(files, tmp_path, shard_bytes=100)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


# models


def factored(model: torch.nn.Module, name: str, format: str = "pivoted") -> FactoredLinear:
    matrix = model.get_submodule(name).weight.detach()
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return from_factors(format, u[:, :5] * s[:5], vh[:5], None, torch.float32)


NAMES = ("model.layers.1.mlp.up_proj", "model.layers.2.self_attn.q_proj")


@pytest.mark.parametrize("format", ["low_rank", "pivoted"])
def test_a_model_changed_in_memory_is_saved_and_loaded(format: str, tmp_path: Path) -> None:
    model = build("llama")
    sites = {}
    for name in NAMES:
        module = factored(model, name, format)
        replace(model, name, module)
        sites[name] = {"format": format, **module.shape()}
    attach(model, sites)
    with quiet():
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))


def test_formats_are_put_into_a_model_without_weights() -> None:
    model = build_empty("llama")
    module = factored(build("llama"), NAMES[0])
    install(model, {NAMES[0]: {"format": "pivoted", **module.shape()}})
    found = model.get_submodule(NAMES[0])
    assert isinstance(found, FactoredLinear) and found.shape() == module.shape()
    assert all(tensor.is_meta for tensor in found.state_dict().values())


def test_no_matrix_is_made_for_a_factored_map() -> None:
    shape = {"in_features": 4096, "out_features": 4096, "rank": 8, "bias": True}
    made = empty({"format": "pivoted", **shape}, torch.bfloat16)
    assert {tensor.dtype for tensor in made.parameters()} == {torch.bfloat16}
    assert made.order.dtype == torch.int32
    assert sum(tensor.numel() for tensor in made.parameters()) < 4096 * 20


def test_a_format_or_site_that_does_not_exist_is_refused() -> None:
    shape = {"in_features": 48, "out_features": 80, "rank": 4, "bias": False}
    with pytest.raises(SpectrimError, match="no format named 'sparse'"):
        install(build_empty("llama"), {NAMES[0]: {"format": "sparse", **shape}})
    with pytest.raises(SpectrimError, match="no module 'model.layers.9"):
        install(build_empty("llama"), {"model.layers.9.x": {"format": "pivoted", **shape}})


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    attach(model, {})
    with quiet():
        model.save_pretrained(tmp_path)
    later = SpectrimConfig(version=checkpoint.VERSION + 1).to_dict()
    change_config(tmp_path, quantization_config=later)
    told = "this model was written in layout 4 and this spectrim reads up to 3; install a newer"
    with pytest.raises(SpectrimError, match=told), quiet():
        AutoModelForCausalLM.from_pretrained(tmp_path)
    packed = {"model.layers.0.mlp.up_proj": {"format": "quantized_dense"}}
    earlier = SpectrimConfig(sites=packed, version=1).to_dict()
    change_config(tmp_path, quantization_config=earlier)
    with (
        pytest.raises(SpectrimError, match="layout 1, whose packed numbers .* shrink the"),
        quiet(),
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)
