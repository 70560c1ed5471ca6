"""Programs evaluated on exact enough numbers: `ir/evaluate.py` again, with 34 digits or more.

A value has `BATCH` leading axes, (probes, tokens), of size 1 where it does not vary, then the node's dims in order.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from functools import reduce
from operator import add, mul
from typing import Any

import numpy as np

from mixc.hashing.mp import MP
from mixc.hashing.values import Complex, Value, as_complex, elementwise, guard, like, maximum, minimum, where
from mixc.ir.node import Node, fold

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


def rearrange(x: Value, f: Callable[[Any], Any]) -> Value:
    return f(x) if isinstance(x, np.ndarray) else x.map(f)


def align(x: Value, have: tuple[str, ...], want: tuple[str, ...]) -> Value:
    """x with dims `have` viewed with dims `want`, of size 1 where it lacks one."""
    if have == want:
        return x
    order = [BATCH + have.index(d) for d in want if d in have]
    where_new = [BATCH + i for i, d in enumerate(want) if d not in have]
    return rearrange(x, lambda a: np.expand_dims(a.transpose(*range(BATCH), *order), where_new))


def widen(x: Value, dims: tuple[str, ...], sizes: Mapping[str, int]) -> Value:
    """x with all entries along its dims."""
    shape = tuple(sizes[d] for d in dims)
    return rearrange(x, lambda a: np.broadcast_to(a, (*a.shape[:BATCH], *shape)))


def over(f: Callable[[Value, Value], Value], x: Value, axes: Iterable[int]) -> Value:
    """One entry after the other along each axis."""
    for axis in sorted(axes, reverse=True):
        x = reduce(f, [x.map(lambda a, i=i, axis=axis: np.take(a, i, axis)) for i in range(x.shape[axis])])
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
        return guard(a, elementwise(node, [a, b]), times=False)
    return guard(a, b) if node.args[0] in env.cotangents else guard(b, a)


def _contract(node: Node, args: list[Value], env: Env, cotangent: bool | None = None) -> Value:
    """`cotangent`: whether the first argument is one, or the second; None: neither."""
    every = (*node.dims, *(d for d in dict.fromkeys((*node.args[0].dims, *node.args[1].dims)) if d not in node.dims))
    a, b = (align(x, n.dims, every) for x, n in zip(args, node.args, strict=True))
    if isinstance(a, Complex) or isinstance(b, Complex):
        a, b = as_complex(a), as_complex(b)
    y = a * b if cotangent is None else guard(a, b) if cotangent else guard(b, a)
    return over(add, widen(y, every, env.sizes), range(BATCH + len(node.dims), BATCH + len(every)))


def _softmax(node: Node, args: list[Value], env: Env) -> Value:
    x, axes = widen(args[0], node.dims, env.sizes), tuple(_axes(node))
    top = _fold(maximum)(node, args, env)
    e = (x - top.map(lambda a: np.expand_dims(a, axes))).exp()
    return e / over(add, e, axes).map(lambda a: np.expand_dims(a, axes))


def _norm(node: Node, args: list[Value], env: Env) -> Value:
    x = args[0]
    square = x.re * x.re + x.im * x.im if isinstance(x, Complex) else x * x
    return _fold(add)(node, [square], env).sqrt()


def _place(node: Node, args: list[Value], env: Env) -> Value:
    size, i = env.sizes[node.attr("dim")], node.attr("i")
    x = rearrange(args[0], lambda a: np.expand_dims(a, BATCH))
    hit = (np.arange(size) == i % size).reshape(1, 1, size, *[1] * (len(node.dims) - 1))
    zero = x.re if isinstance(x, Complex) else x
    return where(hit, x, like(zero, 0.0))


def _pick(node: Node, args: list[Value], env: Env) -> Value:
    dims = node.args[0].dims
    return rearrange(widen(args[0], dims, env.sizes),
                     lambda a: np.take(a, node.attr("i"), BATCH + dims.index(node.attr("dim"))))


def _number(node: Node, args: list[Value], env: Env) -> Value:
    value = node.attr("value")
    if isinstance(value, complex):
        return Complex(_scalar(value.real), _scalar(value.imag))
    return _scalar(value)


def _scalar(value: float) -> MP:
    return MP.of(np.full((1,) * BATCH, value))


_STRUCTURAL: dict[str, Callable[[Node, list[Value], Env], Value]] = {
    "number": _number,
    "size": lambda n, a, e: _scalar(float(e.sizes[n.attr("dim")])),
    "index": lambda n, a, e: MP.of(np.arange(e.sizes[n.dims[0]], dtype=np.float64).reshape(1, 1, -1)),
    "contract": _contract,
    "sum": _fold(add),
    "prod": _fold(mul),
    "max": _fold(maximum),
    "min": _fold(minimum),
    "norm": _norm,
    "softmax": _softmax,
    "rename": lambda n, a, e: a[0],
    "pick": _pick,
    "place": _place,
    "expand": lambda n, a, e: widen(align(a[0], n.args[0].dims, n.dims), n.dims, e.sizes),
}
