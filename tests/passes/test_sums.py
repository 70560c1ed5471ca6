"""Sums of running sums: one a direction, its terms with what they have in common as a factor, and the same values."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.ir.build import at_col, cumsum, rename
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, ROW, Node, make, postorder
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from mixc.passes.lower import with_inverses
from mixc.passes.sums import gather_sums

A, B, C, K, Q, G = (make("in", name=n, dims=(ROW, "D"), kind="real") for n in "abckqg")
COLUMN = make("in", name="s", dims=(COL, "D"), kind="real")


def after(x: Node, *, own: bool = False, late: bool = True) -> Node:
    return cumsum(x, reverse=late, exclusive=not own)


SUMS = {  # values, running sums and products that are left
    "inclusive ones": ([after(A, own=True) + G - after(B, own=True)], 1, 0),
    "with its own row and without": ([after(A, own=True) + after(B)], 1, 0),
    "its own row taken off again": ([(after(K * A, own=True) + G) + (after(K * B + Q * C, own=True) - Q * C)], 1, 2),
    "two directions": ([(after(A) + after(B, late=False)) + (after(C) - after(K, late=False))], 2, 0),
    "of a column's rows": ([after(K * A) - after(rename(at_col(K) * COLUMN, **{COL: ROW}))], 1, 1),
    "in common": ([after(K * A) + after(K * B) - after(C), (A + G) + B, G - (B + A)], 1, 1),
    "one that another value reads": ([after(A) + after(B), after(A) * G], 2, 1),
    "alone": ([after(A, own=True) * G + B], 1, 1),
}


def values(roots: list[Node]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    drawn = {n: torch.randn(2, 6, 3, dtype=torch.float64) for n in "abckqgs"}
    return evaluate(roots, Env(lambda n: drawn[n.attr("name")], {ROW: 6, COL: 6, "D": 3}, dtype=torch.float64, batch=1))


@pytest.mark.parametrize("roots,sums,products", SUMS.values(), ids=SUMS.keys())
def test_one_running_sum_a_direction(roots: list[Node], sums: int, products: int) -> None:
    new = gather_sums(roots)
    found = [n.op for n in postorder(new)]
    assert (found.count("cumsum"), found.count("mul")) == (sums, products)
    for a, b in zip(values(new), values(roots), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_is_in_common_is_formed_once() -> None:
    roots, *_ = SUMS["in common"]
    gathered, plus, minus = gather_sums(roots)
    (both,) = {*plus.args} & {*minus.args} - {G}
    assert both.op == "add" and both in postorder([gathered])


@pytest.mark.parametrize("name", ["rwkv7", "kda", "gated_delta_rule"])
def test_the_gradient_of_a_decay_has_one_running_sum_a_direction(name: str) -> None:
    p = with_inverses(differentiate(chunk(classify(mixc.load(name).declared))))
    (decay,) = (r.value for r in p.results if r.role == "grad" and r.name in "wg")
    own = [n for n in postorder([decay]) if n.op == "cumsum" and any(x.op == "cot" for x in postorder([n]))]
    assert sorted(n.attr("reverse") for n in own) == [False, True]
