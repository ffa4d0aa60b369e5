"""Topic modelling: each step on hand-made words and points, and the whole on separable texts."""

from __future__ import annotations

import json
from importlib.metadata import version
from math import log
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import topics
from tiny_answers import asking, by_name, unigram, written_to
from tiny_models import build

BBC = "topic/octis_BBC_News/corpus.tsv"
NEWS = "topic/mini_newsgroups/mini_newsgroups.jsonl"
MONEY = "market shares profit growth company"
SPORT = "match goal striker referee league"


def corpus(folder: Path, each: int = 12) -> None:
    """Write two kinds of documents that differ in the words that tiny models know, too."""
    kinds = {"business": f"w20 w21 w22 {MONEY}", "sport": f"w60 w61 w62 {SPORT}"}
    lines = [
        f"{words} w{30 + number}\ttrain\t{label}"
        for label, words in kinds.items()
        for number in range(each)
    ]
    written_to(folder / BBC, "\n".join(lines) + "\n")


def test_points_far_apart_are_told_apart_the_same_way_each_time() -> None:
    drawn = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    points = np.eye(8)[labels] * 30 + drawn.normal(size=(60, 8))
    found = topics.clusterings(points, 3, seed=5)
    assert len(found) == topics.CLUSTERINGS
    for one, again in zip(found, topics.clusterings(points, 3, seed=5), strict=True):
        assert normalized_mutual_info_score(labels, one) == pytest.approx(1)
        assert (one == again).all()


@pytest.mark.parametrize("point", [0.0, 0.1])
def test_documents_on_one_point_make_one_topic(point: float) -> None:
    found = topics.clusterings(np.full((11, 4), point), 3, seed=0)
    assert all(len(set(one)) == 1 for one in found)


def test_words_of_a_topic_are_weighed_as_in_the_paper() -> None:
    documents = [
        ["apple", "apple", "both"],
        ["apple", "both"],
        ["pear", "both"],
        ["pear"],
        ["pear"],
    ]
    found = topics.top_words(documents, np.array([0, 0, 1, 1, 1]))
    assert found == [["apple", "both"], ["pear", "both"]]
    # f = 3 of every word; topic 0 is 3/5 apple and 2/5 both, topic 1 3/4 pear and 1/4 both


def test_a_word_that_every_topic_has_counts_less_than_one_of_its_own() -> None:
    documents = [["own", "every", "every"], ["own", "every"], ["every"] * 6, ["every"] * 6]
    own, every = 2 / 5 * log(1 + 8.5 / 2), 3 / 5 * log(1 + 8.5 / 15)
    assert own > every  # though topic 0 says "every" more often; A = (5 + 12) / 2
    found = topics.top_words(documents, np.array([0, 0, 1, 1]))
    assert found == [["own", "every"], ["every"]]
    with pytest.raises(UnavailableError, match="share no word"):
        topics.top_words([["one"], ["two"]], np.array([0, 1]))


def test_coherence_of_words_that_always_and_never_meet() -> None:
    documents = [["goal", "match"], ["price", "share"]] * 5
    told = topics.coherence([["goal", "match"], ["goal", "share"]], documents, "c_npmi")
    assert told[0] == pytest.approx(1, abs=1e-6)  # ln(0.5 / 0.25) / -ln 0.5
    assert told[1] == pytest.approx(log(1e-12 / 0.25) / -log(1e-12), abs=1e-6)
    together, apart = topics.coherence([["goal", "match"], ["goal", "share"]], documents, "c_v")
    assert together == pytest.approx(1, abs=1e-6) and apart < 0.1


def test_diversity_is_the_share_of_different_words() -> None:
    assert topics.diversity([["a", "b"], ["c", "d"]]) == 1
    assert topics.diversity([["a", "b"], ["a", "b"]]) == 0.5


def test_texts_that_differ_are_found_by_a_model_that_sees_them(tmp_path: Path) -> None:
    corpus(tmp_path)
    pair = asking(tmp_path, [build("llama"), unigram()], "bbc_news")
    found = topics.measure(pair)
    sees = by_name(found, "dense", "BBC News topics")
    blind = by_name(found, "small", "BBC News topics")
    assert sees["nmi"].value == pytest.approx(1) and sees["diversity"].value == 1
    assert sees["npmi"].value == pytest.approx(1, abs=1e-6)
    assert blind["nmi"].value < 0.5 and blind["npmi"].value < sees["npmi"].value
    told = sees["npmi"].settings
    assert {name: told[name] for name in ("gensim", "scikit-learn")} == {
        name: version(name) for name in ("gensim", "scikit-learn")
    }
    first, second = (set(words) for words in sees["nmi"].settings["top_words"])
    assert {frozenset(first), frozenset(second)} == {
        frozenset(MONEY.split()),
        frozenset(SPORT.split()),
    }
    assert sees["nmi"].n == topics.CLUSTERINGS and sees["c_v"].n == 2 * topics.CLUSTERINGS


def test_quoted_lines_are_left_out(tmp_path: Path) -> None:
    text = f"In article <1@x> somebody writes:\n> {SPORT}\n| {SPORT}\n{MONEY}"
    rows = [{"text": text, "label": "a"}] * 12
    written_to(tmp_path / NEWS, "\n".join(json.dumps(row) for row in rows))
    pair = asking(tmp_path, [build("llama")], "newsgroups")
    (score,) = (one for one in topics.measure(pair)["dense"] if one.name == "nmi")
    assert set(sum(score.settings["top_words"], [])) == set(MONEY.split())


def test_too_few_documents_and_a_wrong_file_are_told(tmp_path: Path) -> None:
    corpus(tmp_path, each=4)
    with pytest.raises(UnavailableError, match="8 documents make no topics; expected at least 10"):
        topics.measure(asking(tmp_path, [build("llama")], "bbc_news"))
    written_to(tmp_path / BBC, "a document\tbusiness\n")
    with pytest.raises(SpectrimError, match="line 1 has 2 columns, not 3"):
        topics.measure(asking(tmp_path, [build("llama")], "bbc_news"))
