"""Which values of a backward are cotangents of which values of its forward.

before: o = A @ u;  backward: du = A^T @ do, dA = do @ u^T
after:  du is a cotangent of u, dA one of A

Found by what they are made of, from the cotangents of outs and next states on: nothing that rewrites a program has to
keep account.  What is not recognised has no entry; what has one may be a part of the cotangent only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mixc.ir.node import Node, source
from mixc.ir.program import Program

_SAME = ("rename", "live", "mask", "stop_gradient")
Signed = tuple[Node, int]  # a value, and the sign with which its cotangent is there


def cotangents(nodes: Iterable[Node], forward: Program) -> dict[Node, list[Node]]:
    """By nodes of a backward, in order of their arguments, the values of `forward` that they are cotangents of."""
    ends = {r.name + "'" * (r.role == "next"): r.value for r in forward.results}
    found: dict[Node, dict[Signed, None]] = {}
    for n in nodes:
        if n.op == "cot" and n.attr("name") in ends:
            found[n] = dict.fromkeys(_passed_on(ends[n.attr("name")]))
        elif n.args and (of := dict.fromkeys(_derived(n, found))):
            found[n] = of
    return {n: plain for n, of in found.items() if (plain := [b for b, sign in of if sign > 0])}


def _passed_on(value: Node, sign: int = 1) -> Iterator[Signed]:
    """The value, and what it is a sum of: all have the same cotangent."""
    value = source(value, _SAME)
    yield value, sign
    if value.op in ("add", "sub"):
        a, b = value.args
        yield from _passed_on(a, sign)
        yield from _passed_on(b, sign if value.op == "add" else -sign)


def _derived(n: Node, found: dict[Node, dict[Signed, None]]) -> Iterator[Signed]:
    """What a value, given what its arguments are cotangents of, is one of."""
    sides = [found.get(source(a, _SAME), {}) for a in n.args]
    if n.op in _SAME:
        yield from sides[0]
    elif n.op == "add":
        yield from (b for b in sides[0] if b in sides[1])
    elif n.op == "neg":
        yield from ((b, -sign) for b, sign in sides[0])
    elif n.op == "sum":
        for f, sign in sides[0]:
            if f.op == "expand" and {*f.args[0].dims} == {*n.dims}:
                yield from _passed_on(f.args[0], sign)
    elif n.op in ("mul", "contract", "span_contract"):
        for of, factor in zip(sides[:2], n.args[1::-1], strict=True):
            for f, sign in of:
                if f.op == n.op and (x := _partner(n, f, factor)) is not None:
                    yield from _passed_on(x, sign)
                if (x := _system(f, factor)) is not None:
                    yield from _passed_on(x, -sign)


def _partner(n: Node, f: Node, factor: Node) -> Node | None:
    """What the product f has beside a factor, of which n = df * factor is the cotangent; None: no factor of it."""
    x = source(factor, _SAME)
    for a, b in (f.args[:2], f.args[1::-1]):
        if x is source(a, _SAME) and len(b.dims) == len(n.dims) and all(
                here in n.dims or there in f.dims for here, there in zip(factor.dims, a.dims, strict=True)):
            return b
    return None


def _system(y: Node, solution: Node) -> Node | None:
    """L of a solution (I + L)^-1 y, whose cotangent is that of y times the solution, negative."""
    u = source(solution, _SAME)
    for X, right in (u.args, u.args[::-1]) if u.op == "contract" else ():
        if source(X).op == "unit_inverse" and source(right, _SAME) is y:
            return source(X).args[0]
    return None
