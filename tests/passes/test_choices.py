"""Updates that choose by a condition: along a dim too, and between values of which one may be no number."""

from __future__ import annotations

import pytest
import torch

import mixc
from tests import cells

HEADER = """mixer m(K, V, P) {{
    in q[K], v[V], r[P], u[K]
    in k[K] where norm[K](k) <= 1
    in b where 0 <= b <= 1
    in c[K] where 0 <= c <= 1
    state S[{dims}]
    {body}
}}"""
MATRIX, BESIDE = "K, V", "P, K, V"
CHOOSING = {  # the state's dims, the body
    "a write, entries of K": (MATRIX, "S = where(u > 0.2, k * v, S)\nout o[V] = q @ S"),
    "a write, one of several matrices": (BESIDE, "S = where(r > 0.2, 0.9 * S + k * v, S)\nout o[P, V] = q @ S"),
    "a correction, entries of K": (MATRIX, "S += where(u > 0.2, b * k * (v - k @ S), 0)\nout o[V] = q @ S"),
    "a correction, one of several matrices":
        (BESIDE, "w = r >= max(r)\nS = where(w, S + b * k * (v - k @ S), S)\nout o[V] = sum[P](w * (q @ S))"),
    "a quotient": (MATRIX, "S += where(b > 0, k / b * v, 0)\nout o[V] = q @ S"),
    "a quotient, entries of K": (MATRIX, "S += where(c > 0, k / c * v, 0)\nout o[V] = q @ S"),
    "an update of a logarithm": (MATRIX, "S = where(b > 0, 0.9 * S + log(b) * k * v, S)\nout o[V] = q @ S"),
    "a correction of a quotient":
        (MATRIX, "S = where(b > 0, S - 0.1 * k / sqrt(b) * (k / sqrt(b) @ S) + k * v, S)\nout o[V] = q @ S"),
    "a value of a quotient":
        (MATRIX, "e = where(b > 0, v / b - k @ S, 0)\nS += 0.1 * k * e\nout o[V] = q @ S"),
}


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", CHOOSING)
def test_choices(what, backend):
    """They were scans, and what was not taken was multiplied by 0: 0 * inf."""
    dims, body = CHOOSING[what]
    mixer = mixc.loads(HEADER.format(dims=dims, body=body))
    assert mixer.form == {"S": "chunk"}, mixer.why
    dtype = torch.float64 if backend == "torch" else torch.float32
    for gates in ("zero", 1.0):
        cell = dict(length=37, size=5, heads="2", gates=gates, dtype=dtype, rows="plain", start=True)
        with cells.cut(16):
            bad = [str(f) for f in cells.compare(mixer, cell, backend) if not f.ok]
        assert not bad, "; ".join(bad)


def test_what_is_no_outer_product_where_it_is_not_chosen():
    """1 / c has K, the condition V: no product of a factor each is 0 where the condition does not hold."""
    mixer = mixc.loads(HEADER.format(dims=MATRIX, body="S = 0.9 * S + where(v > 0, v / c, 0)\nout o[V] = q @ S"))
    assert mixer.form == {"S": "scan"} and "no sum of outer products" in mixer.why["S"]


def test_a_correction_read_in_two_steps():
    """`c @ (k @ S)` was refused as a sum over J, along which the matrices were to lie beside each other."""
    mixer = mixc.loads("mixer m(K, V, J) {\nin q[K], r[J], v[V], b where 0 <= b <= 1\nin k[K] where norm[K](k) <= 1\n"
                       "in c[J] where norm[J](c) <= 1\nstate S[K, J, V]\nS = S + b * k * c * (v - c @ (k @ S))\n"
                       "out o[V] = r @ (q @ S)\n}")
    assert mixer.form == {"S": "chunk"}, mixer.why
    cell = dict(length=37, size=5, heads="2", gates=1.0, dtype=torch.float64, rows="plain", start=True)
    assert all(f.ok for f in cells.compare(mixer, cell, "torch"))
