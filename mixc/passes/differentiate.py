"""Chunk -> Chunk: the backward of a chunk program, itself a chunk program.

before: outs and next states of one chunk, from its inputs and the state it received
after:  gradients of the inputs (a row a token), contributions to the gradients of params, and the
        cotangent of the state it received, from the inputs, that state, the cotangents of its outs
        and of the state it left.  The loop runs from the last chunk to the first.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.ir.build import expand, make, number
from mixc.ir.derivatives import gradient
from mixc.ir.node import ROW, Node
from mixc.ir.program import Program, Result
from mixc.ir.ranges import proving
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
    found[:len(ins)] = [None if d.table else c for d, c in zip(forward.ins, found, strict=False)]
    roles = ["grad"] * len(ins) + ["sum"] * len(forward.params) + ["next"] * len(forward.states)
    names = [d.name for d in (*forward.ins, *forward.params, *forward.states)]
    results = [Result(role, name, expand(number(0), leaf.dims) if c is None else c)
               for role, name, leaf, c in zip(roles, names, wanted, found, strict=True)]
    return without_tangents(replace(forward, results=tuple(results), reverse=True))
