"""Syntax to Step: the body is walked once from top to bottom, checked, and built as a DAG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from mixc.errors import Diagnostic, SpecError
from mixc.frontend.declare import claim, declare, declared_dims, fit, header
from mixc.frontend.expressions import value
from mixc.frontend.functions import as_number
from mixc.frontend.names import nearest
from mixc.frontend.scope import Binding, Scope, shown
from mixc.frontend.syntax import (
    Assign,
    Binary,
    Call,
    Declare,
    For,
    MixerSyntax,
    Statement,
    expressions,
    spelled,
)
from mixc.ir.node import Node, make, number, postorder, reading
from mixc.ir.program import Decl, Program, Result

MAX_STEPS = 20_000  # lines after unrolling


def elaborate(mixer: MixerSyntax, sizes: Mapping[str, int] | None = None,
              consts: Mapping[str, float] | None = None) -> Program:
    """The step of one token, checked: a program of level "step".

    Args:
        sizes: sizes of dims, needed for those in `loop_dims`; one that is missing is taken as 2,
            enough to check and to classify.
        consts: values of the consts in `structural_consts`; their defaults where missing.
    Raises:
        SpecError: everything that is wrong (MX2xx), in the order of the text."""
    return _elaborated(mixer, sizes or {}, consts or {})[0]


def loop_dims(mixer: MixerSyntax) -> set[str]:
    """The dims whose sizes the step depends on: of loops, windows, and in exponents, lags or bounds."""
    return set(_needs(mixer)[0])


def unrolled_dims(mixer: MixerSyntax) -> set[str]:
    """Those of them that are more than windows."""
    return set(_needs(mixer)[2])


def structural_consts(mixer: MixerSyntax) -> set[str]:
    """The consts whose values the step depends on: integer exponents, lag distances, bounds of ranges."""
    return set(_needs(mixer)[1])


@lru_cache(maxsize=256)
def _needs(mixer: MixerSyntax) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    scope = _elaborated(mixer, {}, {})[1]
    return frozenset(scope.needed_sizes), frozenset(scope.structural), frozenset(scope.unrolled)


def _elaborated(mixer: MixerSyntax, sizes: Mapping[str, int], consts: Mapping[str, float]) -> tuple[Program, Scope]:
    marking = any(isinstance(e, Call) and e.fn.name == "grad" for e in expressions(mixer.body))
    complex_states: frozenset[str] = frozenset()
    while True:  # a state is complex when anything assigned to it is: at most once more a state
        walk = _Walk(Scope(mixer, sizes, consts, complex_states, marking))
        try:
            with reading() as said:
                program = walk.run()
        except RecursionError:
            raise SpecError(Diagnostic("MX226", f"an expression of {mixer.name} is nested too deeply", mixer.span,
                                       "give parts of it names")) from None
        errors = [d for d in walk.scope.found if d.level == "error"]
        if errors:
            raise SpecError(sorted(errors, key=lambda d: (d.span.line, d.span.column) if d.span else (0, 0)))
        if walk.complex_states <= complex_states:
            spans = tuple((n, n.span) for n in postorder(program.values()) if n in said and n.span is not None)
            return replace(program, spans=spans), walk.scope
        complex_states |= walk.complex_states


class _Walk:
    """One pass over the lines of a mixer."""

    def __init__(self, scope: Scope):
        self.scope, self.outs = scope, dict[str, Node]()
        self.complex_states: set[str] = set(scope.complex_states)
        self.computing = False  # has a line computed already?
        self.steps = 0

    def run(self) -> Program:
        scope, mixer = self.scope, self.scope.mixer
        scope.later = _assigned(mixer.body)
        header(scope)
        self.lines(mixer.body)
        self.finish()
        states = [d for d in scope.decls.values() if d.role == "state"]
        ends = [scope.names[d.name].node or d.leaf() for d in states]
        called = [(b.name, b.node) for b in scope.names.values() if b.role == "local" and b.node is not None]
        values = scope.unmarked([*self.outs.values(), *ends, *(x for _, x in called)])
        locals_ = tuple((name, x) for (name, _), x in zip(called, values[len(self.outs) + len(ends):], strict=True))
        names = [*(("out", o) for o in self.outs), *(("next", d.name) for d in states)]
        results = tuple(Result(role, n, v) for (role, n), v in zip(names, values, strict=False))
        notes = (*mixer.notes, *(d for d in scope.found if d.level == "note"))
        return Program("step", mixer.name, tuple(scope.dims.values()), tuple(scope.decls.values()), results,
                       doc=mixer.doc, notes=notes, source=mixer.source, locals=locals_)

    def lines(self, body: tuple[Statement, ...]) -> None:
        for s in body:
            self.steps += 1
            if self.steps > MAX_STEPS:
                break
            if isinstance(s, Assign):
                self.assign(s)
            elif isinstance(s, For):
                self.loop(s)
            elif s.role == "out":
                self.out(s)
            else:
                if self.computing:
                    self.scope.error("MX221", f"`{s.role} {s.name.name}` stands below a line that computes", s.span,
                                     "declarations come first")
                declare(self.scope, s)
                continue
            self.computing = True

    # ------------------------------------------------------------ one line
    def assign(self, s: Assign) -> None:
        scope, name = self.scope, s.target.name
        e = s.value if s.op is None else Binary(s.op, s.target, s.value, s.span)
        x = value(scope, e)
        b = scope.names.get(name)
        if b is not None and b.role == "state":
            self.assign_state(s, b, x)
        elif b is None or b.role == "unknown":
            if claim(scope, s.target):
                scope.bind(Binding("local", name, s.target.span, x))
        elif b.role in ("in", "param", "const"):
            new = scope.fresh(name)
            why = "learned" if b.role == "param" else "what came in" if b.role == "in" else "one number for all tokens"
            scope.error("MX205", f"`{name}` is {'an input' if b.role == 'in' else 'a ' + b.role} and is not assigned",
                        s.target.span, f"it stays {why}: write `{new} = {spelled(s.value)}`, and read `{new}` below; "
                        f"what is carried to the next token is a `state`")
        elif b.role == "local":
            scope.error("MX204", f"`{name}` is assigned a second time; the first is on line {b.span.line}",
                        s.target.span,
                        f"only states change: call the new value `{scope.fresh(name)}`, or declare `state {name}`")
        elif b.role in ("dim", "loop"):
            scope.error("MX205", f"`{name}` is a {'dim' if b.role == 'dim' else 'loop index'} and is not assigned",
                        s.target.span, f"call it `{scope.fresh(name)}`")
        else:
            scope.error("MX204", f"`{name}` is an out, given on line {b.span.line}", s.target.span,
                        f"outs are given once, `out {name}{shown(b.dims, '')} = ...`")

    def assign_state(self, s: Assign, b: Binding, x: Node | None) -> None:
        scope = self.scope
        if x is not None and b.dims is not None:
            x = fit(scope, as_number(x) or x, b.dims, f"state {b.name}", s.value.span if s.op is None else s.span)
        if x is None:
            b.node = None if b.dims is None else b.node
            b.versions.append((b.node or number(0.0), s.span))
            return
        if b.dims is None:
            return
        if x.kind == "complex":
            self.complex_states.add(b.name)
        elif b.name in scope.complex_states:
            x = make("add", x, number(0j))
        scope.assign_state(b, x, s.span)

    def loop(self, s: For) -> None:
        scope = self.scope
        dims = scope.known_dims((s.dim,), f"mixer {scope.mixer.name}")
        free = claim(scope, s.var)
        before, scope.loops = dict(scope.names), scope.loops + 1
        for n in range((scope.size(s.dim.name) or 2) if dims else 1):
            scope.names = dict(before)
            if free:
                scope.bind(Binding("loop", s.var.name, s.var.span, number(n) if dims else None, dim=s.dim.name))
            for inner in s.body:
                if isinstance(inner, Declare):
                    scope.error("MX221", f"`{inner.role} {inner.name.name}` stands inside a `for`", inner.span,
                                "an out stands below the loop, and reads a state that the loop assigns"
                                if inner.role == "out" else "declarations come first")
            self.lines(tuple(i for i in s.body if not isinstance(i, Declare)))
            if self.steps > MAX_STEPS and not any(d.code == "MX226" for d in scope.found):
                scope.error("MX226", f"the loops over {s.dim.name} make more than {MAX_STEPS} lines", s.span,
                            "loops are unrolled: carry long ones in a state, or use a dim")
            if self.steps > MAX_STEPS:
                break
        self._unread(before)
        scope.names, scope.loops = before, scope.loops - 1

    def out(self, s: Declare) -> None:
        scope, name = self.scope, s.name.name
        x = None if s.value is None else as_number(value(scope, s.value))
        dims = declared_dims(scope, s) if not s.inferred else None if x is None else scope.order(x.dims)
        if s.value is None:
            scope.error("MX221", f"`out {name}` has no value", s.span,
                        f"it stands where its value is known: `out {name}{shown(dims, '')} = ...`")
        if not claim(scope, s.name):
            return
        if x is not None and dims is not None and s.value is not None:
            x = fit(scope, x, dims, f"out {name}", s.value.span)
        b = Binding("out", name, s.name.span, x, dims)
        scope.bind(b)
        self.outs[name] = x if x is not None else number(0.0)
        scope.decls[name] = Decl("out", name, dims or (), x.kind if x is not None else "real", span=s.span)

    # ------------------------------------------------------------ at the end
    def finish(self) -> None:
        """What only the whole text shows."""
        scope, mixer = self.scope, self.scope.mixer
        if not any(isinstance(s, Declare) and s.role == "out" for s in mixer.body):
            scope.error("MX220", f"{mixer.name} has no out", mixer.span, "what comes out is written `out o[V] = q @ S`")
        for b in scope.names.values():
            if b.role == "state" and not b.versions:
                near = nearest(b.name, [n for n, x in scope.names.items() if x.role == "local"])
                meant = f"line {scope.names[near].span.line} assigns to `{near}`; " if near else ""
                scope.error("MX219", f"state {b.name} is never assigned", b.span,
                            f"{meant}a tensor that stays the same is a `param`; to keep what the last token left, "
                            f"write `{b.name} = ...`")
        self._unread({})
        given = {scope.root(d) for decl in scope.decls.values() if decl.role in ("in", "param") for d in decl.dims}
        for d in scope.dims.values():
            if d.name not in given and scope.root(d.name) not in given and scope.dims[scope.root(d.name)].size is None:
                scope.note("MX224", f"no input and no param has the dim {d.name}: only an initial state can give its "
                           "size", scope.names[d.name].span, f"fix it in the header: `{d.name} = 4`")

    def _unread(self, before: Mapping[str, Binding]) -> None:
        """Notes for names that are going out of scope and were never read."""
        for b in self.scope.names.values():
            if b.reads == 0 and b.role in ("in", "param", "const", "local") and b.name not in before:
                gradient = "; its gradient is 0" if b.role in ("in", "param") else ""
                self.scope.note("MX225", f"`{b.name}` is never read{gradient}", b.span)


def _assigned(body: tuple[Statement, ...]) -> dict[str, int]:
    """Every local that the body assigns, and the first line that does."""
    lines: dict[str, int] = {}
    for s in body:
        if isinstance(s, For):
            lines = _assigned(s.body) | lines
        elif isinstance(s, Assign):
            lines.setdefault(s.target.name, s.span.line)
    return lines
