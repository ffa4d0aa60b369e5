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

from spectrim.methods import Decomposition, tail_losses, two_factors
from spectrim.walk.moments import Damping, cholesky, damped
from spectrim.walk.statistics import Statistics


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
    seen = statistics.loss_inputs
    if seen is None or statistics.gradient_moment is None:
        raise ValueError("loss_aware_svd needs the input moment and the gradient moment")
    damping = damping or Damping()
    inputs = damped(seen, damping.input)
    gradients = damped(statistics.gradient_moment, damping.gradient)
    found = replace(two_sided_svd(weight, inputs, [gradients]), in_nats=True)
    if not seen.any() or not statistics.gradient_moment.any():
        return replace(found, losses=torch.zeros_like(found.losses))  # nothing reaches the loss
    return found


def two_sided_svd(
    weight: Float[Tensor, "out in"],
    inputs: Float[Tensor, "in in"],
    gradients: list[Float[Tensor, "_ _"]] | None,
) -> Decomposition:
    """Return the SVD of Lᵀ W S with both roots undone, for moments A = S Sᵀ and G = L Lᵀ.

    Only the root of the smaller side is ever taken. With S: Ŵ = (W S V_r)(V_rᵀ S^-1), V from the
    eigenvectors of Sᵀ Wᵀ G W S. With L: Ŵ = (L^-T U_r)(U_rᵀ Lᵀ W), U from those of Lᵀ W A Wᵀ L.
    In float64, so the components behind the rounding (1e-8 of the largest) carry no loss.
    gradients: the blocks on the diagonal of G, one where W is one map; None for the identity.
    """
    weight = weight.double()
    parts = [len(weight)] if gradients is None else [len(block) for block in gradients]
    if weight.shape[0] >= weight.shape[1]:
        root = cholesky(inputs)
        half = weight @ root  # [out, in]
        blocks = [None] if gradients is None else gradients
        weighted = [
            rows if block is None else block @ rows
            for block, rows in zip(blocks, half.split(parts), strict=True)
        ]
        values, vectors = _descending(half.T @ torch.cat(weighted))
        right = torch.linalg.solve_triangular(root, vectors.T, upper=False, left=False)
        return two_factors(half @ vectors, right, values, tail_losses(values, 0.5))
    roots = None if gradients is None else [cholesky(block) for block in gradients]
    half = weight
    if roots is not None:
        rows = weight.split(parts)
        half = torch.cat([root.T @ row for root, row in zip(roots, rows, strict=True)])
    values, vectors = _descending(half @ inputs @ half.T)
    left = vectors
    if roots is not None:
        rows = vectors.split(parts)
        left = torch.cat(
            [
                torch.linalg.solve_triangular(root.T, row, upper=True)
                for root, row in zip(roots, rows, strict=True)
            ]
        )
    return two_factors(left, vectors.T @ half, values, tail_losses(values, 0.5))


def principal_outputs(
    weight: Float[Tensor, "out in"], inputs: Float[Tensor, "in in"]
) -> Decomposition:
    """Return Ŵ = V_r (V_rᵀ W), V the eigenvectors of W A Wᵀ: the outputs' principal components.

    Taken from the smaller of W A Wᵀ and Sᵀ Wᵀ W S, A = S Sᵀ.
    """
    weight = weight.double()
    if weight.shape[0] > weight.shape[1]:
        half = weight @ cholesky(inputs)
        values, vectors = _descending(half.T @ half)
        vectors = torch.linalg.qr(
            half @ vectors
        ).Q  # its columns are orthogonal but not of length 1
    else:
        values, vectors = _descending(weight @ inputs @ weight.T)
    return two_factors(vectors, vectors.T @ weight, values, tail_losses(values, 0.5))


def _descending(
    gram: Float[Tensor, "dim dim"],
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
    """Return singular values and vectors, largest first, from a Gram matrix."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    return eigenvalues.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
