"""What stands for a value while a kernel's text is run: a shape.  What the text does to it is what it does to these."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mixc.autotune.counts import ONE, Size, times

here = threading.local()  # `.trace`: whose text runs


class NeedsSize(Exception):
    """The text depends on the number of rows: trace it for each."""


class Value:
    """Anything but a number or a string. Where two meet: `binary`."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __neg__(self) -> Any:
        return here.trace.elementwise([self])

    __invert__ = __neg__


@dataclass(slots=True, eq=False)
class Tile(Value):
    """A tile of values: its sides, bytes a value, and where a pointer points to."""

    sides: tuple[Size, ...] = ()
    width: int = 4
    kind: str = "float"  # or "int", "bool", "pointer"
    base: str = ""

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(int(c) if not names else Symbol((c, names)) for c, names in self.sides)

    @property
    def dtype(self) -> Type:
        return Type("?")

    def to(self, dtype: Any) -> Tile:
        width = here.trace.operand if dtype == "operand" else dtype if isinstance(dtype, int) else self.width
        if self.kind == "float" and self.sides and width != self.width:
            here.trace.count("alu", self)
        return Tile(self.sides, width, self.kind, self.base)

    def __getitem__(self, items: Any) -> Tile:
        """With more sides of one, for each None."""
        old, sides = iter(self.sides), list[Size]()
        for item in items if isinstance(items, tuple) else (items,):
            sides.append(ONE if item is None else next(old))
        return Tile((*sides, *old), self.width, self.kind, self.base)


INDEX = Tile((), 4, "int")  # a number that nothing is known of


@dataclass(slots=True, eq=False)
class Symbol(Value):
    """An integer known by name only."""

    size: Size


class Phase(Value):
    """What is left of a division by a size: equal to something now and then."""


class Unknown(Value):
    """What nothing can be done with before the number of rows is known."""

    def __getattr__(self, _: str) -> Any:
        raise NeedsSize

    def __bool__(self) -> bool:
        raise NeedsSize

    def __iter__(self) -> Iterator[Any]:
        raise NeedsSize

    def __getitem__(self, _: Any) -> Any:
        raise NeedsSize

    __neg__ = __invert__ = __bool__


class Type(str):
    """Of values, by name."""

    @property
    def element_ty(self) -> Type:
        return Type("operand")

    @property
    def primitive_bitwidth(self) -> int:
        return 8 * here.trace.operand  # type: ignore[no-any-return]


def _binary(what: str, a: Any, b: Any) -> Any:
    both = a.__class__, b.__class__
    if Symbol in both and not (_is_tile(a) or _is_tile(b)):
        if what == "mod" and both[1] is Symbol:
            return Phase()
        return INDEX if Tile in both or what not in ("mul", "floordiv") else _symbolic(what, size_of(a), size_of(b))
    if any(issubclass(c, Unknown) for c in both):
        raise NeedsSize
    return here.trace.elementwise([a, b], "div" if what == "truediv" else "alu")


def _is_tile(x: Any) -> bool:
    return x.__class__ is Tile and bool(x.sides or x.kind != "int")


def _symbolic(what: str, a: Size, b: Size) -> Symbol:
    if what == "mul":
        return Symbol(times(a, b))
    left = list(a[1])
    for n in b[1]:
        if n in left:
            left.remove(n)
    return Symbol((a[0] / b[0], tuple(left)))


def _compared(a: Any, b: Any) -> Any:
    both = a.__class__, b.__class__
    if Phase in both:
        return True
    names = [n for x in (a, b) if x.__class__ is Symbol for n in x.size[1]]
    if names and not any(x.__class__ is Tile and x.sides for x in (a, b)):
        if "C" in names and "SEGMENT" not in names:
            raise NeedsSize
        return True  # SEGMENT > C: more than one chunk a segment
    return Tile(_binary("compare", a, b).sides, 1, "bool")


def _operator(what: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    return (lambda a, b: _binary(what, b, a)) if swapped else (lambda a, b: _binary(what, a, b))


for _what in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor"):
    setattr(Value, f"__{_what}__", _operator(_what))
    setattr(Value, f"__r{_what}__", _operator(_what, swapped=True))
for _what in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_what}__", lambda a, b: _compared(a, b))


def said(x: Any) -> Any:
    """By what two values are the same: `==` is what the text asks."""
    kind = x.__class__
    if kind is tuple:
        return tuple(map(said, x))
    return (kind, x.sides, x.width, x.kind, x.base) if kind is Tile else (kind, x.size if kind is Symbol else x)


def size_of(x: Any) -> Size:
    """Of a number, a symbol or a size."""
    if isinstance(x, Symbol):
        return x.size
    return x if isinstance(x, tuple) else (x, ())
