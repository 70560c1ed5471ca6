"""An emitted function, and what it reads off its arguments: sizes, consts, and whose dtype its outs have. Text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mixc.codegen.expressions import python_text
from mixc.codegen.lines import indent, names_read, tuple_text
from mixc.codegen.names import safe
from mixc.ir.node import JOINT
from mixc.ir.program import Decl, Dim, Program
from mixc.passes.context import counts_tokens, looked_back


def function_lines(name: str, taken: Iterable[str], doc: str, body: Iterable[str], outs: list[str],
                   final: Iterable[tuple[str, str]], step: Program) -> list[str]:
    """What programs call: outs always a tuple, sequences as (first row, length).

    Args:
        final: names of final states and what has them. step: what looks back at earlier tokens."""
    states = [*(f"'{s}': {x}" for s, x in final), *["**past.kept()"] * bool(looked_back(step)),
              *["'pos': past.counted()"] * counts_tokens(step)]
    last = f"return {tuple_text(outs)}, {{{', '.join(states)}}} if output_final_state else None"
    return [f"def {name}({', '.join(taken)}, *, initial_state=None, output_final_state=False, sequences=None,",
            f"{' ' * (5 + len(name))}reverse=False):",
            f'    """{doc}; sequences: the first row and the length of each."""', *indent([*body, last], 1)]


def size_lines(tensors: Sequence[Decl], dims: Iterable[Dim]) -> list[str]:
    """B, T, H and the size of every dim, read off the tensors."""
    lines = [f"B, T = {safe(tensors[0].name)}.shape[:2]",
             "H = max(" + ", ".join(f"{safe(d.name)}.shape[{2 if d.role == 'in' else 0}]" for d in tensors) + ", 1)"]
    known: set[str] = set()
    dims = [d for d in dims if JOINT not in d.name]
    for d in dims:
        if d.size is not None:
            lines.append(f"{d.name} = {d.size}")
            known.add(d.name)
    for decl in tensors:
        for i, dim in enumerate(decl.dims):
            if dim not in known:
                lines.append(f"{dim} = {safe(decl.name)}.shape[{(3 if decl.role == 'in' else 1) + i}]")
                known.add(dim)
    for d in dims:
        if d.alias and d.name in known and d.alias not in known:
            lines.append(f"{d.alias} = {d.name}")
            known.add(d.alias)
    for d in dims:
        if d.name not in known:
            if d.alias is None:
                raise ValueError(f"no tensor has dim {d.name}")
            lines.append(f"{d.name} = {d.alias}")
    return lines


def only_needed(lines: list[str], below: Iterable[str]) -> list[str]:
    """Of `size_lines` those that the lines below them read, or each other."""
    read, kept = names_read("\n".join(below)), list[str]()
    for line in reversed(lines):
        if read & names_read(line.split(" = ")[0]):
            kept.append(line)
            read |= names_read(line)
    return kept[::-1]


def const_lines(consts: Iterable[Decl], given: Iterable[Decl], fixed: frozenset[str]) -> list[str]:
    """A value for every const.

    Args:
        given: the same under the names of the call's arguments. fixed: those that are as they are declared."""
    lines = []
    for c, outer in zip(consts, given, strict=True):
        assert c.init is not None
        lines.append(f"{c.name} = {python_text(c.init)} if {c.name} is None else float({c.name})")
        if outer.name in fixed:
            lines.append(f"if {c.name} != {python_text(c.init)}:\n"
                         f'    raise ValueError("`{outer.name}`: this module was written for {python_text(c.init)}")')
    return lines


def typed_by(tensors: Sequence[Decl]) -> Decl:
    """The input whose dtype outs have."""
    return next((d for d in tensors if d.role == "in" and d.dims and not d.exact), tensors[0])
