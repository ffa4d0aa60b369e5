"""What the models write: greedy continuations of the same prompts, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from spectrim.metrics._reading import device, evaluating
from spectrim.metrics.asking.ways import greedy

PROMPTS = (
    "The old lighthouse at the end of the harbour",
    "Photosynthesis is the process by which",
    "To make a good vegetable soup, first",
    "def mean(values):\n",
)


def continuations(
    models: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 40,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, str]]:
    """Return, for each prompt, the prompt and what each model writes after it, by label.

    An encoder-decoder model reads the prompt and writes an answer.

    Args:
        models: by label.
        tokenizer: the models' own.
        prompts: how the texts begin.
        tokens: most new tokens of each continuation.
        progress: called with (prompts done, prompts in all).
    """
    found = []
    with evaluating(list(models.values())):
        for prompt in prompts:
            written = {
                label: _continue(model, tokenizer, prompt, tokens)
                for label, model in models.items()
            }
            found.append({"prompt": prompt, **written})
            if progress is not None:
                progress(len(found), len(prompts))
    return found


def _continue(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int) -> str:
    inputs = tokenizer(prompt, return_tensors="pt").to(device(model))
    config = model.generation_config
    pad = config.pad_token_id if config.pad_token_id is not None else _first(config)
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        generation_config=greedy(model, tokens, pad),
    )
    skipped = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return str(tokenizer.decode(output[0, skipped:], skip_special_tokens=True))


def _first(config: GenerationConfig) -> int:
    end = config.eos_token_id
    return int(end[0] if isinstance(end, list) else end or 0)
