"""The thread that runs the model: what waits is bounded, nobody is stalled, nobody is forgotten."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from spectrim.serve.answer import Answer, Asked
from spectrim.serve.scheduler import FullError, Scheduler, StoppedError

WORDS = 8


class Counting:
    """A batch that tells of each step, and says the word 3 for ever."""

    slots, context = 2, 100

    def __init__(self):
        self.stepped = threading.Event()

    def encode(self, text):
        return [1]

    def decode(self, tokens):
        return "w" * len(tokens)

    def embed(self, tokens):
        return iter(())

    def read(self, slot, tokens, *, last):
        return np.eye(WORDS, dtype=np.float32)[3] if last else None

    def step(self, tokens):
        self.stepped.set()
        return {slot: np.eye(WORDS, dtype=np.float32)[3] for slot in tokens}

    def free(self, slot):
        pass

    def close(self):
        pass


@pytest.fixture
def batch():
    return Counting()


@pytest.fixture
def scheduler(batch):
    found = Scheduler(batch, queue=1)
    yield found
    found.close()


def begun(scheduler, most=10**6):
    """Submit an answer; return it, its first piece, and what ends it if that is an error."""
    first, error = Future(), Future()

    def deliver(piece):
        if isinstance(piece, Exception):
            error.set_result(piece)
        elif piece.tokens == 1:
            first.set_result(piece)

    asked = Asked((1,), most, stop=())
    answer = Answer(asked, Counting().decode, frozenset(), deliver)
    with scheduler.place():
        scheduler.submit(answer)
    return answer, first, error


def test_requests_that_are_made_ready_take_places_of_the_queue(scheduler):
    with scheduler.place(), scheduler.place(), scheduler.place():  # two slots, and one waits
        assert scheduler.waiting == 3
        with pytest.raises(FullError), scheduler.place():
            pass
    with scheduler.place():
        assert scheduler.waiting == 1


def test_answers_go_on_between_the_pieces_of_other_work(scheduler, batch):
    answer, first, _ = begun(scheduler)
    first.result(timeout=10)
    for _ in range(3):
        batch.stepped.clear()
        scheduler.call(lambda: None).result(timeout=10)
        assert batch.stepped.wait(timeout=10)
    scheduler.cancel(answer)


def test_when_the_model_fails_for_good_all_that_wait_are_told(scheduler, batch, monkeypatch):
    def fails(slot):
        raise fault

    runs, stay, fault = threading.Event(), threading.Event(), OSError("no memory")
    answer, first, _ = begun(scheduler)
    _, other, error = begun(scheduler)
    first.result(timeout=10), other.result(timeout=10)
    scheduler.call(lambda: (runs.set(), stay.wait(timeout=10)))
    assert runs.wait(timeout=10)
    left, waits = scheduler.call(lambda: 1), scheduler.call(lambda: 2)
    assert left.cancel()  # as its client has left
    monkeypatch.setattr(batch, "free", fails)
    scheduler.cancel(answer)
    stay.set()
    assert error.result(timeout=10) is fault
    assert waits.exception(timeout=10) is fault
    assert not scheduler.works
    with pytest.raises(StoppedError), scheduler.place():
        pass


def test_what_is_in_the_making_may_end_before_the_scheduler_does(scheduler):
    _, first, error = begun(scheduler)
    first.result(timeout=10)
    assert scheduler.refuse() == 1
    with pytest.raises(StoppedError), scheduler.place():
        pass
    assert not error.done()
    scheduler.end()
    assert isinstance(error.result(timeout=10), StoppedError)
    assert scheduler.refuse() == 0
