"""What is stored where: every site of a model beside its dense shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights

from spectrim import sites, sources
from spectrim.formats import formats
from spectrim.fused import split_fused
from spectrim.weights import auto_class


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
    found = []
    for site in sites.find(empty):
        about = factored.get(site.name)
        numbers = site.out_features * site.in_features
        form = formats.get(about["format"]) if about else None
        rank = about["rank"] if about else min(site.out_features, site.in_features)
        found.append(
            {
                "site": site.name,
                "block": site.block,
                "role": site.role,
                "out_features": site.out_features,
                "in_features": site.in_features,
                "format": about["format"] if about else "dense",
                "rank": rank,
                "stored": form.numbers(site.out_features, site.in_features, rank)
                if form
                else numbers,
                "dense": numbers,
            }
        )
    return {"model": name, "sites": found}
