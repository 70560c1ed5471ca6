"""Segments of scans as bodies for `torch.compile`: rows unrolled, none but these buffers.

    def shared(...)  values of rows that both others need and that are dear to form (`kept1`, ...)
    def ends(...)    what every chunk does to its state: h' = a * h + b   (where chunks are carried first)
    def body(...)    the results, from what every chunk received          (and the next states, where it is one chunk)
    def sums(...)    on torch, not compiled: results that are sums over features of rows that `body` writes, since a
                     compiler of loops forms the rows again for every set of dims that is summed over

Other values are formed again: a compiler of loops keeps them in registers.  Rows are written where they are wanted:
what a graph returns lies in fresh memory, which costs a page fault every 4 KB, and is copied from there.
"""

from __future__ import annotations

from mixc.codegen.lines import defined, names_read
from mixc.codegen.torch_bodies import Bodies, next_state
from mixc.codegen.torch_segment import Segment
from mixc.codegen.torch_stages import Level, Stages, affine_updates, levels, origin, stages
from mixc.codegen.torch_values import Dims, Names, Value, argument, safe, size_of
from mixc.codegen.torch_writer import Writer, in_order
from mixc.ir.node import ROW, Node, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Program, Result
from mixc.ir.ranges import proving
from mixc.passes.unroll import NotRows, row_leaf, unroll

Write = tuple[str, Node, Dims]  # where to, what, its axes there
CHEAP = {"add", "sub", "mul", "neg", "minimum", "maximum", "where", "lt", "le", "eq", "ne", "and", "or", "not", "square",
         "abs", "sign"}  # what costs no more than to read its result
# Inductor gives what it thinks dear, exp and sigmoid, a buffer and a loop of its own; of exp2 it does not think so.
# Of addcmul it multiplies by 1 too.
INLINE = {"exp": "exp_by_two({0})", "sigmoid": "sigmoid_by_two({0})", "addcmul": "{0} + {1} * {2}"}


def fused_segment(program: Program, single: bool, C: int, order: Dims, borrowed: bool) -> Segment | None:
    """The segment of a prepared program all rows of which are tokens; None where rows are not what it works on.
    `order`: see `Writer`; `borrowed`: rows of inputs and results are views of the call's tensors."""
    s = stages(program, frozenset(), False, single)
    updates = [] if single else affine_updates(s)
    if not single and not updates:
        return None
    try:
        with proving(program):
            return _Body(program, s, updates, C, order, borrowed).write()
    except NotRows:
        return None


class _Body:
    def __init__(self, program: Program, s: Stages, updates: list[tuple[Node, Node]], C: int, order: Dims, borrowed: bool):
        self.program, self.s, self.updates, self.C, self.order, self.borrowed = program, s, updates, C, order, borrowed
        self.made = Segment(program, carries=bool(updates))
        self.places: dict[tuple[str, str], str] = {}  # of results (role, name): the argument that is their place
        self.kept: dict[Node, str] = {}
        self.names = Names(program)
        inner = [x for p in updates for x in p] or [n for _, _, n in s.carried]
        results = [r.value for r in program.results if r.role != "next"]
        self.behind, read = _behind(results, inner)
        self.handed = {n: f"row{i + 1}" for i, n in enumerate(read)}
        self.nodes = list(postorder([*results, *inner]))
        self.rows = unroll(list(postorder([*self.handed, *(n for n in results if n not in self.behind), *inner])), C)

    def write(self) -> Segment:
        made = self.made
        self.known = self._leaves()
        made.carried = [safe(d.name) for d, _, _ in self.s.carried]
        lead = "d" if self.program.reverse else ""
        self.states = [lead + n for n in made.carried]
        results, texts = [r for r in self.program.results if r.role != "next"], list[str]()
        if self.updates:
            texts += self._shared([*self.handed, *(r.value for r in results if r.value not in self.behind)])
            texts += self._function("ends", [(self._row(x), d.dims) for pair, (d, _, _) in zip(
                self.updates, self.s.carried, strict=True) for x in pair], [])
        returned, writes = list[tuple[Node, Dims]](), list[Write]()
        for r in (r for r in results if r.value not in self.behind):
            axes, rows = self.program.decl(r.name).dims, self.rows[r.value]
            made.results.append((r.role, r.name, (ROW, *axes) if isinstance(rows, list) else axes))
            if isinstance(rows, list):
                place = self._place(r.role, r.name, axes)
                writes += [(f"{place}[{t}]", x, axes) for t, x in enumerate(rows)]
            else:
                returned.append((rows, axes))
        if not self.updates:
            writes += [(next_state(name), self._row(n), in_order(d.dims, self.order))
                       for name, (d, _, n) in zip(self.states, self.s.carried, strict=True)]
        for n, name in self.handed.items():
            axes = self._axes(n)
            made.scratch[name] = (*map(size_of, axes[:-1]), apart(size_of(axes[-1])))
            writes += [(f"{name}[{t}]", x, axes[1:]) for t, x in enumerate(self.rows[n])]  # type: ignore[arg-type]
        texts += self._function("body", returned, writes)
        texts += self._sums([r for r in results if r.value in self.behind])
        made.text = "\n".join(["import torch", "import torch.nn.functional as F", "",
                               "from mixc.codegen.torch_prelude import *",
                               *["from mixc.codegen.torch_scan_prelude import *"] * bool(self.behind), "", "", *texts]) + "\n"
        scope = defined(made.text, f"mixc {self.program.name} fused")
        turned = {name: [0, *(1 + n.dims.index(d) for d in in_order(n.dims, self.order))]
                  for name, n in (*made.received.items(), *made.heads.items()) if in_order(n.dims, self.order) != n.dims}
        fixed = [*made.numbers, "C", *(safe(d.name) for d in self.program.dims), "dtype", "device"]
        made.run = Bodies(made, self.states, self.program.reverse, turned, self.places, self.handed.values(),
                          self.kept.values(), fixed, scope)
        made.per_head = lambda **given: tuple(given[n] for n in made.heads)
        return made

    def _row(self, n: Node) -> Node:
        rows = self.rows[n]
        assert isinstance(rows, Node)
        return rows

    def _shared(self, results: list[Node]) -> list[str]:
        """Values that `ends` and `body` need, where to write and read them costs less than to form them again."""
        ends, body = postorder(x for p in self.updates for x in p), set(postorder(results))
        both = [n for n in ends if n in body and n.args and isinstance(self.rows[n], list) and n.kind == "real"]
        read = {a for n in body.difference(both) for a in n.args} | set(results)
        widths = [set(n.dims) for n in self.made.rows.values()]
        for n in (n for n in both if n in read and any(set(n.dims) <= w for w in widths)):
            formed = [x for x in postorder([n], self.kept) if x.args and ROW in x.dims and x not in self.kept]
            if all(OPS[x.op].elementwise for x in formed) and any(x.op not in CHEAP for x in formed):
                self.kept[n] = f"kept{len(self.kept) + 1}"
        writes = [(name, n, (ROW, *_features(n))) for n, name in self.kept.items()]
        text = self._function("shared", [], writes) if writes else []
        for n, name in self.kept.items():
            self.made.scratch[name] = tuple(map(size_of, (ROW, *_features(n))))
            self.known |= {x: Value(f"{name}[:, {t}]", _features(n)) for t, x in enumerate(self.rows[n])}  # type: ignore[arg-type]
        return text

    def _sums(self, results: list[Result]) -> list[str]:
        """What `body` handed on stands in scratch, row by row."""
        if not results:
            return []
        self.known |= {n: Value(name, self._axes(n)) for n, name in self.handed.items()}
        returned = list[tuple[Node, Dims]]()
        for r in results:
            axes = ((ROW,) if r.role != "sum" else ()) + self.program.decl(r.name).dims
            self.made.results.append((r.role, r.name, axes))
            returned.append((r.value, axes))
        return self._function("sums", returned, [], compiled=False)

    def _axes(self, n: Node) -> Dims:
        """Of rows that `body` hands on."""
        return (ROW, *in_order(_features(n), self.order))

    def _place(self, role: str, name: str, axes: Dims) -> str:
        """The argument that is the rows of a result, one by one."""
        place = self.places[role, name] = f"to_{'d' * (role != 'out')}{safe(name)}"
        if self.borrowed:
            self.made.direct[place] = (role, name)
        else:
            self.made.scratch[place] = tuple(map(size_of, (ROW, *axes)))
        return place

    def _leaves(self) -> dict[Node, Value]:
        made, known = self.made, dict[Node, Value]()
        for n in self.nodes:
            if n.args or n.op in ("number", "size", "const", "index"):
                continue
            name, of_state = argument(n)
            if n.op == "param":
                made.heads[name] = n
            elif of_state:
                made.received[name] = n
            else:
                made.rows[name] = n
                rest = tuple(d for d in n.dims if d != ROW)
                known |= {row_leaf(n, t): Value(f"{name}[:, {t}]", rest) for t in range(self.C)}
            known[n] = Value(name, n.dims if ROW in n.dims else in_order(n.dims, self.order))
        return known

    def _function(self, name: str, returned: list[tuple[Node, Dims]], writes: list[Write], compiled: bool = True
                  ) -> list[str]:
        made = self.made
        flat = [*(x for _, x, _ in writes), *(x for x, _ in returned)]
        level = levels(list(postorder(flat)), set(made.received.values()), frozenset(), False)
        order = list(postorder(flat, self.known))
        for n in (n for n in order if level[n] == Level.NUMBER and n.op != "number" and n not in self.known):
            if any(level[x] > Level.NUMBER and n in map(origin, x.args) for x in order) or n in flat:
                number = safe(n.attr("name")) if n.op == "const" else f"n{len(made.numbers) + 1}"
                made.numbers[number] = n
                self.known[n] = Value(number, n.dims, scalar=not n.dims)
        w = Writer(level, self.known, self.names, buffered=not compiled, order=self.order,
                   instead=INLINE if compiled else None)
        nodes = [n for n in order if n.args and level[n] > Level.NUMBER and n not in self.known]
        w.plan([nodes], flat)
        for n in nodes:  # what is written is so at once: nothing is kept for long
            w.write([n])
            w.lines += [f"    {place}.copy_({w.full(x, axes)})" for place, x, axes in writes if x is n]
        w.lines += [f"    {place}.copy_({w.full(x, axes)})" for place, x, axes in writes if x not in nodes]
        lines, texts = w.lines, [w.full(x, axes) for x, axes in returned]
        sizes = ["C", *(safe(d.name) for d in self.program.dims)]
        lines = [f"    M = {next(iter(made.received))}.shape[0]", *lines,
                 f"    return ({''.join(f'{x}, ' for x in texts).rstrip()})"]
        used = names_read("\n".join(lines))
        made.scratch |= w.scratch.shapes
        args = [*made.received, *made.rows, *made.heads, *made.numbers, *self.kept.values(), *made.scratch,
                *self.places.values(), *map(next_state, self.states), *sizes]
        return [f"def {name}(*, {', '.join(n for n in dict.fromkeys([*args, 'dtype', 'device']) if n in used)}):",
                *lines, "", ""]


def _behind(results: list[Node], inner: list[Node]) -> tuple[dict[Node, None], dict[Node, None]]:
    """Values of results that are, or are formed of, sums over features of what is scanned, where no scan needs them;
    and what they read of scans, or of what is formed of scans."""
    order = list(postorder(results))
    needed = set(postorder([*inner, *(a for n in order if n.op == "scan" for a in n.args)]))
    scanned, found = set[Node](), dict[Node, None]()
    for n in order:
        if n.op == "scan" or any(a in scanned for a in n.args):
            scanned.add(n)
            if n not in needed and (_sums_features(n) or any(a in found for a in n.args)):
                found |= dict.fromkeys((*(a for a in n.args if n.op == "sum" and _product(a, scanned - needed)), n))
    read = dict.fromkeys(origin(a) for n in found for a in n.args if a not in found and a in scanned)
    return (found, read) if all(ROW in n.dims for n in read) else ({}, {})


def _sums_features(n: Node) -> bool:
    over = {d for a in n.args for d in a.dims if d not in n.dims} if n.op == "contract" else set(n.attr("over", ()))
    return ROW in n.dims and bool(over) and ROW not in over


def _product(n: Node, scanned: set[Node]) -> bool:
    """Does the sum of it do as a product of matrices, so that the wide factor alone is to be handed on?"""
    return n in scanned and n.op == "mul" and any(
        a not in scanned and len(_features(a)) < len(_features(n)) for a in n.args)


def apart(size: str) -> str:
    """The size of a dim in scratch, APART entries behind it."""
    return f"{size}_apart"


def _features(n: Node) -> Dims:
    return tuple(d for d in n.dims if d != ROW)
