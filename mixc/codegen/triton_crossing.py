"""The gradient of a decay in kernels: what cancels in its running sum.

before: running = sum_of_rows(q * (dq + more) - k * dk, rows, "later_and_own", ...)         dq, dk: under P
after:  dq, dk, gain = span_apply_both(P, q, k, ...)
        running = sum_of_rows(either(gain + q * more, q * more, ...), ...)
        running = with_spans(running, P, q, k, ...)

Behind a row, what q dq and k dk add up to are the same sums over pairs of rows (`span_crossing`), but for their roundings.
For half inputs `gain` is q dq - k dk with q and k rounded as the products met them, so that every pair cancels; else one
rounding of a pair would reach all earlier rows, and a param of the decay add it up.  For fp32 inputs what cancels is not
formed: by levels (`span_between`) these take about as long as dq and dk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixc.ir.brackets import atom
from mixc.ir.build import rename
from mixc.ir.launch import feature_dims
from mixc.ir.node import COL, ROW, Node, depends, postorder
from mixc.passes.sums import renamed

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles

Term = tuple[bool, tuple[Node, ...], Node]  # is it subtracted, factors, what they are factors of


@dataclass(frozen=True)
class Pair:
    """dx = span_contract(A, y) and dy = span_contract(A, x), of which a sum has x dx - y dy."""

    A: Node
    x: Node
    y: Node
    dx: Node
    dy: Node


def taken_apart(total: Node) -> tuple[list[Pair], list[Term]]:
    """The pairs that a sum has, and its other terms."""
    order = list(postorder([total]))
    spans = [n for n in order if n.op == "span_contract"]
    found = [p for dx in spans for dy in spans if (p := _pair(dx, dy))]
    whole = {x for p in found for x in (p.x, _at_row(p.y))}  # factors, whatever they are made of
    having = set[Node]()
    for n in order:
        if n not in whole and (n in spans or (n.op in _LINEAR and any(a in having for a in n.args))):
            having.add(n)
    terms, pairs = _terms(total, having), list[Pair]()
    for p in found:
        own = [t for t in terms if t[2] is p.dx and not t[0] and _factors(t[1]) == _factors((p.x,))]
        gave = [t for t in terms if _source(t[2]) is p.dy and t[0] and _factors(t[1]) == _factors((_at_row(p.y),))]
        if len(own) == len(gave) == 1:
            terms = [t for t in terms if t not in (*own, *gave)]
            pairs.append(p)
    return pairs, terms


def _pair(dx: Node, dy: Node) -> Pair | None:
    A = next((a for a in dx.args[:2] if {*a.dims} == {ROW, COL} and a in dy.args[:2]), None)
    if A is None or dx.args[2] is not dy.args[2] or dx.attr("reach") != dy.attr("reach"):
        return None
    y, x = (next((a for a in n.args[:2] if a is not A), A) for n in (dx, dy))
    rows, dims = [{*n.dims} & {ROW, COL} for n in (dx, x, dy, y)], {feature_dims(n) for n in (dx, dy, x, y)}
    fits = rows == [{ROW}, {ROW}, {COL}, {COL}] and len(dims) == 1 and len(feature_dims(x)) == 1
    return Pair(A, x, y, dx, dy) if fits else None


_LINEAR = ("add", "sub", "neg", "mul", "rename")


def _terms(n: Node, having: set[Node], minus: bool = False, factors: tuple[Node, ...] = ()) -> list[Term]:
    """A sum, multiplied out where a factor is `having` products under decays."""
    if n.op in ("add", "sub") and n in having:
        a, b = n.args
        return _terms(a, having, minus, factors) + _terms(b, having, minus != (n.op == "sub"), factors)
    if n.op == "neg" and n in having:
        return _terms(n.args[0], having, not minus, factors)
    if n.op == "mul" and n in having:
        a, b = n.args if n.args[0] in having else n.args[::-1]
        if b not in having:  # else it is linear in neither
            return _terms(a, having, minus, (*factors, b))
    if n.op == "rename" and n in having:
        inner = _terms(n.args[0], having, minus)
        return [(m, (*factors, *(renamed(f, n) for f in fs)), renamed(x, n)) for m, fs, x in inner]
    return [(minus, factors, n)]


def _factors(of: tuple[Node, ...]) -> Counter[Node]:
    """What is multiplied, each by itself."""
    stack, found = list(of), Counter[Node]()
    while stack:
        n = stack.pop()
        if n.op == "mul":
            stack += n.args
        elif n.op == "rename" and n.args[0].op == "mul":
            stack += [renamed(a, n) for a in n.args[0].args]
        else:
            found[n] += 1
    return found


def _source(n: Node) -> Node:
    return n.args[0] if n.op == "rename" else n


def _at_row(y: Node) -> Node:
    if y.op == "rename" and dict(y.attr("to")) == {ROW: COL}:
        return y.args[0]
    return rename(y, **{COL: ROW})


def later_sum_code(tiles: Tiles, node: Node, which: str, d: str) -> str | None:
    """The running sum from the end, or None where it has no such pairs."""
    from mixc.codegen.triton_span import _bare, _decays

    if not node.attr("reverse"):
        return None
    pairs, rest = taken_apart(node.args[0])
    if not pairs:
        return None
    exclusive = bool(node.attr("exclusive"))
    for p in pairs:  # formed together, where they are
        tiles.name(p.dx), tiles.name(p.dy)
    gains = [tiles.gains.get((p.dx, p.dy), "") for p in pairs]
    others = "".join(f" {'-' if minus else '+'} {_product(tiles, (*factors, x), d)}" for minus, factors, x in rest)
    if all(gains):
        spans = [x for p in pairs for x in (p.dx, p.dy)]
        tiles.unread |= {n for n in depends(list(postorder(node.args)), spans) if n.op in _LINEAR}
    half = f"{' + '.join(gains)}{others}" if all(gains) else tiles.whole(node.args[0], (ROW, d))
    zero = f"tl.zeros({tiles.shape((ROW, d))}, tl.float32)"
    others = others.removeprefix(" + ") if others.startswith(" + ") else f"{'0.0' if others else zero}{others}"
    name = tiles.fresh("running")
    tiles.emit(node, f"{name} = sum_of_rows(either({half}, {others}, OPERAND, PRECISION), rows, {which!r}, PRECISION)")
    calls = []
    for p in pairs:
        gave = _product(tiles, (_at_row(p.y), rename(p.dy, **{COL: ROW})), d) if exclusive else "0.0"
        calls.append(f"{tiles.whole(p.A, (ROW, COL))}, {_bare(tiles, p.x, (ROW, d))}, {_bare(tiles, p.y, (COL, d))}, {gave}, "
                     f"{_decays(tiles, p.dx, d)}, {exclusive}, OPERAND, PRECISION)")
    for call in calls[:-1]:
        tiles.emit(node, f"{name} = with_spans({name}, {call}")
    return f"with_spans({name}, {calls[-1]}"


def _product(tiles: Tiles, factors: tuple[Node, ...], d: str) -> str:
    return " * ".join(atom(tiles.whole(f, (ROW, d))) for f in factors)
