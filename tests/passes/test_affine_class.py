"""Every affine matrix state comes out in chunks: decays along any side, corrections, micro-steps, reads anywhere."""

import math

import pytest
import torch

import mixc
from mixc.runtime.agree import FLOOR, rms
from tests.agree import assert_agree

HEADER = """mixer m(K, V) {{
    in q[K], v[V]
    in k[K] where norm[K](k) <= 1
    in y[K] where norm[K](y) <= 1
    in x[V] where norm[V](x) <= 1
    in w[V] where norm[V](w) <= 1
    in g where g <= 0
    in gk[K] where gk <= 0
    in gv[V] where gv <= 0
    in beta where 0 <= beta <= 1
    in bv[V] where 0 <= bv <= 1
    in bk[K] where 0 <= bk <= 1
    in d where -1 <= d <= 1
    in dk[K] where -1 <= dk <= 1
    in dv[V] where -1 <= dv <= 1
    param p[K] where p <= 0
    {normaliser}
    state S[K, V]
    {body}
}}
"""
BODIES = {
    "gla": """
    S = exp(gk) * S + k * v
    out o[V] = q @ S
    """,
    "gla_v": """
    S = exp(gv) * S + k * v
    out o[V] = q @ S
    """,
    "gla_kv": """
    S = exp(gk + gv) * S + k * v
    out o[V] = q @ S
    """,
    "gla_kv2": """
    S = exp(gk) * exp(gv) * exp(g) * S + k * v
    out o[V] = q @ S
    """,
    "param": """
    S = exp(p + gk) * S + k * v
    out o[V] = q @ S
    """,
    "rwkv6": """
    out o[V] = q @ (S + exp(p) * k * v)
    S = exp(gk) * S + k * v
    """,
    "num_k": """
    S = dk * S + k * v
    out o[V] = q @ S
    """,
    "num_v": """
    S = dv * S + k * v
    out o[V] = q @ S
    """,
    "num_kv": """
    S = dk * dv * S + k * v
    out o[V] = q @ S
    """,
    "mix": """
    S = dk * exp(gk) * exp(gv) * d * S + k * v
    out o[V] = q @ S
    """,
    "delta": """
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "gdn": """
    S = exp(g) * S
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "kda": """
    S = exp(gk) * S
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "rwkv7": """
    S = exp(gk) * S - bk * y * (y @ S) + k * v
    out o[V] = q @ S
    """,
    "comba": """
    S = exp(g) * S + beta * k * (v - y @ S)
    out o[V] = q @ S
    """,
    "vside": """
    S = exp(g) * S
    S = S + beta * (k - S @ x) * x
    out o[V] = q @ S
    """,
    "vside_gv": """
    S = exp(gv) * S
    S = S + beta * (k - S @ x) * w
    out o[V] = q @ S
    """,
    "oja": """
    S = exp(g) * S + beta * (k - S @ v) * v
    out o[V] = q @ S
    """,
    "cross": """
    S = exp(gv) * S
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "strength": """
    S = exp(g) * S
    S = S + bv * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "strength_kv": """
    S = exp(gk) * S
    S = S + bv * bk * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "numdelta": """
    S = d * S
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "numkdelta": """
    S = dk * S
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
    """,
    "two": """
    S = S + beta * k * (v - k @ S)
    S = exp(gk) * S
    out o[V] = y @ S
    S = S - 0.5 * y * (y @ S)
    S = S + k * v
    out r[V] = q @ S
    """,
    "two_same": """
    S = exp(g) * S - beta * k * (k @ S) - 0.3 * y * (q @ S) + y * v
    out o[V] = q @ S
    """,
    "half": """
    a = k @ S
    S = exp(g) * S
    S = S + y * v
    b = y @ S
    S = S - beta * k * (a + 0.5 * b)
    out o[V] = q @ S
    """,
    "expanded": """
    S = exp(g) * S + beta * k * v - beta * k * (k @ S)
    out o[V] = q @ S
    """,
    "bilinear": """
    S = exp(g) * S - 0.5 * k * x * ((y @ S) @ w) + k * v
    out o[V] = q @ S
    """,
    "err_out": """
    e = v - k @ S
    S = exp(gk) * S + beta * k * e
    out o[V] = q @ S
    out err[V] = e
    """,
    "whole": """
    S = exp(gk) * S + k * v
    out o[K, V] = S
    """,
    "whole_delta": """
    S = exp(gk) * S
    S = S + beta * k * (v - k @ S)
    out o[K, V] = S * q
    """,
    "sums": """
    S = exp(gk) * S + k * v
    out o[V] = sum[K](q * S)
    out r[K] = sum[V](S)
    """,
    "where": """
    S = where(beta < 0.5, 0, exp(gk) * S) + k * v
    out o[V] = q @ S
    """,
    "mixread": """
    out a[V] = q @ S
    S = exp(gk) * S
    out o[V] = q @ S
    S = S + k*v
    S = exp(gv) * S
    out r[V] = q @ S
    """,
    "grad": """
    loss = 0.5 * sum(square(k @ S - v))
    S = exp(g) * S - beta * grad[S](loss)
    out o[V] = q @ S
    """,
    "grad_decay": """
    loss = 0.5 * sum(square(k @ S - v)) + 0.1 * sum(bv * square(S))
    S = S - beta * grad[S](loss)
    out o[V] = q @ S
    """,
    "kside_read_v": """
    S = exp(gk) * S
    S = S + beta * k * (v - k @ S)
    out o[K] = S @ x
    """,
    "gate_e": """
    S = exp(g)*S
    S = S + beta * k * (silu(bv) * v - 2 * (k @ S) / (1 + bv))
    out o[V] = q @ S
    """,
    "sigm": """
    S = sigmoid(y) * S + (1 - sigmoid(y)) * v
    out o[V] = q @ S
    """,
    "expm": """
    S = exp(gk) * S - expm1(gk) * v
    out o[V] = q @ S
    """,
    "bilinear_out": """
    S = exp(gk) * S
    S = S - bk * y * (y @ S) + k * v
    out o = q @ S @ x
    out r = sum[K, V](y * w * S)
    """,
    "repeated": """
    S = exp(g) * S + bk
    out o = sum(S)
    out r[K] = sum[V](S)
    """,
    "repeated_k": """
    S = exp(gk) * S + bk
    out o = sum(S)
    S = S + bv
    out r[V] = y @ S
    """,
    "norm": """
    S = exp(gk) * S + k * v
    n = exp(gk) * n + k
    out o[V] = (q @ S) / (1 + abs(q @ n))
    """,
    "delta_n": """
    S = exp(gk) * S
    S = S + beta * k * (v - k @ S)
    n = exp(gk) * n
    n = n + beta * k * (1 - k @ n)
    out o[V] = (q @ S) / (1 + abs(q @ n))
    """,
    "vecdelta": """
    n = exp(gk) * n
    n = n + beta * k * (beta - k @ n)
    S = 0.5 * S + k * v
    out o = q @ n
    out r[V] = q @ S
    """,
    "chain": """
    n = exp(g) * n
    n = n + beta * k * (1 - k @ n)
    S = exp(gk) * S + k * v * (q @ n)
    S = S - 0.1 * y * (y @ S)
    out o[V] = q @ S
    """,
}

WITH_NORMALISER = ("norm", "delta_n", "vecdelta", "chain")


def load(name):
    return mixc.loads(HEADER.format(normaliser="state n[K]" if name in WITH_NORMALISER else "", body=BODIES[name]))


def draw(mixer, B, T, H, sizes):
    torch.manual_seed(0)

    def one(d, lead):
        x = torch.randn(*lead, *[sizes[n] for n in d.dims], dtype=torch.float64)
        if d.name[0] == "g" or d.name == "p":
            return -x.abs()
        if d.name in "kyxw":
            return x / x.norm(dim=-1, keepdim=True)
        return x.sigmoid() if d.name[0] == "b" else x.tanh() if d.name[0] == "d" else x
    p = mixer.declared
    tensors = {d.name: one(d, (B, T, H)) for d in p.ins} | {d.name: one(d, (H,)) for d in p.params}
    tensors["g"][0, 5], tensors["gk"][0, 7, 0, 1], tensors["gv"][0, 9] = -math.inf, -math.inf, -100.0
    tensors["d"][0, 3], tensors["dk"][1, 4, :, 2], tensors["gk"][:, 11] = 0.0, 0.0, 0.0
    states = {d.name: one(d, (B, H)) for d in p.states}
    return tensors, states


def run(mixer, tensors, states, backend):
    """Outs, final states and gradients by name, under cotangents of a fixed seed."""
    tensors, states = ({n: x.clone().requires_grad_() for n, x in t.items()} for t in (tensors, states))
    o, final = mixer(**tensors, initial_state=states, output_final_state=True, backend=backend)
    outs = o._asdict() if isinstance(o, tuple) else {mixer.declared.outs[0].name: o}
    generator = torch.Generator().manual_seed(1)
    found = {**outs, **{f"{n}'": x for n, x in final.items()}}
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum()
               for x in found.values())
    loss.backward()
    grads = {f"d{n}": x.grad for n, x in (*tensors.items(), *states.items()) if x.grad is not None}
    return {n: x.detach() for n, x in found.items()} | grads


def assert_chunks_equal_tokens(mixer):
    tensors, states = draw(mixer, 2, 21, 2, dict(K=4, V=5))
    want, got = (run(mixer, tensors, states, backend) for backend in ("reference", "torch"))
    assert_equal_runs(got, want, torch.float64)


def assert_equal_runs(got, want, dtype):
    floor = FLOOR * max(rms(x) for n, x in want.items() if n.startswith("d"))
    for name, x in want.items():
        y = got.get(name, torch.zeros_like(x))
        assert y.isfinite().all(), name
        assert_agree(y, x, dtype, floor=floor if name.startswith("d") else 0.0, name=name)


@pytest.mark.parametrize("name", BODIES)
def test_chunks_equal_tokens(name):
    mixer = load(name)
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    assert_chunks_equal_tokens(mixer)


REFUSED = {
    "both sides": ("S = S + beta * k * (v - k @ S) + x * (y - S @ x)", "corrected along both sides"),
    "decay": ("S = exp(gk * gv) * S + k * v", "does not separate over K, V"),
    "tanh": ("S = S + k * tanh(k @ S)", "is not affine in it: `tanh(k @ S)`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_of_the_class_is_refused_with_the_term(name):
    body, why = REFUSED[name]
    mixer = mixc.loads(HEADER.format(normaliser="", body=body + "\n out o[V] = q @ S"))
    assert why in mixer.why["S"]
    assert mixer.form["S"] == ("scan" if name == "decay" else "sequential")


@pytest.mark.parametrize("out", ["o[V] = sum[K](S)", "o = sum(S)", "o = q @ S @ v"])
def test_sums_and_bilinear_reads_in_kernels(out):
    """Over several chunks: a query of ones has a row a token, as any other."""
    mixer = mixc.loads("mixer m(K, V) {\n in q[K], k[K], v[V]\n in g[K] where g <= 0\n state S[K, V]\n"
                       f" S = exp(g) * S + k * v\n out {out}\n}}")
    x = {n: torch.randn(1, 37, 1, 5) for n in "qkvg"}
    x["g"] = -x["g"].abs()
    want = mixer(**{n: t.double() for n, t in x.items()}, backend="reference")[0]
    assert_agree(mixer(**x, backend="triton")[0], want, torch.float32)
