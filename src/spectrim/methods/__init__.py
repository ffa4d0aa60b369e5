"""Ways to decompose a map: each decomposes once and offers a curve of ranks against losses.

A method is one file with a function of its name, ``(weight, statistics, *, damping)``. Constants
beside it, which are read without importing it, say what it needs and leaves:

    FORMAT   the format that takes its pieces; absent: any that holds two factors
    SAMPLES  of how many sequences it wants the inputs themselves, in ``statistics.samples``
    CENTRED  True where A is to be centred and the bias to make up for the mean, False where not;
             absent: as the recipe says
    ROLES    the roles that it takes together, "?" behind one that may be missing, or a tuple of
             such groups, a role in one of them at most; weight and statistics are then dictionaries
             by role, FORMAT one too, and a piece is "role.piece". A role with "*" for a number
             stands for all that fit it; FORMAT then is by "first" and "others"
    NEEDS    what else it is called with: "head_dim", the dimensions of one head, by which it takes
             only sites whose heads may be turned; "biases", by role, None where there is none;
             "unseen", by role, the statistics that the losses are of where they are not those that
             the cuts are fitted to, else None
    BLIND    True where statistics decide nothing but the losses, so that no fit flatters these
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.registry import Registry

methods = Registry("method", "spectrim.methods")


@dataclass(frozen=True)
class Decomposition:
    """What a method makes of one map (or of maps that it takes together): a curve, and its cuts.

    ranks [cuts] are increasing; what a rank means is the format's affair. losses [cuts] are the
    predicted increase of the model's loss in nats per token at each. A method that knows nothing of
    the loss states its own error, says ``in_nats`` False, and has it converted (currency.py).
    pieces are the tensors from which the format takes every cut; they are kept on disk.
    values: singular values in the method's own weighting, where there are any.
    """

    ranks: Int[Tensor, " cuts"]
    losses: Float[Tensor, " cuts"]
    pieces: dict[str, Tensor]
    values: Float[Tensor, " full"] | None = None
    in_nats: bool = False

    @property
    def left(self) -> Float[Tensor, "out full"]:
        """Return the left factor of W = left @ right, columns sorted by importance."""
        return self.pieces["left"]

    @property
    def right(self) -> Float[Tensor, "full in"]:
        """Return the right factor of W = left @ right, rows sorted by importance."""
        return self.pieces["right"]

    def factors(self, rank: int) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
        """Return contiguous copies of the first ``rank`` components."""
        return self.left[:, :rank].contiguous(), self.right[:rank].contiguous()


def two_factors(
    left: Float[Tensor, "out full"],
    right: Float[Tensor, "full in"],
    values: Float[Tensor, " full"],
    losses: Float[Tensor, " cuts"],
) -> Decomposition:
    """Return W = left @ right, components sorted by importance, so that every cut is a slice.

    losses [full + 1] are those of rank 0 … full, in the method's own unit.
    """
    pieces = {"left": left.float().contiguous(), "right": right.float().contiguous()}
    return Decomposition(torch.arange(len(losses)), losses, pieces, values=values.float())


def tail_losses(values: Float[Tensor, " full"], scale: float) -> Float[Tensor, " cuts"]:
    """Return scale x the sum of the squared values behind each cut, from rank 0 to full."""
    squared = values.double().square().flip(0)
    tails = torch.cat((squared.new_zeros(1), squared.cumsum(0))).flip(0)
    return (scale * tails).float()


def corner_losses(gram: Float[Tensor, "full full"]) -> Float[Tensor, " cuts"]:
    """Return half the sum of what components of this Gram matrix cost that a cut leaves out.

    Those are the lower right corners, from all of it to nothing. Where one would rise with the
    rank, as components that are not orthogonal may make up for each other, the cuts before it are
    said to lose as much.
    """
    tails = gram.double().flip(0, 1).cumsum(0).cumsum(1).diagonal()
    return 0.5 * torch.cat((tails.new_zeros(1), tails)).cummax(0).values.flip(0)
