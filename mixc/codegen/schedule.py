"""The order of a kernel's statements: few tiles alive at a time.

A kernel's registers are the tiles that are alive at once, and the compiler hardly moves a
statement across a product.  So statements are placed greedily: of those whose operands are ready, the
one that frees most and adds least (a load is placed with its first use).
"""

from __future__ import annotations

from mixc.ir.node import Node, postorder

_ALIAS = ("rename", "expand")


def size(node: Node) -> float:
    """How much of a program's registers a tile takes, in tiles of two axes; loads come in half."""
    if len(node.dims) < 2:
        return 0.02 if node.dims else 0.0
    return 0.5 if not node.args else 1.0


def source(node: Node) -> Node:
    while node.op in _ALIAS:
        node = node.args[0]
    return node


def schedule(roots: list[Node], held: set[Node]) -> list[Node]:
    """Every statement below `roots`, ordered; nodes of `held` (carried tiles) are there all along."""
    order = [n for n in postorder(roots) if n.op not in _ALIAS and n.op not in ("number", "size", "const")]
    rank = {n: i for i, n in enumerate(order)}
    needs = {n: {source(a) for a in n.args} & set(rank) for n in order}
    users: dict[Node, int] = dict.fromkeys(order, 0)
    for n in order:
        for a in needs[n]:
            users[a] += 1
    for r in roots:
        users[source(r)] = users.get(source(r), 0)  # a result is stored at once
    waiting, done, out = [n for n in order if n.args], set(held), []
    while waiting:
        ready = [n for n in waiting if all(a in done or not a.args for a in needs[n])]
        best = min(ready, key=lambda n: (_cost(n, needs, users, done), rank[n]))
        waiting.remove(best)
        for a in sorted(needs[best], key=rank.__getitem__):
            if a not in done:
                out.append(a)
                done.add(a)
            users[a] -= 1
        out.append(best)
        done.add(best)
    return out


def _cost(n: Node, needs: dict[Node, set[Node]], users: dict[Node, int], done: set[Node]) -> float:
    grown = size(n) if users[n] else 0.0
    for a in needs[n]:
        if a not in done:
            grown += size(a)
        if users[a] == 1:
            grown -= size(a)
    return grown

