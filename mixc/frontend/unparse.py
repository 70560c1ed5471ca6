"""A syntax tree as `.mix` text, which parses to the same tree."""

from __future__ import annotations

import math

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
)
from mixc.ir.program import Program

_LEVEL = {"or": 1, "and": 2, "not": 3, "compare": 4, "+": 5, "-": 5, "*": 6, "/": 6, "@": 6, "%": 6, "//": 6,
          "sign": 7, "**": 8}


def unparse(mixer: MixerSyntax, declared: Program) -> str:
    """The text; `declared` knows the dims of outs that the tree leaves to their values."""
    doc = [f"# {line}".rstrip() for line in mixer.doc.split("\n")] if mixer.doc else []
    header = ", ".join(map(_dim, mixer.dims))
    return "\n".join([*doc, f"mixer {mixer.name}({header}) {{", *_lines(mixer.body, declared, "    "), "}"]) + "\n"


def _dim(d: DimSyntax) -> str:
    value = "" if d.value is None else f" = {d.value.name if isinstance(d.value, Name) else _number(d.value.value)}"
    return d.name.name + value


def _lines(body: tuple[Statement, ...], declared: Program, indent: str) -> list[str]:
    found: list[str] = []
    for i, s in enumerate(body):
        if i and _declares(body[i - 1]) and not _declares(s):
            found.append("")
        if isinstance(s, For):
            found += [f"{indent}for {s.var.name} in {s.dim.name} {{", *_lines(s.body, declared, indent + "    "),
                      f"{indent}}}"]
        elif isinstance(s, Assign):
            found.append(f"{indent}{s.target.name} {s.op or ''}= {expression(s.value)}")
        else:
            found.append(indent + _declaration(s, declared))
    return found


def _declares(s: Statement) -> bool:
    return isinstance(s, Declare) and s.role != "out"


def _declaration(s: Declare, declared: Program) -> str:
    dims = declared.decl(s.name.name).dims if s.inferred else tuple(d.name for d in s.dims)
    return "".join([f"{s.role} {s.name.name}", f"[{', '.join(dims)}]" if dims else "",
                    " complex" if s.is_complex else "",
                    f" where {expression(s.where)}" if s.where is not None else "",
                    f" = {expression(s.value)}" if s.value is not None else ""])


def expression(e: Expr, outer: int = 0) -> str:
    """`outer`: how tightly the operator around it binds."""
    text, level = _expression(e)
    return f"({text})" if level < outer else text


def _expression(e: Expr) -> tuple[str, int]:
    match e:
        case Number():
            text = _number(e.value)
            return text, 5 if " " in text else 7 if text.startswith("-") else 9
        case Name():
            return e.name, 9
        case Unary(op="not"):
            return f"not {expression(e.arg, 3)}", 3
        case Unary():
            return e.op + expression(e.arg, 7), 7
        case Binary(op="**"):
            return f"{expression(e.left, 9)} ** {expression(e.right, 7)}", 8
        case Binary():
            level = _LEVEL[e.op]
            return f"{expression(e.left, level)} {e.op} {expression(e.right, level + 1)}", level
        case Compare():
            pairs = zip(("", *(f" {op} " for op in e.ops)), e.operands, strict=True)
            return "".join(op + expression(x, 5) for op, x in pairs), 4
        case Index():
            return f"{expression(e.base, 9)}[{', '.join(n.name for n in e.entries)}]", 9
        case Call():
            dims = "" if e.dims is None else f"[{', '.join(n.name for n in e.dims)}]"
            return f"{e.fn.name}{dims}({', '.join(map(expression, e.args))})", 9


def _number(x: float | complex) -> str:
    if isinstance(x, complex):
        return f"{_number(x.imag)}j" if x.real == 0 else f"{_number(x.real)} + {_number(x.imag)}j"
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    return str(int(x)) if x.is_integer() and abs(x) < 1e15 else repr(x)
