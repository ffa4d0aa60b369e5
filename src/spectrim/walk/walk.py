"""The walk through the blocks: a model run block by block, one block's weights in memory at a time.

The model itself is a skeleton: its blocks have no weights. What it passes to each block (rotary
tables, masks, encoder outputs) is learnt by running the model's own forward with a recorder in the
place of every block, and what it does behind the last block (final norm, head, soft-capping) by
running it with the true hidden states injected there. So no family needs code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from spectrim.model.architectures import Architecture, Place, Stack
from spectrim.model.experts import load_block
from spectrim.model.sources import Weights
from spectrim.text.tokens import Tokens
from spectrim.walk.draws import drawn
from spectrim.walk.recorder import Call, Recorder, filled_in, shared

HEAD_CHUNK = 64  # tokens: logits of a large vocabulary are the memory peak of the walk


class BlockWalk:
    """Runs the blocks of a model on all sequences of a text, one block at a time.

    Args:
        model: skeleton with its blocks on the meta device and everything else loaded.
        weights: where the tensors of the blocks are read from.
        tokens: the sequences, [sequences, length]; an encoder-decoder reads the first half of each
            and predicts the second.
        batch: sequences run at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        weights: Weights,
        tokens: Tokens,
        batch: int = 4,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.architecture = architecture
        self.weights = weights
        self.tokens = tokens
        self.starts = range(0, len(tokens.ids), batch)
        self.batch = batch
        self.dtype = next(p.dtype for p in model.parameters() if not p.is_meta)
        self._calls: dict[tuple[str, int], list[Call]] = {}

    # ------------------------------------------------------------------ inputs

    @property
    def is_encoder_decoder(self) -> bool:
        """Return whether the text is split between an encoder and a decoder."""
        return len(self.architecture.stacks) == 2

    def ids(self, start: int) -> Int[Tensor, "batch length"]:
        """Return the token ids of the batch that begins at sequence ``start``."""
        return self.tokens.ids[start : start + self.batch]

    def mask(self, start: int) -> Tensor:
        """Return which tokens are text and not padding, [batch, length]."""
        return self.tokens.mask[start : start + self.batch]

    def side(self, stack: Stack) -> slice:
        """Return the part of each sequence that a stack reads."""
        if not self.is_encoder_decoder:
            return slice(None)
        half = self.tokens.ids.shape[1] // 2
        return slice(0, half) if stack is self.architecture.stacks[0] else slice(half, None)

    def stack_mask(self, stack: Stack, start: int) -> Tensor:
        """Return which of the tokens that a stack reads are text, [batch, part of length]."""
        return self.mask(start)[:, self.side(stack)]

    def _inputs(self, stack: Stack, start: int, encoder: Tensor | None) -> dict[str, Any]:
        """Return the keywords of the model's forward for one stack of one batch."""
        ids, mask = self.ids(start), self.mask(start)
        # without padding no mask is passed, so that attention may take its fast causal path
        attention = None if bool(mask.all()) else mask.long()
        if not self.is_encoder_decoder:
            return {"input_ids": ids, "attention_mask": attention, "use_cache": False}
        first = self.side(self.architecture.stacks[0])
        part = None if attention is None else attention[:, first]
        if encoder is None:
            return {"input_ids": ids[:, first], "attention_mask": part}
        targets = ids[:, self.side(stack)]
        begin = self.model.config.decoder_start_token_id
        begins = torch.full_like(targets[:, :1], begin if begin is not None else 0)
        return {
            "attention_mask": part,
            "encoder_outputs": BaseModelOutput(last_hidden_state=encoder),
            "decoder_input_ids": torch.cat((begins, targets[:, :-1]), dim=1),
            "use_cache": False,
        }

    def keywords(self, start: int) -> dict[str, Any]:
        """Return the keywords of the whole model's forward for one batch."""
        given = self._inputs(self.architecture.stacks[0], start, None)
        if self.is_encoder_decoder:
            read = self._inputs(self.architecture.stacks[1], start, torch.empty(0))
            given |= {name: value for name, value in read.items() if name != "encoder_outputs"}
        return given

    def targets(self, start: int) -> Int[Tensor, "batch predicted"]:
        """Return what each position of the last stack predicts; -100 where nothing counts."""
        ids, mask = self.ids(start), self.mask(start)
        labels = torch.where(mask, ids, -100)
        if self.is_encoder_decoder:
            return labels[:, self.side(self.architecture.stacks[1])]
        following = torch.where(mask[:, :-1], labels[:, 1:], -100)  # padding predicts nothing
        return torch.cat((following, torch.full_like(labels[:, :1], -100)), dim=1)

    def predicted(self) -> int:
        """Return how many tokens the loss is averaged over."""
        return sum(int((self.targets(start) != -100).sum()) for start in self.starts)

    def hidden_size(self, stack: Stack) -> int:
        """Return the width of the hidden states of a stack."""
        return int(self.model.config.get_text_config().hidden_size)

    # ------------------------------------------------------------------ running

    def blocks(self, stack: Stack) -> nn.ModuleList:
        """Return the (empty) blocks of a stack."""
        found = self.model.get_submodule(stack.path)
        assert isinstance(found, nn.ModuleList)
        return found

    def places(self, stack: Stack) -> list[Place]:
        """Return the blocks of a stack in the order in which the model runs them."""
        return [Place(stack, index) for index in range(len(self.blocks(stack)))]

    def block(self, place: Place) -> nn.Module:
        """Return a block with its dense weights, frozen, experts unpacked."""
        empty = self.blocks(place.stack)[place.index]
        tensors = self.weights.read_prefix(place.prefix)
        return load_block(empty, tensors, self.dtype, self.architecture.experts)

    def enter(self, stack: Stack, start: int, encoder: Tensor | None = None) -> Tensor:
        """Return the hidden states [batch, length, hidden] that enter a stack's first block."""
        entered: list[Tensor] = []
        calls: list[Call] = []
        extras: list[Any] = []
        first = self.block(Place(stack, 0)) if self.architecture.shared_bias else None

        def answer(hidden: Tensor, call: Call) -> Any:
            if not calls:
                entered.append(hidden)
                if first is not None:
                    extras.extend(first(hidden, *call.args, **call.kwargs)[1:])
            calls.append(call)
            return (hidden, *(extras or [None])) if self.architecture.returns_tuple else hidden

        with torch.no_grad(), self._recording(stack, answer):
            self._forward(stack, start, encoder)
        self._remember(stack, start, calls, encoder)
        return entered[0]

    def _forward(self, stack: Stack, start: int, encoder: Tensor | None) -> Any:
        inputs = self._inputs(stack, start, encoder)
        if self.is_encoder_decoder and encoder is None:
            return self.model.get_encoder()(**inputs)
        return self.model.base_model(**inputs)

    @contextmanager
    def _recording(self, stack: Stack, answer: Callable[[Tensor, Call], Any]) -> Iterator[None]:
        blocks = self.blocks(stack)
        originals = list(blocks)
        try:
            for index, block in enumerate(originals):
                blocks[index] = Recorder(block, answer)
            yield
        finally:
            for index, block in enumerate(originals):
                blocks[index] = block

    def _remember(
        self, stack: Stack, start: int, calls: list[Call], encoder: Tensor | None
    ) -> None:
        """Keep the calls of a batch, sharing what the first batch was called with alike."""
        first = self._calls.get((stack.path, 0))
        kept = []
        for index, call in enumerate(calls):
            like = first[index] if first else None
            args = shared(call.args, like.args if like else None, encoder)
            kwargs = shared(call.kwargs, like.kwargs if like else None, encoder)
            kept.append(Call(args, kwargs))
        self._calls[stack.path, start] = kept

    def run(
        self,
        block: nn.Module,
        place: Place,
        start: int,
        hidden: Float[Tensor, "batch length hidden"],
        encoder: Tensor | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """Return what a block makes of the hidden states of one batch.

        Raises:
            KeyError: ``enter`` was not called for this stack and batch.
        """
        call = self._calls[place.stack.path, start][place.index]
        args = filled_in(call.args, encoder)
        kwargs = filled_in(call.kwargs, encoder)
        out: Any = block(hidden, *args, **kwargs)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states

    # ------------------------------------------------------------------ behind the last block

    def encoded(self, hidden: Tensor, start: int) -> Tensor:
        """Return the encoder's output for the hidden states behind its last block."""
        stack = self.architecture.stacks[0]
        with self._injecting(stack, hidden):
            return self._forward(stack, start, None).last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """Return the logits of hidden states behind the last block, by the model's own head."""
        stack = self.architecture.stacks[-1]
        # each token is a sequence of its own, so that tables of positions are long enough, and none
        # is padding, which some models warn of
        other = int(self.model.config.pad_token_id == 0)
        ids = torch.full((len(hidden), 1), other)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if self.is_encoder_decoder:
            nothing = BaseModelOutput(last_hidden_state=hidden[:, None].detach())
            inputs = {"decoder_input_ids": ids, "encoder_outputs": nothing, "use_cache": False}
        with self._injecting(stack, hidden[:, None]):
            return self.model(**inputs).logits[:, 0]  # type: ignore[no-any-return]

    @contextmanager
    def _injecting(self, stack: Stack, hidden: Tensor) -> Iterator[None]:
        def answer(_: Tensor, __: Call) -> Any:
            return (hidden, None, None) if self.architecture.returns_tuple else hidden

        with self._recording(stack, answer):
            yield

    def losses(
        self, hidden: Float[Tensor, "batch length hidden"], start: int
    ) -> Float[Tensor, " counted"]:
        """Return the cross-entropy in nats of every predicted token of a batch."""
        chunks = self._logit_chunks(hidden, start)
        return torch.cat([_cross_entropy(logits, wanted) for _, _, logits, wanted in chunks])

    def loss_gradient(
        self, hidden: Float[Tensor, "batch length hidden"], start: int
    ) -> tuple[Float[Tensor, "batch length hidden"], float]:
        """Return ∂ℓ/∂hidden for the summed cross-entropy of a batch, and that sum in nats."""
        total = 0.0
        gradient = torch.zeros_like(hidden)
        flat = gradient.view(-1, hidden.shape[-1])
        for begin, leaf, logits, wanted in self._logit_chunks(hidden, start, grad=True):
            loss = _cross_entropy(logits, wanted)
            (piece,) = torch.autograd.grad(loss.sum(), leaf)
            flat[begin : begin + len(piece)] = piece
            total += float(loss.detach().double().sum())
        return gradient, total

    def drawn_gradient(
        self, hidden: Float[Tensor, "batch length hidden"], start: int
    ) -> Float[Tensor, "batch length hidden"]:
        """Return ∂ℓ/∂hidden for labels that the model draws (draws.py), the same each time."""
        generator = torch.Generator().manual_seed(start)
        gradient = torch.zeros_like(hidden)
        flat = gradient.view(-1, hidden.shape[-1])
        for begin, leaf, logits, _ in self._logit_chunks(hidden, start, grad=True):
            draw = drawn(logits.detach(), generator).to(logits.dtype)
            (piece,) = torch.autograd.grad(logits, leaf, draw)
            flat[begin : begin + len(piece)] = piece
        return gradient

    def _logit_chunks(
        self, hidden: Tensor, start: int, grad: bool = False
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield where each chunk begins, its hidden states, and logits and targets that count."""
        rows = hidden.detach().reshape(-1, hidden.shape[-1])
        targets = self.targets(start).reshape(-1)
        for begin in range(0, len(rows), HEAD_CHUNK):
            wanted = targets[begin : begin + HEAD_CHUNK]
            with torch.set_grad_enabled(grad):
                leaf = rows[begin : begin + HEAD_CHUNK].clone().requires_grad_(grad)
                counted = wanted != -100
                yield begin, leaf, self.logits(leaf)[counted], wanted[counted]


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Float[Tensor, " counted"]:
    return functional.cross_entropy(logits.float(), wanted, reduction="none")
