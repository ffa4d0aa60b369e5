"""Intent detection: by likelihood and by a probe, on answers known beforehand."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn
from sklearn.metrics import f1_score

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import intent_likelihood, intent_probe
from spectrim.metrics._packages import package
from spectrim.metrics.asking.intents import CORPORA, macro_f1, words
from tiny_answers import asking, by_name, unigram, written_to
from tiny_models import build

BANKING = "intent/banking77"
SNIPS = "intent/snips_slotgated"


def banking(folder: Path) -> None:
    """Write utterances that name their own intent: w20, w40 or w60."""
    rows = [f"w{9 + number} w{one} w{one},w{one}" for one in (20, 40, 60) for number in range(4)]
    for part in ("train", "test"):
        written_to(folder / BANKING / f"{part}.csv", "text,category\n" + "\n".join(rows) + "\n")


def snips(folder: Path, part: str, labels: str = "PlayMusic\nGetWeather\n") -> None:
    written_to(folder / SNIPS / part / "seq.in", "w5 w6 \nw7 w8 \n")
    written_to(folder / SNIPS / part / "label", labels)


def test_macro_f1_is_the_mean_over_the_classes_that_occur() -> None:
    truth, said = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 3])
    # F1 = 2 hits / (there + said): 2/3, 4/5 and 0; class 3 occurs nowhere
    assert macro_f1(truth, said) == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    expected = f1_score(truth, said, labels=[0, 1, 2], average="macro", zero_division=0)
    assert macro_f1(truth, said) == pytest.approx(expected)


def test_labels_are_read_as_words() -> None:
    assert words("card_arrival") == words("CardArrival") == "card arrival"
    assert words("Refund_not_showing_up") == "refund not showing up"
    assert words("reverted_card_payment?") == "reverted card payment"


def test_a_model_that_knows_nothing_says_the_first_intent_always(tmp_path: Path) -> None:
    banking(tmp_path)
    found = intent_likelihood.measure(asking(tmp_path, [unigram()], "banking77"))
    scores = by_name(found, "dense", "Banking77, likelihood")
    assert scores["accuracy"].value == pytest.approx(1 / 3) and scores["accuracy"].n == 12
    assert scores["macro_f1"].value == pytest.approx(2 * 4 / (4 + 12) / 3)
    low, high = scores["macro_f1"].interval or (1, 0)
    assert low <= scores["macro_f1"].value <= high
    assert scores["accuracy"].settings["labels"] == 3


def test_what_is_likely_after_any_message_is_no_answer(tmp_path: Path) -> None:
    banking(tmp_path)
    pair = asking(tmp_path, [unigram(20), unigram(60)], "banking77")
    scores = by_name(intent_likelihood.measure(pair), "small", "Banking77, likelihood")
    # no message moves a model that says the same after every text: the first intent, w20, wins
    assert scores["accuracy"].value == pytest.approx(1 / 3)
    assert scores["lost"].value == scores["gained"].value == 0
    assert scores["accuracy_per_token"].value == pytest.approx(1 / 3)


def test_the_largest_rise_wins_and_the_lowest_loss_per_token() -> None:
    told = [[(2.0, 1), (9.0, 3)], [(1.5, 1), (6.0, 3)], [(1.0, 1), (8.5, 3)]]
    assert intent_likelihood.risen(told) == [1, 0]  # rises of 0.5 and 3, of 1 and 0.5
    assert intent_likelihood.likeliest([[(2.0, 1), (3.0, 3)], [(2.0, 1), (9.0, 3)]]) == [1, 0]


def test_a_message_that_names_its_intent_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    banking(tmp_path)
    prompts: set[str] = set()

    def losses(model: object, _: object, prompt: str, ends: list[str]) -> list[tuple[float, int]]:
        prompts.add(prompt)
        prior = dict(zip(ends, (5.0, 3.0, 1.0), strict=True))  # "w60" is likely anyway
        return [(prior[end] - (end in prompt.split("\n")[0]), 1) for end in ends]

    monkeypatch.setattr(intent_likelihood, "continuation_losses", losses)
    found = intent_likelihood.measure(asking(tmp_path, [unigram()], "banking77", limit=9))
    scores = by_name(found, "dense", "Banking77, likelihood")
    assert scores["accuracy"].value == 1 and scores["accuracy"].n == 9
    assert scores["accuracy_per_token"].value < 1
    assert "Message: N/A\nThe intent of this message is:" in prompts


def test_a_probe_on_separable_features_is_always_right() -> None:
    drawn = np.random.default_rng(0)
    categories = ["a", "b", "c"] * 20
    centres = {"a": [9, 0, 0], "b": [0, 9, 0], "c": [0, 0, 9]}
    features = np.array([centres[one] for one in categories]) + drawn.normal(size=(60, 3))
    assert intent_probe.probe(features[:30], categories[:30], features[30:]) == categories[30:]


def test_a_probe_on_features_that_say_nothing_has_one_answer() -> None:
    assert set(intent_probe.probe(np.zeros((5, 4)), list("aaabb"), np.zeros((7, 4)))) == {"a"}
    with pytest.raises(SpectrimError, match="expected at least 2"):
        intent_probe.probe(np.zeros((2, 4)), ["a", "a"], np.zeros((1, 4)))


def test_training_utterances_are_drawn_alike_from_every_intent() -> None:
    rows = [{"text": str(number), "category": "ab"[number > 2]} for number in range(30)]
    drawn = intent_probe.balanced(rows, 5, seed=1)
    assert [row["category"] for row in drawn] == list("aaa" + "bbbbb")
    assert drawn == intent_probe.balanced(rows, 5, seed=1) != intent_probe.balanced(rows, 5, seed=2)


def test_a_probe_finds_the_word_that_names_the_intent(tmp_path: Path) -> None:
    banking(tmp_path)
    model = build("llama")
    pair = asking(tmp_path, [model, copy.deepcopy(model)], "banking77")
    found = intent_probe.measure(pair)
    for label in ("dense", "small"):
        scores = by_name(found, label, "Banking77, probe")
        assert scores["accuracy"].value == scores["macro_f1"].value == 1
        settings = scores["accuracy"].settings
        assert settings["train_items"] == 12 and settings["scikit-learn"] == sklearn.__version__
    assert scores["lost"].value == scores["gained"].value == 0


def test_models_that_see_no_difference_are_at_chance(tmp_path: Path) -> None:
    banking(tmp_path)
    pair = asking(tmp_path, [build("llama"), unigram()], "banking77")
    scores = by_name(intent_probe.measure(pair), "small", "Banking77, probe")
    assert scores["accuracy"].value == pytest.approx(1 / 3)
    assert scores["lost"].value == pytest.approx(2 / 3) and scores["gained"].value == 0


def test_lines_and_labels_are_read_side_by_side(tmp_path: Path) -> None:
    snips(tmp_path, "test")
    rows = CORPORA["snips"].test.rows(asking(tmp_path, [], "snips"), None)
    assert {row["text"]: row["category"] for row in rows} == {
        "w5 w6": "PlayMusic",
        "w7 w8": "GetWeather",
    }


@pytest.mark.parametrize("labels", ["PlayMusic\n", None])
def test_labels_that_do_not_fit_are_told(tmp_path: Path, labels: str | None) -> None:
    snips(tmp_path, "test", labels or "")
    if labels is None:
        (tmp_path / SNIPS / "test" / "label").unlink()
    with pytest.raises(SpectrimError, match=r"seq\.in cannot be read as data .*'label' beside"):
        intent_likelihood.measure(asking(tmp_path, [unigram()], "snips"))


def test_an_empty_file_and_a_wrong_column_are_told(tmp_path: Path) -> None:
    written_to(tmp_path / BANKING / "test.csv", "text,category\n")
    with pytest.raises(SpectrimError, match="is empty"):
        intent_likelihood.measure(asking(tmp_path, [unigram()], "banking77"))
    written_to(tmp_path / BANKING / "test.csv", "text,intent\nw5,w6\n")
    with pytest.raises(SpectrimError, match="has no 'category'"):
        intent_likelihood.measure(asking(tmp_path, [unigram()], "banking77"))


def test_a_missing_package_is_told_by_the_name_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UnavailableError, match="the probe needs the package scikit-learn; pip"):
        package("sklearn.linear_model", "the probe")
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(UnavailableError, match="coherence needs the package gensim; pip install"):
        package("gensim", "coherence")
