"""The order of a spec's dims, found as that of its names is (`canonical`): by refinement, and by individuals.

Dims start coloured by what is declared of them.  Those of one colour are given one size; one after the other is given
a size of its own, and what the function does then tells them apart.  What is still alike is told apart by choosing one
of them: any, where the others do not mind, else every one in turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from mixc.hashing.spec import Elaborate, Probe, View, one_size
from mixc.ir.program import Dim, Program

Colour = dict[str, int]
PROBES = (Probe(True, False, 0), Probe(False, True, 5))


def dim_orders(program: Program, elaborate: Elaborate) -> Iterator[tuple[Dim, ...]]:
    """Orders of the dims, one of which is the canonical one: the same for every spelling."""
    search = _Search(program, elaborate)
    by_name = {d.name: d for d in program.dims}
    for order in search.orders(search.declared()):
        yield tuple(by_name[n] for n in order)


class _Search:
    def __init__(self, program: Program, elaborate: Elaborate):
        self.program, self.elaborate, self.groups = program, elaborate, one_size(program.dims)
        self.fixed = {n: next((d.size for d in program.dims if d.name in g and d.size), 0)
                      for n, g in self.groups.items()}

    def declared(self) -> Colour:
        """By the names, ranges and other dims that a dim is declared with."""
        colour = dict.fromkeys(self.groups, 0)
        while True:
            def of(names: Sequence[str]) -> list[int]:
                return sorted(colour[n] for n in names)  # noqa: B023

            new = _ranked({n: repr((colour[n], self.fixed[n], of(self.groups[n]), sorted(
                (e.role, e.kind, of(e.dims), sorted((r.of, of(r.over), n in r.over) for r in e.ranges))
                for e in self.program.decls if n in e.dims))) for n in colour})
            if max(new.values(), default=0) == max(colour.values(), default=0):
                return new
            colour = new

    def orders(self, colour: Colour) -> Iterator[tuple[str, ...]]:
        colour = self._refined(colour)
        alike = self._first(colour)
        if alike is None:
            yield tuple(sorted(colour, key=colour.__getitem__))
        elif self._free(colour, alike):
            yield from self.orders(_ranked({n: (c, alike.index(n) if n in alike else 0) for n, c in colour.items()}))
        else:
            for first in alike:
                yield from self.orders(_ranked({n: (c, n in alike and n != first) for n, c in colour.items()}))

    def _first(self, colour: Colour) -> list[str] | None:
        """The dims of the first colour that several have."""
        for c in sorted(set(colour.values())):
            alike = [n for n in colour if colour[n] == c]
            if len(alike) > 1:
                return alike
        return None

    def _refined(self, colour: Colour) -> Colour:
        while self._first(colour) is not None:
            many = [n for n in colour if list(colour.values()).count(colour[n]) > 1 and not self.fixed[n]]
            seen = {n: self._seen(_ranked({m: (c, m == n) for m, c in colour.items()})) for n in many}
            new = _ranked({n: (c, seen.get(n, b"")) for n, c in colour.items()})
            if max(new.values()) == max(colour.values()):
                break
            colour = new
        return colour

    def _free(self, colour: Colour, alike: list[str]) -> bool:
        """Does it not matter which of them comes first?  Exchanging neighbours leads to every order."""
        def seen(order: list[str]) -> bytes:
            return self._seen(_ranked({n: (c, order.index(n) if n in order else 0) for n, c in colour.items()}))
        swapped = ([*alike[:i], alike[i + 1], alike[i], *alike[i + 2:]] for i in range(len(alike) - 1))
        want = seen(alike)
        return all(seen(order) == want for order in swapped)

    def _seen(self, colour: Colour) -> bytes:
        """What the function does where dims of one colour have one size, whatever their names."""
        order = sorted(self.program.dims, key=lambda d: colour[d.name])
        sizes, done = list[int](), set[str]()
        for d in order:
            if d.name not in done and not self.fixed[d.name]:
                sizes.append(2 + colour[d.name])
            done |= set(self.groups[d.name])
        view = View(self.elaborate, order, sizes, 2, alike=colour)
        kinds = [(e.role, e.kind, tuple(sorted(colour[n] for n in e.dims))) for e in view.entities]
        ranks = {k: i for i, k in enumerate(sorted(set(kinds)))}
        colours = [ranks[k] for k in kinds]
        (values,) = view.evaluate([colours], PROBES)
        return hashlib.sha256(repr((sorted(sizes), sorted(zip(colours, values, strict=True)))).encode()).digest()


def _ranked(keys: dict[str, object]) -> Colour:
    """Equal keys get one colour; colours follow the order of the keys."""
    ranks = {k: i for i, k in enumerate(sorted(set(keys.values())))}  # type: ignore[type-var]
    return {n: ranks[k] for n, k in keys.items()}
