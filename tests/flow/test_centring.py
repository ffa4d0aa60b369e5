"""Biases that make up for the mean of the inputs, in the files that are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spectrim.model.architectures import Place, architecture_of
from spectrim.model.sites import bias, weight
from spectrim.plan import Decision
from spectrim.recipe.recipe import Calibration
from spectrim.walk.statistics import Statistics, block_statistics
from tiny_models import unpack
from tiny_runs import (
    TOKENS,
    Made,
    envelope_kept,
    family_folder,
    from_pretrained,
    kept,
    load,
    recipe,
    shrink,
    write_text,
)

FEW = "4x8"  # tokens: fewer than a site has inputs


def centred(family: str, folder: Path, tokens: str = TOKENS, **options: str) -> Made:
    """Make a tiny model smaller under ``centre: true``."""
    source, text = family_folder(folder / "source", family), write_text(folder / "text.txt")
    asked = recipe(source, text, centre=True, refine="off", **options)
    read = Calibration.parse(str(text), tokens)
    small = shrink(asked.model_copy(update={"calibration": read}), folder / "small")
    return Made(family, source, text, small)


def cuts(made: Made) -> list[tuple[Decision, nn.Module, nn.Module, Statistics]]:
    """Return every site that was cut: what was decided, before, after, and what was known of it."""
    before, after = load(made.source), from_pretrained(made, made.small)
    unpack(before)
    (folder,) = kept(made.folder / "cache", "statistics")
    (stack,) = architecture_of(before.config).stacks
    known = [
        block_statistics(folder, Place(stack, at))
        for at in range(len(before.get_submodule(stack.path)))
    ]
    return [
        (
            one,
            before.get_submodule(one.site),
            after.get_submodule(one.site),
            known[one.block][one.site],
        )
        for one in made.factored()
    ]


def makes_up_for_the_mean(dense: nn.Module, cut: nn.Module, known: Statistics) -> bool:
    own = bias(dense)
    missing = (weight(dense) - cut.dense()) @ known.input_mean
    expected = missing if own is None else own + missing
    moved = own is None or not torch.equal(cut.bias, own)
    return moved and torch.allclose(cut.bias, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "tokens"), [("gpt2", TOKENS), ("mixtral", FEW)])
def test_a_bias_that_makes_up_for_the_mean_stands_in_place_of_the_old_one(
    family: str, tokens: str, tmp_path: Path
) -> None:
    found = cuts(centred(family, tmp_path, tokens))
    assert found
    for one, dense, cut, known in found:
        assert one.bias and makes_up_for_the_mean(dense, cut, known), one.site
    experts = [(one, known) for one, _, _, known in found if ".experts." in one.site]
    assert bool(experts) == (family == "mixtral")
    assert all(known.tokens < one.in_features for one, known in experts)


def test_autoencoders_among_centred_cuts_keep_the_bias_that_was(tmp_path: Path) -> None:
    """Their samples are not centred, so neither are their moments."""
    options = {"method": "loss_aware_svd,autoencoder", "format": "low_rank"}
    options["keep"] = "40% of linear"
    with envelope_kept():
        found = cuts(centred("mixtral", tmp_path, **options))
    assert {one.method for one, _, _, _ in found} == {"loss_aware_svd", "autoencoder"}
    for one, dense, cut, known in found:
        if one.method == "autoencoder":
            assert not one.bias and bias(dense) is None and bias(cut) is None, one.site
        else:
            assert one.bias and makes_up_for_the_mean(dense, cut, known), one.site


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_autoencoders_are_the_same_whether_inputs_are_centred_or_not(
    family: str, tmp_path: Path
) -> None:
    made = centred(family, tmp_path, method="autoencoder")
    plain = recipe(made.source, made.text, refine="off", method="autoencoder")
    other = Made(family, made.source, made.text, shrink(plain, tmp_path / "plain"))
    assert made.factored() and made.factored() == other.factored()
    for one, dense, cut, _ in cuts(made):
        own = bias(dense)
        assert bias(cut) is None if own is None else torch.equal(bias(cut), own), one.site
