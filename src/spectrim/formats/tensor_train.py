"""A tensor train (matrix product operator): four small cores in the place of a matrix."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear
from spectrim.formats._contraction import cheapest, contracted
from spectrim.formats._trains import bonds, largest, modes, multiplied, rounded, stored


class TensorTrain(FactoredLinear):
    """W as cores [bond, o, i, bond], Π o ≥ out and Π i ≥ in (CompactifAI, 2401.14109).

    ``rank`` is the largest bond dimension χ; a bond is no larger than is exact. What a dimension
    was padded by, so that it factors evenly, is cut off the outputs and fed zeros at the inputs.
    """

    stepped: ClassVar[bool] = False

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features, rank, bias)
        self.modes = modes(out_features, in_features)
        self.bonds = bonds(self.modes, rank)
        links = zip(self.bonds, self.modes, self.bonds[1:], strict=False)
        self.cores = nn.ParameterList(
            torch.empty(before, out, inner, behind) for before, (out, inner), behind in links
        )

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return Σ χ_{k-1} o_k i_k χ_k."""
        return stored(modes(out_features, in_features), rank)

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the largest bond dimension that stores less than the matrix; 1 where none does."""
        return largest(out_features, in_features)

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the cores "χ.0", "χ.1", … of the smallest χ from ``rank`` on, rounded to it.

        The cores are scaled to entries of one size, so that training moves all of them alike.

        Raises:
            SpectrimError: no train that large was made.
        """
        made = sorted({int(key.partition(".")[0]) for key in pieces})
        known = [chi for chi in made if chi >= min(self.rank, max(self.bonds))]
        if not known:
            raise SpectrimError(
                f"a tensor train of bond dimension {self.rank} is asked for, but the largest that "
                f"was made has {made[-1]}; lower the rank in the plan to that"
            )
        cores = [pieces[f"{known[0]}.{at}"].double() for at in range(len(self.modes))]
        if known[0] > self.rank:
            cores = rounded(cores, self.rank)
        sizes = [float(core.square().mean().sqrt()) or 1.0 for core in cores]
        common = math.prod(sizes) ** (1 / len(sizes))
        for core, found, size in zip(self.cores, cores, sizes, strict=True):
            core.copy_(found * (common / size))

    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return W x, contracted in the cheapest order for so many tokens that never forms W."""
        whole = math.prod(inner for _, inner in self.modes)
        flat = functional.pad(x, (0, whole - self.in_features)).reshape(-1, whole)
        y = contracted(flat, list(self.cores), self.modes)  # [tokens, padded out]
        return y[:, : self.out_features].reshape(*x.shape[:-1], self.out_features)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the cores multiplied out."""
        return multiplied(list(self.cores), (self.out_features, self.in_features))

    def multiply_adds(self) -> int:
        """Return the multiply-adds of one token by itself; together, many may take fewer each."""
        return cheapest(self.modes, self.bonds, 1).multiply_adds
