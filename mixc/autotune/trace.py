"""What a kernel does, read off its text: products, loads, stores, special functions, elementwise work.

The kernel is run with shapes in place of values.  Sizes of blocks stay names, so one trace of a chunk size
serves every block size; its counts are polynomials in them.  Whatever is emitted is counted as it stands,
prelude functions included: no table here says what an operation of the compiler costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from types import CodeType
from typing import Any

from mixc.autotune.counts import ONE, Counts, Size, known_rows, times
from mixc.autotune.operations import Language, Operations
from mixc.autotune.shapes import INDEX, NeedsSize, Symbol, Tile, Type, Unknown, said

STATES = ("_initial", "_final", "_first")  # pointers to fp32
_FUNCTION = re.compile(r"^def (\w+)\(.*\n(?:[ \t)].*(?:\n|\Z)|\n)*", re.MULTILINE)  # to the next line at the margin
_SOMETIMES = re.compile(r"^( +)if (.* % \(?SEGMENT\b.*):", re.MULTILINE)  # in which chunks is not known, but how often

_CALLS: dict[Any, tuple[Any, Counts]] = {}  # of functions that kernels call: what they give and cost
_MOST_CALLS = 1 << 14


@lru_cache(maxsize=16)
def functions(text: str) -> dict[str, str]:
    """The text of each function of a module."""
    return {found[1]: found[0] for found in _FUNCTION.finditer(text)}


@lru_cache(maxsize=512)
def _compiled(function: str) -> CodeType:
    """Modules share most of theirs."""
    text = _SOMETIMES.sub(r"\1for _ in sometimes(\2):", function)
    return compile(text, "<kernel>", "exec", annotations.compiler_flag)


class _Names(dict[str, Any]):
    """What functions read that is none of their own; of others nothing is known."""

    def __init__(self, trace: Trace):
        super().__init__(dict.fromkeys(("tl", "triton", "math"), Language(trace)), len=len, float=float,
                         range=trace.loop, sometimes=trace.sometimes,
                         min=partial(_extreme, min), max=partial(_extreme, max))
        self.trace = trace

    def __missing__(self, name: str) -> Any:
        if name not in self.trace.functions:
            return INDEX
        self[name] = found = self.trace.function(name)
        return found


def _extreme(f: Callable[..., Any], *args: Any) -> Any:
    return f(args) if all(isinstance(a, int) for a in args) else args[0]


class Trace(Operations):
    """One run over the text of a module's kernel.

    Args:
        text: of the module. C: rows a chunk, or those that there may be: then C is a name too, and what functions that
            need it cost is told by `at`. operand: bytes of the tensors' values.
        dims: those with blocks. known: values of constexpr arguments."""

    def __init__(self, text: str, kernel: str, C: int | tuple[int, ...], operand: int, dims: list[str],
                 known: tuple[tuple[str, Any], ...] = ()):
        self.functions, self.names, self.kernel = functions(text), _Names(self), kernel
        self.C, self.operand, self.dims, self.counts = C, operand, dims, Counts()
        self.later: list[tuple[_Run, Any, Size, bool]] = []  # what needs the number of rows, and what it gives
        self.weight, self.known = ONE, dict(known)
        self.in_loop = self.inside = False  # over chunks; a function that the kernel calls
        fn = self._defined(self.functions[kernel])
        with self.running():
            fn(*map(self._argument, _arguments(fn)))

    def _argument(self, name: str) -> Any:
        given: dict[str, Any] = {
            "C": self.C if isinstance(self.C, int) else Symbol((1, ("C",))), "SEGMENT": Symbol((1, ("SEGMENT",))),
            "SIGN": 1, "RAGGED": False, "KEEP": True, "segment_at": None, "HAS_INITIAL": False, "STORE_FINAL": False,
            "PRECISION": "tf32" if self.operand == 2 else "tf32x3",
            "OPERAND": Type("operand"), **self.known}
        if name in given:
            return given[name]
        if name.startswith("B") and name[1:] in self.dims:
            return Symbol((1, (name,)))
        if name.endswith(("_ptr", "_starts", "_ends", "_kept", *STATES)):
            return Tile((), 4 if name.endswith(STATES) else self.operand, "pointer", name)
        return INDEX

    # ------------------------------------------------------------ loops and conditions
    def loop(self, *args: Any, **_: Any) -> Iterator[Any]:
        """A `range`: over numbers each, over what is not known once, so many times."""
        if all(isinstance(a, int) for a in args):
            yield from range(*args)
            return
        if any(isinstance(a, Symbol) for a in args):
            raise NeedsSize
        outer = self.weight, self.in_loop
        self.weight, self.in_loop = times(self.weight, (1, ("replays" if self.in_loop else "chunks",))), True
        yield INDEX
        self.weight, self.in_loop = outer

    def sometimes(self, condition: Any) -> Iterator[None]:
        """The body of a condition that holds where a segment begins."""
        if condition:
            outer, self.weight = self.weight, times(self.weight, (1, ("keeps",)))
            yield None
            self.weight = outer

    # ------------------------------------------------------------ calls
    def _defined(self, text: str) -> Callable[..., Any]:
        exec(_compiled(text), self.names, found := dict[str, Any]())
        return found.popitem()[1]

    def function(self, name: str) -> Callable[..., Any]:
        """What a call of one of the text's functions does."""
        text = self.functions[name]
        fn = self._defined(text)
        if name.startswith(self.kernel):  # a part of it
            return fn
        names, defaults = _arguments(fn), fn.__defaults__ or ()
        before = dict(zip(names[len(names) - len(defaults):], defaults, strict=True))
        return lambda *args, **words: self._call(
            _Run(self, text, fn, {**before, **dict(zip(names, args, strict=False)), **words}))

    def _call(self, run: _Run) -> Any:
        """What it gives; it is counted, now or where the number of rows is known."""
        try:
            if any(x.__class__ is ByRows for x in run.given.values()):
                raise NeedsSize
            result, counted = run(run.given)
        except NeedsSize:
            if self.inside or isinstance(self.C, int):
                raise
            try:
                found = of_any([run.at(C)[0] for C in self.C[:2]], self.C)
            except NeedsSize:
                found = ByRows(run)
            self.later.append((run, found, self.weight, self.in_loop))
            return found
        self.counts.take(counted, self.weight, self.inside)
        return result

    def at(self, C: int) -> Counts:
        """The counts with so many rows.

        Raises:
            NeedsSize: what functions give is not what it seemed to be, by fewer rows."""
        more = Counts()
        with self.running():
            for run, found, weight, in_loop in self.later:
                self.in_loop = in_loop
                result, counted = run.at(C)
                if said(at_rows(found, C)) != said(result):
                    raise NeedsSize
                more.take(counted, weight, False)
        return self.counts.at_rows(C, more)


def _arguments(fn: Callable[..., Any]) -> tuple[str, ...]:
    return fn.__code__.co_varnames[:fn.__code__.co_argcount]


@dataclass(frozen=True)
class _Run:
    """A function, and what it is given."""

    trace: Trace
    text: str
    fn: Callable[..., Any]
    given: dict[str, Any]

    def __call__(self, given: dict[str, Any]) -> tuple[Any, Counts]:
        """What it gives and costs: the same shapes again cost the same, in whichever kernel."""
        t = self.trace
        key = self.text, t.operand, t.in_loop, said(tuple(given.items()))
        if key not in _CALLS:
            outer = t.counts, t.weight, t.inside, t.in_loop
            t.counts, t.weight, t.inside = Counts(), ONE, True
            try:
                found = self.fn(**given), t.counts
            finally:
                t.counts, t.weight, t.inside, t.in_loop = outer
            if len(_CALLS) >= _MOST_CALLS:
                _CALLS.clear()
            _CALLS[key] = found
        return _CALLS[key]

    def at(self, C: int) -> tuple[Any, Counts]:
        return self({name: at_rows(x, C) for name, x in self.given.items()})


@dataclass(eq=False)
class ByRows(Unknown):
    """What is of another kind for each number of rows."""

    run: _Run


def at_rows(x: Any, C: int) -> Any:
    """A value with so many rows."""
    if isinstance(x, ByRows):
        return x.run.at(C)[0]
    if isinstance(x, tuple):
        return tuple(at_rows(y, C) for y in x)
    if isinstance(x, Symbol):
        c, names = known_rows(x.size, C)
        return Symbol((c, names)) if names else int(c) if c == int(c) else c
    return Tile(tuple(known_rows(s, C) for s in x.sides), x.width, x.kind, x.base) if isinstance(x, Tile) else x


def of_any(results: list[Any], rows: tuple[int, ...]) -> Any:
    """The value of which these are what it is with the first of `rows`.

    Raises:
        NeedsSize: there is none."""
    first = results[0]
    if any(x.__class__ is not first.__class__ for x in results):
        raise NeedsSize
    if isinstance(first, Tile):
        if len({(len(x.sides), x.width, x.kind, x.base) for x in results}) == 1:
            return Tile(tuple(_side([x.sides[i] for x in results], rows) for i in range(len(first.sides))),
                        first.width, first.kind, first.base)
    elif isinstance(first, tuple):
        if len({*map(len, results)}) == 1:
            return tuple(of_any(list(each), rows) for each in zip(*results, strict=True))
    elif all(said(x) == said(first) for x in results):
        return first
    raise NeedsSize


def _side(sizes: list[Size], rows: tuple[int, ...]) -> Size:
    names = {n for _, n in sizes}
    for power in (0, 1, 2) if len(names) == 1 else ():
        each = {c / C ** power for (c, _), C in zip(sizes, rows, strict=False)}
        if len(each) == 1:
            return times((each.pop(), names.pop()), (1, ("C",) * power))
    raise NeedsSize


def counts_of(text: str, kernel: str, rows: tuple[int, ...], operand: int, dims: tuple[str, ...],
              known: tuple[tuple[str, Any], ...] = ()) -> dict[tuple[int, ...], Callable[[], Counts]]:
    """The counts of a kernel of a module, with a name for the rows of a chunk, or for a number of them, by those of
    `rows` that they are for. See `Trace`."""
    def trace(C: int | tuple[int, ...]) -> Trace:
        return Trace(text, kernel, C, operand, list(dims), known)

    def at(C: int) -> Counts:
        try:
            return (found.at(C) if found else trace(C).counts).grouped()
        except NeedsSize:
            return trace(C).counts.grouped()
    try:
        found = trace(rows)
    except NeedsSize:
        found = None
    if found and not found.later:
        return {rows: cache(found.counts.grouped)}
    return {(C,): cache(partial(at, C)) for C in rows}
