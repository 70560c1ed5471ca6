"""A product taken apart by dims: exp(g[K] + h[V]) / c is exp(g), exp(h), 1 / c.

What multiplies a state entry by entry can be handled in chunks where it separates: each factor varies along one
dim of the state at most, so that it belongs to the query's side, to the key's, or to neither.
"""

from __future__ import annotations

from collections.abc import Iterable

from mixc.ir.build import is_number, make
from mixc.ir.node import Node, number


def factors_of(x: Node, dims: Iterable[str]) -> list[Node] | None:
    """Factors of x that have at most one of `dims` each, or None."""
    dims = set(dims)
    if len(set(x.dims) & dims) <= 1 and x.op not in ("mul", "expand"):
        return [] if is_number(x, 1.0) else [x]
    if x.op == "mul":
        return _joined([factors_of(a, dims) for a in x.args])
    if x.op == "div":
        under = factors_of(x.args[1], dims)
        return _joined([factors_of(x.args[0], dims), None if under is None else [1.0 / f for f in under]])
    if x.op == "exp":
        terms = terms_of(x.args[0], dims)
        return None if terms is None else [make("exp", t, span=x.span) for t in terms]
    if x.op == "neg":
        return _joined([[number(-1)], factors_of(x.args[0], dims)])
    if x.op == "expand":
        return factors_of(x.args[0], dims)
    if x.op in ("square", "sqrt", "rsqrt", "ipow", "abs"):
        inner = factors_of(x.args[0], dims)
        return None if inner is None else [x.on(f) for f in inner]
    return None


def terms_of(x: Node, dims: set[str]) -> list[Node] | None:
    """Terms whose sum is x and that have at most one of `dims` each, or None."""
    if len(set(x.dims) & dims) <= 1 and x.op != "expand":
        return [x]
    if x.op == "add":
        return _joined([terms_of(a, dims) for a in x.args])
    if x.op == "sub":
        right = terms_of(x.args[1], dims)
        return _joined([terms_of(x.args[0], dims), None if right is None else [-t for t in right]])
    if x.op == "neg":
        inner = terms_of(x.args[0], dims)
        return None if inner is None else [-t for t in inner]
    if x.op == "expand":
        return terms_of(x.args[0], dims)
    if x.op == "mul":
        for c, rest in (x.args, x.args[::-1]):
            inner = terms_of(rest, dims) if not set(c.dims) & dims else None
            if inner is not None:
                return [c * t for t in inner]
    return None


def _joined(parts: list[list[Node] | None]) -> list[Node] | None:
    found: list[Node] = []
    for p in parts:
        if p is None:
            return None
        found += p
    return found
