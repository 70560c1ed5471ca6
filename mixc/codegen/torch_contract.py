"""Contractions as batches of matrix products, with what they can take along: a factor, and an addend.

    c * contract(a, b)            one product with alpha = c
    x + contract(a, b)            one product that adds to x (over x, where x is dead)
    u + a * b                     one addcmul
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.torch_values import Dims, Value, size_of
from mixc.ir.node import ROW, Node

if TYPE_CHECKING:
    from mixc.codegen.torch_writer import Writer


class Product:
    """A contraction as [M * batch, m, k] @ [M * batch, k, n]."""

    def __init__(self, w: Writer, n: Node, want: Dims | None = None):
        """want: the order of axes the result should have, if it can."""
        self.w, self.node = w, n
        a, b = n.args
        out = n.dims
        self.batch = tuple(d for d in out if d in a.dims and d in b.dims)
        summed = tuple(d for d in a.dims if d in b.dims and d not in out)
        sides = [tuple(d for d in out if d in x.dims and d not in self.batch) for x in (a, b)]
        want = want or out
        if (sides[0] and sides[1] and want.index(sides[0][0]) > want.index(sides[1][0])) or not sides[0]:
            a, b, sides = b, a, sides[::-1]
        self.m, self.n = sides
        self.axes: Dims = (*self.batch, *self.m, *self.n)
        self.left, self.right = (a, self.m, summed), (b, summed, self.n)
        self.dot = not self.m and not self.n

    @property
    def plain(self) -> bool:
        """Is the result of the product the value itself, axis by axis?"""
        return not self.batch and len(self.m) == 1 and len(self.n) == 1

    def operands(self) -> str:
        return f"{self._matrix(*self.left)}, {self._matrix(*self.right)}"

    def _matrix(self, x: Node, rows: Dims, cols: Dims) -> str:
        v = self.w.whole(x)
        one = len(rows) <= 1 and len(cols) <= 1 and not self.batch
        if one and v.axes == (*rows, *cols):
            return v.text if rows and cols else f"{v.text}[:, :, None]" if rows else f"{v.text}[:, None, :]"
        if one and v.axes == (*cols, *rows):
            return f"{v.text}.mT"
        order = [v.axes.index(d) + 1 for d in (*self.batch, *rows, *cols)]
        return f"fold({v.text}, {order}, {len(self.batch)}, {len(rows)})"

    def shaped(self, call: str) -> str:
        """The result of a bmm with the axes it should have."""
        if not self.batch and len(self.m) <= 1 and len(self.n) <= 1:
            return call + ("[:, 0]" if not self.m else "") + ("[:, :, 0]" if self.m and not self.n else "")
        return f"{call}.view({', '.join(['-1', *(size_of(d) for d in self.axes)])})"


def emit_contract(w: Writer, n: Node, core: Node, factor: str | None = None) -> Value:
    """factor * core, core being a contraction."""
    p = Product(w, core)
    if not p.n and len(p.m) == 1 and p.batch == (ROW,) and len(core.args) == 2:  # a matrix a row times a vector a row
        return _dot(w, n, core.args[0], core.args[1], core.dims, factor)
    if not p.n and len(p.m) == 1 and w.whole(p.left[0]).axes[-1] in p.batch:  # one for every entry, side by side
        return _dot(w, n, core.args[0], core.args[1], core.dims, factor)
    if p.dot:
        return _dot(w, n, core.args[0], core.args[1], p.batch, factor)
    if p.plain and w.is_large(p.axes):
        out = w.room(n, p.axes, over=False)
        if factor is None:
            return w.line(n, f"torch.bmm({p.operands()})", p.axes, out=out, note=core)
        call = f"torch.baddbmm({out}, {p.operands()}, beta=0, alpha={factor})"
        return w.line(n, call, p.axes, out=out, note=core)
    text = p.shaped(f"torch.bmm({p.operands()})")
    return w.line(n, text if factor is None else f"{text} * {factor}", p.axes, note=core)


def emit_sum_with_product(w: Writer, n: Node, product: Node) -> Value:
    """sum(a * b): the product needs no name."""
    a, b = product.args
    kept = tuple(d for d in product.dims if d not in n.attr("over"))
    return _dot(w, n, a, b, kept, None)


def _dot(w: Writer, n: Node, a: Node, b: Node, kept: Dims, factor: str | None) -> Value:
    """sum of a * b over all dims but `kept`."""
    x, y = w.whole(a), w.whole(b)
    found = _row_times_matrix(x, y, kept) or _row_times_matrix(y, x, kept)
    if found:
        operands, axes = found
        return _scaled(w, n, f"torch.bmm({operands})", axes, factor, f".view(-1, 1, {size_of(axes[1])})",
                       f".view(-1, {', '.join(map(size_of, axes))})")
    axes = x.axes if len(x.axes) >= len(y.axes) else y.axes
    over = ", ".join(str(1 + i) for i, d in enumerate(axes) if d not in kept)
    text = f"torch.mul({x.over(axes)}, {y.over(axes)}"
    if w.is_large(axes) and w.buffered:
        out = w.scratch.take(axes)
        text += f", out={out}"
        w.scratch.give(out)
    return _scaled(w, n, f"torch.sum({text}), ({over},))", tuple(d for d in axes if d in kept), factor)


def _scaled(w: Writer, n: Node, call: str, axes: Dims, factor: str | None, within: str = "", after: str = "") -> Value:
    """A call whose result is large enough to want room, and its factor."""
    if factor is None and w.is_large(axes) and n not in w.fixed:
        out = w.room(n, axes, over=False)
        v = w.line(n, f"{call[:-1]}, out={out}{within}){after}", axes, note=n)
        return Value(v.text, axes, out)
    call = call + after
    return w.line(n, call if factor is None else f"{call} * {factor}", axes, note=n)


def _row_times_matrix(x: Value, y: Value, kept: Dims) -> tuple[str, Dims] | None:
    """x[t, p] times y[t, p, q], summed over p, or x[t, q] times it, summed over q: a product of a row and a matrix for
    every t (the other way round it would cost seven times as much)."""
    if len(y.axes) != 3 or y.axes[0] != ROW or len(x.axes) != 2 or len(kept) != 2:
        return None
    for turned in (False, True):
        summed, left = (y.axes[2], y.axes[1]) if turned else y.axes[1:]
        if set(x.axes) == {ROW, summed} and set(kept) == {ROW, left}:
            matrix = f"{y.text}.reshape(-1, {', '.join(map(size_of, y.axes[1:]))}){'.mT' * turned}"
            return f"{x.over((ROW, summed))}.reshape(-1, 1, {size_of(summed)}), {matrix}", (ROW, left)
    return None


# ---------------------------------------------------------------- a product and its addend
def emit_add(w: Writer, n: Node, core: Node, factor: str | None = None) -> Value | None:
    """factor * (x + contract) or factor * (x - contract), or u + a * b, where `core`'s operand is absorbed."""
    a, b = core.args
    inner, x = (b, a) if b in w.absorbed else (a, b)
    if inner.op == "mul":
        return _addcmul(w, n, x, inner)
    v = w.value(x)
    p = Product(w, inner, v.axes if set(v.axes) == set(inner.dims) else None)
    if not p.plain or p.axes != v.axes or v.scalar:
        return None
    sign = "-" if core.op == "sub" else ""
    scale = f", beta={factor}, alpha={sign}{factor}" if factor else ", alpha=-1" if sign else ""
    call = f"torch.baddbmm({v.text}, {p.operands()}{scale})"
    return w.put(n, call, p.axes, note=inner, operands=(x,))


def _addcmul(w: Writer, n: Node, u: Node, product: Node) -> Value | None:
    a, b = (w.value(x) for x in product.args)
    v = w.value(u)
    axes = next((x.axes for x in (v, a, b) if set(x.axes) == set(n.dims)), None)
    if axes is None or any(x.scalar for x in (v, a, b)):
        return None
    call = w.instead.get("addcmul", "torch.addcmul({0}, {1}, {2})").format(*(x.over(axes) for x in (v, a, b)))
    return w.put(n, call, axes)
