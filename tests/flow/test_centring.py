"""Biases that make up for the mean of the inputs, in the files that are written."""

from __future__ import annotations

from pathlib import Path

import torch

from spectrim.architectures import of
from spectrim.sites import bias, weight
from spectrim.statistics import load_block
from tiny_runs import Made, family_folder, from_pretrained, kept, load, recipe, shrink, write_text


def test_a_bias_that_makes_up_for_the_mean_stands_in_place_of_the_old_one(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "gpt2")
    text = write_text(tmp_path / "text.txt")
    small = shrink(recipe(source, text, centre=True, refine="off"), tmp_path / "small")
    made = Made("gpt2", source, text, small)
    before, after = load(source), from_pretrained(made, small)
    (folder,) = kept(tmp_path / "cache", "statistics")
    (stack,) = of(before.config).stacks
    assert made.factored()
    for one in made.factored():
        dense, cut = (model.get_submodule(one.site) for model in (before, after))
        mean = load_block(folder, stack, one.block)[one.site].input_mean
        expected = bias(dense) + (weight(dense) - cut.dense()) @ mean
        assert not torch.equal(cut.bias, bias(dense))
        torch.testing.assert_close(cut.bias, expected, rtol=1e-3, atol=1e-4)
