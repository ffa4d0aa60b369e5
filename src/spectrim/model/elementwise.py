"""Norms and gated products by the kernels: one pass over the numbers where torch takes eight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectrim.kernels.library import checked, library

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
SILU = ("SiLUActivation", "SiLU")


def use_elementwise(module: nn.Module) -> None:
    """Let a norm, or an MLP with silu, compute by the kernels; other modules stay as they are."""
    target: Any = module
    name = type(module).__name__
    if not type(module).__module__.startswith("transformers"):
        return
    if name in NORMS:
        target.forward = Norm(module)
    elif name in MLPS and type(target.act_fn).__name__ in SILU:
        target.forward = GatedMlp(module)


def plain(*tensors: Tensor) -> bool:
    """Return whether the kernels can read these now: bf16, on the processor, without gradients."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(
        one.dtype == torch.bfloat16 and one.device.type == "cpu" and one.is_contiguous()
        for one in tensors
    )


class Norm:
    """The forward of a norm by the root of the mean square."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the normed states."""
        call, weight = library(), self.module.weight
        if call is None or not plain(hidden_states, weight) or not hidden_states.numel():
            found: Tensor = type(self.module).forward(self.module, hidden_states)
            return found
        to, columns = torch.empty_like(hidden_states), weight.numel()
        checked(call.norm(hidden_states.data_ptr(), weight.data_ptr(),
                          self.module.variance_epsilon, to.data_ptr(), to.numel() // columns,
                          columns, torch.get_num_threads()))  # fmt: skip
        return to


class GatedMlp:
    """The forward of an MLP: down (silu (gate x) * up x)."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the MLP makes of the hidden states."""
        call = library()
        if call is None or not plain(x) or not x.numel():
            found: Tensor = type(self.module).forward(self.module, x)
            return found
        gate, up = self.module.gate_proj(x), self.module.up_proj(x)
        if plain(gate, up) and gate.shape == up.shape:
            inner = torch.empty_like(gate)
            checked(call.gated(gate.data_ptr(), up.data_ptr(), inner.data_ptr(), gate.numel(),
                               torch.get_num_threads()))  # fmt: skip
        else:
            inner = self.module.act_fn(gate) * up
        out: Tensor = self.module.down_proj(inner)
        return out
