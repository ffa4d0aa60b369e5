"""Two-sided whitening: the cut that costs the model's loss least, in nats per token.

K-FAC (Martens and Grosse, 2015) estimates the damage of W -> Ŵ by ½ ‖G^½ (W - Ŵ) A^½‖²; with
A = S Sᵀ and G = L Lᵀ its minimiser of rank r is L^-T [Lᵀ W S]_r S^-1. Published as KFAC-SVD
(ICML 2026) and IO-SVD (2605.15626).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.methods import Damping, Decomposition, damped_root, tail_losses
from spectrim.statistics import Statistics


def loss_aware_svd(
    weight: Float[Tensor, "out in"],
    statistics: Statistics,
    *,
    damping: Damping | None = None,
) -> Decomposition:
    """Return the decomposition whose cuts minimise ½ ‖G^½ (W - Ŵ) A^½‖².

    Raises:
        ValueError: the statistics hold no input moment or no gradient moment.
    """
    if statistics.input_moment is None or statistics.gradient_moment is None:
        raise ValueError("loss_aware_svd needs the input moment and the gradient moment")
    damping = damping or Damping()
    decomposition = two_sided_svd(
        weight,
        damped_root(statistics.input_moment, damping.input),
        damped_root(statistics.gradient_moment, damping.gradient),
    )
    return replace(decomposition, in_nats=True)


def two_sided_svd(
    weight: Float[Tensor, "out in"],
    input_root: Float[Tensor, "in in"],
    gradient_root: Float[Tensor, "out out"],
) -> Decomposition:
    """Return the SVD of Lᵀ W S with both roots undone, for lower roots S [in, in] and L [out, out].

    The eigenvectors of the smaller Gram matrix, in float64, replace an SVD: the components behind
    its rounding (1e-8 of the largest) carry no loss.
    """
    middle = gradient_root.T @ weight.double() @ input_root  # [out, in]
    tall = middle.shape[0] >= middle.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(middle.T @ middle if tall else middle @ middle.T)
    values = eigenvalues.flip(0).clamp_min(0).sqrt()
    vectors = vectors.flip(1)
    if tall:
        left = torch.linalg.solve_triangular(gradient_root.T, middle @ vectors, upper=True)
        right = torch.linalg.solve_triangular(input_root, vectors.T, upper=False, left=False)
    else:
        left = torch.linalg.solve_triangular(gradient_root.T, vectors, upper=True)
        right = vectors.T @ gradient_root.T @ weight.double()
    return Decomposition(left.float(), right.float(), values.float(), tail_losses(values, 0.5))
