"""Hand-written kernels of others for the same mixers: how to call fla's functions with our arguments."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Peer:
    """fla's function for an example.

    Attributes:
        module, function: where it is.
        call: (the function, our arguments in our order) -> the out.
        fp32: arguments that fla's layers pass in fp32.
        soft: log decays: logsigmoid of a normal times this number, as fla's layers start with.
    """

    module: str
    function: str
    call: Callable[..., Tensor]
    fp32: tuple[str, ...] = ()
    soft: float = 0.1

    @property
    def name(self) -> str:
        return f"fla {self.function}"

    def load(self) -> Any:
        """The function, or None where fla (or this part of it) is not there."""
        try:
            return getattr(importlib.import_module(self.module), self.function, None)
        except Exception:  # whatever hinders it, what is left is ours alone
            return None

    def prepare(self, x: dict[str, Tensor]) -> None:
        """Log decays as they are in use, in place."""
        with torch.no_grad():
            for name in ("g", "w"):
                if name in x and x[name].ndim >= 3:
                    x[name].copy_(torch.nn.functional.logsigmoid(torch.randn_like(x[name].float())) * self.soft)
                elif name in x:  # RetNet's decays by head, which fla's function has built in
                    heads = torch.arange(x[name].shape[0], device=x[name].device)
                    x[name].copy_(torch.log1p(-torch.exp2(-5.0 - heads)))


PEERS: dict[str, Peer] = {
    "simple_gla": Peer("fla.ops.simple_gla", "chunk_simple_gla", lambda f, q, k, v, g: f(q, k, v, g)[0], ("g",), 0.2),
    "linear_attention": Peer("fla.ops.linear_attn", "chunk_linear_attn",
                             lambda f, q, k, v: f(q, k, v, normalize=False)[0]),
    "retnet": Peer("fla.ops.retention", "chunk_retention", lambda f, q, k, v, g: f(q, k, v)[0], ("g",)),
    "gla": Peer("fla.ops.gla", "chunk_gla", lambda f, q, k, v, g: f(q, k, v, g)[0], ("g",)),
    "delta_rule": Peer("fla.ops.delta_rule", "chunk_delta_rule", lambda f, q, v, k, beta: f(q, k, v, beta)[0]),
    "gated_delta_rule": Peer("fla.ops.gated_delta_rule", "chunk_gated_delta_rule",
                             lambda f, q, v, k, g, beta: f(q, k, v, g, beta)[0], ("g",), 0.2),
    "kda": Peer("fla.ops.kda", "chunk_kda", lambda f, q, v, k, g, beta: f(q, k, v, g, beta)[0], ("g",)),
    "rwkv6": Peer("fla.ops.rwkv6", "chunk_rwkv6", lambda f, r, k, v, w, u: f(r, k, v, w, u)[0], ("w",)),
    "hgrn": Peer("fla.ops.hgrn", "chunk_hgrn", lambda f, x, g: f(x.flatten(2), g.flatten(2))[0].view_as(x)),
    "gsa": Peer("fla.ops.gsa", "chunk_gsa", lambda f, q, k, v, s, g: f(q, k, v, s, g)[0], ("g",)),
    "hgrn2": Peer("fla.ops.gla", "chunk_gla",
                  lambda f, q, v, g: f(q, -torch.expm1(g.float()).to(q.dtype), v, g, scale=1.0)[0], ("g",)),
    "lightning_attention2": Peer("fla.ops.simple_gla", "chunk_simple_gla",
                                 lambda f, q, k, v, slope: f(*map(torch.nn.functional.silu, (q, k)), v,
                                                             g_gamma=-slope.float(), scale=1.0)[0], ("slope",)),
    "rwkv7": Peer("fla.ops.rwkv7", "chunk_rwkv7",
                  lambda f, r, k, v, w, kappa, a: f(r, w, k, v, -kappa, kappa * a, scale=1.0)[0], (),
                  math.exp(-0.5)),
}
