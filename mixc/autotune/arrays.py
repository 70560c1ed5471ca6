"""A small space tried out whole: every point at once, as columns of numbers.

Up to LIMIT points this is faster than any search, and as exact: numbers stay below 2**53, where float64 holds every
integer, or the space is left to the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mixc.autotune.domain import Domain
from mixc.autotune.terms import Constraint, Term

LIMIT = 131072
EXACT = 2.0 ** 53
Column = np.ndarray | float


def by_cost(domains: Mapping[str, Domain], constraints: list[Constraint], cost: Callable[[], Term]
            ) -> Iterator[tuple[float, dict[str, int]]] | None:
    """(cost, solution) by ascending cost, which is asked for only where there is a solution; None if there are too many
    points, or numbers too large to be exact."""
    values = [d.values for d in domains.values()]
    if any(v is None for v in values) or math.prod(len(v) for v in values if v) > LIMIT:
        return None
    grid = np.meshgrid(*[np.array(v, float) for v in values if v], indexing="ij") if values else []
    table = _Table({name: g.ravel() for name, g in zip(domains, grid, strict=True)})
    good = np.ones(grid[0].size if grid else 1, bool)
    with np.errstate(all="ignore"):
        for c in constraints:
            good = good & table.holds(c)
            if not table.exact:
                return None
            if not good.any():
                return iter(())
            if 2 * good.sum() < good.size:  # the rest is not looked at again
                table, good = _Table(table.columns_of(good)), np.ones(int(good.sum()), bool)
        left = table.columns_of(good)
        costs = np.broadcast_to(_Table(left, exact=False).value(cost()), int(good.sum()))
    order = np.argsort(costs, kind="stable")
    columns = {name: column[order].astype(int).tolist() for name, column in left.items()}
    ranked = costs[order].tolist()
    return ((ranked[i], {name: column[i] for name, column in columns.items()}) for i in range(len(order)))


class _Table:
    """Values of terms at all points; one that has no value (a division by 0) is nan, and its relation false."""

    def __init__(self, columns: dict[str, np.ndarray], exact: bool = True):
        self.columns, self.exact = columns, exact
        self._known: dict[int, Column] = {}
        self._made: dict[Any, Column] = {}  # by operation and operands: many terms are written more than once

    def columns_of(self, points: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[points] for name, column in self.columns.items()}

    def value(self, t: Term) -> Column:
        if t.op == "const":
            return float(t.value)
        if t.op == "var":
            return self.columns[t.name]
        if id(t) not in self._known:
            self._known[id(t)] = self._computed(t)
        return self._known[id(t)]

    def _computed(self, t: Term) -> Column:
        if t.op == "where":
            condition, yes, no = t.args
            holds, fails = self.holds(condition), self.holds(~condition)
            return np.where(holds, self.value(yes), np.where(fails, self.value(no), np.nan))
        a, b = self.value(t.args[0]), self.value(t.args[1])
        key = (t.op, *(x if isinstance(x, float) else id(x) for x in (a, b)))
        if key not in self._made:
            self._made[key] = self._applied(t, a, b)
        return self._made[key]

    def _applied(self, t: Term, a: Column, b: Column) -> Column:
        if t.op in ("div", "floordiv", "mod", "cdiv"):
            b = np.where(np.equal(b, 0), np.nan, b)
        elif t.op == "pow":
            b = np.where(np.less(b, 0), np.nan, b) if t.args[1].op != "const" or t.args[1].value < 0 else b
        found: Column = _APPLY[t.op](a, b)
        if self.exact and t.op in ("add", "sub", "mul", "pow"):  # others give nothing larger
            self.exact = not np.any(np.abs(found) > EXACT)
        return found

    def holds(self, c: Constraint) -> np.ndarray:
        if c.op in ("and", "or"):
            first, *rest = (self.holds(a) for a in c.args)
            for other in rest:
                first = first & other if c.op == "and" else first | other
            return first
        a, b = (self.value(t) for t in c.args)
        found = _APPLY[c.op](a, b)
        return np.asarray(found & ~np.isnan(a) & ~np.isnan(b))


_APPLY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": np.floor_divide, "mod": np.mod,
    "pow": np.power, "min": np.minimum, "max": np.maximum, "cdiv": lambda x, y: -np.floor_divide(-x, y),
    "eq": np.equal, "ne": np.not_equal, "le": np.less_equal, "lt": np.less,
}
