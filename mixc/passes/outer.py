"""Values as sums of outer products: of which terms a value is a sum, and which dims of the state each factor has.

before: b * (k * v - u * w)      of dims K and V
after:  b k v + (-b) u w         every factor with one of them at most

A factor may have dims that no state has, its *ranks*: what is written is the product, summed over them.  They get names
of their own, `k @ v` with `k[K, R]`, `v[R, V]` being a sum over `R_s`, so that a read may keep an R of its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping

from mixc.ir.build import is_number, rename, total, where
from mixc.ir.node import COL, Node, make, number, postorder
from mixc.ir.program import free


def terms(n: Node, free: Callable[[Node], bool]) -> list[tuple[Node, Node | None]] | None:
    """The arguments of which a value is a sum, each with a factor that is free (None: 1); None: it is no such sum."""
    a = n.args
    if n.op in ("add", "sub"):
        return [(a[0], None), (a[1], None if n.op == "add" else number(-1))]
    if n.op in ("neg", "expand"):
        return [(a[0], None if n.op == "expand" else number(-1))]
    if n.op == "mul":
        x, c = a if free(a[1]) else a[::-1]
        return [(x, c)] if free(c) else None
    if n.op == "div" and free(a[1]):
        return [(a[0], 1.0 / a[1])]
    if n.op == "where" and free(a[0]):
        return [(a[1], where(a[0], 1.0, 0.0)), (a[2], where(a[0], 0.0, 1.0))]
    return None


def conditions(n: Node) -> tuple[Node | None, Node | None]:
    """When each of `terms` counts (None: always)."""
    return (n.args[0], make("not", n.args[0])) if n.op == "where" else (None, None)


def apart(factors: Iterable[Node], dims: set[str]) -> list[frozenset[str]]:
    """The smallest sets of dims without which every factor has at most one of `dims`, and two of these are left: the
    empty one, where factors have one each."""
    have = [set(f.dims) & dims for f in factors]
    for n in range(max(len(dims) - 1, 1)):
        found = [frozenset(a) for a in itertools.combinations(sorted(dims), n)]
        found = [a for a in found if all(len(h - a) <= 1 for h in have)]
        if found:
            return found
    return []


class Ranks(dict[str, str]):
    """By dim over which a sum of outer products runs: its name among the rows that wrote.

    between: by the same dims, what they are called where rows lie between those that read and those that wrote."""

    def __init__(self, roots: Iterable[Node]):
        nodes = list(postorder(roots))
        self.taken = {d for n in nodes for d in n.dims} | {str(n.attr("name")) for n in nodes if not n.args}
        self.between: dict[str, str] = {}

    def __missing__(self, dim: str) -> str:
        self[dim], self.between[dim] = (free(f"{dim}{row}", self.taken, "") for row in (COL, "_u"))
        return self[dim]

    @property
    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """Of each its three names."""
        return tuple((d, new, self.between[d]) for d, new in self.items())


def only(cond: Node | None, factors: tuple[Node, ...], dims: set[str], risky: Callable[[Node], bool]
         ) -> tuple[Node, ...] | None:
    """Factors that are numbers also where cond does not hold, for products with 0 there: `where(b > 0, k / b, 0)`.
    None: one of them would have two of `dims`."""
    found = tuple(where(cond, f, 0.0) if cond is not None and risky(f) else f for f in factors)
    return None if any(len({*f.dims} & dims) > 1 for f in found if f not in factors) else found


def outer_products(node: Node, dims: set[str], ranks: Mapping[str, str], risky: Callable[[Node], bool]
                   ) -> list[tuple[Node, ...]]:
    """A state-free value as a sum of products: `b * (k * v - u * w)` is b k v + (-b) u w.

    Sums are opened only where that separates dims of the state; a value of one dim stays whole.
    ranks: what dims are called that a sum of products runs over. risky: what may be no number."""
    def opened(x: Node) -> list[tuple[Node, ...]]:
        return outer_products(x, dims, ranks, risky)
    if len(set(node.dims) & dims) <= 1 and node.op != "expand":
        return [] if is_number(node, 0.0) else [(node,)]
    a = node.args
    if node.op == "mul":
        left, right = opened(a[0]), opened(a[1])
        if any(_ranks(p, ranks) & _ranks(q, ranks) for p in left for q in right):
            return [(node,)]  # sums over one dim each, not one sum over it
        return [(*p, *q) for p in left for q in right]
    if node.op in ("sum", "contract") and not (over := summed(node)) & dims:
        inside = opened(a[0] if node.op == "sum" else a[0] * a[1])
        return [over_ranks(p, over, dims, ranks) for p in inside]
    parts = terms(node, lambda c: True)
    if parts is None or (node.op == "where" and len({*a[0].dims} & dims) > 1):
        return [(node,)]
    found = [(only(cond, p, dims, risky), [] if c is None else [c])
             for (x, c), cond in zip(parts, conditions(node), strict=False) for p in opened(x)]
    return [(node,)] if any(p is None for p, _ in found) else [(*p, *c) for p, c in found if p is not None]


def summed(node: Node) -> set[str]:
    """The dims that its arguments have and it has not."""
    return {d for a in node.args for d in a.dims} - set(node.dims)


def _ranks(factors: Iterable[Node], ranks: Mapping[str, str]) -> set[str]:
    return {d for f in factors for d in f.dims} & set(ranks.values())


def over_ranks(factors: tuple[Node, ...], over: set[str], dims: set[str], ranks: Mapping[str, str]
               ) -> tuple[Node, ...]:
    """A product summed over dims: those that factors of one dim of the state alone have are summed there."""
    for d in sorted(over):
        having = [f for f in factors if d in f.dims]
        rest = tuple(f for f in factors if d not in f.dims)
        if not having:
            factors = (make("size", dim=d), *rest)
        elif len({e for f in having for e in f.dims} & dims) <= 1:
            (first, *more) = having
            factors = (total(functools.reduce(lambda a, b: a * b, more, first), [d]), *rest)
        else:
            factors = tuple(rename(f, **{d: ranks[d]}) for f in factors)
    return factors
