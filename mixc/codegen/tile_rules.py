"""One rule an op: how a value is written as a tile expression, where that is more than filling in a template.

A rule gets the writer of the tiles and a node; what it needs a name for it puts on a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mixc.codegen import triton_span as spans
from mixc.codegen.lines import literal
from mixc.codegen.operands import axes_of
from mixc.codegen.refuse import refuse
from mixc.codegen.triton_products import add_code, contract_code, extremum_code, softmax_code
from mixc.codegen.triton_scan import pick_code, previous_code, scan_code
from mixc.ir.brackets import filled
from mixc.ir.node import COL, ROW, Node, flat

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles


def _live(w: Tiles, node: Node) -> str:
    order = w.order(node)
    live = w.axes.along("live", ROW, order)
    return f"tl.where({live}, {w.bare(node.args[0], order)}, {literal(node.attr('fill'))})"


def _once(w: Tiles, node: Node) -> str:
    return f"tl.where(block_{node.attr('dim')} == 0, {w.whole(node.args[0], w.order(node))}, 0.0)"


def _ipow(w: Tiles, node: Node) -> str:
    n, x = node.attr("n"), w.ref(node.args[0], w.order(node))
    power = x if n else "1.0"
    for bit in bin(abs(n))[3:]:
        half = w.fresh("half")
        w.emit(node, f"{half} = {power}")
        power = f"{half} * {half}" + f" * {x}" * int(bit)
    return power if n >= 0 else f"1.0 / ({power})"


def _mask(w: Tiles, node: Node) -> str:
    sign = {"incl": ">=", "strict": ">", "diag": "=="}[node.attr("keep")]
    order = w.order(node)
    t, s = (w.axes.suffix(next(a for a in order if row in flat([a]))) for row in (ROW, COL))
    seen = f"rows{t}[:, None] {sign} rows{s}[None, :]"
    seen = seen if len(order) == 2 else w.aligned(f"({seen})", (ROW, COL), order)
    return f"tl.where({seen}, {w.bare(node.args[0], order)}, 0.0)"


def _crossing(w: Tiles, node: Node) -> str:
    if node.dims != (ROW,):
        raise refuse("sums over the spans that cross a row, for every entry", node)
    if node.args[0] in w.crossed:
        x, = node.args[0].args
        t, s = (f"rows{w.axes.suffix(a)}" for a in w.order(x))
        return f"sum_crossing_tokens({w.cleaned(x, w.order(x))}, {t}, {s}, C, {node.attr('reach')!r}, PRECISION)"
    return f"sum_crossing({w.whole(node.args[0], (ROW, COL))}, rows, {node.attr('reach')!r}, PRECISION)"


def _span(w: Tiles, node: Node) -> str:
    """Of numbers; of vectors, for every pair of rows and entry."""
    x, name = node.args[0], "span_sum" if node.op == "segsum" else "span_product"
    if len(x.dims) == 1:
        return f"{name}({w.whole(x, (ROW,))}, rows, {node.attr('reach')!r})"
    return f"vector_{name}({w.whole(x, w.order(x))}, rows, {node.attr('reach')!r}, PRECISION)"


def _flatten(w: Tiles, node: Node) -> str:
    x, order = node.args[0], w.order(node)
    return w.bare(x, order) if axes_of(x) & {*node.attr("of")} else w.whole(x, order)


def _expand(w: Tiles, node: Node) -> str:
    order = w.order(node)
    if not node.args[0].dims:
        return filled(f"tl.zeros({w.shape(order)}, tl.float32) + {{0}}", [w.bare(node.args[0], order)])
    return f"tl.broadcast_to({w.bare(node.args[0], order)}, {w.shape(order)})"


def _add(w: Tiles, node: Node) -> str:
    return add_code(w, node) or filled("{0} + {1}", [w.bare(a, w.order(node)) for a in node.args])


def _sum(w: Tiles, node: Node) -> str:
    x, over = node.args[0], list(node.attr("over"))
    return w.summed_code(w.cleaned(x, w.order(x), over), w.order(x), over)


def _norm(w: Tiles, node: Node) -> str:
    x, over = node.args[0], list(node.attr("over"))
    squared = filled("{0} * {0}", [w.cleaned(x, w.order(x), over)])
    return f"tl.sqrt({w.summed_code(squared, w.order(x), over)})"


def _pick(w: Tiles, node: Node) -> str:
    if node.attr("dim") != ROW:
        x, order = node.args[0], w.order(node.args[0])
        return w.summed_code(f"tl.where({_at(w, node, order)}, {w.ref(x, order)}, 0.0)", order, [node.attr("dim")])
    return pick_code(w, node)


def _place(w: Tiles, node: Node) -> str:
    order = w.order(node)
    return f"tl.where({_at(w, node, order)}, {w.ref(node.args[0], order)}, 0.0)"


def _at(w: Tiles, node: Node, order: tuple[str, ...]) -> str:
    d = node.attr("dim")
    return w.axes.along(w.index(d), d, order, f"({{}} == {node.attr('i')})")


def _prod(w: Tiles, node: Node) -> str:
    if node.attr("over") != (ROW,):
        raise refuse("a product over feature dims", node)
    return f"whole_product({w.whole(node.args[0], w.order(node.args[0]))})"


def _running(w: Tiles, node: Node) -> str:
    if node.dims != (ROW,):
        return spans.running_sum_code(w, node)
    name = "running_sum" if node.op == "cumsum" else "running_product"
    return f"{name}({w.whole(node.args[0], (ROW,))}, {node.attr('reverse')}, {node.attr('exclusive')})"


def _span_contract(w: Tiles, node: Node) -> str:
    found = spans.span_contract_code(w, node)
    if found is None:
        raise refuse("a product under a vector decay of this shape", node)
    return found


RULES: dict[str, Callable[[Tiles, Node], str]] = {
    "live": _live,
    "once": _once,
    "ipow": _ipow,
    "add": _add,
    "contract": contract_code,
    "mask": _mask,
    "segsum": _span,
    "segprod": _span,
    "crossing": _crossing,
    "cumsum": _running,
    "cumprod": _running,
    "span_contract": _span_contract,
    "span_crossing": spans.span_crossing_code,
    "unit_inverse": spans.unit_inverse_code,
    "solve": spans.solve_code,
    "span_solve": spans.span_solve_code,
    "flatten": _flatten,
    "unflatten": lambda w, node: w.bare(node.args[0], w.order(node)),
    "expand": _expand,
    "sum": _sum,
    "prod": _prod,
    "max": lambda w, node: extremum_code(w, node, "tl.max", "float('-inf')"),
    "min": lambda w, node: extremum_code(w, node, "tl.min", "float('inf')"),
    "norm": _norm,
    "softmax": softmax_code,
    "scan": scan_code,
    "previous": previous_code,
    "pick": _pick,
    "place": _place,
}
