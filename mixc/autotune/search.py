"""Branch and bound over a network: enumeration, lexicographic order, order by cost; and why there is nothing.

A search visits nodes (propagated domains), branches on one variable, and checks every constraint again at
a leaf by evaluating it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mixc.autotune.bounds import Bounder
from mixc.autotune.domain import Domain, chosen, interval
from mixc.autotune.propagate import Domains, Network
from mixc.autotune.terms import Constraint, Term
from mixc.errors import InputError

Point = dict[str, int]
Order = Sequence[tuple[str, str]]


class Infeasible(InputError):
    """No point satisfies all constraints; `conflict` are some that cannot hold together, in their own words."""

    def __init__(self, conflict: list[Constraint], minimal: bool, domains: dict[str, Domain]):
        self.conflict, self.minimal = conflict, minimal
        lines = [f"  {c}" + (f"    ({c.why})" if c.why else "") for c in conflict]
        used = sorted({t.name for c in conflict for t in variables(c)})
        lines += [f"  with {name} in {domains[name]!r}" for name in used]
        more = "" if minimal else " (there may be fewer)"
        super().__init__(f"no solution: these cannot all hold{more}\n" + "\n".join(lines))


class Search:
    """An iterator over points. `work`: nodes visited so far; `stopped`: the limit came before the end."""

    def __init__(self, limit: int | None, run: Callable[[Search], Iterator[Point]]):
        self.limit, self.work, self.stopped = limit, 0, False
        self._points = run(self)

    def __iter__(self) -> Iterator[Point]:
        return self._points

    def __next__(self) -> Point:
        return next(self._points)

    def spend(self) -> bool:
        """Count a node; False when the limit is reached."""
        if self.limit is not None and self.work >= self.limit:
            self.stopped = True
            return False
        self.work += 1
        return True


def variables(c: Any) -> list[Term]:
    """The variables of a constraint or term, in order of appearance."""
    if isinstance(c, Term) and c.op == "var":
        return [c]
    return [v for a in c.args for v in variables(a)]


def _root(network: Network) -> Domains | None:
    """Domains after propagation, None if they are empty.

    Raises:
        InputError: a variable that nothing bounds, by name."""
    at = network.start.copy()
    if not network.propagate(at):
        return None
    endless = [name for name, n in network.variables.items() if not at[n].finite]
    if endless:
        names = ", ".join(f"`{n}`" for n in endless)
        raise InputError(f"nothing bounds {names}: give a domain, or a constraint that does")
    return at


def _point(network: Network, at: Domains) -> Point:
    return {name: at[n].lo for name, n in network.variables.items()}


def split(d: Domain, want: str) -> list[Domain]:
    """The values of a domain one by one, best first; a long interval in halves."""
    if d.values is not None:
        ordered = reversed(d.values) if want == "max" else d.values
        return [chosen((v,)) for v in ordered]  # type: ignore[misc]
    middle = (d.lo + d.hi) // 2
    halves = [interval(d.lo, middle, d.step, d.base), interval(middle + 1, d.hi, d.step, d.base)]
    kept = [h for h in halves if h is not None]
    return kept[::-1] if want == "max" else kept


def everything(network: Network, constraints: list[Constraint], order: Order, limit: int | None) -> Search:
    """All solutions, in lexicographic order of `order` (what it does not name: as is quickest)."""
    wanted = {network.variables[name]: want for name, want in order}

    def run(s: Search) -> Iterator[Point]:
        at = _root(network)
        if at is None:
            return
        for done in _depth_first(s, network, at, wanted):
            yield from _checked(network, done, constraints)

    return Search(limit, run)


def _checked(network: Network, at: Domains, constraints: list[Constraint]) -> Iterator[Point]:
    point = _point(network, at)
    if all(c.holds(point) for c in constraints):
        yield point


def _depth_first(s: Search, network: Network, at: Domains, wanted: dict[int, str]) -> Iterator[Domains]:
    """Domains in which all variables are fixed; those of `wanted` are branched on first, in its order."""
    ranked, nodes = list(wanted), list(network.variables.values())
    stack: list[tuple[Domains, int | None]] = [(at, None)]
    while stack:
        at, changed = stack.pop()
        if not s.spend():
            return
        if changed is not None and not network.propagate(at, (changed,)):
            continue
        branch = next((n for n in ranked if not at[n].fixed), None)
        if branch is None:
            rest = [n for n in nodes if not at[n].fixed]
            if not rest:
                yield at
                continue
            branch = min(rest, key=lambda n: at[n].size())
        stack += [(child, branch) for child in reversed(list(_children(at, branch, wanted.get(branch, "min"))))]


def _children(at: Domains, node: int, want: str) -> Iterator[Domains]:
    for part in split(at[node], want):
        child = at.copy()
        child[node] = part
        yield child


def by_cost(network: Network, constraints: list[Constraint], cost: Term, limit: int | None) -> Search:
    """Solutions by ascending cost: the open node with the least bound is looked at next."""

    def run(s: Search) -> Iterator[Point]:
        at = _root(network)
        if at is None:
            return
        bound = Bounder(network, cost)
        count = itertools.count()  # ties: the older node first, so the order is the same every time
        heap = [(bound(at), next(count), at)]
        while heap:
            least, _, at = heapq.heappop(heap)
            if not s.spend():
                return
            rest = [n for n in network.variables.values() if not at[n].fixed]
            if not rest:
                yield from _checked(network, at, constraints)
                continue
            node = min(rest, key=lambda n: (n not in bound.nodes, at[n].size()))
            for child in _children(at, node, "min"):
                if network.propagate(child, (node,)):
                    heapq.heappush(heap, (max(least, bound(child)), next(count), child))

    return Search(limit, run)


# ------------------------------------------------------------ why there is nothing
def explain(build: Callable[[frozenset[int]], Network], constraints: list[Constraint], limit: int = 3000) -> Infeasible:
    """The error of a space without solutions: constraints are left out one by one while it stays without.

    What is needed to bound a domain is kept; so is what cannot be decided within `limit` nodes."""
    left: frozenset[int] = frozenset()
    sure = True
    domains = build(left)
    for i in reversed(range(len(constraints))):
        trial = left | {i}
        verdict = _is_empty(build(trial), [c for j, c in enumerate(constraints) if j not in trial], limit)
        if verdict:
            left = trial
        sure = sure and verdict is not None
    kept = [c for j, c in enumerate(constraints) if j not in left]
    return Infeasible(kept, sure, {name: domains.start[n] for name, n in domains.variables.items()})


def _is_empty(network: Network, constraints: list[Constraint], limit: int) -> bool | None:
    """None: not decided within the limit."""
    found = everything(network, constraints, (), limit)
    try:
        for _ in found:
            return False
    except InputError:  # something is without bounds now
        return False
    return None if found.stopped else True
