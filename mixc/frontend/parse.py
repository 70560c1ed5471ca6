"""Text to syntax tree.

The grammar (grammar.lark) is LALR and wider than the language; the builder below makes the
tree while the text is parsed and notes the slips it meets, so that all of them are reported.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput

from mixc.errors import Diagnostic, Source, Span, SpecError
from mixc.frontend import slips
from mixc.frontend.syntax import (
    Assign,
    Binary,
    Call,
    Compare,
    Declare,
    DimSyntax,
    Expr,
    For,
    Index,
    MixerSyntax,
    Name,
    Number,
    Statement,
    Unary,
    spelled,
)
from mixc.frontend.unexpected import Brackets, Lines, explain, token_span

E = TypeVar("E", bound=Any)
_lock = threading.Lock()  # the parser feeds one builder at a time


def parse(source: Source) -> list[MixerSyntax]:
    """The mixers of a text, in order.

    Raises:
        SpecError: what is wrong with the syntax (MX1xx), as far as it could be read."""
    mixers: list[MixerSyntax] = _parse(source.text, source, "start")
    if not mixers:
        raise SpecError(Diagnostic("MX112", f"{source.name} holds no mixer",
                                   help="a spec starts with `mixer NAME(K, V) {`"))
    lines: dict[str, int] = {}
    again = [Diagnostic("MX204", f"`{m.name}` is a mixer since line {first}", m.span,
                        "the mixers of a file have names of their own")
             for m in mixers if (first := lines.setdefault(m.name, m.span.line)) != m.span.line]
    if again:
        raise SpecError(*again)
    return mixers


def parse_expression(text: str, span: Span, exact: bool = True) -> Expr:
    """An expression of the language in a string of Python; `exact`: its text stands at `span`."""
    return _parse(*_placed(text, span, exact), "test", span if exact else None)  # type: ignore[no-any-return]


def parse_dims(text: str, span: Span, exact: bool = True) -> tuple[DimSyntax, ...]:
    """A header in a string of Python: "D, E = D"."""
    return _parse(*_placed(text, span, exact), "dims", span if exact else None) or ()


def _placed(text: str, span: Span, exact: bool) -> tuple[str, Source]:
    """The text moved to where it stands, so that its tokens say so."""
    if not exact:
        return text, Source(f'"{text}"', text)
    return "\n" * (span.line - 1) + " " * (span.column - 1) + text, span.source


def _parse(text: str, source: Source, rule: str, place: Span | None = None) -> Any:
    """What a rule of the grammar makes of a text; findings outside `place` are about all of it."""
    with _lock:
        parser, builder, brackets = _parser()
        builder.source, builder.slips = source, []
        brackets.ends = rule == "start"
        try:
            found = parser.parse(text, start=rule)
        except UnexpectedInput as e:
            builder.slips.append(explain(e, source, brackets.open))
        except Brackets as e:
            builder.slips.append(e.diagnostic(source))
        except RecursionError:
            builder.slips.append(Diagnostic("MX112", "the text is nested too deeply"))
        if builder.slips:
            raise SpecError([d if place is None or _within(d.span, place) else replace(d, span=place)
                             for d in builder.slips])
    return found


@lru_cache(maxsize=1)
def _parser() -> tuple[Lark, _Builder, Lines]:
    text = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    builder, brackets = _Builder(), Lines()
    parser = Lark(text, parser="lalr", transformer=builder, postlex=brackets,  # type: ignore[arg-type]
                  start=["start", "test", "dims"])
    return parser, builder, brackets


def _join(first: Span, last: Span) -> Span:
    """From the start of one to the end of the other; of several lines the first one."""
    end = last.end if last.line == first.line else len(first.source.line(first.line).split("#")[0].rstrip()) + 1
    return Span(first.source, first.line, first.column, max(end, first.column + 1))


def _within(inner: Span | None, outer: Span) -> bool:
    return inner is not None and inner.line == outer.line and outer.column <= inner.column < outer.end


_Entries = tuple[tuple[Expr, ...], Span]  # what stands in [ ], and the closing bracket


@v_args(inline=True)
class _Builder(Transformer):  # type: ignore[type-arg]
    """One method a rule of the grammar; the arguments are what its parts became."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.slips = Source("", ""), list[Diagnostic]()
        self.attributes: dict[Span, tuple[str, str, Diagnostic]] = {}

    def _span(self, token: Token) -> Span:
        return token_span(self.source, token)

    def _slip(self, diagnostic: Diagnostic) -> Number:
        self.slips.append(diagnostic)
        assert diagnostic.span is not None
        return Number(0.0, diagnostic.span)

    # ------------------------------------------------------------ mixers and statements
    def start(self, *mixers: MixerSyntax) -> list[MixerSyntax]:
        return list(mixers)

    def mixer(self, word: Token, name: Name, lpar: Token, dims: tuple[DimSyntax, ...] | None, rpar: Token,
              lbrace: Token, body: tuple[Statement, ...], rbrace: Token) -> MixerSyntax:
        doc = self._doc(word.line or 1)
        return MixerSyntax(name.name, dims or (), body, name.span, self.source, doc,
                           text=self._text(word, rbrace, doc))

    def _text(self, first: Token, last: Token, doc: str) -> str:
        """The mixer as it is written, with the comment above it."""
        lines = self.source.lines[(first.line or 1) - 1:last.end_line]
        lines[-1] = lines[-1][:(last.end_column or 1) - 1]
        lines[0] = lines[0][(first.column or 1) - 1:]
        comment = [f"# {line}".rstrip() for line in doc.split("\n")] if doc else []
        return "\n".join([*comment, *lines]) + "\n"

    def _doc(self, line: int) -> str:
        """The comment block directly above a line."""
        lines: list[str] = []
        while self.source.line(line - 1 - len(lines)).startswith("#"):
            lines.append(self.source.line(line - 1 - len(lines))[1:].removeprefix(" ").rstrip())
        return "\n".join(reversed(lines))

    def dims(self, *dims: DimSyntax) -> tuple[DimSyntax, ...]:
        return dims

    def dim(self, name: Name, value: Name | Token | None) -> DimSyntax:
        return DimSyntax(name, self.number(value) if isinstance(value, Token) else value)

    def body(self, *statements: Statement | list[Statement] | None) -> tuple[Statement, ...]:
        flat: list[Statement] = []
        for s in statements:
            flat += s if isinstance(s, list) else [s] if s is not None else []
        return tuple(flat)

    def declaration(self, role: Token, *declared: Declare) -> list[Statement]:
        return [replace(d, role=str(role)) for d in declared]

    def input(self, name: Name, dims: _Entries | None, complex_: Token | None, where: Expr | None) -> Declare:
        return Declare("in", name, *self._dims(name, dims), complex_ is not None, where)

    def valued(self, name: Name, dims: _Entries | None, value: Expr | None) -> Declare:
        return Declare("out", name, *self._dims(name, dims), value=value)

    def _dims(self, name: Name, found: _Entries | None) -> tuple[tuple[Name, ...], Span]:
        """The declared dims, and the span from the name to their bracket."""
        entries, bracket = found or ((), name.span)
        for e in entries:
            if not isinstance(e, Name):
                self._slip(slips.number_as_dim(spelled(e), e.span))
        return tuple(e for e in entries if isinstance(e, Name)), _join(name.span, bracket)

    def targets(self, *targets: Expr) -> tuple[Expr, ...]:
        return targets

    def assign(self, targets: tuple[Expr, ...], op: Token | None, values: tuple[Expr, ...] | None) -> Assign | None:
        target = targets[0]
        whole = _join(target.span, (values or targets)[-1].span)
        if op is None or values is None:
            self._slip(slips.lost_value(spelled(whole), whole))
        elif len(targets) > 1 or len(values) > 1:
            self._slip(slips.several_targets(whole))
        elif not isinstance(target, Name):
            self._slip(slips.no_target(spelled(target), target.span))
        else:
            return Assign(target, values[0], whole, None if op == "=" else op[:-1])
        return None

    def loop(self, word: Token, var: Name, in_: Token, dim: Name, lbrace: Token, body: tuple[Statement, ...],
             rbrace: Token) -> For:
        return For(var, dim, body, _join(self._span(word), dim.span))

    # ------------------------------------------------------------ expressions
    def name(self, token: Token) -> Name:
        return Name(str(token), self._span(token))

    def variable(self, name: Name | Token) -> Name:
        return self.name(name) if isinstance(name, Token) else name

    def number(self, token: Token) -> Number:
        text = token.replace("_", "")
        return Number(complex(text) if text[-1] in "jJ" else float(text), self._span(token))

    def parenthesis(self, lpar: Token, e: E, rpar: Token) -> E:
        return replace(e, span=_join(self._span(lpar), self._span(rpar)))

    def unary(self, op: Token, arg: Expr) -> Unary:
        return Unary(str(op), arg, _join(self._span(op), arg.span))

    def binary(self, left: Expr, op: Token, right: Expr) -> Binary:
        return Binary(str(op), left, right, _join(left.span, right.span))

    def comparison(self, *parts: Any) -> Compare:
        return Compare(tuple(map(str, parts[1::2])), parts[::2], _join(parts[0].span, parts[-1].span))

    def brackets(self, lsqb: Token, *rest: Any) -> _Entries:
        return tuple(e for e in rest[:-1] if e is not None), self._span(rest[-1])

    def slice(self, *parts: Any) -> Number:
        token = next(p for p in parts if isinstance(p, Token))
        return self._slip(slips.position(spelled(self._span(token)), self._span(token)))

    def index(self, base: Expr, found: _Entries) -> Index:
        entries, bracket = found
        span = _join(base.span, bracket)
        inside = [d for d in self.slips if d.code == "MX106" and _within(d.span, span)]
        if inside or not all(isinstance(e, Name) for e in entries):  # one diagnostic that shows the whole of it
            self.slips = [d for d in self.slips if d not in inside]
            self._slip(slips.position(spelled(span), span))
        return Index(base, tuple(e for e in entries if isinstance(e, Name)), span)

    def attribute(self, base: Expr, name: Name) -> Expr:
        span = _join(base.span, name.span)
        found = slips.attribute(spelled(base), name.name, span)
        # of `torch.nn.functional` only the whole is reported
        self.slips = [d for d in self.slips if d.span != base.span or d.code not in ("MX104", "MX105")]
        self.attributes[span] = spelled(base), name.name, found
        return self._slip(found)

    def arguments(self, *args: Expr) -> tuple[Expr, ...]:
        return args

    def keyword(self, name: Name, value: Expr) -> Number:
        return self._slip(slips.keyword("", name.name, _join(name.span, value.span)))

    def call(self, fn: Expr, lpar: Token, args: tuple[Expr, ...] | None, rpar: Token) -> Expr:
        span = _join(fn.span, self._span(rpar))
        if isinstance(fn, Name):
            self._keywords_of(fn.name, args or ())
            return Call(fn, None, args or (), span)
        if isinstance(fn, Index) and isinstance(fn.base, Name):
            self._keywords_of(fn.base.name, args or ())
            return Call(fn.base, fn.entries, args or (), span)
        if fn.span in self.attributes:
            base, name, found = self.attributes.pop(fn.span)
            self.slips = [d for d in self.slips if d is not found
                          and not (d.code == "MX109" and _within(d.span, span))]
            return self._slip(slips.attribute(base, name, span, called=True))
        return self._slip(Diagnostic("MX101", f"`{spelled(fn)}` is no function", span, "products are written with `*`"))

    def _keywords_of(self, fn: str, args: tuple[Expr, ...]) -> None:
        """Names the function in what was noted about its keywords."""
        spans = [a.span for a in args]
        self.slips = [slips.keyword(fn, spelled(d.span).split("=")[0].strip(), d.span)
                      if d.code == "MX109" and d.span in spans else d for d in self.slips]
