"""TriviaQA closed book: questions answered from memory, matched in three tiers.

Joshi et al., "TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading
Comprehension" (1705.03551).
"""

from __future__ import annotations

from spectrim.metrics import Measurement, Pair
from spectrim.metrics.asking.examples import DataSet
from spectrim.metrics.asking.trivia import of_hub, scored
from spectrim.metrics.asking.writing import origin

TASKS = ("trivia_qa",)

DATA = DataSet(
    file="qa/llmfoundry_icl/triviaqa_sm_sub.jsonl",
    hub="mandarjoshi/trivia_qa:rc.nocontext:validation",
    columns=("context", "answer", "aliases"),
    adapt=of_hub,
    lists=("aliases",),
)

# They show the form of an answer. They are not of the data, so that every seed has the same ones.
EXAMPLES = """Question: Which planet is known as the Red Planet?
Answer: Mars

Question: Who wrote the novel "Emma"?
Answer: Jane Austen

Question: What do bees make from nectar?
Answer: Honey

"""


def measure(pair: Pair) -> Measurement:
    """Return the share of answers that match exactly, as a substring, and in 80 % of the words.

    Raises:
        UnavailableError: neither the file nor the hub's data set can be had.
        SpectrimError: the file is empty or damaged.
    """
    rows = DATA.rows(pair, pair.items(quick=40))
    told = {
        **origin(pair, DATA, "a subset of 3 000 questions, drawn by llm-foundry"),
        "prompt": "three examples, then 'Question: …\\nAnswer:'",
        "examples": 3,
    }
    return scored(pair, TASKS[0], rows, lambda row: EXAMPLES + row["context"], told)
