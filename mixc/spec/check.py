"""Syntax to Step: every rule of the language is checked here, and the token's DAG is built.

Errors do not stop the walk: independent ones are reported at once.
"""

from __future__ import annotations

import difflib
import keyword
from collections.abc import Mapping
from typing import Any

from mixc.errors import Diagnostic, Span, SpecError
from mixc.spec.expressions import CONSTANTS, FUNCTIONS, Expressions, Value
from mixc.spec.syntax import Assign, Binary, Compare, Expr, For, Item, MixerSyntax, Name, Out, Statement
from mixc.ir.node import Node, make, number, postorder
from mixc.ir.program import Decl, Dim, Program, Range, Result

ARGUMENTS = {"initial_state", "output_final_state", "cu_seqlens", "mask", "reverse", "check", "backend", "state"}


def elaborate(mixer: MixerSyntax, sizes: Mapping[str, int] | None = None,
              consts: Mapping[str, float] | None = None) -> Program:
    """The step of a mixer, level "step".

    Args:
        sizes: of dims that loops and windows run over (2 where unknown: enough to type and classify).
        consts: values of structural consts; the default where missing.
    Raises:
        SpecError: everything that is wrong, at once."""
    complex_states: set[str] = set()
    while True:
        walk = Elaborator(mixer, dict(sizes or {}), dict(consts or {}), complex_states)
        program = walk.run()
        if walk.errors:
            raise SpecError(walk.errors)
        found = {r.name for r in program.results if r.role == "next" and r.value.kind == "complex"}
        if found <= complex_states:
            return program
        complex_states |= found  # a state is complex when anything assigned to it is


def loop_dims(mixer: MixerSyntax) -> set[str]:
    """Dims whose size the step depends on: those of `for` and of `lag[W]`."""
    walk = Elaborator(mixer, {}, {}, set())
    walk.run()
    return walk.sized


def structural_consts(mixer: MixerSyntax) -> set[str]:
    """Consts whose value changes the step itself: exponents, lag distances, bounds of ranges."""
    walk = Elaborator(mixer, {}, {}, set())
    walk.run()
    return walk.structural


class Elaborator:
    def __init__(self, mixer: MixerSyntax, sizes: dict[str, int], consts: dict[str, float], complex_states: set[str]):
        self.mixer, self.sizes, self.values, self.complex_states = mixer, sizes, consts, complex_states
        self.errors: list[Diagnostic] = []
        self.notes: list[Diagnostic] = []
        self.dims: dict[str, Dim] = {}
        self.decls: dict[str, Decl] = {}
        self.env: dict[str, Node] = {}
        self.states: dict[str, Decl] = {}
        self.outs: list[tuple[Decl, Node]] = []
        self.out_names: set[str] = set()
        self.poisoned: set[str] = set()
        self.loops: dict[str, tuple[str, int]] = {}
        self.loop_locals: set[str] = set()
        self.assigned_at: dict[str, int] = {}
        self.lagged: dict[Node, str] = {}
        self.sized: set[str] = set()
        self.structural: set[str] = set()
        self.computing = False
        self.expression = Expressions(self)

    # ------------------------------------------------------------ diagnostics
    def error(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.errors.append(Diagnostic(code, message, span, help))

    def text(self, span: Span) -> str:
        return span.source.line(span.line)[span.column - 1:span.end - 1]

    def words(self, e: Expr) -> str:
        return self.text(e.span)

    def suggest_dims(self, e: Binary, a: Node, b: Node) -> str | None:
        """If one side is a state and the other's dims would fit another order of words, say so."""
        for x, other in ((e.b, a), (e.a, b)):
            if isinstance(x, Name) and x.id in self.states and other.dims:
                d = self.states[x.id]
                line = d.span.line if d.span else 0
                if d.dims:
                    fixed = ", ".join((*other.dims[:1], *d.dims[1:]))
                    return f"{x.id} was declared with [{', '.join(d.dims)}] on line {line}; did you mean `state {x.id}[{fixed}]`?"
        return "write `a * b` for a product without a sum"

    # ------------------------------------------------------------ names
    def names(self) -> list[str]:
        return [*self.env, *self.dims, *self.loops, "pos"]

    def lookup(self, e: Name) -> Value:
        if e.id in self.loops:
            return number(self.loops[e.id][1])
        if e.id in self.env:
            return self.env[e.id]
        if e.id in self.dims:
            return make("size", dim=e.id)
        if e.id in CONSTANTS:
            return number(CONSTANTS[e.id])
        return make("pos") if e.id == "pos" else None

    def root(self, dim: str) -> str:
        while dim in self.dims and self.dims[dim].alias:
            dim = self.dims[dim].alias or dim
        return dim

    def size_of(self, dim: str) -> int | None:
        self.sized.add(dim)
        fixed = self.dims[self.root(dim)].size
        return fixed or self.sizes.get(dim) or self.sizes.get(self.root(dim))

    def declared_order(self, x: Node) -> tuple[str, ...]:
        """As declared for a declared name; by the header for any other value."""
        if x.op in ("in", "param", "state"):
            return x.dims
        for d in self.states.values():
            if self.env.get(d.name) is x:
                return d.dims
        header = list(self.dims)
        return tuple(sorted(x.dims, key=header.index))

    def whole(self, x: Node) -> int | None:
        """The integer that a value of numbers and structural consts is, or None."""
        value = self.constant(x)
        if value is None or value != int(value):
            return None
        self.structural |= {n.attr("name") for n in postorder([x]) if n.op == "const"}
        return int(value)

    def constant(self, x: Node) -> float | None:
        """The value of numbers and consts (their defaults, or what the call gave); None if there is more."""
        from mixc.ir.scalars import python_value

        consts = {**{d.name: self.values.get(d.name) for d in self.decls.values() if d.role == "const"}}
        try:
            return python_value(x, {n: v for n, v in consts.items() if v is not None},
                                {d.name: d.init for d in self.decls.values() if d.role == "const"})
        except (LookupError, ArithmeticError, ValueError):
            return None

    def _new(self, name: str, span: Span) -> bool:
        """May `name` be declared or assigned here?"""
        if name.startswith("_") or keyword.iskeyword(name):
            self.error("MX231", f"`{name}` cannot be a name: no leading underscore, no keyword of Python", span)
        elif name in FUNCTIONS or name in CONSTANTS or name == "pos":
            self.error("MX232", f"`{name}` belongs to the language", span, f"choose another, for example `{name}_`")
        elif name in ARGUMENTS:
            self.error("MX233", f"`{name}` is an argument of the call", span, f"choose another, for example `{name}_`")
        elif name in self.env or name in self.dims or name in self.out_names or name in self.loops:
            self.error("MX234", f"`{name}` is taken", span, "dims, inputs, params, consts, states, locals and outs share their names")
        else:
            return True
        return False

    # ------------------------------------------------------------ the walk
    def run(self) -> Program:
        for d in self.mixer.dims:
            self._dim(d)
        for s in self.mixer.body:
            self._statement(s)
        return self._finish()

    def _dim(self, d: Any) -> None:
        if d.name in ("B", "T", "H"):
            self.error("MX235", f"`{d.name}` is implied and never written", d.span,
                       "batch, time and head are there for every input: write `in q[K]` for a tensor [B, T, H, K]")
        if d.alias is not None and d.alias not in self.dims:
            self.error("MX236", f"`{d.alias}` is no dim declared before `{d.name}`", d.span)
        elif self._new(d.name, d.span):
            self.dims[d.name] = Dim(d.name, d.alias, d.size)

    def _statement(self, s: Statement) -> None:
        if isinstance(s, Item):
            self._declare(s)
        elif isinstance(s, Out):
            self._out(s)
        elif isinstance(s, For):
            self._for(s)
        else:
            self._assign(s)

    def _declare(self, s: Item) -> None:
        if self.computing:
            self.error("MX237", f"`{s.role} {s.name}` stands after the first line that computes", s.span,
                       "declarations come first")
        dims = self._declared_dims(s.name, s.dims)
        if not self._new(s.name, s.span) or dims is None:
            self.poisoned.add(s.name)
            return
        if s.role == "const":
            self._const(s)
            return
        if s.init is not None and s.role != "state":
            self.error("MX238", f"an {s.role} takes no value", s.span, "`const c = ...` names a number")
        kind = "complex" if s.complex or (s.role == "state" and s.name in self.complex_states) else "real"
        if s.complex and s.role == "state":
            self.error("MX239", "a state is complex when what is assigned to it is", s.span, "leave out `complex`")
        init = self._state_init(s, dims) if s.role == "state" else None
        decl = Decl(s.role, s.name, dims, kind, (), init, s.span)
        self.decls[s.name] = decl
        self.env[s.name] = make(s.role, span=s.span, name=s.name, dims=dims, kind=kind)
        if s.role == "state":
            self.states[s.name] = decl
        if s.where is not None:
            self.decls[s.name] = Decl(s.role, s.name, dims, kind, self._ranges(s), init, s.span)

    def _declared_dims(self, name: str, dims: tuple[Name, ...]) -> tuple[str, ...] | None:
        out: list[str] = []
        for d in dims:
            if d.id in ("B", "T", "H"):
                self.error("MX235", f"`{d.id}` is implied and never written", d.span,
                           f"batch, time and head are there for every input: leave `{d.id}` out")
                return None
            if d.id not in self.dims:
                near = difflib.get_close_matches(d.id, self.dims, 1)
                self.error("MX216", f"`{d.id}` is no dim of this mixer", d.span, f"did you mean `{near[0]}`?" if near else
                           f"name it in the header: `mixer {self.mixer.name}({', '.join([*self.dims, d.id])})`")
                return None
            if d.id in out:
                self.error("MX240", f"{name} has the dim {d.id} twice", d.span,
                           f"give the second its own name of the same size: `mixer {self.mixer.name}({d.id}, E = {d.id})`, "
                           f"then `{name}[{d.id}, E]`; with one name `k * v` is no outer product")
                return None
            out.append(d.id)
        return tuple(out)

    def _const(self, s: Item) -> None:
        if s.init is None:
            self.error("MX241", f"`const {s.name}` needs a value", s.span, f"`const {s.name} = 1.0`")
            return
        value = self.expression.real(s.init)
        if value is None:
            return
        if any(n.op not in ("number", "size", "const") and not n.args for n in postorder([value])):
            self.error("MX242", "a const depends on dims, numbers and consts above it only", s.init.span)
            return
        self.decls[s.name] = Decl("const", s.name, (), "real", (), value, s.span)
        self.env[s.name] = make("const", name=s.name)

    def _state_init(self, s: Item, dims: tuple[str, ...]) -> Node | None:
        value = self.expression.real(s.init) if s.init is not None else None
        if value is None:
            return None
        if any(n.op in ("in", "state", "pos") for n in postorder([value])):
            self.error("MX243", f"the start of {s.name} depends on numbers, consts, params and index only", s.span)
            return None
        if value.dims and set(value.dims) != set(dims):
            self.error("MX244", f"{s.name} is [{', '.join(dims)}], its start is [{', '.join(value.dims)}]", s.span)
            return None
        return make("expand", value, dims=dims) if dims and not value.dims else value

    # ------------------------------------------------------------ ranges
    def _ranges(self, s: Item) -> tuple[Range, ...]:
        if s.role not in ("in", "param"):
            self.error("MX245", "`where` follows an in or a param", s.span)
            return ()
        out = []
        for part in _conjuncts(s.where):
            found = self._range(s, part)
            if found is not None:
                out.append(found)
        return tuple(out)

    def _range(self, s: Item, e: Any) -> Range | None:
        wrong = f"a range compares `{s.name}`, `abs({s.name})` or `norm[K]({s.name})` with numbers and consts"
        if not isinstance(e, Compare) or len(e.items) > 3:
            self.error("MX246", wrong, e.span, f"for example `where 0 <= {s.name} <= 1`")
            return None
        values = [self.expression(x) for x in e.items]
        if any(v is None for v in values):
            return None
        at = [i for i, v in enumerate(values) if v is not None and self._is_subject(v, s)]
        if len(at) != 1 or len(e.items) == 3 and at != [1]:
            self.error("MX246", wrong, e.span)
            return None
        subject, low, high, low_open, high_open = values[at[0]], None, None, False, False
        for i, (op, a, b) in enumerate(zip(e.ops, values, values[1:], strict=False)):
            if op in ("==", "!="):
                self.error("MX246", wrong, e.span)
                return None
            bound, below = (a, op in ("<", "<=")) if at[0] == i + 1 else (b, op in (">", ">="))
            if bound is None or any(n.op not in ("number", "const", "size") and not n.args for n in postorder([bound])):
                self.error("MX247", "a bound is a number or a const", e.span)
                return None
            self.structural |= {n.attr("name") for n in postorder([bound]) if n.op == "const"}
            if below:
                low, low_open = bound, op in ("<", ">")
            else:
                high, high_open = bound, op in ("<", ">")
        assert subject is not None
        of = {"abs": "abs", "norm": "norm"}.get(subject.op, "x")
        return Range(of, tuple(subject.attr("over", ())), low, high, low_open, high_open)

    def _is_subject(self, v: Node, s: Item) -> bool:
        leaf = self.env[s.name]
        return v is leaf or (v.op in ("abs", "norm") and v.args[0] is leaf)

    # ------------------------------------------------------------ the body
    def _assign(self, s: Assign) -> None:
        self.computing = True
        if not s.op:
            self.error("MX248", "this line computes a value and does nothing with it", s.span, "assign it: `x = ...`")
            return
        if len(s.targets) > 1 or len(s.values) > 1:
            self.error("MX108", "one name is assigned at a time", s.span,
                       "a swap needs a local: `old = a`, then `a = b`, then `b = old`")
            return
        target = s.targets[0]
        if not isinstance(target, Name):
            self.error("MX249", f"cannot assign to `{self.words(target)}`", target.span, "the left side is a name")
            return
        value = self.expression.real(s.values[0])
        if value is not None and s.op != "=":
            old = self.expression.real(target)
            name = {"+=": "add", "-=": "sub", "*=": "mul", "/=": "div"}.get(s.op)
            value = None if old is None or name is None else make(name, old, value, span=s.span)
        if target.id in self.states:
            self._assign_state(target, value)
        elif value is None:
            self.poisoned.add(target.id)
        else:
            self._assign_local(target, value)

    def _assign_state(self, target: Name, value: Value) -> None:
        self.assigned_at[target.id] = target.span.line
        decl = self.states[target.id]
        fitted = None if value is None else self._fit(value, decl, target.span)
        if fitted is not None:
            self.env[target.id] = fitted

    def _assign_local(self, target: Name, value: Node) -> None:
        if target.id in self.decls:
            role = {"in": "input"}.get(self.decls[target.id].role, self.decls[target.id].role)
            self.error("MX250", f"`{target.id}` is an {role} and cannot be assigned" if role == "input" else
                       f"`{target.id}` is a {role} and cannot be assigned", target.span,
                       f"give the new value a name of its own: `{target.id}_new = ...`")
        elif target.id in self.env:
            self.error("MX251", f"`{target.id}` is assigned twice", target.span,
                       "a local has one value; only states change: use a new name")
        elif self._new(target.id, target.span):
            self.env[target.id] = value
            if self.loops:
                self.loop_locals.add(target.id)

    def _fit(self, value: Node, decl: Decl, span: Span) -> Node | None:
        """A value as something with exactly the dims of `decl`; one without dims is repeated."""
        if set(value.dims) == set(decl.dims):
            return value
        if not value.dims:
            return make("expand", value, dims=decl.dims)
        self.error("MX252", f"{decl.name} is [{', '.join(decl.dims)}], this value is [{', '.join(value.dims)}]", span,
                   self._fit_help(value, decl))
        return None

    def _fit_help(self, value: Node, decl: Decl) -> str | None:
        if len(set(decl.dims)) == 1 and len(value.dims) == 1:
            return f"rename the dim: `x[{decl.dims[0]}]`"
        if set(value.dims) < set(decl.dims):
            return f"if K and V share one name, `k * v` is no outer product; {decl.name} has all of its dims in every assignment"
        return f"declare `{decl.role} {decl.name}[{', '.join(value.dims)}]`, or sum over the other dims"

    def _out(self, s: Out) -> None:
        self.computing = True
        if self.loops:
            self.error("MX253", "an `out` cannot stand inside a `for`", s.span, "assign a local or a state, and put `out` behind the loop")
            return
        value = self.expression.real(s.value)
        dims = self._declared_dims(s.name, s.dims)
        if not self._new(s.name, s.span) or dims is None:
            return
        self.out_names.add(s.name)
        if value is None:
            return
        decl = Decl("out", s.name, dims, value.kind, (), None, s.span)
        fitted = self._fit(value, decl, s.span)
        if fitted is not None:
            self.outs.append((decl, fitted))

    def _for(self, s: For) -> None:
        self.computing = True
        if s.dim not in self.dims:
            self.error("MX216", f"`{s.dim}` is no dim of this mixer", s.span, "a loop runs over a dim: `for n in N { ... }`")
            return
        if not self._new(s.var, s.span):
            return
        for i in range(self.size_of(s.dim) or 2):
            self.loops[s.var] = (s.dim, i)
            before, count = set(self.env), len(self.errors)
            for inner in s.body:
                if isinstance(inner, Item):
                    self.error("MX237", "declarations come first, outside a `for`", inner.span)
                else:
                    self._statement(inner)
            for name in set(self.env) - before:  # locals end at the brace
                del self.env[name]
                self.loop_locals.discard(name)
            if len(self.errors) > count:
                break
        del self.loops[s.var]

    # ------------------------------------------------------------ the end
    def _finish(self) -> Program:
        if not self.out_names:
            self.error("MX254", f"{self.mixer.name} has no out", self.mixer.span, "end with `out o[V] = ...`")
        for name, d in self.states.items():
            if name not in self.assigned_at and d.span:
                self.error("MX255", f"the state {name} is never assigned", d.span, "what never changes is a param or a const")
        results = [Result("out", d.name, v) for d, v in self.outs]
        results += [Result("next", n, self.env[n]) for n in self.states if n in self.env]
        inits = [d.init for d in self.decls.values() if d.init is not None]
        read = set(postorder([*(r.value for r in results), *inits]))
        for name, d in self.decls.items():
            if d.role in ("in", "param") and self.env.get(name) not in read and d.span and not self.errors:
                self.notes.append(Diagnostic("MX256", f"{name} is never read; its gradient is 0", d.span, None, "note"))
        dims = tuple(self.dims.values())
        decls = (*self.decls.values(), *(d for d, _ in self.outs))
        return Program("step", self.mixer.name, dims, decls, tuple(results), doc=self.mixer.doc, notes=tuple(self.notes),
                       source=self.mixer.source)


def _conjuncts(e: Any) -> list[Any]:
    return [*_conjuncts(e.a), *_conjuncts(e.b)] if isinstance(e, Binary) and e.op == "and" else [e]
