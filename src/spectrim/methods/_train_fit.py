"""A gauge in which a tensor train is nearly whitened, and a sweep that fits its cores there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from spectrim.formats._contraction import Modes
from spectrim.formats._trains import Cores, interleaved, multiplied, padded
from spectrim.methods._train_cuts import Metric
from spectrim.walk.moments import cholesky, damped

DAMPING = 1e-2  # of each factor's mean diagonal; it decides the gauge and nothing else
STEPS = 3  # of conjugate gradients on a core; each costs one product G Δ A


@dataclass(frozen=True)
class Gauge:
    """Kronecker products ⊗ L_k and ⊗ S_k near the roots of G and A, and the moments between them.

    With A ≈ ⊗ S_k S_kᵀ a train whose cores are multiplied by L_kᵀ and S_k is whitened, and still a
    train. ``inputs`` = (⊗ S_k)⁻¹ A (⊗ S_k)⁻ᵀ and ``gradients``, float32, are the moments there:
    the identity where the products are right.
    """

    pairs: Modes
    gradient_roots: list[Tensor]
    input_roots: list[Tensor]
    gradients: Float[Tensor, "padout padout"]
    inputs: Float[Tensor, "padin padin"]

    @classmethod
    def of(cls, metric: Metric, pairs: Modes) -> Gauge:
        """Return the gauge of a metric: every factor is the moment with the others traced out."""
        outs, ins = (tuple(sizes) for sizes in zip(*pairs, strict=True))
        gradient_roots, gradients = _whitening(metric.gradient_root, outs)
        input_roots, inputs = _whitening(metric.input_root, ins)
        return cls(pairs, gradient_roots, input_roots, gradients, inputs)

    def whitened(self, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "padout padin"]:
        """Return (⊗ L_k)ᵀ W (⊗ S_k) in float64."""
        left = _along([root.T for root in self.gradient_roots], padded(matrix.double(), self.pairs))
        return _along([root.T for root in self.input_roots], left.T).T

    def undone(self, cores: Cores) -> Cores:
        """Return the cores of Ŵ from those of (⊗ L_k)ᵀ Ŵ (⊗ S_k), in float64."""
        made = []
        for core, root, other in zip(cores, self.gradient_roots, self.input_roots, strict=True):
            left = torch.linalg.inv(root.T)
            right = torch.linalg.inv(other)
            made.append(torch.einsum("po,aoib,ij->apjb", left, core.double(), right))
        return made

    def weighed(self, error: Float[Tensor, "padout padin"]) -> Float[Tensor, "padout padin"]:
        """Return G Δ A, the gradient of ½ tr(Δᵀ G Δ A)."""
        return self.gradients @ error @ self.inputs


def fitted(cores: Cores, gauge: Gauge, whole: Float[Tensor, "padout padin"]) -> Cores:
    """Return the train after a sweep of alternating least squares from these cores, in float32.

    cores: in the gauge, in which ``whole`` is what the train is to be near. The core that is
    fitted is the only one that is not orthogonal, so that its normal equations are near the
    identity. Moving on (QR) leaves the train as it is, and so the gradient of the damage with
    respect to it, which therefore is carried along.
    """
    made = list(cores)
    gradient = gauge.weighed(whole - multiplied(made, (whole.shape[0], whole.shape[1])))
    for at in _visits(made):
        _centre(made, at)
        made[at], gradient = _stepped(made, at, gradient, gauge)
    return made


def _visits(cores: Cores) -> list[int]:
    """Return the cores that are fitted, in order.

    A core as long as it is wide only turns its neighbour and is left out; one of all of them stays.
    """
    sizes = [(core.shape[0], core.shape[1] * core.shape[2], core.shape[3]) for core in cores]
    free = [
        at
        for at, (before, pair, behind) in enumerate(sizes)
        if before * pair > behind and pair * behind > before
    ]
    return free or [len(cores) // 2]


def _centre(cores: Cores, centre: int) -> None:
    """Make all cores but one orthogonal, those before it from the left and the others from behind.

    The train stays as it is.
    """
    for at in range(centre):
        basis, triangle = torch.linalg.qr(cores[at].flatten(0, 2))
        cores[at] = basis.reshape(*cores[at].shape[:3], -1)
        cores[at + 1] = torch.tensordot(triangle, cores[at + 1], dims=1)
    for at in range(len(cores) - 1, centre, -1):
        basis, triangle = torch.linalg.qr(cores[at].flatten(1).T)
        cores[at] = basis.T.reshape(-1, *cores[at].shape[1:])
        cores[at - 1] = cores[at - 1] @ triangle.T


def _stepped(
    cores: Cores, at: int, gradient: Float[Tensor, "padout padin"], gauge: Gauge
) -> tuple[Float[Tensor, "before o i behind"], Float[Tensor, "padout padin"]]:
    """Return one core after some steps of conjugate gradients, and the gradient G Δ A behind them.

    Only the step is taken from the normal equations Fᵀ G (F p) A = Fᵀ G Δ A, F p the train with p
    for the core; so each lowers the damage, however few there are.
    """
    shape = (gradient.shape[0], gradient.shape[1])
    left, right = _environment(cores, at)
    core = cores[at]
    residual = _seen(gradient, left, right, at, gauge.pairs)
    direction, squared = residual, residual.square().sum()
    for _ in range(STEPS):
        moved = multiplied([*cores[:at], direction, *cores[at + 1 :]], shape)
        bent = gauge.weighed(moved)
        curvature = (bent * moved).sum()
        if not curvature > 0:  # nothing is left to gain
            break
        length = squared / curvature
        core = core + length * direction
        gradient = gradient - length * bent
        residual = _seen(gradient, left, right, at, gauge.pairs)
        before, squared = squared, residual.square().sum()
        direction = residual + (squared / before) * direction
    return core, gradient


def _environment(cores: Cores, at: int) -> tuple[Tensor, Tensor]:
    """Return what stands before a core […, bond] and behind it [bond, …], multiplied out."""
    left, right = torch.ones(1, 1), torch.ones(1, 1)
    for core in cores[:at]:
        left = torch.tensordot(left, core, dims=1).flatten(0, -2)
    for core in reversed(cores[at + 1 :]):
        right = torch.tensordot(core, right, dims=1).flatten(1)
    return left, right


def _seen(matrix: Tensor, left: Tensor, right: Tensor, at: int, pairs: Modes) -> Tensor:
    """Return Fᵀ of a matrix: what a core sees of it between its environments."""
    tensor = interleaved(matrix, pairs).reshape(len(left), -1, right.shape[1])
    inner: Tensor = torch.tensordot(left.T, tensor @ right.T, dims=1)  # [bond, o i, bond]
    return inner.reshape(left.shape[1], *pairs[at], right.shape[0])


def _whitening(
    root: Float[Tensor, "dim dim"], sizes: tuple[int, ...]
) -> tuple[list[Tensor], Float[Tensor, "padded padded"]]:
    """Return the roots R_k of a moment's factors, and (⊗ R_k)⁻¹ M (⊗ R_k)⁻ᵀ, zero where padded."""
    wide = functional.pad(root.double(), (0, 0, 0, math.prod(sizes) - len(root)))
    tensor = wide.reshape(*sizes, -1)
    roots = []
    for at in range(len(sizes)):
        rows = tensor.movedim(at, 0).flatten(1)
        factor = rows @ rows.T  # the moment with the other factors traced out
        roots.append(cholesky(damped(factor / factor.diagonal().mean(), DAMPING)))
    inverses = [torch.linalg.inv(one) for one in roots]
    narrow = _along(inverses, wide).float()
    return roots, narrow @ narrow.T


def _along(factors: list[Tensor], matrix: Float[Tensor, "dim other"]) -> Tensor:
    """Return (⊗ factors) @ matrix."""
    tensor = matrix.reshape(*(len(one) for one in factors), -1)
    for at, one in enumerate(factors):
        tensor = torch.tensordot(one, tensor, dims=([1], [at])).movedim(0, at)
    return tensor.reshape(matrix.shape)
