"""Topic modelling on a model's own document embeddings: whether related documents stay near.

The steps are BERTopic's (Grootendorst, 2203.05794): embed, reduce, cluster, describe each cluster
by its class-based TF-IDF. The embeddings are the mean of the model's last hidden states. Reduction
is by principal components and clustering by k-means with as many topics as there are labels: the
same for a seed on every machine, no minutes of compiling, and no document is set aside as an
outlier, so that models are compared on all of them. Five clusterings are drawn, because one alone
says as much about its start as about the model.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectrim.errors import UnavailableError
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._packages import package, versions
from spectrim.metrics.asking.certainty import mean
from spectrim.metrics.asking.embeddings import Vectors, embeddings
from spectrim.metrics.asking.examples import DataSet, Row

MOST = 64  # tokens of a document that the model reads
WORDS = 300  # of a document that topics are described by
TOP = 10  # words of a topic
COMPONENTS = 50
CLUSTERINGS = 5
EACH = 5  # documents a topic, at least
FEWEST = 2 * EACH

# Quoted lines and their attributions would make topics of who answers whom.
_QUOTED = re.compile(r"writes:|wrote:|says:|said:|^In article|^Quoted from|^\s*[|>]")
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Corpus:
    """Documents with labels that a good topic model should find again.

    posts: lines that quote another post are left out.
    """

    shown: str
    data: DataSet
    posts: bool = False


def tab_separated(path: Path) -> Iterable[Row]:
    """Return the rows of OCTIS's corpus.tsv: document, split and label, with no header.

    Raises:
        ValueError: a line has not three columns.
    """
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    parts = [line.split("\t") for line in lines]
    wrong = next((number for number, one in enumerate(parts, start=1) if len(one) != 3), None)
    if wrong is not None:
        raise ValueError(f"line {wrong} has {len(parts[wrong - 1])} columns, not 3")
    return [{"text": text, "label": label} for text, _, label in parts]


def _named(row: Row) -> Row:
    return {"text": row["text"], "label": row["label_text"]}


CORPORA: Mapping[str, Corpus] = {
    "bbc_news": Corpus(
        "BBC News topics",
        DataSet(
            file="topic/octis_BBC_News/corpus.tsv",
            hub="SetFit/bbc-news::train",
            columns=("text", "label"),
            parse=tab_separated,
            adapt=_named,
        ),
    ),
    "newsgroups": Corpus(
        "Newsgroups topics",
        DataSet(
            file="topic/mini_newsgroups/mini_newsgroups.jsonl",
            hub="SetFit/20_newsgroups::test",
            columns=("text", "label"),
            adapt=_named,
        ),
        posts=True,
    ),
}
TASKS = ("bbc_news", "newsgroups")
DATA = {name: corpus.data for name, corpus in CORPORA.items()}


def measure(pair: Pair) -> Measurement:
    """Return coherence (NPMI, C_v), diversity and agreement with the labels of every model."""
    found: Measurement = {label: [] for label in pair.judged}
    for name, corpus in CORPORA.items():
        if pair.asked(name):
            for label, scores in _corpus(pair, corpus).items():
                found[label] += scores
    return found


def clusterings(vectors: Vectors, topics: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the topic of every document [documents], once for each of ``CLUSTERINGS`` seeds."""
    cluster = package("sklearn.cluster", "topic modelling")
    decomposition = package("sklearn.decomposition", "topic modelling")
    even = _standardised(vectors)
    if even.any():
        count = min(COMPONENTS, *(size - 1 for size in even.shape))
        even = decomposition.PCA(count, svd_solver="full").fit_transform(even)
    return [_k_means(cluster, even, topics, seed + start) for start in range(CLUSTERINGS)]


def _standardised(vectors: Vectors) -> Vectors:
    """Return the vectors with mean 0 and deviation 1 of each number; 0 where it never differs."""
    spread = vectors.std(0)
    differs = spread > 1e-6 * np.abs(vectors).max(initial=0)  # more than the mean was rounded by
    even: Vectors = (vectors - vectors.mean(0)) / np.where(differs, spread, np.inf)
    return even


def _k_means(cluster: Any, points: Vectors, topics: int, seed: int) -> NDArray[np.int64]:
    with warnings.catch_warnings():
        # Documents that a broken model maps onto one point make fewer topics; the scores show it.
        warnings.filterwarnings("ignore", message="Number of distinct clusters")
        found = cluster.KMeans(topics, n_init=4, random_state=seed).fit_predict(points)
    return np.asarray(found, dtype=np.int64)


def top_words(documents: Sequence[Sequence[str]], topics: NDArray[np.int64]) -> list[list[str]]:
    """Return the ``TOP`` words of each topic by class-based TF-IDF (2203.05794, equation 1).

    W = tf(word, topic) x ln(1 + A / f(word)): tf is the word's share of the topic's words, A the
    mean number of words of a topic and f the word's number in all. Words of one document are left
    out; a topic of fewer words than ``TOP`` has those that it has.

    Raises:
        UnavailableError: no word is in two documents.
    """
    known, counts = _counts(documents, topics)
    share = counts / counts.sum(1, keepdims=True)
    weights = share * np.log(1 + counts.sum(1).mean() / counts.sum(0))
    orders = np.argsort(-weights, axis=1, kind="stable")[:, :TOP]
    return [
        [known[index] for index in order if row[index] > 0]
        for row, order in zip(weights, orders, strict=True)
    ]


def _counts(
    documents: Sequence[Sequence[str]], topics: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the words of two documents or more, and their numbers [topics with any, words]."""
    often = Counter(word for words in documents for word in set(words))
    known = sorted(word for word, count in often.items() if count > 1)
    if not known:
        raise UnavailableError("documents that share no word have no topics")
    place = {word: index for index, word in enumerate(known)}
    counts = np.zeros((int(topics.max()) + 1, len(known)))
    for words, topic in zip(documents, topics, strict=True):
        np.add.at(counts[topic], [place[word] for word in words if word in place], 1)
    return known, counts[counts.sum(1) > 0]


def diversity(topics: Sequence[Sequence[str]]) -> float:
    """Return the share of different words among all topics' words (Dieng et al., 1907.04907)."""
    every = [word for words in topics for word in words]
    return len(set(every)) / len(every)


def coherence(
    topics: Sequence[Sequence[str]], documents: Sequence[Sequence[str]], measure: str
) -> list[float]:
    """Return the coherence of every topic in its own documents: "c_npmi" or "c_v" of gensim.

    Röder et al., "Exploring the Space of Topic Coherence Measures", 2015; c_npmi lies within -1 and
    1 and c_v within 0 and 1.
    """
    models = package("gensim.models.coherencemodel", "topic coherence")
    dictionary = package("gensim.corpora", "topic coherence").Dictionary(documents)
    model = models.CoherenceModel(
        topics=topics,
        texts=documents,
        dictionary=dictionary,
        coherence=measure,
        topn=TOP,
        processes=1,
    )
    return [float(value) for value in model.get_coherence_per_topic()]


def _corpus(pair: Pair, corpus: Corpus) -> Measurement:
    rows = _documents(pair, corpus)
    package("gensim", "topic coherence")  # before the models are asked, which takes longer
    texts, labels = ([row[name] for row in rows] for name in ("text", "label"))
    words = [_words(text) for text in texts]
    count = max(2, min(len(set(labels)), len(rows) // EACH))
    settings = {
        "file": corpus.data.file,
        "seed": pair.evaluation.seed,
        "documents": len(rows),
        **versions("scikit-learn", "gensim"),
        "tokens": MOST,
        "topics": count,
        "clusterings": CLUSTERINGS,
        "words": TOP,
    }
    found: Measurement = {}
    for label in pair.judged:
        vectors = embeddings(pair, label, corpus.shown, texts, MOST)
        drawn = clusterings(vectors, count, pair.evaluation.seed)
        sets = [top_words(words, topics) for topics in drawn]
        told = {**settings, "top_words": sets[0]}
        found[label] = [
            _agreement(drawn, labels, corpus.shown, told),
            *_described(sets, words, corpus.shown, settings),
        ]
    return found


def _documents(pair: Pair, corpus: Corpus) -> list[Row]:
    if pair.tokenizer is None:
        raise UnavailableError("documents are read as words; give a tokenizer")
    rows = [
        {"text": _unquoted(row["text"]) if corpus.posts else row["text"], "label": row["label"]}
        for row in corpus.data.rows(pair, None)
    ]
    rows = [row for row in rows if len(_words(row["text"])) >= EACH]
    rows = rows[: pair.items(quick=150)]
    if len(rows) < FEWEST:
        raise UnavailableError(f"{len(rows)} documents make no topics; expected at least {FEWEST}")
    return rows


def _unquoted(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not _QUOTED.search(line)).strip()


def _words(text: str) -> list[str]:
    common = package("sklearn.feature_extraction.text", "topic modelling").ENGLISH_STOP_WORDS
    return [word for word in _WORD.findall(text.lower()) if word not in common][:WORDS]


def _agreement(
    drawn: Sequence[NDArray[np.int64]],
    labels: Sequence[str],
    task: str,
    settings: Mapping[str, Any],
) -> Score:
    agree = package("sklearn.metrics", "topic modelling").normalized_mutual_info_score
    values = [float(agree(labels, topics)) for topics in drawn]
    over = {**settings, "interval": "95 % t over clusterings"}
    return mean(values, "nmi", "share", "higher", task, **over)


def _described(
    sets: Sequence[Sequence[Sequence[str]]],
    documents: Sequence[Sequence[str]],
    task: str,
    settings: Mapping[str, Any],
) -> list[Score]:
    """Return coherences and diversity of the words of several clusterings' topics."""
    every = [words for topics in sets for words in topics if len(words) > 1]
    if not every:
        raise UnavailableError("topics of one word have no coherence; give longer documents")
    over = {**settings, "interval": "95 % t over clusterings"}
    within = {**settings, "interval": "95 % t over the topics of all clusterings"}
    return [
        *(
            mean(coherence(every, documents, f"c_{name}"), shown, "score", "higher", task, **within)
            for name, shown in (("npmi", "npmi"), ("v", "c_v"))
        ),
        mean([diversity(topics) for topics in sets], "diversity", "share", "higher", task, **over),
    ]
