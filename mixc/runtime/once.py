"""Gradients that cannot be differentiated again, and say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from mixc.runtime.call import Call
from mixc.runtime.functional import TWICE

Tensor = torch.Tensor


class _Once(torch.autograd.Function):
    """The same values; their gradients cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*xs)
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(refuse_again(gs, ctx.saved_tensors)) if torch.is_grad_enabled() else gs


class _Refuse(torch.autograd.Function):
    """g, as far as autograd knows a function of all tensors, whose derivative is asked for in vain."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *tensors: Tensor) -> Tensor:
        return g.view_as(g)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError(TWICE)


def all_once(*lists: list[Tensor]) -> list[list[Tensor]]:
    """The same tensors, for backends whose gradients are not themselves differentiable: one node for all."""
    wanted = [x for xs in lists for x in xs if x.requires_grad]
    if not wanted:
        return list(lists)
    found = iter(_Once.apply(*wanted))
    return [[next(found) if x.requires_grad else x for x in xs] for xs in lists]


def refuse_again(grads: Iterable[Tensor | None], inputs: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Gradients of a backward that is run with create_graph: to autograd they depend on all inputs."""
    inputs = list(inputs)
    return [None if g is None else _Refuse.apply(g, *inputs) for g in grads]


def differentiable_once(call: Call) -> Call:
    """The call with inputs whose gradients are not themselves differentiable."""
    if not torch.is_grad_enabled():
        return call
    parts = (call.ins, call.params, call.states0, call.lags0)
    if not any(x.requires_grad for xs in parts for x in xs.values()):
        return call
    wrapped = all_once(*(list(xs.values()) for xs in parts))
    ins, params, states, lags = (dict(zip(xs, new, strict=True)) for xs, new in zip(parts, wrapped, strict=True))
    return replace(call, ins=ins, params=params, states0=states, lags0=lags)
