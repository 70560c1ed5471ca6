"""Running sums whose terms cancel, taken apart: pairs of products under decays, and what is left."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.triton_crossing import Term, taken_apart
from mixc.ir.build import number, rename
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, ROW, Node, make

A, B = (make("in", name=n, dims=(ROW, COL), kind="real") for n in "ab")
X, G, MORE, K = (make("in", name=n, dims=(ROW, "D"), kind="real") for n in "xgmk")
R = make("in", name="r", dims=(ROW,), kind="real")
Y = rename(K, **{ROW: COL})


def dx(A: Node, y: Node = Y) -> Node:
    return make("span_contract", A, y, G, out=(ROW, "D"), reach="strict")


def dy(A: Node, x: Node = X) -> Node:
    return make("span_contract", A, x, G, out=(COL, "D"), reach="strict")


def at_row(n: Node) -> Node:
    return rename(n, **{COL: ROW})


SUMS = {  # the sum, pairs, terms left
    "one pair": (X * dx(A) - K * at_row(dy(A)), 1, 0),
    "with what has the same factor": (X * (dx(A) + MORE) - K * at_row(dy(A)), 1, 1),
    "renamed as a product": (X * dx(A) - at_row(Y * dy(A)), 1, 0),
    "two pairs with a row in common": (X * dx(A) + MORE * dx(B) - K * at_row(dy(A) + dy(B, MORE)), 2, 0),
    "a factor of two": ((R * X) * dx(A) - K * at_row(dy(A, R * X)), 1, 0),
    "a factor that has such a product": (dx(B) * dx(A) - K * at_row(dy(A, dx(B))), 1, 0),
    "other signs": (K * at_row(dy(A)) - X * dx(A), 0, 2),
    "another factor": (MORE * dx(A) - K * at_row(dy(A)), 0, 2),
    "another matrix": (X * dx(A) - K * at_row(dy(B)), 0, 2),
    "twice": (X * dx(A) + X * dx(A) * R - K * at_row(dy(A)), 1, 1),
}


def value(n: Node) -> torch.Tensor:
    torch.manual_seed(0)
    drawn = {n.attr("name"): torch.randn(2, *(8 if d[0] == "_" else 3 for d in n.dims), dtype=torch.float64)
             for n in (A, B, X, G, MORE, K, R)}
    sizes = {ROW: 8, COL: 8, "D": 3}
    return evaluate([n], Env(lambda n: drawn[n.attr("name")], sizes, dtype=torch.float64, batch=1))[0]


def added(terms: list[Term]) -> Node:
    total: Node = number(0)
    for minus, factors, x in terms:
        for f in factors:
            x = x * f
        total = total - x if minus else total + x
    return total


@pytest.mark.parametrize("which", SUMS)
def test_pairs_and_what_is_left(which: str) -> None:
    total, count, left = SUMS[which]
    pairs, terms = taken_apart(total)
    assert (len(pairs), len(terms)) == (count, left)
    again = added(terms)
    for p in pairs:
        again = again + p.x * p.dx - at_row(p.y) * at_row(p.dy)
    torch.testing.assert_close(value(again), value(total), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name,count", [("gla", 1), ("rwkv6", 1), ("kda", 2), ("rwkv7", 4), ("gsa", 2)])
def test_kernels_that_take_sums_apart(name: str, count: int) -> None:
    """A module has them once for every matrix; half inputs take the sum as it was."""
    text = mixc.load(name).emit("h100")
    assert text.count(" = with_spans(") == count and text.count("sum_of_rows(either(") == 1
    assert "def with_spans(" in text and "with_spans" not in mixc.load("simple_gla").emit("h100")
