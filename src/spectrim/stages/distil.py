"""Train the whole smaller model to say what the dense one says of every token.

The dense model is asked once and its most likely tokens are kept. Everything inside the blocks is
trained, factors and norms, and the norm behind them; embedding and head stay.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from spectrim.healing.adam import Adam
from spectrim.healing.balanced import balance
from spectrim.healing.end_to_end import Healing, Ready, heal
from spectrim.healing.learned_codes import learn
from spectrim.healing.student import trainable_parameters
from spectrim.job.job import Job

LEAVES = ("changed maps", "trained")
NOTE = "healed"
NEEDS = {
    "packed if numbers": "distil trains whole numbers, and no stage before it packs any; put "
    "quantize in front of it, or leave out numbers"
}


class Options(Healing):
    """The stage that trains the smaller model on the dense one's distribution over next tokens.

    accumulation: batches whose gradients are added up for one step.
    numbers: train also the codes of maps in few bits, and not their scales and offsets only.
    learning_rate: the highest; a number moves in a step by about this part of the root mean square
        of its matrix or vector.
    """

    learning_rate: float = Field(default=5e-4, gt=0)
    accumulation: int = Field(default=1, ge=1)
    numbers: bool = False


def distil(job: Job, options: Options) -> None:
    """Train all factors and norms; they stay as they were where the search split does not gain.

    Raises:
        SpectrimError: the healing text is too short, or is what the result is measured on.
    """

    def ready(model: PreTrainedModel) -> Ready:
        parameters = trainable_parameters(job, model)
        return Ready(parameters, Adam(parameters, relative=True))

    def prepare(block: nn.Module) -> nn.Module:
        return learn(balance(block), codes=options.numbers)

    heal(job, "distil", options, ready, prepare=prepare)
