"""Kernels of a step that takes entries of its inputs one by one: no tile has their dim; interpreted, against fp64."""

from __future__ import annotations

import re
from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.codegen import triton_program
from mixc.codegen.config import Config, Tile
from mixc.codegen.triton_program import kernels
from mixc.ir.node import COL, make
from mixc.ir.ranges import bounds, proving
from mixc.passes.entries import entries_apart
from tests import cells

SPECS = {
    "corrections": """in q[K], k[N, K], v[N, V], b[N], g
        state S[K, V]
        S = sigmoid(g) * S
        for n in N { S = S + 0.3 * sigmoid(b[n]) * k[n] * (v[n] - k[n] @ S) }
        out o[V] = q @ S""",
    "writes, under a param of each": """in q[K], k[N, K], v[N, V], g
        param w[N, K], s[N]
        state S[K, V]
        S = sigmoid(g) * S
        for n in N { S = S + s[n] * w[n] * k[n] * v[n] }
        out o[V] = q @ S""",
    "a sum of all beside": """in q[K], k[N, K], v[N, V], b[N], g
        state S[K, V]
        S = sigmoid(g) * S
        for n in N { S = S + k[n] * v[n] * b[n] }
        out o[V] = (q @ S) * sum[N](b * b)""",
    "a vector beside": """in q[K], k[N, K], v[N, V], g
        state S[K, V], z[K]
        S = sigmoid(g) * S
        for n in N {
            S = S + k[n] * v[n]
            z = 0.5 * z + tanh(k[n])
        }
        out o[V] = (q @ S) * (q @ z)""",
}


def loaded(what: str) -> mixc.Mixer:
    return mixc.loads("mixer m(K, V, N = 3) {\n" + SPECS[what] + "\n}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", SPECS)
def test_the_same_numbers(what, dtype):
    mixer = loaded(what)
    cell = dict(length=40, size=3, heads="1", gates=0.1, dtype=dtype, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


SHARES = {
    "of a fixed dim": "(K, V, N = 3) {\nin q[K], k[N, K], v[N, V], r[N]\nstate S[K, V]\na = softmax[N](r)\n"
                      "for n in N { S = S + a[n] * k[n] * (v[n] - 0.3 * k[n] @ S) }\nout o[V] = q @ S",
    "of a dim that the call fixes": "(K, V, N) {\nin q[K], k[N, K], v[N, V], r[N]\nparam w[N]\nstate S[K, V]\n"
                                    "a = softmax[N](r + w)\nfor n in N { S = 0.9 * S + a[n] * k[n] * v[n] }\n"
                                    "out o[V] = q @ S",
    "over two dims": "(K, V, N = 3, M = 2) {\nin q[K], k[N, K], v[N, V], r[N, M]\nstate S[K, V]\n"
                     "a = sum[M](softmax[N, M](r))\nfor n in N { S = 0.9 * S + a[n] * k[n] * v[n] }\nout o[V] = q @ S",
    "of a window": "(K, V, W = 4) {\nin q[K], k[K], v[V]\na = softmax[W](lag[W](k) @ q)\n"
                   "out o[V] = sum[W](a * lag[W](v))",
    "in a scan": "(K, N = 3) {\nin x[N, K], r[N, K]\nstate h[K]\na = softmax[N](r)\n"
                 "for n in N { h = a[n] * h + x[n] }\nout o[K] = h",
}


@pytest.mark.parametrize("what", SHARES)
def test_an_entry_of_a_softmax_is_one_of_all(what):
    """It was that of a softmax over this entry alone: 1."""
    cell = dict(length=20, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixc.loads(f"mixer m{SHARES[what]}\n}}"), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("cell", [dict(length=(0, 0, 3, 3, 37)), dict(rows="mask, reverse"), dict(heads="2/1", size=4)],
                         ids=cells.label)
def test_calls(cell):
    cell = dict(length=40, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True) | cell
    bad = [str(f) for f in cells.compare(loaded("corrections"), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("chunk,cell", [(16, {}), (32, dict(dtype=torch.bfloat16)), (32, dict(length=(0, 1, 20, 45))),
                                        (32, dict(length=9)), (16, dict(rows="mask, reverse", heads="2/1"))])
def test_rows_and_pairs_of_rows_that_are_handed_on(chunk, cell):
    """What inverses sum over K: the forward hands its matrices of pairs of rows on, and no row of K."""
    made = kernels(loaded("corrections").declared)
    cut = next(fwd + bwd for fwd, bwd in made.plans if "bwd_along_K" in bwd)
    handed = [s.dims for n in cut for s in made.launches[n].stores if s.result == "save"]
    assert (COL,) in handed and not any("K" in dims for dims in handed)
    tiles = Config(tuple((n, Tile(chunk, (("V", 16),) if "for" in n else (("K", 16),))) for n in cut), 32)
    cell = dict(length=50, size=20, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True) | cell
    with patch.object(triton_program, "_config", lambda *_: tiles):
        bad = [str(f) for f in cells.compare(loaded("corrections"), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("what", [w for w in SPECS if "all" not in w])
def test_no_tile_has_the_dim(what):
    text = loaded(what).emit()
    for kernel in re.findall(r"^@triton\.jit.*?\ndef m_(?:fwd|bwd|token).*?(?=^@|^class)", text, re.S | re.M):
        assert "in_N" not in kernel or "dw_sum" in kernel or "ds_sum" in kernel  # sums of a param's gradient are whole
        assert "pick" not in kernel


def test_an_entry_lies_in_the_range_of_its_tensor():
    step = mixc.load("deltaproduct").declared
    beta, = (d.leaf() for d in step.ins if d.name == "beta")
    entry, = entries_apart(step.with_values([make("pick", beta, dim="N", i=1)] * len(step.results))).values()[:1]
    assert entry.attr("at") == (("N", 1),) and entry.op == "in"
    with proving(step):
        assert (bounds(entry).low, bounds(entry).high) == (0.0, 2.0)
