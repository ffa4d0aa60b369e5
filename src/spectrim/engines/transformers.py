"""transformers and torch: runs model folders, ours and ordinary ones, as their users load them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from numpy import ndarray
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spectrim.engines import Running
from spectrim.errors import SpectrimError
from spectrim.model.weights import quiet

READS = ("*.safetensors",)


def transformers(path: Path, threads: int, context: int) -> Running:
    """Return a model folder as transformers runs it.

    Args:
        path: a folder with config.json, safetensors and a tokenizer.
        threads: of torch, for the whole process.
        context: tokens that a sequence may have, prompt and answer together.

    Raises:
        SpectrimError: the model has an encoder, or its context is shorter than asked.
    """
    model, tokenizer = loaded(path, threads)
    refuse_long_context(model, context)
    return OneSequence(model, tokenizer, context)


def loaded(path: Path, threads: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model in a folder, in the dtype that it is stored in, and its tokenizer."""
    torch.set_num_threads(threads)
    if AutoConfig.from_pretrained(path).is_encoder_decoder:
        raise SpectrimError(f"{path} has an encoder; expected a model that only decodes")
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return model, tokenizer


def refuse_long_context(model: PreTrainedModel, context: int) -> None:
    """Raise SpectrimError where a context is longer than the model's positions."""
    longest = longest_context(model)
    if longest is not None and context > longest:
        raise SpectrimError(f"the model has {longest} positions; expected no longer context")


def longest_context(model: PreTrainedModel) -> int | None:
    """Return how many positions a model has, None where it does not say."""
    found = getattr(model.config, "max_position_embeddings", None)
    return int(found) if found else None


class OneSequence:
    """A model of transformers with one sequence in its cache, which grows token by token."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int
    ) -> None:
        self.context = context
        self._model, self._tokenizer = model, tokenizer
        self._cache = DynamicCache()
        # Only the last token's logits are needed; models that can leave out the others do.
        has = inspect.signature(model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in has else {}

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without any that the model puts before it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def clear(self) -> None:
        """Forget the sequence."""
        self._cache = DynamicCache()

    @torch.inference_mode()
    def feed(self, tokens: Sequence[int]) -> Float[ndarray, " vocabulary"]:
        """Go on with these tokens and return the logits behind the last one, fp32."""
        output = self._model(
            input_ids=torch.tensor([list(tokens)]),
            past_key_values=self._cache,
            use_cache=True,
            **self._last,
        )
        logits: ndarray = output.logits[0, -1].float().numpy()
        return logits

    def close(self) -> None:
        """Give the memory back."""
        del self._model, self._cache
