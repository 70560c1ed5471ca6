"""What the operations of Triton make of tiles, and what they cost: shapes in place of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mixc.autotune.counts import ONE, Counts, Size, times, volume
from mixc.autotune.shapes import INDEX, NeedsSize, Tile, Unknown, here, size_of

# results a clock that are not additions and products, as the meter weighs them
SPECIAL = {"exp": 1, "exp2": 1, "log": 1, "log2": 1, "sqrt": 1, "rsqrt": 1, "sin": 1, "cos": 1, "erf": 1,
           "sigmoid": 2, "tanh": 2, "fdiv": 1, "div": 1}
_BYTES = {"float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int1": "?"}


class Operations:
    """By name `_tl_NAME`; others are elementwise.

    `counts` is added to, `weight` times; `operand`: bytes of the tensors' values."""

    counts: Counts
    weight: Size
    operand: int

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the text runs."""
        outer, here.trace = getattr(here, "trace", None), self
        try:
            yield
        finally:
            here.trace = outer

    def elementwise(self, values: list[Any], kind: str = "alu") -> Tile:
        """Broadcast, and count where the values are floats."""
        tiles = [v for v in values if v.__class__ is Tile]
        kinds, width = {t.kind for t in tiles}, 0
        sides: tuple[Size, ...] = ()
        for t in tiles:
            width = max(width, t.width)
            sides = sides if not t.sides or t.sides == sides else _broadcast(sides, t.sides)
        if "pointer" in kinds:
            pointer = next(t for t in tiles if t.kind == "pointer")
            return Tile(sides, pointer.width, "pointer", pointer.base)
        if "float" in kinds or any(v.__class__ is float for v in values):
            found = Tile(sides, max(width, 4))
            if sides and kind != "none":
                self.count("special" if kind == "div" else "alu", found)
            return found
        return Tile(sides, width or 4, "bool" if kinds == {"bool"} else "int")

    def count(self, kind: str, of: Tile, weight: float = 1.0) -> None:
        """Something is done to every value of a tile."""
        self.counts.add(kind, times(self.weight, volume(of.sides)), weight)

    def operation(self, name: str) -> Callable[..., Any]:
        """What a call of Triton's function does."""
        handler = getattr(self, "_tl_" + name, None)
        def call(*args: Any, **words: Any) -> Any:
            if any(isinstance(x, Unknown) for x in (*args, *words.values())):
                raise NeedsSize
            if handler is not None:
                return handler(*args, **words)
            values = [a for a in args if not isinstance(a, (str, tuple))]
            found = self.elementwise(values, "none" if name in SPECIAL else "alu")
            if name in SPECIAL:
                self.count("special", found, SPECIAL[name])
            return found
        return call

    def _tl_load(self, pointer: Tile, mask: Any = None, other: Any = None, **_: Any) -> Tile:
        weight = ONE if pointer.base.endswith("_first") else self.weight  # masked at every token but the first
        self.counts.memory.append(("load", pointer.base, volume(pointer.sides), weight))
        return Tile(pointer.sides, pointer.width, "float")

    def _tl_store(self, pointer: Tile, value: Any, mask: Any = None, **_: Any) -> None:
        self.counts.memory.append(("store", pointer.base, volume(pointer.sides), self.weight))

    def _tl_dot(self, a: Tile, b: Tile, acc: Any = None, input_precision: str = "tf32", **_: Any) -> Tile:
        m, k, n = a.sides[-2], a.sides[-1], b.sides[-1]
        how = "half" if a.width == b.width == 2 else input_precision
        self.counts.direct[how] += 1
        rows = times(m, *a.sides[:-2])  # a batch is one product, of more rows
        self.counts.products.append((rows, n, k, self.weight, how))
        return Tile((*a.sides[:-1], n))

    def _tl_trans(self, x: Tile, *_: Any) -> Tile:
        return Tile(x.sides[:-2] + x.sides[:-3:-1], x.width, x.kind, x.base)

    def _tl_join(self, a: Tile, b: Tile) -> Tile:
        return Tile((*a.sides, (2, ())), a.width, a.kind)

    def _tl_split(self, x: Tile) -> tuple[Tile, Tile]:
        return (Tile(x.sides[:-1], x.width, x.kind),) * 2

    def _tl_permute(self, x: Tile, *order: Any) -> Tile:
        return Tile(tuple(x.sides[i] for i in _listed(order)), x.width, x.kind, x.base)

    def _tl_reshape(self, x: Tile, *shape: Any, **_: Any) -> Tile:
        return Tile(tuple(map(size_of, _listed(shape))), x.width, x.kind, x.base)

    def _tl_broadcast_to(self, x: Any, *shape: Any) -> Tile:
        return self._tl_reshape(x if isinstance(x, Tile) else Tile(), *shape)

    def _tl_zeros(self, shape: Sequence[Any], dtype: Any = 4) -> Tile:
        return Tile(tuple(map(size_of, shape)), dtype if isinstance(dtype, int) else 4)

    def _tl_full(self, shape: Sequence[Any], value: Any, dtype: Any = 4) -> Tile:
        return self._tl_zeros(shape, dtype)

    def _tl_arange(self, start: Any, end: Any) -> Tile:
        size = size_of(end)
        return Tile(((size[0] - start, size[1]) if isinstance(start, int) else size,), 4, "int")

    def _reduced(self, x: Tile, axis: Any = None, **_: Any) -> Tile:
        self.count("alu", x)
        if axis is None:
            return Tile((), x.width, x.kind)
        axis = axis % len(x.sides)
        return Tile(x.sides[:axis] + x.sides[axis + 1:], max(4, x.width), x.kind)

    _tl_sum = _tl_max = _tl_min = _reduced

    def _tl_cumsum(self, x: Tile, axis: Any = 0, **_: Any) -> Tile:
        self.count("alu", x)
        return x

    _tl_cumprod = _tl_cumsum

    def _tl_associative_scan(self, x: Any, axis: Any, combine: Any, **_: Any) -> Any:
        """Counted as the meter does: one operation a value of the first tile."""
        tiles = x if isinstance(x, tuple) else (x,)
        self.count("alu", tiles[0])
        return tuple(Tile(t.sides, 4, t.kind) for t in tiles) if isinstance(x, tuple) else x

    def _tl_where(self, mask: Any, a: Any, b: Any) -> Tile:
        found = self.elementwise([a, b, mask], "alu")
        return Tile(found.sides, found.width, "float" if any(isinstance(v, float) or (
            isinstance(v, Tile) and v.kind == "float") for v in (a, b)) else "int")

    def _tl_cdiv(self, a: Any, b: Any) -> Any:
        return -(-a // b) if isinstance(a, int) and isinstance(b, int) else INDEX

    def _tl_program_id(self, *_: Any) -> Tile:
        return INDEX

    def _tl_debug_barrier(self) -> None:
        return None

    def _tl_cast(self, x: Any, dtype: Any, **_: Any) -> Any:
        return x.to(dtype)


def _listed(given: Sequence[Any]) -> Sequence[Any]:
    """Numbers that are given one by one, or as one list."""
    return given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


def _broadcast(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
    rank = max(len(a), len(b))
    a, b = (x if len(x) == rank else (ONE,) * (rank - len(x)) + x for x in (a, b))
    return tuple(y if (len(y[1]), y[0]) > (len(x[1]), x[0]) else x for x, y in zip(a, b, strict=True))


class Language:
    """`tl`, `triton` and `math` of a kernel's text."""

    def __init__(self, trace: Any):
        self._trace = trace
        self.range = self.static_range = trace.loop

    def __getattr__(self, name: str) -> Any:
        found = _BYTES[name] if name in _BYTES else self._trace.operation(name)
        setattr(self, name, found)
        return found
