"""States that drive each other as one scan: a damped rotation, momentum, systems of second order.

before: x, y = c * x - s * y + u, s * x + c * y        one token, x and y the old values
after:  P = block_scan([[c, -s], [s, c]], [u, 0], [x0, y0]);  x = component 0, y = component 1

Found for any two or three states of a strongly connected component that have the same dims: every update is
walked like that of a single scan, with one factor for each of the old states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mixc.ir.blocks import block_scan, component
from mixc.ir.build import expand, is_number, make, number, plus, times, where
from mixc.ir.node import ROW, Node, depends
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import bounds
from mixc.ir.scans import at_edge, previous

MOST = 3
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """sum_j a[j] * state_j + b"""

    a: tuple[Node, ...]
    b: Node


def block_rows(step: Program, states: list[Decl]) -> list[Row] | None:
    """The update of every state of a group as a row of a matrix, or None."""
    dims = set(states[0].dims)
    if not 1 < len(states) <= MOST or any(set(s.dims) != dims or s.kind == "complex" for s in states):
        return None
    return affine_rows(step, states)


def affine_rows(step: Program, states: list[Decl]) -> list[Row] | None:
    """None also where one starts at an infinity, which a factor of 0 does not forget.  Call inside `proving(step)`."""
    if any(bounds(s.leaf()).infinite for s in states):
        return None
    walk = _Walk(step, states)
    rows = [walk.form(step.result("next", s.name)) for s in states]
    found = [r for r in rows if r is not None]
    return found if len(found) == len(rows) else None


class Walk(Generic[T]):
    """From states to their next values: each value between as some form of what the states were, or None."""

    def __init__(self, step: Program, states: list[Decl]):
        self.leaves = [s.leaf() for s in states]
        self.dims = set(states[0].dims)
        self.reads = depends(step.values(), self.leaves)
        self.known: dict[Node, T | None] = {}

    def free(self, n: Node) -> bool:
        """Does it not read the states, and vary along no other dims?"""
        return n not in self.reads and set(n.dims) <= self.dims

    def form(self, n: Node) -> T | None:
        if n not in self.known:
            self.known[n] = self._find(n)
        return self.known[n]

    def _find(self, n: Node) -> T | None:
        raise NotImplementedError


class _Walk(Walk[Row]):
    def _find(self, n: Node) -> Row | None:
        zeros = tuple(number(0) for _ in self.leaves)
        if n in self.leaves:
            return Row(tuple(number(float(n is leaf)) for leaf in self.leaves), number(0))
        if self.free(n):
            return Row(zeros, n)
        a = n.args
        if n.op == "mul":
            for x, c in (a, a[::-1]):
                if self.free(c):
                    return self._map(x, lambda y, c=c: times(c, y))  # type: ignore[misc]
        if n.op == "div" and self.free(a[1]):
            return self._map(a[0], lambda y: y if is_number(y, 0.0) else y / a[1])
        if n.op == "neg":
            return self._map(a[0], lambda y: times(number(-1), y))
        if n.op == "expand" and set(n.dims) == set(a[0].dims):
            return self.form(a[0])
        if n.op == "add":
            return self._join(a[0], a[1], plus)
        if n.op == "sub":
            return self._join(a[0], a[1], _minus)
        if n.op == "where" and self.free(a[0]):
            return self._join(a[1], a[2], lambda x, y: x if x is y else where(a[0], x, y))
        return None

    def _map(self, x: Node, fn: Callable[[Node], Node]) -> Row | None:
        r = self.form(x)
        return None if r is None else Row(tuple(map(fn, r.a)), fn(r.b))

    def _join(self, x: Node, y: Node, fn: Callable[[Node, Node], Node]) -> Row | None:
        r, s = self.form(x), self.form(y)
        return None if r is None or s is None else Row(tuple(map(fn, r.a, s.a)), fn(r.b, s.b))


def _minus(a: Node, b: Node) -> Node:
    return a if is_number(b, 0.0) else times(number(-1), b) if is_number(a, 0.0) else a - b


def reason(states: list[Decl]) -> str:
    return f"{' and '.join(s.name for s in states)} drive each other entry by entry: a scan over small matrices"


class Block:
    """The states of one group in a chunk program."""

    def __init__(self, step: Program, states: list[Decl], lift: Callable[[Node], Node]):
        rows = block_rows(step, states)
        assert rows is not None
        self.states, self.rows, self.lift = states, rows, lift
        self.made: Node | None = None

    def node(self) -> Node:
        if self.made is None:
            A = [[self._live(a, float(i == j)) for j, a in enumerate(r.a)] for i, r in enumerate(self.rows)]
            b = [self._live(r.b, 0.0) for r in self.rows]
            self.made = block_scan(A, b, [s.leaf() for s in self.states], self.states[0].dims)
        return self.made

    def _live(self, x: Node, fill: float) -> Node:
        return x if is_number(x, fill) else make("live", expand(self.lift(x), (ROW,)), fill=fill)


class Scanned:
    """A state of form scan in a chunk program; `leaf`: as the chunk receives it."""

    leaf: Node

    def after(self) -> Node:
        """The state after every row: [_t, dims...]."""
        raise NotImplementedError

    def before(self) -> Node:
        """The state before every row."""
        return previous(self.after(), self.leaf)

    def next(self) -> Node:
        """The state after the last row; rows that are no tokens have left it as it was."""
        return at_edge(self.after(), last=True)


class BlockState(Scanned):
    """One of a block."""

    def __init__(self, block: Block, i: int):
        self.block, self.i, self.leaf = block, i, block.states[i].leaf()

    def after(self) -> Node:
        return component(self.block.node(), self.i)
