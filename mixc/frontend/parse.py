"""Text to syntax tree.

The grammar (grammar.lark) is LALR and wider than the language; the builder below makes the
tree while the text is parsed and notes the slips it meets, so that all of them are reported.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput

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

E = TypeVar("E", bound=Any)
_CLOSES = {")": "(", "]": "[", "}": "{"}
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
            builder.slips.append(_explain(e, source, brackets.open))
        except _Brackets as e:
            builder.slips.append(e.diagnostic(source))
        except RecursionError:
            builder.slips.append(Diagnostic("MX112", "the text is nested too deeply"))
        if builder.slips:
            raise SpecError([d if place is None or _within(d.span, place) else replace(d, span=place)
                             for d in builder.slips])
    return found


class _Brackets(Exception):
    """A bracket without its partner."""

    def __init__(self, token: Token, message: str):
        self.token, self.message = token, message

    def diagnostic(self, source: Source) -> Diagnostic:
        closing = self.token in _CLOSES
        return Diagnostic("MX102", self.message, _token_span(source, self.token),
                          "remove it, or open it before" if closing else
                          f"close it with `{({v: k for k, v in _CLOSES.items()})[str(self.token)]}`")


class _Lines:
    """Between lexer and parser: a line's end inside ( ) and [ ] is no end; brackets must match."""

    always_accept = ("_NL",)

    def __init__(self) -> None:
        self.open: list[Token] = []
        self.ends = True  # do lines end?  In the text of one expression they do not

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        self.open = []
        for token in stream:
            if token.type == "_NL":
                if not self.ends or (self.open and self.open[-1] != "{"):
                    continue
            elif token in _CLOSES:
                self._close(token)
            elif token in ("(", "[", "{"):
                if token == "{" and self.open and self.open[-1] != "{":
                    raise _Brackets(self.open[-1], f"this `{self.open[-1]}` is never closed")
                self.open.append(token)
            yield token

    def _close(self, token: Token) -> None:
        if not self.open:
            raise _Brackets(token, f"this `{token}` closes nothing")
        if self.open[-1] != _CLOSES[token]:
            if token == "}":
                raise _Brackets(self.open[-1], f"this `{self.open[-1]}` is never closed")
            raise _Brackets(token, f"this `{token}` closes nothing: `{self.open[-1]}` is open")
        self.open.pop()


@lru_cache(maxsize=1)
def _parser() -> tuple[Lark, _Builder, _Lines]:
    text = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    builder, brackets = _Builder(), _Lines()
    parser = Lark(text, parser="lalr", transformer=builder, postlex=brackets,  # type: ignore[arg-type]
                  start=["start", "test", "dims"])
    return parser, builder, brackets


def _token_span(source: Source, token: Token) -> Span:
    end = token.end_column if token.end_line == token.line else None
    return Span(source, token.line or 1, token.column or 1, end or (token.column or 1) + 1)


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
        return _token_span(self.source, token)

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
        lines = self.source.text.splitlines()[(first.line or 1) - 1:last.end_line]
        lines[-1] = lines[-1][:(last.end_column or 1) - 1]
        lines[0] = lines[0][(first.column or 1) - 1:]
        return "\n".join([*(f"# {line}".rstrip() for line in doc.splitlines()), *lines]) + "\n"

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


# ---------------------------------------------------------------- what was unexpected, and why
_CHARACTERS = {
    ";": "every statement has its own line", "&": "write `and`", "|": "write `or`", "!": "write `not`",
    "~": "write `not`", "^": "a power is written `x ** n`", "\\": "inside brackets a statement may span lines",
    '"': "there are no strings", "'": "there are no strings", "?": "write `where(cond, a, b)`",
}


def _explain(e: UnexpectedInput, source: Source, still_open: list[Token]) -> Diagnostic:
    """One diagnostic for what the parser could not take."""
    if isinstance(e, UnexpectedCharacters):
        return _character(source, e.line, e.column)
    token: Token = getattr(e, "token", None) or Token("$END", "")
    if token.type == "$END":
        if still_open:
            return _Brackets(still_open[-1], f"this `{still_open[-1]}` is never closed").diagnostic(source)
        end = max(1, len(source.text.splitlines()))
        return Diagnostic("MX101", "the text ends too early", Span(source, end, 1, len(source.line(end)) + 1))
    span = _token_span(source, token)
    opened = [t for t in still_open if t is not token]
    if opened and opened[-1] != "{" and (opened[-1].line or 0) < span.line:
        return _Brackets(opened[-1], f"this `{opened[-1]}` is never closed").diagnostic(source)
    line = source.line(span.line)
    first = line.split()[0] if line.split() else ""
    word = first.split("(")[0].rstrip(":")
    if str(token) in slips.STATEMENTS:
        return slips.statement(str(token), span)
    before = re.search(r"(\w+)\s+$", line[:span.column - 1])
    if before and before[1] in slips.STATEMENTS and before[1] not in ("for", word):  # `f = lambda x`
        return slips.statement(before[1], Span(source, span.line, before.start() + 1, before.end(1) + 1))
    if word in slips.STATEMENTS and word != "for":
        start = line.index(word) + 1
        return slips.statement(word, Span(source, span.line, start, start + len(word)))
    return _token(token, span, word, opened, source)


def _character(source: Source, line: int, column: int) -> Diagnostic:
    span = Span(source, line, column, column + 1)
    char = source.line(line)[column - 1:column] or "?"
    help_ = _CHARACTERS.get(char, None if char.isascii() else "names are ASCII: write `beta` for a Greek letter" if
                            char.isalpha() else "operators are ASCII: `*`, `@`, `/`, `-`, `<=`")
    if char.isdigit() or char == ".":
        return Diagnostic("MX111", "this number cannot be read", span, "numbers are written 1, 0.5, 1e-3 or 1j")
    return Diagnostic("MX111", f"the language does not use `{char}`", span, help_)


def _token(token: Token, span: Span, word: str, opened: list[Token], source: Source) -> Diagnostic:
    shown = "the end of the line" if token.type == "_NL" else f"`{token}`"
    if token.type == "_NL":
        end = len(source.line(span.line).split("#")[0].rstrip()) + 1
        span = Span(source, span.line, end, end + 1)
    if not opened:
        help_ = ("a mixer without dims has empty parentheses: `mixer NAME() {`" if word == "mixer" and token == "{" else
                 "its text is wanted here: a shipped spec or a file is found by `mixc.load`" if "\n" not in source.text
                 and "{" not in source.text else "a file holds mixers: `mixer NAME(K, V) { ... }`")
    elif word == "state" and "complex" in source.line(span.line):
        help_ = "a state is complex when what it is assigned is: only inputs and params are declared so"
    elif token == "in" and word in ("in", "param"):
        help_ = "a range is written `g where g <= 0`; `in` starts a line of its own"
    elif token.type == "COLON":
        line = source.line(span.line)
        help_ = ("an assignment is written `x = ...`" if line[span.column:].startswith("=") else
                 "values have no types: write `x = ...`" if re.match(r"\s*\w+\s*$", line[:span.column - 1]) else
                 "blocks stand in braces: `for n in N { ... }`")
    elif token == "=" and re.search(r"\[[^\]]*$", source.line(span.line)[:span.column - 1]):
        help_ = "the size of a dim is said once, in the header: `mixer NAME(D, E = D, N = 4) {`"
    elif token == "=":
        help_ = "one line assigns one name; equality is `==`"
    elif token.type == "_NL":
        help_ = "a statement ends with its line, except inside brackets: put the expression in ( )"
    elif token.type in ("IN", "PARAM", "CONST", "STATE", "FOR", "OUT", "MIXER"):
        help_ = f"`{token}` starts a line of its own"
    elif token.type in ("NAME", "NUMBER", "LPAR") and word not in ("in", "param", "const", "state", "out", "for"):
        help_ = "an operator is missing before it; a product is written `a * b`"
    else:
        help_ = _FORMS.get(word, "a line is a declaration, `x = ...`, `out o[V] = ...` or `for n in N { ... }`")
    return Diagnostic("MX101", f"{shown} does not belong here", span, help_)


_FORMS = {
    "in": "inputs are declared `in q[K], g where g <= 0`", "param": "params are declared `param A[D, N]`",
    "const": "consts are declared `const scale = K ** -0.5`", "state": "states are declared `state S[K, V] = 0`",
    "out": "outs are written `out o[V] = q @ S`",
    "for": "loops are written `for n in N { ... }`, over a dim that the header names: `N`, or `N = 3`",
    "mixer": "a mixer starts with `mixer NAME(K, V = K, N = 4) {`",
}
