"""The syntax tree of a spec, the same from `.mix` text and from a Python function.

Everything carries its span; nothing here knows what a name means.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixc.errors import Source, Span


@dataclass(frozen=True)
class Num:
    value: float | complex
    span: Span


@dataclass(frozen=True)
class Name:
    id: str
    span: Span


@dataclass(frozen=True)
class Unary:
    """op: "-", "+" or "not"."""

    op: str
    x: Expr
    span: Span


@dataclass(frozen=True)
class Binary:
    """op: + - * / @ % // ** and or."""

    op: str
    a: Expr
    b: Expr
    span: Span


@dataclass(frozen=True)
class Compare:
    """A chain `a < b <= c`."""

    ops: tuple[str, ...]
    items: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class Call:
    """f(args), or f[dims](args): then `fn` is an Index."""

    fn: Expr
    args: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class Index:
    base: Expr
    entries: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class Attribute:
    base: Expr
    name: str
    span: Span


@dataclass(frozen=True)
class Slice:
    span: Span


Expr = Num | Name | Unary | Binary | Compare | Call | Index | Attribute | Slice


@dataclass(frozen=True)
class Item:
    """One declared name. `where`: its range; `init`: the value of a const, the start of a state."""

    role: str
    name: str
    dims: tuple[Name, ...]
    complex: bool
    init: Expr | None
    where: Expr | None
    span: Span


@dataclass(frozen=True)
class Out:
    name: str
    dims: tuple[Name, ...]
    value: Expr
    span: Span


@dataclass(frozen=True)
class Assign:
    """op: "=", "+=", ...; `targets` and `values` have one entry in a right spec."""

    targets: tuple[Expr, ...]
    op: str
    values: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class For:
    var: str
    dim: str
    body: tuple[Statement, ...]
    span: Span


Statement = Item | Out | Assign | For


@dataclass(frozen=True)
class DimSyntax:
    name: str
    size: int | None
    alias: str | None
    span: Span


@dataclass(frozen=True)
class MixerSyntax:
    name: str
    dims: tuple[DimSyntax, ...]
    body: tuple[Statement, ...]
    doc: str
    span: Span
    source: Source
