"""Intervals and flips against hand-made and simulated numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from spectrim.metrics import Score
from spectrim.metrics.asking.certainty import flips, mean, paired, proportion, resampled


def test_wilson_interval_by_hand() -> None:
    found = proportion([True] * 8 + [False] * 2, "accuracy", "t", seed=1)
    z = 1.959964
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    reach = z * (0.8 * 0.2 / 10 + z * z / 400) ** 0.5 / (1 + z * z / 10)
    assert found.interval == pytest.approx((centre - reach, centre + reach), abs=1e-6)
    assert (found.value, found.n, found.settings) == (0.8, 10, {"seed": 1, "task": "t"})


def test_all_right_still_leaves_doubt() -> None:
    interval = proportion([True] * 5, "accuracy", "t").interval
    assert interval is not None and interval[0] < 0.6 and interval[1] == 1


def test_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 8))
    ends = [mean(list(row), "m", "", "none", "t").interval for row in drawn]
    covered = np.mean([low <= 3.0 <= high for low, high in ends])  # type: ignore[misc]
    assert 0.92 < covered < 0.98


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=200)
    ends = resampled(lambda column: float(column.mean()), [values], seed=0)
    error = values.std(ddof=1) / 200**0.5
    assert ends is not None
    assert ends[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert ends[1] == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert resampled(lambda column: float(column.mean()), [values], seed=0) == ends


def test_flips_count_both_ways_apart() -> None:
    dense = [True, True, True, True, False, False, False, False, True, True]
    small = [False, False, False, True, True, False, False, False, True, True]
    lost, gained, p = flips(dense, small, "t")
    assert (lost.value, gained.value) == (0.3, 0.1)
    assert p.value == pytest.approx(2 * binom.cdf(1, 4, 0.5))  # 3 against 1


def test_equal_answers_are_no_flips() -> None:
    lost, gained, p = flips([True, False], [True, False], "t")
    assert (lost.value, gained.value, p.value) == (0, 0, 1)


def test_a_difference_that_is_the_same_everywhere_is_sure() -> None:
    dense = np.random.default_rng(2).random(50)
    of = Score("f1", float(dense.mean()), "share", "higher", 50, (0.3, 0.7), {"task": "t"})
    found = paired(dense, dense - 0.25, of, seed=0)  # though the values themselves are all apart
    assert found.name == "f1_difference_to_dense" and found.value == pytest.approx(-0.25)
    assert found.interval == pytest.approx((-0.25, -0.25))
    assert (found.n, found.unit, found.better) == (50, "share", "higher")
    assert found.settings["task"] == "t" and "paired" in found.settings["interval"]


def test_the_paired_interval_is_that_of_the_differences() -> None:
    # 16 of 64 items got worse by 1: the differences' mean is -1/4, its error sqrt(3)/4/8.
    dense = [1.0, 1.0, 0.0, 1.0] * 16
    small = [1.0, 0.0, 0.0, 1.0] * 16
    of = Score("f1", 0.5, "share", "higher", 64)
    found = paired(dense, small, of, seed=0)
    error = 3**0.5 / 32
    assert found.value == -0.25 and found.interval is not None
    assert found.interval == pytest.approx((-0.25 - 1.96 * error, -0.25 + 1.96 * error), abs=0.02)
    assert paired(dense[:1], small[:1], of, seed=0).interval is None
