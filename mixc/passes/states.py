"""States that need each other, in a chunk: what a chunk leaves of them, and what a read finds at its place in the body.

A read of the state at any place sees exactly the writes executed before it, under the decays executed after them:
that, not the order of rows, gives the masks.  Writes that read the states are solved for first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mixc.ir.build import at_col, contract, expand, make, maybe_add, maybe_mul, product, rename, repeated, total
from mixc.ir.node import COL, ROW, Node, number
from mixc.ir.program import Program
from mixc.ir.scans import previous, scan
from mixc.passes.affine import Affine, AffineForms, ReadForm, Write
from mixc.passes.coupled import Link, Transport, joined
from mixc.passes.decay import Decay, Lift, by_dim
from mixc.passes.separate import factors_of
from mixc.passes.triangular import eliminate

Dims = tuple[str, ...]
Sides = tuple[Node | None, Node | None]


class States:
    """States that need each other, most often one: their affine updates, how a chunk carries them, and what is written,
    solved for where it reads."""

    def __init__(self, step: Program, lift: Lift, forms: AffineForms):
        self.lift, self.forms, self.dims, self.decls = lift, forms, forms.dims, forms.states
        found = [forms.form(step.result("next", d.name)) for d in self.decls]
        self.updates = [f for f in found if f is not None]
        assert len(self.updates) == len(found)
        self.first = set([d for d in forms.order if d not in forms.apart][:1])  # a side of outer products
        self.transport = Transport(self.updates, forms, lift)
        self.writes = list(dict.fromkeys(w for u in self.updates for w in u.writes))
        self.written: dict[Write, list[Node]] = {}  # the lifted factors of every write
        self.solved = False  # are those among them that read the states?
        self.after: Node | None = None  # the state after every row, where a scan forms it
        self.endless = tuple(d.name for d in self.decls) in lift.endless

    # ------------------------------------------------------------ factors on the side where they belong
    def _sides(self, factors: list[Node], keys: set[str]) -> Sides:
        """The product of factors with a dim in `keys`, and that of the others."""
        inside = [f for f in factors if keys & set(f.dims)]
        return product(inside), product(f for f in factors if f not in inside)

    def ranks(self, *values: Node | None) -> set[str]:
        """The dims that a sum of outer products runs over."""
        return {d for x in values if x is not None for d in x.dims} & {*self.forms.ranks.values()}

    def as_written(self, value: Node | None) -> Node | None:
        """A value of every row under the names of the rows that wrote."""
        return value if value is None else rename(value, **self.forms.ranks)

    def _factors(self, weight: Node | None) -> list[Node]:
        """A weight of the step, lifted, in factors where it separates."""
        if weight is None:
            return []
        found = factors_of(weight, self.dims)
        return [self.lift(f) for f in ([weight] if found is None else found)]

    def _at(self, write: Write) -> list[Node]:
        """What a write adds at its row: all its factors.  One that reads the state is solved for first."""
        if write.value is not None and not self.solved:
            self.solved = True
            self.written |= solve_writes(self)
        if write not in self.written:
            # one with a value that no update keeps, nor anything that one reads: all that it reads is there
            value = None if write.value is None else self.as_written(self.found(write.value))
            self.written[write] = [*(self.lift(f) for f in write.factors), *([] if value is None else [value])]
        return self.written[write]

    def found(self, value: ReadForm, among: Iterable[Write] | None = None) -> Node | None:
        """A value that reads the states, for every row, as far as it is made of these writes (default: all)."""
        known = None if value.constant is None else self.lift(value.constant)
        for r, c in value.coefs.items():
            form = self.forms.form(r.x)
            assert form is not None
            query, coef = (None if x is None else self.lift(x) for x in (r.query, c))
            known = maybe_add(known, maybe_mul(coef, self.read(form, query, r.node.dims, among)))
        return known

    # ------------------------------------------------------------ what the chunk leaves
    def next(self, i: int) -> Node:
        """The decayed states, and every write under the decays after it."""
        dims = self.decls[i].dims
        first, value = self.first, None
        into = [(j, self.transport.paths[i, j]) for j in range(len(self.decls)) if (i, j) in self.transport.paths]
        for j, decay in into:
            value = maybe_add(value, maybe_mul(decay.whole(), self.forms.leaves[j]))
        for write in self.writes:
            links = [Link(decay, [], self._factors(self.updates[j].writes[write])) for j, decay in into
                     if write in self.updates[j].writes]
            for link in joined(links, self.dims, "end"):
                left, right = self._sides([*self._at(write), *link.coef], first)
                left = maybe_mul(link.decay.along(first).after(), left)
                right = maybe_mul(link.decay.not_along(first).after(), right)
                right = make("live", repeated(right, (ROW,)), fill=0.0)
                added = total(right, [d for d in right.dims if d not in dims]) if left is None else contract(
                    repeated(left, (ROW,)), right, _present(dims, left, right))
                value = maybe_add(value, expand(added, dims))
        assert value is not None
        return value

    # ------------------------------------------------------------ what a read finds
    def read(self, x: Affine, query: Node | None, out: Dims, writes: Iterable[Write] | None = None) -> Node:
        """sum over the dims not in `out` of query * x, for every row: [_t, out...].

        x: the form of what is read.  query None: that itself, nothing summed.
        writes: those that count (default: all)."""
        among = list(dict.fromkeys([*self.writes, *x.writes]) if writes is None else writes)
        factors = [] if query is None else factors_of(query, self.dims) or [query]
        kept = [f for f in factors if self.dims & {*f.dims} and {*f.dims} <= {ROW, *out}]
        if kept:  # along what is not summed: not in a product of all pairs of rows
            return product([*kept, self.read(x, product(f for f in factors if f not in kept), out, among)]) or number(1)
        place = Place(self, x, query, out)
        value = place.carried()
        for write in among:
            for term in place.terms(write):
                value = maybe_add(value, term)
        value = value if value is not None else expand(number(0), (ROW, *place.out))
        return total(value, place.beside)

    def rows(self, x: Affine) -> Node | None:
        """x of every row, of one state, where its decay has dims of the state: a product for every entry along them
        costs C times what a scan does.  So it does where x is a matrix, but in kernels, which have tensor cores for
        one and no room for the other (`by_rows`: elsewhere), and where what is written may be infinite: in a product of
        all pairs of rows it would meet the 0 of rows before it, which gives no number.  Else None."""
        (leaf, *more), dims = self.forms.leaves, self.decls[0].dims
        if more or leaf not in self.updates[0].decays:
            return None
        decay = self.updates[0].decays[leaf] or number(1)
        if not set(decay.dims) & self.dims and not (self.lift.by_rows and len(dims) > 1) and not self.endless:
            return None
        if self.after is None:
            a = make("live", expand(self.lift(decay), (ROW,)), fill=1.0)
            self.after = scan("affine", a, make("live", self._written(self.updates[0], dims), fill=0.0), leaf, dims)
        if x is self.updates[0]:
            return self.after
        since, before = x.decays[leaf], previous(self.after, leaf)
        return (before if since is None else self.lift(since) * before) + self._written(x, dims)

    def _written(self, x: Affine, dims: Dims) -> Node:
        """[_t, dims...]: what is added at every row."""
        value: Node | None = None
        for write, coef in x.writes.items():
            left, right = (repeated(y, ()) for y in self._sides([*self._at(write), *self._factors(coef)], self.first))
            value = maybe_add(value, expand(contract(left, right, _present((ROW, *dims), left, right)), (ROW, *dims)))
        return value if value is not None else expand(number(0), (ROW, *dims))


class Place:
    """A place in the body where states are read: what it finds of the chunk's start, and of every write.

    A write that an update keeps is found at later rows under the decays since: those before the own row (`excl`) and
    what the place has made of the states since, or, where that is one state's whole update, the own row's too
    (`strict`).  At the own row it is found if it was executed before.

    States that lie beside each other along some dims are read each for itself; `beside`: those that the outcome lacks.
    """

    def __init__(self, group: States, x: Affine, query: Node | None, out: Dims):
        self.group, self.x = group, x
        dims = next(iter(x.decays)).dims if x.decays else group.forms.order
        self.beside = tuple(d for d in dims if d in group.forms.apart and d not in out)
        self.out = (*self.beside, *out)
        self.summed = {*dims} - set(self.out)
        self.query = query if query is None else total(
            query, [d for d in query.dims if d not in (ROW, *out) and d not in group.dims])
        self.sources = [(group.forms.leaves.index(leaf), group._factors(d)) for leaf, d in x.decays.items()]
        (i, _), *others = self.sources or [(0, [])]
        leaf, update = group.forms.leaves[i], group.updates[i]
        self.after = bool(self.sources) and not others and group.transport.alone(i) and (
            leaf in update.decays and x.decays[leaf] is update.decays[leaf])

    def links(self, start: int | None = None, write: Write | None = None) -> list[Link]:
        """The ways from a state at the chunk's start, or from a write where updates keep it."""
        found, states = [], self.group.updates
        for i, here in self.sources:
            for j in range(len(states)):
                if (i, j) in self.group.transport.paths and (j == start or write in states[j].writes):
                    found.append(Link(self.group.transport.paths[i, j], [] if self.after else here, [] if write is None
                                      else self.group._factors(states[j].writes[write]),
                                      "strict" if self.after else "excl"))
        return joined(found, self.group.dims, "between" if start is None else "start")

    def _faded(self, link: Link) -> Sides:
        """The query, faded by what is summed with it, and what is left for the outcome."""
        before, here = self.group._sides(link.here, self.summed)
        if here is not None and not set(here.dims) & set(self.out):  # a number a row: with the query
            before, here = maybe_mul(here, before), None
        return maybe_mul(before, self.query), here

    def carried(self) -> Node | None:
        value: Node | None = None
        for j, leaf in enumerate(self.group.forms.leaves):
            for link in self.links(start=j):
                faded, here = self._faded(link)
                query = maybe_mul(link.decay.not_along(self.out).up_to(not self.after), faded)
                found = self._summed_up(query, leaf)
                value = maybe_add(value, maybe_mul(here, maybe_mul(link.decay.along(self.out).up_to(not self.after),
                                                                   found)))
        return value

    def _summed_up(self, query: Node | None, state: Node) -> Node:
        """[_t, out...]: the state times the query, dim by dim where that separates."""
        parts = by_dim(query, summed=self.summed)
        if query is None and not self.summed:
            return expand(state, (ROW, *self.out))
        if parts is None:
            return contract(repeated(query, (ROW,)), state, (ROW, *self.out))
        for d, (q,) in parts.items():
            state = contract(repeated(q, (ROW,)), state, (ROW, *(x for x in state.dims if x not in (ROW, d))))
        return state

    def _whole(self, write: Write) -> Link | None:
        """The link to a write that is found at the own row as at earlier ones, under the same decay."""
        if not (self.after and write in self.x.writes):
            return None
        i = self.sources[0][0]
        update, decay = self.group.updates[i], self.group.transport.paths[i, i]
        own = self.x.writes[write]
        same = write in update.writes and own is update.writes[write] and decay.scalar
        return Link(decay, [], self.group._factors(own), "incl") if same else None

    def terms(self, write: Write) -> Iterator[Node]:
        """[_t, out...]: what the read finds of a write at earlier rows, and at its own."""
        group, at, whole = self.group, self.group._at(write), self._whole(write)
        for link in self.links(write=write) if whole is None else [whole]:
            keys, values = group._sides([*at, *link.coef], self.summed)
            faded, here = self._faded(link)
            scores = link.decay.scores(faded, keys, self.summed, link.reach)
            found = maybe_mul(here, link.decay.spread(scores, values, self.out, link.reach))
            assert found is not None
            yield found
        if whole is None and write in self.x.writes:
            keys, values = group._sides([*at, *group._factors(self.x.writes[write])], self.summed)
            if group.ranks(keys, values):
                scores = Decay().scores(self.query, keys, self.summed, "diag")
                yield Decay().spread(scores, values, self.out, "diag")
            else:
                yield repeated(maybe_mul(self._meet(keys), values), (ROW, *self.out))

    def _meet(self, keys: Node | None) -> Node | None:
        """[_t, ...]: query times keys at the own row, summed."""
        if self.query is None and keys is None:
            return None
        apart = by_dim(self.query, keys, summed=self.summed)
        if apart is not None:
            return product(self._met(q, k, {d}) for d, (q, k) in apart.items())
        return self._met(self.query, keys, self.summed)

    @staticmethod
    def _met(query: Node | None, keys: Node | None, summed: set[str]) -> Node:
        both = [repeated(x, (ROW,)) for x in (query, keys)]
        out = [d for d in dict.fromkeys((*both[0].dims, *both[1].dims)) if d not in summed]
        alone = [d for d in summed if not any(d in x.dims for x in both)]
        found = contract(both[0], both[1], out)
        for d in alone:
            found = found * make("size", dim=d)
        return found

    def matrix(self, write: Write, keys: list[Node]) -> Node | None:
        """[_t, _s, ...]: how much of the value that row s wrote the read at row t finds; None: nothing.

        keys: the other factors of the write, lifted."""
        found, whole = None, self._whole(write)
        for link in self.links(write=write) if whole is None else [whole]:
            faded, here = self._faded(link)
            found = maybe_add(found, maybe_mul(here, self._to_columns(faded, [*keys, *link.coef], link)))
        if whole is None and write in self.x.writes:
            left, right = self.group._sides([*keys, *self.group._factors(self.x.writes[write])], self.summed)
            if self.group.ranks(left, right):
                scores = Decay().scores(self.query, left, self.summed, "diag")
                row = maybe_mul(None if right is None else at_col(right), scores) or scores
            else:
                row = repeated(maybe_mul(self._meet(left), right), (ROW,))
            found = maybe_add(found, make("mask", expand(row, (ROW, COL)), keep="diag"))
        return found

    def _to_columns(self, query: Node | None, factors: list[Node], link: Link) -> Node:
        keys, values = self.group._sides(factors, self.summed)
        scores = link.decay.scores(query, keys, self.summed, link.reach)
        scores = total(scores, [d for d in scores.dims if d in self.summed])
        span = link.decay.along(self.out).span(link.reach)
        return maybe_mul(None if values is None else at_col(expand(values, (ROW,))), maybe_mul(span, scores)) or scores


def solve_writes(group: States) -> dict[Write, list[Node]]:
    """The factors of every write that reads the state: its value is found from a unit triangular system.

    value_i[t] = b_i[t] + sum_j sum_s N_ij[t, s] value_j[s]; j runs over these values, s over rows before t, and the
    own row where j was executed before i.  Block elimination in that order; no pivot differs from 1."""
    forms, lift = group.forms, group.lift
    writes = forms.in_order(group.writes)
    reads = [r for w in writes for r in (w.value.coefs if w.value else ())]
    summed = {d for r in reads for d in forms.summed(r)}
    dims = tuple(d for d in forms.order if d not in summed)
    seen = [w for r in reads for w in (forms.form(r.x) or Affine()).writes]
    others = [w for w in dict.fromkeys([*group.writes, *seen]) if w.value is None]  # the rest are `writes`
    by_row = {s: t for t, s, _ in forms.ranks.rows}
    unknowns = _unknowns(writes, summed)
    keys = {w: [lift(f) for f in w.factors if f not in u.scale] for u in unknowns for w in u.writes}
    b: list[Node | None] = []
    N: list[dict[int, Node]] = []
    for u in unknowns:
        scale = product(rename(lift(f), **by_row) for f in u.scale)
        value, row = group.found(u.value, others), dict[int, Node]()
        for r, c in u.value.coefs.items():
            x = forms.form(r.x)
            assert x is not None
            query, coef = None if r.query is None else lift(r.query), None if c is None else lift(c)
            place = Place(group, x, query, r.node.dims)
            for j, other in enumerate(unknowns):
                for w in other.writes:
                    found = place.matrix(w, keys[w])
                    if found is not None:
                        entry = maybe_mul(maybe_mul(coef, scale), found)
                        assert entry is not None
                        row[j] = row[j] + entry if j in row else entry
        assert value is not None
        b.append(repeated(maybe_mul(scale, value), (ROW, *dims)))
        N.append(row)
    values = map(group.as_written, eliminate(N, b, forms.ranks.rows))
    return {w: [*keys[w], z] for u, z in zip(unknowns, values, strict=True) if z is not None for w in u.writes}


@dataclass(frozen=True)
class _Unknown:
    """A value that reads the states, times factors that all writes of it have."""

    writes: list[Write]
    value: ReadForm
    scale: list[Node]


def _unknowns(writes: list[Write], summed: set[str]) -> list[_Unknown]:
    """What is solved for: writes of the same value share it, with those of their factors that have no summed dim."""
    by_value: dict[int, list[Write]] = {}
    for w in writes:
        by_value.setdefault(id(w.value), []).append(w)
    found = []
    for same in by_value.values():
        first, *more = same
        assert first.value is not None
        scale = [f for f in first.factors if not summed & {*f.dims} and all(
            w.factors.count(f) == first.factors.count(f) for w in more)]
        found.append(_Unknown(same, first.value, scale))
    return found


def _present(dims: Dims, *nodes: Node) -> Dims:
    return tuple(d for d in dims if any(d in n.dims for n in nodes))
