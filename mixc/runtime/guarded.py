"""Ops whose gradient keeps a cotangent of exactly 0 at 0, through every derivative, finite or not.

    z = where(x > 0, log(x), 0)        dx = 0 at x = 0, and not 0 * inf

PyTorch multiplies the cotangent with the derivative, which may be infinite (log at 0) or has an
infinite factor (a product with -inf).  Here that product is `guard`, which is its own derivative's
product as well, so that derivatives of any order keep the rule.  Values are PyTorch's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from mixc.ir.evaluate import Env, Rule, align, compute, elementwise
from mixc.ir.node import Node

Tensor = torch.Tensor


def _recorded(*xs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in xs)


def _together(*xs: Tensor) -> list[Tensor]:
    """xs in one dtype and one shape, so that a cotangent is summed only after it was guarded."""
    kind = xs[0].dtype
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
    return _zero_where(g == 0, g * d.conj())


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
Derivative = Callable[..., Tensor]  # of (x..., y), y being the value


class _Op(torch.autograd.Function):
    """y = fn(*xs), its gradients guarded products with the derivatives of a row below."""

    @staticmethod
    def forward(ctx: Any, rows: tuple[Derivative, ...], fn: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        y = fn(*xs)
        ctx.rows = rows
        ctx.save_for_backward(*xs, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        values = ctx.saved_tensors
        return None, None, *[guard(g, row(*values)) if need else None
                             for row, need in zip(ctx.rows, ctx.needs_input_grad[2:], strict=True)]


def _apply(op: str, fn: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    if not _recorded(*xs):
        return fn(*xs)
    return _Op.apply(DERIVATIVES[op], fn, *_together(*xs))  # type: ignore[no-any-return]


mul, power = (functools.partial(_apply, op, fn) for op, fn in (("mul", torch.mul), ("pow", torch.pow)))
log, exp, sigmoid = (functools.partial(_apply, fn.__name__, fn) for fn in (torch.log, torch.exp, torch.sigmoid))


def div(a: Tensor | float, b: Tensor) -> Tensor:
    a = a if isinstance(a, Tensor) else torch.full((), a, dtype=b.dtype, device=b.device)
    return _apply("div", torch.div, a, b)


def _gelu(x: Tensor, y: Tensor) -> Tensor:
    below = 0.5 * (1 + _apply("erf", torch.erf, x * math.sqrt(0.5)))
    return below + mul(x, exp(-0.5 * mul(x, x))) / math.sqrt(2 * math.pi)


def _silu(x: Tensor, y: Tensor) -> Tensor:
    s = sigmoid(x)
    return mul(s, 1 + mul(x, 1 - s))


def _softplus(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > 20, torch.ones_like(x), sigmoid(x))  # as PyTorch: the identity above 20


def _elu(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), exp(x))


def _share(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """d logaddexp(a, b) / da: 0 to an operand at -inf, also when both are."""
    gone = a == -math.inf
    return _zero_where(gone, sigmoid(_zero_where(gone, a - b)))


# The derivative by each argument.  Ops without a row select or add: PyTorch's own gradients keep 0 at 0.
DERIVATIVES: dict[str, tuple[Derivative, ...]] = {
    "mul": (lambda a, b, y: b, lambda a, b, y: a),
    "div": (lambda a, b, y: div(1.0, b), lambda a, b, y: -div(y, b)),
    "pow": (lambda a, b, y: _zero_where(b == 0, mul(b, power(a, b - 1))),
            lambda a, b, y: _zero_where(a == 0, mul(y, log(a)))),
    "exp": (lambda x, y: y,),
    "expm1": (lambda x, y: y + 1,),
    "log": (lambda x, y: div(1.0, x),),
    "log1p": (lambda x, y: div(1.0, 1 + x),),
    "sqrt": (lambda x, y: div(0.5, y),),
    "rsqrt": (lambda x, y: -0.5 * mul(mul(y, y), y),),
    "square": (lambda x, y: 2 * x,),
    "sin": (lambda x, y: _apply("cos", torch.cos, x),),
    "cos": (lambda x, y: -_apply("sin", torch.sin, x),),
    "tanh": (lambda x, y: 1 - mul(y, y),),
    "sigmoid": (lambda x, y: mul(y, 1 - y),),
    "logsigmoid": (lambda x, y: sigmoid(-x),),
    "softplus": (_softplus,),
    "elu": (_elu,),
    "erf": (lambda x, y: exp(-mul(x, x)) * (2 / math.sqrt(math.pi)),),
    "silu": (_silu,),
    "gelu": (_gelu,),
    "logaddexp": (_share, lambda a, b, y: _share(b, a, y)),
}


def _elementwise(node: Node, args: list[Tensor], env: Env) -> Tensor:
    wide = [align(a, n.dims, node.dims, env.batch) for a, n in zip(args, node.args, strict=True)]
    return _apply(node.op, lambda *xs: elementwise(node, list(xs), env.dtype), *wide)


def _ipow(node: Node, args: list[Tensor], env: Env) -> Tensor:
    return _integer_power(args[0], node.attr("n"))


def _integer_power(x: Tensor, n: int) -> Tensor:
    if n == 0 or not _recorded(x):
        return torch.pow(x, n)
    rows = (lambda x, y: n * _integer_power(x, n - 1),)
    return _Op.apply(rows, lambda x: torch.pow(x, n), x)  # type: ignore[no-any-return]


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
    varies = [tuple(size != 1 for size in sizes[:n]) for sizes in (a.shape, b.shape, batch)]
    if not all(varies[0]):
        a = a.squeeze([i for i in range(n) if not varies[0][i]])
    if not all(varies[1]):
        b = b.squeeze([i for i in range(n) if not varies[1][i]])
    y = torch.einsum(_equation(a_dims, b_dims, out, *varies), a, b)
    return y if all(varies[2]) else y.reshape(*batch, *y.shape[sum(varies[2]):])


@functools.lru_cache(maxsize=4096)
def _equation(a_dims: Dims, b_dims: Dims, out: Dims, *varies: tuple[bool, ...]) -> str:
    """The einsum of a contraction; a batch axis of size 1 has no letter, so that it is summed or repeated."""
    letters = {d: chr(ord("A") + i) for i, d in enumerate(dict.fromkeys((*a_dims, *b_dims)))}
    left, right, result = ("".join(chr(ord("a") + i) for i, yes in enumerate(v) if yes)
                           + "".join(letters[d] for d in dims) for v, dims in zip(varies, (a_dims, b_dims, out),
                                                                                 strict=True))
    return f"{left},{right}->{result}"


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
        with torch.autocast(g.device.type, enabled=False):
            da = _cotangent(g, out, b, b_dims, a, a_dims, guarded) if need[0] else None
            db = _cotangent(g, out, a, a_dims, b, b_dims, guarded) if need[2] else None
        return da, None, db, None, None, None, None


def _cotangent(g: Tensor, g_dims: Dims, d: Tensor, d_dims: Dims, like: Tensor, dims: Dims, guarded: bool) -> Tensor:
    """The cotangent of `like`: guarded products, summed over what `like` lacks."""
    n = g.ndim - len(g_dims)
    if not guarded or bool(torch.isfinite(d).all()):
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
    return _zero_where(zero, div(x, torch.where(zero, torch.ones_like(y), y)))


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
    e = exp(args[0] - args[0].amax(axes, keepdim=True).detach())
    return div(e, e.sum(axes, keepdim=True))


def _abs(node: Node, args: list[Tensor], env: Env) -> Tensor:
    if args[0].is_complex():
        return torch.abs(args[0])
    return _apply("abs", torch.abs, args[0])


DERIVATIVES["abs"] = (lambda x, y: torch.sgn(x),)

RULES: dict[str, Rule] = {
    **dict.fromkeys(DERIVATIVES, _elementwise),
    "abs": _abs,
    "ipow": _ipow,
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
