"""The fair dense model of benchmarks/rotated.py: equal logits, other weights, and no grid."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.metrics.grid import grid
from spectrim.model import sites, sources
from spectrim.model.sources import Source
from spectrim.outputs.manifest import MANIFEST
from spectrim.rounding import baselines
from tiny_folders import change_tensors, tiny_folder
from tiny_models import build, logits, tokens


@pytest.fixture(scope="module")
def rotated(root: Path) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "benchmarks")
        import rotated

        yield rotated


@pytest.fixture
def tied(tmp_path: Path) -> Source:
    """Return a tiny Llama with grouped queries, gains of its own and a tied head, on a grid."""
    folder = tiny_folder(tmp_path / "tied", tie=True, dtype=torch.bfloat16)
    change_tensors(folder, _onto_grid)
    return Source("tied", folder, "")


def _onto_grid(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: baselines.rounded(one, 4).to(one.dtype) if "_proj" in name else one
        for name, one in tensors.items()
    }


def norms(model: PreTrainedModel) -> list[Tensor]:
    """Return the gains of all norms."""
    return [one for name, one in model.named_parameters() if "norm" in name]


@pytest.mark.parametrize("seed", [0, 7])
def test_a_rotation_is_orthogonal_and_follows_its_seed(rotated, seed):
    q = rotated.rotation(48, seed)
    assert q.dtype == torch.float64
    torch.testing.assert_close(q.T @ q, torch.eye(48, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.equal(q, rotated.rotation(48, seed))
    assert not torch.allclose(q, rotated.rotation(48, seed + 1))
    assert q.abs().max() < 0.9  # mixes: no coordinate stays what it was


@pytest.mark.parametrize(
    ("family", "tie"), [("llama", True), ("llama", False), ("llama_biased", True)]
)
def test_the_rotated_model_computes_the_same_from_other_weights(rotated, family, tie):
    dense = build(family, tie=tie)
    assert all((one - 1).abs().max() > 0.1 for one in norms(dense))
    turned = rotated.rotate(dense, 0)
    before = logits(dense, tokens())
    apart = (logits(turned, tokens()) - before).abs().max()
    assert apart <= 1e-4 * before.abs().max()
    assert all(torch.equal(one, torch.ones_like(one)) for one in norms(turned))
    assert not sites.tied(turned) and turned.config.tie_word_embeddings is False
    assert sites.tied(dense) is tie  # left as it was
    read = {name: one for name, one in dense.named_modules() if isinstance(one, nn.Linear)}
    for name, one in turned.named_modules():
        if name in read:
            assert not torch.allclose(one.weight, read[name].weight, atol=0.1), name


def test_what_is_written_is_an_ordinary_model_off_the_grid(rotated, tied, tmp_path, capsys):
    folder = tmp_path / "rotated"
    rotated.write(tied, folder, tokens(sequences=2, length=48), 0)
    said = capsys.readouterr().out
    assert "before, 0.0" in said and "perplexity in bf16 on 2 windows of 48 tokens" in said
    dense, turned = (sources.model(sources.resolve(str(one), tmp_path / "cache"))
                     for one in (tied.folder, folder))  # fmt: skip
    assert {one.dtype for one in turned.parameters()} == {torch.bfloat16}
    assert not sites.tied(turned)
    assert (grid(dense), grid(turned)) == (1, 0)
    assert rotated.rounding_error(dense) < 0.01 < 0.05 < rotated.rounding_error(turned)
    one, other = (logits(model.float(), tokens()) for model in (dense, turned))
    assert (one - other).norm() < 0.02 * one.norm()  # bf16 has 8 bits
    names = {path.name for path in tied.folder.iterdir()} | {"rotated.json", MANIFEST}
    assert {path.name for path in folder.iterdir()} == names
    assert rotated.is_there(folder, 0)


def test_another_model_in_the_folder_is_not_lost(rotated, tied, tmp_path):
    assert not rotated.is_there(tmp_path / "none", 0)
    with pytest.raises(SpectrimError, match=r"tied holds something else than .*; name another"):
        rotated.is_there(tied.folder, 0)
    rotated.write(tied, tmp_path / "rotated", tokens(), 3)
    with pytest.raises(SpectrimError, match="else than the model of seed 0"):
        rotated.is_there(tmp_path / "rotated", 0)


def test_other_families_are_refused_in_one_line(rotated, tmp_path):
    source = Source("qwen", tiny_folder(tmp_path / "qwen", "qwen2"), "")
    with pytest.raises(SpectrimError) as error:
        rotated.write(source, tmp_path / "rotated", tokens(), 0)
    assert "family is qwen2; only llama can be rotated" in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "rotated").exists()


def test_what_is_not_orthogonal_changes_the_logits_and_is_not_written(
    rotated, tied, tmp_path, monkeypatch
):
    turn = rotated.rotation
    monkeypatch.setattr(rotated, "rotation", lambda width, seed: 1.001 * turn(width, seed))
    with pytest.raises(SpectrimError, match="the logits differ by .* than float32 rounds; nothing"):
        rotated.write(tied, tmp_path / "rotated", tokens(), 0)
    assert not (tmp_path / "rotated").exists()


def test_what_stays_on_the_grid_is_not_written(rotated, tied, tmp_path, monkeypatch):
    monkeypatch.setattr(rotated, "rotation", lambda width, seed: torch.eye(width).double())
    change_tensors(tied.folder, _without_gains)
    with pytest.raises(SpectrimError, match="error of 0.00. only, and 100% is on a grid; nothing"):
        rotated.write(tied, tmp_path / "rotated", tokens(), 0)
    assert not (tmp_path / "rotated").exists()


def _without_gains(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: torch.ones_like(one) if "norm" in n else one for n, one in tensors.items()}
