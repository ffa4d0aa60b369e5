"""One thread runs the model: prompts in pieces, then all answers token by token together.

transformers' own continuous batching is not used: on CPUs its batch is one row, in which each token
is compared with those of all other sequences and masked; it has one seed for all requests and tells
only the drawn token's probability.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from spectrim.serve.answer import Answer
from spectrim.serve.batch import PIECE, Batch


class FullError(Exception):
    """The queue is full; ask again later."""


class StoppedError(Exception):
    """No more answers are made: the server is told to stop, or the model has failed for good."""


class Scheduler:
    """Gives slots to answers in the order in which they were asked.

    batch: what runs them; used by the scheduler's own thread only. queue: how many may wait.
    """

    def __init__(self, batch: Batch, queue: int) -> None:
        self._batch, self._queue = batch, queue
        self._waiting: deque[Answer] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._reading: tuple[int, Answer] | None = None
        self._answering: dict[int, Answer] = {}
        self._places = 0  # of requests that are being made ready
        self._changed = threading.Condition()
        self._refuses = self._closed = False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many requests have no slot yet."""
        return len(self._waiting) + self._places

    @property
    def active(self) -> int:
        """Return how many answers have a slot."""
        return len(self._answering) + (self._reading is not None)

    @property
    def works(self) -> bool:
        """Return whether requests are taken."""
        return not (self._refuses or self._closed)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place in the queue, so that no more texts are made tokens of than may wait.

        Raises:
            FullError: there is none.
            StoppedError: no more requests are taken.
        """
        with self._changed:
            if not self.works:
                raise StoppedError
            if self.waiting >= self._queue + self._batch.slots - self.active:
                raise FullError
            self._places += 1
        try:
            yield
        finally:
            with self._changed:
                self._places -= 1

    def submit(self, answer: Answer) -> None:
        """Have an answer made, for a request that has a place.

        Raises:
            StoppedError: it has stopped.
        """
        with self._changed:
            self._refuse_stopped()
            self._waiting.append(answer)
            self._changed.notify()

    def cancel(self, answer: Answer) -> None:
        """Stop an answer, which is done after the step in progress; nothing if it has ended."""
        with self._changed:
            answer.cancelled = True
            self._changed.notify()

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Have something else computed between two steps, for a request that has a place.

        Raises:
            StoppedError: it has stopped.
        """
        future: Future[Any] = Future()
        with self._changed:
            self._refuse_stopped()
            self._calls.append((work, future))
            self._changed.notify()
        return future

    def refuse(self) -> int:
        """Take no more requests, and return how many of those that were taken have not ended."""
        with self._changed:
            self._refuses = True
            return self.waiting + self.active + len(self._calls)

    def end(self) -> None:
        """End everything with StoppedError, after the step in progress."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._give_up(StoppedError())

    def close(self) -> None:
        """End everything, and give the model's memory back."""
        self.end()
        self._batch.close()

    def _refuse_stopped(self) -> None:
        if self._closed:
            raise StoppedError

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:  # so that nobody waits for a thread that is gone
            self._give_up(error)

    def _turn(self) -> bool:
        """Do one round of work, as soon as there is any; return False where that was the last."""
        with self._changed:
            while not (self._closed or self._waiting or self._calls or self.active):
                self._changed.wait()
            if self._closed:
                return False
            self._drop_cancelled()
            self._admit()
            call = self._calls.popleft() if self._calls else None
        if call is not None:
            _run(*call)
        self._read_piece()
        self._step()
        return True

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._closed = True
            answers = [*self._waiting, *self._answering.values()]
            answers += [self._reading[1]] if self._reading is not None else []
            calls = [*self._calls]
            self._waiting, self._answering, self._calls = deque(), {}, deque()
            self._reading = None
        for answer in answers:
            answer.deliver(error)
        for _, future in calls:
            if future.set_running_or_notify_cancel():  # its client may have left
                future.set_exception(error)

    def _drop_cancelled(self) -> None:
        self._waiting = deque(one for one in self._waiting if not one.cancelled)
        if self._reading is not None and self._reading[1].cancelled:
            self._batch.free(self._reading[0])
            self._reading = None
        for slot in [slot for slot, one in self._answering.items() if one.cancelled]:
            self._end(slot)

    def _admit(self) -> None:
        if self._reading is None and self._waiting:
            free = (slot for slot in range(self._batch.slots) if slot not in self._answering)
            slot = next(free, None)
            if slot is not None:
                self._reading = slot, self._waiting.popleft()

    def _read_piece(self) -> None:
        if self._reading is None:
            return
        slot, answer = self._reading
        piece = answer.asked.prompt[answer.read : answer.read + PIECE]
        answer.read += len(piece)
        last = answer.read == len(answer.asked.prompt)
        try:
            logits = self._batch.read(slot, piece, last=last)
            ended = logits is not None and answer.take(logits)
        except Exception as error:  # one answer that fails must not end the others
            self._reading = None
            self._fail({slot: answer}, error)
            return
        if last:
            self._reading = None
            self._answering[slot] = answer
            if ended:
                self._end(slot)

    def _step(self) -> None:
        if not self._answering:
            return
        try:
            logits = self._batch.step({slot: one.token for slot, one in self._answering.items()})
        except Exception as error:
            self._fail(dict(self._answering), error)
            return
        for slot, answer in list(self._answering.items()):
            try:
                if answer.take(logits[slot]):
                    self._end(slot)
            except Exception as error:
                self._fail({slot: answer}, error)

    def _end(self, slot: int) -> None:
        del self._answering[slot]
        self._batch.free(slot)

    def _fail(self, answers: dict[int, Answer], error: Exception) -> None:
        for slot, answer in answers.items():
            answer.deliver(error)  # first, as a model that fails may fail at this too
            self._answering.pop(slot, None)
            self._batch.free(slot)


def _run(work: Callable[[], Any], future: Future[Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
