"""Bounds on the norms of what is formed of vectors: proved, and true of numbers."""

import math

import pytest
import torch

import mixc
from mixc.ir.norms import norm_over
from mixc.ir.ranges import proving
from tests import cells
from tests.agree import run

HEADER = """mixer m(K, V) {{
    in    q[K], k[K], v[V], f[K]
    in    p[K] where norm[K](p) <= 1
    in    b where 0 <= b <= 1
    in    g where g <= 0
    state S[K, V]

    u = {}
    S = exp(g) * S
    S = S + b * u * (v - u @ S)
    out o[V] = q @ S
    out w[K] = u
}}
"""
KEYS = {  # a bound on the norm
    "p": 1, "-p": 1, "p * b": 1, "3 * p": 3, "p / 2": 0.5, "p + 0.5 * p": 1.5, "p - b * p": 2, "sigmoid(f) * p": 1,
    "k / maximum(norm[K](k), 1e-6)": 1, "k / (norm(k) + 1e-6)": 1, "k * rsqrt(sum(square(k)) + 1e-6)": 1,
    "k / sqrt(sum(k * k) + 1e-3)": 1, "2 * (k / sqrt(k @ k + 1))": 2, "(1 / maximum(norm(k), 1)) * k": 1,
    "softmax(k)": 1, "where(b > 0.5, p, 0.5 * p)": 1, "b * p + (1 - b) * softmax(f)": 1, "0.25 * p + 0.75 * (-p)": 1,
    "0.5 * (p + lag(p, 1))": 1, "f": math.inf, "k / norm(f)": math.inf,
    "k * rsqrt(mean(square(k)) + 1e-6)": math.inf, "p + f": math.inf, "p / b": math.inf,
    "k * rsqrt(sum(square(k)) - 1)": math.inf, "k / maximum(mean(k), 1)": math.inf, "(1 - b) * p + (1 - b) * p": 2,
}


@pytest.mark.parametrize("key", KEYS)
def test_norms(key):
    mixer, most = mixc.loads(HEADER.format(key)), KEYS[key]
    step = mixer._staged
    with proving(step):
        u = step.result("out", "w")
        assert norm_over(u, frozenset("K")) == pytest.approx(most)
    cell = dict(length=40, size=5, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=False)
    x = cells.given(mixer, cell)
    if most < math.inf:
        w = run(mixer, x.tensors, grads=False).outs["w"]
        assert (w.norm(dim=-1) <= most * (1 + 1e-12)).all()


@pytest.mark.parametrize("key,half", [
    ("k / maximum(norm[K](k), 1e-6)", True), ("softmax(k)", True), ("0.5 * (p + lag(p, 1))", True),
    ("lag(y, 2)", True), ("f", False)])
def test_keys_that_are_made_short_are_half_operands(key, half):
    """The system's products were in TF32, in tiles a fourth as wide."""
    spec = HEADER.format(key).replace("    u =", "    y = k / maximum(norm[K](k), 1e-6)\n    u =")
    text = mixc.loads(spec).emit(target="h100", dtype="bf16")
    assert ("PRECISION, True).to(OPERAND)" in text) is half


@pytest.mark.parametrize("key", ["k / maximum(norm[K](k), 1e-6)", "softmax(k)"])
def test_they_are_precise_enough(key):
    mixer = mixc.loads(HEADER.format(key))
    cell = dict(length=90, size=40, heads="1", gates="zero", dtype=torch.bfloat16, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)
