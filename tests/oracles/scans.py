"""Oracles of states that are scans: a tree over time by somebody else, closed forms, published kernels."""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F

from tests.oracles.cases import Result, Tensor, Tensors, case


def tree_scan(gate: Tensor, write: Tensor) -> Tensor:
    """h[t] = gate[t] h[t-1] + write[t] of [B, T, H, D], by `accelerated_scan`."""
    scan = importlib.import_module("accelerated_scan.ref").scan
    B, T, H, D = gate.shape
    more = (1 << max(T - 1, 1).bit_length()) - T  # to a power of two: the scan is a tree
    flat = (F.pad(t.flatten(2).transpose(1, 2), (0, more)) for t in (gate, write))
    return scan(*flat)[..., :T].transpose(1, 2).reshape(B, T, H, D)


@case("min_lstm", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    f, i, c = torch.sigmoid(x["f"]), torch.sigmoid(x["i"]), x["c"]
    o = tree_scan(f / (f + i), i / (f + i) * torch.where(c >= 0, c + 0.5, torch.sigmoid(c)))
    return o, {"h": o[:, -1]}


@case("rg_lru", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    g = -8 * F.softplus(x["L"]) * torch.sigmoid(x["r"])
    o = tree_scan(g.exp(), torch.sqrt(1 - torch.exp(2 * g)) * torch.sigmoid(x["i"]) * x["x"])
    return o, {"h": o[:, -1]}


@case("s4d_real", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    """A convolution with the kernel of the paper: K[l] = c * exp(l step A) * (exp(step A) - 1) / A * b."""
    u, A = x["u"], -torch.exp(x["a"])
    T, turn = u.shape[1], torch.exp(x["step"])[..., None] * A  # [H, D, N]
    powers = torch.exp(torch.arange(T)[:, None, None, None] * turn)
    held = (torch.exp(turn) - 1) / A * x["b"]
    kernel = (powers * held * x["c"]).sum(-1)  # [T, H, D]
    y = torch.stack([sum(kernel[lag] * u[:, t - lag] for lag in range(t + 1)) for t in range(T)], 1)
    return y + x["skip"] * u, {"x": (powers.flip(0) * held * u[..., None]).sum(1)}


@case("qrnn", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    f = torch.sigmoid(x["f"])
    c = tree_scan(f, (1 - f) * torch.tanh(x["z"]))
    return torch.sigmoid(x["o"]) * c, {"c": c[:, -1]}


@case("sru", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    f, r = torch.sigmoid(x["f"]), torch.sigmoid(x["r"])
    c = tree_scan(f, (1 - f) * x["z"])
    return r * c + (1 - r) * x["x"], {"c": c[:, -1]}


@case("max_plus", wide=True, ends=0)
def _(x: Tensors, s: Tensors) -> Result:
    """max over s of x[s] + a[s+1] + ... + a[t], the start being one more x in front."""
    T, start = x["x"].shape[1], s.get("h", torch.full_like(x["x"][:, 0], -torch.inf))
    xs = torch.cat([start[:, None], x["x"]], 1)
    G = F.pad(x["a"].cumsum(1), (0, 0, 0, 0, 1, 0))
    o = torch.stack([(xs[:, :t + 1] + (G[:, t, None] - G[:, :t + 1])).amax(1) for t in range(1, T + 1)], 1)
    return o, {"h": o[:, -1]}


@case("log_sum", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    T = x["k"].shape[1]
    o = torch.stack([(torch.softmax(x["k"][:, :t], 1) * x["v"][:, :t]).sum(1) for t in range(1, T + 1)], 1)
    return o, {"s": torch.logcumsumexp(x["k"], 1)[:, -1], "m": o[:, -1]}


@case("mlstm_stabilised", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    run = importlib.import_module("mlstm_kernels.torch").get_mlstm_kernel("parallel--native_autograd")
    q, k, v, i, f = (x[n].transpose(1, 2) for n in ("q", "k", "v", "i", "f"))
    return run(q, k, v, i, f).transpose(1, 2), None


@case("damped_rotation", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """One complex number a channel: z[t] = exp(-d + i w) z[t-1] + u[t], in closed form."""
    T, log = x["u"].shape[1], torch.complex(-x["d"], x["w"])
    u = torch.complex(x["u"], torch.zeros_like(x["u"]))
    start = torch.complex(s["x"], s["y"]) if s else torch.zeros_like(u[:, 0])
    rows = torch.cat([start[:, None], u], 1)
    z = torch.stack([sum(torch.exp(log * (t - j)) * rows[:, j] for j in range(t + 1)) for t in range(1, T + 1)], 1)
    return z.imag, {"x": z[:, -1].real, "y": z[:, -1].imag}


@case("s5", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """Equation 6 of the paper, token by token on complex tensors."""
    lam, step = torch.complex(-torch.exp(x["a"]), x["w"]), torch.exp(x["step"])
    turn = torch.exp(lam * step)
    held = ((turn - 1) / lam)[..., None] * x["B"]
    h = s["x"] if s else torch.zeros(())
    found = []
    for u in x["u"].unbind(1):
        h = turn * h + torch.einsum("hnd,bhd->bhn", held, u.to(turn.dtype))
        found.append(torch.einsum("hdn,bhn->bhd", x["C"], h).real + x["skip"] * u)
    return torch.stack(found, 1), {"x": h}
