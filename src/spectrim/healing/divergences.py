"""How far one distribution over the vocabulary is from another, of which only the top is known.

What is not among the top k is one outcome more, the remainder. Merging outcomes never makes a
divergence larger (data processing), so each of these is a lower bound of the one over all tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Kind = Literal["forward", "reverse", "js"]
FLOOR = 1e-10  # of a remainder: below what float32 can tell from nothing


def with_remainder(top: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch outcomes"]:
    """Return log-probabilities with that of all other tokens behind the last, [..., k + 1]."""
    others = -torch.expm1(torch.logsumexp(top, -1, keepdim=True))
    return torch.cat((top, others.clamp_min(FLOOR).log()), -1)


def divergence(
    teacher: Float[Tensor, "*batch outcomes"], student: Float[Tensor, "*batch outcomes"], kind: Kind
) -> Float[Tensor, "*batch"]:
    """Return the divergence in nats of each row of log-probabilities.

    "forward" is KL(teacher ‖ student), which wants every outcome covered; "reverse" is KL(student ‖
    teacher), which wants none that the teacher does not know; "js" is half of both against the mean
    of the two, at most log 2.
    """
    if kind == "forward":
        return _kl(teacher, student)
    if kind == "reverse":
        return _kl(student, teacher)
    mean = torch.logaddexp(teacher, student) - torch.log(torch.tensor(2.0, dtype=teacher.dtype))
    return 0.5 * (_kl(teacher, mean) + _kl(student, mean))


def _kl(one: Tensor, other: Tensor) -> Tensor:
    return (one.exp() * (one - other)).sum(-1)
