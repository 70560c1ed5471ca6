"""A space of integer points: named variables with domains, and constraints in the words of who states them.

    space = Space()
    C, warps = space.variable("C", powers_of_two(16, 128)), space.variable("warps", powers_of_two(1, 8))
    space.require(C * 128 <= 255 * 32 * warps, "the tile fits into registers")
    for point in space.best(C / warps): ...

Propagation and search live in `propagate` and `search`; what they return satisfies every constraint when
evaluated, and enumeration returns each solution once, all of them (or says that it stopped early).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from mixc.autotune import search
from mixc.autotune.arrays import Solutions
from mixc.autotune.domain import INF, Domain, chosen, interval
from mixc.autotune.domain import divisors as _divisors
from mixc.autotune.propagate import Network
from mixc.autotune.search import Infeasible, Point, Search
from mixc.autotune.terms import Constraint, Term, ceil_div, divides, maximum, minimum, product, total, variable, where
from mixc.errors import InputError


def powers_of_two(low: int, high: int) -> list[int]:
    return [1 << i for i in range(high.bit_length()) if low <= 1 << i <= high]


def divisors_of(n: int) -> tuple[int, ...]:
    """The positive divisors of n ≥ 1."""
    found = _divisors(n)
    if found is None:
        raise InputError(f"{n} has a prime factor that is too large to find here")
    return found


class Space:
    """Variables and constraints; `variable` and `require` add to it, the rest solves it."""

    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self.constraints: list[Constraint] = []

    def variable(self, name: str, values: Iterable[int] | None = None, *, low: int | None = None,
                 high: int | None = None) -> Term:
        """A new variable: one of `values`, or any integer from `low` to `high` (None: no bound stated)."""
        if name in self.domains:
            raise InputError(f"there is a variable `{name}` already")
        domain = chosen(values) if values is not None else \
            interval(-INF if low is None else low, INF if high is None else high)
        if domain is None:
            raise InputError(f"variable `{name}` has no value to take")
        self.domains[name] = domain
        return variable(name)

    def require(self, constraint: Constraint, why: str = "") -> None:
        """Points must satisfy it; `why` names it in the error that says what conflicts."""
        if constraint.op == "and" and not why:
            for c in constraint.args:
                self.require(c)
            return
        constraint.why = why
        self.constraints.append(constraint)

    def relaxed(self, kept: Callable[[Constraint], bool]) -> Space:
        """The same variables under those constraints that are kept."""
        other = Space()
        other.domains, other.constraints = self.domains, [c for c in self.constraints if kept(c)]
        return other

    def solutions(self, limit: int | None = None) -> Search:
        """Every solution, once. `limit`: nodes to visit at most; `.stopped` says whether that cut it short."""
        return search.everything(self.network(), self.constraints, (), limit)

    def lexicographic(self, order: Sequence[tuple[str, str]], limit: int | None = None) -> Search:
        """Solutions ordered by ("name", "max" or "min") pairs, the first pair first."""
        return search.everything(self.network(), self.constraints, order, limit)

    def best(self, cost: Term, limit: int | None = None) -> Search:
        """Solutions in order of `cost`. A small space is tried out whole; in a large one the next solution is sought
        when it is asked for."""
        if limit is None and (found := Solutions(self.domains, self.constraints)).which is not None:
            return Search(None, lambda s: (p for _, p in found.ranked(lambda: cost)))
        return self.searched(cost, limit)

    def ranked(self, cost: Callable[[], Term]) -> Iterator[tuple[float, Point]]:
        """The same with the cost of each; it is asked for only where there is a solution."""
        found = Solutions(self.domains, self.constraints)
        return self._sought(cost()) if found.which is None else found.ranked(cost)

    def least(self, cost: Callable[[], Term], *by: str) -> dict[tuple[int, ...], tuple[float, Point]]:
        """The first of the cheapest, with its cost, for each way to choose the variables `by`; the cheapest first."""
        found = Solutions(self.domains, self.constraints)
        out: dict[tuple[int, ...], tuple[float, Point]] = {}
        for seconds, point in self._sought(cost()) if found.which is None else found.least(cost, by):
            out.setdefault(tuple(point[n] for n in by), (seconds, point))
        return out

    def _sought(self, cost: Term) -> Iterator[tuple[float, Point]]:
        return ((float(cost.evaluate(p)), p) for p in self.searched(cost))

    def searched(self, cost: Term, limit: int | None = None) -> Search:
        """The same by search, whatever the size."""
        return search.by_cost(self.network(), self.constraints, cost, limit)

    def first(self, found: Search) -> Point:
        """The first of a search.

        Raises:
            Infeasible: there is none; `.conflict` are constraints that cannot all hold."""
        for point in found:
            return point
        if found.stopped:
            raise InputError(f"no solution among the first {found.work} nodes searched; there may be one")
        raise self.infeasible()

    def infeasible(self) -> Infeasible:
        return search.explain(self.network, self.constraints)

    def network(self, without: frozenset[int] = frozenset()) -> Network:
        """The network of all constraints but those numbered in `without`."""
        made = Network()
        for name, domain in self.domains.items():
            made.variable(name, domain)
        for i, c in enumerate(self.constraints):
            if i not in without:
                made.require(c)
        return made


__all__ = ["Constraint", "Infeasible", "Point", "Space", "Term", "ceil_div", "divides", "divisors_of", "maximum",
           "minimum", "powers_of_two", "product", "total", "where"]
