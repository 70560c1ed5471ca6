"""A chunk program as a fast torch program: readable Python source, compiled from our own text.

One function runs a *segment*, some consecutive chunks of all sequences at once: what reads no carried
state as batches of products over [M, C, ...] tensors (M = chunks * sequences * heads), then the loop over
the chunks with nothing in it but what the next state needs, then everything else, again in batches.
Scratch is given by the caller and used again by the next segment, so it stays in cache.
"""

from __future__ import annotations

import re
from collections import Counter
from types import ModuleType

from mixc.codegen import torch_prelude, torch_scan_prelude, torch_span, torch_span_prelude
from mixc.codegen.lines import defined, names_read
from mixc.codegen.torch_segment import Segment
from mixc.codegen.torch_stages import Level, Stages, affine_updates, origin, small, stages
from mixc.codegen.torch_values import Dims, Names, Value, argument, safe, size_of
from mixc.codegen.torch_writer import Writer, in_order
from mixc.ir.node import ROW, Node, postorder
from mixc.ir.program import Program
from mixc.ir.ranges import proving


def segment(program: Program, partial: bool, saves: tuple[Node, ...] = (), single: bool = False,
            order: Dims = (), borrowed: bool = False) -> Segment:
    """The function of a chunk program.

    Args:
        partial: rows may be dead, `live` says which. Else every row is a token.
        saves: forward: values to write for the backward; backward: values to read. They are nodes of the
            prepared program (see `prepare`).
        single: every segment is one chunk of all its sequences, so that the function has no loop over chunks.
        order: see `Writer`.
        borrowed: rows are given as views of the call's own tensors, which are never written to, and results are
            formed where the caller wants them (`Segment.direct`).
    """
    writer = _Function(program, partial, saves, single, order, borrowed)
    with proving(program):
        made = writer.write()
    scope = defined(made.text, f"mixc {program.name}")
    made.run = scope["backward" if program.reverse else "forward"]
    for part in ("per_head", "before", "after"):
        setattr(made, part, scope.get(part, getattr(made, part)))
    return made


class _Function:
    def __init__(self, program: Program, partial: bool, saves: tuple[Node, ...], single: bool, order: Dims,
                 borrowed: bool):
        self.order, self.borrowed = order, borrowed
        self.made = Segment(program, partial=partial)
        self.saves = saves
        read = frozenset(saves) if program.reverse else frozenset()
        self.stages: Stages = stages(program, read, partial, single)
        if not program.reverse:  # what the loop forms and only the backward reads
            self.stages.kept += [n for n in saves if n in self.stages.loop and n not in self.stages.kept]
        self.dims = [safe(d.name) for d in program.dims]
        self.names = Names(program)
        self.reverse = program.reverse

    def write(self) -> Segment:
        made, s = self.made, self.stages
        known = self._known()
        early = self._early(known)
        w = Writer(s.level, {**known, **early}, self.names, buffered=True, order=self.order)
        for name in made.rows if not self.borrowed else ():
            w.scratch.adopt(name, known[made.rows[name]].axes)
        loaded = dict(w.scratch.shapes)
        if not self.reverse:
            for i, n in enumerate(self.saves):
                made.saved[f"s{i + 1}"] = n
                w.fixed[n] = f"s{i + 1}"
        for i, n in enumerate(s.kept):
            w.fixed.setdefault(n, f"k{i + 1}")
        if self.borrowed:
            self._form_in_place(w)
        w.plan([s.first, s.loop, s.rest], s.roots())
        self._count_loop(w)
        w.write(s.first)
        self._loop(w)
        w.write(s.rest)
        self._leave(w)
        texts = self._results(w, made.results, {*s.late, *s.early}, inside=True)
        handed = self._handed_on(w)
        made.scratch = {n: shape for n, shape in w.scratch.shapes.items() if n not in loaded}
        for n in s.kept:
            if w.fixed[n] not in made.saved:
                made.scratch[w.fixed[n]] = tuple(map(size_of, n.dims))
        body = [*self._head(w.lines), *w.lines, f"    return {_tuple([*texts, *handed])}"]
        late = self._late({**known, **early})
        made.text = "\n".join([*self._imports(), *self._per_head(), *self.before, *body, *late]) + "\n"
        return made

    def _form_in_place(self, w: Writer) -> None:
        """Results of rows that are values of their own are written where the caller wants them."""
        inside, s = {*self.stages.first, *self.stages.rest}, self.stages
        if any(n.op == "contract" for n in s.level):  # axes may then lie in another order
            return
        for r in self.made.program.results:
            if r.role in ("out", "grad") and r.value in inside and r.value not in w.fixed \
                    and r.value.dims == self._declared(r.role, r.name):
                self.made.direct[f"to_{r.name}"] = (r.role, r.name)
                for n in self._chain(r.value):
                    w.fixed.setdefault(n, f"to_{r.name}")

    def _chain(self, n: Node) -> list[Node]:
        """A value, and the operands that it may be formed over: each is read by the next alone."""
        inside = {*self.stages.first, *self.stages.rest}
        read = Counter(origin(a) for x in inside for a in x.args) + Counter(map(origin, self.stages.roots()))
        found = [n]
        while found[-1].op in ("add", "sub", "mul"):
            more = [a for a in found[-1].args if a in inside and read[a] == 1 and a.dims == n.dims and a.kind == "real"
                    and a.op in ("add", "sub", "mul")]
            if not more:
                break
            found.append(more[0])
        return found

    # ------------------------------------------------------------ numbers a row, for many segments at once
    def _early(self, known: dict[Node, Value]) -> dict[Node, Value]:
        made, s = self.made, self.stages
        inside = {origin(a) for n in (*s.first, *s.loop, *s.rest, *s.late) for a in n.args}
        inside |= {origin(r.value) for r in made.program.results}
        out = [n for n in s.early if n in inside]
        w = Writer(s.level, known, self.names, buffered=False)
        w.plan([s.early], out)
        w.write(s.early)
        values = {n: w.value(n) for n in out}
        made.early = [v.text for v in values.values()]
        self.before = self._part("before", w.lines, made.early, [*made.small]) if s.early else []
        return values

    def _handed_on(self, w: Writer) -> list[str]:
        """Code for what a segment hands to `after`: copies of what lies where the next segment writes its own."""
        texts, self.exported = [], dict[Node, Value]()
        for n in self.stages.exported:
            v = w.value(n)
            name = self.names.fresh(n) if n in self.stages.kept else v.text
            texts.append(f"{v.text}.clone()" if n in self.stages.kept else name)
            self.exported[n] = Value(name, v.axes)
        self.made.exported = [v.text for v in self.exported.values()]
        return texts

    def _late(self, known: dict[Node, Value]) -> list[str]:
        made, s = self.made, self.stages
        known = known | self.exported
        w = Writer(s.level, known, self.names, buffered=False)
        once = {*s.late, *s.early}
        w.plan([s.late], [r.value for r in made.program.results if origin(r.value) in once])
        w.write(s.late)
        texts = self._results(w, made.late, once, inside=False)
        args = [*made.small, *made.early, *made.exported]
        return ["", "", *self._part("after", w.lines, texts, args)[:-2]] if texts else []

    def _part(self, name: str, lines: list[str], texts: list[str], args: list[str]) -> list[str]:
        live = ["live"] * self.made.partial
        args = ["M", *args, *self.made.numbers, *self.made.heads, *live, "C", *_levels(lines), *self.dims, "dtype", "device",
                "**_"]
        when = {"before": "Numbers a row, for many segments before them", "after": "and after them"}[name]
        return [f"def {name}(*, {', '.join(dict.fromkeys(args))}):", f'    """{when}: [M, C]."""', *lines,
                f"    return {_tuple(texts)}", "", ""]

    # ------------------------------------------------------------ what exists from the start
    def _known(self) -> dict[Node, Value]:
        made, s = self.made, self.stages
        known: dict[Node, Value] = {}
        for i, n in enumerate(s.numbers):
            name = safe(n.attr("name")) if n.op == "const" else f"n{i + 1}"
            made.numbers[name] = n
            known[n] = Value(name, n.dims, scalar=not n.dims)
        for i, n in enumerate(s.heads):
            name = safe(n.attr("name")) if n.op == "param" else f"h{i + 1}"
            made.heads[name] = n
            known[n] = Value(name, in_order(n.dims, self.order))
        made.carried = [safe(d.name) for d, _, _ in s.carried]
        inside = {origin(a) for n in (*s.first, *s.loop, *s.rest) for a in n.args} | set(map(origin, s.roots()))
        for n in postorder(made.program.values(), self.saves if self.reverse else ()):
            if n in known or n.args or n.op in ("number", "size", "const", "index", "param"):
                continue
            name, of_state = argument(n)
            (made.received if of_state else made.small if small(n) else made.rows)[name] = n
            known[n] = Value(name, n.dims, name if name in made.rows and not self.borrowed else None)
        self.small_inside = [name for name, n in made.small.items() if n in inside]
        if self.reverse:
            for i, n in enumerate(self.saves):
                made.saved[f"s{i + 1}"] = n
                known[n] = Value(f"s{i + 1}", n.dims)
        return known

    # ------------------------------------------------------------ the loop over chunks
    def _count_loop(self, w: Writer) -> None:
        """What the loop reads stays until the loop is over."""
        self.loop_reads = list(dict.fromkeys(
            a for n in self.stages.loop if n not in w.absorbed for a in w.operands(n)
            if self.stages.level[a] in (Level.HEAD, Level.SEGMENT)))
        if self.stages.single:
            return
        nexts = [origin(n) for _, _, n in self.stages.carried]
        self.loop_reads += [n for n in dict.fromkeys(nexts) if self.stages.level[n] in (Level.HEAD, Level.SEGMENT)
                            and n not in self.loop_reads]
        w.uses.update(self.loop_reads)
        w.masks.difference_update(self.loop_reads)  # the loop chooses by conditions that are bools

    def _loop(self, w: Writer) -> None:
        s = self.stages
        if not s.carried or s.single:
            return
        if updates := affine_updates(s):
            self.made.carries = True
            for (a, b), (d, _, _), name in zip(updates, s.carried, self._leaf_names(), strict=True):
                factor = w.full(a, d.dims) if s.level[a] == Level.NUMBER else w.value(a).over(d.dims)
                w.lines.append(f"    carry({name}_at, {name}_to, {factor}, {w.full(b, d.dims)}, {name}_done, "
                               f"steps, reverse={self.reverse})")
            w.release(self.loop_reads)
            return
        inner = Writer(s.level, w.values, self.names, buffered=False)
        inner.absorbed, inner.uses, inner.indent = w.absorbed, w.uses.copy(), "        "
        loops, sources = ["finish"], ["finish"]
        for (d, leaf, _), name in zip(s.carried, self._leaf_names(), strict=True):
            inner.values[leaf] = Value(f"{name}_now", d.dims)
            loops += [f"{name}_now", f"{name}_next"]
            sources += [f"{name}_at", f"{name}_to"]
        for n in self.loop_reads:
            v = w.values[n]
            inner.values[n] = Value(f"{v.text}_j", v.axes)
            loops.append(f"{v.text}_j")
            sources.append(self._split(v.text))
        for n in s.kept:
            inner.fixed[n] = f"{w.fixed[n]}_j"
            loops.append(inner.fixed[n])
            sources.append(self._split(w.fixed[n]))
        self._next_values(inner)
        if any(re.search(r"\blive\b", line) for line in inner.lines):
            inner.lines = [re.sub(r"\blive\b", "live_j", line) for line in inner.lines]
            loops.append("live_j")
            sources.append(self._split("live"))
        self._align_once(inner, loops, sources)
        here = f"len({self._leaf_names()[0]}_now)"  # M counts the rows of all chunks
        inner.lines = [re.sub(r"\bM\b", here, line) for line in inner.lines]
        w.lines.append(f"    for {', '.join(loops)} in zip(")
        w.lines += [f"            {x}," for x in sources] + ["            strict=True):"]
        w.lines += inner.lines
        w.lines += ["        if finish is not None:", "            finish()"]
        for n in s.kept:  # buffers hold numbers, conditions too
            w.values[n] = Value(w.fixed[n] if n.kind != "bool" else f"({w.fixed[n]} != 0)", n.dims)
        w.absorbed = inner.absorbed
        w.release(self.loop_reads)

    def _leave(self, w: Writer) -> None:
        """Without a loop: what the chunk leaves goes to its place."""
        s = self.stages
        if not s.single or not s.carried:
            return
        for (d, _, n), name in zip(s.carried, self._leaf_names(), strict=True):
            v = w.value(n)
            text = v.text if v.scalar else v.over(d.dims)
            w.lines.append(f"    {name}_to[0].{'fill_' if v.scalar else 'copy_'}({text})")
        w.lines += ["    if finish[0] is not None:", "        finish[0]()"]

    def _align_once(self, inner: Writer, loops: list[str], sources: list[str]) -> None:
        """A view that every round would make of its slice is made before the slicing: `c[:, None].split(...)`."""
        body = "\n".join(inner.lines)
        for i, name in enumerate(loops):
            views = set(re.findall(rf"\b{name}\b((?:\[[^\]]*\])?)", body))
            if len(views) == 1 and (view := views.pop()):
                body = body.replace(name + view, name)
                sources[i] = self._split(name.removesuffix("_j") + view)
        inner.lines = body.split("\n")

    def _split(self, text: str) -> str:
        return f"reversed({text}.split(steps))" if self.reverse else f"{text}.split(steps)"

    def _leaf_names(self) -> list[str]:
        return [("d" if self.reverse else "") + safe(d.name) for d, _, _ in self.stages.carried]

    def _next_values(self, inner: Writer) -> None:
        """The loop's body; each next state goes straight to its place where one call forms it."""
        places = {n: f"{name}_next" for (_, _, n), name in zip(self.stages.carried, self._leaf_names(), strict=True)}
        for n in self.stages.loop:
            if n in inner.absorbed or n.op in ("rename", "expand", "stop_gradient"):
                continue
            place = places.get(n)
            inner.write([n])
            if place and n not in inner.fixed and _takes_out(inner.lines[-1]) and inner.values[n].axes == n.dims:
                inner.lines[-1] = inner.lines[-1][:-1] + f", out={place})"
                inner.values[n] = Value(inner.values[n].text, n.dims, place)
        for (d, _, n), name in zip(self.stages.carried, self._leaf_names(), strict=True):
            v = inner.value(n)
            if v.scratch != f"{name}_next":
                text = v.text if v.scalar else v.over(d.dims)
                inner.lines.append(f"{inner.indent}{name}_next.{'fill_' if v.scalar else 'copy_'}({text})")

    # ------------------------------------------------------------ around the body
    def _results(self, w: Writer, to: list[tuple[str, str, Dims]], once: set[Node], inside: bool) -> list[str]:
        """Code for the results formed in a segment, or else (`inside` False) by `before` and `after`."""
        texts = []
        for r in self.made.program.results:
            if r.role == "next" or (origin(r.value) in once) == inside:
                continue
            v = w.value(r.value)
            want = tuple(d for d in self._declared(r.role, r.name) if d in v.axes)
            to.append((r.role, r.name, want))
            texts.append(w.number(v.text) + "[None]" if v.scalar else v.over(want))
        return texts

    def _declared(self, role: str, name: str) -> Dims:
        dims = next(d.dims for d in self.made.program.decls if d.name == name)
        return dims if role == "sum" else (ROW, *dims)

    def _head(self, body: list[str]) -> list[str]:
        made = self.made
        name = "backward" if self.reverse else "forward"
        places = ("at", "to", "done") if made.carries else ("at", "to")
        args = ["M", "steps", *["finish"] * (not made.carries), *(f"{n}_{x}" for n in self._leaf_names() for x in places),
                *made.received, *made.rows, *self.small_inside, *made.early, *made.numbers, *made.heads, *made.saved,
                *made.direct]
        args += ["live"] if made.partial else []
        args += [*made.scratch, "C", *_levels(body), *self.dims, "dtype", "device", "**_"]
        lines = [f"def {name}(*, {', '.join(dict.fromkeys(args))}):",
                 f'    """{made.program.name}: {name} of a segment of chunks{", some rows of which are no tokens" * made.partial}.',
                 ""]
        lines += [f"    {name}: [M, {', '.join(_sizes(n.dims))}]" for name, n in made.rows.items()]
        lines += [f"    {n}: [M, {', '.join(_sizes(x.dims))}], what each chunk receives" for n, x in made.received.items()]
        return [*lines, '    """']

    def _imports(self) -> list[str]:
        return ["import torch", "import torch.nn.functional as F", "",
                *(f"from {m.__name__} import *" for m in self._preludes()), "", ""]

    def _preludes(self) -> list[ModuleType]:
        scans = self.made.carries or any(
            n.op in ("scan", "scan_end", "scan_block", "previous", "exp") for n in self.stages.level)
        spans = any(n.op in torch_span.OPS for n in self.stages.level)
        return [torch_prelude, *[torch_scan_prelude] * scans, *[torch_span_prelude] * spans]

    def _per_head(self) -> list[str]:
        """Values of params alone, once per call: [H, ...]."""
        made, s = self.made, self.stages
        if not made.heads:
            return []
        params = {safe(d.name): d.leaf() for d in made.program.params}
        known = {n: Value(name, n.dims) for name, n in params.items()}
        known |= {n: Value(name, n.dims, scalar=not n.dims) for name, n in made.numbers.items()}
        nodes = [n for n in postorder(made.heads.values()) if s.level[n] == Level.HEAD and n.args]
        w = Writer(s.level, known, self.names, buffered=False)
        w.plan([nodes], made.heads.values())
        w.write(nodes)
        args = ["M", *params, *made.numbers, "C", "levels", *self.dims, "dtype", "device", "**_"]
        outs = [w.value(n) for n in made.heads.values()]
        texts = [v.over(in_order(n.dims, self.order)) if set(v.axes) == set(n.dims) else w.full(n, in_order(n.dims, self.order))
                 for v, n in zip(outs, made.heads.values(), strict=True)]
        return [f"def per_head(*, {', '.join(dict.fromkeys(args))}):", '    """Values of params alone: [M, ...], M heads."""',
                *w.lines, f"    return {_tuple(texts)}", "", ""]


def _tuple(texts: list[str]) -> str:
    return f"({', '.join(texts)}{',' * (len(texts) == 1)})"


def _levels(lines: list[str]) -> list[str]:
    """The number of halvings of a chunk, where it is asked for: of decays that only the loop over chunks knows."""
    return ["levels"] * ("levels" in names_read("\n".join(lines)))


def _sizes(dims: Dims) -> list[str]:
    return list(map(size_of, dims))


def _takes_out(line: str) -> bool:
    """Is the line one call of a torch function that has an `out`?"""
    code = line.split(" = ", 1)[-1]
    return any(code.startswith(f"torch.{f}(") for f in ("addcmul", "baddbmm", "bmm", "mul", "add", "sub")) \
        and code.endswith(")") and "out=" not in code
