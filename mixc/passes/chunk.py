"""Stages -> Chunk: from what happens to one token to what happens to a chunk of them at once.

before: S = d * S + k * v            one token
        o = q @ S
after:  P[t, s] = (q[t] . k[s]) * d[s+1] ... d[t]      for s <= t
        o       = P v + (q * d[1] ... d[t]) S0
        S       = d[1] ... d[C] S0 + (k)^T (v * d[s+1] ... d[C])

Values that read no state are the same with a time axis in front.  A read of the state at any place
in the body sees exactly the writes executed before it, under the decays executed after them: that,
not the order of rows, gives the masks.  (Linear attention in chunks: Hua et al. 2022, arXiv 2202.10447;
with decay: Sun et al. 2023, arXiv 2307.08621; Dao and Gu 2024, arXiv 2405.21060.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mixc.ir.build import at_col, contract, expand, make, maybe_add, maybe_mul, product, rename, total
from mixc.ir.node import COL, ROW, Node, is_number, number
from mixc.ir.program import Decl, Program, Result
from mixc.ir.ranges import proving
from mixc.passes.affine import Affine, AffineForms, Write
from mixc.passes.block import Block, BlockState
from mixc.passes.classify import classify
from mixc.passes.context import context, has_context
from mixc.passes.decay import Decay
from mixc.passes.planes import is_complex, planes
from mixc.passes.scan import ScanState
from mixc.passes.separate import factors_of

Dims = tuple[str, ...]
Sides = tuple[Node | None, Node | None]


def chunk(stages: Program) -> Program:
    """The chunk program of a spec whose groups are all "chunk" or "scan".

    Its "out" results have a time axis in front of their dims, its "next" results are what the next
    chunk receives; `state` leaves are what the previous chunk left."""
    if has_context(stages):
        stages = context(stages).program
    if is_complex(stages):
        real = planes(stages)
        assert real is not None
        stages = classify(replace(real, level="step", groups=()))
    assert all(g.form in ("chunk", "scan") for g in stages.groups), "only for affine states and scans"
    with proving(stages):
        return _Lift(stages).program()


class _State:
    """One state: its affine update, the decay over the chunk, and what is written, solved for where it reads."""

    def __init__(self, lift: _Lift, decl: Decl, forms: AffineForms):
        self.lift, self.decl, self.forms, self.dims = lift, decl, forms, set(decl.dims)
        update = forms.form(lift.step.result("next", decl.name))
        assert update is not None
        self.update: Affine = update
        factors = [] if update.decay is None else factors_of(update.decay, self.dims)
        assert factors is not None
        self.decay = Decay.of(factors, decl.dims, lift)
        self.written: dict[Write, list[Node]] = {}  # the lifted factors of every write

    # ------------------------------------------------------------ factors on the side where they belong
    def _sides(self, factors: list[Node], keys: set[str]) -> Sides:
        """The product of factors with a dim in `keys`, and that of the others."""
        inside = [f for f in factors if keys & set(f.dims)]
        return product(inside), product(f for f in factors if f not in inside)

    def _factors(self, weight: Node | None) -> list[Node]:
        """A weight of the step, lifted, in factors where it separates."""
        if weight is None:
            return []
        found = factors_of(weight, self.dims)
        return [self.lift(f) for f in ([weight] if found is None else found)]

    def _at(self, write: Write) -> list[Node]:
        """What a write adds at its row: all its factors.  One that reads the state is solved for first."""
        if write.value is not None and write not in self.written:
            self.written |= solve_writes(self)
        if write not in self.written:
            self.written[write] = [self.lift(f) for f in write.factors]
        return self.written[write]

    # ------------------------------------------------------------ what the chunk leaves
    def next(self) -> Node:
        """The decayed state, and every write under the decays after it."""
        first = set(self.decl.dims[:1])
        value: Node | None = maybe_mul(self.decay.whole(), self.decl.leaf())
        for write, coef in self.update.writes.items():
            left, right = self._sides([*self._at(write), *self._factors(coef)], first)
            left = maybe_mul(self.decay.along(first).after(), left)
            right = maybe_mul(self.decay.not_along(first).after(), right)
            right = make("live", expand(right or number(1), (ROW,)), fill=0.0)
            added = total(right, (ROW,)) if left is None else contract(expand(left, (ROW,)), right, _present(
                self.decl.dims, left, right))
            value = maybe_add(value, expand(added, self.decl.dims))
        assert value is not None
        return value

    # ------------------------------------------------------------ what a read finds
    def read(self, x: Affine, query: Node | None, out: Dims, writes: Iterable[Write] | None = None) -> Node:
        """sum over the dims not in `out` of query * x, for every row: [_t, out...].

        x: the form of the state where it is read.  query None: the state itself, nothing summed.
        writes: those that count (default: all)."""
        among = list(dict.fromkeys([*self.update.writes, *x.writes]) if writes is None else writes)
        place = Place(self, x, query, out)
        value = place.carried()
        for write in among:
            for term in place.terms(write):
                value = maybe_add(value, term)
        return value if value is not None else expand(number(0), (ROW, *out))


class Place:
    """A place in the body where the state is read: what it finds of the chunk's start, and of every write.

    A write that the update keeps is found at later rows under the decays since (`strict` where the own row's decay
    counts, `excl` where it comes after the read); at the own row it is found if it was executed before."""

    def __init__(self, state: _State, x: Affine, query: Node | None, out: Dims):
        self.state, self.x, self.out = state, x, out
        self.summed = state.dims - set(out)
        self.after = x.decay is state.update.decay
        here = [] if self.after else state._factors(x.decay)
        self.query = query
        before, self.here = state._sides(here, self.summed)
        if self.here is not None and not set(self.here.dims) & set(out):  # a number a row: with the query
            before, self.here = maybe_mul(self.here, before), None
        self.faded = maybe_mul(before, query)
        self.reach = "strict" if self.after else "excl"

    def carried(self) -> Node | None:
        if self.x.decay is not None and is_number(self.x.decay, 0.0):
            return None
        decay, fade = self.state.decay, not self.after
        kept = decay.along(self.out)
        query = maybe_mul(decay.not_along(self.out).up_to(fade), self.faded)
        found = contract(expand(query if query is not None else number(1), (ROW,)), self.state.decl.leaf(),
                         (ROW, *self.out))
        return self._scaled(maybe_mul(kept.up_to(fade), found))

    def _scaled(self, found: Node | None) -> Node:
        found = maybe_mul(self.here, found)
        assert found is not None
        return found

    def terms(self, write: Write) -> Iterator[Node]:
        """[_t, out...]: what the read finds of a write at earlier rows, and at its own."""
        state, at = self.state, self.state._at(write)
        coef, kept = state.update.writes.get(write), write in state.update.writes
        own, seen = self.x.writes.get(write), write in self.x.writes
        keys, values = state._sides([*at, *state._factors(coef)], self.summed)
        if self.after and kept and seen and own is coef and state.decay.scalar:
            scores = state.decay.scores(self.query, keys, self.summed, "incl")
            yield state.decay.spread(scores, values, self.out, "incl")
            return
        if kept:
            scores = state.decay.scores(self.faded, keys, self.summed, self.reach)
            yield self._scaled(state.decay.spread(scores, values, self.out, self.reach))
        if seen:
            keys, values = state._sides([*at, *state._factors(own)], self.summed)
            yield expand(maybe_mul(self._meet(keys), values) or number(1), (ROW, *self.out))

    def _meet(self, keys: Node | None) -> Node | None:
        """[_t, ...]: query times keys at the own row, summed."""
        if self.query is None and keys is None:
            return None
        both = [expand(x if x is not None else number(1), (ROW,)) for x in (self.query, keys)]
        out = [d for d in dict.fromkeys((*both[0].dims, *both[1].dims)) if d not in self.summed]
        alone = [d for d in self.summed if not any(d in x.dims for x in both)]
        found = contract(both[0], both[1], out)
        for d in alone:
            found = found * make("size", dim=d)
        return found

    def matrix(self, write: Write, keys: list[Node]) -> Node:
        """[_t, _s, ...]: how much of the value that row s wrote the read at row t finds.

        keys: the other factors of the write, lifted."""
        state = self.state
        coef, kept = state.update.writes.get(write), write in state.update.writes
        own, seen = self.x.writes.get(write), write in self.x.writes
        if self.after and kept and seen and own is coef and state.decay.scalar:
            return self._to_columns(self.query, [*keys, *state._factors(coef)], "incl")
        found: Node | None = None
        if kept:
            found = self._to_columns(self.faded, [*keys, *state._factors(coef)], self.reach)
            found = maybe_mul(self.here, found)
        if seen:
            left, right = state._sides([*keys, *state._factors(own)], self.summed)
            row = expand(maybe_mul(self._meet(left), right) or number(1), (ROW,))
            found = maybe_add(found, make("mask", expand(row, (ROW, COL)), keep="diag"))
        assert found is not None
        return found

    def _to_columns(self, query: Node | None, factors: list[Node], reach: str) -> Node:
        decay = self.state.decay
        keys, values = self.state._sides(factors, self.summed)
        scores = decay.scores(query, keys, self.summed, reach)
        scores = total(scores, [d for d in scores.dims if d in self.summed])
        span = decay.along(self.out).span(reach)
        return maybe_mul(None if values is None else at_col(expand(values, (ROW,))), maybe_mul(span, scores)) or scores


def solve_writes(state: _State) -> dict[Write, list[Node]]:
    """The factors of every write that reads the state: its value is found from a unit triangular system.

    value_i[t] = b_i[t] + sum_j sum_s N_ij[t, s] value_j[s]; j runs over these writes, s over rows before t, and the
    own row where j was executed before i.  Block elimination in that order; no pivot differs from 1."""
    forms, lift = state.forms, state.lift
    writes = in_order([w for w in state.update.writes if w.value is not None], forms)
    summed = {d for w in writes for r in (w.value.coefs if w.value else ()) for d in forms.summed(r)}
    dims = tuple(d for d in state.decl.dims if d not in summed)
    keys = {w: [lift(f) for f in w.factors if summed & set(f.dims)] for w in writes}
    reads = [r for w in writes for r in (w.value.coefs if w.value else ())]
    seen = [w for r in reads for w in (forms.form(r.x) or state.update).writes]
    others = [w for w in dict.fromkeys([*state.update.writes, *seen]) if w.value is None]
    b: list[Node] = []
    N: list[dict[int, Node]] = []
    for w in writes:
        assert w.value is not None
        scale = product(lift(f) for f in w.factors if not summed & set(f.dims))
        value, row = None if w.value.constant is None else lift(w.value.constant), dict[int, Node]()
        for r, c in w.value.coefs.items():
            x = forms.form(r.x)
            assert x is not None
            query, coef = None if r.query is None else lift(r.query), None if c is None else lift(c)
            place = Place(state, x, query, r.node.dims)
            value = maybe_add(value, maybe_mul(coef, state.read(x, query, r.node.dims, others)))
            for j, other in enumerate(writes):
                if other in state.update.writes or other in x.writes:
                    entry = maybe_mul(maybe_mul(coef, scale), place.matrix(other, keys[other]))
                    assert entry is not None
                    row[j] = row[j] + entry if j in row else entry
        assert value is not None
        b.append(expand(maybe_mul(scale, value) or number(1), (ROW, *dims)))
        N.append(row)
    return {w: [*keys[w], z] for w, z in zip(writes, eliminate(N, b), strict=True)}


def in_order(writes: list[Write], forms: AffineForms) -> list[Write]:
    """Writes so that each stands behind those that its value sees at its own row."""
    found: list[Write] = []

    def visit(w: Write) -> None:
        if w in found or w.value is None:
            return
        for r in w.value.coefs:
            x = forms.form(r.x)
            for other in x.writes if x is not None else ():
                if other is not w:
                    visit(other)
        found.append(w)
    for w in writes:
        visit(w)
    return [w for w in found if w in writes]


def eliminate(N: list[dict[int, Node]], b: list[Node]) -> list[Node]:
    """z with z_i = b_i + sum_j N_ij z_j, N_ii and N_ij for j > i being strictly lower."""
    n = len(b)
    N = [dict(row) for row in N]
    b = list(b)
    across: list[dict[int, Node]] = []
    for i in range(n):
        own = N[i].pop(i, None)
        if own is not None:
            b[i] = make("solve", -own, b[i], transposed=False)
            N[i] = {j: make("solve", -own, x, transposed=False) if j > i else x for j, x in N[i].items()}
        across.append({j: x for j, x in N[i].items() if j > i})
        for k in range(i + 1, n):
            through = N[k].pop(i, None)
            if through is None:
                continue
            b[k] = b[k] + _times(through, b[i])
            for j, x in across[i].items():
                dims = dict.fromkeys((ROW, COL, *through.dims, *x.dims))  # those of columns too
                more = contract(rename(through, **{COL: "_u"}), rename(x, **{ROW: "_u"}), dims)
                N[k][j] = N[k][j] + more if j in N[k] else more
    z: dict[int, Node] = {}
    for i in reversed(range(n)):
        z[i] = b[i]
        for j, x in across[i].items():
            z[i] = z[i] + _times(x, z[j])
    return [z[i] for i in range(n)]


def _times(matrix: Node, z: Node) -> Node:
    return contract(matrix, at_col(z), z.dims)


def _present(dims: Dims, *nodes: Node) -> Dims:
    return tuple(d for d in dims if any(d in n.dims for n in nodes))


def _keeps(form: Affine | None) -> bool:
    """Is there something left of the state? What was only read of it is a value like any other."""
    return form is not None and not (form.decay is not None and is_number(form.decay, 0.0))


class _Lift:
    """Token values to values of all rows; calling it lifts one node."""

    def __init__(self, step: Program):
        self.step = step
        self.done: dict[Node, Node] = {}
        roots = step.values()
        self.states: dict[str, _State] = {}
        scans = {s for g in step.groups if g.form == "scan" for s in g.states}
        self.scans: dict[str, ScanState | BlockState] = {}
        for g in step.groups:
            if g.form == "scan" and len(g.states) == 1:
                self.scans[g.states[0]] = ScanState(step, step.decl(g.states[0]), self)
            elif g.form == "scan":
                block = Block(step, [step.decl(name) for name in g.states], self)
                self.scans |= {name: BlockState(block, i) for i, name in enumerate(g.states)}
        self.scanned = {step.result("next", name): name for name in scans}
        found = [step.decl(name) for g in step.groups for name in g.states if name not in scans]
        self.forms = {s.name: AffineForms(s, roots) for s in found}

    def __call__(self, node: Node) -> Node:
        if node not in self.done:
            self.done[node] = self._whole_state(node) if self._of(node) is not None else self._lift(node)
        return self.done[node]

    def _of(self, node: Node) -> str | None:
        """The state of which the node is a (decayed, updated) copy, if it is one.  What reads several is a copy of
        the one that is found last: the others feed its writes."""
        for name, forms in reversed(self.forms.items()):
            if not forms.free(node) and set(node.dims) == forms.dims and _keeps(forms.form(node)):
                return name
        return None

    def state(self, name: str) -> _State:
        if name not in self.states:
            self.states[name] = _State(self, self.step.decl(name), self.forms[name])
        return self.states[name]

    def _whole_state(self, node: Node) -> Node:
        """A state that is read as it is, nothing summed."""
        name = self._of(node)
        assert name is not None
        state = self.state(name)
        form = state.forms.form(node)
        assert form is not None
        return state.read(form, None, state.decl.dims)

    def _lift(self, node: Node) -> Node:
        if node.op == "in":
            return make("in", name=node.attr("name"), dims=(ROW, *node.dims), kind=node.kind)
        if node in self.scanned:
            return self.scans[self.scanned[node]].after()
        if node.op == "state" and node.attr("name") in self.scans:
            return self.scans[node.attr("name")].before()
        if node.op in ("contract", "sum"):
            read = self._read(node)
            if read is not None:
                return read
        if not node.args:
            return node
        args = [self(a) for a in node.args]
        attrs = dict(node.attrs)
        if node.op == "contract":
            attrs["out"] = ((ROW,) if any(ROW in a.dims for a in args) else ()) + node.dims
            return contract(args[0], args[1], attrs["out"])
        return make(node.op, *args, span=node.span, **attrs)

    def _read(self, node: Node) -> Node | None:
        """A contraction with a state, or a sum over its dims."""
        for name, forms in reversed(self.forms.items()):  # see `_of`
            r = None if forms.free(node) else forms.read(node)
            form = None if r is None else forms.form(r.x)
            if r is not None and form is not None and _keeps(form):
                return self.state(name).read(form, number(1) if r.query is None else self(r.query), node.dims)
        return None

    def program(self) -> Program:
        results = []
        for r in self.step.results:
            if r.role == "out":
                dims = next(d.dims for d in self.step.outs if d.name == r.name)
                results.append(Result("out", r.name, expand(self(r.value), (ROW, *dims))))
            else:
                state = self.scans[r.name] if r.name in self.scans else self.state(r.name)
                results.append(Result("next", r.name, state.next()))
        return replace(self.step, level="chunk", results=tuple(results))
