"""Chunk -> Chunk: what stands for a computation becomes the computation, once nothing is differentiated any more.

before: solve(L, y), solve(L, c)^T              span_contract(q, k, g)
after:  X = unit_inverse(L);  X @ y, X^T @ c    span_product(q, k, span_factors(g))

Forward and backward then share the inverse, and the factors of every decay.
"""

from __future__ import annotations

from mixc.ir.build import at_col, contract, expand, make, number, rename, total
from mixc.ir.launch import feature_dims
from mixc.ir.node import COL, ROW, Node, postorder
from mixc.ir.program import Program
from mixc.ir.ranges import magnitude, proving
from mixc.passes.simplify import rewrite, simplify
from mixc.passes.tangent import without_tangents

DECAYS = ("segsum", "segprod", "span_contract")  # over the rows between two


def solve_by_inverse(n: Node) -> Node | None:
    """M^-1 y as a product with the inverse, where one matrix serves all columns.  (`small`: no entry of L exceeds 1,
    so that products of TF32 form it to 1e-3; `grows`: nothing says that a step keeps errors from growing.)"""
    if n.op != "solve" or len(n.args[0].dims) > 2:
        return None
    small = magnitude(n.args[0]) <= 1
    X, y = make("unit_inverse", n.args[0], small=small, grows=not small or not _shrinks(n.args[0])), n.args[1]
    if COL not in y.dims:
        return contract(rename(X, **{ROW: COL, COL: ROW}) if n.attr("transposed") else X, at_col(y), y.dims)
    X = rename(X, **({ROW: "_u", COL: ROW} if n.attr("transposed") else {COL: "_u"}))
    return contract(X, rename(y, **{ROW: "_u"}), y.dims)


def _shrinks(L: Node) -> bool:
    """Whether the steps that L is made of have decays, or write where they erase: I - b k k^T, but not I + b a^T."""
    below = list(postorder([L]))
    products = [n.args for n in below if n.op == "contract"]
    return any(n.op in DECAYS for n in below) or all(_address(a) is _address(b) for a, b in products)


def _address(n: Node) -> Node:
    """Without strengths, and on whichever row."""
    while n.op in ("rename", "neg", "mul"):
        n = next((a for a in n.args if feature_dims(a)), n.args[0])
    return n


def span_by_factors(n: Node) -> Node | None:
    if n.op != "span_contract":
        return None
    x, y, g = n.args
    return make("span_product", x, y, make("span_factors", g, reach=n.attr("reach")), out=n.dims)


def crossing_by_triangle(n: Node) -> Node | None:
    """A product with a triangle of ones: nothing is subtracted.  Sums over all s less sums over all t, summed from the
    end, are the same and cancel: one rounding reaches every earlier row, and a param of the decay adds it up."""
    if n.op != "crossing":
        return None
    c, keep = n.args[0], "strict" if n.attr("reach") == "excl" else "incl"
    ones = make("mask", expand(number(1), (ROW, COL)), keep="strict")
    earlier = contract(rename(c, **{COL: "_u"}), rename(ones, **{ROW: COL, COL: "_u"}), c.dims)  # [t, j]: over s < j
    return rename(total(make("mask", earlier, keep=keep), [ROW]), **{COL: ROW})


RULES = (solve_by_inverse, span_by_factors, crossing_by_triangle)


def with_inverses(program: Program) -> Program:
    """The program with inverses, but decays whole: kernels form the factors of a level where they use them."""
    program = without_tangents(program)
    with proving(program):
        return program.with_values(rewrite(simplify(program).values(), (solve_by_inverse,)))
