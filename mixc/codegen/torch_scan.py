"""Scans in emitted torch code: row after row over [M, dims...] slabs, in place.

    h = affine_scan(a, b, h0, ...)      h over b's buffer: the slab of b is dead once its row is done
    e = affine_end(a, b, ...)           only what the last row leaves
    y = mul_before(d, h, h0, ...)       d times h of the row before: the shifted copy is never made

The adjoint's factor, a of the row behind, is read at its place and not copied either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.torch_span import axes_of_gradient
from mixc.codegen.torch_stages import origin
from mixc.codegen.torch_values import Dims, Value
from mixc.ir.blocks import parts
from mixc.ir.node import ROW, Node, is_number
from mixc.ir.scans import COMBINES

if TYPE_CHECKING:
    from mixc.codegen.torch_writer import Writer


def absorbs(n: Node, free: set[Node]) -> list[Node]:
    """The shifted value that n reads without a copy of its own."""
    return [x for x in shifted_operands(n) if x in free][:1]


def shifted_operands(n: Node) -> list[Node]:
    """The operands that n could so read."""
    a = n.args
    if n.op in ("scan", "scan_end"):
        return [a[0]] if a[0].op == "previous" and is_number(a[0].args[1], 1.0) else []
    if n.op == "mul" and a[0] is not a[1]:
        return [x for x in a if x.op == "previous" and set(x.dims) == set(n.dims)][:1]
    return []


def emit_scan(w: Writer, n: Node) -> Value:
    a, b = n.args[:2]
    shifted = a in w.absorbed
    end, dims = n.op == "scan_end", w.sorted((ROW, *n.attr("dims")))
    affine = n.attr("combine") == "affine"
    factor = "None" if is_number(origin(a), COMBINES[n.attr("combine")].keep) else _rows(w, a.args[0] if shifted else a, dims)
    added = _rows(w, b, dims, whole=True)
    name = ("affine" if affine else "other") + ("_end" if end else "_scan")
    more = [] if affine else [repr(n.attr("combine"))]
    start = [] if end else ["None" if is_number(n.args[2], 0.0) and not more else w.over(w.value(n.args[2]), dims[1:])]
    call = f"{name}({', '.join([factor, added, *start, *more])}, reverse={n.attr('reverse')}, shifted={shifted})"
    axes = dims[1:] if end else dims
    if end or not w.is_large(axes):
        return w.line(n, call, axes, out=w.fixed.get(n) if not end else None)
    return w.line(n, call, axes, out=w.room(n, axes, operands=(b,)))


def _rows(w: Writer, x: Node, dims: Dims, whole: bool = False) -> str:
    v = w.value(x)
    if whole or v.scalar:
        return w.full(x, dims)
    return v.over(dims)


def emit_block(w: Writer, n: Node) -> Value:
    """All components at once, as a list."""
    A, b, start = parts(n)
    dims = w.sorted((ROW, *n.attr("dims")))
    rows = [[None if is_number(a, 0.0) else w.full(a, dims) for a in row] for row in A]
    added = [w.full(x, dims) for x in b]
    starts = [w.full(x, dims[1:]) for x in start]
    text = ", ".join(f"[{', '.join(map(str, row))}]" for row in rows)
    call = f"block_scan([{text}], [{', '.join(added)}], [{', '.join(starts)}], {n.attr('reverse')})"
    return w.line(n, call, n.dims)


def emit_component(w: Writer, n: Node) -> Value:
    """Of a block, or of the gradients that come together."""
    block = n.args[0]
    dims = w.sorted((ROW, *block.attr("dims"))) if block.op == "scan_block" else axes_of_gradient(block)
    return w.line(n, f"{w.value(block).text}[{n.attr('i')}]", dims)


def emit_previous(w: Writer, n: Node) -> Value:
    x, edge = n.args
    dims = w.sorted(n.dims)
    call = f"shift_rows({w.full(x, dims)}, {w.over(w.value(edge), dims[1:])}, reverse={n.attr('reverse')})"
    return w.put(n, call, dims, over=False)


def emit_mul_before(w: Writer, n: Node, shifted: Node) -> Value:
    other = n.args[1] if n.args[0] is shifted else n.args[0]
    x, edge = shifted.args
    dims = w.sorted((ROW, *(d for d in n.dims if d != ROW)))
    call = (f"mul_before({w.full(other, dims)}, {w.full(x, dims)}, {w.over(w.value(edge), dims[1:])}, "
            f"reverse={shifted.attr('reverse')})")
    return w.put(n, call, dims, operands=(other,))
