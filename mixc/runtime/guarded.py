"""Ops whose gradient keeps a cotangent of exactly 0 at 0, through every derivative, finite or not.

    z = where(x > 0, log(x), 0)        dx = 0 at x = 0, and not 0 * inf

PyTorch multiplies the cotangent with the derivative, which may be infinite (log at 0) or has an
infinite factor (a product with -inf).  Here that product is `guard`, which is its own derivative's
product as well, so that derivatives of any order keep the rule.  Values are PyTorch's.
"""

from __future__ import annotations

import cmath
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch

from mixc.ir.build import number, where
from mixc.ir.derivatives import RULES as RULES_OF_IR
from mixc.ir.derivatives import protected
from mixc.ir.evaluate import Env, Rule, align, compute, elementwise, evaluate
from mixc.ir.node import Node, make, substitute

Tensor = torch.Tensor


def _recorded(*xs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in xs)


def _sums(x: Tensor) -> bool:
    """Is the sum finite?  Then every number is; and it is formed in a fraction of the time that a mask takes."""
    return cmath.isfinite(x.sum().item())


def _together(*xs: Tensor) -> Sequence[Tensor]:
    """xs in one dtype and one shape, so that a cotangent is summed only after it was guarded."""
    kind, shape = xs[0].dtype, xs[0].shape
    if all(x.dtype == kind and x.shape == shape for x in xs):
        return xs
    for x in xs[1:]:
        kind = torch.promote_types(kind, x.dtype)
    return list(torch.broadcast_tensors(*[x.to(kind) for x in xs]))


def _zero_where(cond: Tensor, x: Tensor) -> Tensor:
    return torch.where(cond, torch.zeros((), dtype=x.dtype, device=x.device), x)


# ---------------------------------------------------------------- cotangent times derivative
def guard(g: Tensor, d: Tensor) -> Tensor:
    """g * conj(d), and 0 where g is 0."""
    g, d = _together(g, d)
    return _Guard.apply(g, d) if _recorded(g, d) else _guarded(g, d)  # type: ignore[no-any-return]


def _guarded(g: Tensor, d: Tensor) -> Tensor:
    made = g * d.conj()
    return made if made.device.type == "cpu" and _sums(made) else _zero_where(g == 0, made)


class _Guard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(g, d)
        return _guarded(g, d)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        g, d = ctx.saved_tensors
        dg = dd = None
        if ctx.needs_input_grad[0]:  # where 0 stood against an infinite derivative, that one is out of play
            dg = _zero_where((g == 0) & ~torch.isfinite(d), guard(c, d.conj()))
        if ctx.needs_input_grad[1]:
            dd = guard(c.conj(), g.conj())
        return dg, dd


# ---------------------------------------------------------------- elementwise ops
# Others select or add: PyTorch's own gradients keep 0 at 0.
_OPS = ("mul", "div", "pow", "ipow", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square", "abs", "sin", "cos",
        "tanh", "sigmoid", "logsigmoid", "softplus", "elu", "erf", "silu", "gelu", "logaddexp")
Derivative = Callable[..., Tensor]  # of (x..., y), y being the value


class _Op(torch.autograd.Function):
    """y = fn(*xs), its gradients guarded products with the derivatives of `rows`."""

    @staticmethod
    def forward(ctx: Any, rows: Sequence[Derivative], fn: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        y = fn(*xs)
        ctx.rows = rows
        ctx.save_for_backward(*xs, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        values = ctx.saved_tensors
        return None, None, *[guard(g, row(*values)) if need else None
                             for row, need in zip(ctx.rows, ctx.needs_input_grad[2:], strict=True)]


def _elementwise(node: Node, args: list[Tensor], env: Env) -> Tensor:
    wide = [align(a, n.dims, node.dims, env.batch) for a, n in zip(args, node.args, strict=True)]
    return apply(node.op, env.dtype, *wide, attrs=node.attrs)


def apply(op: str, dtype: torch.dtype, *xs: Tensor, attrs: tuple[tuple[str, Any], ...] = ()) -> Tensor:
    """The value of an op of `_OPS`; `dtype`: the real one of the run."""
    recorded = _recorded(*xs)
    xs = tuple(_together(*xs)) if recorded else xs
    value, rows = _differentiated(op, attrs, tuple([x.is_complex() for x in xs]), dtype)
    return _Op.apply(rows, value, *xs) if recorded and rows else value(*xs)


def _shares(n: Node, c: Node) -> tuple[Node, ...]:
    """Of logaddexp, by the difference of its operands: a half, where they are equal, to the last bit.  (By its value,
    which kernels have at hand, it is near that.)"""
    def share(x: Node, other: Node) -> Node:
        return c * where(make("eq", x, number(-math.inf)), 0.0, make("sigmoid", x - other))
    return share(*n.args), share(*n.args[::-1])


@cache
def _differentiated(op: str, attrs: tuple[tuple[str, Any], ...], kinds: tuple[bool, ...], dtype: torch.dtype
                    ) -> tuple[Callable[..., Tensor], list[Derivative]]:
    """An op, and its derivative by each of its arguments (none of a modulus). `kinds`: are these complex?"""
    xs = [make("saved", name=f"x{i}", dims=(), kind=("real", "complex")[kind]) for i, kind in enumerate(kinds)]
    node = make(op, *xs, **dict(attrs))
    c, y = (make("saved", name=name, dims=(), kind=node.kind) for name in "cy")
    rule = _shares if op == "logaddexp" else RULES_OF_IR[op]
    rows = [protected(row, c) for row in rule(node, c) if row is not None]
    rows = rows if any(x.kind == node.kind for x in xs) else []
    assert all(row.op == "guard" and row.args[0] is c for row in rows), op

    def value(*values: Tensor) -> Tensor:
        return elementwise(node, list(values), dtype)

    def derivative(conjugate: Node, *values: Tensor) -> Tensor:
        known = dict(zip([*xs, y], values, strict=True))
        env = Env(known.__getitem__, {}, dtype=dtype, batch=values[0].ndim, device=values[0].device, rules=RULES)
        return evaluate([conjugate], env, known)[0].conj()
    return value, [partial(derivative, d) for d in substitute([row.args[1] for row in rows], {node: y})]


# ---------------------------------------------------------------- contraction
Dims = tuple[str, ...]


def contract(a: Tensor, a_dims: Dims, b: Tensor, b_dims: Dims, out: Dims, batch: tuple[int, ...],
             guarded: bool = True) -> Tensor:
    """The product of a and b, summed over the dims not in `out`.

    Args:
        a, b: leading batch axes (of size 1 where the value does not vary), then their dims.
        batch: the batch axes of the result; an axis of size 1 that an operand varies along is summed.
        guarded: False promises that both are finite.
    """
    if a.dtype != b.dtype:
        kind = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(kind), b.to(kind)
    args = (a, a_dims, b, b_dims, out, batch)
    return _Contract.apply(*args, guarded) if _recorded(a, b) else _einsum(*args)  # type: ignore[no-any-return]


def _einsum(a: Tensor, a_dims: Dims, b: Tensor, b_dims: Dims, out: Dims, batch: tuple[int, ...]) -> Tensor:
    n = len(batch)
    equation, in_a, in_b, whole = _equation(a_dims, b_dims, out, a.shape[:n], b.shape[:n], batch)
    y = torch.einsum(equation, a.squeeze(in_a) if in_a else a, b.squeeze(in_b) if in_b else b)
    return y if whole else y.reshape(*batch, *y.shape[y.ndim - len(out):])


@functools.lru_cache(maxsize=4096)
def _equation(a_dims: Dims, b_dims: Dims, out: Dims, *batches: tuple[int, ...]
              ) -> tuple[str, list[int], list[int], bool]:
    """The einsum of a contraction, the batch axes of size 1 of its operands, and whether the result has none.

    Such an axis has no letter, so that it is summed or repeated."""
    letters = {d: chr(ord("A") + i) for i, d in enumerate(dict.fromkeys((*a_dims, *b_dims)))}
    left, right, result = ("".join(chr(ord("a") + i) for i, size in enumerate(sizes) if size != 1)
                           + "".join(letters[d] for d in dims)
                           for sizes, dims in zip(batches, (a_dims, b_dims, out), strict=True))
    ones = [[i for i, size in enumerate(sizes) if size == 1] for sizes in batches]
    return f"{left},{right}->{result}", ones[0], ones[1], not ones[2]


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, a_dims: Dims, b: Tensor, b_dims: Dims, out: Dims,
                batch: tuple[int, ...], guarded: bool) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.dims, ctx.guarded = (a_dims, b_dims, out), guarded
        return _einsum(a, a_dims, b, b_dims, out, batch)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (a, b), (a_dims, b_dims, out) = ctx.saved_tensors, ctx.dims
        need, guarded = ctx.needs_input_grad, ctx.guarded
        cast = torch.is_autocast_enabled(g.device.type)
        with torch.autocast(g.device.type, enabled=False) if cast else nullcontext():
            da = _cotangent(g, out, b, b_dims, a, a_dims, guarded) if need[0] else None
            db = _cotangent(g, out, a, a_dims, b, b_dims, guarded) if need[2] else None
        return da, None, db, None, None, None, None


def _cotangent(g: Tensor, g_dims: Dims, d: Tensor, d_dims: Dims, like: Tensor, dims: Dims, guarded: bool) -> Tensor:
    """The cotangent of `like`: guarded products, summed over what `like` lacks."""
    n = g.ndim - len(g_dims)
    if not guarded or _sums(d) or bool(torch.isfinite(d).all()):
        d = d.conj().resolve_conj() if d.is_complex() else d
        return contract(g, g_dims, d, d_dims, dims, tuple(like.shape[:n]), guarded)
    every = tuple(dict.fromkeys((*dims, *g_dims, *d_dims)))
    x = guard(align(g, g_dims, every, n), align(d, d_dims, every, n))
    over = [i for i in range(n) if like.shape[i] == 1]
    x = x.sum(over, keepdim=True) if over else x
    rest = [n + i for i, name in enumerate(every) if name not in dims]
    return x.sum(rest) if rest else x


def _contraction(node: Node, args: list[Tensor], env: Env, guarded: bool = True) -> Tensor:
    a, b = args
    n = env.batch
    batch = tuple(y if x == 1 else x for x, y in zip(a.shape[:n], b.shape[:n], strict=True))
    return contract(a, node.args[0].dims, b, node.args[1].dims, node.dims, batch, guarded)


# ---------------------------------------------------------------- over dims
def _norm(x: Tensor, y: Tensor) -> Tensor:
    zero = y == 0
    return _zero_where(zero, apply("div", y.dtype, x, torch.where(zero, torch.ones_like(y), y)))


def _over(fn: Callable[..., Tensor], derivative: Callable[[list[int]], Derivative]) -> Rule:
    def rule(node: Node, args: list[Tensor], env: Env) -> Tensor:
        over, dims, b = node.attr("over"), node.args[0].dims, env.batch
        axes = [b + dims.index(d) for d in over]
        row = derivative(axes)
        rows = (lambda x, y: row(x, y).conj(),)
        y = _Op.apply(rows, lambda x: fn(x, dim=axes, keepdim=True), args[0])  # the reduced axes are kept, of size 1
        return y.reshape(*y.shape[:b], *[s for s, d in zip(y.shape[b:], dims, strict=True) if d not in over])
    return rule


def _winners(axes: list[int]) -> Derivative:
    """A tie is split evenly."""
    def share(x: Tensor, y: Tensor) -> Tensor:
        hit = (x == y).to(x.dtype)
        return hit / hit.sum(axes, keepdim=True).clamp(min=1)
    return share


def _softmax(node: Node, args: list[Tensor], env: Env) -> Tensor:
    axes = [env.batch + node.args[0].dims.index(d) for d in node.attr("over")]
    e = apply("exp", env.dtype, args[0] - args[0].amax(axes, keepdim=True).detach())
    return apply("div", env.dtype, e, e.sum(axes, keepdim=True))


RULES: dict[str, Rule] = {
    **dict.fromkeys(_OPS, _elementwise),
    "guard": lambda node, args, env: guard(args[0], args[1].conj()),
    "contract": _contraction,
    "norm": _over(torch.linalg.vector_norm, lambda axes: _norm),
    "max": _over(torch.amax, _winners),
    "min": _over(torch.amin, _winners),
    "softmax": _softmax,
}


def rules_for(guarded: frozenset[Node]) -> dict[str, Rule]:
    """RULES for the nodes in `guarded`, PyTorch's own gradients for the others (under any autocast)."""
    def pick(op: str, rule: Rule) -> Rule:
        def run(node: Node, args: list[Tensor], env: Env) -> Tensor:
            if node in guarded:
                return rule(node, args, env)
            return _contraction(node, args, env, False) if op == "contract" else compute(node, args, env, plain=True)
        return run
    return {op: pick(op, rule) for op, rule in RULES.items()}
