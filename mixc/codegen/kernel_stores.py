"""What a launch's kernel stores: rows, sums over its loop, and states where segments begin."""

from __future__ import annotations

from mixc.codegen.kernel_addresses import apart_from
from mixc.codegen.kernel_loads import Loads
from mixc.codegen.lines import indent
from mixc.codegen.names import safe
from mixc.ir.launch import Store
from mixc.ir.node import ROW, source


class Stores(Loads):
    """As `Loads`, and where values go."""

    whole = "seq"  # what the loop is over
    turned: str
    by_rows: bool

    def _store_rows(self, s: Store) -> list[str]:
        dims = ((ROW,) if self.by_rows else ()) + s.dims
        stride = self._row_stride(dims)
        target = self._rows_at(f"{s.name}_ptr", "row", stride, dims, at=s.at)
        axes = apart_from(dims, s.at)
        value, mask = self.tiles.whole(s.value, self.tile(axes)), self._mask(axes, rows=True)
        line = f"tl.store({target}, {value}{self._earlier(target, mask, s.dims)}{mask})"
        return [f"if KEEP:\n    {line}"] if self._only_kept(s) else [line]

    def _only_kept(self, s: Store) -> bool:
        """Is it stored for the backward, thus only where gradients are asked for?"""
        return s.result == "save" and not self.launch.reverse

    def _earlier(self, target: str, mask: str, dims: tuple[str, ...]) -> str:
        """What the blocks before this one have left there, if it is their sum."""
        if not self.turned or self.turned in dims:
            return ""
        if not mask:
            return f" + tl.where(block_{self.turned} > first_{self.turned}, tl.load({target}), 0.0)"
        return f" + tl.load({target}{mask} & more_{self.turned}, other=0.0)"

    def _store_ready(self, pending: list[Store], force: bool = False) -> list[Store]:
        """Write what can be written: a stored tile is alive no longer."""
        waiting = []
        for s in pending:
            if not force and source(s.value) not in self.tiles.names:
                waiting.append(s)
            elif s.kind == "rows":
                self.body += [*self._formula(s.name, s.value), *self._store_rows(s)]
            else:
                self.body.append(f"{s.name}_sum += {self.tiles.whole(s.value, self.tile(s.dims))}")
        return waiting

    def _store_state(self, name: str, pointer: str, where: str | None, dims: tuple[str, ...]) -> str:
        target = self._state_at(pointer, self._segment_number() if where is None else where, dims)
        mask = self._mask(dims, False)
        earlier = self._earlier(target, mask, dims) if pointer.endswith("_final") else ""
        return f"tl.store({target}, {name}{earlier}{mask})"

    def _begins(self) -> str:
        """Does the loop enter a segment here?"""
        if self.launch.reverse:
            return "(i == 0 or (chunk + 1) % (SEGMENT // C) == 0)"
        return "chunk % (SEGMENT // C) == 0"

    def _keep(self) -> list[str]:
        launch = self.launch
        kept = [self._store_state(safe(c.name), launch.kept(c.name), None, c.dims)
                for c in launch.carries if c.name in launch.keeps]
        return [f"if {'KEEP and ' if launch.stores else ''}{self._begins()}:", *indent(kept)] if kept else []

    def _sums(self, sums: list[Store]) -> list[str]:
        return [f"{s.name}_sum = " + (f"tl.zeros({self.tiles.shape(self.tile(s.dims))}, tl.float32)" if s.dims else "0.0") for s in sums]

    def _stored(self, sums: list[Store]) -> list[str]:
        return [self._store_state(f"{s.name}_sum", f"{s.name}_ptr", f"{self.whole} * H + head", s.dims) for s in sums]
