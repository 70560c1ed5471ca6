"""The hash of a mixer, and the canonical order of a spec's dims and names, found from its function alone.

Entities start coloured by what is declared (role, dims, ranges, defaults).  Entities of one colour are given one and
the same probe value, so what is computed does not depend on which is which; what leaves by each then tells them
apart, and colours split until nothing more does (refinement).  What is still alike is told apart by giving one of
them a value of its own (individualisation); where the choice matters, all are tried and the least digest counts, but
for those that a symmetry maps onto each other (McKay and Piperno 2014, Practical graph isomorphism II).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mixc.hashing.colours import Colours, alone, first_cell, pairs, ranked
from mixc.hashing.dims import dim_orders
from mixc.hashing.spec import FAR, Elaborate, View, one_size
from mixc.ir.program import Decl, Dim, Program

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

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
    for dims in dim_orders(program, elaborate):
        view = View(elaborate, dims, SIZES, TOKENS)
        colours = _Search(view).best()
        other = View(elaborate, dims, OTHER_SIZES, OTHER_TOKENS, patient=False)
        order = sorted(range(len(colours)), key=colours.__getitem__)
        h = hashlib.sha256(repr((_dim_facts(dims), None if view.sees_all else view.tokens.reach)).encode())
        for v, values in ((view, view.evaluate([colours])), (other, other.evaluate([colours])),
                          (other, other.evaluate([colours], FAR, far=True))):
            for i in order:
                h.update(v.attributes[i].encode() + b"\0" + values[0][i])
        h.update(view.by_position(colours))
        found = Canonical(h.digest(), tuple(d.name for d in dims), tuple(view.entities[i] for i in order))
        if best is None or found.digest < best.digest:
            best = found
    assert best is not None
    return best


# ---------------------------------------------------------------- dims
def _dim_facts(dims: Sequence[Dim]) -> list[tuple[int | None, list[int]]]:
    """Sizes that the spec fixes, and which dims share one."""
    names, groups = [d.name for d in dims], one_size(dims)
    sizes = {d.name: d.size for d in dims}
    return [(next((sizes[e] for e in groups[d.name] if sizes[e] is not None), None),
             sorted(names.index(e) for e in groups[d.name])) for d in dims]


# ---------------------------------------------------------------- names
@dataclass
class _Subtree:
    """What was found below a stable colouring: its least leaf, its other leaves by digest, and symmetries that keep
    the colouring."""

    best: tuple[bytes, Colours]
    leaves: dict[bytes, Colours]
    symmetries: list[Colours]  # entity -> entity


class _Search:
    def __init__(self, view: View):
        self.view = view
        self.n = len(view.entities)
        self.swaps: set[tuple[int, int]] = set()  # pairs that may be exchanged, all else staying where it is

    def best(self) -> Colours:
        """Every entity with a colour of its own."""
        colours = self._refined(ranked(self.view.attributes))
        if first_cell(colours) is not None:
            self._find_swaps(colours)
            if not self._free(colours):
                colours = self._split_by_individuals(colours)
        return self._below(colours).best[1]

    def _below(self, colours: Colours) -> _Subtree:
        cell = self._cell(colours)
        if cell is None:
            return self._leaf(colours)
        found = self._below(self._refined(alone(colours, cell[0])))
        for k, e in enumerate(cell[1:], 1):
            if self._known_image(e, cell[:k], found.symmetries):
                continue
            child = self._refined(alone(colours, e))
            (digest, leaf), = self._some_leaf(child).leaves.items()
            if digest not in found.leaves:
                more = self._below(child)
                (digest, leaf) = more.best
                if digest not in found.leaves:
                    found.best = min(found.best, more.best)
                    found.leaves |= more.leaves
                    continue
            found.symmetries.append(_mapping(found.leaves[digest], leaf))
        return found

    def _known_image(self, e: int, tried: list[int], symmetries: list[Colours]) -> bool:
        """Do the known symmetries take e to one of `tried`?"""
        orbit, new = {e}, [e]
        while new:
            x = new.pop()
            near = [m[x] for m in symmetries] + [m.index(x) for m in symmetries]
            near += [b if a == x else a for a, b in self.swaps if x in (a, b)]
            new += [y for y in near if y not in orbit]
            orbit |= set(near)
        return not orbit.isdisjoint(tried)

    def _some_leaf(self, colours: Colours) -> _Subtree:
        while (cell := self._cell(colours)) is not None:
            colours = self._refined(alone(colours, cell[0]))
        return self._leaf(colours)

    def _leaf(self, colours: Colours) -> _Subtree:
        colours = ranked(list(zip(colours, range(self.n), strict=True)))  # what may be exchanged: in any order
        (digest,) = self._digests([colours])
        return _Subtree((digest, colours), {digest: colours}, [])

    def _cell(self, colours: Colours) -> list[int] | None:
        """The entities of the first colour that several have; None where any order of such is as good."""
        return None if self._free(colours) else first_cell(colours)

    def _free(self, colours: Colours) -> bool:
        return all(pair in self.swaps for pair in pairs(colours))

    def _find_swaps(self, colours: Colours) -> None:
        leaf = ranked(list(zip(colours, range(self.n), strict=True)))
        swapped, alike = [], pairs(colours)
        for i, j in alike:
            c = list(leaf)
            c[i], c[j] = c[j], c[i]
            swapped.append(tuple(c))
        want, *got = self._digests([leaf, *swapped])
        self.swaps = {pair for pair, d in zip(alike, got, strict=True) if d == want}

    def _refined(self, colours: Colours) -> Colours:
        """Split as far as what leaves by the entities tells them apart."""
        while max(colours, default=0) + 1 < self.n:
            (values,) = self.view.evaluate([colours])
            new = ranked(list(zip(colours, values, strict=True)))
            if max(new) == max(colours):
                break
            colours = new
        return colours

    def _split_by_individuals(self, colours: Colours) -> Colours:
        """Each entity that is not alone in its colour is given a value of its own: what does the function do then?"""
        while (many := [e for e in range(self.n) if colours.count(colours[e]) > 1]):
            values = self.view.evaluate([alone(colours, e) for e in many])
            seen: dict[int, object] = {e: (v[e], sorted(zip(colours, v, strict=True)))
                                       for e, v in zip(many, values, strict=True)}
            new = ranked([(c, repr(seen.get(e))) for e, c in enumerate(colours)])
            if max(new) == max(colours):
                break
            colours = self._refined(new)
        return colours

    def _digests(self, colourings: Sequence[Colours]) -> list[bytes]:
        """Of the function under discrete colourings."""
        found = []
        for colours, values in zip(colourings, self.view.evaluate(colourings), strict=True):
            order = sorted(range(self.n), key=colours.__getitem__)
            found.append(hashlib.sha256(b"".join(values[i] for i in order)).digest())
        return found


def _mapping(a: Colours, b: Colours) -> Colours:
    """The entity of b that has the colour of each entity of a."""
    return tuple(b.index(c) for c in a)


# ---------------------------------------------------------------- of mixers
_found: WeakKeyDictionary[Mixer, Canonical] = WeakKeyDictionary()


def hash_of(mixer: Mixer) -> str:
    """32 hexadecimal digits, equal for two specs exactly when they are one function (language.md, section 2)."""
    return canonical_of(mixer).digest.hex()[:32]


def canonical_of(mixer: Mixer) -> Canonical:
    if mixer not in _found:
        _found[mixer] = canonical(mixer.declared, elaborate_of(mixer))
    return _found[mixer]


def elaborate_of(mixer: Mixer) -> Elaborate:
    structural = frozenset(mixer.structural_consts)

    def elaborate(sizes: dict[str, int]) -> tuple[Program, frozenset[str]]:
        return mixer.specialise(sizes, {})[0], structural
    return elaborate


def outline(program: Program) -> Counter[tuple[str, str, int, int]]:
    """What two specs must have in common to be worth a hash: how many declarations of each kind."""
    return Counter((d.role, d.kind, len(d.dims), min(len(d.ranges), 1)) for d in program.decls)
