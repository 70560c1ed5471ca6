"""A launch: one kernel's share of a program, and how it walks over time.

The values are the program's own nodes.  What a launch adds: where they come from (its loads), where
they go (its stores), what it carries from one chunk to the next, and which dims its programs split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from mixc.ir.node import COL, ROW, Node, postorder
from mixc.ir.program import Program


@dataclass(frozen=True)
class Carry:
    """A loop-carried tile. `leaf` is read in the body, `next` is its value for the next chunk."""

    name: str
    leaf: Node
    next: Node
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """`kind`: "rows" (a row a token), "chunk" (one value a chunk, kept for another launch),
    "partial" (summed over the loop, one value a sequence and head). `at`: at which entries of `dims`, which the value
    lacks, it is stored."""

    kind: str
    name: str
    value: Node
    dims: tuple[str, ...]
    result: str = ""  # the result of the program this is: "out", "grad", "sum", "save"
    at: tuple[tuple[str, int], ...] = ()

    @property
    def tile(self) -> tuple[str, ...]:
        """The dims of what is stored at once."""
        return tuple(d for d in self.dims if d not in dict(self.at))


@dataclass(frozen=True)
class Product:
    """A contribution to a param's gradient, [left's dim, right's dim] (or the other way round: `transposed`): the sum
    over all tokens of left's row times right's row, both tensors that launches left; `before`: right's row is that of
    the token before, the initial state at the first one."""

    param: str
    left: str
    right: str
    before: bool
    transposed: bool


@dataclass(frozen=True)
class Launch:
    """One kernel. `loop`: "chunks" (in order, or from the end if `reverse`), "segment" (the chunks of one segment,
    every segment is a program's own), "chunk" (a single chunk, which is a segment), "tokens" (a row at a time) or
    "cells" (a token at a time of many sequences, which are the rows; `starts` are then of every token).

    `starts`: states whose value at the start of every segment is loaded, and `replay`: what a chunk leaves of each of
    them, by which the backward forms the states inside a segment again; `keeps`: states of which a walk over all chunks
    stores what it carries into every segment, for other launches; `exact`: states that are kept in fp32; `fine`: do
    products meet in a small difference, so that they take TF32 operands, and rows are handed on in fp32? `split`: dims
    that programs may divide among them; `summed`: those of `split` over which the stores without that dim are partial
    sums; `each`: those of `split` of which a program has one entry, so that its values lack them."""

    name: str
    program: Program
    loop: str
    reverse: bool
    carries: tuple[Carry, ...]
    stores: tuple[Store, ...]
    starts: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    replay: tuple[Node, ...] = ()
    exact: frozenset[str] = frozenset()
    fine: bool = False
    split: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    each: tuple[str, ...] = ()

    def partial_over(self, dims: tuple[str, ...]) -> list[str]:
        """The dims over which what has only `dims` is a partial sum: one for each of their blocks."""
        return [d for d in self.summed if d not in dims]

    @property
    def alone(self) -> bool:
        """Is every segment a program's own, which begins with what another launch carried there?"""
        return self.loop in ("segment", "chunk")

    def kept(self, carry: str) -> str:
        """The tensor of what a carried tile is on entering every segment: at its start, or where the loop runs
        backwards at its end."""
        return carry + ("_ends" if self.reverse else "_starts")

    @property
    def stored(self) -> tuple[Store, ...]:
        """A store of each tensor, whose entries may have one each."""
        return tuple({s.name: s for s in self.stores}.values())

    def roots(self) -> list[Node]:
        return ([] if self.loop == "chunk" else [c.next for c in self.carries]) + [s.value for s in self.stores]

    def with_roots(self, roots: list[Node]) -> Launch:
        n = len(roots) - len(self.stores)
        carries = self.carries if self.loop == "chunk" else tuple(
            replace(c, next=x) for c, x in zip(self.carries, roots[:n], strict=True))
        return replace(self, carries=carries,
                       stores=tuple(replace(s, value=x) for s, x in zip(self.stores, roots[n:], strict=True)))

    def with_nodes(self, formed: Callable[[list[Node]], list[Node]]) -> Launch:
        """The same with other values, also where it forms states again."""
        return replace(self.with_roots(formed(self.roots())), replay=tuple(formed(list(self.replay))))

    def body(self) -> list[Node]:
        return list(self._body)

    @cached_property
    def _body(self) -> tuple[Node, ...]:
        return tuple(postorder(self.roots()))

    def nodes(self) -> list[Node]:
        return list(self._nodes)

    @cached_property
    def _nodes(self) -> tuple[Node, ...]:
        return tuple(postorder([*self.roots(), *self.replay]))

    @cached_property
    def in_fp32(self) -> set[str]:
        """The rows that are handed on in fp32 whatever the inputs, by name: those of which more is formed than operands
        of products, which would be rounded anyway, and sums beside them; and those of pairs of rows: ways from row to
        row."""
        read = [n for n in self.nodes() if n.op == "saved"]
        stored = {s.name for s in self.stores if s.result == "save" and (self.fine or COL in s.dims)}
        return stored | {str(n.attr("name")) for n in read if self.fine or COL in n.dims
                         or not _rounded_anyway(n, self.nodes())}

    def inverse_over(self) -> list[str]:
        """The dims that the products inside inverses sum over, but for what makes more rows."""
        return sorted(keys_inside([n for n in self.nodes() if n.op == "unit_inverse"], self.program))

    def varying(self) -> set[Node]:
        """What differs from chunk to chunk: below it, the body of the loop."""
        out: set[Node] = set()
        for n in self.nodes():
            if n.op in ("in", "cot", "saved", "state", "pos", "live") or ROW in n.dims or any(a in out for a in n.args):
                out.add(n)
        return out


SCALINGS = ("rename", "expand", "live", "mask", "once", "neg", "mul")
PRODUCTS = ("contract", "span_contract")


def _rounded_anyway(row: Node, nodes: list[Node]) -> bool:
    """Is the row, scaled perhaps, an operand of products, and nothing more but summed?"""
    scaled, ends = {row}, set[str]()
    for n in nodes:  # in order
        if any(a in scaled for a in n.args):
            ends |= {n.op} - {*SCALINGS}
            scaled |= {n} if n.op in SCALINGS else set()
    return bool(ends & {*PRODUCTS}) and ends <= {*PRODUCTS, "sum"}


ROWS = (ROW, COL, "_u")  # whatever they are called


def sides(node: Node) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | None:
    """The dims that a has, those that are summed, and those that b has, of a product of two matrices; else None."""
    if node.op != "contract":
        return None
    a, b = node.args
    summed = tuple(d for d in a.dims if d in b.dims)
    left, right = (tuple(d for d in x.dims if d not in summed) for x in (a, b))
    return (left, summed, right) if left and summed and right and not {*summed} & {*node.dims} else None


def row_dims(nodes: list[Node], program: Program) -> frozenset[str]:
    """The dims that make more rows of a token: no state has them, and products have them beside rows."""
    names = {pair for n in nodes if n.op == "rename" for pair in n.attr("to")}

    def called(dims: set[str]) -> set[str]:
        """With the other names of what has them."""
        for _ in names:
            dims = dims | {d for pair in names if {*pair} & dims for d in pair}
        return dims - {*ROWS}
    found: set[str] = set()
    for n in nodes:
        if n.op == "contract":
            a, b = ({*x.dims} for x in n.args)
            parts = (a - b, b - a, (a & b) - {*n.dims})
            found |= {d for part in parts if all(parts) and part & {*ROWS} for d in part}
    return frozenset(called(found - {*ROWS}) - called({d for s in program.states for d in s.dims}))


def keys_inside(systems: Iterable[Node], program: Program) -> set[str]:
    """The dims that products inside triangular systems sum over, but for what makes more rows."""
    return {d for n in postorder(systems) if n.op in PRODUCTS for d in feature_dims(n.args[0])
            if d not in (*n.dims, *program.inner)}


def feature_dims(node: Node) -> tuple[str, ...]:
    return tuple(d for d in node.dims if d not in ROWS)


def splittable(nodes: list[Node], dims: list[str]) -> tuple[str, ...]:
    """Dims along which a program needs only its own part of every value: nothing sums over them."""
    return tuple(d for d in dims if not any(sums_over(n, d) for n in nodes))


def sums_over(n: Node, d: str) -> bool:
    """Does an entry of it need more than one along d?"""
    if n.op == "softmax":
        return d in n.attr("over")
    if n.op == "rename":
        return any(d in pair for pair in n.attr("to"))
    return bool(n.args) and any(d in a.dims for a in n.args) and d not in n.dims
