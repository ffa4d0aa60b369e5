"""Which maps of a model make its logits move when what they read is rounded to float16.

    python benchmarks/rounded_inputs.py small/ -o run/

Beside matrices in float16 llama.cpp rounds activations to float16. Here torch does so, in float32
otherwise, on what the model writes after the ten prompts of benchmarks/exports.py: of all maps at
once, of the maps of one input at a time (q, k and v read the same, gate and up too) after the two
prompts where that moves most, of all but the worst two; and it rounds the weights alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from exports import PROMPTS, Answer, unpacked, written
from measuring import arguments, publish, read_arguments
from torch import nn
from transformers import PreTrainedModel

from spectrim.model import sources
from spectrim.model.sources import Source

SHOWN, MOVES = 5, 0.02  # so many of the worst inputs; what logits have to move by to be counted
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def main() -> None:
    """Measure one model folder."""
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path)
    asked = read_arguments(parser)
    source = Source(str(asked.model), asked.model, "")
    model = unpacked(sources.model(source, dtype=torch.float32))
    tokenizer = sources.tokenizer(source)
    answers = written(model, [tokenizer(one)["input_ids"] for one in PROMPTS])
    groups = by_input(model)
    every = [one for group in groups.values() for one in group]
    with rounded(every):
        all_at_once = [moved(model, [one]) for one in answers]
    worst = [answers[at] for at in np.argsort(all_at_once)[-2:]]
    rows = [{"rounded": "the inputs of all maps", "logits": max(all_at_once)}]
    each = {}
    for name, group in groups.items():
        with rounded(group):
            each[name] = moved(model, worst)
    names = sorted(each, key=lambda name: -each[name])
    rows += [{"rounded": name, "logits": each[name]} for name in names[:SHOWN]]
    with rounded([one for name in names[2:] for one in groups[name]]):
        rows.append({"rounded": "all but the worst two", "logits": moved(model, worst)})
    for one in every:
        one.weight.data = one.weight.data.half().float()
    rows.append({"rounded": "all weights", "logits": moved(model, answers)})
    many = sum(far > MOVES for far in each.values())
    text = f"{len(PROMPTS)} prompts; {many} of {len(each)} inputs alone move logits by {MOVES}"
    publish(
        asked.output, "rounded_inputs", [{"table": "rounded_inputs", **row} for row in rows],
        text=text,
    )  # fmt: skip


def by_input(model: PreTrainedModel) -> dict[str, list[nn.Linear]]:
    """Return the linear maps of a model, together those that read the same input."""
    found: dict[str, list[nn.Linear]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            place, _, name = path.rpartition(".")
            found.setdefault(f"{place}.{SAME_INPUT.get(name, name)}", []).append(module)
    return found


@contextmanager
def rounded(maps: Iterable[nn.Linear]) -> Iterator[None]:
    """Round what these maps read to float16."""
    hooks = [
        one.register_forward_pre_hook(lambda module, args: (args[0].half().float(),))
        for one in maps
    ]
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def moved(model: PreTrainedModel, answers: list[Answer]) -> float:
    """Return how far the logits of answers are at most from where they were."""
    far = 0.0
    for one in answers:
        ids = torch.tensor([one.prompt + one.tokens])
        logits = model(ids, use_cache=False).logits[0, len(one.prompt) - 1 : -1].numpy()
        far = max(far, float(np.abs(logits - one.logits).max()))
    return far


if __name__ == "__main__":
    main()
