"""What delivers the inputs of which maps, and factors on both sides that cancel each other.

Which norm feeds which maps is seen by running a block, and whether factors do cancel is tried with
powers of two, which floating-point numbers take without rounding: so no family needs a table, and
where anything else reads the same inputs, or an activation lies between, nothing is changed. What
is made then is run once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spectrim.model.architectures import Place
from spectrim.model.sites import Site
from spectrim.walk.crossed import catching

PAIRS = {"up": "down", "v": "o"}  # roles of maps of which the second reads the first's outputs
LEAST = 1e-3  # of the mean size: what a column of zeros counts as
SAME = 1e-2  # of what a block adds to its inputs: how far bf16 may round otherwise
TINY = 1e-20  # of a norm: what nothing at all counts as
SEED = 7  # of the factors that are tried
Run = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Link:
    """What gives some maps their inputs, all by their paths inside a block.

    before: a norm, or a map. readers: all maps that read it. shape: of the outputs of ``before``,
    (key heads, dimensions of a head), where each head has ``times`` readers side by side. unit:
    what a norm adds to the gains that it stores. columns: of readers, whether they are stored first
    (Conv1D).
    """

    before: str
    readers: tuple[str, ...]
    norm: bool
    columns_first: bool
    shape: tuple[int, int] = (1, -1)
    times: int = 1
    unit: float = 0.0

    def spread(self, factors: Float[Tensor, " outputs"]) -> Float[Tensor, " inputs"]:
        """Return the factor of every input of the readers."""
        heads = factors.view(self.shape)
        return heads[:, None].expand(-1, self.times, -1).reshape(-1)

    def gathered(self, inputs: Float[Tensor, " inputs"]) -> Float[Tensor, " outputs"]:
        """Return for every output of ``before`` the mean over the inputs that it becomes."""
        return inputs.view(self.shape[0], self.times, -1).mean(1).flatten()


def links_of(
    block: nn.Module, run: Run, sites: list[Site], place: Place
) -> tuple[Tensor, list[Link]]:
    """Return what a block computes, and what gives its maps their inputs.

    run: runs the block on some tokens.
    """
    maps = {site.name.removeprefix(place.prefix): site for site in sites}
    known = dict(block.named_modules())
    given: dict[str, Tensor] = {}
    norms = [name for name, part in known.items() if name not in maps and _has_gains(part)]
    handles = [known[name].register_forward_hook(_keeping(given, name)) for name in norms]
    try:
        with catching(block, [name for name in maps if name in known]) as read, torch.no_grad():
            behind = run(block)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for norm, out in given.items():
        readers = tuple(name for name, x in read.items() if x is out)
        if readers:
            found.append(Link(norm, readers, True, isinstance(known[readers[0]], Conv1D)))
    return behind, found + _between_maps(maps, known)


def _has_gains(module: nn.Module) -> bool:
    gains = getattr(module, "weight", None)
    return isinstance(gains, Tensor) and gains.dim() == 1


def _keeping(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        kept[name] = out

    return hook


def _between_maps(maps: dict[str, Site], known: dict[str, nn.Module]) -> list[Link]:
    """Return the links from v to o, by heads, and from up to down."""
    by_role = {site.role: name for name, site in maps.items() if name in known}
    found = []
    for role, name in by_role.items():
        first = next((one for one in PAIRS if role == one or role.endswith(f"_{one}")), None)
        if first is None or (last := by_role.get(role[: -len(first)] + PAIRS[first])) is None:
            continue
        outputs, inputs = maps[name].out_features, maps[last].in_features
        if inputs % outputs:
            continue
        width = maps[last].head_dim or outputs
        link = Link(name, (last,), False, isinstance(known[last], Conv1D))
        found.append(replace(link, shape=(outputs // width, width), times=inputs // outputs))
    return found


def missed(hidden: Tensor, before: Tensor, after: Tensor) -> float:
    """Return by which part of what a block adds to its inputs it now adds something else.

    The larger one of all tokens together and of the median token, as one of huge states hides all
    others in the sum. Infinite where it is no number.
    """
    added, lost = ((one.float()).flatten(0, -2) for one in (before - hidden, after - before))
    parts = lost.norm(dim=1) / added.norm(dim=1).clamp_min(TINY)
    found = max(float(parts.median()), float(lost.norm() / added.norm().clamp_min(TINY)))
    return found if isfinite(found) else inf


def evened(
    tensors: dict[str, Tensor], link: Link, miss: Callable[[dict[str, Tensor]], float]
) -> dict[str, Tensor]:
    """Return the tensors of a block with columns of one size behind a link, where that is exact.

    miss: how far a block of these tensors is from what it computed, as ``missed`` says it.
    """
    needed = [f"{name}.weight" for name in (link.before, *link.readers)]
    if any(name not in tensors for name in needed):  # a part of a packed tensor
        return tensors
    sizes = link.gathered(_column_sizes(tensors, link))
    if not bool(sizes.isfinite().all()) or not bool((sizes > 0).all()):  # a map of zeros
        return tensors
    drawn = torch.randint(0, 2, sizes.shape, generator=torch.Generator().manual_seed(SEED))
    tried = 2.0 ** drawn.to(sizes.dtype)
    units = [replace(link, unit=unit) for unit in ((0.0, 1.0) if link.norm else (0.0,))]
    misses = [miss(scaled(tensors, one, tried)) for one in units]
    if min(misses) > SAME:
        return tensors
    best = units[misses.index(min(misses))]
    made = scaled(tensors, best, sizes / sizes.log().mean().exp())
    return made if miss(made) <= SAME else tensors


def scaled(
    tensors: dict[str, Tensor], link: Link, factors: Float[Tensor, " outputs"]
) -> dict[str, Tensor]:
    """Return tensors with every output of a link multiplied by its factor, its columns divided."""
    changed = dict(tensors)
    weight = f"{link.before}.weight"
    gains = tensors[weight].double()
    by_row = factors.double() if link.norm else factors.double()[:, None]
    if not link.norm and link.columns_first:
        by_row = by_row.T
    changed[weight] = ((gains + link.unit) * by_row - link.unit).to(tensors[weight].dtype)
    bias = f"{link.before}.bias"
    if bias in tensors:
        changed[bias] = (tensors[bias].double() * factors.double()).to(tensors[bias].dtype)
    by_column = link.spread(factors.double())
    for name in (f"{reader}.weight" for reader in link.readers):
        matrix = tensors[name].double()
        divided = matrix / (by_column[:, None] if link.columns_first else by_column)
        changed[name] = divided.to(tensors[name].dtype)
    return changed


def _column_sizes(tensors: dict[str, Tensor], link: Link) -> Float[Tensor, " inputs"]:
    """Return the root mean square of every column over all rows, each row brought to one size."""
    total = torch.zeros(())
    for reader in link.readers:
        matrix = tensors[f"{reader}.weight"].float()
        matrix = matrix.T if link.columns_first else matrix
        rows = matrix / matrix.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        total = total + rows.square().sum(0)
    sizes = total.sqrt()
    return sizes.clamp_min(LEAST * float(sizes.mean()))
