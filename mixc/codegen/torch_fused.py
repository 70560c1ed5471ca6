"""Segments of scans as bodies for `torch.compile`: rows unrolled, no buffers, results returned.

    def ends(...)   what every chunk does to its state: h' = a * h + b   (where chunks are carried first)
    def body(...)   the results, from what every chunk received          (and the next states, where it is one chunk)

Both form again what they share: a compiler of loops keeps it in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixc.codegen.torch_program import Segment
from mixc.codegen.torch_scan_prelude import carry
from mixc.codegen.torch_stages import Level, Stages, affine_updates, levels, origin, stages
from mixc.codegen.torch_values import RESERVED, Dims, Names, Value, safe
from mixc.codegen.torch_writer import Writer, in_order
from mixc.ir.node import ROW, Node, postorder
from mixc.ir.program import Program
from mixc.ir.ranges import proving
from mixc.passes.unroll import NotRows, Rows, row_leaf, unroll

Tensor = torch.Tensor


def fused_segment(program: Program, single: bool, C: int, order: Dims) -> Segment | None:
    """The segment of a prepared program all rows of which are tokens; None where rows are not what it works on.
    `order`: see `Writer`."""
    s = stages(program, frozenset(), False, single)
    updates = [] if single else affine_updates(s)
    if not single and not updates:
        return None
    try:
        with proving(program):
            return _Body(program, s, updates, C, order).write()
    except NotRows:
        return None


class _Body:
    def __init__(self, program: Program, s: Stages, updates: list[tuple[Node, Node]], C: int, order: Dims):
        self.program, self.s, self.updates, self.C, self.order = program, s, updates, C, order
        self.made = Segment(program, carries=bool(updates))
        spec = {safe(d.name) for d in program.decls}
        self.names = Names({*RESERVED, *(safe(d.name) for d in program.dims), *spec, *(f"d{n}" for n in spec)})
        roots = [*(r.value for r in program.results if r.role != "next" or not updates), *(x for p in updates for x in p)]
        self.rows = unroll(list(postorder(roots)), C)

    def write(self) -> Segment:
        made = self.made
        self.known = self._leaves()
        made.carried = [safe(d.name) for d, _, _ in self.s.carried]
        lead = "d" if self.program.reverse else ""
        self.states = [lead + n for n in made.carried]
        texts = []
        if self.updates:
            pairs = [(self.rows[x], d.dims) for p, (d, _, _) in zip(self.updates, self.s.carried, strict=True) for x in p]
            texts += self._function("ends", pairs)
        results = [r for r in self.program.results if r.role != "next"]
        outs = [(self.rows[r.value], self._axes(r.role, r.name)) for r in results]
        made.results = [(r.role, r.name, axes if not isinstance(x, list) else (ROW, *axes))
                        for r, (x, axes) in zip(results, outs, strict=True)]
        if not self.updates:
            outs += [(self.rows[n], d.dims) for d, _, n in self.s.carried]
        texts += self._function("body", outs)
        made.text = "\n".join(["import torch", "import torch.nn.functional as F", "",
                               "from mixc.codegen.torch_prelude import *", "", "", *texts]) + "\n"
        scope: dict[str, Any] = {}
        exec(compile(made.text, f"<mixc {self.program.name} fused>", "exec"), scope)
        made.run = self._run(scope.get("ends"), scope["body"])
        made.per_head = lambda **given: tuple(given[n] for n in made.heads)
        return made

    def _axes(self, role: str, name: str) -> Dims:
        return next(d.dims for d in self.program.decls if d.name == name)

    def _leaves(self) -> dict[Node, Value]:
        made, known = self.made, dict[Node, Value]()
        for n in postorder(self.rows):
            if n.args or n.op in ("number", "size", "const", "index"):
                continue
            name = safe(n.attr("name"))
            if n.op == "param":
                made.heads[name] = n
            elif n.op == "state" or n.attr("name").endswith("'"):
                name = "d" + safe(n.attr("name")[:-1]) if n.op == "cot" else name
                made.received[name] = n
            else:
                name = "d" + name if n.op == "cot" else name
                made.rows[name], made.loads[name] = n, n.dims
                rest = tuple(d for d in n.dims if d != ROW)
                known |= {row_leaf(n, t): Value(f"{name}[:, {t}]", rest) for t in range(self.C)}
            known[n] = Value(name, n.dims if ROW in n.dims else in_order(n.dims, self.order))
        return known

    def _function(self, name: str, roots: list[tuple[Rows, Dims]]) -> list[str]:
        made = self.made
        flat = [x for rows, _ in roots for x in (rows if isinstance(rows, list) else [rows])]
        order = list(postorder(flat))
        level = levels(order, set(made.received.values()), frozenset(), False)
        for n in (n for n in order if level[n] == Level.NUMBER and n.op != "number" and n not in self.known):
            if any(level[x] > Level.NUMBER and n in map(origin, x.args) for x in order) or n in flat:
                number = safe(n.attr("name")) if n.op == "const" else f"n{len(made.numbers) + 1}"
                made.numbers[number] = n
                self.known[n] = Value(number, n.dims, scalar=not n.dims)
        w = Writer(level, self.known, self.names, buffered=False, order=self.order)
        nodes = [n for n in order if n.args and level[n] > Level.NUMBER and n not in self.known]
        w.plan([nodes], flat)
        w.write(nodes)
        texts = []
        for rows, axes in roots:
            if isinstance(rows, list):
                texts.append(f"torch.stack([{', '.join(w.full(x, axes) for x in rows)}], 1)")
            else:
                texts.append(w.full(rows, axes))
        args = [*made.received, *made.rows, *made.heads, *made.numbers]
        sizes = [safe(d.name) for d in self.program.dims]
        return [f"def {name}(*, {', '.join(dict.fromkeys([*args, *sizes, 'dtype', 'device']))}, **_):",
                f"    M = {next(iter(made.received))}.shape[0]", *w.lines, f"    return ({', '.join(texts)},)", "", ""]

    def _run(self, ends: Callable[..., Any] | None, body: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        made, states, reverse = self.made, self.states, self.program.reverse
        turned = {name: [0, *(1 + n.dims.index(d) for d in in_order(n.dims, self.order))]
                  for name, n in (*made.received.items(), *made.heads.items()) if in_order(n.dims, self.order) != n.dims}
        ends_, body_ = (None if f is None else torch.compile(f, fullgraph=True) for f in (ends, body))
        wanted = [*made.received, *made.rows, *made.heads, *made.numbers, *(safe(d.name) for d in self.program.dims),
                  "dtype", "device"]

        def ordered(name: str, x: Tensor) -> Tensor:
            return x.permute(turned[name]).contiguous() if name in turned else x
        compiled: set[tuple[Any, bool]] = set()

        def run(**given: Any) -> tuple[Any, ...]:
            args = {n: given[n] for n in dict.fromkeys(wanted)}
            M, new = given["M"], (given["dtype"], given["M"] == 1) not in compiled
            for n in (*made.received, *made.rows, *made.heads):
                args[n] = x = _at_start(ordered(n, args[n]))
                if new and M > 1 and len(x) == M:
                    torch._dynamo.mark_dynamic(x, 0)
            compiled.add((given["dtype"], M == 1))
            if ends_ is not None:
                found = ends_(**args)
                for n, a, b in zip(states, found[::2], found[1::2], strict=True):
                    carry(given[f"{n}_at"], given[f"{n}_to"], a, b, given[f"{n}_done"], given["steps"], reverse)
                for n in (n for n in turned if n in made.received):  # copies made before chunks received anything
                    args[n].copy_(given[n].permute(turned[n]))
                return tuple(body_(**args))  # type: ignore[misc]
            found = body_(**args)  # type: ignore[misc]
            for n, x in zip(states, found[len(made.results):], strict=True):
                given[f"{n}_to"][0].copy_(x)
            if given["finish"][0] is not None:
                given["finish"][0]()
            return tuple(found[:len(made.results)])
        return run


def _at_start(x: Tensor) -> Tensor:
    """x as a tensor at the start of its memory: graphs differ by whether it lies there.  Scratch keeps it."""
    if not x.storage_offset():
        return x.detach() if x.requires_grad else x
    found: Tensor | None = getattr(x, "mixc_at_start", None)
    if found is None:
        found = torch.from_dlpack(x.detach())
        if hasattr(x, "mixc_scratch"):
            x.mixc_at_start = found  # type: ignore[attr-defined]
    return found
