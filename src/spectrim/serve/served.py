"""A model as it is served: its name, its words, what runs it, and its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from spectrim.engines import engine_of, engines
from spectrim.errors import SpectrimError
from spectrim.serve import Limits
from spectrim.serve.batch import Batch
from spectrim.serve.failures import ApiError
from spectrim.serve.language import Language, of_path
from spectrim.serve.meters import Meters
from spectrim.serve.scheduler import Scheduler

_CONTEXT = 4096  # tokens, where none are asked and the model has as many
_LETTERS = 16  # of a text for each token of the context: four times what English has

Result = TypeVar("Result")


@dataclass(frozen=True)
class Served:
    """All that requests need."""

    name: str
    created: int
    """When it was made, in seconds of Unix time."""
    language: Language
    batch: Batch
    vocabulary: int
    scheduler: Scheduler
    meters: Meters
    _one: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Return what is worked out of a text in a thread, one text after the other."""
        return await to_thread.run_sync(work, limiter=self._one)

    def check_model(self, name: str) -> None:
        """Raise ApiError where a request names another model."""
        if name != self.name:
            raise ApiError(
                f"The model '{name}' does not exist; this server has '{self.name}'",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip

    def tokens(
        self, given: str | Sequence[int], param: str, *, begin: bool = True
    ) -> tuple[int, ...]:
        """Return the tokens of a prompt, which may be tokens already.

        Raises:
            ApiError: there are none, more than the context holds beside an answer, or unknown ones.
        """
        if isinstance(given, str):
            self._refuse_longer(given, param)
            head = self.language.begin if begin else ()
            found = (*head, *self.batch.encode(given))
        else:
            found = tuple(given)
        if not found:
            raise ApiError(f"'{param}' is empty; expected at least one token", param=param)
        if len(found) >= self.batch.context:
            raise self._too_long(param, str(len(found)))
        if max(found) >= self.vocabulary:
            raise ApiError(
                f"'{param}' has token {max(found)}; this model has {self.vocabulary}", param=param
            )
        return found

    def _refuse_longer(self, text: str, param: str) -> None:
        """Refuse by its letters what would take seconds to be made tokens of."""
        if len(text) > _LETTERS * self.batch.context:
            raise self._too_long(param, f"{len(text)} letters, far more than these hold")

    def _too_long(self, param: str, has: str) -> ApiError:
        return ApiError(
            f"This model's maximum context length is {self.batch.context} tokens, and "
            f"'{param}' has {has}; send less",
            param=param, code="context_length_exceeded",
        )  # fmt: skip

    def close(self) -> None:
        """Give the model's memory back."""
        self.scheduler.close()


def opened(path: Path, limits: Limits, threads: int, name: str | None = None) -> Served:
    """Return a folder or file as a served model, one token of which was computed.

    name: what requests call it; its own name by default.

    Raises:
        SpectrimError: nothing runs it, or its context is shorter than asked.
    """
    engine = engine_of(path)
    language = of_path(path)
    batch = _batch(engine, path, limits, threads)
    first = batch.read(0, [*language.begin, *batch.encode("a"), 0][:1], last=True)
    batch.free(0)
    if first is None:
        raise SpectrimError(f"{path} gives no logits; export it anew")
    scheduler = Scheduler(batch, limits.queue)
    meters = Meters(lambda: scheduler.active, lambda: scheduler.waiting)
    return Served(
        name=name or path.resolve().name,
        created=int(path.stat().st_mtime),
        language=language, batch=batch, vocabulary=len(first), scheduler=scheduler, meters=meters,
    )  # fmt: skip


def _batch(engine: str, path: Path, limits: Limits, threads: int) -> Batch:
    """Return what runs a model: many sequences at once where that is known, else one."""
    if engine != "transformers":
        from spectrim.serve.one_sequence import OneSlot

        running = engines.get(engine)(path, threads, limits.context or _CONTEXT)
        if running.context < (limits.context or 0):
            running.close()
            raise SpectrimError(
                f"the model has {running.context} positions; expected no longer context"
            )
        return OneSlot(running)
    from spectrim.engines.transformers import loaded, longest_context, refuse_long_context
    from spectrim.serve.batched import Batched

    model, tokenizer = loaded(path, threads)
    context = limits.context or min(_CONTEXT, longest_context(model) or _CONTEXT)
    refuse_long_context(model, context)
    return Batched(model, tokenizer, slots=limits.slots, context=context)
