"""Stages -> Chunk: from what happens to one token to what happens to a chunk of them at once.

before: S = d * S + k * v            one token
        o = q @ S
after:  P[t, s] = (q[t] . k[s]) * d[s+1] ... d[t]      for s <= t
        o       = P v + (q * d[1] ... d[t]) S0
        S       = d[1] ... d[C] S0 + (k)^T (v * d[s+1] ... d[C])

Values that read no state are the same with a time axis in front; what reads some, `passes/states` finds.
(Linear attention in chunks: Hua et al. 2022, arXiv 2202.10447;
with decay: Sun et al. 2023, arXiv 2307.08621; Dao and Gu 2024, arXiv 2405.21060.)
"""

from __future__ import annotations

from dataclasses import replace

from mixc.ir.build import contract, expand, make
from mixc.ir.node import ROW, Node, number
from mixc.ir.program import Dim, Program, Result
from mixc.ir.ranges import proving
from mixc.ir.scans import at_edge
from mixc.passes.affine import Affine, AffineForms
from mixc.passes.block import Block, BlockState, Scanned
from mixc.passes.classify import classify, of_complex
from mixc.passes.context import context, has_context
from mixc.passes.detached import detached, in_place
from mixc.passes.planes import Split, is_complex, planes
from mixc.passes.scan import ScanState
from mixc.passes.states import States
from mixc.passes.sums import gather_reads


def chunk(stages: Program, by_rows: bool = False, endless: bool = False) -> Program:
    """The chunk program of a spec whose groups are all "chunk" or "scan".  `by_rows`: matrices that are read as they
    are, nothing summed, are scanned whatever their decay (see `States.rows`).  `endless`: so are those that may be
    given inf, as those that may be given -inf always are.

    Its "out" results have a time axis in front of their dims, its "next" results are what the next
    chunk receives; `state` leaves are what the previous chunk left."""
    if has_context(stages):
        stages = context(stages).program
    if (cut := detached(stages)) is not None:
        values, given = (chunk(classify(replace(p, level="step", groups=())), by_rows, endless)
                         for p in (cut.values, cut.given))
        return in_place(values, given, cut.reads)
    if is_complex(stages):
        real = planes(stages)
        assert real is not None
        stages = classify(replace(real, level="step", groups=()))
    whole = None if stages.origin is None else of_complex(stages.origin)
    if whole is not None:
        stages = whole
    assert all(g.form in ("chunk", "scan") for g in stages.groups), "only for affine states and scans"
    with proving(stages):
        lift = _Lift(stages, by_rows, endless)
        made = lift.program()
        if often := frozenset(names for names, whole in lift.vectors.items() if len(whole) > 1 and any(whole)):
            made = _Lift(stages, by_rows, endless, often).program()
        found = planes(made) if whole is not None else made
    assert found is not None
    return found


def _keeps(form: Affine | None) -> bool:
    """Is there something left of the state? What was only read of it is a value like any other."""
    return form is not None and bool(form.decays)


def _factor_apart(node: Node) -> Node | None:
    """before: q @ (k * v)   [K, V] for every row       after: (q @ k) * v"""
    summed = {d for a in node.args for d in a.dims} - {*node.dims}
    for x, y in (node.args, node.args[::-1]):
        for c, rest in (x.args, x.args[::-1]) if x.op == "mul" else ():
            if not summed & {*c.dims} and {*c.dims} - {*rest.dims} - {*y.dims}:
                inner = contract(rest, y, [d for d in node.dims if d in rest.dims or d in y.dims])
                return expand(inner * c, node.dims)
    return None


class _Lift:
    """Token values to values of all rows; calling it lifts one node."""

    def __init__(self, step: Program, by_rows: bool, endless: bool, valued: frozenset[tuple[str, ...]] = frozenset()):
        """`endless`: see `chunk`.  `valued`: groups of vectors that are formed row by row, once: what reads them reads
        those rows."""
        self.step, self.planes, self.by_rows = step, Split(step), by_rows
        self.done: dict[Node, Node] = {}
        self.vectors: dict[tuple[str, ...], list[bool]] = {}  # by groups of vectors, of each read: is nothing summed?
        self.groups: dict[tuple[str, ...], States] = {}
        scans = {s for g in step.groups if g.form == "scan" for s in g.states}
        self.scans: dict[str, Scanned] = {}
        for g in step.groups:
            if g.form == "scan" and len(g.states) == 1:
                self.scans[g.states[0]] = ScanState(step, step.decl(g.states[0]), self)
            elif g.form == "scan":
                block = Block(step, [step.decl(name) for name in g.states], self)
                self.scans |= {name: BlockState(block, i) for i, name in enumerate(g.states)}
        self.scanned = {step.result("next", name): name for name in scans}
        self.forms = {g.states: AffineForms(step, [step.decl(name) for name in g.states])
                      for g in step.groups if g.form != "scan"}
        self.endless = frozenset(n for n, f in self.forms.items() if f.endless(endless))
        self.valued = valued | self.endless

    def __call__(self, node: Node) -> Node:
        if node not in self.done:
            names = self._of(node)
            own = names is not None and (names not in self.valued or self._is_state(node, names))
            self.done[node] = self._whole_state(node) if own else self._lift(node)
        return self.done[node]

    def _is_state(self, node: Node, names: tuple[str, ...]) -> bool:
        return any(node in (self.step.decl(n).leaf(), self.step.result("next", n)) for n in names)

    def _of(self, node: Node) -> tuple[str, ...] | None:
        """The states of which the node is a (decayed, updated) copy, if it is one.  What reads several groups is a copy
        of the one that is found last: the others feed its writes."""
        for names, forms in reversed(self.forms.items()):
            if not forms.free(node) and set(node.dims) in forms.shapes and _keeps(forms.form(node)) and (
                    set(node.dims) == forms.dims or self._is_state(node, names)):
                return names
        return None

    def group(self, names: tuple[str, ...]) -> States:
        if names not in self.groups:
            self.groups[names] = States(self.step, self, self.forms[names])
        return self.groups[names]

    def _whole_state(self, node: Node) -> Node:
        """A state that is read as it is, nothing summed."""
        names = self._of(node)
        assert names is not None
        group = self.group(names)
        form = group.forms.form(node)
        assert form is not None
        self._count(names, whole=True)
        rows = group.rows(form) or group.read(form, None, node.dims)
        # behind the end the last token comes again and nothing fades: they would grow
        return make("live", rows, fill=0.0) if names in self.valued else rows

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
        if node.op == "sum" and node.args[0].op == "mul":
            a, b = map(self, node.args[0].args)
            both = {*a.dims} & {*b.dims}
            if {*node.attr("over")} <= both and both not in ({*a.dims}, {*b.dims}):  # larger than what it is summed to
                return contract(a, b, [d for d in (ROW, *node.dims) if d in a.dims or d in b.dims])
        if node.op == "contract" and (apart := _factor_apart(node)) is not None:
            return self(apart)
        args = [self(a) for a in node.args]
        if node.op == "contract":
            return contract(args[0], args[1], (*((ROW,) if any(ROW in a.dims for a in args) else ()), *node.dims))
        return node.on(*args)

    def _count(self, names: tuple[str, ...], whole: bool) -> None:
        if len(self.step.decl(names[0]).dims) == 1:
            self.vectors.setdefault(names, []).append(whole)

    def _read(self, node: Node) -> Node | None:
        """A contraction with a state, or a sum over its dims.  Of two states that are multiplied, `z @ S`, it reads the
        larger one: the query is formed for every row."""
        found = []
        for names, forms in reversed(self.forms.items()):  # see `_of`
            r = None if names in self.valued or forms.free(node) else forms.read(node) or forms.read(node, known=True)
            form = None if r is None else forms.form(r.x)
            if r is not None and form is not None and _keeps(form):
                found.append((0 if r.query is None else len(r.query.dims), names, form, r.query))
        if not found:
            return None
        _, names, form, query = min(found, key=lambda x: x[0])
        self._count(names, whole=False)
        return self.group(names).read(form, number(1) if query is None else self(query), node.dims)

    def program(self) -> Program:
        results = []
        for r in self.step.results:
            if r.role == "out":
                dims = next(d.dims for d in self.step.outs if d.name == r.name)
                results.append(Result("out", r.name, expand(self(r.value), (ROW, *dims))))
            else:
                results.append(Result("next", r.name, self._next(r.name)))
        ranks = {new: d for f in self.forms.values() for d, *more in f.ranks.rows for new in more}
        more = [Dim(new, d) for new, d in ranks.items()]
        made = replace(self.step, level="chunk", results=tuple(results), dims=(*self.step.dims, *more))
        # of states with all dims too that is fewer products, but more of each waits at once: kernels spilled
        one_value = any(len(f.shapes) > 1 for f in self.forms.values())
        return made.with_values(gather_reads(made.values())) if one_value else made

    def _next(self, name: str) -> Node:
        if name in self.scans:
            return self.scans[name].next()
        names = next(names for names in self.forms if name in names)
        if names in self.endless and (rows := self.group(names).rows(self.group(names).updates[0])) is not None:
            return at_edge(rows, last=True)
        return self.group(names).next(names.index(name))
