"""The canonical order of a spec's dims and names, found from its function alone.

Entities start coloured by what is declared (role, dims, ranges, defaults).  Entities of one colour are given one and
the same probe value, so what is computed does not depend on which is which; what leaves by each then tells them
apart, and colours split until nothing more does (refinement).  What is still alike is told apart by giving one of
them a value of its own (individualisation); where the choice matters, all are tried and the least digest counts, but
for those that a symmetry maps onto each other (McKay and Piperno 2014, Practical graph isomorphism II).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from mixc.hashing.mp import MP
from mixc.hashing.spec import FAR, Elaborate, View, one_size
from mixc.ir.program import Decl, Dim, Program

Colours = tuple[int, ...]
SIZES, OTHER_SIZES = (2, 3, 4, 5, 6, 7), (3, 2, 5, 4, 7, 6)
TOKENS, OTHER_TOKENS = 3, 2


@dataclass(frozen=True)
class Canonical:
    """The hash of a function, and the order of its names under which it is found."""

    digest: bytes
    dims: tuple[str, ...]
    entities: tuple[Decl, ...]


def canonical(program: Program, elaborate: Elaborate) -> Canonical:
    """`program`: any elaboration of the spec, for its declarations; `elaborate`: for sizes, see `spec.View`."""
    best: Canonical | None = None
    for dims in dim_orders(program):
        view = View(elaborate, dims, SIZES, TOKENS)
        colours = _Search(view).best()
        other = View(elaborate, dims, OTHER_SIZES, OTHER_TOKENS)
        order = sorted(range(len(colours)), key=colours.__getitem__)
        h = hashlib.sha256(repr(_dim_facts(dims)).encode())
        for v, values in ((view, view.evaluate([colours])), (other, other.evaluate([colours])),
                          (other, other.evaluate([colours], FAR, MP))):
            for i in order:
                h.update(v.attributes[i].encode() + b"\0" + values[0][i])
        found = Canonical(h.digest(), tuple(d.name for d in dims), tuple(view.entities[i] for i in order))
        if best is None or found.digest < best.digest:
            best = found
    assert best is not None
    return best


# ---------------------------------------------------------------- dims
def dim_orders(program: Program) -> Iterator[tuple[Dim, ...]]:
    """Every order of the dims that what is declared does not tell apart."""
    groups = one_size(program.dims)
    colour = {d.name: 0 for d in program.dims}
    fixed = {d.name: next((e.size for e in program.dims if e.name in groups[d.name] and e.size), 0)
             for d in program.dims}
    while True:
        def of(names: Sequence[str]) -> list[int]:
            return sorted(colour[n] for n in names)  # noqa: B023

        uses = {d.name: sorted((e.role, e.kind, of(e.dims), sorted((r.of, of(r.over), d.name in r.over)
                                                                   for r in e.ranges))
                               for e in program.decls if d.name in e.dims) for d in program.dims}
        key = {d.name: repr((colour[d.name], fixed[d.name], of(groups[d.name]), uses[d.name])) for d in program.dims}
        ranks = {k: i for i, k in enumerate(sorted(set(key.values())))}
        new = {n: ranks[k] for n, k in key.items()}
        if len(set(new.values())) == len(set(colour.values())):
            break
        colour = new
    classes = [[d for d in program.dims if new[d.name] == c] for c in sorted(set(new.values()))]
    for choice in product(*(permutations(c) for c in classes)):
        yield tuple(d for c in choice for d in c)


def _dim_facts(dims: Sequence[Dim]) -> list[tuple[int | None, list[int]]]:
    """Sizes that the spec fixes, and which dims share one."""
    names, groups = [d.name for d in dims], one_size(dims)
    sizes = {d.name: d.size for d in dims}
    return [(next((sizes[e] for e in groups[d.name] if sizes[e] is not None), None),
             sorted(names.index(e) for e in groups[d.name])) for d in dims]


# ---------------------------------------------------------------- names
class _Search:
    def __init__(self, view: View):
        self.view = view
        self.n = len(view.entities)
        self.swaps: set[tuple[int, int]] | None = None  # pairs that a symmetry exchanges, and nothing else

    def best(self) -> Colours:
        """Every entity with a colour of its own."""
        return self._below(self._refined(_ranked(self.view.attributes)))[1]

    def _below(self, colours: Colours) -> tuple[bytes, Colours]:
        """The least leaf below a stable colouring."""
        cell = _first_cell(colours)
        if cell is None:
            return self._digest(colours), colours
        if self.swaps is None:
            self.swaps = self._find_swaps(colours)
        tried: list[int] = []
        leaves: dict[bytes, Colours] = {}
        for e in cell:
            if not any((min(e, f), max(e, f)) in self.swaps for f in tried):
                tried.append(e)
                child = self._refined(_alone(colours, e))
                leaves.setdefault(self._leaf(child)[0], child)
        # children with one first leaf are images of each other under a symmetry
        return min(self._below(child) for child in leaves.values()) if len(leaves) > 1 else self._below(
            next(iter(leaves.values())))

    def _leaf(self, colours: Colours) -> tuple[bytes, Colours]:
        """Some leaf below."""
        while (cell := _first_cell(colours)) is not None:
            colours = self._refined(_alone(colours, cell[0]))
        return self._digest(colours), colours

    def _find_swaps(self, colours: Colours) -> set[tuple[int, int]]:
        leaf = self._leaf(colours)[1]
        pairs = [(i, j) for i in range(self.n) for j in range(i + 1, self.n) if colours[i] == colours[j]]
        swapped = []
        for i, j in pairs:
            c = list(leaf)
            c[i], c[j] = c[j], c[i]
            swapped.append(tuple(c))
        want, *got = self._digests([leaf, *swapped])
        return {pair for pair, d in zip(pairs, got, strict=True) if d == want}

    def _refined(self, colours: Colours) -> Colours:
        """Split as far as probes tell entities apart."""
        while max(colours, default=0) + 1 < self.n:
            (values,) = self.view.evaluate([colours])
            new = _ranked([(c, v) for c, v in zip(colours, values, strict=True)])
            if max(new) == max(colours):
                new = self._split_by_individuals(colours)
                if max(new) == max(colours):
                    return colours
            colours = new
        return colours

    def _split_by_individuals(self, colours: Colours) -> Colours:
        """Each entity that is not alone in its colour is given a value of its own: what does the function do then?"""
        many = [e for e in range(self.n) if colours.count(colours[e]) > 1]
        values = self.view.evaluate([_alone(colours, e) for e in many])
        seen: dict[int, object] = {}
        for e, v in zip(many, values, strict=True):
            seen[e] = (v[e], sorted(zip(colours, v, strict=True)))
        return _ranked([(c, repr(seen.get(e))) for e, c in enumerate(colours)])

    def _digest(self, colours: Colours) -> bytes:
        return self._digests([colours])[0]

    def _digests(self, colourings: Sequence[Colours]) -> list[bytes]:
        """Of the function under discrete colourings."""
        found = []
        for colours, values in zip(colourings, self.view.evaluate(colourings), strict=True):
            order = sorted(range(self.n), key=colours.__getitem__)
            found.append(hashlib.sha256(b"".join(values[i] for i in order)).digest())
        return found


def _ranked(keys: Sequence[object]) -> Colours:
    """Equal keys get one colour; colours follow the order of the keys."""
    ranks = {k: i for i, k in enumerate(sorted(set(keys)))}  # type: ignore[type-var]
    return tuple(ranks[k] for k in keys)


def _first_cell(colours: Colours) -> list[int] | None:
    """The entities of the first colour that several have."""
    for c in sorted(set(colours)):
        cell = [i for i, x in enumerate(colours) if x == c]
        if len(cell) > 1:
            return cell
    return None


def _alone(colours: Colours, e: int) -> Colours:
    """e before the others of its colour."""
    return _ranked([(c, i != e) for i, c in enumerate(colours)])
