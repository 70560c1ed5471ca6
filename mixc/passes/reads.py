"""Step -> Step: a read of a sum of states of several groups is a sum of reads, each of one group.

before: q @ (S + m * R)
after:  q @ S + m * (q @ R)

What a chunk finds of a state it finds of one group: of the other all of a matrix would be formed for every token.
"""

from __future__ import annotations

import functools

from mixc.ir.build import contract, expand, total, where
from mixc.ir.node import Node, fold, make
from mixc.ir.program import Program


def reads_apart(step: Program, groups: list[list[str]]) -> Program:
    """The step, each of its reads one of states of one group; `groups`: of states that need each other."""
    if len(groups) < 2:
        return step
    made = _Reads({step.decl(name).leaf(): i for i, names in enumerate(groups) for name in names})
    values = fold(step.values(), made.value)
    return step if values == step.values() else step.with_values(values)


class _Reads:
    """Args:
        owner: by leaf of a state the number of its group."""

    def __init__(self, owner: dict[Node, int]):
        self.owner, self.copies = owner, functools.cache(self._copies)

    def value(self, node: Node, args: list[Node]) -> Node:
        new = node.on(*args)
        return (self._read(new) if new.op in ("contract", "sum") else None) or new

    def _copies(self, n: Node) -> frozenset[int]:
        """The groups whose states stand in a value entry by entry: decayed, updated, added up."""
        if n in self.owner:
            return frozenset([self.owner[n]])
        if n.op not in ("add", "sub", "neg", "mul", "div", "where", "expand"):
            return frozenset()
        return frozenset[int]().union(*map(self.copies, n.args))

    def _read(self, n: Node) -> Node | None:
        """A sum over dims, perhaps of a product with another value, taken of each group for itself."""
        x = max(n.args, key=lambda a: len(self.copies(a)))
        parts = self._parts(x) if len(self.copies(x)) > 1 else None
        if parts is None:
            return None
        by_group = dict[frozenset[int], Node]()
        for p in sorted(parts, key=lambda p: not self.copies(p)):  # what no state is in goes with the first
            of = self.copies(p) or next(iter(by_group))
            by_group[of] = by_group[of] + p if of in by_group else p
        other = next((a for a in n.args if a is not x), None)

        def read(part: Node) -> Node:
            for y, c in (part.args, part.args[::-1]) if part.op == "mul" else ():
                if not self.copies(c) and {*c.dims} <= {*n.dims}:  # the read of a state as it is, times a number
                    return c * read(y)
            have = {*part.dims, *(other.dims if other else ())}
            for d in sorted({*x.dims} - {*n.dims} - have):  # the same for every entry along it
                part = part * make("size", dim=d)
            out = [d for d in n.dims if d in have]
            found = total(part, [d for d in part.dims if d not in out]) if other is None else contract(part, other, out)
            return expand(found, n.dims)
        return functools.reduce(Node.__add__, map(read, by_group.values()))

    def _parts(self, x: Node) -> list[Node] | None:
        """Values of one group each, or of none, whose sum it is; None: it is no such sum."""
        if len(self.copies(x)) < 2:
            return [x]
        a = x.args
        if x.op in ("add", "sub"):
            left, right = map(self._parts, a)
            return None if left is None or right is None else left + (right if x.op == "add" else [-p for p in right])
        if x.op == "where" and not self.copies(a[0]):
            left, right = map(self._parts, a[1:])
            return None if left is None or right is None else [
                *(where(a[0], p, 0.0) for p in left), *(where(a[0], 0.0, p) for p in right)]
        rest = [y for y in a if not self.copies(y)]
        found = self._parts(next(y for y in a if self.copies(y))) if len(rest) == len(a) - 1 else None
        if found is None or (x.op == "div" and rest != [a[1]]):
            return None
        return [make(x.op, *(p if self.copies(y) else y for y in a), **dict(x.attrs)) for p in found]
