"""Outs that are means of many rows, or reads divided by their size, whose gradients are small differences: formed of
TF32 operands."""

from __future__ import annotations

import re

import pytest
import torch

import mixc
from mixc.codegen.derivation import lowered
from mixc.ir.build import make, number
from mixc.ir.node import Node
from mixc.ir.ranges import bounds, proving
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.partition import averages, in_full, normalises
from mixc.runtime.load import shipped
from tests import cells

MEANS = ("linear_attention_normalised", "norm_attention")
READ = """mixer m(K, V) {{
    in q[K], v[V]
    in k[K]
    in g[K] where g <= 0
    state S[K, V], n[K]
    S = {decay}S + {k} * v
    n = {decay}n + {k}
    out o[V] = ({q} @ S) / ({q} @ n + 1e-6)
}}"""
READS = {  # is it a mean of weights that are at least 0?
    "features that are": (dict(k="exp(k)", q="(elu(q) + 1)", decay=""), True),
    "under a decay": (dict(k="softplus(k)", q="square(q)", decay="exp(g) * "), True),
    "keys of any sign": (dict(k="k", q="exp(q)", decay=""), False),
    "queries of any sign": (dict(k="exp(k)", q="q", decay=""), False),
}


def forward(mixer):
    return chunk(classify(mixer.declared))


@pytest.mark.parametrize("which", READS)
def test_weights_that_are_at_least_0(which: str) -> None:
    given, mean = READS[which]
    program = forward(mixc.loads(READ.format(**given)))
    assert averages(program) is mean
    assert in_full(program) == (frozenset("Sn") if mean else frozenset())


def test_of_the_shipped_specs() -> None:
    """Those whose q @ n may be of any sign (mlstm) do not pay: no row of their states is nearly the mean."""
    steps = {name: mixc.load(name).declared for name in shipped() if "chunk" in mixc.load(name).form.values()}
    found = [n for n, step in steps.items() if not classify(step).parts and averages(chunk(classify(lowered(step))))]
    assert tuple(sorted(found)) == MEANS


@pytest.mark.parametrize("name", [*MEANS, "mlstm"])
def test_products_that_meet_in_a_difference(name: str) -> None:
    """Not what the cotangents of states are formed by, or those of keys and values."""
    text = mixc.load(name).emit("h100")
    kernels = re.findall(rf"def {name}_(fwd|bwd)(?:_chunk_on)?\((.*?)(?=\n@triton.jit|\nclass )", text, re.S)
    fwd, bwd = ("".join(body for way, body in kernels if way == one) for one in ("fwd", "bwd"))
    fine, others = "tl.float32, PRECISION", "OPERAND, PRECISION"
    assert (fwd.count(fine), bwd.count(fine)) == ((4, 7) if name in MEANS else (0, 0))
    assert name not in MEANS or (fwd.count(others) == 0 and bwd.count(others) == 5)


@pytest.mark.parametrize("name,size,length", [(MEANS[0], 33, 64), (MEANS[0], 100, 16), (MEANS[1], 5, 65)])
def test_gradients_of_queries(name: str, size: int, length: int) -> None:
    """Also where rows are handed on to programs that divide a dim (100)."""
    cell = dict(length=length, size=size, heads="1", gates=1.0, dtype=torch.bfloat16, rows="plain", start=False)
    found = [f for seed in range(3) for f in cells.compare(mixc.load(name), cell, "triton", seed)]
    assert all(f.ok for f in found), "; ".join(str(f) for f in found if not f.ok)


SIZED = {  # how r = q @ S is read: is it divided by its own size?
    "r * rsqrt(mean(square(r)) + 1e-6)": True,
    "r / (norm[V](r) + 1e-3)": True,
    "(r - mean[V](r)) / sqrt(mean(square(r - mean[V](r))) + 1e-5)": True,
    "r / maximum(max[V](abs(r)), 1)": True,
    "r * sigmoid(sum[V](r))": False,
    "r / maximum(abs(q @ n), 1)": False,
    "r * rsqrt(mean(square(v)) + 1e-6)": False,
}
TURNED = """mixer m(K, V) {{
    in q[K], k[K], v[V]
    param a where 0 < a < 1
    state S[K, V], Z[K, V], n[K]
    S = a * S + k * cos(pos * index[K]) * v
    Z = a * Z + k * sin(pos * index[K]) * v
    n = a * n + k
    r = (q * cos(pos * index[K])) @ S + (q * sin(pos * index[K])) @ Z
    out o[V] = {}
}}"""


@pytest.mark.parametrize("read", SIZED)
def test_reads_divided_by_their_size(read: str) -> None:
    assert normalises(chunk(classify(lowered(mixc.loads(TURNED.format(read)).declared)))) is SIZED[read]


def test_gradients_of_reads_divided_by_their_size() -> None:
    """dq was off by 3.5e-2, dk by 2.3e-2."""
    mixer = mixc.loads(TURNED.format(next(iter(SIZED))))
    cell = dict(length=60, size=5, heads="1", gates=1.0, dtype=torch.bfloat16, rows="plain", start=True)
    found = [f for seed in (0, 3) for f in cells.compare(mixer, cell, "triton", seed)]
    assert all(f.ok for f in found), "; ".join(str(f) for f in found if not f.ok)


def test_ranges_that_prove_it() -> None:
    x: Node = make("in", name="x", dims=("K",), kind="real")
    low = {"elu(x) + 1": make("elu", x) + 1.0, "square(x)": make("square", x), "exp(x) - 1": make("exp", x) - number(1)}
    with proving(mixc.load("mlstm").declared):
        assert {n: bounds(v).low for n, v in low.items()} == {"elu(x) + 1": 0.0, "square(x)": 0.0, "exp(x) - 1": -1.0}
