"""What is stored where: every site of a model beside its dense shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights

from spectrim.formats import formats
from spectrim.model import sites, sources
from spectrim.model.fused import split_fused
from spectrim.model.sites import Site
from spectrim.model.weights import auto_class
from spectrim.plan import Decision, Plan


def inspect(name: str, cache: Path | None = None) -> dict[str, Any]:
    """Return what a model stores at every site, beside the dense shapes."""
    source = sources.resolve(name, cache or sources.default_cache())
    config = sources.config(source)
    quantisation = getattr(config, "quantization_config", None)
    factored = dict(quantisation)["sites"] if quantisation else {}
    if quantisation:
        del config.quantization_config
    with init_empty_weights(include_buffers=False):
        empty = auto_class(config).from_config(config)
    empty.tie_weights()
    split_fused(empty, factored)
    entries = [_entry(site, factored.get(site.name)) for site in sites.find(empty)]
    if not quantisation:
        planned = _planned(source.folder)
        entries = [_as_planned(entry, planned) for entry in entries]
    return {"model": name, "sites": entries}


def _entry(site: Site, about: dict[str, Any] | None) -> dict[str, Any]:
    """Return what one site stores; about: its entry in the checkpoint, None if dense."""
    dense = site.out_features * site.in_features
    return {
        "site": site.name,
        "block": site.block,
        "role": site.role,
        "out_features": site.out_features,
        "in_features": site.in_features,
        "format": about["format"] if about else "dense",
        "rank": about["rank"] if about else min(site.out_features, site.in_features),
        "bits": about.get("bits", 0) if about else 0,
        "trellis": about.get("trellis", 0) if about else 0,
        "stored": _stored(about) if about else dense,
        "dense": dense,
    }


def _stored(about: dict[str, Any]) -> int:
    outer, inner = about["out_features"], about["in_features"]
    numbers: int = formats.get(about["format"]).numbers(outer, inner, about["rank"])
    correction: int = about.get("correction", 0) * (outer + inner)
    return numbers + correction


def _planned(folder: Path) -> dict[str, Decision]:
    """Return what a plan beside a stock model says, such as one of narrower MLPs, by site."""
    path = folder / "plan.json"
    return {one.site: one for one in Plan.read(path).decisions} if path.is_file() else {}


def _as_planned(found: dict[str, Any], planned: dict[str, Decision]) -> dict[str, Any]:
    """Return an entry with the shape that the map had, where it is stored smaller but plainly."""
    one = planned.get(found["site"])
    if one is None or one.format == "dense":
        return found
    shape = {"out_features": one.out_features, "in_features": one.in_features}
    return found | shape | {"format": one.format, "rank": one.rank, "dense": one.dense}
