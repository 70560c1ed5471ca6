"""The source of a Python function: its definition in the syntax tree of the whole file, and spans in that file."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mixc.errors import Diagnostic, Source, Span, SpecError

Positioned = ast.expr | ast.stmt | ast.arg | ast.keyword


@dataclass(frozen=True)
class Definition:
    """A function, its definition, and the file (or notebook cell) that it stands in."""

    fn: Any
    node: ast.FunctionDef
    source: Source

    def span(self, node: Positioned, last: Positioned | None = None) -> Span:
        """From the start of one node to the end of another; of several lines the first one."""
        last = last or node
        line = self.source.line(node.lineno)
        end = _column(self.source.line(last.end_lineno or 0), last.end_col_offset or 0)
        first = _column(line, node.col_offset)
        return Span(self.source, node.lineno, first, end if last.end_lineno == node.lineno else len(line.rstrip()) + 1)

    def text(self, node: ast.expr) -> str:
        return ast.get_source_segment(self.source.text, node) or ast.unparse(node)

    @property
    def name_span(self) -> Span:
        line = self.source.line(self.node.lineno)
        at = line.index(self.node.name, _column(line, self.node.col_offset) + 2) + 1
        return Span(self.source, self.node.lineno, at, at + len(self.node.name))


def _column(line: str, offset: int) -> int:
    """Column (from 1) of an offset in UTF-8 bytes."""
    return len(line.encode()[:offset].decode(errors="ignore")) + 1


def definition(fn: Any) -> Definition:
    """Where a function is written.

    Raises:
        SpecError: MX113, it is no function, or its source cannot be read."""
    fn = getattr(fn, "__func__", fn)  # @staticmethod
    name = getattr(fn, "__name__", repr(fn))
    if hasattr(fn, "__wrapped__") or not inspect.isfunction(fn):
        raise _unreadable(f"`{name}` is no plain function", "@mixc.jit reads the source and stands directly above "
                          "`def`; other decorators go above it")
    if fn.__name__ == "<lambda>":
        raise _unreadable("a lambda has no lines", "write a function with `def`")
    filename = fn.__code__.co_filename
    linecache.checkcache(filename)
    text = "".join(linecache.getlines(filename, fn.__globals__))
    found = _find(text, fn.__code__.co_firstlineno, fn.__code__.co_name) if text else None
    if found is None:
        why = f"{filename} has changed since it was run" if text else f"{filename} holds no text"
        raise _unreadable(f"the source of `{name}` cannot be read: {why}",
                          "run it from a file or a notebook cell, or give the text to `mixc.loads`")
    if isinstance(found, ast.AsyncFunctionDef):
        raise _unreadable(f"`{name}` is async", "write `def`: a mixer is one token's step")
    return Definition(fn, found, Source(filename, text))


def _unreadable(message: str, help_: str) -> SpecError:
    return SpecError(Diagnostic("MX113", message, None, help_))


@lru_cache(maxsize=8)
def _functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _find(text: str, line: int, name: str) -> Any:
    return next((n for n in _functions(text) if n.name == name
                 and line in (n.lineno, *(d.lineno for d in n.decorator_list))), None)


def captured(fn: Callable[..., Any], name: str) -> Any:
    """What a free name of a function is bound to, in its closure, its module or Python; KeyError if nothing."""
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    if name in cells:
        try:
            return cells[name].cell_contents
        except ValueError:
            raise KeyError(name) from None
    return fn.__globals__[name]


def declared_objects(d: Definition) -> dict[str, Any]:
    """The annotations and defaults of a function as objects (`return` too); text is evaluated where it was written.

    Under `from __future__ import annotations` they are text: names of the module and of the closure are known."""
    cells = {n: c.cell_contents for n, c in zip(d.fn.__code__.co_freevars, d.fn.__closure__ or (), strict=True)}
    found = {}
    for name, note in d.fn.__annotations__.items():
        if isinstance(note, str):
            import mixc.lang as lang

            try:
                note = eval(note, {**vars(lang), **d.fn.__globals__, **cells})  # the caller's own Python
            except Exception:
                note = None
        found[name] = note
    return found


def defaults(d: Definition) -> dict[str, tuple[Any, ast.expr]]:
    """The defaults of a function: the object, and where it is written."""
    a = d.node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args)]
    values = d.fn.__defaults__ or ()
    found = dict(zip(names[len(names) - len(values):], zip(values, a.defaults, strict=True), strict=True))
    for x, node in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        if node is not None:
            found[x.arg] = d.fn.__kwdefaults__[x.arg], node
    return found
