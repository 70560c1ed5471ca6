"""Chunk -> Kernels: which launch computes what.

before: one DAG for a chunk
after:  launches, each with its loads, its stores and its loop over time

`fused` keeps the state on chip: one launch walks over the chunks of a sequence and does all of it.
What the backward reads of the forward is a cut through the forward's values, bytes as
capacities: values computed again cost no bytes, values kept cost a write and a read.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.ir.launch import Carry, Launch, Store, splittable
from mixc.ir.node import Node, depends, postorder
from mixc.ir.program import Program
from mixc.passes.differentiate import cotangent_of_state
from mixc.passes.shares import shares


def fused_forward(program: Program, starts: tuple[str, ...] = ()) -> Launch:
    """One launch for outs and final states; of `starts` it keeps what each segment receives."""
    carries = tuple(Carry(s.name, s.leaf(), program.result("next", s.name), s.dims) for s in program.states)
    stores = tuple(Store("rows", o.name, program.result("out", o.name), o.dims, "out") for o in program.outs)
    launch = Launch(f"{program.name}_fwd", program, "chunks", False, carries, stores, starts,
                    exact=in_exponents(program))
    return _with_split(launch)


def fused_backward(forward: Program, backward: Program) -> Launch:
    """One launch, from the last chunk to the first, that carries the cotangents of the states."""
    carries, stores = [], []
    for s in forward.states:
        leaf = cotangent_of_state(s.name, s.dims)
        carries.append(Carry("d" + s.name, leaf, backward.result("next", s.name), s.dims))
    for d in forward.ins:
        stores.append(Store("rows", "d" + d.name, backward.result("grad", d.name), d.dims, "grad"))
    for d in forward.params:
        stores.append(Store("partial", "d" + d.name, backward.result("sum", d.name), d.dims, "sum"))
    starts = _needed(forward, [c.next for c in carries] + [s.value for s in stores])
    launch = Launch(f"{forward.name}_bwd", backward, "chunks", True, tuple(carries), tuple(stores), starts,
                    _replay(forward, starts), exact=in_exponents(forward))
    return _with_split(launch)


def in_exponents(program: Program) -> frozenset[str]:
    """States whose absolute error an exponential sees: rounding them by half a percent changes a factor by far more."""
    def above(n: Node) -> set[Node]:
        found, stack = set[Node](), [n]
        while stack:
            x = stack.pop()
            if x not in found:
                found.add(x)
                stack += [] if x.op in ("contract", "tanh", "sigmoid") else x.args
        return found
    seen = set[Node]().union(*(above(n) for n in postorder(program.values())
                               if n.op in ("exp", "expm1", "logaddexp") or n.attr("combine") == "log+"))
    return frozenset(s.name for s in program.states if s.leaf() in seen)


def _needed(forward: Program, roots: list[Node]) -> tuple[str, ...]:
    """The states that `roots` read, and those that are needed to form these again."""
    while True:
        below = set(postorder(roots))
        found = [s for s in forward.states if s.leaf() in below]
        more = [v for s in found if (v := forward.result("next", s.name)) not in below]
        if not more:
            return tuple(s.name for s in found)
        roots = [*roots, *more]


def _replay(forward: Program, starts: tuple[str, ...]) -> tuple[Node, ...]:
    """What a chunk leaves of the states; it is a whole one, all its rows are tokens."""
    from mixc.passes.simplify import RULES, all_rows_live, rewrite

    return tuple(rewrite([forward.result("next", s) for s in starts], (all_rows_live, *RULES)))


def token_loop(step: Program) -> Launch:
    """The step itself, a token at a time: decode, and short sequences."""
    carries = tuple(Carry(s.name, s.leaf(), step.result("next", s.name), s.dims) for s in step.states)
    stores = tuple(Store("rows", o.name, step.result("out", o.name), o.dims, "out") for o in step.outs)
    return _with_split(Launch(f"{step.name}_token", step, "tokens", False, carries, stores))


def _with_split(launch: Launch) -> Launch:
    """A dim may be split if nothing sums over it; in a backward also if only cotangents do.

    A backward is linear in its cotangents, so each program's sums over its own part of the dim add up
    to the whole: what has not the dim is then a partial sum."""
    nodes, program = launch.nodes(), launch.program
    used = {d for n in nodes for d in n.dims} | {d for s in launch.stores for d in s.dims}
    dims = [d.name for d in program.dims if d.name in used]
    whole = splittable(nodes, dims)
    if not launch.reverse:
        return replace(launch, split=whole)
    cots = [n for n in nodes if n.op == "cot"]
    linear = depends(nodes, cots)
    partial = list[str]()
    for d in splittable([n for n in nodes if n not in linear], dims):
        found = shares(launch.roots(), [c.leaf for c in launch.carries], d) if d not in whole else None
        if found is not None:
            partial.append(d)
            launch = launch.with_roots(found)
    return replace(launch, split=(*whole, *partial), summed=tuple(partial))
