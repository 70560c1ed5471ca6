"""A small space tried out whole: every point at once.

A term is an array with an axis for every variable, of length 1 where the term does not depend on it: what depends on
two variables is worked out for their pairs, whatever the others are.  Up to LIMIT points this is faster than a search,
and as exact: numbers stay below 2**53, where float64 holds every integer, or the space is left to the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixc.autotune.domain import Domain
from mixc.autotune.terms import APPLY, Constraint, Term, variable

LIMIT = 131072
EXACT = 2.0 ** 53
Column = np.ndarray | float
Point = dict[str, int]


class Solutions:
    """The points of some domains that satisfy constraints. `which`: are they that? None if there are too many points,
    or numbers too large to be exact."""

    def __init__(self, domains: Mapping[str, Domain], constraints: list[Constraint]):
        self.names = list(domains)
        self.which: np.ndarray | None = None
        values = [d.values for d in domains.values() if d.values is not None]
        self.shape = tuple(map(len, values))
        if len(values) < len(domains) or math.prod(self.shape) > LIMIT:
            return
        self.values = [np.array(v, float) for v in values]
        wide = [v for v in self.values if v.size > 1]  # the others are numbers
        axes = iter(np.meshgrid(*wide, indexing="ij", sparse=True) if wide else [])
        self._wide = tuple(v.size for v in wide)
        columns = [next(axes) if v.size > 1 else float(v[0]) for v in self.values]
        self._table, good = Table(dict(zip(domains, columns, strict=True))), np.array(True)
        with np.errstate(all="ignore"):
            for c in constraints:
                good = good & self._table.holds(c)
                if not good.any():
                    break
        if self._table.exact():
            self.which = self._everywhere(good)

    def _everywhere(self, found: Column) -> np.ndarray:
        """With every axis."""
        return np.broadcast_to(found, self._wide).reshape(self.shape)

    def _costs(self, cost: Callable[[], Term]) -> np.ndarray:
        """Of every point; infinite where it is no solution."""
        assert self.which is not None
        if not self.which.any():
            return np.full(self.shape, np.inf)
        with np.errstate(all="ignore"):
            return np.where(self.which, self._everywhere(self._table.value(cost())), np.inf)

    def ranked(self, cost: Callable[[], Term]) -> Iterator[tuple[float, Point]]:
        """(cost, solution) by ascending cost, which is asked for only where there is a solution."""
        costs, which = self._costs(cost).ravel(), self.which
        assert which is not None
        return self._points(costs, np.flatnonzero(which))

    def least(self, cost: Callable[[], Term], by: Sequence[str]) -> Iterator[tuple[float, Point]]:
        """The first of the cheapest for each way to choose the variables `by`, likewise."""
        costs, which = self._costs(cost), self.which
        assert which is not None
        axes = [self.names.index(n) for n in by]
        rest = [i for i in range(len(self.shape)) if i not in axes]
        groups = np.arange(which.size).reshape(self.shape).transpose(*axes, *rest)
        groups = groups.reshape(math.prod(self.shape[i] for i in axes), -1)
        costs = costs.ravel()
        best = groups[np.arange(len(groups)), costs[groups].argmin(1)]
        return self._points(costs, np.sort(best[which.ravel()[best]]))

    def _points(self, costs: np.ndarray, at: np.ndarray) -> Iterator[tuple[float, Point]]:
        """Those numbered `at`, by ascending cost."""
        at = at[np.argsort(costs[at], kind="stable")]
        places = np.unravel_index(at, self.shape)
        columns = [v[i].astype(int).tolist() for v, i in zip(self.values, places, strict=True)]
        return ((c, dict(zip(self.names, p, strict=True)))
                for c, p in zip(costs[at].tolist(), zip(*columns, strict=True) if columns else [()], strict=False))


class Table:
    """Values of terms at all points; one that has no value (a division by 0) is nan, and its relation false."""

    def __init__(self, columns: dict[str, Column]):
        self._known: dict[Term, Column] = {variable(name): column for name, column in columns.items()}

    def exact(self) -> bool:
        """Is everything so far below 2**53?"""
        found = [np.ravel(x) for x in self._known.values()]
        return not found or not (np.abs(np.concatenate(found)) > EXACT).any()

    def value(self, t: Term) -> Column:
        found = self._known.get(t)
        if found is None:
            found = self._known[t] = self._computed(t)
        return found

    def _computed(self, t: Term) -> Column:
        op = t.op
        if op == "const":
            return float(t.value)
        if op == "var":  # one that was made by hand
            return self._known[variable(t.name)]
        if op == "where":
            condition, yes, no = t.args
            holds, fails = self.holds(condition), self.holds(~condition)
            return np.where(holds, self.value(yes), np.where(fails, self.value(no), np.nan))
        x, y = t.args
        a, b = self.value(x), self.value(y)
        if op in _DIVISIONS:
            b = b or np.nan if isinstance(b, float) else b if b.all() else np.where(b, b, np.nan)
        elif op == "pow":
            b = np.where(np.less(b, 0), np.nan, b) if y.op != "const" or y.value < 0 else b
        if isinstance(a, float) and isinstance(b, float) and op in _PLAIN:
            return _PLAIN[op](a, b)
        return _APPLY[op](a, b)

    def holds(self, c: Constraint) -> np.ndarray:
        if c.op in ("and", "or"):
            first, *rest = (self.holds(a) for a in c.args)
            for other in rest:
                first = first & other if c.op == "and" else first | other
            return first
        a, b = (self.value(t) for t in c.args)
        found = _APPLY[c.op](a, b)
        return np.asarray(found if c.op != "ne" else found & (a == a) & (b == b))  # nan is in no other relation


_DIVISIONS = frozenset(["div", "floordiv", "mod", "cdiv"])
# of two numbers: what does the same to nan as to arrays
_PLAIN: dict[str, Callable[[float, float], float]] = {op: APPLY[op] for op in ("add", "sub", "mul", *_DIVISIONS)}  # type: ignore[misc]
_APPLY: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": np.floor_divide, "mod": np.mod,
    "pow": np.power, "min": np.minimum, "max": np.maximum, "cdiv": lambda x, y: -np.floor_divide(-x, y),
    "eq": np.equal, "ne": np.not_equal, "le": np.less_equal, "lt": np.less,
}
