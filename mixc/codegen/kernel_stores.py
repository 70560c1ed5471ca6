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
        line = self._stored_at(target, value, mask, s.dims)
        return [f"if KEEP:\n    {line}"] if self._only_kept(s) else [line]

    def _only_kept(self, s: Store) -> bool:
        """Is it stored for the backward, thus only where gradients are asked for?"""
        return s.result == "save" and not self.launch.reverse

    def _stored_at(self, target: str, value: str, mask: str, dims: tuple[str, ...], turned: bool = True) -> str:
        """With what the blocks before this one have left there, if it is their sum."""
        if not turned or not self.turned or self.turned in dims:
            return f"tl.store({target}, {value}{mask})"
        if not mask:
            return f"tl.store({target}, {value} + tl.where(block_{self.turned} > first_{self.turned}, tl.load({target}), 0.0))"
        return f"add_to({target}, {value}{mask.replace('mask=', '')}, more_{self.turned})"

    def _store_ready(self, pending: list[Store], force: bool = False) -> list[Store]:
        """Write what can be written: a stored tile is alive no longer."""
        waiting = []
        for s in pending:
            if not force and source(s.value) not in self.tiles.names:
                waiting.append(s)
            elif s.kind == "rows":
                self._explain(s.name, s.value, s.name)
                self.body += self._store_rows(s)
            else:
                self.body.append(f"{s.name}_sum += {self.tiles.whole(s.value, self.tile(s.dims))}")
        return waiting

    def _store_state(self, name: str, pointer: str, where: str, dims: tuple[str, ...]) -> str:
        return self._stored_at(self._state_at(pointer, where, dims), name, self._mask(dims, False), dims, pointer.endswith("_final"))

    def _begins(self) -> str:
        """Does the loop enter a segment here?"""
        if self.launch.reverse:
            return "(i == 0 or (chunk + 1) % (SEGMENT // C) == 0)"
        return "chunk % (SEGMENT // C) == 0"

    def _keep(self) -> list[str]:
        launch = self.launch
        kept = [self._store_state(safe(c.name), launch.kept(c.name), "kept_at", c.dims)
                for c in launch.carries if c.name in launch.keeps]
        return [f"if {'KEEP and ' if launch.stores else ''}{self._begins()}:", *indent([*self._kept_at, *kept])] if kept else []

    def _sums(self, sums: list[Store]) -> list[str]:
        return [f"{s.name}_sum = " + (f"tl.zeros({self.tiles.shape(self.tile(s.dims))}, tl.float32)" if s.dims else "0.0") for s in sums]

    def _stored(self, sums: list[Store]) -> list[str]:
        return [self._store_state(f"{s.name}_sum", f"{s.name}_ptr", f"{self.whole} * H + head", s.dims) for s in sums]
