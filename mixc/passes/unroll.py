"""Chunk programs without a time axis: every row is values of its own.

    h = scan(a, b, h0)  -->  h_0 = a_0 * h0 + b_0,  h_1 = a_1 * h_0 + b_1,  ...
    sum over _t of x    -->  x_0 + x_1 + ...

What is left is work entry by entry with sums over features, which a compiler of loops makes one loop of.
"""

from __future__ import annotations

from functools import reduce

from mixc.ir.build import total
from mixc.ir.node import ROW, Node, fold, make, number
from mixc.ir.ops import OPS
from mixc.ir.scans import COMBINES

Rows = Node | list[Node]  # a value of every row has a list


class NotRows(Exception):
    """An operation that couples rows in another way."""


def unroll(order: list[Node], C: int) -> dict[Node, Rows]:
    """Of nodes that come arguments first.

    Raises:
        NotRows
    """
    made: dict[Node, Rows] = {}
    fold(order, lambda n, args: _rule(n, args, C) if n.args else _leaf(n, C), made)
    return made


def row_leaf(n: Node, t: int) -> Node:
    """Row t of a value that is given."""
    return make("saved", name=f"{n.op}.{n.attr('name')}.{t}", dims=tuple(d for d in n.dims if d != ROW))


def _leaf(n: Node, C: int) -> Rows:
    if ROW not in n.dims:
        return n
    if n.op not in ("in", "cot", "saved"):
        raise NotRows(n.op)
    return [row_leaf(n, t) for t in range(C)]


def _at(x: Rows, t: int) -> Node:
    return x[t] if isinstance(x, list) else x


def _rule(n: Node, args: list[Rows], C: int) -> Rows:
    op, order = n.op, range(C)[::-1] if n.attr("reverse") else range(C)
    if op in ("scan", "scan_end"):
        update, rows = COMBINES[n.attr("combine")].update, {}
        h = _at(args[2], 0) if op == "scan" else None
        for t in order:
            a, b = _at(args[0], t), _at(args[1], t)
            h = rows[t] = b if h is None else update(a, b, h)
        return [rows[t] for t in range(C)] if op == "scan" else rows[order[-1]]
    if op == "previous":
        rows = dict(zip(order, [_at(args[1], 0), *(_at(args[0], t) for t in order[:-1])], strict=True))
        return [rows[t] for t in range(C)]
    if op == "pick" and n.attr("dim") == ROW:
        return _at(args[0], n.attr("i") % C)
    if op == "place" and n.attr("dim") == ROW:
        return [_at(args[0], 0) if t == n.attr("i") % C else number(0) for t in range(C)]
    if op in ("sum", "prod") and ROW in n.attr("over"):
        over = tuple(d for d in n.attr("over") if d != ROW)
        rows_ = [make(op, x, over=over) if over else x for x in (_at(args[0], t) for t in range(C))]
        return reduce(Node.__add__ if op == "sum" else Node.__mul__, rows_)
    if op == "contract":
        over = tuple(dict.fromkeys(d for a in n.args for d in a.dims if d not in n.dims and d != ROW))
        parts = [total(_at(args[0], t) * _at(args[1], t), over) for t in range(C)]
        summed = ROW not in n.dims and any(ROW in a.dims for a in n.args)
        return parts if ROW in n.dims else reduce(Node.__add__, parts) if summed else parts[0]
    if op == "expand":
        dims = tuple(d for d in n.attr("dims") if d != ROW)
        rows_ = [make("expand", x, dims=dims) if dims else x for x in (_at(args[0], t) for t in range(C))]
        return rows_ if ROW in n.dims else rows_[0]
    if not (OPS[op].elementwise or op in ("sum", "prod", "max", "min", "norm", "softmax", "rename", "pick", "place",
                                          "stop_gradient")) or ROW in str(n.attrs):
        raise NotRows(op)
    attrs = dict(n.attrs)
    if not any(isinstance(x, list) for x in args):
        return make(op, *(_at(x, 0) for x in args), **attrs)
    return [make(op, *(_at(x, t) for x in args), **attrs) for t in range(C)]
