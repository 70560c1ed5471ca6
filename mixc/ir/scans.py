"""Scans: h[t] = update(a[t], b[t], h[t-1]) over the rows of a chunk, entry by entry, and their adjoint.

    affine   a * h + b                   max+  maximum(a + h, b)        maxx  maximum(a * h, b), a >= 0
    log+     logaddexp(a + h, b)         min+  minimum(a + h, b)        minx  minimum(a * h, b), a >= 0

Every update composes with itself: after rows 1..t it is the update of one row, with a the sum (or product)
of their a and b what a scan that starts with nothing leaves.  That makes a scan associative, and is all that
`carry_first` uses.

The adjoint of *every* scan is the affine scan run backwards with the factor d h[t] / d h[t-1] of the update at
the h[t-1] that was there; the combine of two rows is never differentiated (at ties that gives wrong numbers, at
-inf NaN).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mixc.ir.node import ROW, Node, make, number, postorder, substitute

Tensor = torch.Tensor


@dataclass(frozen=True)
class Combine:
    """One row of the table above.

    Attributes:
        update: nodes (a, b, h) to the next h. step: the same on tensors.
        keep: the a that leaves h as it is. nothing: the b that adds nothing.
        times: does a multiply (else it is added)?
    """

    update: Callable[[Node, Node, Node], Node]
    step: Callable[[Tensor, Tensor, Tensor], Tensor]
    nothing: float
    times: bool

    @property
    def keep(self) -> float:
        return 1.0 if self.times else 0.0


def _of(op: str, times: bool) -> Callable[[Node, Node, Node], Node]:
    return lambda a, b, h: make(op, a * h if times else a + h, b)


COMBINES: dict[str, Combine] = {
    "affine": Combine(_of("add", True), lambda a, b, h: a * h + b, 0.0, True),
    "max+": Combine(_of("maximum", False), lambda a, b, h: torch.maximum(a + h, b), -math.inf, False),
    "min+": Combine(_of("minimum", False), lambda a, b, h: torch.minimum(a + h, b), math.inf, False),
    "maxx": Combine(_of("maximum", True), lambda a, b, h: torch.maximum(a * h, b), -math.inf, True),
    "minx": Combine(_of("minimum", True), lambda a, b, h: torch.minimum(a * h, b), math.inf, True),
    "log+": Combine(_of("logaddexp", False), lambda a, b, h: torch.logaddexp(a + h, b), -math.inf, False),
}


def chooses(n: Node) -> bool:
    """Is it a scan that keeps what was there, or takes what is new?"""
    return n.attr("combine") in ("max+", "maxx", "min+", "minx")


# ---------------------------------------------------------------- nodes
def scan(combine: str, a: Node, b: Node, start: Node, dims: tuple[str, ...], reverse: bool = False) -> Node:
    """[_t, dims...]: h after every row; `reverse`: from the last row to the first."""
    return make("scan", a, b, start, combine=combine, dims=dims, reverse=reverse)


def previous(x: Node, edge: Node, reverse: bool = False) -> Node:
    """x of the row before (reverse: behind), `edge` where there is none."""
    return make("previous", x, edge, reverse=reverse)


def at_edge(x: Node, last: bool) -> Node:
    """x of the last row, or of the first."""
    return make("pick", x, dim=ROW, i=-1 if last else 0) if ROW in x.dims else x


def lasting(a: Node, combine: str) -> Node:
    """The a of all rows together; of exponentials as one of their sum, which keeps more digits."""
    from mixc.ir.build import expand, total

    if not COMBINES[combine].times:
        return total(expand(a, (ROW,)), (ROW,))
    power, dead = (a.args[0], a.op == "live") if a.op == "live" else (a, False)
    if power.op == "exp":
        g = expand(power.args[0], (ROW,))
        return make("exp", total(make("live", g, fill=0.0) if dead else g, (ROW,)))
    return make("prod", expand(a, (ROW,)), over=(ROW,))


def carry_first(n: Node) -> Node | None:
    """The edge of a scan = update(all its a, what it leaves when nothing comes in, what comes in); x times the edge
    of an affine one likewise, with x taken into both.

    So all a loop over chunks does is one update a chunk; the scans themselves need no loop."""
    if n.op == "mul":
        for x, edge in (n.args, n.args[::-1]):
            if edge.op == "add" and edge.args[1].op == "scan_end" and edge.args[0].op == "mul" and x.op != "add":
                a, start = edge.args[0].args
                return _without_rows(x * a) * start + x * edge.args[1]
        return None
    if not _is_edge(n):
        return None
    a, _, start = n.args[0].args
    combine = n.args[0].attr("combine")
    return COMBINES[combine].update(lasting(a, combine), _end(n.args[0]), start)


def _is_edge(n: Node) -> bool:
    """What a scan leaves."""
    return (n.op == "pick" and n.args[0].op == "scan" and n.attr("dim") == ROW
            and n.attr("i") == (0 if n.args[0].attr("reverse") else -1))


def _end(n: Node) -> Node:
    return make("scan_end", n.args[0], n.args[1], **dict(n.attrs))


def _without_rows(x: Node) -> Node:
    """x[first] * (the product of the others) = the product of all"""
    edge, rest = x.args
    if edge.op == "pick" and rest.op == "prod" and rest.args[0].op == "previous":
        inner, one = rest.args[0].args
        if edge.args[0] is inner and one.op == "number" and one.attr("value") == 1.0:
            return lasting(inner, "affine")
    return x


# ---------------------------------------------------------------- adjoint
def adjoint(n: Node, c: Node) -> tuple[Node, Node, Node]:
    """Cotangents of a, b and the start."""
    from mixc.ir.build import expand
    from mixc.ir.derivatives import gradient

    combine, back = n.attr("combine"), n.attr("reverse")
    a, b, start = n.args
    h = previous(n, start, back)
    update = COMBINES[combine].update(a, b, h)

    def derivatives(c: Node) -> list[Node]:  # of the update, whose value is that of the row
        found = [_or_zero(x) for x in gradient([(update, c)], [a, b, h])]
        return substitute(found, {update: n})
    factor = a if combine == "affine" else derivatives(expand(number(1), h.dims))[2]
    if a.op == "live" or _has_live(b):
        factor = make("live", expand(factor, (ROW,)), fill=1.0)
    rows, behind = split_edge(c, 0 if back else -1)
    later = previous(expand(factor, (ROW,)), number(1), not back)
    d = scan("affine", later, rows, behind, n.attr("dims"), not back)
    da, db, _ = derivatives(d)
    return da, db, at_edge(factor, back) * at_edge(d, back)


def _or_zero(x: Node | None) -> Node:
    return number(0) if x is None else x


def _has_live(x: Node) -> bool:
    return any(n.op == "live" for n in postorder([x]))


def split_edge(c: Node, edge: int) -> tuple[Node, Node]:
    """A sum of cotangents as those of rows, and that of the state behind the last row."""
    rows, behind = list[Node](), list[Node]()
    for x in addends(c):
        placed = x.op == "place" and x.attr("dim") == ROW and x.attr("i") == edge
        (behind if placed else rows).append(x.args[0] if placed else x)
    return total_of(rows), total_of(behind)


def addends(x: Node) -> list[Node]:
    """What a sum adds up, in order."""
    found, stack = list[Node](), [x]
    while stack:
        x = stack.pop()
        if x.op == "add":
            stack.extend(reversed(x.args))
        else:
            found.append(x)
    return found


def total_of(xs: list[Node]) -> Node:
    return functools.reduce(Node.__add__, xs) if xs else number(0)


# ---------------------------------------------------------------- evaluation
def run_scan(combine: str, a: Tensor, b: Tensor, start: Tensor | None, axis: int, reverse: bool) -> list[Tensor]:
    """h after every row, in the order of rows; start None: nothing comes in."""
    step, h, found = COMBINES[combine].step, start, list[Tensor]()
    rows = list(zip(a.unbind(axis), b.unbind(axis), strict=True))
    for x, y in reversed(rows) if reverse else rows:
        h = y.clone() if h is None else step(x, y, h)
        found.append(h)
    return found[::-1] if reverse else found


def shift(x: Tensor, edge: Tensor, axis: int, reverse: bool) -> Tensor:
    """x moved on by one row, `edge` (without that axis) at the row that has none before it."""
    edge = edge.to(x.dtype).expand(x.select(axis, 0).shape).unsqueeze(axis)
    n = x.shape[axis] - 1
    return torch.cat([x.narrow(axis, 1, n), edge] if reverse else [edge, x.narrow(axis, 0, n)], axis)
