"""What may stand where a matrix stood, and what is stored of it on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.kernels.maps import Parts
from spectrim.registry import Registry

formats = Registry(
    "format",
    "spectrim.formats",
    attribute=lambda name: "".join(part.capitalize() for part in name.split("_")),
)


class FactoredLinear(nn.Module, ABC):
    """A map that stands for y = W x + b, held as registered parameters.

    A subclass is built empty (``torch.empty``, so also on the meta device) from the keywords that
    its ``shape()`` returns, and filled from what a method made of W. One whole number says how much
    it holds: ``rank``, which is the bond dimension of a tensor train and the width of a bottleneck.
    ``bias`` is [out] or None.

    What it costs is told before it exists, by ``numbers`` and ``bytes``, and by the module itself,
    by ``stored`` and ``multiply_adds``. A low_rank of rank 8 in the place of a bf16 matrix of
    64 x 32 has 8 (64 + 32) = 768 numbers, takes 1536 bytes, and costs a token 768 multiply-adds.
    """

    bias: nn.Parameter | None
    stepped: ClassVar[bool] = True
    """Whether ranks may be rounded to multiples of something."""
    follows: ClassVar[bool] = False
    """Whether it needs the map that is named its ``owner``, and ``link(owner)`` before it runs."""
    leads: ClassVar[bool] = False
    """Whether maps that follow it read what it holds."""
    rounded: ClassVar[bool] = False
    """Whether its numbers are stored in few bits."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.bias = nn.Parameter(torch.empty(self.delivered())) if bias else None

    def delivered(self) -> int:
        """Return how many outputs there are, of which each may have a bias."""
        return self.out_features

    @classmethod
    @abstractmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """Return how many numbers a map of this shape and rank stores.

        A count, whatever each takes. The bias is left out, as are a permutation's or an index's
        whole numbers, and scales and offsets of packed codes.
        """

    @classmethod
    def bytes(cls, out_features: int, in_features: int, rank: int, dtype: torch.dtype) -> int:
        """Return how many bytes a map of this shape, rank and dtype takes on disk.

        The bias is left out; a permutation or an index counts. Packed maps have a grid besides, so
        theirs is `Quantized.stored_bytes`.
        """
        return cls.numbers(out_features, in_features, rank) * dtype.itemsize

    @classmethod
    def largest(cls, out_features: int, in_features: int) -> int:
        """Return the largest rank that a map of this shape may have."""
        return min(out_features, in_features)

    @abstractmethod
    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take what a decomposition holds, cut at this module's rank, computing in float64."""

    def take_bias(self, bias: Float[Tensor, " out"], pieces: dict[str, Tensor]) -> None:
        """Take the dense map's bias."""
        assert self.bias is not None
        self.bias.copy_(bias)

    @abstractmethod
    def apply_factors(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return W x without ever forming W."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "out in"]:
        """Return the matrix that the factors stand for."""

    def parts(self) -> Parts | None:
        """Return what the kernels compute W x with; None where they cannot."""
        return None

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return W x + b."""
        y = self.apply_factors(x)
        return y if self.bias is None else y + self.bias

    @classmethod
    def from_shape(cls, shape: dict[str, Any]) -> FactoredLinear:
        """Return this format, empty, from what ``shape()`` returned or config.json holds."""
        return cls(**shape)

    def shape(self) -> dict[str, Any]:
        """Return the keywords that build this module empty, as config.json holds them."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "rank": self.rank,
            "bias": self.bias is not None,
        }

    def stored(self) -> int:
        """Return ``numbers`` of this very module, those of a correction beside it included."""
        return self.numbers(self.out_features, self.in_features, self.rank)

    def multiply_adds(self) -> int:
        """Return the multiply-adds that one token costs: one for every stored number."""
        return self.stored()

    @property
    def weight(self) -> Tensor:
        """Return a parameter: T5 asks every linear map for ``weight.dtype``."""
        return next(self.parameters())

    def extra_repr(self) -> str:
        """Return the shape for ``print(model)``."""
        return f"{self.in_features} -> {self.rank} -> {self.out_features}"


class TwoFactors(FactoredLinear):
    """A linear map held as W = left @ right, in whichever way."""

    @abstractmethod
    def fill(self, left: Float[Tensor, "out rank"], right: Float[Tensor, "rank in"]) -> None:
        """Take W = left @ right into the factors, computing in float64."""

    @abstractmethod
    def left(self) -> Float[Tensor, "out rank"]:
        """Return the left factor of W = left @ right, in the dtype it is stored in."""

    @abstractmethod
    def right(self) -> Float[Tensor, "rank in"]:
        """Return the right factor of W = left @ right; assigning to its data changes the map."""

    def take(self, pieces: dict[str, Tensor]) -> None:
        """Take the first ``rank`` columns of ``left`` and rows of ``right``."""
        self.fill(pieces["left"][:, : self.rank].double(), pieces["right"][: self.rank].double())

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the product of the factors."""
        return self.left() @ self.right()


def link(root: nn.Module, owners: dict[str, str], prefix: str = "") -> None:
    """Link every map that needs another one: owners gives the site of the other by its site.

    prefix: what stands before the paths inside ``root`` in the names of sites.
    """
    for site, owner in owners.items():
        follower: Any = root.get_submodule(site.removeprefix(prefix))
        follower.link(root.get_submodule(owner.removeprefix(prefix)))


def low_rank_formats() -> list[str]:
    """Return the names of the formats that hold any product of two factors."""
    return [name for name in formats.names() if issubclass(formats.get(name), TwoFactors)]


def make_format(
    name: str,
    shape: tuple[int, int, int],
    pieces: dict[str, Tensor],
    bias: Float[Tensor, " out"] | None,
    dtype: torch.dtype,
) -> FactoredLinear:
    """Return the format ``name`` with what a decomposition holds, stored in ``dtype``.

    shape: (out, in, rank). pieces: what the format's ``take`` asks for, in any float dtype.

    Raises:
        SpectrimError: no format has that name, or no cut of this rank was made.
    """
    out_features, in_features, rank = shape
    module: FactoredLinear = formats.get(name)(in_features, out_features, rank, bias is not None)
    module = module.to(dtype)
    with torch.no_grad():
        module.take(pieces)
        if bias is not None:
            module.take_bias(bias, pieces)
    return module


def from_factors(
    name: str,
    left: Float[Tensor, "out rank"],
    right: Float[Tensor, "rank in"],
    bias: Float[Tensor, " out"] | None,
    dtype: torch.dtype,
) -> FactoredLinear:
    """Return the format ``name`` holding W = left @ right and the bias, stored in ``dtype``.

    Raises:
        SpectrimError: no format has that name.
    """
    shape = (left.shape[0], right.shape[1], left.shape[1])
    return make_format(name, shape, {"left": left, "right": right}, bias, dtype)


def packed_format(name: str, bits: int, trellis: int = 0) -> str:
    """Return the name of the format that stores what another does in so many bits.

    trellis: bits of 16 numbers of a path, 0 where numbers have codes of their own.
    """
    if trellis:
        return "trellis"
    return "binary_low_rank" if bits == 1 else f"quantized_{name}"
