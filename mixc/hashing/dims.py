"""The order of a spec's dims, found as that of its names is (`canonical`): by refinement, and by individuals.

Dims start coloured by what is declared of them.  Those of one colour are given one size; one after the other is given
a size of its own, and what the function does then tells them apart.  What is still alike is told apart by choosing one
of them: any, where the others do not mind, else every one in turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from mixc.hashing.colours import Colours, first_cell, in_order, ranked
from mixc.hashing.spec import Elaborate, Probe, View, one_size
from mixc.ir.program import Dim, Program

PROBES = (Probe(True, False, 0), Probe(False, True, 5))


def dim_orders(program: Program, elaborate: Elaborate) -> Iterator[tuple[Dim, ...]]:
    """Orders of the dims, one of which is the canonical one: the same for every spelling."""
    search = _Search(program, elaborate)
    for order in search.orders(search.declared()):
        yield tuple(program.dims[i] for i in order)


class _Search:
    def __init__(self, program: Program, elaborate: Elaborate):
        self.program, self.elaborate, self.groups = program, elaborate, one_size(program.dims)
        self.names = [d.name for d in program.dims]
        self.fixed = [next((d.size for d in program.dims if d.name in self.groups[n] and d.size), 0)
                      for n in self.names]

    def declared(self) -> Colours:
        """By the names, ranges and other dims that a dim is declared with."""
        colours = ranked([0] * len(self.names))
        while True:
            by_name = dict(zip(self.names, colours, strict=True))

            def of(names: Sequence[str]) -> list[int]:
                return sorted(by_name[n] for n in names)  # noqa: B023

            new = ranked([repr((by_name[n], size, of(self.groups[n]), sorted(
                (e.role, e.kind, of(e.dims), sorted((r.of, of(r.over), n in r.over) for r in e.ranges))
                for e in self.program.decls if n in e.dims))) for n, size in zip(self.names, self.fixed, strict=True)])
            if max(new, default=0) == max(colours, default=0):
                return new
            colours = new

    def orders(self, colours: Colours) -> Iterator[list[int]]:
        colours = self._refined(colours)
        alike = first_cell(colours)
        if alike is None:
            yield sorted(range(len(colours)), key=colours.__getitem__)
        elif self._free(colours, alike):
            yield from self.orders(in_order(colours, alike))
        else:
            for first in alike:
                yield from self.orders(ranked([(c, i in alike and i != first) for i, c in enumerate(colours)]))

    def _refined(self, colours: Colours) -> Colours:
        while first_cell(colours) is not None:
            seen = {i: self._seen(ranked([(c, j == i) for j, c in enumerate(colours)])) for i, c in enumerate(colours)
                    if colours.count(c) > 1 and not self.fixed[i]}
            new = ranked([(c, seen.get(i, b"")) for i, c in enumerate(colours)])
            if max(new) == max(colours):
                break
            colours = new
        return colours

    def _free(self, colours: Colours, alike: list[int]) -> bool:
        """Does it not matter which of them comes first?  Exchanging neighbours leads to every order."""
        swapped = ([*alike[:i], alike[i + 1], alike[i], *alike[i + 2:]] for i in range(len(alike) - 1))
        want = self._seen(in_order(colours, alike))
        return all(self._seen(in_order(colours, order)) == want for order in swapped)

    def _seen(self, colours: Colours) -> bytes:
        """What the function does where dims of one colour have one size, whatever their names."""
        by_name = dict(zip(self.names, colours, strict=True))
        order = sorted(range(len(colours)), key=colours.__getitem__)
        sizes, done = list[int](), set[str]()
        for i in order:
            if self.names[i] not in done and not self.fixed[i]:
                sizes.append(2 + colours[i])
            done |= set(self.groups[self.names[i]])
        view = View(self.elaborate, [self.program.dims[i] for i in order], sizes, 2, alike=by_name)
        kinds = ranked([(e.role, e.kind, tuple(sorted(by_name[n] for n in e.dims))) for e in view.entities])
        (values,) = view.evaluate([kinds], PROBES)
        return hashlib.sha256(repr((sorted(sizes), sorted(zip(kinds, values, strict=True)))).encode()).digest()
