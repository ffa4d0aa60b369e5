from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Evaluation, Pair, Score, harness
from spectrim.metrics.asking.harness_files import LOCAL
from spectrim.metrics.asking.harness_model import batch_size
from tiny_folders import tiny_folder
from tiny_models import build

ARC = "qa/llmfoundry_icl/arc_easy.jsonl"
TRUTHFULQA = "qa/truthfulqa/TruthfulQA.csv"
BOOLQ = "qa/boolq/dev.jsonl"
COPA = "qa/copa/copa-dev.xml"
HEADER = "Question,Best Answer,Correct Answers,Incorrect Answers\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder(tmp_path_factory.mktemp("tiny")))


def uniform(family: str = "llama") -> Any:
    model = build(family, tie=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


def place(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return folder


def arc(folder: Path, golds: list[int], choices: tuple[str, ...] = ("w3", "w44", "w100")) -> Path:
    rows = [
        {"query": f"Question: w{20 + number} w5", "choices": list(choices), "gold": gold}
        for number, gold in enumerate(golds)
    ]
    return place(folder, ARC, "".join(json.dumps(row) + "\n" for row in rows))


def boolq(*questions: Any) -> str:
    same = {"title": "w3", "passage": "w4", "answer": True}
    return "".join(json.dumps({"question": one, **same}) + "\n" for one in questions)


def asked(models: dict[str, Any], tokenizer: Any, *tasks: str, **settings: Any) -> Pair:
    chosen = Evaluation(suite="full", tasks=tasks, **settings)
    return Pair(models, {}, chosen, None, tokenizer)


def named(scores: list[Score], name: str, task: str) -> Score:
    (found,) = [one for one in scores if one.name == name and one.settings["task"] == task]
    return found


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_ties_go_to_the_first_answer_and_normalised_ones_to_the_longest(
    tmp_path: Path, tokenizer: Any, family: str
) -> None:
    folder = arc(tmp_path, [0, 0, 0, 1, 2])
    pair = asked({"dense": uniform(family)}, tokenizer, "arc_easy", data=folder)
    scores = harness.measure(pair)["dense"]
    accuracy = named(scores, "acc", "arc_easy")
    assert (accuracy.value, accuracy.n) == (3 / 5, 5)
    # The loss of each answer is log 112; divided by 2, 3 and 4 letters the last has the least.
    assert named(scores, "acc_norm", "arc_easy").value == 1 / 5
    assert accuracy.interval is not None and accuracy.interval[0] < 0.6 < accuracy.interval[1]
    assert accuracy.settings["data"] == f"local file {ARC}"
    assert accuracy.settings["num_fewshot"] == 0


def test_fewer_tokens_win_where_all_tokens_are_alike(tmp_path: Path, tokenizer: Any) -> None:
    folder = arc(tmp_path, [1, 1, 0], ("w3 w4", "w44"))
    scores = harness.measure(asked({"one": uniform()}, tokenizer, "arc_easy", data=folder))["one"]
    assert named(scores, "acc", "arc_easy").value == 2 / 3


def test_truthfulqa_counts_the_probability_of_the_true_answers(
    tmp_path: Path, tokenizer: Any
) -> None:
    # With the period that the benchmark adds, two answers have 2 tokens and one has 3.
    rows = "w3 w4,w5,w5; w6 w7,w8\nw3,w9,w9,w10; w11.; w12\n"
    folder = place(tmp_path, TRUTHFULQA, HEADER + rows)
    pair = asked({"one": uniform()}, tokenizer, "truthfulqa_mc1", "truthfulqa_mc2", data=folder)
    scores = harness.measure(pair)["one"]
    first = (1 + 1 / 112) / (2 + 1 / 112)
    found = named(scores, "acc", "truthfulqa_mc2")
    assert found.value == pytest.approx((first + 1 / 4) / 2, rel=1e-4)
    assert (found.unit, found.n) == ("share", 2)
    assert named(scores, "acc", "truthfulqa_mc1").value == 1  # the best answer comes first
    assert not [one for one in scores if one.name == "mcnemar_p"]


def test_flips_add_up_to_the_difference(tmp_path: Path, tokenizer: Any) -> None:
    folder = arc(tmp_path, [0, 1, 2, 0, 1, 2, 0, 1])
    models = {"dense": uniform(), "small": build("llama", seed=2)}
    found = harness.measure(asked(models, tokenizer, "arc_easy", data=folder, limit=6))
    dense = named(found["dense"], "acc", "arc_easy")
    small = named(found["small"], "acc", "arc_easy")
    lost = named(found["small"], "lost", "arc_easy").value
    gained = named(found["small"], "gained", "arc_easy").value
    assert dense.n == small.n == 6
    assert small.value - dense.value == pytest.approx(gained - lost)
    assert lost + gained > 0
    assert "lost" not in {one.name for one in found["dense"]}


def test_model_and_tokenizer_are_left_as_they_were(tmp_path: Path, tokenizer: Any) -> None:
    model = build("llama").to(torch.bfloat16).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    harness.measure(asked({"one": model}, tokenizer, "arc_easy", data=arc(tmp_path, [0])))
    assert model.training and "tie_weights" not in vars(model)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert tokenizer.pad_token is None


class StopError(Exception):
    pass


def test_interrupted_work_goes_on_and_is_then_kept(tmp_path: Path, tokenizer: Any) -> None:
    folder, cache = arc(tmp_path / "data", [0, 1, 2, 0, 1, 2]), tmp_path / "cache"
    settings: dict[str, Any] = {"data": folder, "cache": cache, "identities": {"one": "x"}}
    told: list[int] = []

    def stop(done: int, total: int, what: str) -> None:
        told.append(done)
        if done == 7:
            raise StopError

    chosen = Evaluation(suite="full", tasks=("arc_easy",), **settings)
    model = build("llama")
    with pytest.raises(StopError):
        harness.measure(Pair({"one": model}, {}, chosen, stop, tokenizer))
    assert 7 in told
    told.clear()
    again = harness.measure(
        Pair({"one": model}, {}, chosen, lambda d, t, w: told.append(d), tokenizer)
    )
    assert 7 not in told and 18 in told  # the first seven of 18 answers were there
    assert not list((cache / "answers").glob("*.db"))
    plain = harness.measure(asked({"one": model}, tokenizer, "arc_easy", data=folder))
    assert [one.value for one in again["one"]] == [one.value for one in plain["one"]]
    broken = harness.measure(Pair({"one": uniform()}, {}, chosen, None, tokenizer))
    assert broken == again  # the kept answers, as the identity says that it is the same model


def test_batches_follow_the_memory() -> None:
    logits = 2 * 1000 * 10 * 4  # and as many bytes for their log-softmax
    assert batch_size(1000, 10, 4, 4 * logits) == 1
    assert batch_size(1000, 10, 4, 4 * logits * 9) == 8
    assert batch_size(1000, 10, 2, 4 * logits * 9) == 16
    assert batch_size(1000, 10, 4, 0) == 1
    assert batch_size(10, 10, 4, 10**12) == 32


def test_files_become_the_documents_of_the_hub(data: Path) -> None:
    held = {name: LOCAL[name].documents(data) for name in harness.TASKS}
    counts = {name: len(list(splits.values())[-1]) for name, splits in held.items()}
    assert counts == {
        "arc_easy": 2376,
        "boolq": 3270,
        "winogrande": 1267,
        "openbookqa": 500,
        "copa": 100,
        "truthfulqa_mc1": 817,
        "truthfulqa_mc2": 817,
    }
    assert held["copa"]["validation"][0] == {
        "premise": "The man turned on the faucet.",
        "choice1": "The toilet filled with water.",
        "choice2": "Water flowed from the spout.",
        "question": "effect",
        "label": 1,
    }
    assert held["winogrande"]["validation"][0] == {
        "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
        "option1": "Sarah",
        "option2": "Maria",
        "answer": "2",
    }
    assert held["boolq"]["validation"][0]["passage"].startswith("Ethanol fuel -- All biomass goes")
    assert held["arc_easy"]["test"][1]["answerKey"] == "B"
    assert held["truthfulqa_mc1"]["validation"][0]["mc1_targets"]["choices"][:2] == [
        "The watermelon seeds pass through your digestive system.",
        "You grow watermelons in your stomach.",
    ]


@pytest.mark.parametrize(
    ("task", "file", "content", "message"),
    [
        ("arc_easy", ARC, "", "is empty"),
        ("arc_easy", ARC, '{"query": "w3", "gold": 0}\n', "has no 'choices'"),
        ("arc_easy", ARC, '{"query": "w3", "choices": ["w4"], "gold": 1}\n', "row 1 .* get it"),
        ("arc_easy", ARC, "{", "cannot be read as data"),
        ("copa", COPA, "<items><item>", "cannot be read as data"),
        ("copa", COPA, '<items><item id="1"><p>w3</p></item></items>', "has no 'a1'"),
        ("truthfulqa_mc1", TRUTHFULQA, HEADER + "w3,w4,w4,;\n", "row 1 .* missing"),
        ("boolq", BOOLQ, boolq("w3", 5), "hold values of several sorts in a column .* get it"),
    ],
)
def test_damaged_files_are_named_in_one_line(
    tmp_path: Path, tokenizer: Any, task: str, file: str, content: str, message: str
) -> None:
    pair = asked({"one": uniform()}, tokenizer, task, data=place(tmp_path, file, content))
    with pytest.raises(SpectrimError, match=message) as error:
        harness.measure(pair)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("construct_requests", KeyError("passage")),
        ("process_results", ZeroDivisionError("by zero")),
    ],
)
def test_a_task_that_fails_after_loading_is_said_in_one_line(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    from lm_eval.api.task import ConfigurableTask

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ConfigurableTask, part, fail)
    pair = asked({"one": uniform()}, tokenizer, "arc_easy", data=arc(tmp_path, [0, 1]))
    told = f"lm-eval's task 'arc_easy' failed .{type(error).__name__}: .*; leave it out"
    with pytest.raises(SpectrimError, match=told) as raised:
        harness.measure(pair)
    assert "\n" not in str(raised.value)


def test_a_fault_of_ours_is_no_fault_of_the_task(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_number", None)  # called, a TypeError of our own code
    pair = asked({"one": uniform()}, tokenizer, "arc_easy", data=arc(tmp_path, [0, 1]))
    with pytest.raises(TypeError, match="not callable"):
        harness.measure(pair)


def test_a_mean_without_flips_has_its_paired_difference(tmp_path: Path, tokenizer: Any) -> None:
    rows = "w3 w4,w5,w5; w6 w7,w8\nw3,w9,w9,w10; w11.; w12\nw3 w8,w5,w5,w8; w9\n"
    folder = place(tmp_path, TRUTHFULQA, HEADER + rows)
    models = {"dense": uniform(), "small": build("llama", seed=2, tie=False)}
    found = harness.measure(asked(models, tokenizer, "truthfulqa_mc2", data=folder))
    change = named(found["small"], "acc_difference_to_dense", "truthfulqa_mc2")
    dense, small = (named(found[label], "acc", "truthfulqa_mc2") for label in models)
    assert change.value == pytest.approx(small.value - dense.value) and change.value != 0
    assert (change.n, change.unit, change.better) == (3, "share", "higher")
    assert change.interval is not None
    assert change.interval[0] <= change.value <= change.interval[1]
    assert change.settings["lm-eval"] == version("lm_eval")
    assert len(found["small"]) == len(found["dense"]) + 1


def test_a_task_without_file_and_hub_is_said_to_be_unavailable(tokenizer: Any) -> None:
    pair = asked({"one": uniform()}, tokenizer, "arc_challenge")
    with pytest.raises(UnavailableError, match="'arc_challenge' cannot be had") as error:
        harness.measure(pair)
    assert "\n" not in str(error.value)


def test_a_suite_goes_on_with_the_files_there_are(tmp_path: Path, tokenizer: Any) -> None:
    chosen = Evaluation(suite="quick", data=arc(tmp_path, [0, 1] * 30))
    pair = Pair({"one": uniform()}, {}, chosen, None, tokenizer)
    scores = harness.measure(pair)["one"]
    assert {one.settings["task"] for one in scores} == {"arc_easy"}
    assert named(scores, "acc", "arc_easy").n == 40
    assert set(pair.left_out) == set(harness.TASKS) - {"arc_easy"}


def test_a_model_without_tokenizer_is_refused() -> None:
    with pytest.raises(UnavailableError, match="tokenizer"):
        harness.measure(asked({"one": uniform()}, None, "copa"))
