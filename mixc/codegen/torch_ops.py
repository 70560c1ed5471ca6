"""One rule an op: how a value of a segment is written in torch.

A rule gets the writer and a node whose operands have values; it emits at most a few lines and returns the
node's Value.  Large results are written to scratch (`out=`), over a dead operand where one has the shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from mixc.codegen.torch_contract import emit_contract, emit_sum_with_product
from mixc.codegen.torch_scan import emit_block, emit_component, emit_previous, emit_scan
from mixc.codegen.torch_span import emit_factors, emit_gradient, emit_inverse, emit_product, emit_solve, emit_span_solve
from mixc.codegen.torch_stages import is_span, small
from mixc.codegen.torch_values import Dims, Value, literal, size_of
from mixc.ir.blocks import PART
from mixc.ir.node import COL, ROW, Node
from mixc.ir.ops import OPS
from mixc.ir.ranges import bounds

if TYPE_CHECKING:
    from mixc.codegen.torch_writer import Writer

Rule = Callable[["Writer", Node], Value]

INFIX = {"add": "torch.add", "sub": "torch.sub", "mul": "torch.mul", "div": "torch.div", "neg": "torch.neg"}
_COMPARE = {"lt", "le", "eq", "ne", "and", "or", "not"}
_SWAPS = {"add", "mul"}
_NO_OUT = {"conj", "imag", "real", "relu", "zeros_like"}


def takes_out(n: Node) -> bool:
    """Is the op one call of torch that writes where it is told to?"""
    return n.op not in INFIX and call_of(n.op) is not None


def call_of(op: str) -> str | None:
    """The one function of torch that an op is, if that writes where it is told to."""
    found = re.fullmatch(r"torch\.(\w+)\([^()]*\)", OPS[op].torch or "")
    return INFIX.get(op) or (f"torch.{found[1]}" if found is not None and found[1] not in _NO_OUT else None)


# ---------------------------------------------------------------- elementwise
def elementwise(w: Writer, n: Node) -> Value:
    values = [w.value(a) for a in n.args]
    axes = joint_axes(w, n, values)
    if n.op == "guard":
        return w.line(n, f"guard({values[0].over(axes)}, {values[1].over(axes)})", axes)
    if n in w.masks:
        out = w.room(n, axes)
        refs = ", ".join(w.over(v, axes) for v in values)
        v = w.line(n, f"compare({n.op!r}, {refs}, {out})", axes)
        return Value(v.text, axes, out)
    call = _with_out(n, values, axes, w)
    if call is not None and n.kind != "bool" and w.is_large(axes):
        if n.op == "where":
            call = call.replace("torch.where(", "select(", 1)
            return w.line(n, call, axes, out=w.room(n, axes, operands=n.args[1:]))  # the condition is read to the end
        return w.line(n, call, axes, out=w.room(n, axes))
    return w.line(n, _plain(n, values, axes, w), axes)


def joint_axes(w: Writer, n: Node, values: list[Value]) -> Dims:
    """The axes of an elementwise result: those of an operand that has all of them, else time, which a learned factor may
    stand before (`B * u`), and what is in the writer's order."""
    have = {d for v in values for d in v.axes}
    for v in values:
        if set(v.axes) == have:
            return v.axes
    time_first = sorted((d for d in n.dims if d in have), key=lambda d: d[0] != "_")
    return w.sorted(tuple(time_first))


def _with_out(n: Node, values: list[Value], axes: Dims, w: Writer) -> str | None:
    """`torch.op(a, b`, to be closed with an `out=`; None where torch has no such form."""
    if n.op in INFIX:
        if n.op in _SWAPS and values[0].scalar:
            values = values[::-1]
        args = [w.over(values[0], axes), *(v.over(axes) for v in values[1:])]
        return f"{INFIX[n.op]}({', '.join(args)})"
    return _plain(n, values, axes, w) if takes_out(n) else None


def _plain(n: Node, values: list[Value], axes: Dims, w: Writer) -> str:
    template = w.instead.get(n.op) or OPS[n.op].torch or ""
    infix = n.op in INFIX or n.op in _COMPARE
    args = [v.text if v.scalar and infix else w.over(v, axes) for v in values]
    return template.format(*args, n=n.attr("n")).replace("REAL", "dtype")


def live(w: Writer, n: Node) -> Value:
    """Where some rows are no tokens: x on tokens, `fill` behind the end."""
    v, mask = w.value(n.args[0]), Value("live", (ROW,))
    axes = v.axes if ROW in v.axes else (ROW, *v.axes)
    return w.put(n, f"torch.where({mask.over(axes)}, {w.over(v, axes)}, {w.number(literal(n.attr('fill')))})", axes)


def exponential(w: Writer, n: Node) -> Value:
    """exp of a sum over a span of rows is a decay; other exponentials are elementwise."""
    x = n.args[0]
    if is_span(x):
        call = f"span_decay({w.value(x).text}, {x.attr('reach')!r})"
        return w.line(n, call, (ROW, COL), out=w.room(n, (ROW, COL)) if w.buffered else None)
    if x in w.absorbed and x.op == "cumsum":
        v = _with_rows(w, x.args[0])
        return w.line(n, _running("running_decay", x, v), v.axes)
    if x in w.absorbed:
        a, b = sorted(map(w.value, x.args), key=lambda v: len(v.axes))
        axes = joint_axes(w, n, [b, a])
        return w.put(n, f"decay_of({a.over(axes)}, {b.over(axes)})", axes)
    v = w.value(x)
    decays = bounds(x).nonpositive and (COL not in n.dims or x.op == "segsum")
    if decays and not small(n) and w.is_large(v.axes) and v.axes and not v.scalar:
        return w.line(n, f"decay({v.text})", v.axes, out=w.room(n, v.axes))
    return elementwise(w, n)


# ---------------------------------------------------------------- sums and other reductions
def total(w: Writer, n: Node) -> Value:
    x = n.args[0]
    if x in w.absorbed:
        return emit_sum_with_product(w, n, x)
    v, over = w.value(x), n.attr("over")
    repeated = [size_of(d) for d in over if d not in v.axes]
    axes = tuple(d for d in v.axes if d not in over)
    text = v.text
    if len(axes) < len(v.axes):
        text = f"{v.text}.sum(({', '.join(str(v.axes.index(d) + 1) for d in over if d in v.axes)},))"
    return w.line(n, " * ".join([text, *repeated]), axes)


def _reduction(call: str) -> Rule:
    def rule(w: Writer, n: Node) -> Value:
        dims = n.args[0].dims
        over = [1 + dims.index(d) for d in n.attr("over")]
        axes = dims if n.op == "softmax" else tuple(d for d in dims if d not in n.attr("over"))
        return w.line(n, call.format(w.full(n.args[0], dims), over), axes)
    return rule


def prod(w: Writer, n: Node) -> Value:
    axes, text = list(n.args[0].dims), w.full(n.args[0], n.args[0].dims)
    for d in n.attr("over"):
        text += f".prod({1 + axes.index(d)})"
        axes.remove(d)
    return w.line(n, text, tuple(axes))


def pick(w: Writer, n: Node) -> Value:
    dims, dim = n.args[0].dims, n.attr("dim")
    if dim == PART:
        return emit_component(w, n)
    text = f"{w.full(n.args[0], dims)}.select({1 + dims.index(dim)}, {n.attr('i')})"
    lent = w.value(n.args[0]).scratch is not None  # its buffer may be another value's before n is read
    return w.line(n, text + ".clone()" * lent, n.dims)


def place(w: Writer, n: Node) -> Value:
    dims = n.args[0].dims
    return w.line(n, f"place({w.full(n.args[0], dims)}, {n.attr('i')}, {size_of(n.attr('dim'))})", n.dims)


# ---------------------------------------------------------------- over the rows of a chunk
def _running(name: str, n: Node, v: Value) -> str:
    return (f"{name}({v.text}, {1 + v.axes.index(ROW)}, reverse={bool(n.attr('reverse'))}, "
            f"exclusive={bool(n.attr('exclusive'))})")


def _with_rows(w: Writer, x: Node) -> Value:
    v = w.value(x)
    return v if ROW in v.axes else Value(w.full(x, x.dims), x.dims)


def running(w: Writer, n: Node) -> Value:
    v = _with_rows(w, n.args[0])
    return w.line(n, _running("running_sum" if n.op == "cumsum" else "running_product", n, v), v.axes)


def span(w: Writer, n: Node) -> Value:
    if is_span(n):
        return w.line(n, f"span_parts({w.full(n.args[0], (ROW,))}, {n.attr('reach')!r})", ("_parts", ROW))
    name = "span_sum" if n.op == "segsum" else "span_product"
    return w.line(n, f"{name}({w.full(n.args[0], n.args[0].dims)}, {n.attr('reach')!r})", n.dims)


def mask(w: Writer, n: Node) -> Value:
    v, which = w.value(n.args[0]), n.attr("keep")
    if ROW not in v.axes or COL not in v.axes:
        v = Value(w.full(n.args[0], n.dims), n.dims)
    if which != "diag" and v.axes[-2:] in ((ROW, COL), (COL, ROW)) and w.is_large(v.axes):
        lower = v.axes[-2:] == (ROW, COL)
        edge = (0 if which == "incl" else -1) * (1 if lower else -1)
        kept = n in w.fixed and v.axes != n.dims  # torch writes wrong numbers to an `out` of another order of axes
        return w.line(n, f"torch.{'tril' if lower else 'triu'}({v.text}, {edge})", v.axes, out=None if kept else w.room(n, v.axes))
    return w.line(n, f"keep({v.text}, {which!r}, {1 + v.axes.index(ROW)}, {1 + v.axes.index(COL)})", v.axes)


RULES: dict[str, Rule] = {
    "live": live,
    "exp": exponential,
    "contract": lambda w, n: emit_contract(w, n, n),
    "sum": total,
    "prod": prod,
    "max": _reduction("{}.amax({})"),
    "min": _reduction("{}.amin({})"),
    "norm": _reduction("norm({}, {})"),
    "softmax": _reduction("softmax({}, {})"),
    "pick": pick,
    "place": place,
    "cumsum": running,
    "cumprod": running,
    "segsum": span,
    "segprod": span,
    "mask": mask,
    "span_factors": emit_factors,
    "span_product": emit_product,
    "span_gradient": emit_gradient,
    "unit_inverse": emit_inverse,
    "solve": emit_solve,
    "span_solve": emit_span_solve,
    "scan": emit_scan,
    "scan_end": emit_scan,
    "scan_block": emit_block,
    "previous": emit_previous,
}


def rule_of(n: Node) -> Rule:
    return RULES.get(n.op) or elementwise
