"""Launch -> Launch: programs divide a dim, and what they leave of a value without it adds up to the whole.

before: dk = sum over V of dS v + dn           dn, the cotangent of an out without V, is the same in every program
after:  dk = sum over V of dS v + once(dn)     its part of the sum in each, the rest in the first one alone
"""

from __future__ import annotations

from mixc.ir.node import Node, depends, make, postorder


def shares(roots: list[Node], carried: list[Node], d: str) -> list[Node] | None:
    """`roots`, linear in cotangents, each as the programs' parts of it along `d`; None where one is needed whole.

    Args:
        carried: cotangents of states: what has not the dim enters one program, and is a part from then on."""
    linear = depends(roots, [n for n in postorder(roots) if n.op == "cot"])
    parts, done = {n for n in carried if d not in n.dims}, dict[Node, Node]()

    def part_of(n: Node) -> Node:
        return done[n] if done[n] in parts or n not in linear or d in n.dims else make("once", done[n], dim=d)
    for n in postorder(roots):
        args = [a for a in n.args if a in linear]
        partial = any(done[a] in parts for a in args)
        if (d in n.dims and partial) or (n.op == "rename" and args and d in {x for pair in n.attr("to") for x in pair}):
            return None
        summed = d not in n.dims and (partial or any(d in a.dims for a in args))
        new = [part_of(a) if summed else done[a] for a in n.args]
        done[n] = n if tuple(new) == n.args else make(n.op, *new, span=n.span, **dict(n.attrs))
        if summed:
            parts.add(done[n])
    return [part_of(r) for r in roots]
