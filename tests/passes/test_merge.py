"""Merging: values of one function become one, where that is certain, and the more exact one stays."""

from __future__ import annotations

import importlib
from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.ir.build import cumsum, exp, where
from mixc.ir.node import ROW, Node, make, number, postorder
from mixc.ir.program import Decl, Dim, Program, Range, Result
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from mixc.passes.merge import KINDS, MORE, NEAR, _values, merge, merges
from mixc.passes.simplify import simplify
from mixc.runtime import agree
from mixc.runtime.draw import draw as draw_inputs

X = make("in", name="x", dims=(ROW, "D"), kind="real")
Y = make("in", name="y", dims=(ROW, "D"), kind="real")
INDEX = make("index", dims=("D",))
G = make("in", name="g", dims=(ROW, "D"), kind="real")


def program(*values: Node) -> Program:
    ins = (Decl("in", "x", ("D",)), Decl("in", "y", ("D",)), Decl("in", "g", ("D",), ranges=(Range(high=number(0)),)))
    outs = tuple(Decl("out", f"o{i}", ("D",)) for i in range(len(values)))
    return Program("chunk", "p", (Dim("D"),), (*ins, *outs),
                   tuple(Result("out", f"o{i}", v) for i, v in enumerate(values)))


TOTAL = make("sum", exp(X * 2.0), over=("D",))
ELU = exp(make("minimum", X, number(0)))
TOTAL_X = make("sum", X, over=("D",))


def shares(x: Node, y: Node) -> Node:
    return make("sum", make("softmax", x, over=("D",)) * make("softmax", y, over=("D",)), over=("D",))


MERGED = {
    "a where that chooses nothing": (ELU, Y * where(make("lt", number(0), X), 1.0, exp(make("minimum", X, number(0))))),
    "numbers that cancel": (X * Y, (X * 2.0) * (Y * 0.5) + Y),
    "distributed": (X * (Y + X), (X * Y + X * X) * X),
    "the exact one first": (make("expm1", G * 2.0), (exp(G * 2.0) - 1.0) * Y),
}
KEPT = {
    "the exact one last": ((exp(G * 2.0) - 1.0) * Y, make("expm1", G * 2.0)),
    "a clamp far out": (X * Y, make("clamp", X * Y, number(-1e12), number(1e12)) + Y),
    "a comparison that never fails here": (X * Y, where(make("lt", X, number(1e9)), X * Y, 0.0) + Y),
    "a bound that only huge entries lie beside": (
        TOTAL, make("maximum", TOTAL, number(1e-3)) * Y),
    "what keeps a divisor from 0": (X * X, Y / (X * X + 1e-30)),
    "exponents": (exp(cumsum(G) - cumsum(G, exclusive=True)) * X, exp(G) * Y),
    "what protects from infinities": (G * X, where(make("lt", G, number(-1e4)), 0.0, exp(G)) * Y + exp(G)),
    "dead rows": (make("live", X * Y, fill=0.0), X * Y + 1.0),
    "a mean of three": (TOTAL_X / 3.0, TOTAL_X / make("size", dim="D") * Y),
    "a mean of five": (TOTAL_X / 5.0, TOTAL_X / make("size", dim="D") * Y),
    "entries of two exchanged": (shares(X, Y), shares(-X, -Y) * Y),
    "a mask that lies behind the end here": (X * Y, where(make("lt", INDEX, number(64)), X * Y, 0.0) + Y),
    "the place in a group": (make("cos", INDEX) * X, make("cos", make("mod", INDEX, number(64))) * X + Y),
    "the number of a group": (X * Y, X * (make("floordiv", INDEX, number(64)) + 1.0) * Y + X),
    "half of a tie that was seen where all is 0": (
        where(make("lt", number(0), X - Y), X, 0.0),
        where(make("eq", X - Y, number(0)), X * 0.5, where(make("lt", number(0), X - Y), X, 0.0)) * Y),
    "nearly the same": (X * Y, (X * 1.0000001) * Y + X),
}


@pytest.mark.parametrize("values", MERGED.values(), ids=MERGED.keys())
def test_merged(values: tuple[Node, ...]) -> None:
    before = program(*values)
    assert merges(before)
    after = merge(before)
    assert len(list(postorder(after.values()))) < len(list(postorder(simplify(before).values())))
    for kind in (NEAR, *KINDS):
        a, b = (_values(p, p.values(), kind, torch.float64) for p in (before, after))
        for x, y in zip(before.values(), after.values(), strict=True):
            torch.testing.assert_close(b[y], a[x], rtol=1e-10, atol=1e-12, equal_nan=True)


def test_values_that_no_other_is_like_are_probed_once() -> None:
    with patch.object(importlib.import_module("mixc.passes.merge"), "_values", side_effect=_values) as probed:
        assert merges(program(X * Y, exp(G) * Y)) == {}
        assert probed.call_count == 1
        assert merges(program(*MERGED["distributed"]))
        assert probed.call_count == 1 + (1 + len(KINDS) + len(MORE)) + (1 + len(KINDS))  # the last in fp32


@pytest.mark.parametrize("values", KEPT.values(), ids=KEPT.keys())
def test_kept(values: tuple[Node, ...]) -> None:
    before = program(*values)
    assert merges(before) == {}
    assert merge(before) is before


@pytest.mark.parametrize("name, backward", [("norm_attention", 2), ("s4d_real", 1), ("delta_rule", 0),
                                            ("log_sum", 0), ("simple_gla", 0), ("gla", 0)])
def test_examples(name: str, backward: int) -> None:
    """As many as were counted, and the same values."""
    before = simplify(differentiate(chunk(classify(mixc.load(name).declared))))
    found = merges(before)
    assert len(found) >= backward and bool(found) == bool(backward)
    after = merge(before)
    for kind in (NEAR, KINDS[0], KINDS[1]):
        a, b = (_values(p, p.values(), kind, torch.float64) for p in (before, after))
        for x, y in zip(before.values(), after.values(), strict=True):
            torch.testing.assert_close(b[y].squeeze(), a[x].squeeze(), rtol=1e-9, atol=1e-12)


def test_a_sign_of_the_rows_before_is_none_of_the_rows_behind() -> None:
    """Of a decay that is the same for all rows both are equal wherever the rows are even in number: they were merged,
    and what a chunk with an odd number of tokens left had the wrong sign."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], u[V]\nparam e where -1 <= e <= 1\nparam ek[K] where ek <= 0\n"
                       "state S[K, V]\nS = (exp(ek) - (1 - e) * exp(ek)) * S + q * u\nout o[V] = q @ S\n}")
    for seed in range(4):
        x = draw_inputs(mixer.declared, B=1, T=5, H=2, sizes={"K": 3, "V": 2}, dtype=torch.float64, seed=seed)
        _, state = mixer(**x, output_final_state=True, backend="torch")
        _, truth = mixer(**x, output_final_state=True, backend="reference")
        torch.testing.assert_close(state["S"], truth["S"])


@pytest.mark.parametrize("T", [1, 2, 3])
def test_a_factor_that_is_0_or_1_is_not_there_once_more(T: int) -> None:
    """Of seven rows, or of six, the product is the same; of one row it is the factor, or 1: dS0 lacked it."""
    mixer = mixc.loads("mixer m(K) {\nin x[K]\nparam a[K] where a <= 0\nstate S[K]\n"
                       "S = where(index[K] % 2 == 0, S, (a > -0.01) * S) + x\nout o[K] = x\n}")
    start = {"S": torch.randn(1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    x = draw_inputs(mixer.declared, B=1, T=T, H=2, sizes={"K": 5}, dtype=torch.float64)
    got, want = (agree.run(mixer, x, initial_state=start, backend=b) for b in ("torch", "reference"))
    for name in want.grads:
        torch.testing.assert_close(got.grads[name], want.grads[name])


def test_a_scan_decides_which_value_stays() -> None:
    """A sum of what is not above 0 won against no state that was seen: the largest was taken for what was there."""
    mixer = mixc.loads("mixer m(K, V) {\nin x[K]\nparam a[K, V] where a <= 0\nparam w[K]\nstate M[K]\n"
                       "M = maximum(sigmoid(w) * M, sum[V](a))\nout o[K] = x\n}")
    start = {"M": torch.full((1, 2, 5), -40.0, dtype=torch.float64)}
    x = draw_inputs(mixer.declared, B=1, T=2, H=2, sizes={"K": 5, "V": 3}, dtype=torch.float64)
    got, want = (agree.run(mixer, x, initial_state=start, backend=b) for b in ("torch", "reference"))
    for name in want.grads:
        torch.testing.assert_close(got.grads[name], want.grads[name])
