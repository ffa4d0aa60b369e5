"""Train the whole smaller model with updates inside the backward pass (LOMO, AdaLomo).

No moments of Adam's and no two gradients are held: beside the weights there is one gradient at a
time and, for AdaLomo, one number a row and one a column of each matrix.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.healing.end_to_end import Healing, Ready, heal
from spectrim.healing.fused_updates import AdaLomo, Lomo
from spectrim.healing.student import trainable_parameters
from spectrim.job.job import Job
from spectrim.processes import processes

LEAVES = ("changed maps", "trained")
NOTE = "healed"
NUMBER = 4  # bytes, float32


class Options(Healing):
    """The stage that trains all factors and norms in as little memory as it can.

    optimizer: "adalomo" divides by factored second moments; "lomo" is plain descent.
    learning_rate: AdaLomo's is a part of each parameter's size, LOMO's multiplies the gradient.
    """

    optimizer: Literal["adalomo", "lomo"] = "adalomo"
    learning_rate: float = Field(default=5e-4, gt=0)


def low_memory(job: Job, options: Options) -> None:
    """Train all factors and norms; they stay as they were where the search split does not gain.

    Raises:
        SpectrimError: the healing text is too short or measured on, or there are many processes.
    """
    if processes() > 1:
        raise SpectrimError(
            "low_memory updates where the gradient is made, so it runs in one process; take distil "
            "for several"
        )
    need: dict[str, int] = {}
    made: list[Lomo] = []

    def ready(model: PreTrainedModel) -> Ready:
        parameters = trainable_parameters(job, model)
        update = (AdaLomo if options.optimizer == "adalomo" else Lomo)(parameters)
        made.append(update)
        sizes = [parameter.numel() for parameter in parameters.values()]
        need.update(weights=sum(sizes), largest=max(sizes))
        return Ready(parameters, update, update.close)

    def note() -> dict[str, Any]:
        """Return what training holds at most beside activations, here and with AdamW."""
        own = need["weights"] + need["largest"] + made[0].numbers()
        adam = 4 * need["weights"]  # weights, gradients, two moments
        return {"bytes": NUMBER * own, "bytes_of_adamw": NUMBER * adam}

    heal(job, "low_memory", options, ready, note)
