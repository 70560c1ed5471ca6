"""How a mixer shows itself: signature, repr, and the text that `help` prints."""

from __future__ import annotations

import inspect
from typing import Any

from mixc.codegen.notation import Spelling
from mixc.ir.node import Node
from mixc.ir.program import Decl, Program, Range

OPTION_DEFAULTS: dict[str, Any] = {
    "initial_state": None, "output_final_state": False, "cu_seqlens": None, "mask": None,
    "reverse": False, "check": False, "backend": "auto",
}


class Words:
    """A default that shows as an expression of the language."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def expression(node: Node) -> str:
    """An expression of numbers, sizes and consts in the language's own words."""
    return Spelling({}, whole=True).text(node)


def shape(d: Decl, *lead: str) -> str:
    """`q[K]` without leading axes, `[B, T, H, K]` with them."""
    if lead:
        return f"[{', '.join([*lead, *d.dims])}]"
    return f"{d.name}[{', '.join(d.dims)}]" if d.dims else d.name


def range_text(name: str, r: Range) -> str:
    of = r.subject(name)
    low = f"{expression(r.low)} {'<' if r.low_open else '<='} " if r.low is not None else ""
    high = f" {'<' if r.high_open else '<='} {expression(r.high)}" if r.high is not None else ""
    if low and not high:
        return f"{of} {'>' if r.low_open else '>='} {expression(r.low)}"  # type: ignore[arg-type]
    return f"{low}{of}{high}"


def signature(program: Program) -> inspect.Signature:
    """(q, k, v, …, *, scale=K ** -0.5, initial_state=None, …)"""
    kind = inspect.Parameter
    found = [kind(d.name, kind.POSITIONAL_OR_KEYWORD) for d in (*program.ins, *program.params)]
    found += [kind(d.name, kind.KEYWORD_ONLY, default=Words(expression(d.init)))
              for d in program.consts if d.init is not None]
    found += [kind(name, kind.KEYWORD_ONLY, default=value) for name, value in OPTION_DEFAULTS.items()]
    return inspect.Signature(found)


def representation(program: Program) -> str:
    """<mixer gla(q[K], k[K], v[V], g[K], *, scale) -> o[V], states S[K, V]>"""
    args = [shape(d) for d in (*program.ins, *program.params)]
    if program.consts:
        args += ["*", *(f"{d.name}={expression(d.init)}" for d in program.consts if d.init is not None)]
    outs = ", ".join(shape(d) for d in program.outs)
    states = ", ".join(shape(d) for d in program.states)
    return f"<mixer {program.name}({', '.join(args)}) -> {outs}{'; state ' + states if states else ''}>"


def documentation(program: Program) -> str:
    """The comment above the mixer, and a table of what goes in and comes out."""
    rows: list[tuple[str, str, str]] = []
    for d in (*program.ins, *program.params):
        text = shape(d, "B", "T", "H") if d.role == "in" else shape(d, "H")
        notes = [*(["complex"] if d.kind == "complex" else []), *(range_text(d.name, r) for r in d.ranges)]
        rows.append((d.name, text, ", ".join([*(["learned"] if d.role == "param" else []), *notes])))
    rows += [(d.name, "a number", f"default {expression(d.init)}") for d in program.consts if d.init is not None]
    back = [(d.name, shape(d, "B", "T", "H"), "") for d in program.outs]
    kept = [(d.name, shape(d, "B", "H"), "starts at " + (expression(d.init) if d.init is not None else "0"))
            for d in program.states]
    tables = [("Arguments", rows), ("Returns (o, state)", back), ("State", kept)]
    width = [max([0, *(len(r[i]) for _, table in tables for r in table)]) for i in (0, 1)]
    parts = [program.doc.strip()] if program.doc.strip() else []
    for title, table in tables:
        lines = [f"    {n:<{width[0]}}  {s:<{width[1]}}  {w}".rstrip() for n, s, w in table]
        if lines:
            parts.append("\n".join([f"{title}:", *lines]))
    options = ", ".join(f"{name}={value!r}" for name, value in OPTION_DEFAULTS.items())
    parts.append(f"Options: {options}.\nG heads may stand for H where G divides it; without a head axis on any input, "
                 "H is 1 and nothing has one.")
    return "\n\n".join(parts)
