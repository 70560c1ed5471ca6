"""The syntax tree: what a `.mix` text and a Python function both become.

Every piece has a span.  Nothing here knows of lark, and nothing has been checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mixc.errors import Diagnostic, Source, Span


# ---------------------------------------------------------------- expressions
@dataclass(frozen=True, slots=True)
class Number:
    value: float | complex
    span: Span


@dataclass(frozen=True, slots=True)
class Name:
    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Unary:
    """`op` is "-", "+" or "not"."""

    op: str
    arg: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Binary:
    """`op` is one of + - * / @ % // ** and or."""

    op: str
    left: Expr
    right: Expr
    span: Span


@dataclass(frozen=True, slots=True)
class Compare:
    """a < b <= c: one operator fewer than operands."""

    ops: tuple[str, ...]
    operands: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """fn[dims](args); `dims` is None without brackets."""

    fn: Name
    dims: tuple[Name, ...] | None
    args: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Index:
    """base[entries]: dims or loop indices."""

    base: Expr
    entries: tuple[Name, ...]
    span: Span


Expr = Number | Name | Unary | Binary | Compare | Call | Index


# ---------------------------------------------------------------- statements
@dataclass(frozen=True, slots=True)
class Declare:
    """One declared name. `role`: in, param, const, state or out; `value`: what follows `=`;
    `inferred`: an out with the dims of its value, in the header's order."""

    role: str
    name: Name
    dims: tuple[Name, ...]
    span: Span
    is_complex: bool = False
    where: Expr | None = None
    value: Expr | None = None
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class Assign:
    """target = value; `op` is the operator of `+=` and its like, or None."""

    target: Name
    value: Expr
    span: Span
    op: str | None = None


@dataclass(frozen=True, slots=True)
class For:
    var: Name
    dim: Name
    body: tuple[Statement, ...]
    span: Span


Statement = Declare | Assign | For


@dataclass(frozen=True, slots=True)
class DimSyntax:
    """A dim of the header; `value`: the dim whose size it shares, or its fixed size."""

    name: Name
    value: Name | Number | None = None


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class MixerSyntax:
    """One mixer. Compared by identity, so that it can be a key of caches.

    `text`: the `.mix` text it was read from, if any; `notes`: found while it was read; `python`: from a function."""

    name: str
    dims: tuple[DimSyntax, ...]
    body: tuple[Statement, ...]
    span: Span
    source: Source
    doc: str = ""
    text: str = ""
    notes: tuple[Diagnostic, ...] = ()


def children(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Unary():
            return (e.arg,)
        case Binary():
            return (e.left, e.right)
        case Compare():
            return e.operands
        case Call():
            return e.args
        case Index():
            return (e.base,)
    return ()


def expressions(body: tuple[Statement, ...]) -> Iterator[Expr]:
    """Every expression and subexpression of a body."""
    stack: list[Expr] = []
    for s in body:
        if isinstance(s, For):
            yield from expressions(s.body)
            continue
        stack += [e for e in ((s.where, s.value) if isinstance(s, Declare) else (s.value,)) if e is not None]
        while stack:
            e = stack.pop()
            yield e
            stack += children(e)


def spelled(e: Expr | Span) -> str:
    """The text that an expression was written as (of several lines: its first)."""
    span = e if isinstance(e, Span) else e.span
    line = span.source.line(span.line)
    text = line[span.column - 1:span.end - 1].strip()
    return text if len(text) <= 60 else text[:57] + "..."
