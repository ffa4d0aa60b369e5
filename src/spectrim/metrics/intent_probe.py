"""Intent detection by a linear probe: whether the hidden states still tell the intents apart.

A logistic regression on the standardised mean of the last hidden states over an utterance's tokens,
trained on the training split and scored on the test split (Alain and Bengio, 1610.01644). It says
what a model's representation holds, not what the model can say.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Measurement, Pair
from spectrim.metrics._packages import package, versions
from spectrim.metrics.asking.embeddings import Vectors, embeddings
from spectrim.metrics.asking.examples import Row
from spectrim.metrics.asking.intents import CORPORA, Intents, scored

TASKS = ("banking77", "snips")
DATA = {name: corpus.test for name, corpus in CORPORA.items()}
MOST = 64  # tokens of an utterance
QUICK, EACH = 5, 100  # training utterances of an intent, at most
STEPS = 1000  # of the optimiser, at most


def measure(pair: Pair) -> Measurement:
    """Return accuracy, macro-F1 and flips of a probe of every model on Banking77 and SNIPS."""
    found: Measurement = {label: [] for label in pair.judged}
    for name in TASKS:
        if pair.asked(name):
            for label, scores in _corpus(pair, CORPORA[name]).items():
                found[label] += scores
    return found


def probe(
    train: Vectors, categories: Sequence[str], test: Vectors, purpose: str = "the probe"
) -> list[str]:
    """Return the categories that a logistic regression on ``train`` gives to ``test``.

    Args:
        train: [texts, hidden], standardised by its own means and deviations, as is ``test``.
        categories: of ``train``; at least two different ones.
        test: [texts, hidden].
        purpose: what needs scikit-learn, for the message where it is missing.

    Raises:
        UnavailableError: scikit-learn is not installed.
        SpectrimError: there are not two categories to tell apart.
    """
    linear = package("sklearn.linear_model", purpose)
    preprocessing = package("sklearn.preprocessing", purpose)
    if len(set(categories)) < 2:
        raise SpectrimError("a probe tells categories apart; expected at least 2 in its data")
    scale = preprocessing.StandardScaler().fit(train)
    model = linear.LogisticRegression(max_iter=STEPS)
    model.fit(scale.transform(train), list(categories))
    return [str(one) for one in model.predict(scale.transform(test))]


def balanced(rows: Sequence[Row], each: int, seed: int) -> list[Row]:
    """Return up to ``each`` rows of every category, drawn with the seed."""
    of: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of[row["category"]].append(row)
    drawn = random.Random(seed)
    return [
        row
        for category in sorted(of)
        for row in drawn.sample(of[category], min(each, len(of[category])))
    ]


def _corpus(pair: Pair, corpus: Intents) -> Measurement:
    if pair.tokenizer is None:
        raise UnavailableError("a probe reads text; give a tokenizer")
    seed = pair.evaluation.seed
    each = QUICK if pair.evaluation.suite == "quick" else EACH
    each = min(each, pair.evaluation.limit or each)
    train = balanced(corpus.train.rows(pair, None), each, seed)
    test = corpus.test.rows(pair, pair.items(quick=150))
    package("sklearn", "the probe")  # before the models are asked, which takes longer
    answers = {label: _answers(pair, label, corpus.shown, train, test) for label in pair.judged}
    settings = {
        "file": corpus.test.file,
        "train": corpus.train.file,
        "train_items": len(train),
        **versions("scikit-learn"),
        "seed": seed,
        "tokens": MOST,
        "probe": "logistic regression, L2, C = 1, on standardised means of the last hidden states",
    }
    return scored(
        pair, f"{corpus.shown}, probe", [row["category"] for row in test], answers, settings
    )


def _answers(
    pair: Pair, label: str, shown: str, train: Sequence[Row], test: Sequence[Row]
) -> list[str]:
    texts = [row["text"] for row in (*train, *test)]
    vectors = embeddings(pair, label, shown, texts, MOST)
    categories = [row["category"] for row in train]
    return probe(vectors[: len(train)], categories, vectors[len(train) :])
