"""Chunk -> Chunk: once nothing is differentiated any more, tangents are 0.

A complex decay z is split as e^{i angle} (r + i y), its angle without gradient: y is 0, and what a change of y does is
what a change of z across its direction does, times the factors of other rows.  So no gradient is divided by |z|.

before: o_re = q_re @ S_re - tangent(cumprod(r), y) * ...
after:  o_re = q_re @ S_re
"""

from __future__ import annotations

from mixc.ir.build import expand, number
from mixc.ir.node import Node, fold, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Program


def without_tangents(program: Program) -> Program:
    roots = program.values()
    if not any(n.op == "tangent" for n in postorder(roots)):
        return program
    settled = fold(roots, _settled)
    return program.with_values([_there(x, r) for x, r in zip(settled, roots, strict=True)])


def _there(x: Node | None, like: Node) -> Node:
    return expand(number(0) if x is None else x, like.dims)


def _settled(n: Node, args: list[Node | None]) -> Node | None:
    """None: 0."""
    if n.op == "tangent":
        return None
    zero = [x is None for x in args]
    if n.op in ("add", "sub") and any(zero) and not all(zero):
        x = _there(args[1] if zero[0] else args[0], n)
        return -x if zero[0] and n.op == "sub" else x
    row = OPS[n.op]
    if row.jointly:
        if all(zero[i] for i in row.jointly):
            return None
    elif (any(zero[i] for i in row.linear_in) and not n.attr("fill")) or (n.op == "guard" and any(zero)):
        return None
    return n.on(*map(_there, args, n.args))
