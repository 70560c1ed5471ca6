"""Layers of flash-linear-attention with their operator replaced by a mixer, in one line each.

    python examples/fla_layers.py         (needs flash-linear-attention; on a CPU fla's naive functions stand in for
                                           its kernels, and torch for its fused norms and convolutions)

A layer looks its operator up in its own module, so the line is

    fla.layers.gla.chunk_gla = operator(mixc.load("gla"))

The layers asked for need no transformers, but `fla.layers` as a whole does: where it is not installed, `layer_module`
imports the one file without the package's __init__.

`operator` gives a mixer the arguments that fla's operators take; what fla folds into its kernels (unit norms of q and
k, the gate from A_log and dt_bias, the sigmoid of beta) is a line of torch before the call.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

import mixc

Tensor = torch.Tensor
Operator = Callable[..., tuple[Tensor, Tensor | None]]

# the layer, the operators it looks up, the mixer, fla's function that says what the operator means
LAYERS = {
    "simple_gla": ("SimpleGatedLinearAttention", "simple_gla", "simple_gla.naive:naive_recurrent_simple_gla"),
    "gla": ("GatedLinearAttention", "gla", "gla.naive:naive_recurrent_gla"),
    "delta_net": ("DeltaNet", "delta_rule", "delta_rule.naive:delta_rule_recurrence"),
    "gated_deltanet": ("GatedDeltaNet", "gated_delta_rule",
                       "gated_delta_rule.naive:naive_recurrent_gated_delta_rule"),
    "kda": ("KimiDeltaAttention", "kda", "kda.naive:naive_recurrent_kda"),
    "rwkv6": ("RWKV6Attention", "rwkv6", "rwkv6.recurrent_naive:naive_recurrent_rwkv6"),
}


def layer_module(name: str) -> ModuleType:
    """`fla.layers.<name>`."""
    if find_spec("transformers") is None and "fla.layers" not in sys.modules:
        folder = ModuleType("fla.layers")
        folder.__path__ = [str(path) + "/layers" for path in importlib.import_module("fla").__path__]
        sys.modules["fla.layers"] = folder
    return importlib.import_module(f"fla.layers.{name}")


def operator(mixer: mixc.Mixer) -> Operator:
    """A mixer that is called as fla's operators are."""
    names = [d.name for d in (*mixer.declared.ins, *mixer.declared.params)]

    def call(*, initial_state: Tensor | None = None, output_final_state: bool = False, cu_seqlens: Tensor | None = None,
             scale: float | None = None, state_v_first: bool = False, **given: Any) -> tuple[Tensor, Tensor | None]:
        x = prepared(**given)
        start = initial_state.mT if state_v_first and initial_state is not None else initial_state
        o, state = mixer(**{n: x[n] for n in names}, initial_state=start, output_final_state=output_final_state,
                         cu_seqlens=cu_seqlens, **({} if scale is None else {"scale": scale}))
        S = None if state is None else state["S"]
        return o, S.mT if state_v_first and S is not None else S
    return call


def prepared(use_qk_l2norm_in_kernel: bool = False, use_gate_in_kernel: bool = False,
             use_beta_sigmoid_in_kernel: bool = False, allow_neg_eigval: bool = False, A_log: Tensor | None = None,
             dt_bias: Tensor | None = None, gk: Tensor | None = None, **x: Any) -> dict[str, Tensor]:
    """The tensors as the mixer takes them: what fla's flags ask of its kernels is done here."""
    if gk is not None:
        x["g"] = gk
    if use_qk_l2norm_in_kernel:
        x["q"], x["k"] = F.normalize(x["q"], dim=-1, eps=1e-6), F.normalize(x["k"], dim=-1, eps=1e-6)
    if use_gate_in_kernel:
        assert A_log is not None and dt_bias is not None
        wide = x["g"].ndim == x["q"].ndim
        g = x["g"].float() + (dt_bias.view(x["g"].shape[-2:]) if wide else dt_bias)
        x["g"] = -(A_log.exp()[:, None] if wide else A_log.exp()) * F.softplus(g)
    if use_beta_sigmoid_in_kernel:
        x["beta"] = x["beta"].sigmoid() * (2 if allow_neg_eigval else 1)
    return {n: t for n, t in x.items() if isinstance(t, Tensor)}


# ---------------------------------------------------------------- fla without a GPU
def naive(name: str) -> Operator:
    """One of fla's naive functions, called as its operators are."""
    path, function = name.split(":")
    fn = getattr(importlib.import_module(f"fla.ops.{path}"), function)

    def call(*, initial_state: Any = None, output_final_state: bool = False, cu_seqlens: Any = None, scale: Any = None,
             state_v_first: bool = False, **given: Any) -> tuple[Tensor, Tensor | None]:
        x = prepared(**given)
        heads_first = function in ("delta_rule_recurrence", "naive_recurrent_rwkv6")
        if "gla" in function and "simple" not in function:
            x["gk"] = x.pop("g")
        if "r" in x:
            x["q"] = x.pop("r")
        if heads_first:
            x = {n: t.transpose(1, 2) if n != "u" else t for n, t in x.items()}
        more = {} if scale is None else {"scale": scale}
        o, S = fn(**x, output_final_state=output_final_state, **more)
        return o.transpose(1, 2) if heads_first else o, S
    return call


class Norm(torch.nn.Module):
    """What fla's fused norms compute: RMS norm, times the activation of a gate."""

    def __init__(self, of: torch.nn.Module):
        super().__init__()
        self.weight, self.eps = of.weight, of.eps
        self.gate = {"swish": F.silu, "silu": F.silu, "sigmoid": torch.sigmoid}[getattr(of, "activation", "swish")]

    def forward(self, x: Tensor, g: Tensor | None = None) -> Tensor:
        y = F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return y if g is None else y * self.gate(g)


class Convolution(torch.nn.Module):
    """The causal convolution and SiLU before q, k and v."""

    def __init__(self, of: torch.nn.Conv1d):
        super().__init__()
        self.of = of

    def forward(self, x: Tensor, **_: Any) -> tuple[Tensor, None]:
        y = F.conv1d(F.pad(x.mT, (self.of.kernel_size[0] - 1, 0)), self.of.weight, self.of.bias, groups=x.shape[-1])
        return F.silu(y).mT, None


class GroupNorm(torch.nn.Module):
    def __init__(self, of: torch.nn.Module):
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        y = F.group_norm(x.flatten(0, -2), self.of.num_groups, self.of.weight, self.of.bias, self.of.eps)
        return y.view(x.shape)


def without_kernels(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer with torch in place of fla's fused norms and convolutions."""
    swaps = {"FusedRMSNormGated": Norm, "RMSNorm": Norm, "ShortConvolution": Convolution, "GroupNorm": GroupNorm}
    for module in list(layer.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in swaps:
                setattr(module, name, swaps[type(child).__name__](child))
    if hasattr(layer, "gate_fn"):
        layer.gate_fn = F.silu
    return layer


def run(layer: torch.nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the layer gives, and all its gradients."""
    o = layer(x)[0]
    params = list(layer.parameters())
    grads = torch.autograd.grad(o.square().mean(), params, allow_unused=True)
    return o.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


def compare(name: str, T: int = 70, device: str = "cuda" if torch.cuda.is_available() else "cpu"
            ) -> tuple[float, float]:
    """The worst relative RMS differences of a layer's output and gradients, with fla's operator and with the mixer."""
    title, mixer, stand_in = LAYERS[name]
    module = layer_module(name)
    torch.manual_seed(0)
    more: dict[str, Any] = {"mode": "chunk"}
    if name == "gated_deltanet":
        more["use_short_conv"] = False  # its fused convolution looks into the module that stands in
    layer = getattr(module, title)(hidden_size=64, num_heads=2, **more).to(device)
    names = [n for n in vars(module) if n.startswith(("chunk_", "fused_recurrent_")) and mixer in n]
    if device == "cpu":
        without_kernels(layer)
        if hasattr(module, "token_shift"):
            from fla.modules.token_shift import token_shift_ref

            module.token_shift = token_shift_ref  # type: ignore[attr-defined]
        for n in names:
            setattr(module, n, naive(stand_in))
    x = torch.randn(2, T, 64, device=device)
    want, wanted = run(layer, x)
    for n in names:
        setattr(module, n, operator(mixc.load(mixer)))  # <- the line
    got, grads = run(layer, x)

    def error(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp_min(1e-8))
    return error(got, want), max(error(a, b) for a, b in zip(grads, wanted, strict=True))


if __name__ == "__main__":
    for layer_name in LAYERS:
        out, grad = compare(layer_name)
        print(f"{layer_name:16} output {out:.1e}   worst gradient {grad:.1e}")
