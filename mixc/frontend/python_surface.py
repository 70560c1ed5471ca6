"""A Python function to the syntax tree of a mixer: the same tree that its `.mix` text would give.

    def f(q: In("K"), k: In("K"), v: In("V"), S: State("K", "V")):      mixer f(K, V) {
        S = S + k * v                                             -->       in q[K], in k[K], in v[V], state S[K, V]
        return q @ S                                                        S = S + k * v
                                                                            out o = q @ S   (its dims are the value's)
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import numbers
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from mixc import lang
from mixc.errors import Diagnostic, Span, SpecError
from mixc.frontend import slips
from mixc.frontend.names import WORDS
from mixc.frontend.parse import parse_dims, parse_expression
from mixc.frontend.python_expressions import BINARY, Expressions
from mixc.frontend.python_source import Definition, captured, declared_objects, defaults, definition
from mixc.frontend.syntax import (
    Assign,
    Binary,
    Compare,
    Declare,
    DimSyntax,
    Expr,
    For,
    MixerSyntax,
    Name,
    Number,
    Statement,
    expressions,
)

_INSTEAD = {**slips.STATEMENTS, "while": "the only loop is `for n in N:` over a dim",
            "return": "one `return` stands on the last line", "yield": "what comes out is returned: `return y`",
            "assert": "what must hold of an input is a range: `g: In(high=0)`"}
_INSTEAD |= dict.fromkeys(("raise", "try"), _INSTEAD["assert"])
_RETURNS = "the last line gives what comes out: `return y`, `return y, z` or `return mixc.outs(y=..., z=...)`"
_DECLARES = ("In", "Param", "State", "Const", "Out")
_HEADER = 'a header has names of dims, each perhaps with another name or a size: `@mixc.jit(dims="K, E = K, N = 4")`'
_SAY = 'write `{0}: In("D")`, `Param("D")` or `State("D")`, or `{0}=Const(0.5)`'


def syntax(fn: Any, dims: str | None = None) -> MixerSyntax:
    """The mixer that a function says.

    Args:
        dims: the header, where it says more than the declarations: "D, E = D".
    Raises:
        SpecError: everything that is outside the language (MX1xx), with spans in the Python file."""
    surface = _Surface(definition(fn), dims)
    mixer = surface.mixer()
    if surface.slips:
        raise SpecError(sorted(surface.slips, key=lambda s: (s.span.line, s.span.column) if s.span else (0, 0)))
    return mixer


class _Surface:
    def __init__(self, d: Definition, dims: str | None):
        self.d, self.given = d, dims
        self.objects, self.defaults = declared_objects(d), defaults(d)
        a = d.node.args
        self.parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs]
        self.lines = list(d.node.body)
        self.expr = Expressions(d, {})
        self.slips = self.expr.slips
        self.notes: list[Diagnostic] = []

    def mixer(self) -> MixerSyntax:
        for star, sign in ((self.d.node.args.vararg, "*"), (self.d.node.args.kwarg, "**")):
            if star is not None:
                self.expr.refuse("MX114", f"`{sign}{star.arg}` stands for no tensor", star, "name every input")
        doc = self._doc()
        given = self._returned()
        self._rename(given)
        declared = [d for p in self.parameters for d in [self._declare(p)] if d is not None]
        header = self._header(declared)
        body = [s for line in self.lines for s in self._statement(line)] + list(self._outs(given))
        order = {"const": 0, "in": 1, "param": 1, "state": 2}
        declared.sort(key=lambda d: order[d.role])
        body = [*self._captured(declared, header, body), *declared, *body]
        return MixerSyntax(self.d.node.name, header, tuple(body), self.d.name_span, self.d.source, doc,
                           notes=tuple(self.notes))

    def _doc(self) -> str:
        first = self.lines[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            del self.lines[0]
            return inspect.cleandoc(first.value.value)
        return ""

    # ------------------------------------------------------------ what a parameter declares
    def _declare(self, p: ast.arg) -> Declare | None:
        said, note = self.objects.get(p.arg), p.annotation
        value, node = self.defaults.get(p.arg, (None, None))
        if isinstance(value, lang.Const) or isinstance(said, lang.Const):
            said, note = (value, node) if isinstance(value, lang.Const) else (said, note)
        elif node is not None:
            text = self.d.text(node)
            help_ = f"a number for all tokens is written `{p.arg}=Const({text})`"
            if isinstance(value, lang.In | lang.Param | lang.State):
                help_ = f"what it is stands behind a colon: `{p.arg}: {text}`"
            elif isinstance(said, lang.State):
                help_ = 'where a state starts is said by its declaration, `State("K", init="0.5")`; else it starts at 0'
            elif said is not None:
                help_ = "every call gives it; a number for all tokens is a `Const`"
            self.expr.refuse("MX114", f"`{p.arg}` has a default", node, help_)
            return None
        if isinstance(said, type) and issubclass(said, lang.In | lang.Param | lang.State):
            said = said()
        if note is None or not isinstance(said, lang.In | lang.Param | lang.State | lang.Const):
            help_ = _SAY.format(p.arg)
            if p.arg in ("self", "cls") and note is None:
                help_ = "a mixer has no object: leave it out (in a class, the attribute is called like a function)"
            self.expr.refuse("MX114", f"`{p.arg}` does not say what it is", p, help_)
            return None
        name, span = Name(p.arg, self.d.span(p) if p.annotation is None else self._name_span(p)), self.d.span(p, note)
        if isinstance(said, lang.Const):
            return Declare("const", name, (), span, value=self._part(said.value, note, 0, "value"))
        if said.unknown:
            self._unknown(said, note)
            return None
        odd = next((str(dim) for dim in said.dims if not str(dim).isidentifier()), None)
        if odd is not None:
            kind, apart = type(said).__name__, '", "'.join(re.findall(r"[A-Za-z]\w*", odd)) or "K"
            help_ = f'dims have names, each its own: `{kind}("{apart}")`; sizes stand in `@mixc.jit(dims="K, N = 4")`'
            self.expr.refuse("MX106", f"`{odd}` is no name of a dim", note, help_)
            return None
        dims = tuple(Name(str(dim), self._place(note, i, "dims", dim) or self.d.span(note))
                     for i, dim in enumerate(said.dims))
        if isinstance(said, lang.State):
            start = None if said.init is None else self._part(said.init, note, None, "init")
            return Declare("state", name, dims, span, value=start)
        return Declare("in" if isinstance(said, lang.In) else "param", name, dims, span, said.complex,
                       self._range(said, name, note))

    def _unknown(self, said: lang.Tensor | lang.State, note: ast.expr) -> None:
        word, kind = next(iter(said.unknown)), type(said).__name__
        known = [f.name for f in fields(said) if f.name not in ("dims", "unknown")]
        near = difflib.get_close_matches(word, known, 1)
        place = next((k.value for k in note.keywords if k.arg == word), note) if isinstance(note, ast.Call) else note
        self.expr.refuse("MX114", f"`{kind}` takes no `{word}`", place,
                         f"did you mean `{near[0]}`?" if near else f"it takes dims, and {', '.join(known)}")

    def _name_span(self, p: ast.arg) -> Span:
        whole = self.d.span(p)
        return replace(whole, end=whole.column + len(p.arg))

    def _range(self, said: lang.Tensor, name: Name, note: ast.expr) -> Expr | None:
        """low <= name <= high, and what `where` says."""
        low, high = (None if x is None else self._part(x, note, None, word)
                     for x, word in ((said.low, "low"), (said.high, "high")))
        here = Name(name.name, self.d.span(note))
        operands = [x for x in (low, here, high) if x is not None]
        found: Expr | None = Compare(("<=",) * (len(operands) - 1), tuple(operands), here.span) \
            if len(operands) > 1 else None
        if said.where is None:
            return found
        where = self._part(said.where, note, None, "where")
        return where if found is None else Binary("and", found, where, here.span)

    def _place(self, note: ast.expr, position: int | None, keyword: str, value: Any) -> Span | None:
        """Where the text of an argument stands, inside its quotes; None if it is written elsewhere."""
        if not isinstance(note, ast.Call):
            return None
        found = next((k.value for k in note.keywords if k.arg == keyword), None)
        if found is None and position is not None and position < len(note.args):
            found = note.args[position]
        if not isinstance(found, ast.Constant) or found.value != value:
            return None
        span = self.d.span(found)
        quotes = re.match(r"[A-Za-z]*(\"\"\"|'''|\"|')", self.d.source.line(span.line)[span.column - 1:])
        return span if quotes is None else replace(span, column=span.column + quotes.end(),
                                                   end=span.end - len(quotes.group(1)))

    def _part(self, value: Any, note: ast.expr, position: int | None, keyword: str) -> Expr:
        """A number, or the expression in a text."""
        place = self._place(note, position, keyword, value)
        span = place or self.d.span(note)
        if isinstance(value, numbers.Number) and not isinstance(value, bool):
            number = value if isinstance(value, complex) else _real(value)
            return Number(number, span) if number is not None else self.expr.slip(Diagnostic(
                "MX114", f"`{keyword}` is {value!s:.40}, no number of fp64", span))
        if not isinstance(value, str):
            return self.expr.slip(Diagnostic("MX114", f"`{keyword}` is {type(value).__name__}, no number", span,
                                             'it is a number, or an expression in quotes: "K ** -0.5"'))
        try:
            return parse_expression(value, span, exact=place is not None)
        except SpecError as e:
            self.slips.extend(e.diagnostics)
            return Number(0.0, span)

    def _header(self, declared: list[Declare]) -> tuple[DimSyntax, ...]:
        """The dims of the header: as given, or as the signature names them."""
        if self.given is not None and not self.given.strip():
            return ()
        if self.given is not None:
            place = self._given_place()
            try:
                return parse_dims(self.given, place or self.d.name_span, exact=place is not None)
            except SpecError as e:
                self.slips.extend(replace(d, help=_HEADER) if d.code == "MX101" else d for d in e.diagnostics)
        first: dict[str, Name] = {}
        for d in declared:
            for name in d.dims:
                first.setdefault(name.name, name)
        return tuple(map(DimSyntax, first.values()))

    def _given_place(self) -> Span | None:
        calls = [x for x in self.d.node.decorator_list if isinstance(x, ast.Call)]
        return next((p for c in calls if (p := self._place(c, None, "dims", self.given)) is not None), None)

    # ------------------------------------------------------------ what comes out
    def _returned(self) -> dict[str, tuple[str, ast.expr]]:
        """By name of the out: what it is called while it is a local, and its expression."""
        last = self.lines[-1] if self.lines else self.d.node
        if not isinstance(last, ast.Return) or last.value is None:
            self.expr.slip(Diagnostic("MX115", f"{self.d.node.name} returns nothing", self.d.name_span, _RETURNS))
            return {}
        self.lines.pop()
        value = last.value
        if isinstance(value, ast.Call) and self.d.text(value.func).split(".")[-1] == "outs":
            if value.args or any(k.arg is None for k in value.keywords) or not value.keywords:
                self.expr.refuse("MX115", "outs are given by name", value, _RETURNS)
            return {k.arg: (k.arg, k.value) for k in value.keywords if k.arg}
        if isinstance(value, ast.Tuple):
            return {f"o{i}": ("", e) for i, e in enumerate(value.elts)}
        local = isinstance(value, ast.Name) and value.id in self._assigned(self.lines) \
            and value.id not in {p.arg for p in self.parameters}
        name = value.id if local else "o"  # type: ignore[attr-defined]
        return {name: (name, value)}

    def _rename(self, given: dict[str, tuple[str, ast.expr]]) -> None:
        """An out is named after its local, and one name is one thing: the local is called otherwise."""
        taken = {n.id for n in ast.walk(self.d.node) if isinstance(n, ast.Name)} | {p.arg for p in self.parameters}
        assigned = self._assigned(self.lines) - {p.arg for p in self.parameters}
        for out, (local, _) in given.items():
            if local in assigned:
                self.expr.renamed[local] = next(n for i in range(1, 99) if (n := out + "_" * i) not in taken)

    @staticmethod
    def _assigned(lines: list[ast.stmt]) -> set[str]:
        return {t.id for line in lines for n in ast.walk(line) if isinstance(n, ast.Name)
                for t in [n] if isinstance(t.ctx, ast.Store)}

    def _outs(self, given: dict[str, tuple[str, ast.expr]]) -> Iterator[Statement]:
        said = self.objects.get("return")
        notes = list(said) if isinstance(said, tuple) else [said]
        if self.d.node.returns is not None and (len(notes) != len(given) or not all(
                isinstance(n, lang.Out) for n in notes)):
            self.expr.refuse("MX115", f"`-> {self.d.text(self.d.node.returns)}` does not say {len(given)} outs",
                             self.d.node.returns, 'write `-> Out("V", "M")`, or a tuple of them for several outs')
            notes = []
        for i, (name, (_, value)) in enumerate(given.items()):
            span = self.d.span(value)
            note = notes[i] if i < len(notes) else None
            order = note.dims if note is not None else None
            dims = tuple(Name(x, span) for x in order or ())
            yield Declare("out", Name(name, span), dims, span, value=self.expr.make(value), inferred=order is None)

    # ------------------------------------------------------------ lines
    def _statement(self, s: ast.stmt) -> Iterator[Statement]:
        span = self.d.span(s)
        match s:
            case ast.Assign():
                yield from self._assign(s, span)
            case ast.AugAssign(target=ast.Name() as target) if type(s.op) in BINARY:
                yield Assign(self.expr.name(target), self.expr.make(s.value), span, BINARY[type(s.op)])
            case ast.AugAssign():
                self.expr.slip(slips.no_target(self.d.text(s.target), self.d.span(s)))
            case ast.AnnAssign():
                self.expr.refuse("MX117", "a line of the body declares no type", s,
                                 "write `y = ...`; what is declared stands in the signature")
            case ast.For(target=ast.Name(), iter=ast.Name()) if not s.orelse:
                body = tuple(x for line in s.body for x in self._statement(line))
                yield For(self.expr.name(s.target), self.expr.name(s.iter), body,  # type: ignore[arg-type]
                          self.d.span(s.target, s.iter))
            case ast.For():
                self.expr.refuse("MX103", f"no loop of the language: `{self.d.source.line(s.lineno).strip()}`", s,
                                 'the only loop is `for n in N:` over a dim, `@mixc.jit(dims="K, N = 4")` has its size')
            case ast.Expr():
                self._expression(s, span)
            case _:
                word = self.d.source.line(span.line)[span.column - 1:].replace("(", " ").replace(":", " ").split()[0]
                here = replace(span, end=min(span.end, span.column + len(word)))
                self.expr.slip(replace(slips.statement(word if word in slips.STATEMENTS else "def", here),
                                       message=f"`{word}` is no statement of the language",
                                       help=_INSTEAD.get(word, _INSTEAD["def"])))

    def _assign(self, s: ast.Assign, span: Span) -> Iterator[Statement]:
        target = s.targets[0]
        if len(s.targets) > 1:
            self.expr.refuse("MX101", "several names are assigned in one line", s, "one line assigns one name")
        elif isinstance(target, ast.Tuple | ast.List | ast.Starred):
            self.expr.slip(slips.several_targets(span))
        elif not isinstance(target, ast.Name):
            self.expr.slip(slips.no_target(self.d.text(target), self.d.span(target)))
        elif isinstance(s.value, ast.Call) and self.d.text(s.value.func).split(".")[-1] in _DECLARES:
            self.expr.refuse("MX117", f"`{target.id}` is declared in the body", s,
                             f"declarations stand in the signature: `{target.id}: {self.d.text(s.value)}`")
        else:
            yield Assign(self.expr.name(target), self.expr.make(s.value), span)

    def _expression(self, s: ast.Expr, span: Span) -> None:
        """A line that is an expression: its value would be lost."""
        before = len(self.slips)
        self.expr.make(s.value)
        if len(self.slips) == before:
            self.expr.slip(replace(slips.lost_value(self.d.text(s.value), span), help="give it a name, `y = ...`, or "
                                   "return it"))

    # ------------------------------------------------------------ numbers from around the function
    def _captured(self, declared: list[Declare], header: tuple[DimSyntax, ...], body: list[Statement]
                  ) -> list[Statement]:
        """Consts for the names that the body reads and nothing in it gives: numbers around the function."""
        known = {d.name.name for d in declared} | {d.name.name for d in header} | WORDS
        known |= {*self.expr.renamed.values()} | self._assigned(self.d.node.body)
        found: dict[str, Statement] = {}
        for e in expressions((*declared, *body)):
            if isinstance(e, Name) and e.name not in known and e.name not in found:
                with contextlib.suppress(KeyError):
                    self._capture(e, captured(self.d.fn, e.name), found)
        return list(found.values())

    def _capture(self, name: Name, value: Any, found: dict[str, Statement]) -> None:
        number = _real(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None
        if number is not None:
            found[name.name] = Declare("const", name, (), name.span, value=Number(number, name.span))
            self.notes.append(Diagnostic(
                "MX116", f"`{name.name}` is the const {number:g}, as it was around {self.d.node.name} when it "
                "was decorated", name.span, f"a later change is not seen; a call may say `{name.name}=...`", "note"))
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            self.expr.slip(Diagnostic("MX116", f"`{name.name}` is {value!s:.40} around the function, no number of fp64",
                                      name.span))
        elif not callable(value) and not inspect.ismodule(value) and not isinstance(value, lang.Value | str):
            self.expr.slip(Diagnostic("MX116", f"`{name.name}` is {type(value).__name__} around the function, no "
                                      "number", name.span, f'what is learned is declared, `{name.name}: Param("D")`; '
                                      "only numbers are taken from around the function"))


def _real(value: Any) -> float | None:
    """A number as fp64 has it; None for NaN, which no text can say, and for what is too large."""
    try:
        found = float(value)
    except OverflowError:
        return None
    return None if found != found else found


# ---------------------------------------------------------------- the words of help lines
_WORDS = [
    (r"`mixer \w+\(([^)`]*)\)( \{[^`]*)?`", r'`@mixc.jit(dims="\1")`'),
    (r"`for n in N \{[^`]*\}`", "`for n in N:`"),
    (r"`(in|param|state) (\w+)\[([^\]`]*)\]( = [^`]*)?`", None),
    (r"`(in|param|state) (\w+)`", None),
    (r"`const (\w+) = ([^`]*)`", r"`\1=Const(\2)`"),
    (r"`out \w+(\[[^\]`]*\])? = ([^`]*)`", r"`return \2`"),
    (r"in the header: `(\w+) = (\w+)`", r'in the header: `@mixc.jit(dims="..., \1 = \2")`'),
]


def in_python(d: Diagnostic) -> Diagnostic:
    """The same diagnostic with the declarations of its help line written as Python."""
    def declare(m: re.Match[str]) -> str:
        dims = [f'"{x.strip()}"' for x in (m[3].split(",") if m.re.groups > 2 else []) if x.strip()]
        init = [f'init="{m[4][3:]}"'] if m.re.groups > 3 and m[4] else []
        return f"`{m[2]}: {m[1].capitalize()}({', '.join([*dims, *init])})`"

    help_ = d.help
    for pattern, new in _WORDS:
        help_ = re.sub(pattern, new or declare, help_) if help_ else help_
    return replace(d, help=help_)
