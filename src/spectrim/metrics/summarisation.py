"""Summaries of dialogues against people's: ROUGE-1, -2, -L, -Lsum and -S on SAMSum and DialogSum.

Gliwa et al., "SAMSum Corpus" (1911.12237); Chen et al., "DialogSum" (2105.06762).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._packages import package, versions
from spectrim.metrics.asking.certainty import mean, paired
from spectrim.metrics.asking.examples import DataSet, Row
from spectrim.metrics.asking.rouge_s import rouge_s
from spectrim.metrics.asking.writing import averaged, how, origin, replies

TASKS = ("samsum", "dialogsum")

DATA = {
    "samsum": DataSet(
        file="dialogue/samsum/samsum_train_first200.jsonl",
        hub="knkarthick/samsum::test",
        columns=("dialogue", "summary"),
    ),
    "dialogsum": DataSet(
        file="dialogue/dialogsum/dialogsum.dev.jsonl",
        hub="knkarthick/dialogsum::validation",
        columns=("dialogue", "summary"),
    ),
}
FILE_SPLITS = {
    "samsum": "train, its first 200 items: a model tuned on SAMSum has seen them",
    "dialogsum": "development",
}

QUICK_TOKENS, FULL_TOKENS = 40, 128
QUICK_DIALOGUE, FULL_DIALOGUE = 320, 704  # tokens; longer ones are left out, and counted

# They show what a summary is; without them small models write about dialogues in general.
EXAMPLES = """Dialogue:
Mia: Are you coming on Friday?
Leo: I can't, I work until nine. Saturday?
Mia: Saturday is fine!
Summary: Leo works on Friday, so he and Mia will meet on Saturday.

Dialogue:
#Person1#: Good morning. How much is the blue coat?
#Person2#: Eighty pounds, sir.
#Person1#: That's too much for me. Thank you.
Summary: #Person1# wants to buy a blue coat but finds it too expensive.

"""

PRIMARY = "rougeL"
NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
GAPS = {"rouge_s4": 4, "rouge_s": None}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def measure(pair: Pair) -> Measurement:
    """Return every ROUGE of every judged model, its change, and how long the summaries are.

    A suite goes on with the other data set where one cannot be had, and says so.

    Raises:
        UnavailableError: rouge-score is not installed, or a data set that was asked for cannot be
            had from anywhere.
        SpectrimError: a file is empty or damaged, or all of its dialogues are too long.
    """
    _library()  # a missing package is said before hours of writing
    found: Measurement = {label: [] for label in pair.judged}
    for task in filter(pair.asked, TASKS):
        try:
            measured = _measured(pair, task)
        except UnavailableError as error:
            if pair.evaluation.tasks:
                raise
            pair.left_out[task] = str(error)
            continue
        for label, scores in measured.items():
            found[label] += scores
    return found


def rouge(reference: str, summary: str) -> dict[str, float]:
    """Return the F1 of each ROUGE by name, 0 to 1, over stems; for -Lsum sentences are set apart.

    Raises:
        UnavailableError: rouge-score is not installed.
    """
    scorers, tokenizers = _library()
    stems = tokenizers.DefaultTokenizer(use_stemmer=True)
    wanted, found = (_SENTENCE_END.sub("\n", text) for text in (reference, summary))
    scores = scorers.RougeScorer(NAMES, tokenizer=stems).score(wanted, found)
    words, own = stems.tokenize(wanted), stems.tokenize(found)
    return {name: float(scores[name].fmeasure) for name in NAMES} | {
        name: rouge_s(words, own, gap) for name, gap in GAPS.items()
    }


def _library() -> tuple[Any, Any]:
    needs = "summarisation"
    return package("rouge_score.rouge_scorer", needs), package("rouge_score.tokenizers", needs)


def prompt(dialogue: str) -> str:
    """Return what a decoder-only model is asked: two examples and the dialogue."""
    return f"{EXAMPLES}Dialogue:\n{dialogue.strip()}\nSummary:"


def encoder_input(model: Any, dialogue: str) -> str:
    """Return what an encoder reads; T5 is told its task by a prefix."""
    kind = str(model.config.model_type)
    return ("summarize: " if kind.endswith("t5") else "") + dialogue.strip()


def _measured(pair: Pair, task: str) -> Measurement:
    quick = pair.evaluation.suite == "quick"
    new_tokens = QUICK_TOKENS if quick else FULL_TOKENS
    longest = QUICK_DIALOGUE if quick else FULL_DIALOGUE
    rows, left_out = _short_enough(pair, task, longest)
    told = {
        **origin(pair, DATA[task], FILE_SPLITS[task]),
        **how(pair, new_tokens),
        "dialogue_tokens": longest,
        "longer_left_out": left_out,
        **versions("rouge-score"),
        "stemmer": True,
        "sentences": "end at . ! or ? before a space",
    }
    found: Measurement = {}
    first: list[float] | None = None
    for label in pair.judged:
        found[label], own = _scores(pair, label, task, rows, told)
        if first is not None:
            of = next(score for score in found[label] if score.name == PRIMARY)
            found[label].append(paired(first, own, of, pair.evaluation.seed))
        first = first or own
    return found


def _short_enough(pair: Pair, task: str, longest: int) -> tuple[list[Row], int]:
    """Return the rows that are asked, and how many too long ones were passed over on the way."""
    tokenizer, limit = _tokenizer(pair), pair.items(quick=12)
    found: list[Row] = []
    left_out = 0
    for row in DATA[task].rows(pair, None):
        if limit is not None and len(found) == limit:
            break
        if _tokens(tokenizer, row["dialogue"].strip()) > longest:
            left_out += 1
        else:
            found.append(row)
    if not found:
        raise SpectrimError(
            f"every dialogue of {DATA[task].file} is over {longest} tokens; bring shorter ones"
        )
    return found, left_out


def _scores(
    pair: Pair, label: str, task: str, rows: Sequence[Row], told: dict[str, Any]
) -> tuple[list[Score], list[float]]:
    """Return a model's scores, and of each summary the ROUGE that models are compared by."""
    model, seed = pair.models[label], pair.evaluation.seed
    if model.config.is_encoder_decoder:
        prompts = [encoder_input(model, row["dialogue"]) for row in rows]
        form, examples, until = f"the encoder reads '{encoder_input(model, '…')}'", 0, None
    else:
        prompts = [prompt(row["dialogue"]) for row in rows]
        form, examples, until = "two examples, then 'Dialogue:\\n…\\nSummary:'", 2, "\n"
    told = {**told, "prompt": form, "examples": examples}
    texts = replies(pair, label, task, prompts, told["new_tokens"], until)
    references = [str(row["summary"]) for row in rows]
    each = [rouge(*both) for both in zip(references, texts, strict=True)]
    scores = [averaged([one[name] for one in each], name, task, seed, told) for name in each[0]]
    length = _length(pair, task, texts, references)
    return [*scores, length], [one[PRIMARY] for one in each]


def _length(pair: Pair, task: str, texts: Sequence[str], references: Sequence[str]) -> Score:
    """Return the mean length of the summaries, with that of the references beside it."""
    tokenizer = _tokenizer(pair)
    own, theirs = ([_tokens(tokenizer, one) for one in some] for some in (texts, references))
    told = {"references": sum(theirs) / len(theirs)}
    return mean(own, "summary_tokens", "tokens", "none", task, **told)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _tokenizer(pair: Pair) -> PreTrainedTokenizerBase:
    if pair.tokenizer is None:
        raise UnavailableError("summaries are written, and the model folder has no tokenizer")
    return pair.tokenizer
