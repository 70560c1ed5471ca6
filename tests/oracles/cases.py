"""Programs that this project did not write, each under the signature of the example it is compared with.

A case takes the example's tensors by name ([B, T, H, dims...]; params [H, dims...]) and the initial
states, and gives (out, states): states is None where the oracle has none to give.  Oracles from
`fla` compute in fp32 whatever they are given.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Tensors = dict[str, Tensor]
Result = tuple[Tensor, Tensors | None]


@dataclass(frozen=True)
class Case:
    """`wide`: the oracle keeps fp64. `start`: it takes initial states. `ends`: share of closed ends drawn."""

    run: Callable[[Tensors, Tensors], Result]
    wide: bool = False
    start: bool = True
    ends: float = 1 / 16
    groups: tuple[str, ...] = ()  # inputs that may come with fewer heads


CASES: dict[str, Case] = {}


def case(name: str, **options: Any) -> Callable[[Callable[[Tensors, Tensors], Result]], Any]:
    def put(fn: Callable[[Tensors, Tensors], Result]) -> Callable[[Tensors, Tensors], Result]:
        CASES[name] = Case(fn, **options)
        return fn
    return put


def fla(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"fla.ops.{module}"), name)


def first(x: Tensor) -> Tensor:
    """[B, T, H, ...] -> [B, H, T, ...]"""
    return x.transpose(1, 2)


def heads(x: Tensor, H: int) -> Tensor:
    return x.repeat_interleave(H // x.shape[2], 2)


def gla_scalar(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S0: Tensor | None, scale: float | None = None
               ) -> tuple[Tensor, Tensor]:
    o, S = fla("simple_gla.naive", "naive_recurrent_simple_gla")(q, k, v, g, scale=scale, initial_state=S0)
    return o, S


def with_ones(v: Tensor) -> Tensor:
    """v with one column more, of ones: what sums the keys."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


# ---------------------------------------------------------------- scalar decay
@case("simple_gla")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = gla_scalar(x["q"], x["k"], x["v"], x["g"], s.get("S"))
    return o, {"S": S}


@case("linear_attention")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = gla_scalar(x["q"], x["k"], x["v"], torch.zeros_like(x["q"][..., 0]), s.get("S"))
    return o, {"S": S}


@case("linear_attention_normalised", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    a, b = F.elu(x["q"]) + 1, F.elu(x["k"]) + 1
    o, S = gla_scalar(a, b, with_ones(x["v"]), torch.zeros_like(a[..., 0]), None, 1.0)
    return o[..., :-1] / (o[..., -1:] + 1e-6), {"S": S[..., :-1], "n": S[..., -1]}


@case("norm_attention")
def _(x: Tensors, s: Tensors) -> Result:
    a, b = F.elu(x["q"]) + 1, F.elu(x["k"]) + 1
    o, S = gla_scalar(a, b, x["v"], torch.zeros_like(a[..., 0]), s.get("S"), 1.0)
    return F.rms_norm(o, o.shape[-1:], eps=1e-6), {"S": S}


@case("retnet")
def _(x: Tensors, s: Tensors) -> Result:
    g = x["g"].expand(x["q"].shape[:3])
    o, S = gla_scalar(x["q"], x["k"], x["v"], g, s.get("S"))
    return o, {"S": S}


@case("lightning_attention2")
def _(x: Tensors, s: Tensors) -> Result:
    g = -x["slope"].expand(x["q"].shape[:3])
    o, S = gla_scalar(F.silu(x["q"]), F.silu(x["k"]), x["v"], g, s.get("S"), 1.0)
    return o, {"S": S}


@case("mamba2", groups=("B", "C"))
def _(x: Tensors, s: Tensors) -> Result:
    u, dt = x["x"], x["dt"]
    B, C = heads(x["B"], u.shape[2]), heads(x["C"], u.shape[2])
    o, S = gla_scalar(C, B, u * dt[..., None], dt * x["A"], s.get("h"), 1.0)
    return o + x["D"][:, None] * u, {"h": S}


@case("mlstm", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    kernel = importlib.import_module("mlstm_kernels.torch").get_mlstm_kernel("parallel--native_autograd")
    return first(kernel(*(first(x[n]) for n in ("q", "k", "v", "i", "f")), eps=0.0)), None


# ---------------------------------------------------------------- vector decay, low rank
@case("gla")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("gla.naive", "naive_recurrent_gla")(x["q"], x["k"], x["v"], x["g"], s.get("S"), True)
    return o, {"S": S}


@case("hgrn2")
def _(x: Tensors, s: Tensors) -> Result:
    q, k = x["q"] * x["q"].shape[-1] ** 0.5, 1 - x["g"].exp()
    o, S = fla("gla.naive", "naive_recurrent_gla")(q, k, x["v"], x["g"], s.get("S"), True)
    return o, {"S": S}


@case("rwkv6")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("rwkv6.recurrent_naive", "naive_recurrent_rwkv6")(
        *(first(x[n]) for n in ("r", "k", "v", "w")), x["u"], initial_state=s.get("S"), output_final_state=True)
    return first(o), {"S": S}


@case("rwkv7")
def _(x: Tensors, s: Tensors) -> Result:
    r, b = x["r"] * x["r"].shape[-1] ** 0.5, -x["a"] * x["kappa"]
    o, S = fla("generalized_delta_rule.dplr.naive", "dplr_recurrence")(
        *(first(t) for t in (r, x["k"], x["v"], x["kappa"], b, x["w"])), initial_state=s.get("S"))
    return first(o), {"S": S}


@case("delta_rule")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("delta_rule.naive", "delta_rule_recurrence")(
        *(first(x[n]) for n in ("q", "k", "v", "beta")), initial_state=s.get("S"))
    return first(o), {"S": S}


@case("gated_delta_rule")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("gated_delta_rule.naive", "naive_recurrent_gated_delta_rule")(
        x["q"], x["k"], x["v"], x["beta"], x["g"], initial_state=s.get("S"), output_final_state=True)
    return o, {"S": S}


@case("kda")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("kda.naive", "naive_recurrent_kda")(
        x["q"], x["k"], x["v"], x["g"], x["beta"], initial_state=s.get("S"), output_final_state=True)
    return o, {"S": S}


@case("gdn2")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("gdn2.naive", "naive_recurrent_gdn2")(
        *(x[n] for n in ("q", "k", "v", "g", "b", "w")), initial_state=s.get("S"), output_final_state=True)
    return o, {"S": S}


@case("dplr")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("generalized_delta_rule.dplr.naive", "dplr_recurrence")(
        *(first(x[n]) for n in ("q", "k", "v", "a", "b", "g")), initial_state=s.get("S"))
    return first(o), {"S": S}


@case("iplr")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("generalized_delta_rule.iplr.naive", "iplr_recurrence")(
        *(first(x[n]) for n in ("q", "k", "v", "a", "b")), initial_state=s.get("S"))
    return first(o), {"S": S}


@case("comba")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = fla("comba.naive", "naive_chunk_comba")(  # its recurrent version reads the error after the decay
        *(x[n] for n in ("q", "k", "v", "p", "g", "beta")), chunk_size=16, initial_state=s.get("S"),
        output_final_state=True)
    return o, {"S": S}


@case("gated_oja_rule", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """fla has its forward as a kernel only: `test_gated_oja_rule_is_that_of_fla` says that this is the same."""
    S, found = s["S"] if s else torch.zeros(()), []
    for q, k, v, g, beta in zip(*(x[n].unbind(1) for n in ("q", "k", "v", "g", "beta")), strict=True):
        S = g.exp()[..., None, :] * S
        error = k - (S * v[..., None, :]).sum(-1)
        S = S + beta[..., None, None] * error[..., :, None] * v[..., None, :]
        found.append(torch.einsum("bhk,bhkv->bhv", q, S) * q.shape[-1] ** -0.5)
    return torch.stack(found, 1), {"S": S}


def householders(x: Tensors, g: Tensor | None, S0: Tensor | None) -> tuple[Tensor, Tensor]:
    def rows(t: Tensor) -> Tensor:  # [B, T, H, N, ...] -> [B, T N, H, ...]
        return t.movedim(3, 2).flatten(1, 2)

    k = x["k"]
    o, S = fla("gated_delta_product.naive", "naive_recurrent_gated_delta_product")(
        x["q"], rows(k), rows(x["v"]), g, rows(x["beta"]), k.shape[-1] ** -0.5, initial_state=S0,
        output_final_state=True, num_householder=k.shape[3])
    return o, S


@case("gated_deltaproduct")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = householders(x, x["g"], s.get("S"))
    return o, {"S": S}


@case("deltaproduct")
def _(x: Tensors, s: Tensors) -> Result:
    o, S = householders(x, None, s.get("S"))
    return o, {"S": S}


@case("abc", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    o, (Sk, Sv) = fla("abc.naive", "naive_recurrent_abc")(
        *(first(x[n]) for n in ("q", "k", "v", "s")), output_final_state=True)
    return first(o), {"Sk": Sk, "Sv": Sv, "z": x["s"].logcumsumexp(1)[:, -1]}


@case("gsa")
def _(x: Tensors, s: Tensors) -> Result:
    start = (s["Sk"], s["Sv"]) if s else None
    o, (Sk, Sv) = fla("gsa.naive", "naive_recurrent_gsa")(
        *(x[n] for n in ("q", "k", "v", "s", "g")), initial_state=start, output_final_state=True)
    return o, {"Sk": Sk, "Sv": Sv}


@case("titans_linear", ends=0)
def _(x: Tensors, s: Tensors) -> Result:
    start = dict(initial_S=s["S"], initial_M=-s["M"]) if s else {}
    o, both = fla("momentum_delta_rule.naive", "recurrent_momentum_delta_rule_ref")(
        x["q"], x["k"], x["v"], torch.log1p(-x["alpha"]), x["eta"].log(), x["k"], torch.ones_like(x["alpha"]),
        x["theta"], scale=1.0, output_final_state=True, **start)
    return o, {"S": both[0], "M": -both[1]}


# ---------------------------------------------------------------- scans
@case("hgrn")
def _(x: Tensors, s: Tensors) -> Result:
    (B, T, H, D), h0 = x["x"].shape, s["h"].flatten(1) if s else None
    o, h = fla("hgrn.naive", "naive_recurrent_hgrn")(x["x"].flatten(2), x["g"].flatten(2), h0, True)
    return o.view(B, T, H, D), {"h": h.view(B, H, D)}


@case("min_gru", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    scan = importlib.import_module("accelerated_scan.ref").scan
    (B, T, H, D), z, c = x["k"].shape, torch.sigmoid(x["k"]), x["c"]
    write = z * torch.where(c >= 0, c + 0.5, torch.sigmoid(c))

    def flat(t: Tensor) -> Tensor:  # [B, T, H, D] -> [B, H D, T'], T' a power of two: the scan is a tree
        more = (1 << (T - 1).bit_length()) - T
        return F.pad(t.flatten(2).transpose(1, 2), (0, more))

    o = scan(flat(1 - z), flat(write))[..., :T].transpose(1, 2).reshape(B, T, H, D)
    return o, {"h": o[:, -1]}


@case("mamba1", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    h = s["x"] if s else torch.zeros(())
    found = []
    for u, dt, B, C in zip(*(x[n].unbind(1) for n in ("u", "dt", "B", "C")), strict=True):
        h = torch.exp(dt[..., None] * x["A"]) * h + dt[..., None] * B[..., None, :] * u[..., None]
        found.append((h * C[..., None, :]).sum(-1) + x["skip"] * u)
    return torch.stack(found, 1), {"x": h}


@case("lru", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    size, phase = torch.exp(-torch.exp(x["nu"])), x["theta"]
    lam, gain = torch.polar(size, phase), torch.sqrt(1 - size.square())
    h = s["x"] if s else torch.zeros(())
    found = []
    for u in x["u"].unbind(1):
        h = lam * h + gain * torch.einsum("hnd,bhd->bhn", x["B"], u.to(lam.dtype))
        found.append(torch.einsum("hdn,bhn->bhd", x["C"], h).real + x["skip"] * u)
    return torch.stack(found, 1), {"x": h}


# ---------------------------------------------------------------- cells
def flashrnn(function: str, x: Tensors, gates: tuple[str, ...], weights: tuple[str, ...], bias: Tensor,
             states: tuple[Tensor, ...] | None) -> Tensor:
    """[S, B, T, H, D]: every state after every token."""
    call = importlib.import_module("flashrnn.flashrnn.flashrnn").flashrnn
    Wx, R = torch.stack([x[n] for n in gates], 2), torch.stack([x[n] for n in weights])
    start = torch.stack(states).unsqueeze(2) if states else None  # [S, B, 1, H, D]
    return call(Wx, R, bias, states=start, function=function, backend="vanilla", dtype="float32")[0]


XIFZO, RIFZO = ("xi", "xf", "xz", "xo"), ("Ri", "Rf", "Rz", "Ro")


@case("lstm")
def _(x: Tensors, s: Tensors) -> Result:
    bias = torch.zeros(4, *x["xi"].shape[2:])
    out = flashrnn("lstm", x, XIFZO, RIFZO, bias, (s["h"], s["c"]) if s else None)
    return out[0], {"h": out[0][:, -1], "c": out[1][:, -1]}


@case("slstm", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    out = flashrnn("slstm", x, XIFZO, RIFZO, torch.zeros(4, *x["xi"].shape[2:]), None)
    return out[0], {n: out[i][:, -1] for i, n in enumerate(("h", "c", "n", "m"))}


@case("gru")
def _(x: Tensors, s: Tensors) -> Result:
    bias = torch.stack([x["bn"], *[torch.zeros_like(x["bn"])] * 3])
    out = flashrnn("gru", x, ("xr", "xz", "xn"), ("Rn", "Rr", "Rz"), bias, (s["h"],) if s else None)
    return out[0], {"h": out[0][:, -1]}


# ---------------------------------------------------------------- token context
@case("short_conv", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    (B, T, H, D), W = x["x"].shape, x["c"].shape[-1]
    u = F.pad(x["x"].flatten(2).transpose(1, 2), (W - 1, 0))
    y = F.conv1d(u, x["c"].flatten(0, 1).flip(-1)[:, None], groups=H * D)
    return F.silu(y).transpose(1, 2).reshape(B, T, H, D), None


@case("rotary_linear_attention")
def _(x: Tensors, s: Tensors) -> Result:
    (_, T, _, P) = x["qa"].shape
    speed = 10000 ** (-torch.arange(P, dtype=torch.float64) / P)
    turn = torch.polar(torch.ones(()).double(), torch.arange(T)[:, None] * speed)[:, None].to(torch.complex64)
    q, k = torch.complex(x["qa"], x["qb"]) * turn, torch.complex(x["ka"], x["kb"]) * turn
    q, k = (torch.cat([t.real, t.imag], -1) for t in (q, k))
    start = torch.cat([s["Sa"], s["Sb"]], -2) if s else None
    o, S = gla_scalar(q, k, x["v"], torch.zeros_like(q[..., 0]), start, 1.0)
    return o, {"Sa": S[..., :P, :], "Sb": S[..., P:, :]}
