"""What one token costs in multiply-adds, counted from the modules."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from spectrim.metrics import Measurement, Pair, Score
from spectrim.metrics._census import linear_maps
from spectrim.model import architectures

DEFAULT_CONTEXT = 1024


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of one token; additions of biases, norms and activations are left out.

    ``linear``: linear maps of the blocks, experts by the share of them that a token visits;
    ``other``: maps that are no site (routers, projections outside the blocks); ``head``; and
    ``attention``: scores and weighted values when ``context`` tokens are attended.
    """

    linear: int
    other: int
    head: int
    attention: int
    context: int

    @property
    def maps(self) -> int:
        """Return what does not depend on the context."""
        return self.linear + self.other + self.head


def multiply_adds(model: PreTrainedModel, context: int = DEFAULT_CONTEXT) -> MultiplyAdds:
    """Return the multiply-adds of one token; of one token on either side where there are two.

    Args:
        model: a transformers model of a known family.
        context: tokens that are attended; sliding-window blocks attend at most their window.

    Raises:
        SpectrimError: the model's family is unknown.
    """
    costs = {"block": 0.0, "other": 0.0, "head": 0.0}
    for one in linear_maps(model):
        costs[one.place] += one.multiply_adds * one.active
    return MultiplyAdds(
        linear=round(costs["block"]),
        other=round(costs["other"]),
        head=round(costs["head"]),
        attention=sum(2 * _width(model.config) * seen for seen in _attended(model, context)),
        context=context,
    )


def measure(pair: Pair) -> Measurement:
    """Return the multiply-adds of every model at the context of the first text's windows."""
    first = next(iter(pair.texts.values()), None)
    context = DEFAULT_CONTEXT if first is None else int(first.shape[1])
    found: Measurement = {}
    for label, model in pair.models.items():
        cost = multiply_adds(model, context)
        parts = {"linear": cost.linear, "other": cost.other, "head": cost.head}
        at = {"context": context}
        found[label] = [
            Score("multiply_adds", cost.maps, "per token", "lower", settings=parts),
            Score("attention_multiply_adds", cost.attention, "per token", "lower", settings=at),
        ]
    return found


def _width(config: PretrainedConfig) -> int:
    """Return the width of all heads together."""
    heads = int(config.num_attention_heads)
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * int(head)


def _attended(model: PreTrainedModel, context: int) -> list[int]:
    """Return how many tokens each attention looks at: one per block, two where it crosses over."""
    seen = []
    for index, stack in enumerate(architectures.architecture_of(model.config).stacks):
        crosses = 2 if index else 1  # the second stack is a decoder that also looks at the encoder
        for block in range(len(list(model.get_submodule(stack.path).children()))):
            seen += [min(context, _window(model.config, block) or context)] * crosses
    return seen


def _window(config: PretrainedConfig, block: int) -> int | None:
    """Return the sliding window of a block, or None where it attends everything."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or block >= len(kinds):
        return window
    return window if kinds[block] == "sliding_attention" else None
