"""Signs of sides of products behind the products: what is negated there has a number fewer to be formed from, or is one
that other products read as it is.

    before: (-dv) @ S', and dv @ u' beside it
    after:  -(dv @ S')

A product that a sum is added to keeps its own: it is formed in place of a difference of two tiles.
"""

from __future__ import annotations

from collections import Counter

from mixc.ir.launch import Launch
from mixc.ir.node import Node, fold, postorder, source


def signs_behind(launch: Launch) -> Launch:
    """The launch with other values, the same but for their rounding."""
    return launch.with_nodes(_signs_behind)


def _signs_behind(roots: list[Node]) -> list[Node]:
    nodes = list(postorder(roots))
    uses = Counter(a for n in nodes for a in n.args) + Counter(roots)
    added = {source(a, ("rename",)) for n in nodes if n.op == "add" for a in n.args}

    def of(n: Node, args: list[Node]) -> Node:
        new = n.on(*args)
        if n.op != "contract" or (n in added and uses[n] == 1):
            return new
        sides = [_positive(a) for a in args]
        if sum(negated for _, negated in sides) != 1:
            return new if not any(negated for _, negated in sides) else n.on(*(x for x, _ in sides))
        return -n.on(*(x for x, _ in sides))
    return fold(roots, of)


def _positive(x: Node) -> tuple[Node, bool]:
    """A matrix without a sign, and whether it had one."""
    if len(x.dims) > 1 and x.op == "neg":
        return x.args[0], True
    if len(x.dims) > 1 and x.op == "rename" and x.args[0].op == "neg":
        return x.on(x.args[0].args[0]), True
    return x, False
