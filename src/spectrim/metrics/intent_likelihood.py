"""Intent detection by likelihood: which intent's name a message makes likelier than nothing does.

Nothing is trained. A message is put into a sentence whose end names its intent, and each intent's
name is tried as that end. The answer is the name whose log-likelihood rises most from the same
sentence about no message ("N/A"): a name that is likely anyway says little of the message (domain
conditional pointwise mutual information, Holtzman et al., 2104.08315; the words for nothing, Zhao
et al., 2102.09690). Sums over a name's tokens are compared, since what a name's length does to one
it does to both. "accuracy_per_token" takes the lowest loss per token of the name instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectrim.errors import UnavailableError
from spectrim.metrics import Measurement, Pair
from spectrim.metrics.asking.answers import answered
from spectrim.metrics.asking.certainty import proportion
from spectrim.metrics.asking.intents import CORPORA, scored, words
from spectrim.metrics.asking.ways import continuation_losses

TASKS = ("banking77", "snips")
DATA = {name: corpus.test for name, corpus in CORPORA.items()}
NOTHING = "N/A"
PROMPT = "Message: {text}\nThe intent of this message is:"
QUICK = {"banking77": 20, "snips": 50}  # Banking77 asks eleven times as many names of an item

Losses = Sequence[tuple[float, int]]
"""Loss in nats and number of tokens of every name."""


def measure(pair: Pair) -> Measurement:
    """Return accuracy, macro-F1 and flips on Banking77 and SNIPS, without training.

    The names are those of all intents that the test split has, whatever the limit.
    """
    found: Measurement = {label: [] for label in pair.judged}
    for name in TASKS:
        if pair.asked(name):
            for label, scores in _corpus(pair, name).items():
                found[label] += scores
    return found


def _corpus(pair: Pair, name: str) -> Measurement:
    corpus = CORPORA[name]
    rows = corpus.test.rows(pair, None)
    labels = sorted({row["category"] for row in rows})
    asked = rows[: pair.items(quick=QUICK[name])]
    prompts = [PROMPT.format(text=text) for text in (NOTHING, *(row["text"] for row in asked))]
    told = {label: _losses(pair, label, corpus.shown, prompts, labels) for label in pair.judged}
    settings = {
        "file": corpus.test.file,
        "seed": pair.evaluation.seed,
        "prompt": PROMPT,
        "labels": len(labels),
        "answer": "largest rise of the name's log-likelihood from a message of " + NOTHING,
    }
    task, truth = f"{corpus.shown}, likelihood", [row["category"] for row in asked]
    answers = {label: [labels[best] for best in risen(one)] for label, one in told.items()}
    found = scored(pair, task, truth, answers, settings)
    for label, one in told.items():
        right = [labels[best] == was for best, was in zip(likeliest(one[1:]), truth, strict=True)]
        how = settings | {"answer": "lowest loss per token of the name"}
        found[label].append(proportion(right, "accuracy_per_token", task, **how))
    return found


def risen(told: Sequence[Losses]) -> list[int]:
    """Return the name that gains most from each but the first, which is about no message."""
    base = [nats for nats, _ in told[0]]
    rises = [[was - now for was, (now, _) in zip(base, one, strict=True)] for one in told[1:]]
    return [one.index(max(one)) for one in rises]


def likeliest(told: Sequence[Losses]) -> list[int]:
    """Return the name of the lowest loss per token of each."""
    each = [[nats / tokens for nats, tokens in one] for one in told]
    return [one.index(min(one)) for one in each]


def _losses(
    pair: Pair, label: str, shown: str, prompts: Sequence[str], labels: Sequence[str]
) -> list[Losses]:
    if pair.tokenizer is None:
        raise UnavailableError("intents are told by words; give a tokenizer")
    model, tokenizer = pair.models[label], pair.tokenizer
    names = [f" {words(one)}" for one in labels]

    def ask(batch: Sequence[Any]) -> list[Losses]:
        return [continuation_losses(model, tokenizer, prompt, ends) for prompt, ends in batch]

    items = [[prompt, names] for prompt in prompts]
    return answered(pair, label, f"{shown}, likelihood", items, ask)
