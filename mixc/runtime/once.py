"""Gradients that cannot be differentiated again, and say so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

Tensor = torch.Tensor


class _Once(torch.autograd.Function):
    """x; its gradient cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return _Refuse.apply(g, *ctx.saved_tensors) if torch.is_grad_enabled() else g  # type: ignore[no-any-return]


class _Refuse(torch.autograd.Function):
    """g, as far as autograd knows a function of all x, whose derivative is asked for in vain."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, *x: Tensor) -> Tensor:
        return g.view_as(g)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        raise RuntimeError('a mixer is differentiated twice only on backend="reference"')


def once(x: Tensor) -> Tensor:
    """x, for backends whose gradients are not themselves differentiable."""
    return _Once.apply(x) if x.requires_grad else x  # type: ignore[no-any-return]


def refuse_again(grads: Iterable[Tensor | None], inputs: Iterable[Tensor]) -> list[Tensor | None]:
    """Gradients of a backward that is run with create_graph: to autograd they depend on all inputs."""
    inputs = list(inputs)
    return [None if g is None else _Refuse.apply(g, *inputs) for g in grads]
