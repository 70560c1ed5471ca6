"""What the operations of Triton make of tiles, and what they cost: shapes in place of values."""

from __future__ import annotations

from typing import Any

from mixc.autotune.counts import ONE, Counts, Size, Tile, size_of, times, volume


class Operations:
    """By name `_tl_NAME`.  `counts` is added to, `weight` times; `operand`: bytes of the tensors' values."""

    counts: Counts
    weight: Size
    operand: int

    def _elementwise(self, values: list[Any], kind: str = "alu") -> Tile:
        """Broadcast, and count where the values are floats."""
        tiles = [v for v in values if v.__class__ is Tile]
        kinds, width = {t.kind for t in tiles}, 0
        shape: tuple[Size, ...] = ()
        for t in tiles:
            width = max(width, t.width)
            shape = shape if not t.shape or t.shape == shape else _broadcast(shape, t.shape)
        if "pointer" in kinds:
            pointer = next(t for t in tiles if t.kind == "pointer")
            return Tile(shape, pointer.width, "pointer", pointer.base)
        if "float" in kinds or any(v.__class__ is float for v in values):
            if shape and kind != "none":
                self.counts.add("special" if kind == "div" else "alu", times(self.weight, volume(shape)))
            return Tile(shape, max(width, 4))
        return Tile(shape, width or 4, "bool" if kinds == {"bool"} else "int")

    def _method(self, x: Any, what: str, args: list[Any]) -> Any:
        if what == "to" and isinstance(x, Tile):
            width = self.operand if args[0] == "operand" else args[0] if isinstance(args[0], int) else x.width
            if x.kind == "float" and x.shape and width != x.width:
                self.counts.add("alu", times(self.weight, volume(x.shape)))
            return Tile(x.shape, width, "float" if x.kind == "float" else x.kind, x.base)
        return x

    def _tl_load(self, pointer: Tile, mask: Any = None, other: Any = None, **_: Any) -> Tile:
        weight = ONE if pointer.base.endswith("_first") else self.weight  # masked at every token but the first
        self.counts.memory.append(("load", pointer.base, volume(pointer.shape), weight))
        return Tile(pointer.shape, pointer.width, "float")

    def _tl_store(self, pointer: Tile, value: Any, mask: Any = None, **_: Any) -> None:
        self.counts.memory.append(("store", pointer.base, volume(pointer.shape), self.weight))

    def _tl_dot(self, a: Tile, b: Tile, acc: Any = None, input_precision: str = "tf32", **_: Any) -> Tile:
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        how = "half" if a.width == b.width == 2 else input_precision
        self.counts.direct[how] += 1
        rows = times(m, *a.shape[:-2])  # a batch is one product, of more rows
        self.counts.products.append((rows, n, k, self.weight, how))
        return Tile((*a.shape[:-1], n))

    def _tl_trans(self, x: Tile, *_: Any) -> Tile:
        return Tile(x.shape[:-2] + x.shape[:-3:-1], x.width, x.kind, x.base)

    def _tl_join(self, a: Tile, b: Tile) -> Tile:
        return Tile((*a.shape, (2, ())), a.width, a.kind)

    def _tl_split(self, x: Tile) -> tuple[Tile, Tile]:
        return (Tile(x.shape[:-1], x.width, x.kind),) * 2

    def _tl_permute(self, x: Tile, *order: Any) -> Tile:
        order = order[0] if len(order) == 1 and isinstance(order[0], tuple) else order
        return Tile(tuple(x.shape[i] for i in order), x.width, x.kind, x.base)

    def _tl_reshape(self, x: Tile, *shape: Any, **_: Any) -> Tile:
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return Tile(tuple(map(size_of, shape)), x.width, x.kind, x.base)

    def _tl_broadcast_to(self, x: Any, *shape: Any) -> Tile:
        return self._tl_reshape(x if isinstance(x, Tile) else Tile(), *shape)

    def _tl_zeros(self, shape: tuple[Any, ...], dtype: Any = 4) -> Tile:
        return Tile(tuple(map(size_of, shape)), dtype if isinstance(dtype, int) else 4)

    def _tl_full(self, shape: tuple[Any, ...], value: Any, dtype: Any = 4) -> Tile:
        return self._tl_zeros(shape, dtype)

    def _tl_arange(self, start: Any, end: Any) -> Tile:
        size = size_of(end)
        return Tile(((size[0] - start, size[1]) if isinstance(start, int) else size,), 4, "int")

    def _reduced(self, x: Tile, axis: Any = None, **_: Any) -> Tile:
        self.counts.add("alu", times(self.weight, volume(x.shape)))
        if axis is None:
            return Tile((), x.width, x.kind)
        axis = axis % len(x.shape)
        return Tile(x.shape[:axis] + x.shape[axis + 1:], max(4, x.width), x.kind)

    _tl_sum = _tl_max = _tl_min = _reduced

    def _tl_cumsum(self, x: Tile, axis: Any = 0, **_: Any) -> Tile:
        self.counts.add("alu", times(self.weight, volume(x.shape)))
        return x

    _tl_cumprod = _tl_cumsum

    def _tl_associative_scan(self, x: Any, axis: Any, combine: Any, **_: Any) -> Any:
        """Counted as the meter does: one operation a value of the first tile."""
        tiles = x if isinstance(x, tuple) else (x,)
        self.counts.add("alu", times(self.weight, volume(tiles[0].shape)))
        return tuple(Tile(t.shape, 4, t.kind) for t in tiles) if isinstance(x, tuple) else x

    def _tl_where(self, mask: Any, a: Any, b: Any) -> Tile:
        found = self._elementwise([a, b, mask], "alu")
        return Tile(found.shape, found.width, "float" if any(isinstance(v, float) or (
            isinstance(v, Tile) and v.kind == "float") for v in (a, b)) else "int")

    def _tl_cdiv(self, a: Any, b: Any) -> Any:
        return -(-a // b) if isinstance(a, int) and isinstance(b, int) else Tile((), 4, "int")

    def _tl_program_id(self, *_: Any) -> Tile:
        return Tile((), 4, "int")

    def _tl_debug_barrier(self) -> None:
        return None

    def _tl_cast(self, x: Any, dtype: Any, **_: Any) -> Any:
        return self._method(x, "to", [dtype])


def _broadcast(a: tuple[Size, ...], b: tuple[Size, ...]) -> tuple[Size, ...]:
    rank = max(len(a), len(b))
    a, b = (x if len(x) == rank else (ONE,) * (rank - len(x)) + x for x in (a, b))
    return tuple(y if (len(y[1]), y[0]) > (len(x[1]), x[0]) else x for x, y in zip(a, b, strict=True))
