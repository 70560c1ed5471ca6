"""A launch whose programs divide a dim: what each forms of every value.

before: dk = sum over V of dS v + dn           dn, the cotangent of an out without V, is the same in every program
after:  dk = sum over V of dS v + once(dn)     its part of the sum in each, the rest in the first one alone

Along a dim a value is a program's own part (it has the dim), the same in every program, or a share: the sum over the
programs is the value.  What is not linear in a share cannot be formed there.  If it is a row a token, another launch,
whose programs have the dim whole, may hand it on:

before: u = solve(L, v - k S);  dv = solve(L', ...);  dk = S dv + dS u + ...     L = k k' sums over all of K
after:  dk with u and dv loaded, by programs that hold a part of K
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mixc.ir.launch import sums_over
from mixc.ir.node import COL, ROW, Node, depends, make, postorder, source
from mixc.ir.ops import OPS

_ADDS_UP = {"sum", "contract", "span_contract"}  # a sum over a dim is the sum of those over its parts


def cotangents(nodes: Iterable[Node]) -> list[Node]:
    """Also rows linear in them that another launch handed on."""
    return [n for n in nodes if n.op == "cot" or n.attr("linear")]


class Along:
    """Values as a program forms them that has a part of the dim `d`.

    Args:
        carried: cotangents of states: what has not the dim enters one program, and is a share from then on.
        leaf: of a value that may be handed on, what is read in its place (None: nothing is, or not in this one's).
        pairs: are matrices of pairs of rows handed on, so that no program needs all of `d` for them?
        needs: where nothing can be handed on in the place of a value (a state), are the rows handed on that it needs?

    Attributes:
        formed: by value, what a program forms of it; what is not there cannot be formed.
        handed: by value that is loaded instead, its leaf."""

    def __init__(self, roots: list[Node], carried: list[Node], d: str,
                 leaf: Callable[[Node], Node | None] | None = None, pairs: bool = False, needs: bool = False):
        self.d, self.leaf, self.pairs, self.needs = d, leaf, pairs, needs
        order = list(postorder(roots))
        self.linear = depends(order, cotangents(order))
        self._whole, known = set[Node](), -1
        while known < len(self._whole):  # what is to be whole may have been taken as a share before that was found
            known = len(self._whole)
            self.formed, self.handed = dict[Node, Node](), dict[Node, Node]()
            self._shares = {n for n in carried if d not in n.dims}
            for n in order:
                self._add(n)

    def _add(self, n: Node) -> None:
        if self.pairs and n in self.linear and {*n.dims} in ({ROW, COL}, {"_u", COL}, {ROW, "_u"}):
            # a gradient of pairs of rows is formed of whole rows
            self._whole |= {x for x in map(source, n.args) if x in self._shares and COL not in x.dims}
        new = self._form(n)
        if new is not None:
            self.formed[n] = new
        load = new is None or n in self._whole or (self.pairs and self._of_the_forward(n))
        if load and self.leaf is not None and _is_row(n, self.pairs) and (leaf := self.leaf(n)) is not None:
            self._shares.discard(n)
            self.handed[n] = self.formed[n] = leaf
        elif new is None and self.needs and all(a in self.formed for a in n.args):
            self._whole |= {source(a) for a in n.args if a in self._shares and _is_row(source(a), self.pairs)}

    def _of_the_forward(self, n: Node) -> bool:
        """A matrix of pairs of rows that sums over `d`, or an inverse of such: the forward has it."""
        return n.dims == (ROW, COL) and n not in self.linear and (n in self._shares or n.op == "unit_inverse")

    def share(self, n: Node) -> Node:
        """A formed value as a program's share of it."""
        new = self.formed[n]
        return new if self.d in n.dims or n in self._shares else make("once", new, dim=self.d)

    def part(self, n: Node) -> Node:
        """The same of a value that is linear in cotangents; another is the same in every program."""
        return self.share(n) if n in self.linear else self.formed[n]

    def _form(self, n: Node) -> Node | None:
        if not n.args:
            return n
        if any(a not in self.formed for a in n.args) or self._picks(n):
            return None
        shares = [i for i, a in enumerate(n.args) if a in self._shares]
        summed = self.d not in n.dims and any(self.d in a.dims for a in n.args)
        if not shares and not summed:
            return None if sums_over(n, self.d) else self._of(n, ())
        if self.d in n.dims or (summed and shares):
            return None
        joint = self._jointly(n, shares, summed)
        if joint is None:
            return None
        self._shares.add(n)
        return self._of(n, joint)

    def _picks(self, n: Node) -> bool:
        """Which entries are the largest, which was loaded: formed again, to the last bit, perhaps none is."""
        return n.op == "eq" and any(source(a).op in ("max", "min") and source(a) in self.handed for a in n.args)

    def _jointly(self, n: Node, shares: list[int], summed: bool) -> tuple[int, ...] | None:
        """The arguments of which a share is taken; None where the value is not linear in those that are shares."""
        if n in self.linear and all(n.args[i] in self.linear for i in shares):
            return () if summed else tuple(i for i, a in enumerate(n.args) if a in self.linear)
        if summed:
            return () if n.op in _ADDS_UP else None
        row = OPS[n.op]
        if row.jointly:
            return row.jointly if {*shares} <= {*row.jointly} else None
        return tuple(shares) if len(shares) == 1 and shares[0] in row.linear_in and not n.attr("fill") else None

    def _of(self, n: Node, joint: tuple[int, ...]) -> Node:
        return n.on(*(self.share(a) if i in joint else self.formed[a] for i, a in enumerate(n.args)))


def _is_row(n: Node, pairs: bool) -> bool:
    """Is it a row a token, which a tensor can hold? That of a matrix of `pairs` of rows has a number for each of its
    chunk."""
    inner = [d for d in n.dims if d.startswith("_")]
    held = inner == [ROW] or (pairs and n.dims == (ROW, COL))
    return held and n.kind == "real" and n.op not in ("rename", "expand")


def shares(roots: list[Node], carried: list[Node], d: str) -> list[Node] | None:
    """`roots`, linear in cotangents, each as the programs' parts of it along `d`; None where one is needed whole."""
    found = Along(roots, carried, d)
    return None if any(r not in found.formed for r in roots) else [found.part(r) for r in roots]
