"""Streams of states: behind all blocks they end as the whole model does, and they may part."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spectrim.walk.stream import Stream
from tiny_walks import model_of, text, walk_of, wanted, whole

FAMILIES = pytest.mark.parametrize("family", ["llama", "falcon_alibi", "bart", "t5"])


@FAMILIES
def test_behind_the_last_block_are_the_losses_of_the_whole_model(family: str) -> None:
    model, read = model_of(family), text(padded=True)
    walk = walk_of(model, read)
    stream = Stream(walk).through(walk.block)
    logits = whole(model, read).detach().flatten(0, 1)
    targets = wanted(model, read).flatten()
    known = functional.cross_entropy(logits, targets, reduction="none")[targets != -100]
    torch.testing.assert_close(stream.losses(), known, rtol=1e-5, atol=1e-6)
    assert stream.mean() == pytest.approx(float(known.mean()), rel=1e-5)


@FAMILIES
def test_step_by_step_or_at_once_are_the_same_bits(family: str) -> None:
    walk = walk_of(model_of(family), text(padded=False))
    stream = Stream(walk)
    for stack in walk.architecture.stacks:
        for place in walk.places(stack):
            stream = stream.reach(place).behind(walk.block(place), place)
    assert torch.equal(stream.losses(), Stream(walk).through(walk.block).losses())


def test_what_a_decoder_reads_is_what_its_own_stream_left_of_the_encoder() -> None:
    walk = walk_of(model_of("bart"), text(padded=False))
    encoder, decoder = walk.architecture.stacks
    *before, last = walk.places(encoder)
    short = Stream(walk).enter(encoder)
    for place in before:
        short = short.behind(walk.block(place), place)
    whole_one = short.behind(walk.block(last), last)
    short, whole_one = short.enter(decoder), whole_one.enter(decoder)
    assert all(torch.equal(short.hidden[at], whole_one.hidden[at]) for at in walk.starts)
    assert not any(torch.equal(short.encoded[at], whole_one.encoded[at]) for at in walk.starts)
    first = walk.places(decoder)[0]
    block = walk.block(first)
    assert not torch.equal(
        short.behind(block, first).hidden[0], whole_one.behind(block, first).hidden[0]
    )


def test_a_stream_stays_where_it_is_when_another_goes_on() -> None:
    walk = walk_of(model_of("llama"), text(padded=False))
    (stack,) = walk.architecture.stacks
    first = walk.places(stack)[0]
    stream = Stream(walk).enter(stack)
    kept = {at: one.clone() for at, one in stream.hidden.items()}
    behind = stream.behind(walk.block(first), first)
    assert all(torch.equal(stream.hidden[at], kept[at]) for at in walk.starts)
    assert not torch.equal(behind.hidden[0], kept[0])


def test_gradients_flow_through_one_batch_and_not_through_all() -> None:
    walk = walk_of(model_of("llama"), text(padded=False))
    (stack,) = walk.architecture.stacks
    first = walk.places(stack)[0]
    stream, block = Stream(walk).enter(stack), walk.block(first).requires_grad_(True)
    assert stream.run(block, first, 0).requires_grad
    assert not stream.behind(block, first).hidden[0].requires_grad
