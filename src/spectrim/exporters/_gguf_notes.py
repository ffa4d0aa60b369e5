"""What a user should know of a GGUF file that was written: what it keeps, rounds and fills up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from spectrim.exporters._dense_tensors import DenseTensors
from spectrim.exporters._gguf_blocks import Codes, codes_of, moved
from spectrim.exporters._gguf_layout import Layout
from spectrim.exporters._gguf_types import Stored, keeps_codes
from spectrim.exporters._words import filled_up
from spectrim.formats import FactoredLinear
from spectrim.formats.trellis import Trellis

Kinds = Sequence[GGMLQuantizationType]


def notes(held: DenseTensors, layout: Layout, tensors: list[Stored], kinds: Kinds) -> list[str]:
    """Return a line on each thing that the file has otherwise than the folder."""
    return [
        *_narrower(held, layout, kinds),
        *_written_out(held),
        *_kept(tensors, kinds),
        *_rounded(tensors, kinds),
        *_paths(held),
        *_window(held),
        *_head(held, layout, tensors),
    ]


def file_type(tensors: list[Stored], kinds: Kinds) -> LlamaFileType:
    """Return what the whole file is called after: the type that most of its numbers have."""
    sizes: Counter[str] = Counter()
    for one, kind in zip(tensors, kinds, strict=True):
        count = 1
        for dim in one.shape:
            count *= dim
        sizes[kind.name] += count
    name = sizes.most_common(1)[0][0]
    known = LlamaFileType.__members__
    return known.get(f"MOSTLY_{name}") or known.get(f"ALL_{name}", LlamaFileType.GUESSED)


def _narrower(held: DenseTensors, layout: Layout, kinds: Kinds) -> list[str]:
    if len(set(layout.widths)) > 1 or not layout.widths:
        return []
    wide, hidden = layout.widths[0], held.stock.config.hidden_size
    maps = sum(role in ("gate", "up", "down") for role in set(held.architecture.roles.values()))
    block, size = GGML_QUANT_SIZES[Counter(kinds).most_common(1)[0][0]]
    more = sum(wide - width for width in held.widths.values())
    return filled_up(held.widths, wide, more * hidden * maps * size // block)


def _written_out(held: DenseTensors) -> list[str]:
    found = sum(
        isinstance(one, FactoredLinear) and one.stored() < one.in_features * one.out_features
        and one.rank < min(one.in_features, one.out_features)
        for one in held.model.modules()
    )  # fmt: skip
    return [f"{found} maps of fewer numbers were written out as whole matrices"] if found else []


def _kept(tensors: list[Stored], kinds: Kinds) -> list[str]:
    kept = [(one, kind) for one, kind in zip(tensors, kinds, strict=True) if keeps_codes(one, kind)]
    if not kept:
        return []
    worst = max(moved(_codes(one), kind) for one, kind in kept)
    names = ", ".join(sorted({kind.name for _, kind in kept}))
    return [
        f"{len(kept)} tensors keep their codes ({names}); their scales as float16 move a weight by "
        f"at most {worst:.1e} of the largest"
    ]


def _codes(one: Stored) -> Codes:
    return codes_of(one.packed, one.order, (one.shape[0], one.shape[1]))


def _rounded(tensors: list[Stored], kinds: Kinds) -> list[str]:
    pairs = list(zip(tensors, kinds, strict=True))
    again = [kind for one, kind in pairs
             if (one.packed or one.rounded) and not keeps_codes(one, kind)]  # fmt: skip
    if not again:
        return []
    names = ", ".join(sorted({kind.name for kind in again}))
    return [f"{len(again)} tensors of few bits have no type of the same grid and became {names}"]


def _paths(held: DenseTensors) -> list[str]:
    found = sum(isinstance(one, Trellis) for one in held.model.modules())
    if not found:
        return []
    return [
        f"{found} maps are paths through a trellis, which llama.cpp does not read; Q8_0 loses next "
        "to nothing of them but takes 8.5 bits a number, so that 'spectrim shrink --for llama.cpp' "
        "makes a smaller file of the dense model"
    ]


def _window(held: DenseTensors) -> list[str]:
    config = held.stock.config
    window = getattr(config, "sliding_window", None)
    told = config.model_type.startswith("gemma")
    if told or not window or window >= config.max_position_embeddings:
        return []
    return [f"llama.cpp reads all tokens before a token, the model the last {window}"]


def _head(held: DenseTensors, layout: Layout, tensors: list[Stored]) -> list[str]:
    if not held.tied() or "output.weight" not in {one.name for one in tensors}:
        return []
    arch = layout.arch.name.lower()
    return [f"the embedding is written twice, as llama.cpp's {arch} has a head of its own"]
