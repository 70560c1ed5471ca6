"""Chunk -> Chunk: entries of inputs, where a step takes them one by one.

before: pick(beta * k, N, 1)                                  dk = place(x, N, 0) + place(y, N, 1)
after:  beta[1] * k[1], each a leaf of its own                dk[0] = x, dk[1] = y, each a store of its own

before: pick(softmax[N](x), N, 1), N = 2
after:  exp(x[1] - m) / (exp(x[0] - m) + exp(x[1] - m)), m the larger one

A kernel then loads and stores rows of K, and no tile has the dim that the steps of a token go along.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from mixc.ir.build import exp, expand, number
from mixc.ir.node import Node, is_number, make, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Program
from mixc.passes.beside import tensor_dims, without
from mixc.passes.simplify import rewrite

Entry = tuple[tuple[str, int], ...]  # of which dims which entry
Sizes = Mapping[str, int | None]
_THROUGH = frozenset((
    "rename", "live", "mask", "sum", "prod", "max", "min", "norm", "contract", "expand", "place", "cumsum",
    "cumprod", "segsum", "segprod", "previous", "stop_gradient", "once"))


def entries_apart(program: Program) -> Program:
    """The program with entries of inputs and params as leaves."""
    return program.with_values(_apart(program.values(), program.fixed)) if _picks(program.values()) else program


def stored_apart(value: Node, dims: tuple[str, ...], sizes: Sizes) -> Iterator[tuple[Node, Entry]]:
    """What is stored of a value of a tensor's dims, and at which entries: the whole, where it is not put together of
    entries.

    Args:
        sizes: of dims; None: not fixed, a token's steps were unrolled for as many as are placed."""
    for d in dims:
        placed = [n.attr("i") for n in postorder([value]) if n.op == "place" and n.attr("dim") == d]
        count = sizes.get(d) or max(placed, default=-1) + 1
        parts = _apart([make("pick", value, dim=d, i=i) for i in range(count)], sizes) if placed else []
        if parts and not any(d in n.dims for n in postorder(parts)):
            for i, part in enumerate(parts):
                yield from ((x, ((d, i), *at)) for x, at in stored_apart(part, tuple(e for e in dims if e != d), sizes))
            return
    yield value, ()


def _apart(values: list[Node], sizes: Sizes) -> list[Node]:
    return rewrite(values, (functools.partial(_inside, sizes=sizes), _without_zero))


def _picks(values: list[Node]) -> bool:
    return any(n.op == "pick" and not n.attr("dim").startswith("_") for n in postorder(values))


def _inside(n: Node, sizes: Sizes) -> Node | None:
    """pick(f(x, y)) = f(pick(x), pick(y)), and that of a leaf is a leaf"""
    d, i = n.attr("dim"), n.attr("i")
    if n.op != "pick" or d.startswith("_"):
        return None
    x = n.args[0]
    if x.op in ("in", "param", "cot"):
        entry = {"dims": tuple(e for e in x.dims if e != d), "of": tensor_dims(x), "at": (*x.attr("at", ()), (d, i))}
        return make(x.op, span=x.span, **{**dict(x.attrs), **entry})
    if x.op == "place" and x.attr("dim") == d:
        return x.args[0] if x.attr("i") == i else expand(number(0), n.dims)
    if x.op == "expand" and d in x.attr("dims"):
        return expand(x.args[0], n.dims)
    if x.op == "rename" and any(d in pair for pair in x.attr("to")):
        return _renamed(x, d, i)
    if x.op == "softmax":
        return _share(x, d, i, sizes.get(d)) if d in x.attr("over") else x.on(make("pick", x.args[0], dim=d, i=i))
    if not (OPS[x.op].elementwise or x.op in _THROUGH) or any("*" in e for e in x.dims):
        return None
    args = tuple(make("pick", a, dim=d, i=i) if d in a.dims else a for a in x.args)
    return without(x, args, {d})


def _share(x: Node, d: str, i: int, count: int | None) -> Node | None:
    """An entry of a softmax over d, of all entries along it; None: it is over more, or nobody knows how many."""
    if x.attr("over") != (d,) or count is None:
        return None
    each = [make("pick", x.args[0], dim=d, i=j) for j in range(count)]
    top = functools.reduce(lambda a, b: make("maximum", a, b), each)
    found = [exp(y - top) for y in each]
    return found[i] / functools.reduce(Node.__add__, found)


def _renamed(x: Node, d: str, i: int) -> Node:
    """An entry of a dim under another name."""
    old = next(a for a, b in x.attr("to") if b == d)
    rest = tuple((a, b) for a, b in x.attr("to") if b != d)
    entry = make("pick", x.args[0], dim=old, i=i)
    return make("rename", entry, to=rest) if rest else entry


def _without_zero(n: Node) -> Node | None:
    """x + 0 = x,  0 * x = 0, for what is 0 at all entries but one"""
    for x, c in (n.args, n.args[::-1]) if n.op in ("add", "sub", "mul") else ():
        if is_number(c.args[0] if c.op == "expand" else c, 0.0) and c.op == "expand":
            if n.op == "mul":
                return expand(number(0), n.dims)
            if {*x.dims} == {*n.dims} and (n.op == "add" or c is n.args[1]):
                return x
    return None
