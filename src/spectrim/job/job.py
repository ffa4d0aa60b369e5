"""One run in progress: the model as it is now, the text, and where work files and results lie."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.files import key_of, locked
from spectrim.formats import FactoredLinear, formats, link
from spectrim.model import architectures, sources
from spectrim.model.architectures import Architecture, Place
from spectrim.model.experts import load_block, unpack_experts
from spectrim.model.fused import Fused, split_fused, whole_of
from spectrim.model.sites import Site, find, replace
from spectrim.model.sources import Source, Weights
from spectrim.plan import Decision, Plan, left_dense
from spectrim.progress import Progress
from spectrim.text.tokens import Splits, Tokens
from spectrim.walk.sweeps import collect
from spectrim.walk.walk import BlockWalk

REST = "rest.safetensors"  # beside the files of the blocks
BATCH = 1024  # tokens run at once: more take memory and save no time


@dataclass(frozen=True)
class Budget:
    """How much of a model may stay, such as 60% of "bytes"."""

    fraction: float
    """More than 0, at most 1: of the model as it came, whatever stages have made of it since."""
    of: str
    """"linear", the numbers of the linear maps inside the blocks; "linear bytes", the bytes that
    they take; "bytes", the whole model."""

    @property
    def in_bytes(self) -> bool:
        """Return whether sizes are bytes rather than numbers."""
        return self.of != "linear"


@dataclass
class Job:
    """What every stage works on and changes."""

    source: Source
    """The model's folder, that of the last stage that wrote a whole model anew."""
    model: PreTrainedModel
    """A skeleton: its blocks are empty, everything else is loaded."""
    architecture: Architecture
    weights: Weights
    """The tensors in the source's files."""
    sites: list[Site]
    splits: Splits
    text: str
    """What the calibration text is called."""
    cache: Path
    """Folder that is kept between runs."""
    work: Path
    """Folder of this run only."""
    budget: Budget
    progress: Progress
    whole: dict[str, int] = field(default_factory=dict)
    """What the model as it came has of each unit of a budget; empty where it is still that one."""
    original: Source | None = None
    """The model as it came, where a stage has written another one."""
    plan: Plan | None = None
    """How every site is stored now, or is to be cut by a plan that is replayed."""
    wanted: Plan | None = None
    """The plan with the bits and corrections that later stages are to give, where it is decided."""
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path what stands for embedding and head, where they are packed, as in config.json."""
    blocks: Path | None = None
    """Folder of the blocks as they are now, None where the source has them; beside them lies
    rest.safetensors, where a stage has changed what is outside the blocks."""
    reference: Callable[[Place], nn.Module] | None = None
    """The blocks before weights were rounded or set to zero, where that has been done."""
    orders: tuple[tuple[int, ...], ...] = ()
    """Each time that blocks were dropped or repeated: which ones, by their numbers before."""
    sparsified: bool = False
    """Whether weights were set to zero, which later stages keep."""
    healings: tuple[bool, ...] = ()
    """Of each stage that trained: whether what it made was better, and so was taken."""
    refined: bool = False
    """Whether refined blocks were better than those cut, and so were taken."""
    curves: dict[str, Any] = field(default_factory=dict)
    """What the report shows of the choice among cuts."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the stages tell the report; no stage reads it."""
    steps: int = 0
    """How many folders of blocks stages have begun."""
    seed: int = 0
    """Of what stages draw."""

    def walk(self, tokens: Tokens) -> BlockWalk:
        """Return a walk of these tokens through the dense model, ``BATCH`` or so at a time."""
        batch = max(1, BATCH // tokens.ids.shape[1])
        return BlockWalk(self.model, self.architecture, self.weights, tokens, batch)

    def adopt_model(self, folder: Path) -> None:
        """Go on with what a stage has made of the model: a whole model folder of its own.

        Later parts of a budget still are parts of the model as it came.
        """
        if not self.whole:
            self.original = self.source
            linear = sum(s.out_features * s.in_features for s in self.sites if s.block >= 0)
            self.whole = {"linear": linear, "bytes": self.weights.bytes()}
            self.whole["linear bytes"] = linear * self.weights.dtype().itemsize
        trusted = self.source.trust_remote_code
        self.source = Source(self.source.name, folder, sources.fingerprint(folder), trusted)
        self.model = sources.skeleton(self.source)
        self.architecture = architectures.architecture_of(self.model.config)
        self.weights = Weights(folder, self.model)
        self.sites = find(self.model)
        self.reference = None  # of blocks that may be others now
        self.__dict__.pop("statistics_key", None)
        load_rest(self.model, self.rest(), self.compute_dtype)

    def split_fused(self) -> None:
        """Take every fused map of q, k and v as three sites from now on."""
        split_fused(self.model)
        self.reference = None  # whose maps are not split
        self.sites = find(self.model)
        self.__dict__.pop("statistics_key", None)

    @cached_property
    def statistics_key(self) -> str:
        """Name of the statistics: model, text, tokens and seed, the latter three by their ids.

        Those of split maps have another: computed apart, they round otherwise.
        """
        split = ["split"] * any(isinstance(one, Fused) for one in self.model.modules())
        return key_of(
            "statistics", 4, self.source.fingerprint, self.splits.calibration.digest(), *split
        )

    def statistics(self) -> Path:
        """Return the folder of the calibration statistics, collected where they are missing."""
        folder = self.cache / "statistics" / self.statistics_key
        with locked(folder):
            if not (folder / "done.json").exists():
                collect(self.walk(self.splits.calibration), folder, self.sites, self.progress)
        return folder

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return what the walk computes in: fp16, which processors add up badly, becomes fp32."""
        stored = self.weights.dtype()
        return torch.float32 if stored == torch.float16 else stored

    def empty_format(self, decision: Decision) -> FactoredLinear:
        """Return the format that a decision asks for, on the meta device."""
        needed: dict[str, Any] = {
            "in_features": decision.in_features,
            "out_features": decision.out_features,
            "rank": decision.rank,
            "bias": decision.bias or self.biased(decision.site),
        }
        if decision.owner:
            needed["owner"] = decision.owner
        if decision.bits:
            needed |= {"bits": decision.bits, "group": decision.group}
            needed |= {"symmetric": decision.symmetric}
        if decision.trellis:
            needed["trellis"] = decision.trellis
        if decision.correction:
            needed["correction"] = decision.correction
        with torch.device("meta"):
            module: FactoredLinear = formats.get(decision.stored_as).from_shape(needed)
        return module

    def biased(self, site: str) -> bool:
        """Return whether a site has a bias, alone or as a part of a fused map."""
        return self.weights.has(f"{whole_of(self.model, site) or site}.bias")

    def each_block(self) -> list[Place]:
        """Return all blocks in the order in which the model runs them."""
        return [
            Place(stack, index)
            for stack in self.architecture.stacks
            for index in range(len(list(self.model.get_submodule(stack.path).children())))
        ]

    def block_sites(self, place: Place) -> list[Site]:
        """Return the sites of one block in forward order."""
        prefix = place.prefix
        return [site for site in self.sites if site.name.startswith(prefix)]

    def dense_block(self, place: Place) -> nn.Module:
        """Return a block as the checkpoint holds it, in the checkpoint's dtype."""
        name = place.name
        tensors = self.weights.read_prefix(name + ".")
        empty = self.model.get_submodule(name)
        return load_block(empty, tensors, self.weights.dtype(), self.architecture.experts)

    def stored_block(self, folder: Path, place: Place, dtype: torch.dtype) -> nn.Module:
        """Return a block as an earlier ``write_block`` left it, its factors in ``dtype``.

        Raises:
            AssertionError: there is no plan yet.
        """
        assert self.plan is not None
        name = place.name
        block = copy.deepcopy(self.model.get_submodule(name))
        factored = [
            self.plan[site.name]
            for site in self.block_sites(place)
            if self.plan[site.name].replaced
        ]
        if self.parts_experts(name, [decision.site for decision in factored]):
            unpack_experts(block, self.architecture.experts or "")
        for decision in factored:
            replace(block, decision.site.removeprefix(name + "."), self.empty_format(decision))
        link(block, {one.site: one.owner for one in factored if one.owner}, f"{name}.")
        tensors = load_file(self.block_file(folder, place))
        return load_block(
            block,
            {key.removeprefix(name + "."): tensor for key, tensor in tensors.items()},
            dtype,
            self.architecture.experts,
        )

    def parts_experts(self, block: str, factored: Iterable[str]) -> bool:
        """Return whether an expert of a block is factored, so that its experts are stored apart."""
        path = f"{block}.{self.architecture.experts}."
        return any(site.startswith(path) for site in factored)

    @staticmethod
    def block_file(folder: Path, place: Place) -> Path:
        """Return where a block's tensors lie in a folder of blocks."""
        return folder / f"{place.name}.safetensors"

    def rest(self) -> dict[str, Tensor]:
        """Return every tensor outside the blocks as it is now: embedding, norms, head."""
        if self.blocks is not None and (self.blocks / REST).exists():
            return load_file(self.blocks / REST)
        stacks = tuple(f"{stack.path}." for stack in self.architecture.stacks)
        return self.weights.read(
            name for name in self.weights.names() if not name.startswith(stacks)
        )


def load_rest(model: PreTrainedModel, rest: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Give a skeleton its tensors outside the blocks, floating ones in ``dtype``."""
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in rest.items()}
    model.load_state_dict(cast, strict=False, assign=True)
    model.tie_weights(recompute_mapping=False)  # what the checkpoint holds apart stays apart


def inner_sites(job: Job) -> list[Site]:
    """Return the sites inside the blocks."""
    return [site for site in job.sites if site.block >= 0]


def end_sites(job: Job) -> list[Site]:
    """Return embedding and head, or the one table that serves as both."""
    return [site for site in job.sites if site.block < 0]


def dense_plan(job: Job) -> Plan:
    """Return the plan that leaves every site as it is."""
    about = {"model": job.source.name, "fingerprint": job.source.fingerprint}
    return Plan(tuple(left_dense(site) for site in inner_sites(job)), 0.0, about)
