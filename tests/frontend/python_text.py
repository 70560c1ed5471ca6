"""Specs as Python functions: written by a printer of the tests, run as a file of their own."""

from __future__ import annotations

import itertools
import linecache
from typing import Any

import mixc
from mixc.frontend.syntax import Assign, Declare, For, MixerSyntax, Name, Statement
from mixc.frontend.unparse import expression

_files = itertools.count()


def run(text: str, name: str, **more: Any) -> Any:
    """What `name` is after a Python text was run as a file (as a notebook runs a cell)."""
    filename = f"<cell {next(_files)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    space: dict[str, Any] = {"mixc": mixc, **more}
    exec(compile("from mixc.lang import *", "<names>", "exec"), space)
    exec(compile(text, filename, "exec"), space)
    return space[name]


def as_python(m: MixerSyntax) -> str:
    """The function that says what a `.mix` text says."""
    quoted = [d.name.name + ("" if d.value is None else f" = {d.value.name}" if isinstance(d.value, Name)
                             else f" = {int(d.value.value)}") for d in m.dims]
    declared = [s for s in m.body if isinstance(s, Declare) and s.role != "out"]
    outs = [s for s in m.body if isinstance(s, Declare) and s.role == "out"]
    args = [_parameter(s) for s in declared if s.role != "const"] + [_parameter(s) for s in declared if s.role == "const"]
    said = ", ".join(f"Out({_dims(s)})" for s in outs)
    values = ", ".join(f"{s.name.name}={_value(s)}" for s in outs)
    header = f'@mixc.jit(dims="{", ".join(quoted)}")\ndef {m.name}(*, {", ".join(args)}) -> ({said},):'
    return "\n".join([header, *_lines(m.body, "    "), f"    return mixc.outs({values})"]) + "\n"


def _dims(s: Declare) -> str:
    return ", ".join(f'"{d.name}"' for d in s.dims)


def _value(s: Declare) -> str:
    return expression(s.value) if s.value is not None else ""


def _parameter(s: Declare) -> str:
    if s.role == "const":
        return f'{s.name.name}=Const("{_value(s)}")'
    more = [f'where="{expression(s.where)}"'] if s.where is not None else []
    more += ["complex=True"] if s.is_complex else []
    more += [f'init="{_value(s)}"'] if s.value is not None else []
    return f"{s.name.name}: {s.role.capitalize()}({', '.join([*([_dims(s)] if s.dims else []), *more])})"


def _lines(body: tuple[Statement, ...], indent: str) -> list[str]:
    found: list[str] = []
    for s in body:
        if isinstance(s, For):
            found += [f"{indent}for {s.var.name} in {s.dim.name}:", *_lines(s.body, indent + "    ")]
        elif isinstance(s, Assign):
            found.append(f"{indent}{s.target.name} {s.op or ''}= {expression(s.value)}")
    return found
