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

from dataclasses import replace

from mixc.ir.build import at_col, contract, expand, make, maybe_add, maybe_mul, product, total
from mixc.ir.node import COL, ROW, Node, is_number, number, postorder
from mixc.ir.program import Decl, Program, Result
from mixc.ir.ranges import proving
from mixc.passes.affine import Affine, AffineForms, Write
from mixc.passes.block import Block, BlockState
from mixc.passes.classify import classify
from mixc.passes.context import context, has_context
from mixc.passes.decay import Decay
from mixc.passes.planes import is_complex, planes
from mixc.passes.scan import ScanState


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
    """One state: its affine update and the decay over the chunk."""

    def __init__(self, lift: _Lift, decl: Decl, forms: AffineForms):
        self.lift, self.decl, self.forms = lift, decl, forms
        update = forms.form(lift.step.result("next", decl.name))
        assert update is not None
        self.update: Affine = update
        self.decay = Decay.of(None if update.decay is None else lift(update.decay))

    def next(self) -> Node:
        """What the chunk leaves: the decayed state, and every write under the decays after it."""
        first = self.decl.dims[:1]
        value: Node | None = maybe_mul(self.decay.whole(), self.decl.leaf())
        for write, coef in self.update.writes.items():
            weight = maybe_mul(self.decay.after(), None if coef is None else self.lift(coef))
            left, right = self._split(write, set(first))
            right = make("live", expand(maybe_mul(weight, right) or number(1), (ROW,)), fill=0.0)
            added = total(right, (ROW,)) if left is None else contract(expand(left, (ROW,)), right, _present(
                self.decl.dims, left, right))
            value = maybe_add(value, expand(added, self.decl.dims))
        assert value is not None
        return value

    def _split(self, write: Write, keys: set[str]) -> tuple[Node | None, Node | None]:
        """The factors with a dim in `keys`, and the others, each multiplied up (None: nothing, 1)."""
        lifted = [self.lift(f) for f in write.factors]
        return (product(f for f in lifted if keys & set(f.dims)), product(f for f in lifted if not keys & set(f.dims)))

    def read(self, x: Affine, query: Node | None, out: tuple[str, ...]) -> Node:
        """sum over the dims not in `out` of query * x, for every row: [_t, out...].

        x: the form of the state where it is read.  query None: the state itself, nothing summed."""
        summed = {d for d in self.decl.dims if d not in out}
        value = self._carried(x, query, out)
        for write, coef in self.update.writes.items():
            keys, values = self._split(write, summed)
            for scores in self._scores(x, write, coef, query, keys):
                value = maybe_add(value, _spread(scores, values, out))
        for write in x.writes:
            assert write in self.update.writes, "a read sees only what the update keeps"
        return value if value is not None else expand(number(0), (ROW, *out))

    def _carried(self, x: Affine, query: Node | None, out: tuple[str, ...]) -> Node | None:
        """What the read finds of the state before the chunk."""
        if x.decay is not None and is_number(x.decay, 0.0):
            return None
        if x.decay is self.update.decay:
            fade = self.decay.up_to(exclusive=False)
        else:
            fade = maybe_mul(self.decay.up_to(exclusive=True), None if x.decay is None else self.lift(x.decay))
        query = maybe_mul(fade, query)
        state = self.decl.leaf()
        query = number(1) if query is None else query
        return contract(expand(query, (ROW,)), state, (ROW, *out))

    def _scores(self, x: Affine, write: Write, coef: Node | None, query: Node | None, keys: Node | None) -> list[Node]:
        """[_t, _s, ...]: how much of what row s wrote the read at row t finds; a second term for the own row."""
        own, seen = x.writes.get(write), write in x.writes
        after = x.decay is self.update.decay
        past = at_col(self.lift(coef)) if coef is not None else None
        if after and seen and own is coef:
            return [maybe_mul(past, self.decay.over(_pair(query, keys), "incl")) or number(1)]
        scores = self.decay.over(_pair(query, keys), "strict" if after else "excl")
        if not after and x.decay is not None:
            scores = scores * self.lift(x.decay)
        terms = [scores if past is None else scores * past]
        if seen:
            pair = _pair(query, keys)
            diagonal = make("mask", expand(number(1), (ROW, COL)) if pair is None else pair, keep="diag")
            terms.append(diagonal if own is None else diagonal * self.lift(own))
        return terms


def _pair(query: Node | None, keys: Node | None) -> Node | None:
    """query[t] . keys[s] -> [_t, _s, dims that are kept]; None is 1."""
    if query is None and keys is None:
        return None
    q = expand(number(1) if query is None else query, (ROW,))
    k = at_col(expand(number(1) if keys is None else keys, (ROW,)))
    summed = set(q.dims) & set(k.dims)
    left = total(q, [d for d in q.dims if d in summed and d not in k.dims])
    return contract(left, k, (ROW, COL, *[d for d in q.dims if d not in summed and d != ROW]))


def _spread(scores: Node, values: Node | None, out: tuple[str, ...]) -> Node:
    """scores[t, s] applied to the values written at s -> [_t, out...]."""
    scores = total(scores, [d for d in scores.dims if d not in (ROW, COL, *out)])
    if values is None:
        return expand(total(scores, (COL,)), (ROW, *out))
    column = at_col(expand(values, (ROW,)))
    present = tuple(d for d in out if d in scores.dims or d in column.dims)
    return expand(contract(scores, column, (ROW, *present)), (ROW, *out))


def _present(dims: tuple[str, ...], *nodes: Node) -> tuple[str, ...]:
    return tuple(d for d in dims if any(d in n.dims for n in nodes))


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
        self.forms = {s.name: AffineForms(s, roots) for s in step.states if s.name not in scans}
        self.order = list(postorder(roots))

    def __call__(self, node: Node) -> Node:
        if node not in self.done:
            for n in postorder([node]):
                if n not in self.done and not self._state_valued(n):
                    self.done[n] = self._lift(n)
            if node not in self.done:
                self.done[node] = self._whole_state(node)
        return self.done[node]

    def _of(self, node: Node) -> str | None:
        """The state of which the node is a (decayed, updated) copy, if it is one."""
        for name, forms in self.forms.items():
            if not forms.free(node) and forms.form(node) is not None:
                return name
        return None

    def _state_valued(self, node: Node) -> bool:
        return self._of(node) is not None

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
        for i in sorted(range(len(node.args)), key=lambda i: -len(node.args[i].dims)):
            name = self._of(node.args[i])
            if name is None:
                continue
            state, others = self.state(name), [a for j, a in enumerate(node.args) if j != i]
            form = state.forms.form(node.args[i])
            assert form is not None
            return state.read(form, self(others[0]) if others else number(1), node.dims)
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
