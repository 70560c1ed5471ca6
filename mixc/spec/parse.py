"""`.mix` text to syntax: the grammar stands in grammar.lark, what went wrong is said here."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedInput, v_args
from lark.exceptions import VisitError

from mixc.errors import Diagnostic, Source, Span, SpecError
from mixc.spec.syntax import (
    Assign,
    Attribute,
    Binary,
    Call,
    Compare,
    DimSyntax,
    Expr,
    For,
    Index,
    Item,
    MixerSyntax,
    Name,
    Num,
    Out,
    Slice,
    Statement,
    Unary,
)


def parse(source: Source) -> list[MixerSyntax]:
    """The mixers of a file, in order.

    Raises:
        SpecError: with a code MX1xx, the place, and what to write instead."""
    text = _join_brackets(source)
    try:
        tree = _grammar().parse(text + "\n")
        mixers: list[MixerSyntax] = _Build(source).transform(tree)
    except UnexpectedInput as error:
        raise SpecError(_explain(source, error)) from None
    except VisitError as error:
        raise error.orig_exc from None
    if not mixers:
        raise SpecError(Diagnostic("MX101", "no mixer in this text", Span(source, 1, 1, 2),
                                   "a spec begins with `mixer NAME(K, V) {`"))
    return mixers


@functools.lru_cache(maxsize=1)
def _grammar() -> Lark:
    text = (Path(__file__).parent / "grammar.lark").read_text()
    return Lark(text, parser="lalr", propagate_positions=True, maybe_placeholders=True)


def _join_brackets(source: Source) -> str:
    """The text with line ends inside ( ) and [ ] blanked; positions stay what they are."""
    out, depth, comment = [], 0, False
    for ch in source.text:
        if comment and ch != "\n":
            out.append(" ")
            continue
        comment = ch == "#"
        depth += (ch in "([") - (ch in ")]")
        if ch == "{" or ch == "}":
            depth = 0  # a bracket left open ends with its block, so that the error is near
        out.append("\x0b" if ch == "\n" and depth > 0 else " " if comment else ch)
    return "".join(out).replace("\x0b", " ")


def _place(source: Source, position: int, length: int) -> Span:
    before = source.text[:position]
    line = before.count("\n") + 1
    column = position - (before.rfind("\n") + 1) + 1
    return Span(source, line, column, column + max(1, length))


@v_args(meta=True)
class _Build(Transformer[Token, Any]):
    """Lark's tree to ours, bottom up."""

    def __init__(self, source: Source):
        super().__init__()
        self.source = source

    def span(self, meta: Any) -> Span:
        length = meta.end_pos - meta.start_pos
        line_end = self.source.text.find("\n", meta.start_pos)
        if line_end >= 0:
            length = min(length, line_end - meta.start_pos)
        return _place(self.source, meta.start_pos, length)

    def token(self, token: Token) -> Span:
        return _place(self.source, token.start_pos or 0, len(token))

    def start(self, meta: Any, mixers: list[MixerSyntax]) -> list[MixerSyntax]:
        return mixers

    def mixer(self, meta: Any, parts: list[Any]) -> MixerSyntax:
        dims = tuple(p for p in parts[1:] if isinstance(p, DimSyntax))
        return MixerSyntax(str(parts[0]), dims, _flat(parts[1:]), _comment_above(self.source, meta.line),
                           self.token(parts[0]), self.source)

    def dim(self, meta: Any, parts: list[Any]) -> DimSyntax:
        name, value = parts
        if value is not None and value.type == "NUMBER":
            if not value.isdigit() or int(value) == 0:
                raise SpecError(Diagnostic("MX102", f"the size of {name} is a whole number from 1 on, not {value}",
                                           self.token(value)))
            return DimSyntax(str(name), int(value), None, self.token(name))
        return DimSyntax(str(name), None, str(value) if value else None, self.token(name))

    def declare(self, meta: Any, parts: list[Any]) -> list[Item]:
        role = str(parts[0].children[0])
        return [Item(role, *rest) for rest in parts[1:]]

    def init(self, meta: Any, parts: list[Any]) -> Expr:
        return parts[1]  # type: ignore[no-any-return]

    size = range = init

    def item(self, meta: Any, parts: list[Any]) -> tuple[Any, ...]:
        name, dims, cplx, init, where = parts
        return str(name), dims or (), cplx is not None, init, where, self.token(name)

    def dims(self, meta: Any, parts: list[Any]) -> tuple[Name, ...]:
        return tuple(Name(str(t), self.token(t)) for t in parts if t is not None)

    def out(self, meta: Any, parts: list[Any]) -> Out:
        return Out(str(parts[0]), parts[1] or (), parts[2], self.token(parts[0]))

    def assign(self, meta: Any, parts: list[Any]) -> Assign:
        at = next((i for i, p in enumerate(parts) if isinstance(p, Token)), None)
        if at is None:
            targets = tuple(p for p in parts if p is not None)
            return Assign(targets, "", (), self.span(meta))
        values = tuple(p for p in parts[at + 1:] if p is not None)
        return Assign(tuple(parts[:at]), str(parts[at]), values, self.span(meta))

    def name(self, meta: Any, parts: list[Any]) -> Expr:
        return Name(str(parts[0]), self.token(parts[0]))

    where_name = name

    def number(self, meta: Any, parts: list[Any]) -> Expr:
        text = str(parts[0])
        return Num(complex(0, float(text[:-1])) if text.endswith("j") else float(text), self.token(parts[0]))

    def group(self, meta: Any, parts: list[Any]) -> Expr:
        return parts[0]  # type: ignore[no-any-return]

    def binary(self, meta: Any, parts: list[Any]) -> Expr:
        return Binary(str(parts[1]), parts[0], parts[2], self.span(meta))

    def or_(self, meta: Any, parts: list[Any]) -> Expr:
        return Binary("or", parts[0], parts[1], self.span(meta))

    def and_(self, meta: Any, parts: list[Any]) -> Expr:
        return Binary("and", parts[0], parts[1], self.span(meta))

    def not_(self, meta: Any, parts: list[Any]) -> Expr:
        return Unary("not", parts[0], self.span(meta))

    def unary(self, meta: Any, parts: list[Any]) -> Expr:
        return Unary(str(parts[0]), parts[1], self.span(meta))

    def compare(self, meta: Any, parts: list[Any]) -> Expr:
        return Compare(tuple(map(str, parts[1::2])), tuple(parts[::2]), self.span(meta))

    def call(self, meta: Any, parts: list[Any]) -> Expr:
        return Call(parts[0], tuple(p for p in parts[1:] if p is not None), self.span(meta))

    def index(self, meta: Any, parts: list[Any]) -> Expr:
        return Index(parts[0], tuple(parts[1:]), self.span(meta))

    def attribute(self, meta: Any, parts: list[Any]) -> Expr:
        return Attribute(parts[0], str(parts[1]), self.span(meta))

    def slice(self, meta: Any, parts: list[Any]) -> Expr:
        return Slice(self.span(meta))


def _for(self: _Build, meta: Any, parts: list[Any]) -> For:
    return For(str(parts[0]), str(parts[1]), _flat(parts[2:]), self.span(meta))


setattr(_Build, "for", v_args(meta=True)(_for))  # `for` is a keyword of Python, and the grammar's word


def _flat(parts: list[Any]) -> tuple[Statement, ...]:
    out: list[Statement] = []
    for p in parts:
        if isinstance(p, list):
            out += p
        elif isinstance(p, (Out, Assign, For)):
            out.append(p)
    return tuple(out)


def _comment_above(source: Source, line: int) -> str:
    """The block of comment lines directly above a mixer."""
    lines, doc = source.text.splitlines(), []
    for text in reversed(lines[: line - 1]):
        if not text.strip().startswith("#"):
            break
        doc.append(text.strip()[1:].strip())
    return "\n".join(reversed(doc))


# What a PyTorch user writes first, and what to write instead.
_SLIPS: tuple[tuple[str, str, str], ...] = (
    (r"^\s*if\b", "`if` is no statement of a step", "write `where(cond, a, b)`: both branches are values"),
    (r"^\s*while\b", "`while` is no statement of a step", "loops run over a dim: `for n in N { ... }`"),
    (r"^\s*(def|class|import|from|return)\b", "this is Python, not a spec", "a spec holds declarations and assignments only"),
    (r"\blambda\b", "`lambda` is not in the language", "give the expression a name: `f = ...`"),
    (r"\[[^\]]*:[^\]]*\]", "slices are not in the language", "dims have names: write the whole value, or `x[n]` in a `for n in N`"),
)


def _explain(source: Source, error: UnexpectedInput) -> Diagnostic:
    position = getattr(error, "pos_in_stream", None)
    token = getattr(error, "token", None)
    if position is None or position < 0 or position >= len(source.text) or (token is not None and token.type == "$END"):
        position = max(0, len(source.text.rstrip()) - 1)
        return Diagnostic("MX103", "the text ends inside a mixer", _place(source, position, 1), "is a `}` or `)` missing?")
    length = len(token) if token is not None and str(token).strip() else 1
    span = _place(source, position, length)
    line = source.line(span.line)
    for pattern, message, help in _SLIPS:
        found = re.search(pattern, line.split("#")[0])
        if found:
            start = found.start() + len(found[0]) - len(found[0].lstrip())
            return Diagnostic("MX104", message, Span(source, span.line, start + 1, found.end() + 1), help)
    what = source.text[position:position + length].strip() or "the end of the line"
    help_line = None
    text = line.split("#")[0]
    if text.count("(") != text.count(")") or text.count("[") != text.count("]"):
        help_line = "a bracket is not closed on this line"
    return Diagnostic("MX100", f"did not expect `{what}` here" if what != "the end of the line" else
                      "the statement is not complete", span, help_line)
