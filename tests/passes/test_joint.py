"""States of three dims, two of which are read together, are matrices: the same step, and what is none."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.ir.evaluate import Env, align, evaluate
from mixc.passes.classify import classify
from mixc.passes.joint import joint

SIZES = {"N": 3, "K": 4, "V": 5, "N*K": 12}
INS = ("in q[K], k[K] where norm[K](k) <= 1, v[V], w[N], u[N] where norm[N](u) <= 1, g where g <= 0\n"
       "in gn[N] where gn <= 0, gk[K] where gk <= 0, b where 0 <= b <= 1\nparam A[N, K]\n")
TOGETHER = {
    "a decay of each": "S = exp(gn) * S + w * k * v\nout o[V] = softmax[N](w) @ (q @ S)",
    "the other dim first": "S = exp(g) * S + w * k * v\nout o[V] = q @ (w @ S)",
    "products of decays": "S = exp(gn) * exp(gk) * S + w * k * v\nout o[V] = -(w @ (2 * (q @ S)))",
    "a choice": "S = where(w >= max[N](w), exp(g), 1) * S + w * k * v\nout o[V] = sum[N](w * (q @ S)) + v",
    "a param": "S = exp(g) * S + w * k * v\nout o[V] = sum[N, K](A * S)",
    "a sum of one": "S = exp(g) * S + w * k * v\nout o[V] = sum[N](q @ S)",
    "a correction": "S = exp(g) * S\nS = S + b * (u * k) * (v - u @ (k @ S))\nout o[V] = w @ (q @ S)",
    "a normaliser":
        "S = exp(gn) * S + w * k * v\nz = exp(gn) * z + w * k\nout o[V] = (w @ (q @ S)) / (1 + abs(w @ (q @ z)))",
}
APART = {
    "each read alone": "S = exp(g) * S + w * k * v\nout o[N, V] = q @ S",
    "something between": "S = exp(g) * S + w * k * v\nout o[V] = w @ tanh(q @ S)",
    "what is read, times itself": "S = exp(g) * S + w * k * v\ny = q @ S\nout o[V] = sum[N](y * y)",
    "a correction of each": "S = S + b * k * (v - k @ S)\nout o[V] = w @ (q @ S)",
    "the state itself": "S = exp(g) * S + w * k * v\nout o[N, K, V] = S",
}


def spec(body: str) -> mixc.Mixer:
    return mixc.loads(f"mixer m(N, K, V) {{\n{INS}state S[N, K, V]{', z[N, K]' * ('z =' in body)}\n{body}\n}}")


@pytest.mark.parametrize("what", TOGETHER)
def test_it_is_the_same_step(what):
    step = spec(TOGETHER[what]).declared
    found = joint(step)
    assert found is not None and {len(s.dims) for s in found.states} <= {1, 2}
    assert {g.form for g in classify(found).groups} == {"chunk"}
    g = torch.Generator().manual_seed(0)
    given = {d.name: torch.randn(2, *(SIZES[x] for x in d.dims), generator=g, dtype=torch.float64)
             for d in step.decls if d.role in ("in", "param", "state")}
    for r, other in zip(step.results, found.results, strict=True):
        values = []
        for program, value in ((step, r.value), (found, other.value)):
            dims = program.decl(r.name).dims
            env = Env(lambda n: given[n.attr("name")].reshape(2, *(SIZES[d] for d in n.dims)), SIZES, batch=1)
            values.append(align(evaluate([value], env)[0], value.dims, dims, 1).flatten())
        torch.testing.assert_close(*values)


def test_states_whose_entries_lie_otherwise_are_left():
    text = f"mixer m(N, K, V) {{\n{INS}state S[N, K, V], z[K, N]\nS = exp(g) * S + w * k * v\nz = z + w * k\n" \
           "out o[V] = (w @ (q @ S)) * (q @ (z @ w))\n}"
    assert joint(mixc.loads(text).declared) is None


@pytest.mark.parametrize("what", APART)
@pytest.mark.filterwarnings("ignore:.*MX301")
def test_what_needs_one_of_them_alone_is_left(what):
    assert joint(spec(APART[what]).declared) is None
