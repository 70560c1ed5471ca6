"""States that carry each other through a chunk: S feeds on M, M decays, and both are corrected by what S holds.

before: S, M = a * S + c * M + ..., b * M + ...        one token, S and M the old values, a, b, c scalars
after:  A write to M at row s is found in S before row t with the factor

            P[t, s] = sum over u of E_a[t, u] c[u] E_b[u, s]          E[t, s] = the decays of rows s+1 .. t-1, s < t

In general let Z_i be the states, d_i their own decays, c_ij what each takes over from another, and x_i[t] the state
i before row t.  With the decays E_i and e_i[t] = d_i[0] ... d_i[t-1] of the chunk's rows,

    x_i[t] = e_i[t] Z_i + sum over s of E_i[t, s] (what is written to i at s  +  sum_j c_ij[s] x_j[s])

is a system of blocks, strictly lower triangular over rows.  P_ij = (I - [E_i c_ij])^-1 E_j says how a write to j
arrives in i, the same with e_j how the chunk's start does, and one more row behind the last what the chunk leaves.
Where no state takes over from one that takes over from it (momentum, Titans) the inverse is a product or two of
matrices [_t, _s]; else (a rotation, a system of second order) it is solved for by substitution.  Sums of products of
decays over their own spans: no decay is divided by, zeros and signs are exact, and what stays bounded token by token
stays bounded here.  All else, reads, corrections and their triangular solve, is as with one state: P stands where
the decay from s to t stood.  (Momentum in the state: Behrouz et al. 2025, arXiv 2501.00663.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mixc.ir.build import at_col, contract, make, maybe_add, number, product, rename, repeated
from mixc.ir.node import COL, ROW, Node
from mixc.passes.affine import Affine, AffineForms
from mixc.passes.decay import Decay, Lift, Part
from mixc.passes.separate import factors_of
from mixc.passes.triangular import eliminate


@dataclass(frozen=True)
class Path(Part):
    """A factor over a chunk that is no product of its rows' factors: between rows, from its start, to its end."""

    between: Node | None = None
    start: Node | None = None
    end: Node | None = None
    through: Node | None = None

    def span(self, reach: str) -> Node:
        """[_t, _s, dim]: from what is written at s to what is there before t."""
        assert self.between is not None and reach == "excl"
        return self.between

    def up_to(self, exclusive: bool) -> Node:
        assert self.start is not None and exclusive
        return self.start

    def after(self) -> Node:
        assert self.end is not None
        return self.end

    def whole(self) -> Node:
        assert self.through is not None
        return self.through


class Transport:
    """How the states of a group, by number, reach each other: `own` decays, and `paths` by (to, from)."""

    def __init__(self, updates: list[Affine], forms: AffineForms, lift: Lift):
        leaves, dims = forms.leaves, forms.order
        self.own: list[Decay] = []
        self.taken: list[dict[int, Node]] = []
        for i, update in enumerate(updates):
            decay = update.decays.get(leaves[i], number(0))
            factors = [] if decay is None else factors_of(decay, dims)
            assert factors is not None
            self.own.append(Decay.of(factors, dims, lift, forms.apart))
            taken = {j: update.decays[x] for j, x in enumerate(leaves) if j != i and x in update.decays}
            self.taken.append({j: make("live", repeated(c and lift(c), (ROW,)), fill=0.0)
                               for j, c in taken.items()})
        self.paths = {(i, j): self._path(i, j) for i, above in enumerate(self.above) for j in {i, *above}}

    def alone(self, i: int) -> bool:
        """Does it take over from no other state?"""
        return not self.taken[i]

    @functools.cached_property
    def above(self) -> list[set[int]]:
        """Of every state those whose content arrives in it."""
        above = [set(t) for t in self.taken]
        for _ in above:
            above = [a.union(*(above[j] for j in a)) for a in above]
        return above

    def _path(self, i: int, j: int) -> Decay:
        if i == j and i not in self.above[i]:
            return self.own[i]
        between, start = self._arrives(j)
        behind = repeated(self.own[i].after(), (ROW,))
        end, through = (behind, self.own[i].whole() or number(1)) if i == j else (None, None)
        for k, c in self.taken[i].items():
            last = rename(behind * c, **{ROW: "_u"})
            for x, known in ((between[k], False), (start[k], True)):
                if x is not None:
                    out = [d for d in dict.fromkeys((*last.dims, *x.dims)) if d not in ("_u", ROW)]
                    found = contract(last, rename(x, **{ROW: "_u"}), out)
                    if known:
                        through = maybe_add(through, found)
                    else:
                        end = maybe_add(end, rename(found, **{COL: ROW}))
        dims = tuple(d for d in (between[i] or number(0)).dims if d not in (ROW, COL))
        return Decay((Path(dims, between=between[i], start=start[i], end=end, through=through),))

    @functools.cache  # noqa: B019  (as long as the pass)
    def _arrives(self, j: int) -> tuple[list[Node | None], list[Node | None]]:
        """Of every state before row t: [_t, _s] what is written to j at s, [_t] what j held at the chunk's start."""
        order = sorted(range(len(self.above)), key=lambda i: len(self.above[i]))
        spans = {i: self.own[i].over(None, "excl") for i in order}
        N = [{order.index(k): spans[i] * at_col(c) for k, c in self.taken[i].items()} for i in order]
        found = []
        for b in (spans[j], repeated(self.own[j].up_to(True), (ROW,))):
            z = eliminate(N, [b if i == j else None for i in order])
            found.append([z[order.index(i)] for i in range(len(order))])
        return found[0], found[1]


@dataclass(frozen=True)
class Link:
    """A way from a write, or a state at the chunk's start, to a place: here * decay * coef, the first at the place."""

    decay: Decay
    here: list[Node]
    coef: list[Node]
    reach: str = "excl"


def joined(links: list[Link], dims: set[str], kind: str) -> list[Link]:
    """Links, those of scalars as one: a matrix of rows ("between"), or a number a row ("start", "end")."""
    same = [x for x in links if x.decay.scalar and x.reach == "excl" and not any(
        set(f.dims) & dims for f in (*x.here, *x.coef))]
    if len(same) < 2:
        return links
    value: Node | None = None
    for x in same:
        here, coef = product(x.here), product(x.coef)
        if kind == "between":
            way: Node | None = x.decay.over(None, "excl")
            coef = None if coef is None else at_col(coef)
        else:
            way = repeated(x.decay.up_to(True) if kind == "start" else x.decay.after(), (ROW,))
        value = maybe_add(value, product(f for f in (way, here, coef) if f is not None))
    assert value is not None
    path = Path((), **{kind: value})
    return [Link(Decay((path,)), [], []), *(x for x in links if x not in same)]
