"""What the command line says about each option and argument."""

from __future__ import annotations

from typing import Any

import typer

HELP = {
    "model": "Hub name, model folder, GGUF file, or 'demo'. May be left out where --recipe names "
    "one.",
    "output": "Folder to write: the smaller model, its recipe, plan and scores; with --for, a "
    "file.",
    "keep": "The part that stays: '80% of linear' (numbers of the linear maps inside the blocks) "
    "or '60%' (bytes of the whole model), or '25% of linear bytes' (bytes of those maps).",
    "size": "A size to reach, and nothing else to ask: '25%' (bytes of the whole model), '25% of "
    "linear bytes', or bytes: '600MB', '1.5GiB'. Bits, and low-rank factors of signs where "
    "little is left, are chosen by what they cost. 25% where no other budget and nothing of a "
    "recipe is given.",
    "fits": "As --size, by the memory that it is to run in, such as '4GB': weights, the keys and "
    "values of --context tokens, and what runs it: transformers, or llama.cpp with --for.",
    "room": "How many tokens of keys and values --fits makes room for.",
    "for": "Write one file for another engine instead of a folder. llama.cpp: a GGUF file in the "
    "best mix of its own types, which Ollama, LM Studio and Jan run too; it needs a size.",
    "searched": "Hub name, model folder, GGUF file, or 'demo'.",
    "front": "Folder to write: one smaller model for each size, and a page about all of them.",
    "front-sizes": "Sizes as for 'shrink --size', separated by commas: '60%,40%' or '600MB,400MB'.",
    "minutes": "How long all of it may take: each size learns for its share of what is left, and "
    "none is begun after that.",
    "calibration": "Text to read: a .txt or .jsonl file, a hub data set as name:config:split, "
    "'default' for the text that ships with Spectrim, 'hub' for a mix of hub data sets, or "
    "'sampled' for text from the model itself. The closer to later use, the better.",
    "tokens": "How much to read: sequences x tokens in each, such as 128x2048.",
    "method": "How maps are decomposed; several, separated by commas, give each map what "
    "is best for it. See 'spectrim list methods'.",
    "allocator": "How the budget is shared among the maps; see 'spectrim list allocators'.",
    "format": "What is stored of a matrix that is cut: pivoted or low_rank. The other formats of "
    "'spectrim list formats' come with their methods.",
    "refine": "Solve the factors again on what the smaller model really delivers; auto keeps that "
    "where it helps on text set aside.",
    "protect": "Leave sites dense whose name, role or 'block N' this regular expression finds, "
    "such as 'down' or 'block 0$'. May be repeated.",
    "trim-vocabulary": "First leave out the tokens that neither this text nor the calibration text "
    "uses: a .txt or .jsonl file, or a data set. All other text becomes more, shorter tokens.",
    "seed": "For everything drawn at random; same seed, same bits.",
    "learning": "With --size or --fits: how many minutes it may learn from the dense model at "
    "last. It stops where nothing more is gained.",
    "plan": "Replay a plan.json bit for bit instead of allocating; it says what to keep.",
    "recipe": "Start from a recipe, such as recipes/default.yaml; other options change it.",
    "cache": "Folder for converted models and statistics, shared by all runs.",
    "trust-remote-code": "Run code that comes with the model.",
    "evaluate": "Measure dense and smaller model beside each other at the end.",
    "predictions": "Also measure the loss at several budgets beside what the plan's currency "
    "predicts for them; the report plots both.",
    "profiled": "Hub name, model folder, GGUF file, or 'demo'.",
    "profile": "Folder to write: profile.csv, profile.html and profile.json.",
    "by": "What is cut at a time: one map, those of one role, or those of one block.",
    "sizes": "What cut maps keep, in parts of their numbers, such as '75%,50%,25%'.",
    "cumulative": "Also cut one block more at a time, from the first to the last and back.",
    "metric": "What is measured: the increase of the loss or of the perplexity, or the divergence "
    "from the dense model. Other metrics need whole models: 'spectrim shrink', then 'evaluate'.",
    "sequences": "How many sequences to measure on, of the part of the text set aside for choices.",
    "measured": "Folder or name of the model to measure.",
    "text": "Held-out text: a .txt or .jsonl file, a data set's name, or 'default'. May be "
    "repeated; the first one makes the headline.",
    "against": "The model to compare with.",
    "suite": "basic: the texts. quick: also tasks, a few items of each, minutes on two cores. "
    "full: all items of all tasks, hours.",
    "tasks": "Only these tasks, separated by commas: those of 'spectrim list tasks' and any that "
    "lm-evaluation-harness knows.",
    "limit": "Items of each task.",
    "data": "Folder with the tasks' data sets; what is not there comes from the hub.",
    "fresh": "Ask again instead of using kept answers.",
    "json": "Also write the scores to this file.",
    "inspected": "Folder of a smaller model, or any model: then its sites.",
    "as-json": "Print JSON instead of a table.",
    "folders": "Folders that 'spectrim shrink' wrote, the one that the page is about first.",
    "page": "File to write.",
    "exported": "Folder of a smaller model, or any model: hub name, GGUF file, or 'demo'.",
    "to": "The form: gguf, a file for llama.cpp; onnx, a folder for ONNX Runtime; dense, a plain "
    "transformers folder. See 'spectrim list exporters'.",
    "export": "File or folder to write, as the form is one or the other.",
    "served": "Model folder, GGUF file, ONNX folder, hub name, or 'demo'.",
    "host": "Address to listen on; 0.0.0.0 lets other machines in.",
    "port": "Port to listen on; 0 takes a free one.",
    "api-key": "What clients have to send; $SPECTRIM_API_KEY sets it too, unseen by others.",
    "context": "Tokens of prompt and answer together.",
    "slots": "Answers made at the same time.",
    "queue": "Requests that may wait for a slot; those beyond are refused with status 429.",
    "threads": "Threads to compute with.",
    "benched": "Model folders, GGUF files, ONNX folders, hub names, or 'demo'.",
    "bench-against": "The model that the others are compared with.",
    "prompt": "Tokens of the prompt.",
    "new": "Tokens decoded after it.",
    "rounds": "Rounds in which each model is timed once.",
    "bench-json": "Also write the numbers to this file.",
    "kind": "Only this kind.",
    "version": "Show the version and exit.",
}

_TITLES = {
    "How large, in which form": ("size", "fits", "room", "for", "front-sizes"),
    "The text that is read": ("calibration", "tokens", "seed"),
    "A recipe of your own, instead of a size": (
        "keep", "recipe", "plan", "method", "allocator", "format", "refine", "protect",
    ),
    "What is measured at the end": ("evaluate", "predictions"),
}  # fmt: skip
PANELS = {name: title for title, names in _TITLES.items() for name in names}
"""Under which title the help of a verb shows an option; the others stand under 'Options'."""

LM_EVAL = {
    "arc_easy": "ARC-Easy: science questions of school exams, with four answers as a rule.",
    "boolq": "BoolQ: yes or no to a question about a passage of Wikipedia.",
    "winogrande": "WinoGrande: which of two names or things fills the gap of a sentence.",
    "openbookqa": "OpenBookQA: questions that need a science fact and common sense, four answers.",
    "copa": "COPA: which of two sentences is the likelier cause or effect of a third.",
    "truthfulqa_mc1": "TruthfulQA, MC1: whether the true answer is likelier than all false ones.",
    "truthfulqa_mc2": "TruthfulQA, MC2: how much of the likelihood goes to the true answers.",
}


def option(name: str, *flags: str, default: str | bool = False) -> Any:
    """Return an option with its help; default is what is shown where the value may be None."""
    return typer.Option(
        *flags, help=HELP[name], show_default=default, rich_help_panel=PANELS.get(name)
    )


def argument(name: str, default: str | bool = False) -> Any:
    """Return an argument with its help; default as for ``option``."""
    return typer.Argument(help=HELP[name], show_default=default)
