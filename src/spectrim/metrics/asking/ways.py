"""The ways to ask a model: which continuation it finds likelier, what it writes, what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerBase

from spectrim.metrics._reading import device, evaluating

MOST = 1024  # tokens of a prompt; longer ones lose their beginning


def continuation_losses(
    model: Any, tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> list[tuple[float, int]]:
    """Return (loss in nats, tokens) of every continuation after the same context.

    The context is read once; all continuations then run as one padded batch upon its cache. Context
    and continuation are encoded together, as lm-evaluation-harness does, so that tokens do not
    split where nobody would split them. An encoder-decoder model reads the context with its
    encoder. An empty context is the token that begins a text.
    """
    with evaluating([model]):
        if model.config.is_encoder_decoder:
            return _after_encoder(model, tokenizer, context, continuations)
        prefix, ends = _encoded(tokenizer, context, continuations)
        return _after_cache(model, prefix, ends)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the tokens that all share, and those of each continuation."""
    bare = context.rstrip()
    moved = context[len(bare) :]  # spaces belong to the word that follows them
    wholes = [_ids(tokenizer, bare + moved + one) for one in continuations]
    prefix = _ids(tokenizer, bare) or [_begin(tokenizer)]
    if not bare:
        return prefix, [
            whole[1:] if whole[:1] == prefix and len(whole) > 1 else whole for whole in wholes
        ]
    return prefix, [whole[len(prefix) :] or whole[-1:] for whole in wholes]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, verbose=False).input_ids
    return found


def _begin(tokenizer: PreTrainedTokenizerBase) -> int:
    for one in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if one is not None:
            return int(one)
    return 0


def _after_cache(
    model: Any, prefix: list[int], ends: Sequence[list[int]]
) -> list[tuple[float, int]]:
    where = device(model)
    out = model(input_ids=torch.tensor([prefix[-MOST:]], device=where), use_cache=True)
    first = out.logits[:, -1].float().log_softmax(-1)  # [1, vocab]
    longest = max(map(len, ends))
    found = [-first[0, end[0]].double() for end in ends]
    if longest > 1:
        cache = out.past_key_values
        cache.batch_repeat_interleave(len(ends))
        inputs = torch.zeros(len(ends), longest - 1, dtype=torch.long, device=where)
        for row, end in enumerate(ends):
            inputs[row, : len(end) - 1] = torch.tensor(end[:-1], dtype=torch.long)
        logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits
        for row, end in enumerate(ends):
            if len(end) > 1:
                targets = torch.tensor(end[1:], device=where)
                found[row] += _nats(logits[row, : len(end) - 1], targets)
    return [(float(nats), len(end)) for nats, end in zip(found, ends, strict=True)]


def _after_encoder(
    model: Any, tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> list[tuple[float, int]]:
    where = device(model)
    told = model.get_encoder()(
        input_ids=tokenizer(context, return_tensors="pt").input_ids.to(where)
    )
    begin = model.config.decoder_start_token_id or 0
    found = []
    for one in continuations:
        targets = torch.tensor(_ids(tokenizer, one), device=where)
        inputs = torch.cat((targets.new_tensor([begin]), targets[:-1]))[None]
        logits = model(encoder_outputs=told, decoder_input_ids=inputs, use_cache=False).logits
        found.append((float(_nats(logits[0], targets)), len(targets)))
    return found


def _nats(logits: Float[Tensor, "tokens vocab"], targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="sum").double()


def written(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: int,
    until: str | None = "\n",
) -> list[str]:
    """Return the greedy continuation of every prompt, cut before ``until``.

    Prompts run as one batch, padded on the left. An encoder-decoder model reads the prompt with its
    encoder. A prompt over ``MOST`` tokens loses its beginning.
    """
    encoder_decoder = bool(model.config.is_encoder_decoder)
    ids = [_ids(tokenizer, prompt)[-MOST:] or [_begin(tokenizer)] for prompt in prompts]
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else _begin(tokenizer)
    inputs = torch.full((len(ids), longest), pad)
    mask = torch.zeros_like(inputs)
    for row, one in enumerate(ids):
        at = slice(0, len(one)) if encoder_decoder else slice(longest - len(one), longest)
        inputs[row, at], mask[row, at] = torch.tensor(one), 1
    with evaluating([model]):
        out = model.generate(
            input_ids=inputs.to(device(model)),
            attention_mask=mask.to(device(model)),
            generation_config=greedy(model, new_tokens, pad),
        )
    new = out[:, 1:] if encoder_decoder else out[:, longest:]
    texts = [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return [_cut(text, until) for text in texts]


def greedy(model: Any, new_tokens: int, pad: int) -> GenerationConfig:
    """Return settings for the likeliest token at every step."""
    config = model.generation_config
    # A model's own generation settings may sample; only its special tokens are taken over.
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=pad,
        decoder_start_token_id=config.decoder_start_token_id,
    )


def _cut(text: str, until: str | None) -> str:
    text = text.strip()
    return text if until is None else text.partition(until)[0].strip()


def embedded(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int = 128
) -> Float[Tensor, "texts hidden"]:
    """Return the mean of the last hidden states over the tokens of each text, float32.

    Texts run as one batch, padded on the right; ``most`` tokens of each are read. Of an
    encoder-decoder model it is the encoder's output.
    """
    ids = [_ids(tokenizer, text)[:most] or [_begin(tokenizer)] for text in texts]
    longest = max(map(len, ids))
    inputs, mask = torch.zeros(len(ids), longest, dtype=torch.long), torch.zeros(len(ids), longest)
    for row, one in enumerate(ids):
        inputs[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), 1
    where = device(model)
    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    with evaluating([model]):
        states = body(
            input_ids=inputs.to(where), attention_mask=mask.long().to(where)
        ).last_hidden_state.float()
    weights = mask.to(where)[:, :, None]
    means: Tensor = (states * weights).sum(1) / weights.sum(1)
    return means.cpu()
