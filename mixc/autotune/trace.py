"""What a kernel does, read off its text: products, loads, stores, special functions, elementwise work.

The kernel is run with shapes in place of values.  Sizes of blocks stay names, so one trace of a chunk size
serves every block size; its counts are polynomials in them.  Whatever is emitted is counted as it stands,
prelude functions included: no table here says what an operation of the compiler costs.
"""

from __future__ import annotations

import ast
import operator as op
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

from mixc.autotune.counts import ONE, Counts, Size, Symbol, Tile, known_rows, size_of, times, volume
from mixc.autotune.functions import functions, parsed
from mixc.autotune.operations import Operations

STATES = ("_initial", "_final", "_first")  # pointers to fp32

# results a clock that are not additions and products, as the meter weighs them
SPECIAL = {"exp": 1, "exp2": 1, "log": 1, "log2": 1, "sqrt": 1, "rsqrt": 1, "sin": 1, "cos": 1, "erf": 1,
           "sigmoid": 2, "tanh": 2, "fdiv": 1, "div": 1}


_CALLS: dict[Any, tuple[Any, Counts]] = {}  # of functions that kernels call: what they give and cost
_MOST_CALLS = 1 << 14


class NeedsSize(Exception):
    """The text depends on the number of rows: trace it for each."""


class Trace(Operations):
    """One run over the text of a module's kernel.

    Args:
        text: of the module. C: rows a chunk, or those that there may be: then C is a name too, and what functions that
            need it cost is told by `at`. operand: bytes of the tensors' values.
        dims: those with blocks. known: values of constexpr arguments."""

    def __init__(self, text: str, kernel: str, C: int | tuple[int, ...], operand: int, dims: list[str],
                 known: tuple[tuple[str, Any], ...] = ()):
        self.functions = functions(text)
        self.C, self.operand, self.dims, self.counts = C, operand, dims, Counts()
        self.later: list[tuple[_Run, Any, Size, bool]] = []  # what needs the number of rows, and what it gives
        self._kinds: dict[type, Callable[[Any], Any]] = {}
        self.weight, self.known = ONE, dict(known)
        self.in_loop = self.inside = False  # over chunks; a function that the kernel calls
        fn = parsed(self.functions[kernel])
        self.env: dict[str, Any] = {a.arg: self._argument(a.arg) for a in fn.args.args}
        self._block(fn.body)

    def _argument(self, name: str) -> Any:
        given: dict[str, Any] = {
            "C": self.C if isinstance(self.C, int) else Symbol((1, ("C",))), "SEGMENT": Symbol((1, ("SEGMENT",))),
            "SIGN": 1, "RAGGED": False, "KEEP": True, "HAS_INITIAL": False, "STORE_FINAL": False,
            "PRECISION": "tf32" if self.operand == 2 else "tf32x3",
            "OPERAND": "operand", **self.known}
        if name in given:
            return given[name]
        if name.startswith("B") and name[1:] in self.dims:
            return Symbol((1, (name,)))
        if name.endswith(("_ptr", "_starts", "_ends", "_kept", *STATES)):
            return Tile((), 4 if name.endswith(STATES) else self.operand, "pointer", name)
        return Tile((), 4, "int")

    # ------------------------------------------------------------ statements
    def _block(self, body: list[ast.stmt]) -> Any:
        for statement in body:
            done = self._statement(statement)
            if done is not None:
                return done
        return None

    def _statement(self, s: ast.stmt) -> Any:
        if isinstance(s, ast.Return):
            return self.value(s.value) if s.value else None
        if isinstance(s, ast.Assign):
            self._assign(s.targets[0], self._given(s.value))
        elif isinstance(s, ast.AnnAssign) and s.value is not None:
            self._assign(s.target, self.value(s.value))
        elif isinstance(s, ast.AugAssign):
            old = self.value(ast.BinOp(_loaded(s.target), s.op, s.value))
            self._assign(s.target, old)
        elif isinstance(s, ast.Expr):
            self.value(s.value)
        elif isinstance(s, ast.If):
            return self._if(s)
        elif isinstance(s, ast.For):
            self._for(s)
        return None

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            for i, t in enumerate(target.elts):
                self._assign(t, value[i] if isinstance(value, tuple) else value)
        elif isinstance(target, ast.Name):
            self.env[target.id] = value

    def _if(self, s: ast.If) -> Any:
        test = self.value(s.test)
        if test == "once a segment":
            return self._weighted((1, ("keeps",)), s.body)
        known = test if isinstance(test, (bool, int, str)) or test is None else True
        return self._block(s.body if known else s.orelse)

    def _for(self, s: ast.For) -> None:
        assert isinstance(s.iter, ast.Call)
        what = _name(s.iter.func)
        args = [self.value(a) for a in s.iter.args]
        if what == "static_range" or all(isinstance(a, int) for a in args):
            for i in range(*args):
                self._assign(s.target, i)
                self._block(s.body)
            return
        if any(isinstance(a, Symbol) for a in args):
            raise NeedsSize
        self._assign(s.target, Tile((), 4, "int"))
        if self.in_loop:
            self._weighted((1, ("replays",)), s.body)
            return
        self.in_loop = True
        self._weighted((1, ("chunks",)), s.body)
        self.in_loop = False

    def _weighted(self, weight: Size, body: list[ast.stmt]) -> Any:
        old, self.weight = self.weight, times(self.weight, weight)
        done = self._block(body)
        self.weight = old
        return done

    # ------------------------------------------------------------ expressions
    def value(self, e: ast.expr) -> Any:
        found = self._given(e)
        if found.__class__ is ByRows:
            raise NeedsSize
        return found

    def _given(self, e: ast.expr) -> Any:
        """The same where it may be of another kind for each number of rows."""
        kind = e.__class__
        if kind not in self._kinds:
            self._kinds[kind] = getattr(self, "_" + kind.__name__, self._unknown)
        return self._kinds[kind](e)

    def _unknown(self, e: ast.expr) -> Any:
        return Tile((), 4, "int")

    def _Name(self, e: ast.Name) -> Any:
        return self.env.get(e.id, Tile((), 4, "int"))

    def _Constant(self, e: ast.Constant) -> Any:
        return e.value

    def _Tuple(self, e: ast.Tuple | ast.List) -> Any:
        return tuple(map(self.value, e.elts))

    _List = _Tuple

    def _BinOp(self, e: ast.BinOp) -> Any:
        a, b = self.value(e.left), self.value(e.right)
        number = (int, float)
        if isinstance(a, number) and isinstance(b, number):
            return _FOLD[type(e.op)](a, b)
        if isinstance(a, tuple) and isinstance(b, tuple):
            return a + b
        symbols = [x for x in (a, b) if isinstance(x, Symbol)]
        if symbols and not any(isinstance(x, Tile) and (x.shape or x.kind != "int") for x in (a, b)):
            if isinstance(e.op, ast.Mod) and isinstance(b, Symbol):
                return "phase"
            if isinstance(e.op, (ast.Mult, ast.FloorDiv)) and not any(isinstance(x, Tile) for x in (a, b)):
                return _symbolic(e.op, a, b)
            return Tile((), 4, "int")
        kind = "div" if isinstance(e.op, ast.Div) else "alu"
        return self._elementwise([a, b], kind)

    def _UnaryOp(self, e: ast.UnaryOp) -> Any:
        x = self.value(e.operand)
        if isinstance(x, (int, float)):
            return (not x) if isinstance(e.op, ast.Not) else -x if isinstance(e.op, ast.USub) else x
        return self._elementwise([x], "alu")

    def _Compare(self, e: ast.Compare) -> Any:
        a, b = self.value(e.left), self.value(e.comparators[0])
        plain = (int, float, str, type(None))
        if "phase" in (a, b) and not isinstance(a, Tile):
            return "once a segment"
        names = [n for x in (a, b) if isinstance(x, Symbol) for n in x.size[1]]
        if names and not any(isinstance(x, Tile) and x.shape for x in (a, b)):
            if "C" in names and "SEGMENT" not in names:
                raise NeedsSize
            return True  # SEGMENT > C: more than one chunk a segment
        if isinstance(a, plain) and isinstance(b, plain):
            kind = type(e.ops[0])
            return _COMPARE[kind](a, b) if kind in _COMPARE else a is b
        if isinstance(e.ops[0], (ast.Is, ast.IsNot)):
            return isinstance(e.ops[0], ast.IsNot)
        found = self._elementwise([a, b], "alu")
        return Tile(found.shape, 1, "bool")

    def _BoolOp(self, e: ast.BoolOp) -> Any:
        values = [self.value(v) for v in e.values]
        if "once a segment" in values:
            return "once a segment"
        if isinstance(e.op, ast.And) and any(v is False for v in values):
            return False
        rest = [v for v in values if v is not True]
        return rest[0] if rest else True

    def _IfExp(self, e: ast.IfExp) -> Any:
        return self.value(e.body if self.value(e.test) else e.orelse)

    def _Attribute(self, e: ast.Attribute) -> Any:
        if e.attr == "shape":
            return tuple(int(c) if not names else Symbol((c, names)) for c, names in self.value(e.value).shape)
        if _name(e) in ("tl.float64", "tl.int64"):
            return 8
        known: dict[str, Any] = {"float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "element_ty": "operand",
                                 "primitive_bitwidth": 8 * self.operand}
        return known.get(e.attr, "?")

    def _Subscript(self, e: ast.Subscript) -> Any:
        x = self.value(e.value)
        items = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
        if isinstance(x, tuple):
            i = self.value(items[0])
            return x[i] if isinstance(i, int) else x[0]
        if not isinstance(x, Tile):
            return x
        old, shape = iter(x.shape), []
        for item in items:
            shape.append(ONE if isinstance(item, ast.Constant) and item.value is None else next(old))
        return Tile((*shape, *old), x.width, x.kind, x.base)

    # ------------------------------------------------------------ calls
    def _Call(self, e: ast.Call) -> Any:
        name = _name(e.func)
        if isinstance(e.func, ast.Attribute) and not name.startswith(("tl.", "triton.", "math.")):
            return self._method(self.value(e.func.value), e.func.attr, [self.value(a) for a in e.args])
        if name in self.functions:
            return self._inline(self.functions[name], [self._given(a) for a in e.args],
                                {k.arg: self._given(k.value) for k in e.keywords if k.arg})
        args = [self.value(a) for a in e.args]
        words = {k.arg: self.value(k.value) for k in e.keywords if k.arg}
        if name in ("min", "max"):
            return {"min": min, "max": max}[name](args) if all(isinstance(a, int) for a in args) else args[0]
        handler = getattr(self, "_tl_" + name.rpartition(".")[2], None)
        if handler is not None:
            return handler(*args, **words)
        last = name.rpartition(".")[2]
        if last in SPECIAL:
            found = self._elementwise(args, "none")
            self.counts.add("special", times(self.weight, volume(found.shape)), SPECIAL[last])
            return found
        if last == "len":
            return len(args[0])
        if last in ("float", "int"):
            return args[0] if isinstance(args[0], (int, float)) else float("inf")
        return self._elementwise([a for a in args if not isinstance(a, (str, tuple))])

    def _inline(self, text: str, args: list[Any], words: dict[str, Any]) -> Any:
        fn = parsed(text)
        names = [a.arg for a in fn.args.args]
        defaults = dict(zip(names[len(names) - len(fn.args.defaults):], map(self.value, fn.args.defaults), strict=True))
        given = {**defaults, **dict(zip(names, args, strict=False)), **words}
        try:
            if any(x.__class__ is ByRows for x in given.values()):
                raise NeedsSize
            result, counted = self._called(text, fn, given)
        except NeedsSize:
            if self.inside or isinstance(self.C, int):
                raise
            run = _Run(self, text, fn, given)
            try:
                found = of_any([run.at(C)[0] for C in self.C[:2]], self.C)
            except NeedsSize:
                found = ByRows(run)
            self.later.append((run, found, self.weight, self.in_loop))
            return found
        self.counts.take(counted, self.weight, self.inside)
        return result

    def _called(self, text: str, fn: ast.FunctionDef, given: dict[str, Any]) -> tuple[Any, Counts]:
        """What a function gives and costs: the same shapes again cost the same, in whichever kernel."""
        key = text, self.operand, self.in_loop, tuple(given.items())
        if key not in _CALLS:
            outer = self.env, self.counts, self.weight, self.inside
            self.env, self.counts, self.weight, self.inside = given, Counts(), ONE, True
            try:
                found = self._block(fn.body), self.counts
            finally:
                self.env, self.counts, self.weight, self.inside = outer
            if len(_CALLS) >= _MOST_CALLS:
                _CALLS.clear()
            _CALLS[key] = found
        return _CALLS[key]

    def at(self, C: int) -> Counts:
        """The counts with so many rows.

        Raises:
            NeedsSize: what functions give is not what it seemed to be, by fewer rows."""
        more = Counts()
        for run, found, weight, in_loop in self.later:
            self.in_loop = in_loop
            result, counted = run.at(C)
            if at_rows(found, C) != result:
                raise NeedsSize
            more.take(counted, weight, False)
        return self.counts.at_rows(C, more)


@dataclass(frozen=True)
class _Run:
    """A function that needs the number of rows, and what it is given."""

    trace: Trace
    text: str
    fn: ast.FunctionDef
    given: dict[str, Any]

    def at(self, C: int) -> tuple[Any, Counts]:
        return self.trace._called(self.text, self.fn, {name: at_rows(x, C) for name, x in self.given.items()})


@dataclass(frozen=True)
class ByRows:
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
    return Tile(tuple(known_rows(s, C) for s in x.shape), x.width, x.kind, x.base) if isinstance(x, Tile) else x


def of_any(results: list[Any], rows: tuple[int, ...]) -> Any:
    """The value of which these are what it is with the first of `rows`.

    Raises:
        NeedsSize: there is none."""
    first = results[0]
    if any(x.__class__ is not first.__class__ for x in results):
        raise NeedsSize
    if isinstance(first, Tile):
        if len({(len(x.shape), x.width, x.kind, x.base) for x in results}) == 1:
            return Tile(tuple(_side([x.shape[i] for x in results], rows) for i in range(len(first.shape))),
                        first.width, first.kind, first.base)
    elif isinstance(first, tuple):
        if len({*map(len, results)}) == 1:
            return tuple(of_any(list(each), rows) for each in zip(*results, strict=True))
    elif all(x == first for x in results):
        return first
    raise NeedsSize


def _side(sizes: list[Size], rows: tuple[int, ...]) -> Size:
    names = {n for _, n in sizes}
    for power in (0, 1, 2) if len(names) == 1 else ():
        each = {c / C ** power for (c, _), C in zip(sizes, rows, strict=False)}
        if len(each) == 1:
            return times((each.pop(), names.pop()), (1, ("C",) * power))
    raise NeedsSize


def _symbolic(op: ast.operator, a: Any, b: Any) -> Symbol:
    (ca, na), (cb, nb) = size_of(a), size_of(b)
    if isinstance(op, ast.Mult):
        return Symbol(times((ca, na), (cb, nb)))
    left = list(na)
    for n in nb:
        if n in left:
            left.remove(n)
    return Symbol((ca / cb, tuple(left)))


def _name(e: ast.expr) -> str:
    return f"{_name(e.value)}.{e.attr}" if isinstance(e, ast.Attribute) else e.id if isinstance(e, ast.Name) else "?"


def _loaded(target: ast.expr) -> ast.expr:
    return ast.Name(target.id, ast.Load()) if isinstance(target, ast.Name) else target


_FOLD: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: op.add, ast.Sub: op.sub, ast.Mult: op.mul, ast.Div: op.truediv, ast.FloorDiv: op.floordiv, ast.Mod: op.mod,
    ast.Pow: op.pow, ast.LShift: op.lshift, ast.RShift: op.rshift, ast.BitAnd: op.and_, ast.BitOr: op.or_,
    ast.BitXor: op.xor}
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: op.eq, ast.NotEq: op.ne, ast.Lt: op.lt, ast.LtE: op.le, ast.Gt: op.gt, ast.GtE: op.ge}


@lru_cache(maxsize=256)
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
