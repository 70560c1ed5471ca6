"""Chunk -> Chunk: the backward of a chunk program, itself a chunk program.

before: outs and next states of one chunk, from its inputs and the state it received
after:  gradients of the inputs (a row a token), contributions to the gradients of params, and the
        cotangent of the state it received, from the inputs, that state, the cotangents of its outs
        and of the state it left.  The loop runs from the last chunk to the first.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mixc.ir.build import expand, make, number, where
from mixc.ir.derivatives import gradient
from mixc.ir.node import ROW, Node, fold
from mixc.ir.program import Program, Result
from mixc.ir.ranges import proving
from mixc.passes.decay import FORGET
from mixc.passes.tangent import without_tangents


def cotangent_of_state(name: str, dims: tuple[str, ...]) -> Node:
    """The cotangent of what the chunk leaves: the name of the state with a prime."""
    return make("cot", name=name + "'", dims=dims)


def differentiate(forward: Program) -> Program:
    """Results: "grad" for every input (0 for tables), "sum" for every param, "next" for every state (its cotangent)."""
    row = (ROW,) if forward.level == "chunk" else ()  # the axes of a cell are all named
    roots = [(forward.result("out", o.name), make("cot", name=o.name, dims=(*row, *o.dims))) for o in forward.outs]
    roots += [(forward.result("next", s.name), cotangent_of_state(s.name, s.dims)) for s in forward.states]
    ins = [make("in", name=d.name, dims=(*row, *d.dims), kind=d.kind) for d in forward.ins]
    wanted = [*ins, *(d.leaf() for d in forward.params), *(d.leaf() for d in forward.states)]
    with proving(forward):
        found = gradient(roots, wanted)
    if row:
        given = zip((*forward.ins, *forward.params), wanted, found, strict=False)
        found[:len(ins) + len(forward.params)] = [
            _deaf(c, leaf) if c is not None and d.open_ended and _passes(forward, leaf) else c for d, leaf, c in given]
    found[:len(ins)] = [None if d.table else c for d, c in zip(forward.ins, found, strict=False)]
    roles = ["grad"] * len(ins) + ["sum"] * len(forward.params) + ["next"] * len(forward.states)
    names = [d.name for d in (*forward.ins, *forward.params, *forward.states)]
    results = [Result(role, name, expand(number(0), leaf.dims) if c is None else c)
               for role, name, leaf, c in zip(roles, names, wanted, found, strict=True)]
    return without_tangents(replace(forward, results=tuple(results), reverse=True))


_LEVEL = frozenset(("exp", "expm1", "sigmoid", "tanh", "lt", "le", "eq", "ne"))  # where their argument is infinite


def _passes(forward: Program, leaf: Node) -> bool:
    """Does a change of an input go on where it is infinite?  One in a log decay does not, nor does one below `exp`."""
    def of(n: Node, args: list[bool]) -> bool:
        return n is leaf or (any(args) and n.op not in _LEVEL and number(FORGET) not in n.args)
    reached: list[bool] = fold(forward.values(), of)
    return any(reached)


def _deaf(cotangent: Node, x: Node) -> Node:
    """0 where x is infinite, at the open end of its range."""
    return where(make("eq", make("abs", x), number(math.inf)), 0.0, cotangent)
