"""StereoSet and CrowS-Pairs: the numbers by hand, and models whose preferences are known."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from spectrim.errors import SpectrimError
from spectrim.metrics import crows_pairs, stereoset
from spectrim.metrics.asking.preferences import changed, preferred
from spectrim.metrics.stereoset import DATA, DOMAINS, from_hub, icat, over_terms, preferences
from tiny_answers import asking, by_name, unigram, written_to
from tiny_models import build

CROWS = "bias/crows_pairs/crows_pairs_anonymized.csv"
HEADER = "Domain,Target,Context,Unrelated Sentence,Anti-stereotype Sentence,Stereotype Sentence"


def stereo(folder: Path, domains: tuple[str, ...] = DOMAINS) -> None:
    """Write items whose stereotype says w9 where the other sentences say w10 and w11."""
    for domain in domains:
        rows = [f"{domain},w{one},,w3 w{one} w11,w3 w{one} w10,w3 w{one} w9" for one in (20, 21)]
        file = folder / f"bias/stereoset/intrasentence_{domain}_data.csv"
        written_to(file, "\n".join([HEADER, *rows, rows[0]]) + "\n")


def crows(folder: Path, *rows: str) -> None:
    written_to(folder / CROWS, ",sent_more,sent_less,bias_type\n" + "\n".join(rows) + "\n")


def test_icat_by_hand() -> None:
    assert icat(0.9, 0.5) == pytest.approx(0.9)  # as good a language model, no bias
    assert icat(1.0, 1.0) == icat(1.0, 0.0) == 0  # always, and never, the stereotype
    assert icat(0.8, 0.6) == pytest.approx(0.64) == icat(0.8, 0.4)
    assert icat(0.5, 0.5) == 0.5  # the random model of the paper


def test_shares_are_means_over_terms_first() -> None:
    values, terms = np.array([1.0, 0.0, 1.0, 0.0, 1.0]), ["b", "b", "b", "a", "b"]
    assert over_terms(values, terms).tolist() == [0.0, 0.75]


def test_likelihood_counts_per_token_and_ties_count_half() -> None:
    assert preferred(1.0, 2.0) == 1 and preferred(2.0, 1.0) == 0
    assert preferred(3.0, 3.0 + 1e-9) == 0.5
    longer_but_likelier_a_token = [(6.0, 3), (4.0, 1), (5.0, 1)]
    assert preferences(longer_but_likelier_a_token) == (1, 1)
    assert preferences([(4.0, 1), (6.0, 1), (5.0, 1)]) == (1, 0.5)


def test_a_model_of_no_preference_scores_half(tmp_path: Path) -> None:
    stereo(tmp_path)
    found = stereoset.measure(asking(tmp_path, [unigram()], "stereoset"))
    for task in ("StereoSet", "StereoSet, race"):
        scores = by_name(found, "dense", task)
        assert {name: scores[name].value for name in scores} == {"lms": 0.5, "ss": 0.5, "icat": 0.5}
    assert by_name(found, "dense", "StereoSet")["ss"].n == 12
    assert by_name(found, "dense", "StereoSet")["ss"].better == "none"


def test_a_model_that_always_stereotypes_has_no_icat(tmp_path: Path) -> None:
    stereo(tmp_path)
    found = stereoset.measure(asking(tmp_path, [unigram(9), unigram(10)], "stereoset"))
    always, never = (by_name(found, label, "StereoSet") for label in ("dense", "small"))
    # one sentence with sense is likelier than the one without, the other is as likely
    assert (always["lms"].value, always["ss"].value, always["icat"].value) == (0.75, 1, 0)
    assert (never["lms"].value, never["ss"].value, never["icat"].value) == (0.75, 0, 0)
    assert never["to_anti_stereotype"].value == 1 and never["to_stereotype"].value == 0
    assert never["to_anti_stereotype"].better == "none"
    assert never["mcnemar_p"].value == pytest.approx(2 / 2**12)
    by_domain = by_name(found, "small", "StereoSet, gender")
    assert by_domain["mcnemar_p"].value == pytest.approx(2 / 2**3)  # three items prove nothing
    assert by_domain["icat"].settings["terms"] == 2
    assert "lopsided near SS = 0.5" in by_domain["icat"].settings["interval"]
    assert "interval" not in by_domain["ss"].settings


def test_whole_terms_are_resampled(tmp_path: Path) -> None:
    # 30 items of one term are no more than one item of another: the terms' means are 1 and 1/4,
    # and every fourth resample of the two has only the one, or only the other.
    sense, half = "gender,w20,,w3 w11,w3 w9,w3 w9", "gender,w21,,w3 w9,w3 w11,w3 w9"
    for domain in DOMAINS:
        rows = [*[sense] * 30, half] if domain == "gender" else []
        file = tmp_path / f"bias/stereoset/intrasentence_{domain}_data.csv"
        written_to(file, "\n".join([HEADER, *rows]) + "\n")
    found = stereoset.measure(asking(tmp_path, [unigram(9)], "stereoset"))
    lms = by_name(found, "dense", "StereoSet")["lms"]
    assert (lms.value, lms.n) == ((1 + 1 / 4) / 2, 31)
    assert lms.interval == pytest.approx((1 / 4, 1.0))
    assert (lms.settings["terms"], lms.settings["resampled"]) == (2, "target terms")


def test_the_change_of_lms_is_paired_by_term(tmp_path: Path) -> None:
    stereo(tmp_path)
    found = stereoset.measure(asking(tmp_path, [unigram(9), unigram(11)], "stereoset"))
    dense, small = (by_name(found, label, "StereoSet") for label in ("dense", "small"))
    # w9 is in one sentence with sense, w11 in the one without: 3/4 becomes 0 for every term.
    assert (dense["lms"].value, small["lms"].value) == (0.75, 0.0)
    change = small["lms_difference_to_dense"]
    assert (change.value, change.interval) == (-0.75, (-0.75, -0.75))
    assert (change.n, change.unit, change.better) == (12, "share", "higher")
    assert "lms_difference_to_dense" not in dense


def test_equal_models_prefer_the_same(tmp_path: Path) -> None:
    stereo(tmp_path)
    crows(tmp_path, "0,w5 w6,w7 w8,age", "1,w9 w6,w10 w8,age", "2,w9 w4,w10 w4,gender")
    model = build("llama")
    pair = asking(tmp_path, [model, copy.deepcopy(model)], "stereoset", "crows_pairs")
    for metric, task in ((stereoset, "StereoSet"), (crows_pairs, "CrowS-Pairs")):
        scores = by_name(metric.measure(pair), "small", task)
        assert scores["to_stereotype"].value == scores["to_anti_stereotype"].value == 0
        assert scores["mcnemar_p"].value == 1


def test_crows_pairs_sums_over_the_sentence(tmp_path: Path) -> None:
    rows = [
        "0,w5 w6,w5 w6 w7,age",
        "1,w5 w6,w5 w7,age",
        "2,w5 w6 w7,w5,gender",
        "3,w5,w6 w7,gender",
    ]
    crows(tmp_path, *rows)
    found = crows_pairs.measure(asking(tmp_path, [unigram()], "crows_pairs"))
    shares = {
        task: by_name(found, "dense", task)["stereotype_share"].value
        for task in ("CrowS-Pairs", "CrowS-Pairs, age", "CrowS-Pairs, gender")
    }
    # where all words are alike the shorter sentence is likelier: 1, a tie, 0 and 1
    assert shares == {"CrowS-Pairs": 0.625, "CrowS-Pairs, age": 0.75, "CrowS-Pairs, gender": 0.5}
    score = by_name(found, "dense", "CrowS-Pairs")["stereotype_share"]
    assert score.better == "none" and score.settings["ideal"] == 0.5


def test_changes_are_counted_by_direction() -> None:
    to_anti, to_stereotype, p = changed([1, 1, 1, 0, 0.5], [0, 0, 1, 1, 0.5], "bias")
    assert (to_anti.value, to_stereotype.value) == (0.4, 0.2)
    assert p.value == pytest.approx(1.0)  # two of three


def test_rows_of_the_hub_become_those_of_the_files() -> None:
    held = {"sentence": ["stereotype", "against", "nonsense"], "gold_label": [1, 0, 2]}
    row = from_hub({"bias_type": "race", "target": "Ghana", "sentences": held})
    assert row == {
        "Domain": "race",
        "Target": "Ghana",
        "Stereotype Sentence": "stereotype",
        "Anti-stereotype Sentence": "against",
        "Unrelated Sentence": "nonsense",
    }
    assert set(DATA.columns) == set(row)


def test_missing_files_and_columns_are_told(tmp_path: Path) -> None:
    stereo(tmp_path, ("gender", "race"))
    with pytest.raises(SpectrimError, match="no file intrasentence_profession_data.csv beside it"):
        stereoset.measure(asking(tmp_path, [unigram()], "stereoset"))
    crows(tmp_path)
    with pytest.raises(SpectrimError, match="is empty"):
        crows_pairs.measure(asking(tmp_path, [unigram()], "crows_pairs"))
    written_to(tmp_path / CROWS, ",more,less,bias_type\n0,w3,w4,age\n")
    with pytest.raises(SpectrimError, match="has no 'sent_more'; expected sent_more, sent_less"):
        crows_pairs.measure(asking(tmp_path, [unigram()], "crows_pairs"))
