"""Chunk -> Chunk: what stands for a computation becomes the computation, once nothing is differentiated any more.

before: solve(L, y), solve(L, c)^T              span_contract(q, k, g)                 span_crossing(q, k, c, g)
after:  X = unit_inverse(L);  X @ y, X^T @ c    span_product(q, k, span_factors(g))    span_gradient(c, q, k, ...)[2]

Forward and backward then share the inverse, and the factors of every decay.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from mixc.ir.blocks import component
from mixc.ir.build import at_cols, contract, cumsum, exp, expand, make, number, rename, total, where
from mixc.ir.launch import PRODUCTS, feature_dims
from mixc.ir.node import COL, ROW, Node, depends, postorder, substitute
from mixc.ir.norms import magnitude
from mixc.ir.program import Program
from mixc.ir.ranges import bounds, proving
from mixc.passes.decay import FORGET, by_rows
from mixc.passes.simplify import number_of_any_order, rewrite, simplify, two_signs
from mixc.passes.tangent import without_tangents

DECISIONS = ("lt", "le", "eq", "ne", "sign")
DECAYS = ("segsum", "segprod", "span_contract")  # over the rows between two


def solve_by_inverse(n: Node, each: Iterable[str] = ()) -> Node | None:
    """M^-1 y as a product with the inverse, where one matrix serves all columns, or those of one entry of `each`.
    (`small`: no entry of L exceeds 1, so that products of TF32 form it to 1e-3; `grows`: nothing says that a step keeps
    errors from growing; `lasts`: only that they are forgotten with all else.)"""
    ranks = n.attr("rows", ())
    if n.op != "solve" or {*n.args[0].dims} - {ROW, COL, *each, *(d for r in ranks for d in r)}:
        return None
    small = magnitude(n.args[0]) <= 1
    grows, erases = not small or not _shrinks(n.args[0]), _erases(n.args[0])
    more = ({"rows": ranks} if ranks else {}) | ({} if grows or erases else {"lasts": True})
    (L,), y = rewrite([n.args[0]], (number_of_any_order, two_signs)), n.args[1]
    X = make("unit_inverse", L, small=small, grows=grows, **more)
    if n.attr("transposed"):
        X = rename(X, **{ROW: COL, COL: ROW}, **{a: b for t, s, _ in ranks for a, b in ((t, s), (s, t))})
    if COL not in y.dims:
        return contract(X, at_cols(y, n), y.dims)
    X = rename(X, **{COL: "_u"}, **{s: u for _, s, u in ranks})
    return contract(X, rename(y, **{ROW: "_u"}, **{t: u for t, _, u in ranks}), y.dims)


def span_solve_by_inverse(n: Node) -> Node | None:
    """The same under decays, where a token has one row: the inverses of all entries read no state, so that they are
    formed for all chunks before the loop over these."""
    if n.op != "span_solve" or n.attr("rows"):
        return None
    A, b, y, g = n.args
    own = dict.fromkeys(d for x in (g, b) for d in feature_dims(x))
    L = make("span_contract", A, expand(b, (ROW, *own)), g, out=(ROW, COL, *own), reach=n.attr("reach"))
    X = make("unit_inverse", L, small=False, grows=False)
    return contract(rename(X, **{ROW: COL, COL: ROW}) if n.attr("transposed") else X, rename(y, **{ROW: COL}), y.dims)


def _shrinks(L: Node) -> bool:
    """Whether the steps that L is made of have decays, or write where they erase."""
    return any(n.op in DECAYS for n in postorder([L])) or _erases(L)


def _erases(L: Node) -> bool:
    """Whether they write where they erase: I - b k k^T, but not I + b a^T."""
    return all(_address(n.args[0]) is _address(n.args[1]) for n in postorder([L]) if n.op in PRODUCTS)


def _address(n: Node) -> Node:
    """Without strengths, which may have its dim if they are within [0, 1], and on whichever row."""
    while n.op in ("rename", "neg", "mul"):
        found = [a for a in n.args if feature_dims(a)] or list(n.args)
        n = next((a for a in found if not (bounds(a).low >= 0 and bounds(a).high <= 1)), found[0])
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


def span_crossing_by_rows(n: Node) -> Node | None:
    """What the rows t >= j take less what the rows s >= j gave, each with its own gradient: what lies behind j cancels,
    and one rounding reaches every earlier row (Yang et al. 2024, arXiv 2312.06635)."""
    if n.op != "span_crossing" or of_numbers(n):
        return None
    x, y, c, g = n.args
    reach = n.attr("reach")

    def own(row: str) -> Node:
        """Of the value that has rows t or s alone, with its gradient."""
        of, a, b = next(v for v in ((x, c, y), (y, c, x), (c, x, y)) if {ROW, COL} & {*v[0].dims} == {row})
        found = of * make("span_contract", a, b, g, out=of.dims, reach=reach)
        found = total(found, [d for d in found.dims if d not in (row, *g.dims)])
        return found if row == ROW else rename(found, **{COL: ROW})
    later, earlier = own(ROW), own(COL)
    both = cumsum(later - earlier, reverse=True)
    return both - later if reach == "excl" else both


def span_crossing_by_pairs(n: Node) -> Node | None:
    """With the decays of all pairs of rows, where the logs are of numbers, by which what cancels cannot be divided. (Of
    matrices and vectors it is formed by levels.)"""
    if n.op != "span_crossing" or not of_numbers(n) or rows_of(n):
        return None
    x, y, c, g = n.args
    pairs = x * y * c * exp(make("segsum", by_rows(g), reach=n.attr("reach")))
    pairs = total(pairs, [d for d in pairs.dims if d not in (ROW, COL, *g.dims)])
    return make("crossing", pairs, reach="excl" if n.attr("reach") == "excl" else "incl")


def zeros_forget(program: Program) -> list[Node]:
    """The values of a program, a decay given as 0 forgetting everything.  A backward divides by what is left of it:
    there only what decides between branches is formed so, as the forward decided (but not whether it is forgotten)."""
    values = program.values()
    sizes = [n for n in postorder(values) if n.op == "log_size"]
    forgetting = {n: where(make("eq", n.args[0], number(0)), FORGET, n) for n in sizes}
    if not program.reverse:
        return substitute(values, forgetting)
    reads = depends(values, sizes) if sizes else set()
    decide = [n for n in postorder(values) if n.op in DECISIONS and n in reads and number(FORGET) not in n.args]
    return substitute(values, dict(zip(decide, substitute(decide, forgetting), strict=True)))


def of_numbers(n: Node) -> bool:
    """Are the decays of a product given as numbers?"""
    return any(x.op == "log_size" for x in postorder(n.args[-1:]))


RULES = (solve_by_inverse, span_solve_by_inverse, span_by_factors, crossing_by_triangle)


def with_crossings(roots: list[Node]) -> list[Node]:
    """`roots` with every `span_crossing` formed together with the gradients whose products with their values it sums:
    by levels, where nothing cancels."""
    while (n := next((n for n in postorder(roots) if n.op == "span_crossing" and rows_of(n, True)), None)) is not None:
        roots = substitute(roots, _by_levels(n, roots))
    return rewrite(roots, (span_crossing_by_pairs, span_crossing_by_rows))


def _by_levels(n: Node, roots: list[Node]) -> dict[Node, Node]:
    """What becomes of a crossing, and of the products that come with it."""
    values = rows_of(n, True)
    assert values is not None
    A, x, y = values
    g, reach, before = n.args[3], n.attr("reach"), set(postorder(values))
    made = make("span_gradient", A, x, y, make("span_factors", g, reach=reach), reach=reach)
    found = {n: total(component(made, 2), [d for d in feature_dims(x) if d not in g.dims])}
    for p in postorder(roots):
        if p.op == "span_contract" and p.args[2] is g and p.attr("reach") == reach and p not in before:
            if {*p.args[:2]} == {A, y} and {*p.dims} == {*x.dims}:
                found[p] = component(made, 0)
            if {*p.args[:2]} == {A, x} and {*p.dims} == {*y.dims}:
                found[p] = rename(component(made, 1), **{ROW: COL})
    return found


def rows_of(n: Node, more: bool = False) -> tuple[Node, Node, Node] | None:
    """The values of a crossing, if they are a matrix [t, s], vectors of rows t and vectors of rows s; `more`: or
    tensors, and the decays have some of their dims."""
    *values, g = n.args
    by_rows = {frozenset({ROW, COL} & {*x.dims}): x for x in values}
    wanted = [by_rows.get(frozenset(rows)) for rows in ((ROW, COL), (ROW,), (COL,))]
    A, x, y = wanted
    d = {*feature_dims(x)} if more and x else {*feature_dims(g)}
    if [x and {*x.dims} for x in wanted] != [{ROW, COL}, {ROW, *d}, {COL, *d}] or not (
            {*feature_dims(g)} <= d and (more or len(d) == 1)):
        return None
    return (A, x, y) if A and x and y else None


def crossing_of_rows(n: Node) -> Node | None:
    """A factor of a sum inside it, where that is over what makes more rows of a token: no matrix [t, s]."""
    if n.op == "crossing" and n.args[0].op == "mul":
        for y, factor in (n.args[0].args, n.args[0].args[::-1]):
            x, over = _summed(y)
            if over and {*factor.dims} <= {ROW, COL}:
                return make("crossing", total(x * factor, over), reach=n.attr("reach"))
    return None


def _summed(n: Node) -> tuple[Node, tuple[str, ...]]:
    """What it is a sum of, and over which feature dims; none where it is no sum, or one of unlike sums."""
    if n.op == "sum":
        return n.args[0], n.attr("over")
    if n.op == "add":
        (a, over), (b, same) = map(_summed, n.args)
        return a + b, over if over == same else ()
    return n, ()


def with_inverses(program: Program, each: Iterable[str] = ()) -> Program:
    """The program with inverses, but decays whole: kernels form the factors of a level where they use them.

    each: dims of which a kernel's program has one entry."""
    program = without_tangents(program)
    program = program.with_values(zeros_forget(program))
    with proving(program):
        program = program.with_values(rewrite(program.values(), (span_crossing_by_pairs, span_crossing_by_rows)))
        return program.with_values(rewrite(simplify(program).values(), (
            functools.partial(solve_by_inverse, each=each), crossing_of_rows)))
