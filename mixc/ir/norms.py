"""Bounds on vectors: the norm of what is formed of vectors whose norm is declared, or of what is divided by its own.

    k / maximum(norm[K](k), 1e-6)       k * rsqrt(sum(square(k)) + eps)       softmax[K](k)           1
    a * k + (1 - a) * lag(k, 1)         sigmoid(w) * k                        (k - p) / 2             that of k

By such bounds products of half operands are precise enough (`passes.lower`), and kernels far faster.
"""

from __future__ import annotations

from collections.abc import Callable

from mixc.ir.node import Node, is_number
from mixc.ir.ranges import INF, bounds, declared_norm, safe_product

_SAME = ("neg", "expand", "live", "stop_gradient", "lag")  # a lag of nothing yet is 0
Dims = frozenset[str]


def magnitude(x: Node) -> float:
    """A bound on every |entry|; products of vectors by Cauchy and Schwarz."""
    if x.op in ("neg", "rename", "flatten", "expand", "live", "mask", "stop_gradient"):
        return magnitude(x.args[0])
    if x.op == "mul":
        return safe_product(magnitude(x.args[0]), magnitude(x.args[1]))
    if x.op == "contract" or (x.op == "span_contract" and bounds(x.args[2]).nonpositive):
        a, b = x.args[:2]
        over = frozenset(d for d in a.dims if d in b.dims and d not in x.dims)
        return safe_product(norm_over(a, over), norm_over(b, over))
    i = bounds(x)
    most = max(abs(i.low), abs(i.high))
    return min(most, sum(map(magnitude, x.args))) if x.op in ("add", "sub") else most


def norm_over(x: Node, over: Dims) -> float:
    """A bound on the norm of x over dims."""
    dims, most = declared_norm(x)
    if dims == over:
        return most
    if x.op in _SAME and over <= {*x.args[0].dims}:
        return norm_over(x.args[0], over)
    if x.op == "rename":
        back = {new: d for d, new in x.attr("to")}
        return norm_over(x.args[0], frozenset(back.get(d, d) for d in over))
    rule = _RULES.get(x.op)
    return rule(x, over) if rule and over else INF


def _mul(x: Node, over: Dims) -> float:
    ways = [x.args, x.args[::-1]]
    if any(_inverse_size(c, a, over) for a, c in ways):
        return 1.0
    return min(safe_product(norm_over(a, over), magnitude(c)) for a, c in ways)


def _div(x: Node, over: Dims) -> float:
    a, b = x.args
    if _exceeds_norm(b, a, over):
        return 1.0
    low = bounds(b).low
    return norm_over(a, over) / low if low > 0 else INF


def _add(x: Node, over: Dims) -> float:
    """By the triangle's inequality; an average is no longer than the longer of two."""
    if x.op == "add":
        for a, f in (y for m in x.args[:1] if m.op == "mul" for y in (m.args, m.args[::-1])):
            for b, g in (y for m in x.args[1:] if m.op == "mul" for y in (m.args, m.args[::-1])):
                if _shares(f, g) or _shares(g, f):
                    return max(norm_over(a, over), norm_over(b, over))
    return norm_over(x.args[0], over) + norm_over(x.args[1], over)


def _shares(f: Node, g: Node) -> bool:
    """f and 1 - f, both at least 0."""
    if f.op == g.op == "number":
        return min(f.attr("value"), g.attr("value")) >= 0 and abs(f.attr("value") + g.attr("value") - 1) < 1e-12
    i = bounds(f)
    return g.op == "sub" and is_number(g.args[0], 1.0) and g.args[1] is f and i.low >= 0 and i.high <= 1


def _softmax(x: Node, over: Dims) -> float:
    return 1.0 if over == {*x.attr("over")} else INF


def _where(x: Node, over: Dims) -> float:
    return max(norm_over(a, over) for a in x.args[1:])


_RULES = {"mul": _mul, "div": _div, "add": _add, "sub": _add, "softmax": _softmax, "where": _where}


# ---------------------------------------------------------------- its own size
def _inverse_size(c: Node, x: Node, over: Dims) -> bool:
    """Is c at most 1 / norm(x)?"""
    if c.op == "expand":
        return _inverse_size(c.args[0], x, over)
    if c.op == "rsqrt":
        return _exceeds_squares(c.args[0], x, over)
    if c.op == "ipow":
        return c.attr("n") == -1 and _exceeds_norm(c.args[0], x, over)
    return c.op == "div" and is_number(c.args[0], 1.0) and _exceeds_norm(c.args[1], x, over)


def _exceeds_norm(b: Node, x: Node, over: Dims) -> bool:
    """Is b at least the norm of x?"""
    if b.op == "norm":
        return b.args[0] is x and {*b.attr("over")} == over
    if b.op == "sqrt":
        return _exceeds_squares(b.args[0], x, over)
    return _above(b, lambda y: _exceeds_norm(y, x, over))


def _exceeds_squares(s: Node, x: Node, over: Dims) -> bool:
    """Is s at least the sum of the squares of x?"""
    if s.op == "sum" and {*s.attr("over")} == over:
        y = s.args[0]
        return (y.op == "square" and y.args[0] is x) or (y.op == "mul" and y.args[0] is x is y.args[1])
    if s.op == "contract" and s.args[0] is x is s.args[1]:
        return {*x.dims} - {*s.dims} == over
    return _above(s, lambda y: _exceeds_squares(y, x, over))


def _above(n: Node, found: Callable[[Node], bool]) -> bool:
    """Is n at least what is found: the larger of that and another, or more than it by what is not negative?"""
    if n.op == "expand":
        return found(n.args[0])
    if n.op == "maximum":
        return any(map(found, n.args))
    return n.op == "add" and any(found(a) and bounds(b).low >= 0 for a, b in (n.args, n.args[::-1]))
