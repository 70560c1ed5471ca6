"""Products of two tiles, and what they are added to, as Triton code: `dot` where there are two axes and one that is summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.axes import called
from mixc.codegen.operands import axes_of, scaled
from mixc.codegen.padding import zero_padded
from mixc.codegen.refuse import entries, refuse
from mixc.ir.brackets import filled
from mixc.ir.launch import feature_dims
from mixc.ir.node import ROW, Node, flat, source, unrenamed

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles

Added = tuple[Node, Node, tuple[str, ...]]


def add_code(w: Tiles, node: Node) -> str | None:
    """A sum that a product, or two, are added to; None: it is no such sum."""
    found = _product_in(w, node)
    if found is None:
        return None
    product, rest, order = found
    if rest not in w.stacked:
        return _dot(w, product, order, f", {w.whole(rest, w.order(node))}")
    more = _product_in(w, rest)
    assert more
    return _two_dots(w, more, found, w.whole(more[1], w.order(node)))


def contract_code(w: Tiles, node: Node) -> str:
    if w.dot_axes(node):
        return _dot(w, node, w.order(node))
    a, b = node.args
    summed = [d for d in a.dims if d in b.dims and d not in node.dims]
    over = w.of((*node.dims, *summed))
    if len(over) > 3:
        code = batched_code(w, node, summed)
        if code:
            return code
        if w.rows:
            raise refuse(f"a product over {entries(dict.fromkeys(map(w.axes.size_of, flat(over))))}", node)
    lacking = not axes_of(a) | axes_of(b) >= set(summed)  # both repeated along an axis that is summed over
    first = w.cleaned(a, over, over if lacking else None)
    return w.summed_code(filled("{0} * {1}", [first, w.cleaned(b, over)]), over, summed)


def _product_in(w: Tiles, node: Node) -> Added | None:
    """The product that a sum is added to, what else the sum has, and the product's axes as the sum has them."""
    for c, rest in (node.args[::-1], node.args):
        order = w.order(node)
        c, outer = unrenamed(c)
        order = called(order, {new: old for old, new in outer.items()})
        if w.added.get(c) is node and set(order) <= set(w.dot_axes(c) or ()):
            return c, rest, order
    return None


def _dot(w: Tiles, node: Node, order: tuple[str, ...], plus: str = "") -> str:
    """The product of two matrices, its axes in `order`."""
    a, b, (x, z, y) = _sides(w, node, order)
    plus = f"{w.operand_for(node)}, PRECISION{plus}"
    if x == ROW and w.through is not None and (code := w.through(_operand(w, a, (x, z), z), b, (z, y), plus)):
        return code
    left, right = _operand(w, a, (x, z), z), _operand(w, b, (z, y), z)
    if _called(w, node) == "fine_dot" and not source(a).args and scaled(source(b)):
        right = f"formed({right})"  # once, and not its halves in every warp that has the columns
    code = f"{_called(w, node)}({left}, {right}, {plus})"
    return code if order == (x, y) else w.aligned(code, (x, y), order)


def _called(w: Tiles, node: Node) -> str:
    return "dot" if w.operand_for(node) == "OPERAND" else "fine_dot"


def _two_dots(w: Tiles, first: Added, second: Added, plus: str) -> str:
    """Two products over tokens, added to a tile, as one (`operands.stacked`)."""
    left, right, loaded = [], [], True
    for node, _, order in (first, second):
        a, b, (x, z, y) = _sides(w, node, order)
        left.append(_operand(w, a, (z, x), z))
        right.append(_operand(w, b, (z, y), z))
        loaded = loaded and not source(a).args
    operand = w.operand_for(node)
    sides = [f"tl.trans(stack({', '.join(left)}, {operand}))", f"stack({', '.join(right)}, {operand})"]
    if loaded and _called(w, node) == "fine_dot":
        sides[1] = f"formed({sides[1]})"
    code = f"{_called(w, node)}({', '.join(sides)}, {operand}, PRECISION, {plus})"
    return code if order == (x, y) else w.aligned(code, (x, y), order)


def _sides(w: Tiles, node: Node, order: tuple[str, ...]) -> tuple[Node, Node, tuple[str, str, str]]:
    """The operands of a product and its axes, the one first whose own axis is first in `order`."""
    (a, b), found = node.args, w.dot_axes(node)
    assert found
    return (b, a, (found[2], found[1], found[0])) if found[2] == order[0] else (a, b, found)


def _operand(w: Tiles, node: Node, order: tuple[str, str], summed: str) -> str:
    over = [d for d in flat([summed]) if d in flat(feature_dims(node)) and not zero_padded(node, d)]
    if over:
        return w.cleaned(node, order, flat(order))
    if axes_of(node) != set(flat(order)):  # repeated along an axis of the product
        return w.whole(node, order)
    return w.bare(node, order, cast=False)


# ---------------------------------------------------------------- reductions, and products of more than two axes
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
