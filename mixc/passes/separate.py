"""A product taken apart by dims: exp(g[K] + h[V]) / c is exp(g), exp(h), 1 / c.

What multiplies a state entry by entry can be handled in chunks where it separates: each factor varies along one
dim of the state at most, so that it belongs to the query's side, to the key's, or to neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mixc.ir.build import is_number, make
from mixc.ir.node import Node, fold, number
from mixc.ir.ops import OPS


class _Joined(Exception):
    """A value that varies along two dims together."""


def factors_of(x: Node, dims: Iterable[str]) -> list[Node] | None:
    """Factors of x that have at most one of `dims` each, or None."""
    try:
        return list(_factors(unrepeated(x), set(dims)))
    except _Joined:
        return None


def unrepeated(c: Node) -> Node:
    """A factor without dims along which it is but repeated: what it multiplies has them."""
    def of(n: Node, args: list[Node]) -> Node:  # a sum over the dim counts how often
        return args[0] if n.op == "expand" else n.on(*args) if OPS[n.op].elementwise else n
    return fold([c], of)[0]


def _factors(x: Node, dims: set[str]) -> Iterator[Node]:
    if len(set(x.dims) & dims) <= 1 and x.op not in ("mul", "expand"):
        yield from [] if is_number(x, 1.0) else [x]
    elif x.op in ("mul", "expand"):
        for a in x.args:
            yield from _factors(a, dims)
    elif x.op == "div":
        yield from _factors(x.args[0], dims)
        yield from (1.0 / f for f in _factors(x.args[1], dims))
    elif x.op == "exp":
        yield from (make("exp", t, span=x.span) for t in _terms(x.args[0], dims))
    elif x.op == "neg":
        yield number(-1)
        yield from _factors(x.args[0], dims)
    elif x.op in ("square", "sqrt", "rsqrt", "ipow", "abs"):
        yield from map(x.on, _factors(x.args[0], dims))
    else:
        raise _Joined


def _terms(x: Node, dims: set[str]) -> Iterator[Node]:
    """Terms whose sum is x and that have at most one of `dims` each."""
    if len(set(x.dims) & dims) <= 1 and x.op != "expand":
        yield x
    elif x.op in ("add", "expand"):
        for a in x.args:
            yield from _terms(a, dims)
    elif x.op in ("sub", "neg"):
        *first, last = x.args
        for a in first:
            yield from _terms(a, dims)
        yield from (-t for t in _terms(last, dims))
    elif x.op == "mul" and any(not set(a.dims) & dims for a in x.args):
        c, rest = x.args if not set(x.args[0].dims) & dims else x.args[::-1]
        yield from (c * t for t in _terms(rest, dims))
    else:
        raise _Joined
