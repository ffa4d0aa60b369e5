"""Safetensors files: read as the format says, refused with one line where they are damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.model.tensor_files import DTYPES, main_dtype, read, same_content, stored, stored_in
from tiny_folders import raw_file, tiny_folder

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


def every_dtype() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 5, generator=generator) * 50
    tensors = {code: noise.to(dtype) for code, dtype in DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}


def read_all(file: Path) -> dict[str, Tensor]:
    with file.open("rb", buffering=0) as stream:
        return {name: read(stream, entry) for name, entry in stored_in(file).items()}


def test_reads_what_safetensors_reads(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    save_file(every_dtype(), file, metadata={"format": "pt"})
    ours, theirs = read_all(file), load_file(file)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        assert torch.equal(ours[name], tensor)


def test_tensors_own_their_memory(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    save_file(every_dtype(), file)
    tensors = read_all(file)
    for tensor in tensors.values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    before = tensors["F32"].clone()
    file.write_bytes(b"gone")
    assert torch.equal(tensors["F32"], before)


@pytest.mark.parametrize(
    ("header", "data", "line"),
    [
        (b"{", b"", "has a header that is not JSON"),
        (b"[" * 100_000, b"", "has a header that is not JSON"),
        (b'{"\xff"}', b"", "has a header that is not JSON"),
        ([], b"", "has a header that names no tensors"),
        ({"a": 3}, EIGHT, "describes tensor 'a' wrongly"),
        ({"a": {"dtype": "F32", "shape": [2]}}, EIGHT, "describes tensor 'a' wrongly"),
        ({"a": ONE | {"shape": [-2]}}, EIGHT, "describes tensor 'a' wrongly"),
        ({"a": ONE | {"shape": [2.0]}}, EIGHT, "describes tensor 'a' wrongly"),
        ({"a": ONE | {"dtype": "F8_E4M3"}}, EIGHT, "holds tensor 'a' as F8_E4M3; expected one of"),
        (
            {"a": ONE | {"shape": [3]}},
            EIGHT,
            "gives tensor 'a' 8 bytes, but its shape [3] takes 12",
        ),
        ({"a": ONE, "b": ONE}, EIGHT, "'a' and 'b' overlap"),
        ({"a": ONE}, EIGHT[:7], "is cut off: tensor 'a' ends at byte "),
        ({"a": ONE}, bytes(9), "goes on for 1 bytes behind its last tensor"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: object, data: bytes, line: str) -> None:
    file = raw_file(tmp_path / "a.safetensors", header, data)
    with pytest.raises(SpectrimError, match=re.escape(line)) as error:
        stored_in(file)
    assert str(file) in str(error.value)


def test_every_cut_is_found(tmp_path: Path) -> None:
    whole = raw_file(tmp_path / "whole", {"a": ONE}, EIGHT).read_bytes()
    assert list(stored_in(tmp_path / "whole")) == ["a"]
    for length in range(len(whole)):
        file = tmp_path / "cut"
        file.write_bytes(whole[:length])
        with pytest.raises(SpectrimError, match="is cut off"):
            stored_in(file)


def test_no_changed_header_byte_breaks_the_reader(tmp_path: Path) -> None:
    whole = raw_file(tmp_path / "whole", {"a": ONE}, EIGHT).read_bytes()
    file = tmp_path / "changed"
    refused = 0
    for place in range(len(whole) - len(EIGHT)):
        for change in (b"0", b"9", b"-", b"[", b'"', b"\x00"):
            file.write_bytes(whole[:place] + change + whole[place + 1 :])
            try:
                entries = stored_in(file)
            except SpectrimError:
                refused += 1
                continue
            for entry in entries.values():
                assert entry.start + entry.size == len(whole)
    assert refused > 100


def test_a_file_that_shrinks_between_header_and_tensor(tmp_path: Path) -> None:
    file = raw_file(tmp_path / "a.safetensors", {"a": ONE}, EIGHT)
    entry = stored_in(file)["a"]
    file.write_bytes(file.read_bytes()[:-1])
    with (
        file.open("rb", buffering=0) as stream,
        pytest.raises(SpectrimError, match="has become shorter while it was read"),
    ):
        read(stream, entry)


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    single = tiny_folder(tmp_path / "single")
    sharded = tiny_folder(tmp_path / "sharded", shard="50KB")
    assert len({entry.file for entry in stored(sharded).values()}) > 2
    assert stored(sharded).keys() == stored(single).keys()
    stray = sharded / "consolidated.safetensors"  # as some models of the hub have beside
    stray.write_bytes(b"of no concern")
    assert stray not in {entry.file for entry in stored(sharded).values()}


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, shard="50KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SpectrimError, match=f"{shard.name} is missing; fetch the model again"):
        stored(folder)


def test_a_shard_without_what_the_index_places_there(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, shard="50KB")
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    shard = next(iter(places.values()))
    index.write_text(json.dumps({"weight_map": places | {"model.extra": shard}}))
    with pytest.raises(SpectrimError, match=f"places 'model.extra' in {shard}, which does not"):
        stored(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SpectrimError, match="expected JSON with a 'weight_map'"):
        stored(tmp_path)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SpectrimError, match=r"only as a pickle \(pytorch_model.bin\)"):
        stored(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpectrimError, match="has no weights; expected model.safetensors"):
        stored(tmp_path)


def test_content_is_compared_by_value(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    big = torch.arange(600_000, dtype=torch.float32)  # more than is compared at a time
    last = big.clone()
    last[-1] = 0
    save_file({"a": big, "b": big.clone(), "c": last, "d": big.reshape(2, -1).clone()}, file)
    entries = stored_in(file)
    assert same_content(entries["a"], entries["b"])
    assert not same_content(entries["a"], entries["c"])
    assert not same_content(entries["a"], entries["d"])


def test_the_main_dtype_takes_the_most_bytes(tmp_path: Path) -> None:
    file = tmp_path / "any.safetensors"
    save_file(
        {
            "few": torch.zeros(4, dtype=torch.float64),
            "many": torch.zeros(40, dtype=torch.bfloat16),
            "whole numbers": torch.zeros(400, dtype=torch.int64),
        },
        file,
    )
    entries = stored_in(file)
    assert main_dtype(entries.values()) == torch.bfloat16
    assert main_dtype([entries["whole numbers"]]) == torch.float32
