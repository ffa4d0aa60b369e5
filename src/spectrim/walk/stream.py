"""The hidden states of a text on their way through the blocks.

    stream = Stream(walk).through(walk.block)
    stream.mean()  # the loss of the dense model, nats per token

Hidden states stay in memory, so this is for short texts such as the search split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.model.architectures import Place, Stack
from spectrim.walk.walk import BlockWalk

States = Mapping[int, Tensor]
"""Hidden states [batch, length, hidden] by the first sequence of the batch."""


@dataclass(frozen=True)
class Stream:
    """The hidden states of all batches in front of one block, or behind the last.

    It never changes: every step returns another one, so that streams may part at any block and go
    on side by side, such as the dense and the smaller model's. ``Stream(walk)`` stands in front of
    the model; the first step is to ``enter`` its first stack.
    """

    walk: BlockWalk
    hidden: States = field(default_factory=dict)
    encoded: States = field(default_factory=dict)
    """What the encoder made of each batch, where a decoder reads it; empty elsewhere."""

    def enter(self, stack: Stack) -> Stream:
        """Return the states that enter the first block of a stack.

        Behind an encoder's last block its states become what the decoder's blocks read.
        """
        encoded = self.encoded
        if self.walk.is_encoder_decoder and self.hidden:
            with torch.no_grad():
                encoded = {at: self.walk.encoded(one, at) for at, one in self.hidden.items()}
        entering = {at: self.walk.enter(stack, at, encoded.get(at)) for at in self.walk.starts}
        return Stream(self.walk, entering, encoded)

    def reach(self, place: Place) -> Stream:
        """Return the states in front of a block, of which the stream is behind the one before."""
        return self.enter(place.stack) if place.index == 0 else self

    def run(self, block: nn.Module, place: Place, at: int) -> Float[Tensor, "batch length hidden"]:
        """Return what a block makes of one batch, with gradients where they are enabled."""
        return self.walk.run(block, place, at, self.hidden[at], self.encoded.get(at))

    @torch.no_grad()
    def behind(self, block: nn.Module, place: Place) -> Stream:
        """Return the states behind a block, all batches one after the other."""
        return self.with_hidden({at: self.run(block, place, at) for at in self.hidden})

    def with_hidden(self, hidden: States) -> Stream:
        """Return the stream with other hidden states in the place of these."""
        return Stream(self.walk, hidden, self.encoded)

    def through(self, block: Callable[[Place], nn.Module]) -> Stream:
        """Return the states behind the last block; block: called for each place, in order."""
        stream = self
        for stack in self.walk.architecture.stacks:
            stream = stream.enter(stack)
            for place in self.walk.places(stack):
                stream = stream.behind(block(place), place)
        return stream

    def losses(self) -> Float[Tensor, " counted"]:
        """Return the cross-entropy of every predicted token, in nats, behind the last block."""
        return torch.cat([self.walk.losses(one, at) for at, one in self.hidden.items()])

    def mean(self) -> float:
        """Return the mean cross-entropy, in nats per token, added up in float64."""
        return float(self.losses().double().mean())
