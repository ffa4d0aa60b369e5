"""A model's tensors as transformers' own class has them: every map one matrix, whatever we store.

Factors and packed codes are multiplied out in the dtype that they are stored in, blocks that share
their parameters have each their own, and MLPs keep the width that they have: `padded` brings them
to another one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear, TwoFactors
from spectrim.formats.autoencoder import Autoencoder
from spectrim.formats.binary_low_rank import BinaryLowRank
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.formats.packed.quantized import Quantized
from spectrim.formats.picked_inputs import PickedInputs
from spectrim.formats.quantized_dense import QuantizedDense
from spectrim.formats.quantized_fewer_inputs import QuantizedFewerInputs
from spectrim.formats.quantized_low_rank import QuantizedLowRank
from spectrim.formats.trellis import Trellis
from spectrim.model import sites, sources
from spectrim.model.architectures import Place, architecture_of
from spectrim.model.experts import Experts
from spectrim.model.fused import PARTS, Fused
from spectrim.model.sources import Source
from spectrim.model.weights import auto_class

BIASES = ("attention_bias", "mlp_bias")  # entries of a config by which a family's maps have biases


class DenseTensors:
    """The tensors of a model folder, ours or an ordinary one, under the stock class's names.

    Attributes:
        model: the model as the folder holds it.
        settings: config.json as it is for the stock class, MLPs as wide as the widest.
        stock: the stock model of these settings, on the meta device.
        widths: how many neurons the MLP of each block has, by the path of the block.

    Raises:
        SpectrimError: a map stands for no matrix, or has a bias that the stock class has no place
            for.
    """

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = sources.model(Source(str(folder), folder, ""))
        self.architecture = architecture_of(self.model.config)
        self.settings: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        self.settings.pop("quantization_config", None)
        self._refuse()
        self.widths = self._widths()
        for stack in self.architecture.stacks:
            inside = [width for name, width in self.widths.items() if name.startswith(stack.path)]
            if inside:
                self.settings[stack.width] = max(inside)
        self.settings["tie_word_embeddings"] = self.tied()
        self.stock = self._stock()
        self._place_biases()

    def tied(self) -> bool:
        """Return whether the head reads the table of the embedding."""
        head = self.model.get_submodule(self.architecture.head)
        embed = self.model.get_submodule(self.architecture.embed)
        return head.weight is embed.weight

    def names(self) -> list[str]:
        """Return the names of all tensors in the stock model's order, of tied ones the first."""
        return [
            name for name in self.stock.state_dict() if name not in self.stock.all_tied_weights_keys
        ]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that the stock class gives a tensor."""
        return tuple(self.stock.state_dict()[name].shape)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor, of MLPs as wide as this block's is. A bias that a map lacks is zeros.

        dtype: of products of factors and of what was packed; None for the one they are stored in.
        """
        dtype = dtype or self.model.dtype
        path, _, kind = name.rpartition(".")
        module = self.model.get_submodule(path)
        if isinstance(module, Experts):
            part = kind.removesuffix("_proj")
            return torch.stack([matrix(getattr(one, part)) for one in module]).to(dtype)
        if kind == "weight" and isinstance(module, FactoredLinear | Fused):
            found = matrix(module).to(dtype)
            turned = isinstance(self.stock.get_submodule(path), Conv1D)
            return found.T.contiguous() if turned else found
        if isinstance(module, Fused):
            return torch.cat([_bias(part) for part in _ordered(module)])[_places(module)]
        held: Tensor | None = getattr(module, kind)
        if held is None:
            return torch.zeros(self.shape(name), dtype=self.model.dtype)
        return held.detach()

    def packed(self, path: str) -> list[PackedMatrix]:
        """Return the packed matrices that lie below each other in a map; none where it is another.

        Those of a fused map are q, k and v, whose rows lie so only in the files of other programs.
        """
        module = self.model.get_submodule(path)
        parts = _ordered(module) if isinstance(module, Fused) else [module]
        found = [one for part in parts if (one := _packed(part)) is not None]
        alike = len(found) == len(parts) and len({one.grid for one in found}) == 1
        return found if alike else []

    def bytes(self) -> int:
        """Return the bytes of the model as the folder holds it, what is shared counted once."""
        held = {t.data_ptr(): t.nbytes for t in self.model.state_dict().values()}
        return sum(held.values())

    def _refuse(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, Autoencoder):
                raise SpectrimError(
                    f"{name} is an autoencoder, which stands for no matrix that could be written "
                    "out; export a model that was made by another method"
                )

    def _widths(self) -> dict[str, int]:
        found = {}
        for stack in self.architecture.stacks:
            for index, _ in enumerate(self.model.get_submodule(stack.path).children()):
                place = Place(stack, index)
                downs = [path for path, role in self.architecture.roles.items() if role == "down"]
                for path in downs:
                    module = dict(self.model.named_modules()).get(place.prefix + path)
                    if module is not None:
                        found[place.name] = _inputs(module)
        return found

    def _stock(self) -> PreTrainedModel:
        config = AutoConfig.for_model(**self.settings)
        with init_empty_weights(include_buffers=False):
            made: PreTrainedModel = auto_class(config).from_config(config, dtype=self.model.dtype)
        made.tie_weights()
        made.eval()
        return made

    def _place_biases(self) -> None:
        """Have the stock class give its maps biases where ours have some, as centred ones do."""
        if self._unplaced() and any(entry in self.settings for entry in BIASES):
            self.settings |= {entry: True for entry in BIASES if entry in self.settings}
            self.stock = self._stock()
        if lost := self._unplaced():
            raise SpectrimError(
                f"{lost[0]} has a bias, and model type '{self.settings['model_type']}' has no "
                "place for it; shrink without 'centre'"
            )

    def _unplaced(self) -> list[str]:
        known = self.stock.state_dict()
        modules = self.model.named_modules()
        held = [path for path, one in modules if isinstance(one, FactoredLinear) and _biased(one)]
        return [path for path in held if f"{path}.bias" not in known and not self._parted(path)]

    def _parted(self, path: str) -> bool:
        """Return whether a map is a part of a fused one that has a bias."""
        whole = path.rpartition(".")[0]
        fused = isinstance(self.model.get_submodule(whole), Fused)
        return fused and f"{whole}.bias" in self.stock.state_dict()


@torch.no_grad()
def matrix(module: Any) -> Tensor:
    """Return the matrix [out, in] of a map, factored, fused or dense.

    Products of factors, and of codes with two scales, are float32; what is stored as it is has its
    own dtype.
    """
    if isinstance(module, TwoFactors):
        return module.left().float() @ module.right().float()
    if isinstance(module, QuantizedLowRank):
        return module.second.dense().float() @ module.first.dense().float()
    if isinstance(module, BinaryLowRank):
        return module.product()
    if isinstance(module, Trellis):
        return module.matrix.whole().detach()
    if isinstance(module, FactoredLinear):
        return module.dense().detach()
    if isinstance(module, Fused):
        return torch.cat([matrix(part) for part in _ordered(module)])[_places(module)]
    return sites.weight(module).detach()


def padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor filled up with zeros behind its last rows and columns."""
    more = [wanted - there for there, wanted in zip(tensor.shape, shape, strict=True)]
    if not any(more):
        return tensor
    return functional.pad(tensor, [n for one in reversed(more) for n in (0, one)])


def _ordered(module: Fused) -> list[Any]:
    return [module.get_submodule(name) for name in PARTS]


def _places(module: Fused) -> Tensor:
    """Return where each row of a fused map lies among those of q, k and v."""
    rows = [sites.shape(part)[0] for part in _ordered(module)]
    return module.layout.joined(torch.arange(sum(rows)).split(rows))


def _bias(module: Any) -> Tensor:
    found = sites.bias(module)
    if found is None:
        return torch.zeros(sites.shape(module)[0], dtype=module.weight.dtype)
    return found.detach()


def _biased(module: FactoredLinear) -> bool:
    return module.bias is not None


def _packed(module: nn.Module) -> PackedMatrix | None:
    """Return the only matrix of a map that is packed and nothing else."""
    if not isinstance(module, Quantized):
        return None
    if isinstance(module, QuantizedDense) and module.correction:
        return None
    names = list(module.matrices(module.out_features, module.in_features, module.rank))
    return module.part(names[0]) if len(names) == 1 else None


def _inputs(module: Any) -> int:
    """Return how many inputs a map really takes."""
    if isinstance(module, FewerInputs | QuantizedFewerInputs):
        return module.in_features if isinstance(module, PickedInputs) else module.rank
    return sites.shape(module)[1]
