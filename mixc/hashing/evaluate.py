"""Programs evaluated on arrays of mpmath numbers: `ir/evaluate.py` again, with 34 digits or more.

A value has `BATCH` leading axes, (probes, tokens), of size 1 where it does not vary, then the node's dims in order.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from functools import reduce
from operator import add, mul

import numpy as np

from mixc.hashing.values import OPS, ZERO, Value, doubles, elementwise, numbers
from mixc.ir.node import Node, fold
from mixc.ir.program import Decl

BATCH = 2


class Env:
    """Where leaves get their values.

    Args:
        leaf: called with an in, param, const, state, cot or pos node.
        sizes: of every dim.
        watch: called with every node and its arguments' values, if given.
        cotangents: nodes that are linear in a cotangent; one that is 0 stays 0, whatever it is multiplied with.
    """

    def __init__(self, leaf: Callable[[Node], Value], sizes: Mapping[str, int],
                 watch: Callable[[Node, list[Value]], None] | None = None, cotangents: Container[Node] = ()):
        self.leaf, self.sizes, self.watch, self.cotangents = leaf, sizes, watch, cotangents


def evaluate(roots: Iterable[Node], env: Env, known: dict[Node, Value]) -> list[Value]:
    """The values of `roots`; `known` is read and filled."""
    return fold(roots, lambda node, args: compute(node, args, env), known)


def number_of(node: Node, sizes: Mapping[str, int], consts: Mapping[str, float]) -> float:
    """The value of an expression of numbers, sizes and consts: the nearest double, on every machine."""
    (x,) = evaluate([node], Env(lambda n: _scalar(consts[n.attr("name")]), sizes), {})
    return float(doubles(x).item())


def const_values(consts: Iterable[Decl], sizes: Mapping[str, int], given: Mapping[str, float]) -> dict[str, float]:
    """Every const, in order: the given one, or its expression over the sizes and the consts above."""
    values: dict[str, float] = {}
    for d in consts:
        assert d.init is not None
        values[d.name] = given[d.name] if d.name in given else number_of(d.init, sizes, values)
    return values


def compute(node: Node, args: list[Value], env: Env) -> Value:
    if env.watch is not None and node.args:
        env.watch(node, args)
    if node.op in ("mul", "div", "contract") and node in env.cotangents:
        return _kept_zero(node, args, env)
    rule = _STRUCTURAL.get(node.op)
    if rule is not None:
        return rule(node, args, env)
    if not node.args:
        return env.leaf(node)
    return elementwise(node, [align(a, n.dims, node.dims) for a, n in zip(args, node.args, strict=True)])


def align(x: Value, have: tuple[str, ...], want: tuple[str, ...]) -> Value:
    """x with dims `have` viewed with dims `want`, of size 1 where it lacks one."""
    if have == want:
        return x
    order = [BATCH + have.index(d) for d in want if d in have]
    where_new = [BATCH + i for i, d in enumerate(want) if d not in have]
    return np.expand_dims(x.transpose(*range(BATCH), *order), where_new)


def widen(x: Value, dims: tuple[str, ...], sizes: Mapping[str, int]) -> Value:
    """x with all entries along its dims."""
    return np.broadcast_to(x, (*x.shape[:BATCH], *(sizes[d] for d in dims)))


def over(f: Callable[[Value, Value], Value], x: Value, axes: Iterable[int]) -> Value:
    """One entry after the other along each axis."""
    for axis in sorted(axes, reverse=True):
        x = reduce(f, [np.take(x, i, axis) for i in range(x.shape[axis])])
    return x


def _fold(f: Callable[[Value, Value], Value]) -> Callable[[Node, list[Value], Env], Value]:
    def run(node: Node, args: list[Value], env: Env) -> Value:
        return over(f, widen(args[0], node.args[0].dims, env.sizes), _axes(node))
    return run


def _axes(node: Node) -> list[int]:
    return [BATCH + node.args[0].dims.index(d) for d in node.attr("over")]


def _kept_zero(node: Node, args: list[Value], env: Env) -> Value:
    """A product or a quotient with a cotangent, 0 where that is 0."""
    if node.op == "contract":
        return _contract(node, args, env, node.args[0] in env.cotangents)
    a, b = (align(x, n.dims, node.dims) for x, n in zip(args, node.args, strict=True))
    if node.op == "div":
        return np.where(a == 0, ZERO, elementwise(node, [a, b]))
    return OPS["guard"](*((a, b) if node.args[0] in env.cotangents else (b, a)))


def _contract(node: Node, args: list[Value], env: Env, cotangent: bool | None = None) -> Value:
    """`cotangent`: whether the first argument is one, or the second; None: neither."""
    every = (*node.dims, *(d for d in dict.fromkeys((*node.args[0].dims, *node.args[1].dims)) if d not in node.dims))
    a, b = (align(x, n.dims, every) for x, n in zip(args, node.args, strict=True))
    y = a * b if cotangent is None else OPS["guard"](*((a, b) if cotangent else (b, a)))
    return over(add, widen(y, every, env.sizes), range(BATCH + len(node.dims), BATCH + len(every)))


def _softmax(node: Node, args: list[Value], env: Env) -> Value:
    x, axes = widen(args[0], node.dims, env.sizes), tuple(_axes(node))
    top = _fold(OPS["maximum"])(node, args, env)
    e = OPS["exp"](x - np.expand_dims(top, axes))
    return OPS["div"](e, np.expand_dims(over(add, e, axes), axes))


def _norm(node: Node, args: list[Value], env: Env) -> Value:
    size = OPS["abs"](args[0])
    return OPS["sqrt"](_fold(add)(node, [size * size], env))


def _place(node: Node, args: list[Value], env: Env) -> Value:
    size, i = env.sizes[node.attr("dim")], node.attr("i")
    hit = (np.arange(size) == i % size).reshape(1, 1, size, *[1] * (len(node.dims) - 1))
    return np.where(hit, np.expand_dims(args[0], BATCH), ZERO)


def _pick(node: Node, args: list[Value], env: Env) -> Value:
    dims = node.args[0].dims
    return np.take(widen(args[0], dims, env.sizes), node.attr("i"), BATCH + dims.index(node.attr("dim")))


def _scalar(value: complex) -> Value:
    return numbers(np.full((1,) * BATCH, value.real), value.imag if isinstance(value, complex) else None)


_STRUCTURAL: dict[str, Callable[[Node, list[Value], Env], Value]] = {
    "number": lambda n, a, e: _scalar(n.attr("value")),
    "size": lambda n, a, e: _scalar(float(e.sizes[n.attr("dim")])),
    "index": lambda n, a, e: numbers(np.arange(e.sizes[n.dims[0]], dtype=np.float64).reshape(1, 1, -1)),
    "contract": _contract,
    "sum": _fold(add),
    "prod": _fold(mul),
    "max": _fold(OPS["maximum"]),
    "min": _fold(OPS["minimum"]),
    "norm": _norm,
    "softmax": _softmax,
    "rename": lambda n, a, e: a[0],
    "pick": _pick,
    "place": _place,
    "expand": lambda n, a, e: widen(align(a[0], n.args[0].dims, n.dims), n.dims, e.sizes),
}
