"""Reductions over feature dims of tiles, and products of tiles with more than two axes, as Triton code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.axes import flat
from mixc.ir.node import Node

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles


def extremum_code(w: Tiles, node: Node, fn: str, fill: str) -> str:
    x, over = node.args[0], list(node.attr("over"))
    return w.summed_code(_filled(w, x, over, fill), w.order(x), over, fn)


def softmax_code(w: Tiles, node: Node) -> str:
    x, over = node.args[0], list(node.attr("over"))
    order, e = w.order(x), w.fresh("e")
    masked = _filled(w, x, over, "float('-inf')")
    rest = w.of(d for d in flat(order) if d not in over)

    def repeated(fn: str, x: str) -> str:
        return w.aligned(w.summed_code(x, order, over, fn), rest, order)
    w.emit(node, f"{e} = tl.exp({masked} - {repeated('tl.max', masked)})")
    return f"{e} / {repeated('tl.sum', e)}"


def _filled(w: Tiles, x: Node, over: list[str], fill: str) -> str:
    """The tile with the padding of some dims set to a number."""
    code = w.ref(x, w.order(x))
    for d in over:
        code = f"tl.where({w.mask_of(d, w.order(x))}, {code}, {fill})"
    return code


def batched_code(w: Tiles, node: Node, summed: list[str]) -> str:
    """A product of matrices, for every entry along some dims; axes of one kind become one.

    "" where a side has no axis that the other lacks; with rows, too, where there are several of a kind."""
    a, b = node.args
    each = [d for d in w.order(node) if d in a.dims and d in b.dims]
    left, right = ([d for d in w.order(x) if d not in each and d not in summed] for x in (a, b))
    groups = each, left, right, summed
    if not left or not right or (w.rows and any(len(g) != 1 for g in groups)):
        return ""
    code = f"dot({_matrix(w, a, each, left, summed)}, {_matrix(w, b, each, summed, right)}, OPERAND, PRECISION)"
    axes = (*each, *left, *right)
    if max(map(len, groups[:3])) > 1:
        code = f"tl.reshape({code}, {w.shape(axes)})"
    return w.aligned(code, axes, w.order(node))


def _matrix(w: Tiles, x: Node, *groups: list[str]) -> str:
    order = tuple(d for g in groups for d in g)
    code = w.cleaned(x, order)
    if max(map(len, groups)) < 2:
        return code
    return f"tl.reshape({code}, [{', '.join(' * '.join(map(w.block, g)) for g in groups if g)}])"
