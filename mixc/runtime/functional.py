"""Calls inside transforms of torch.func: grad, vjp, jacrev, vmap, and one inside another.

torch's custom operators have no rule for these transforms, an `autograd.Function` may: `_Call` runs the operator of a
mixer (see `library`), `_Pulled` the operator that pulls cotangents back, and each says what a batch of calls is.  A
batch of inputs and states is a longer first axis; what else is batched (params, consts, `cu_seqlens`) is a call each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from mixc.errors import InputError

if TYPE_CHECKING:
    from mixc.runtime.library import Operator

Tensor = torch.Tensor
Found = tuple[Tensor | None, ...]
Dims = Sequence[int | None]
TWICE = 'a mixer is differentiated twice only on backend="reference"'
HERE = TWICE + ", by torch.autograd and not inside torch.func"
FORWARD = ("forward derivatives (jvp, jacfwd) do not go through a mixer: vjp and jacrev do, and "
           'torch.autograd.forward_ad on backend="reference"')


def run(operator: Operator, flat: list[Any]) -> Found:
    """The operator's results for its arguments, under the transforms that are active."""
    return _Call.apply(operator, *flat)  # type: ignore[no-any-return]


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(operator: Operator, *flat: Any) -> Found:
        return tuple(operator.call(*flat))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operator = inputs[0]
        ctx.operator.keep(ctx, inputs[1:], output)
        ctx.mark_non_differentiable(*(x for x in output if not (x.is_floating_point() or x.is_complex())))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Found:
        saved = iter(ctx.saved_tensors)
        given = [next(saved) if t else x for t, x in zip(ctx.is_tensor, ctx.others, strict=True)]
        needs = tuple(t and bool(n) for t, n in zip(ctx.is_tensor, ctx.needs_input_grad[1:], strict=True))
        return (None, *_Pulled.apply(ctx.operator, needs, *given, *cotangents))

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise InputError(f"{ctx.operator.mixer.__name__}: {FORWARD}")

    @staticmethod
    def vmap(info: Any, in_dims: Dims, operator: Operator, *flat: Any) -> tuple[Found, Dims]:
        return _batch(lambda *one: _Call.apply(operator, *one), info.batch_size, in_dims[1:], flat,
                      _foldable(operator, flat))


class _Pulled(torch.autograd.Function):
    """Gradients of those arguments that need one, None for the others."""

    @staticmethod
    def forward(operator: Operator, needs: tuple[bool, ...], *given: Any) -> Found:
        flat, cotangents = given[:len(needs)], list(given[len(needs):])
        found = iter(operator.back(*flat, cotangents, list(needs)) if any(needs) else ())
        return tuple(next(found) if n else None for n in needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0].mixer.__name__

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise InputError(f"{ctx.name}: {HERE}")

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise InputError(f"{ctx.name}: {FORWARD}")

    @staticmethod
    def vmap(info: Any, in_dims: Dims, operator: Operator, needs: tuple[bool, ...], *given: Any) -> tuple[Found, Dims]:
        folds = _foldable(operator, given[:len(needs)])
        summed = any(n and not f for n, f in zip(needs, folds, strict=True))  # one gradient of each for all of a batch
        rest = len(given) - len(needs)
        return _batch(lambda *one: _Pulled.apply(operator, needs, *one), info.batch_size, in_dims[2:], given,
                      [not summed and f for f in folds] + [not summed] * rest)


def _foldable(operator: Operator, flat: Sequence[Any]) -> list[bool]:
    """Of every argument of a call: is its first axis that of sequences?"""
    slots, ragged = operator.slots, flat[operator.slots.ragged] is not None
    first = {*slots.rowwise, slots.ragged + 1} if not ragged else set()
    return [i in first for i in range(len(flat))]


def _batch(call: Callable[..., Found], n: int, dims: Dims, flat: Sequence[Any], folds: Sequence[bool]
           ) -> tuple[Found, Dims]:
    """What n calls give, along a new first axis: one call of all sequences where every batched argument folds."""
    if all(f or d is None for f, d in zip(folds, dims, strict=True)) and any(
            f and isinstance(x, Tensor) for f, x in zip(folds, flat, strict=True)):
        whole = [_folded(x, d, n) if f and isinstance(x, Tensor) else x
                 for x, d, f in zip(flat, dims, folds, strict=True)]
        found = [x if x is None else x.unflatten(0, (n, x.shape[0] // n)) for x in call(*whole)]
    else:
        each = [call(*(x if d is None else x.select(d, i) for x, d in zip(flat, dims, strict=True))) for i in range(n)]
        found = [None if xs[0] is None else torch.stack(xs) for xs in zip(*each, strict=True)]
    return tuple(found), tuple(None if x is None else 0 for x in found)


def _folded(x: Tensor, dim: int | None, n: int) -> Tensor:
    whole = x.expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
    return whole.flatten(0, 1)


# ---------------------------------------------------------------- other kinds of derivatives
def refuse(name: str, args: tuple[Any, ...], options: dict[str, Any], state: Any = None) -> None:
    """Raises where torch.jit traces, and for tensors with tangents but on the reference: a program writes into memory
    of its own and has an adjoint of its own, so that a tangent would be lost on the way."""
    if torch._C._get_tracing_state():
        raise InputError(f"{name}: torch.jit.trace does not go through a mixer; torch.export and torch.compile do")
    if forward_ad._current_level >= 0 and options.get("backend") != "reference" and _tangents((args, options, state)):
        raise InputError(f"{name}: forward derivatives (torch.autograd.forward_ad) go through "
                         "backend=\"reference\" alone")


def _tangents(given: Any) -> bool:
    from torch.utils._pytree import tree_leaves

    tensors = (x for x in tree_leaves(given) if isinstance(x, torch.Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)
