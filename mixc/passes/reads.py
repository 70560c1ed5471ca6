"""Step -> Step: a read of a sum of states of several groups is a sum of reads, each of one group.

before: q @ (S + m * R)              q @ real(Z), q real          A[J, K] @ q[J]
after:  q @ S + m * (q @ R)          real(q @ Z)                  (A @ q)[K]

What a chunk finds of a state it finds of one group, under its own names: of another all of a matrix would be formed for
every token.
"""

from __future__ import annotations

import functools
from typing import Any

from mixc.ir.build import contract, expand, renamed_at_once, total, where
from mixc.ir.node import Node, fold, make, postorder
from mixc.ir.program import Program


def reads_apart(step: Program, groups: list[list[str]]) -> Program:
    """The step, each of its reads one of states of one group; `groups`: of states that need each other."""
    if len(groups) < 2 and not any(n.kind == "complex" or n.op == "rename" for n in postorder(step.values())):
        return step
    made = _Reads({step.decl(name).leaf(): i for i, names in enumerate(groups) for name in names})
    values = fold(step.values(), made.value)
    return step if values == step.values() else step.with_values(values)


_PLANES = ("real", "imag", "conj")  # linear with real factors
_WHOLE = (*_PLANES, "rename")
Names = dict[str, str]


def _exchanged(rename: Node) -> Names:
    """The names that a rename gives, and what else gets the names that it takes: all exchanged, none lost."""
    to = dict(rename.attr("to"))
    old, found = {new: d for d, new in to.items()}, dict(to)
    for new in old.keys() - to.keys():
        found[new] = new
        while found[new] in old:
            found[new] = old[found[new]]
    return found


def _again(rename: Node, other: Node) -> bool:
    """Does another value bring a dim again that the rename took, `R[K, J] @ S[J, V]`? That is no read."""
    return bool({*other.dims} - {*rename.dims} & {d for d, _ in rename.attr("to")})


class _Reads:
    """Args:
        owner: by leaf of a state the number of its group."""

    def __init__(self, owner: dict[Node, int]):
        self.owner, self.copies = owner, functools.cache(self._copies)

    def value(self, node: Node, args: list[Node]) -> Node:
        new = renamed_at_once(args[0], dict(node.attr("to"))) if node.op == "rename" else node.on(*args)
        return (self._read(new) if new.op in ("contract", "sum") else None) or new

    def _copies(self, n: Node) -> frozenset[int]:
        """The groups whose states stand in a value entry by entry: decayed, updated, added up; not those of a vector
        that is a factor of an outer product, which is written."""
        if n in self.owner:
            return frozenset([self.owner[n]])
        if n.op not in ("add", "sub", "neg", "mul", "div", "where", "expand", *_WHOLE):
            return frozenset()
        whole = [a for a in n.args if n.op != "mul" or {*a.dims} == {*n.dims}]
        return frozenset[int]().union(*map(self.copies, whole))

    def _read(self, n: Node) -> Node | None:
        """A sum over dims, perhaps of a product with another value, taken of each group for itself."""
        x = max(n.args, key=lambda a: len(self.copies(a)))
        other = next((a for a in n.args if a is not x), None)
        if x.op == "rename" and other is not None and _again(x, other):
            return None
        parts = self._parts(x) if self._mixed(x) else None
        if parts is None:
            return None
        by_group = dict[Any, Node]()
        for p in sorted(parts, key=lambda p: not self.copies(p)):  # what no state is in goes with the first
            plane = self._plane(p)
            of = (self.copies(p), plane and (plane[0].op, *plane[0].attrs)) if self.copies(p) else next(iter(by_group))
            by_group[of] = by_group[of] + p if of in by_group else p

        def read(part: Node) -> Node:
            for y, c in (part.args, part.args[::-1]) if part.op == "mul" else ():
                if not self.copies(c) and {*c.dims} <= {*n.dims}:  # the read of a state as it is, times a number
                    return c * read(y)
            if (found := self._plane(part)) and found[0].op in _PLANES and (other is None or other.kind == "real"):
                return make(found[0].op, read(found[1]))
            to = _exchanged(found[0]) if found and found[0].op == "rename" else {}
            part, back = found[1] if found and to else part, {new: d for d, new in to.items()}
            query = None if other is None else renamed_at_once(other, back)
            have, dims = {*part.dims, *(query.dims if query else ())}, [back.get(d, d) for d in n.dims]
            for d in sorted({back.get(d, d) for d in x.dims} - {*dims} - have):  # the same for every entry along it
                part = part * make("size", dim=d)
            out = [d for d in dims if d in have]
            summed = [d for d in part.dims if d not in out]
            value = total(part, summed) if query is None else contract(part, query, out)
            return expand(renamed_at_once(value, to), n.dims)
        return functools.reduce(Node.__add__, map(read, by_group.values()))

    def _mixed(self, x: Node) -> bool:
        """Do states of several groups stand in it, or planes of one, or one under other names?"""
        return len(self.copies(x)) > 1 or (bool(self.copies(x)) and (
            x.op in _WHOLE or any(map(self._mixed, x.args))))

    def _plane(self, x: Node) -> tuple[Node, Node] | None:
        """(real(y), y) of a value real(y), or one under other names, that states stand in; perhaps times a factor, for
        real(y) a real one, which then y has."""
        if x.op == "mul":
            c, y = sorted(x.args, key=lambda a: bool(self.copies(a)))
            found = None if self.copies(c) else self._plane(y)
            if found and found[0].op == "rename":
                back = {new: d for d, new in _exchanged(found[0]).items()}
                return None if _again(found[0], c) else (found[0], renamed_at_once(c, back) * found[1])
            return found and (found[0], c * found[1]) if c.kind == "real" else None
        if x.op == "neg":
            found = self._plane(x.args[0])
            return found and (found[0], -found[1])
        return (x, x.args[0]) if x.op in _WHOLE and self.copies(x) else None

    def _parts(self, x: Node) -> list[Node] | None:
        """Values of one group each, or of none, whose sum it is; None: it is no such sum."""
        if not self._mixed(x):
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
