"""Stages -> parts: programs that run one after another, where one loop need not hold all states.

before: S = exp(g) * S + k * v;  h = tanh(R @ h[W] + q @ S)
after:  1. S = exp(g) * S + k * v, its read `S_read = q @ S` an out;  2. h = tanh(R @ h[W] + S_read), `S_read` an in

States that are parallel over time and those that are not stand in parts of their own, in the order of the
condensation.  What a part reads of an earlier one's states is handed on, a row a token: at most a vector, else a matrix
would be stored for every token, and the states stay in one loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import replace

from mixc.ir.launch import sums_over
from mixc.ir.node import Node, depends, first_below, number, place, postorder, substitute
from mixc.ir.program import Decl, Program, Range, Result, free, once_a_program
from mixc.ir.ranges import bounds, proving
from mixc.passes.context import norm_ranges

WIDEST = 1  # dims of what is handed on
FORMED = 3  # rows of which one is formed, where that is worth a program of its own


class Whole(Exception):
    """`part` needs all of a `state` of an earlier one, a matrix of every token; `states`: those that are parallel over
    time by themselves, and no longer where both stand in one loop."""

    def __init__(self, state: str, part: int, states: frozenset[str]):
        self.state, self.part, self.states = state, part, states


def divided(step: Program, order: list[tuple[str, ...]], parallel: frozenset[str]
            ) -> tuple[list[Program], frozenset[str]]:
    """The parts, and which of the states `parallel` can be so; `order`: the groups of states as they are found.

    A state waits for a later part that needs all of it, as for the rows that it is read with, if that part does not
    wait for the state in turn."""
    after: dict[str, int] = {}
    with proving(step):
        while True:
            part = _in_turn(step, order, parallel, after)
            try:
                return _Parts(step, order, parallel, part).found(), parallel
            except Whole as whole:
                after = {**after, whole.state: whole.part}
                if max(_in_turn(step, order, parallel, after).values()) > 2 * len(order):
                    after, parallel = {}, parallel - whole.states


def _in_turn(step: Program, order: list[tuple[str, ...]], parallel: frozenset[str], after: dict[str, int]
             ) -> dict[str, int]:
    """The part of every state, as early as it can be: even parts are parallel, odd ones are not; `after`: the first
    part that a state may stand in."""
    leaves, part = {d.leaf(): d.name for d in step.states}, dict[str, int]()
    for names in order:
        below = postorder([step.result("next", n) for n in names])
        first = max([*(part.get(leaves[n], 0) for n in below if n in leaves), *(after.get(n, 0) for n in names)],
                    default=0)
        part |= dict.fromkeys(names, first + (first % 2 == (names[0] in parallel)))
    return part


@once_a_program
def in_two(step: Program) -> tuple[tuple[Program, Program], ...]:
    """The ways in which states that are all parallel over time may be held by two programs, one after the other.

    Of each group of states that need each other one program has all."""
    order = [g.states for g in step.groups]
    found = []
    with proving(step):
        for n in range(1, len(order)):
            part = {s: 2 * (i >= n) for i, names in enumerate(order) for s in names}
            try:
                first, second = _Parts(step, order, frozenset(part), part).found()
            except Whole:
                continue
            found.append((first, second))
    return tuple(found)


@once_a_program
def in_front(step: Program) -> tuple[Program, Program] | None:
    """What is formed of the inputs alone, row by row, and then the states: keys that are a sum over a window, or are
    divided by their norm, are rows as any others. None: nothing is formed that needs more than the entry itself."""
    values = step.values()
    stateful = depends(values, [d.leaf() for d in step.states])
    rows = _formed_rows(values, stateful)
    if not rows or not step.states:
        return None
    with proving(step):
        parts = _Parts(step, [], frozenset(), dict.fromkeys((s.name for s in step.states), 2))
        behind = stateful | depends(values, rows)
        parts.level = {n: 0 if n in rows else 2 for n in postorder(values) if n in behind}
        first, second = parts.found()
    return first, second


def _formed_rows(values: list[Node], stateful: set[Node]) -> list[Node]:
    """The rows that are handed on: of what reads no state, up to where nothing is added but factors."""
    order = list(postorder(values))
    reads = depends(order, [n for n in order if n.op in ("in", "lag", "window")])
    below: dict[Node, frozenset[Node]] = {}  # what needs more than an entry, and which rows it is formed of
    for n in order:
        own = {n} if n in reads and ((n.op in ("in", "lag", "window") and n.dims) or _sums(n)) else set()
        below[n] = frozenset(own).union(*(below[a] for a in n.args))

    def worth(n: Node) -> bool:
        if n in stateful or n not in reads or not n.dims or not _narrow(n) or n.op in ("in", "lag", "window"):
            return False
        inner = max((below[a] for a in n.args if a.dims), key=len, default=frozenset())
        if inner == below[n]:  # it adds no more than a factor
            return False
        return any(_sums(x) for x in below[n]) or len(below[n]) >= FORMED
    return [*dict.fromkeys(first_below(values, worth))]


def _sums(n: Node) -> bool:
    """Does an entry of it need more than one of what it is formed of?"""
    return n.op not in ("pick", "rename") and any(sums_over(n, d) for a in n.args for d in a.dims)


class _Parts:
    """`part`: of every state; the states of an odd one are not `parallel`."""

    def __init__(self, step: Program, order: list[tuple[str, ...]], parallel: frozenset[str], part: dict[str, int]):
        self.step, self.order, self.parallel, self.part = step, order, parallel, part
        self.leaves = {d.leaf(): d.name for d in step.states}
        self.level: dict[Node, int] = {}  # of what reads a state: the part that can form it
        for n in postorder(step.values()):
            found = [self.level[a] for a in n.args if a in self.level]
            if found or n in self.leaves:
                self.level[n] = max(found) if found else self.part[self.leaves[n]]
        # what reads a size is formed where its dims are
        sizes = depends(self.level, [n for n in postorder(self.level) if n.op in ("size", "const")])
        self.sized = {n for n in self.level if any(a in sizes and a not in self.level for a in n.args)}
        self.taken = step.names

    def found(self) -> list[Program]:
        used = sorted({*self.part.values(), *self.level.values()})
        results: dict[int, list[Result]] = {p: [] for p in used}
        for r in self.step.results:
            results[self.part[r.name] if r.role == "next" else self.level.get(r.value, used[0])].append(r)
        handed: dict[Node, Decl] = {}
        given: dict[int, dict[Node, Decl]] = {}
        for p in reversed(used):
            nodes = self._given([r.value for r in results[p]], p, handed)
            for n in nodes:
                if n not in handed:
                    handed[n] = self._decl(n)
                    results[self.level[n]].append(Result("out", handed[n].name, n))
            given[p] = {n: handed[n] for n in nodes}
        rest = {d.name for d in (*self.step.ins, *self.step.params)}
        made = []
        for i, p in enumerate(used):
            leaves = {n: d.leaf() for n, d in given[p].items()}
            for n, leaf in leaves.items():
                if n.span is not None:
                    place(leaf, n.span)  # messages quote what it holds
            values = substitute([r.value for r in results[p]], leaves)
            named = [replace(r, value=v) for r, v in zip(results[p], values, strict=True)]
            made.append(self._program(i + 1, named, list(given[p].values()), rest, i == len(used) - 1))
        return made

    # ------------------------------------------------------------ what is handed on
    def _given(self, roots: list[Node], part: int, handed: Container[Node]) -> list[Node]:
        """What a part reads of earlier ones; `handed`: to later parts, and so at hand."""
        found: list[Node] = []
        for _ in range(2):  # then without what can be formed of the others
            found = first_below(roots, self._hands(part, handed, found))
        whole = first_below(roots, lambda n: n in self.leaves and self.part[self.leaves[n]] < part, found)
        if whole:
            state = self.leaves[whole[0]]
            raise Whole(state, part, self._parallel_of(state, roots))
        return found

    def _hands(self, part: int, handed: Container[Node], found: Container[Node]) -> Callable[[Node], bool]:
        """Is this value handed on?  A loop is given as much of its work as can be done before it.  Others get what
        earlier parts form for their states anyway, else the first vectors on the way: no decay, but its exponent."""
        loop = part % 2 == 1
        formed = set(postorder([self.step.result("next", s) for s, p in self.part.items() if p < part and not loop]))
        enough: dict[Node, bool] = {}  # are there other values that it can be formed of?
        for n in self.level:
            below = [a for a in n.args if a in self.level]
            enough[n] = bool(below) and n not in self.sized and all(
                enough[a] or a in handed or a in found or (_narrow(a) and not loop) for a in below)
        return lambda n: self.level.get(n, part) < part and _narrow(n) and (
            n in formed or n in handed or not enough[n])

    def _parallel_of(self, state: str, roots: list[Node]) -> frozenset[str]:
        """The group of a state that is handed on whole, or else those that read it."""
        some = {state} if state in self.parallel else {s for s in self.part if self.step.result("next", s) in roots}
        return frozenset(s for g in self.order if some & set(g) for s in g) & self.parallel or self.parallel

    def _decl(self, n: Node) -> Decl:
        order = list(postorder([n]))
        name = next((f"{self.leaves[x]}_read" for x in order if x in self.leaves), None) or next(
            f"{x.attr('name')}_formed" for x in order if x.op == "in")
        lies = bounds(n)
        low, high = (None if math.isinf(x) else number(x) for x in (lies.low, lies.high))
        known = (Range(low=low, high=high),) if low or high else ()
        known = (*known, *(() if n.kind == "complex" else norm_ranges(n)))
        return Decl("in", free(name, self.taken), n.dims, n.kind, known, span=n.span, exact=True)

    # ------------------------------------------------------------ one part
    def _program(self, place: int, results: list[Result], given: list[Decl], rest: set[str], last: bool) -> Program:
        """`rest`: ins and params that no part has read yet; the last one gets them."""
        step, mine = self.step, {r.name for r in results}
        states = [d for d in step.states if d.name in mine]
        order = list(postorder([*(r.value for r in results), *(d.init for d in states if d.init is not None)]))
        consts = {n.attr("name") for n in order if n.op == "const"}
        for c in reversed(step.consts):  # one may read those before it
            if c.name in consts and c.init is not None:
                inner = list(postorder([c.init]))
                order += inner
                consts |= {n.attr("name") for n in inner if n.op == "const"}
        read = consts | {n.attr("name") for n in order if n.op in ("in", "param")}
        rest -= read
        read |= rest if last else set()
        outs = [d for d in step.outs if d.name in mine]
        outs += [Decl("out", r.name, r.value.dims, span=r.value.span, exact=True) for r in results
                 if r.role == "out" and r.name not in {d.name for d in outs}]
        dims = {d for x in (*states, *outs) for d in x.dims} | {d for n in order for d in n.dims}
        for d in (*step.ins, *step.params):  # how large a dim is some tensor must tell, be it read or not
            if {*d.dims} & dims - step.told([*given, *(x for x in (*step.ins, *step.params) if x.name in read)]):
                read.add(d.name)
        ins, params, known = ([d for d in of if d.name in read] for of in (step.ins, step.params, step.consts))
        ins = ins or ([] if given else list(step.ins[:1]))  # whose tokens are counted
        return step.part(f"{step.name}_{place}", (*ins, *given, *params, *known, *states, *outs), results, order)


def _narrow(n: Node) -> bool:
    return len(n.dims) <= WIDEST and n.kind != "bool"
