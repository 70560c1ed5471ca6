"""Oracles of stages, cells, online learners and semirings."""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F

from tests.oracles.cases import Result, Tensor, Tensors, case, flashrnn
from tests.oracles.scans import tree_scan


@case("lightnet", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    """As flash-linear-attention's LightNet has it: keys and gates by `logcumsumexp`, then gated linear attention."""
    run = importlib.import_module("fla.ops.gla.naive").naive_recurrent_gla
    z = x["k"].logcumsumexp(1)
    g = torch.cat([z[:, :1], z[:, :-1]], 1) - z
    o, S = run(x["q"] * x["q"].shape[-1] ** 0.5, torch.exp(x["k"] - z), x["v"], g, output_final_state=True)
    return o, {"S": S, "z": z[:, -1]}


@case("slow_gate", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    run = importlib.import_module("fla.ops.gla.naive").naive_recurrent_gla
    z = tree_scan(torch.full_like(x["r"], 0.9), 0.1 * x["r"])
    o, S = run(x["q"] * x["q"].shape[-1] ** 0.5, x["k"], x["v"], F.logsigmoid(4 + z), output_final_state=True)
    return o, {"S": S, "z": z[:, -1]}


@case("preconditioned_delta_rule", start=False)
def _(x: Tensors, s: Tensors) -> Result:
    run = importlib.import_module("fla.ops.precond_kda.naive").naive_recurrent_precond_kda
    o, S, A = run(x["q"], x["k"], x["v"], x["g"], x["ga"], x["ba"], x["beta"],
                  output_final_state=True)
    return o, {"S": S, "A": A}


@case("momentum_delta_rule")
def _(x: Tensors, s: Tensors) -> Result:
    run = importlib.import_module("fla.ops.momentum_delta_rule.naive").recurrent_momentum_delta_rule_ref
    o, (S, M) = run(x["q"], x["k"], x["v"], x["la"], x["lm"], x["p"], x["beta"], x["eta"],
                    initial_S=s.get("S"), initial_M=s.get("M"), output_final_state=True)
    return o, {"S": S, "M": M}


@case("quasi_lstm", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    c = tree_scan(torch.sigmoid(x["xf"]), torch.sigmoid(x["xi"]) * torch.tanh(x["xz"]))
    return torch.sigmoid(x["xo"]) * torch.tanh(c), {"c": c[:, -1]}


@case("mamba3_mimo", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    """The paper's parallel form: decays between tokens times two bands, a token's end and the next one's beginning."""
    g = (x["dt"] * x["A"]).cumsum(1)
    end, begin = x["lam"] * x["dt"], F.pad((1 - x["lam"]) * x["dt"], (0, 0, 0, 1))[:, 1:]
    T = g.shape[1]
    later = torch.ones(T, T, dtype=torch.bool).tril()[None, :, :, None]
    decays = torch.exp((g[:, :, None] - g[:, None]).masked_fill(~later, -torch.inf))  # [B, t, s, H]
    own = torch.eye(T, dtype=g.dtype)[None, :, :, None]
    weights = decays * (end[:, None] + begin[:, None] * (1 - own))
    y = torch.einsum("btsh,bthrn,bshnq,bshqp->bthrp", weights, x["C"], x["B"], x["x"])
    h = torch.einsum("bsh,bshnq,bshqp->bhnp", weights[:, -1], x["B"], x["x"])
    return y + x["D"][..., None] * x["x"], {"h": h, "B": x["B"][:, -1:], "x": x["x"][:, -1:]}


@case("elman")
def _(x: Tensors, s: Tensors) -> Result:
    out = flashrnn("elman", x, ("x",), ("R",), torch.zeros(1, *x["x"].shape[2:]), (s["h"],) if s else None)
    return out[0], {"h": out[0][:, -1]}


@case("memory_cell")
def _(x: Tensors, s: Tensors) -> Result:
    run = importlib.import_module("fla.ops.gla.naive").naive_recurrent_gla
    y, S = run(x["q"], x["k"], x["v"], x["g"], s.get("S"), True)
    start = (s["h"],) if s else None
    out = flashrnn("elman", {"y": y, "R": x["R"]}, ("y",), ("R",), torch.zeros(1, *y.shape[2:]), start)
    return out[0], {"S": S, "h": out[0][:, -1]}


def cells(x: Tensors, s: Tensors, names: tuple[str, ...], token) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """Rows of states [B, T, H, D] of a cell written out by hand, heads by `einsum`."""
    state = [s.get(n, torch.zeros_like(next(iter(x.values()))[:, 0])) for n in names]
    rows = []
    for t in range(next(iter(x.values())).shape[1]):
        state = token(t, *state)
        rows.append(state)
    return [torch.stack(r, 1) for r in zip(*rows, strict=True)]


def apply(R: Tensor, h: Tensor) -> Tensor:
    return torch.einsum("hde,bhe->bhd", R, h)


@case("peephole_lstm", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """Equations 2 to 6 of the paper."""
    def token(t: int, h: Tensor, c: Tensor) -> list[Tensor]:
        i, f, z, o = (x["x" + g][:, t] + apply(x["R" + g], h) for g in "ifzo")
        new = torch.sigmoid(f + x["pf"] * c) * c + torch.sigmoid(i + x["pi_"] * c) * torch.tanh(z)
        return [torch.sigmoid(o + x["po"] * new) * torch.tanh(new), new]
    h, c = cells(x, s, ("h", "c"), token)
    return h, {"h": h[:, -1], "c": c[:, -1]}


@case("highway_rnn", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """Equations 7 to 9 of the paper, the carry gate 1 - t."""
    def token(t: int, y: Tensor) -> list[Tensor]:
        for depth in range(2):
            into = (x["xh"][:, t], x["xt"][:, t]) if depth == 0 else (x["bh"], x["bt"])
            gate = torch.sigmoid(into[1] + apply(x[f"Rt{depth}"], y))
            y = torch.tanh(into[0] + apply(x[f"Rh{depth}"], y)) * gate + y * (1 - gate)
        return [y]
    (y,) = cells(x, s, ("s",), token)
    return y, {"s": y[:, -1]}


@case("sru_full", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """Equations 1 to 4 of the paper."""
    c = s.get("c", torch.zeros_like(x["z"][:, 0]))
    rows, states = [], []
    for t in range(x["z"].shape[1]):
        f, r = torch.sigmoid(x["f"][:, t] + x["vf"] * c), torch.sigmoid(x["r"][:, t] + x["vr"] * c)
        c = f * c + (1 - f) * x["z"][:, t]
        rows.append(r * c + (1 - r) * x["x"][:, t])
        states.append(c)
    return torch.stack(rows, 1), {"c": states[-1]}


@case("second_order", wide=True)
def _(x: Tensors, s: Tensors) -> Result:
    """z[t] = A[t] z[t-1] + b[t] with the 2 x 2 matrices of the system, multiplied out."""
    zero = torch.zeros_like(x["u"][:, 0])
    z = torch.stack([s.get("x", zero), s.get("y", zero)], -1)
    w, d, rows = x["w"], x["d"], []
    A = torch.stack([torch.stack([1 - w, d], -1), torch.stack([-w, d], -1)], -2)
    b = torch.stack([w * x["u"]] * 2, -1)
    for t in range(w.shape[1]):
        z = (A[:, t] @ z[..., None])[..., 0] + b[:, t]
        rows.append(z)
    found = torch.stack(rows, 1)
    return found[..., 0], {"x": z[..., 0], "y": z[..., 1]}


@case("decaying_max", wide=True, ends=0)
def _(x: Tensors, s: Tensors) -> Result:
    """max over s of x[s] d[s+1] ... d[t], the start being one more x in front."""
    start = s.get("h", torch.zeros_like(x["x"][:, 0]))
    xs, T = torch.cat([start[:, None], x["x"]], 1), x["x"].shape[1]
    d = torch.cat([torch.ones_like(start)[:, None], x["d"]], 1)
    rows = []
    for t in range(1, T + 1):
        since = torch.stack([d[:, j + 1:t + 1].prod(1) for j in range(t + 1)], 1)
        rows.append((xs[:, :t + 1] * since).amax(1))
    return torch.stack(rows, 1), {"h": rows[-1]}


@case("ar_net", wide=True, start=False)
def _(x: Tensors, s: Tensors) -> Result:
    H, W = x["a"].shape
    u = F.pad(x["x"].transpose(1, 2), (W - 1, 0))
    return F.conv1d(u, x["a"].flip(-1)[:, None], x["b"], groups=H).transpose(1, 2), None
