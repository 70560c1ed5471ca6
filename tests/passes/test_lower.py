"""What a computation is lowered to means the same: sums over the spans that cross a row, by rows and by levels."""

from __future__ import annotations

import re

import pytest
import torch

import mixc
from mixc.ir.build import total
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, LEVEL, ROW, Node, make, postorder
from mixc.passes.lower import RULES, span_crossing_by_rows, with_crossings
from mixc.passes.simplify import rewrite
from mixc.runtime import compiled
from tests import cells

A = make("in", name="a", dims=(ROW, COL), kind="real")
X, G = (make("in", name=n, dims=(ROW, "D"), kind="real") for n in "xg")
Y = make("in", name="y", dims=(COL, "D"), kind="real")
WIDE = make("in", name="w", dims=(ROW, COL, "E"), kind="real")  # no matrix
WIDE_X = make("in", name="u", dims=(ROW, "D", "E"), kind="real")
Z = make("in", name="z", dims=(COL, "D", "E"), kind="real")


def values(roots: list[Node]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    drawn = {n.attr("name"): torch.randn(2, *(8 if d[0] == "_" else 3 for d in n.dims), dtype=torch.float64)
             for n in (A, X, G, Y, WIDE, WIDE_X, Z)}
    sizes = {ROW: 8, COL: 8, LEVEL: 3, "_u": 8, "D": 3, "E": 3}
    return evaluate(roots, Env(lambda n: drawn[n.attr("name")], sizes, dtype=torch.float64, batch=1))


def pairs(x: torch.Tensor, reach: str) -> torch.Tensor:
    """[j]: the sum of x [t, s] over t >= j > s (excl: t > j)."""
    rows = range(x.shape[1])
    return torch.stack([sum((x[:, t, s] for t in rows for s in rows if s < j <= t and (reach != "excl" or t > j)),
                            torch.zeros_like(x[:, 0, 0])) for j in rows], 1)


@pytest.mark.parametrize("reach", ["strict", "excl"])
@pytest.mark.parametrize("given", [(A, X, Y), (Y, A, X), (WIDE, Z, X)], ids=["matrix", "another order", "no matrix"])
def test_what_spans_a_row(given: tuple[Node, ...], reach: str) -> None:
    crossing = make("span_crossing", *given, G, reach=reach)
    terms = make("exp", make("segsum", G, reach=reach))
    for x in given:
        terms = terms * x
    (each,) = values([total(terms, [d for d in terms.dims if d == "E"])])
    (want,) = values([crossing])
    torch.testing.assert_close(want, pairs(each, reach), rtol=1e-12, atol=1e-12)
    for lowered in (rewrite([crossing], (span_crossing_by_rows,)), with_crossings([crossing])):
        assert not any(n.op == "span_crossing" for n in postorder(lowered))
        for roots in (lowered, rewrite(lowered, RULES)):
            torch.testing.assert_close(*values(roots), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reach", ["strict", "excl"])
@pytest.mark.parametrize("x,y", [(X, Y), (WIDE_X, Z)], ids=["vectors", "with another dim"])
def test_gradients_come_with_what_spans_a_row(x: Node, y: Node, reach: str) -> None:
    roots = [make("span_crossing", A, x, y, G, reach=reach), make("span_contract", A, y, G, out=x.dims, reach=reach),
             make("span_contract", A, x, G, out=y.dims, reach=reach)]
    together = with_crossings(roots)
    assert [n.op for n in postorder(together)].count("span_gradient") == 1
    assert not any(n.op == "span_contract" for n in postorder(together))
    for a, b in zip(values(together), values(roots), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_value_that_reads_its_own_product() -> None:
    """x is formed of A's product with y: that one cannot come with the crossing of both."""
    found = make("span_contract", A, Y, G, out=(ROW, "D"), reach="strict")
    roots = [make("span_crossing", A, make("tanh", found), Y, G, reach="strict"), found]
    for a, b in zip(values(with_crossings(roots)), values(roots), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name,calls", [("gla", 1), ("kda", 2), ("rwkv6", 1)])
def test_one_call_a_matrix(name: str, calls: int) -> None:
    """The gradients of decays come with those of what they decay, and are not paid for where nobody wants them."""
    code = compiled.compiled(mixc.load(name).declared)
    wanted = frozenset(d.name for d in (*code.step.ins, *code.step.params))
    decay = next(n for n in wanted if n in ("g", "w"))
    text, without = (code.backward(False, True, w).text for w in (wanted, wanted - {decay}))
    assert text.count("span_gradient(") == calls and "span_apply" not in text
    assert "span_gradient(" not in without and "span_apply(" in without


def test_in_the_loop_over_chunks() -> None:
    """Where the next cotangent of a state needs one of the three the loop forms them all."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], w[K], u[V], g[K] where g <= 0\n"
                       "state L[K, V], S[K, V], M[K, V]\nL += k * v\nS = exp(g) * S + k * v\n"
                       "M += w * ((L @ u) @ S)\nout o[V] = q @ M\n}")
    code = compiled.compiled(mixer.declared)
    assert re.search(r" {8}\w+ = span_gradient\(", code.backward(False, True, frozenset("qkvwug")).text)
    cell = dict(length=150, size=5, heads="2", gates=0.1, dtype=torch.float64, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("name,lasts", [("dplr", True), ("comba", True), ("kda", False), ("rwkv7", False)])
def test_what_is_rounded_on_the_way_of_a_state_lasts_where_nothing_erases_it(name: str, lasts: bool) -> None:
    """I + b a^T writes where it does not erase: three products of the way take TF32, what is read of them does not."""
    text = mixc.load(name).emit()
    fwd = re.search(rf"def {name}_fwd.*?(?=\n@triton.jit|\nclass )", text, re.S)
    assert fwd and fwd[0].count("tl.float32, PRECISION") == (3 if lasts else 0)
    assert fwd[0].count(" OPERAND, PRECISION") > 1


def test_states_that_nothing_erases_do_not_drift() -> None:
    """Of dplr without forgetting o was off by 7.1e-3 after 200 tokens, and further with each."""
    cell = dict(length=200, size=32, heads="1", gates="zero", dtype=torch.bfloat16, rows="plain", start=True)
    found = {f.name: f for f in cells.compare(mixc.load("dplr"), cell, "triton", 7)}
    assert all(f.ok for f in found.values()), found
    assert found["final S"].error < 1e-3
