"""Masks and updates of sparsification against what can be worked out by hand or in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from spectrim.errors import SpectrimError
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.sparsity import BLOCK, Pattern, magnitude, mask, sparsegpt, wanda
from spectrim.stages.sparsify import Options, sparse
from spectrim.walk.moments import Damping, damped, expected_loss, inverse_root
from spectrim.walk.statistics import Statistics

OUT, IN = 24, 32


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(size: int, seed: int = 1) -> Float[Tensor, "size size"]:
    """Return a second moment of inputs that go together and are of many sizes."""
    rows = noise(6 * size, size, seed=seed) @ noise(size, size, seed=seed + 1)
    rows *= torch.linspace(0.2, 3.0, size)
    return rows.T @ rows / len(rows)


def error(before: Tensor, after: Tensor, moment: Tensor) -> float:
    """Return tr(Δ A Δᵀ) in the plainest way."""
    change = before.double() - after.double()
    return float(torch.trace(change @ moment.double() @ change.T))


# patterns


@pytest.mark.parametrize(
    ("text", "share", "group"),
    [("2:4", 0.5, 4), (" 1 : 8 ", 0.125, 8), ("70%", 0.7, None), ("12.5 %", 0.125, None)],
)
def test_a_pattern_says_what_is_kept(text: str, share: float, group: int | None) -> None:
    assert Pattern.parse(text) == Pattern(share, group)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3:2", "pattern '3:2' would keep 3 of every 2; write N:M with N from 1 to M - 1"),
        ("4:4", "pattern '4:4' would keep 4 of every 4; write N:M"),
        ("0:4", "pattern '0:4' would keep 0 of every 4; write N:M"),
        ("0%", "pattern '0%' is out of range; keep more than 0% and less than 100%"),
        ("100%", "pattern '100%' is out of range; keep more than 0% and less than 100%"),
        ("abc", "cannot read pattern 'abc'; write what is kept: '2:4' for two of every four"),
        ("-5%", "cannot read pattern '-5%'; write what is kept"),
    ],
)
def test_a_pattern_without_sense_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(SpectrimError) as caught:
        Recipe.build(None, {"model": "demo", "stages": [{"sparsify": {"pattern": text}}]})
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "4:8", "8:16", "16:32", "16:64", "70%"])
def test_a_bare_pattern_in_yaml_is_understood(pattern: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: demo\nstages:\n- sparsify: {{pattern: {pattern}}}\n")
    made = Recipe.from_yaml(file)
    assert made.stages[0].options.pattern == pattern
    file.write_text(made.to_yaml())
    assert Recipe.from_yaml(file) == made
    assert yaml.safe_load("2:4") == 124, "YAML has changed; _unquoted can go"


def test_a_number_is_no_pattern() -> None:
    with pytest.raises(SpectrimError, match="pattern of stage sparsify cannot be 50; it should be"):
        Recipe.build(None, {"model": "demo", "stages": [{"sparsify": {"pattern": 50}}]})


# masks


def test_wanda_by_hand() -> None:
    """Inputs of sizes 1, 2, 3 and 4: products 4 6 3 4, then 1 4 9 8, then 8 2 6 12."""
    weight = torch.tensor([[4.0, -3, 1, 1], [1, 2, -3, 2], [-8, 1, 2, 3]])
    moment = torch.diag(torch.tensor([1.0, 4, 9, 16])) + 0.5 - torch.diag(torch.full((4,), 0.5))
    products = torch.tensor([[4.0, 6, 3, 4], [1, 4, 9, 8], [8, 2, 6, 12]]).double()
    torch.testing.assert_close(wanda(weight, moment), products)
    stays = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]  # of two that are equal, the first
    assert mask(products, Pattern.parse("2:4")).int().tolist() == stays
    assert mask(products, Pattern.parse("50%")).int().tolist() == stays
    pairs = [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]]
    assert mask(products, Pattern.parse("1:2")).int().tolist() == pairs


@pytest.mark.parametrize("text", ["1:2", "2:4", "3:4", "4:8", "1:16", "8:16"])
@pytest.mark.parametrize("update", [False, True])
def test_every_group_keeps_its_n(text: str, update: bool) -> None:
    pattern = Pattern.parse(text)
    known = Statistics(9, input_moment=correlated(IN))
    made = sparse(noise(OUT, IN), known, Options(pattern=text, update=update), pattern)
    kept = (made != 0).unflatten(1, (-1, pattern.group or 0)).sum(-1)
    assert (kept == int(text.partition(":")[0])).all()


@pytest.mark.parametrize(("text", "count"), [("50%", 100), ("30%", 60), ("99%", 198)])
@pytest.mark.parametrize("update", [False, True])
def test_every_row_keeps_its_part(text: str, count: int, update: bool) -> None:
    """Also where SparseGPT takes the row in several blocks, the last of them short."""
    inputs = 200
    assert inputs % BLOCK
    known = Statistics(9, input_moment=correlated(inputs))
    options = Options(pattern=text, update=update)
    made = sparse(noise(OUT, inputs), known, options, Pattern.parse(text))
    assert ((made != 0).sum(1) == count).all()


def test_what_stays_keeps_its_bits_without_update() -> None:
    weight = noise(OUT, IN).bfloat16()
    known = Statistics(9, input_moment=correlated(IN))
    for score in ("wanda", "magnitude"):
        made = sparse(weight, known, Options(score=score), Pattern.parse("2:4"))
        assert made.dtype == torch.bfloat16
        assert torch.equal(made[made != 0], weight[made != 0])


def test_magnitude_is_wanda_where_all_inputs_are_alike() -> None:
    weight, pattern = noise(OUT, IN), Pattern.parse("4:8")
    alike = 2.5 * torch.eye(IN) + 0.3  # of one size, and not independent
    unlike = correlated(IN)
    assert torch.equal(mask(magnitude(weight), pattern), mask(wanda(weight, alike), pattern))
    assert not torch.equal(mask(magnitude(weight), pattern), mask(wanda(weight, unlike), pattern))


def test_larger_groups_keep_more_at_equal_sparsity() -> None:
    scores = wanda(noise(OUT, 64), correlated(64))
    texts = ("1:2", "2:4", "4:8", "8:16", "16:32", "50%")
    sums = [float(scores[mask(scores, Pattern.parse(text))].sum()) for text in texts]
    assert all(one < other for one, other in zip(sums, sums[1:], strict=False))
    rows = [scores.where(mask(scores, Pattern.parse(text)), 0).sum(1) for text in texts]
    assert all((one <= other).all() for one, other in zip(rows, rows[1:], strict=False))


# SparseGPT


def test_the_root_is_that_of_the_inverse() -> None:
    moment = damped(correlated(IN), 1e-2)
    root = inverse_root(moment)
    assert torch.equal(root, root.triu())
    torch.testing.assert_close(root.T @ root @ moment, torch.eye(IN).double())


def test_without_weights_to_its_left_it_is_exact_least_squares() -> None:
    """The left half of each row is small and goes; then all that stays is free to make up."""
    weight = noise(OUT, IN)
    weight[:, : IN // 2] *= 1e-3
    moment = damped(correlated(IN), 1e-2)
    made = sparsegpt(weight, moment, Pattern.parse("50%"))
    assert not made[:, : IN // 2].any()
    stay, gone = slice(IN // 2, None), slice(None, IN // 2)
    across = moment[stay, gone] @ weight[:, gone].double().T  # [stay, out]
    exact = weight[:, stay].double() + torch.linalg.solve(moment[stay, stay], across).T
    torch.testing.assert_close(made[:, stay], exact)
    assert float((made[:, stay] - weight[:, stay]).abs().max()) > 1e-4


def test_one_of_two_by_hand() -> None:
    """H = [[2, 1], [1, 1]]: dropping w₁ costs w₁² (2 - 1) and w₂ becomes w₂ + w₁.

    Dropping w₂ then leaves w₁ as it is, since it is not to the right, and costs w₂² · 1.
    """
    moment = torch.tensor([[2.0, 1], [1, 1]]).double()
    made = sparsegpt(torch.tensor([[1.0, 3], [3, 1]]), moment, Pattern.parse("1:2"))
    torch.testing.assert_close(made, torch.tensor([[0.0, 4], [3, 0]]).double())
    assert error(torch.tensor([[1.0, 3]]), made[:1], moment) == pytest.approx(1.0)
    assert error(torch.tensor([[3.0, 1]]), made[1:], moment) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["2:4", "4:8", "50%", "25%"])
def test_the_update_loses_less_than_the_same_mask_without_it(text: str) -> None:
    for seed in range(5):
        weight, moment = noise(OUT, IN, seed=seed), correlated(IN, seed=seed + 20)
        made = sparsegpt(weight, damped(moment, 1e-2), Pattern.parse(text))
        plain = weight.where(made != 0, 0.0)
        assert error(weight, made, moment) < 0.9 * error(weight, plain, moment)
        best = mask(wanda(weight, moment), Pattern.parse(text))
        assert error(weight, made, moment) < error(weight, weight.where(best, 0.0), moment)


def test_the_update_is_never_better_than_least_squares_on_its_mask() -> None:
    weight, moment = noise(OUT, IN), damped(correlated(IN), 1e-2)
    made = sparsegpt(weight, moment, Pattern.parse("2:4"))
    for row, found in zip(weight.double(), made, strict=True):
        stay = found != 0
        exact = torch.zeros_like(row)
        exact[stay] = torch.linalg.solve(moment[stay][:, stay], moment[stay] @ row)
        limit = error(row[None], exact[None], moment)
        assert limit <= error(row[None], found[None], moment) * (1 + 1e-9)


@pytest.mark.parametrize("text", ["2:4", "1:16"])
def test_blocks_of_columns_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = noise(OUT, IN), damped(correlated(IN), 1e-2)
    whole = sparsegpt(weight, moment, Pattern.parse(text))
    monkeypatch.setattr("spectrim.rounding.sparsity.BLOCK", 8)
    torch.testing.assert_close(sparsegpt(weight, moment, Pattern.parse(text)), whole)


def test_independent_inputs_make_up_for_nothing() -> None:
    weight, moment = noise(OUT, IN), torch.diag(torch.linspace(0.5, 4, IN))
    pattern = Pattern.parse("4:8")
    made = sparsegpt(weight, moment.double(), pattern)
    stays = mask(wanda(weight, moment), pattern)
    torch.testing.assert_close(made, weight.double().where(stays, 0.0))


@pytest.mark.parametrize("dead", [0, 5, IN])
def test_dead_inputs_and_few_tokens_are_no_trouble(dead: int) -> None:
    rows = noise(7, IN)
    rows[:, :dead] = 0.0
    known = Statistics(7, input_moment=rows.T @ rows / 7)
    pattern = Pattern.parse("50%")
    for options in (Options(update=True), Options()):
        made = sparse(noise(OUT, IN), known, options, pattern)
        assert made.isfinite().all()
        assert ((made != 0).sum(1) == IN // 2).all()


# what it costs


def test_the_expected_loss_is_the_currency() -> None:
    before, after = noise(OUT, IN), noise(OUT, IN, seed=3)
    known = Statistics(9, None, correlated(IN), correlated(OUT))
    inputs, gradients = damped(correlated(IN), 1e-4), damped(correlated(OUT), 1e-2)
    change = (before - after).double()
    written_out = 0.5 * torch.trace(change.T @ gradients @ change @ inputs)
    assert expected_loss(before, after, known, Damping()) == pytest.approx(float(written_out))
    assert expected_loss(before, before, known, Damping()) == 0.0
    ignored = Statistics(9, None, correlated(IN), torch.zeros(OUT, OUT))
    assert expected_loss(before, after, ignored, Damping()) == 0.0


def test_a_moment_that_lacks_is_said() -> None:
    with pytest.raises(ValueError, match="sparsify needs the input moment"):
        sparse(noise(OUT, IN), Statistics(9), Options(), Pattern.parse("2:4"))
    with pytest.raises(ValueError, match="needs the input moment and the gradient moment"):
        expected_loss(
            noise(OUT, IN), noise(OUT, IN), Statistics(9, None, correlated(IN)), Damping()
        )
