"""Where a launch's kernel finds the entries of a tile: offsets from a pointer, and what lies inside."""

from __future__ import annotations

from mixc.codegen.axes import Axes
from mixc.codegen.lines import group, plus, sizes, times
from mixc.codegen.tiles import Tiles
from mixc.ir.launch import Launch
from mixc.ir.node import COL, ROW, flat
from mixc.passes.entries import Entry


class Addresses:
    """Of a launch's tiles."""

    launch: Launch
    axes: Axes
    tiles: Tiles

    def _axis(self, dims: tuple[str, ...], d: str, code: str) -> str:
        axes = self.tile(dims)
        return code if axes == (d,) or d in self.axes.each else self.axes.along(code, d, axes)

    def tile(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """The axes of a tile of these dims: as `Tiles.order` has them, whatever the tensor's."""
        return self.tiles.of(dims)

    def _flat(self, dims: tuple[str, ...], axes: tuple[str, ...] | None = None, at: Entry = ()) -> str:
        """Offsets into a contiguous tensor of these dims; `axes`: of the tile they are for, where it has others; `at`: at
        which entries of what the tile lacks."""
        terms, whole, entry = [], flat(dims), dict(at)
        for i, d in enumerate(whole):
            step = " * ".join(whole[i + 1:])
            term = str(entry[d]) if d in entry else self._axis(axes or apart_from(dims, at), d, self.tiles.index(d))
            if term != "0":
                terms.append(f"{term} * {step}" if step and term != "1" else step or term)
        return " + ".join(terms)

    def _row_stride(self, dims: tuple[str, ...]) -> str:
        return " * ".join(["H", *sizes(tuple(d for d in dims if d != ROW))])

    def _row_offset(self, stride: str, dims: tuple[str, ...], rows: str = "rows", at: Entry = ()) -> str:
        """Offsets of a tile's rows and columns from the chunk's first row."""
        axes = apart_from(dims, at)
        terms = [f"{self._axis(axes, ROW, rows)} * SIGN * {group(stride)}"] if ROW in dims else []
        return " + ".join(filter(None, [*terms, self._flat(tuple(d for d in dims if d != ROW), axes, at)]))

    def _rows_at(self, pointer: str, row: str, stride: str, dims: tuple[str, ...], rows: str = "rows", at: Entry = ()) -> str:
        """Addresses of a tile's rows, from the one that begins the chunk on."""
        columns = [d for d in dims if d != ROW]
        offset, wide = self._row_offset(stride, dims, rows, at), f"{rows}[:, None] * SIGN * {group(stride)} + "
        if len(columns) == 1 and offset == f"{wide}{self.tiles.index(columns[0])}[None, :]":
            return f"rows_at({pointer}, {row}, {rows}, {stride}, {self.tiles.index(columns[0])}, SIGN)"
        return f"{pointer} + {row} * {group(stride)}{plus(offset)}"

    def _state_at(self, pointer: str, number: str, dims: tuple[str, ...]) -> str:
        """Addresses of a tile of the state of so many that lie one after the other."""
        if self._tile_of(pointer, number, dims) is not None:
            return f"state_at({pointer}, {number}, {', '.join([*map(self.tiles.index, dims), *dims])})"
        return f"{pointer} + {group(number) + times(dims) if dims else number}{plus(self._flat(dims))}"

    def _tile_of(self, pointer: str, number: str, dims: tuple[str, ...]) -> str | None:
        """The arguments by which it is loaded as a tile of a matrix, if it is one."""
        if len(dims) != 2 or flat(dims) != dims or self.tile(dims) != dims:
            return None
        axes = (x for d in dims for x in (self.tiles.index(d), self.tiles.inside(d)))
        return ", ".join([pointer, number, *axes, *dims])

    def _state(self, pointer: str, number: str, dims: tuple[str, ...]) -> str:
        """The tile itself."""
        tile = self._tile_of(pointer, number, dims)
        return f"tl.load({self._state_at(pointer, number, dims)}{self._guard(dims, False)})" if tile is None else f"state_of({tile})"

    def _inside(self, dims: tuple[str, ...]) -> list[str]:
        """What holds where a tile's entries are within their dims, those of rows aside."""
        return [self._axis(dims, d, self.tiles.inside(d)) for d in flat(dims) if d not in (ROW, COL, *self.axes.each)]

    def _guard(self, dims: tuple[str, ...], rows: bool) -> str:
        masks = self._inside(dims)
        if rows and ROW in dims:
            masks.append(self._axis(dims, ROW, "live"))
        return f", mask={' & '.join(masks)}, other=0.0" if masks else ""

    def _mask(self, dims: tuple[str, ...], rows: bool) -> str:
        return self._guard(dims, rows).replace(", other=0.0", "")


def apart_from(dims: tuple[str, ...], at: Entry) -> tuple[str, ...]:
    """The dims of which no single entry is taken."""
    return tuple(d for d in dims if d not in dict(at))
