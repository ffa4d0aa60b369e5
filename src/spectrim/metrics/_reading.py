"""One pass of one or several models over token windows: what every text metric is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import log
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.special import stdtrit
from torch import Tensor, nn

from spectrim.errors import SpectrimError


@dataclass(frozen=True)
class Reading:
    """Sums over the scored tokens of each sequence, in float64.

    tokens [sequences]; all others [models, sequences]: losses in nats; divergences and
    jensen_shannon of every model from the first, in nats; agreements (same most likely token as the
    first); right (most likely token is the one that follows); lost and gained (right where the
    first is and the model is not, and the other way round).
    """

    tokens: Int[Tensor, " sequences"]
    losses: Float[Tensor, "models sequences"]
    divergences: Float[Tensor, "models sequences"]
    jensen_shannon: Float[Tensor, "models sequences"]
    agreements: Float[Tensor, "models sequences"]
    right: Float[Tensor, "models sequences"]
    lost: Float[Tensor, "models sequences"]
    gained: Float[Tensor, "models sequences"]

    def rows(self) -> list[dict[str, Any]]:
        """Return the sums of each sequence as JSON can hold them, exactly."""
        names = [one.name for one in fields(self)][1:]
        return [
            {"tokens": int(count), **{name: getattr(self, name)[:, row].tolist() for name in names}}
            for row, count in enumerate(self.tokens)
        ]

    @classmethod
    def of_rows(cls, rows: Sequence[dict[str, Any]]) -> Reading:
        """Return the reading that ``rows`` came from."""
        tokens = torch.tensor([row["tokens"] for row in rows])
        names = [one.name for one in fields(cls)][1:]
        sums = [torch.tensor([row[name] for row in rows], dtype=torch.float64).T for name in names]
        return cls(tokens, *sums)

    def mean(self, sums: Float[Tensor, " sequences"]) -> float:
        """Return the mean over all scored tokens."""
        return float(sums.sum() / self.tokens.sum())

    def interval(self, sums: Float[Tensor, " sequences"]) -> tuple[float, float] | None:
        """Return the 95 % t interval of that mean over sequences; None for a single sequence.

        The mean is a ratio of sums, so its variance is that of the residuals sum - mean x tokens
        (linearised; Cochran, Sampling Techniques, section 6.4).
        """
        count = len(sums)
        if count < 2:
            return None
        mean = self.mean(sums)
        residual = sums - mean * self.tokens
        error = float((residual.square().sum() * count / (count - 1)).sqrt() / self.tokens.sum())
        reach = float(stdtrit(count - 1, 0.975)) * error
        return mean - reach, mean + reach


def windows(stream: Int[Tensor, " tokens"], window: int, stride: int) -> Int[Tensor, "n window"]:
    """Return the windows of ``window`` tokens that start every ``stride`` tokens.

    With ``read(..., stride=stride)`` every token after the first is scored once where windows
    overlap; where they do not (stride = window) each window's first token has no context and is not
    scored. A tail shorter than ``stride`` is left out.

    Raises:
        SpectrimError: the window is under two tokens, the stride is not within 1 … window, or the
            stream is shorter than one window.
    """
    if window < 2:
        raise SpectrimError(f"a window of {window} tokens predicts nothing; give at least 2")
    if not 1 <= stride <= window:
        raise SpectrimError(f"a stride of {stride} tokens; expected 1 to the window's {window}")
    if len(stream) < window:
        raise SpectrimError(
            f"the text has {len(stream)} tokens and a window needs {window}; "
            "give a longer text or a smaller window"
        )
    return stream.unfold(0, window, stride).contiguous()  # [n, window]


@contextmanager
def evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Turn dropout and gradients off, and put every model back into its mode afterwards."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def device(model: nn.Module) -> torch.device:
    """Return where the model's first parameter lies; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def read(
    models: Sequence[nn.Module],
    ids: Int[Tensor, "sequences length"],
    *,
    stride: int | None = None,
    batch: int = 1,
    chunk: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """Return what the models make of the same windows, in one pass.

    The logits of ``batch`` windows of every model are held in the model's dtype; the float32
    distributions only of ``chunk`` tokens at a time. An encoder-decoder model gets the window as
    encoder input and, again, as decoder input: how well its decoder tells back what it has read.

    Args:
        models: the reference first.
        ids: token windows, as ``windows`` cuts them.
        batch: windows per forward pass; their logits are held at once.
        chunk: tokens whose distributions are held at once.
        progress: called with (windows done, windows in all).
        stride: how many tokens at the end of each window but the first are new, and scored; None
            scores every token that has a context.

    Raises:
        SpectrimError: there is no window, or it is under two tokens long.
    """
    if ids.ndim != 2 or 0 in ids.shape or ids.shape[1] < 2:
        shape = tuple(ids.shape)
        raise SpectrimError(f"token windows of shape {shape}; expected [sequences, length >= 2]")
    count, targets = ids.shape[0], ids.shape[1] - 1
    sums = torch.zeros(7, len(models), count, dtype=torch.float64)
    tokens = torch.zeros(count, dtype=torch.long)
    with evaluating(models):
        for start in range(0, count, batch):
            logits = [_logits(model, ids[start : start + batch]) for model in models]
            for row in range(start, min(start + batch, count)):
                first = 0 if row == 0 or stride is None else max(0, targets - stride)
                tokens[row] = targets - first
                for begin in range(first, targets, chunk):
                    part = slice(begin, min(begin + chunk, targets))
                    parts = [one[row - start, part] for one in logits]  # [tokens, vocab] each
                    sums[:, :, row] += _distances(parts, ids[row, 1:][part])
            if progress is not None:
                progress(min(start + batch, count), count)
    return Reading(tokens, *sums)


def _logits(model: nn.Module, ids: Int[Tensor, "batch length"]) -> Tensor:
    ids = ids.to(device(model))
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        output = model(input_ids=ids, decoder_input_ids=ids, use_cache=False)
    else:
        output = model(input_ids=ids, use_cache=False)
    logits: Tensor = output.logits
    return logits


def _distances(
    logits: Sequence[Float[Tensor, "tokens vocab"]], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, "7 models"]:
    """Return the sums over the tokens, in the order of ``Reading``'s fields."""
    sums = torch.empty(7, len(logits), dtype=torch.float64)
    reference = logits[0].float().log_softmax(-1)
    targets = targets.to(reference.device)
    likely = reference.argmax(-1)
    knew = likely == targets
    for index, one in enumerate(logits):
        own = one.to(reference.device).float().log_softmax(-1) if index else reference
        said = own.argmax(-1)
        knows = said == targets
        sums[0, index] = -own.gather(-1, targets[:, None]).sum(dtype=torch.float64)
        sums[1, index] = _divergence(reference, own) if index else 0.0
        sums[2, index] = _jensen_shannon(reference, own) if index else 0.0
        sums[3, index] = (said == likely).sum()
        sums[4, index] = knows.sum()
        sums[5, index] = (knew & ~knows).sum()
        sums[6, index] = (knows & ~knew).sum()
    return sums


def _divergence(first: Tensor, other: Tensor) -> Tensor:
    share = first.exp()
    # A token that is impossible for both adds nothing, though -inf - -inf is not a number.
    return torch.where(share == 0, 0.0, share * (first - other)).sum(dtype=torch.float64)


def _jensen_shannon(first: Tensor, other: Tensor) -> Tensor:
    middle = torch.logaddexp(first, other) - log(2)
    return (_divergence(first, middle) + _divergence(other, middle)) / 2
