"""A run of a whole call under one autograd function: what its backward needs lies where hooks see it.

A run has `call`, `finite` (no input is infinite), `handed` (outs that its backward reads), and two functions:
`forward(tensors)` gives outs, final states and what is kept, `backward(tensors, kept, cotangents, needs)` gradients;
the tensors are ins, params and initial states [N, H, dims...], in the program's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mixc.ir.evaluate import Env, align, evaluate, heads
from mixc.ir.node import Node
from mixc.ir.program import Decl, Program, once_a_program
from mixc.runtime.call import Call
from mixc.runtime.once import refuse_again

Tensor = torch.Tensor
_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def recorded(call: Call, make: Callable[[bool], Any], bare: bool = False
             ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outs [B, T, H, ...] and final states [N, H, ...] by name.  `make`: of the run, told if a backward may follow.
    `bare`: the run takes None for initial states of 0, and gives final states only where the call wants them."""
    program = call.program
    starts = [None if bare and d.init is None and d.name not in call.states0 else start(call, d, call.dtype)
              for d in program.states]
    tensors = [*call.ins.values(), *call.params.values(), *starts]
    needs = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    with exact(call.device):
        if needs:
            found = _Recorded.apply(make(True), *tensors)
        else:  # nothing is kept
            whole, finals, _ = make(False).forward(tensors)
            found = (*whole, *finals)
    outs = [d.name for d in program.outs]
    states = [d.name for d in program.states] if call.want_state or not bare else []
    return dict(zip(outs, found, strict=False)), dict(zip(states, found[len(outs):], strict=True))


def exact(device: torch.device) -> AbstractContextManager[object]:
    """No autocast: products in the dtype of their operands."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Any, *tensors: Any) -> tuple[Tensor, ...]:
        outs, finals, kept = run.forward(list(tensors))
        run.call = run.call.bare()  # what the graph holds, hooks see
        ctx.run = run
        named = {d.name: o for d, o in zip(run.call.program.outs, outs, strict=True)}
        ctx.save_for_backward(*tensors, *kept, *(named[n] for n in run.handed))
        return (*outs, *finals)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        run, needs, saved = ctx.run, ctx.needs_input_grad[1:], list(ctx.saved_tensors)
        tensors = saved[:len(needs)]
        with exact(run.call.device), torch.no_grad():
            grads = run.backward(tensors, saved[len(needs):], list(cotangents), needs)
        return (None, *(refuse_again(grads, tensors) if torch.is_grad_enabled() else grads))


def start(call: Call, d: Decl, dtype: torch.dtype) -> Tensor:
    """The initial state [N, H, dims...] in the order of the call, as autograd sees it."""
    shape = (call.rows.N, call.H, *(call.sizes[n] for n in d.dims))
    if d.name in call.states0:
        return call.states0[d.name].to(dtype).expand(shape)
    if d.init is None:
        return torch.zeros(shape, dtype=dtype, device=call.device)

    def leaf(node: Node) -> Tensor:
        if node.op == "const":
            return torch.full((1, 1), call.consts[node.attr("name")], dtype=dtype, device=call.device)
        return heads(call.params[node.attr("name")].to(dtype), call.H, 0).unsqueeze(0)

    env = Env(leaf, call.sizes, dtype=dtype, device=call.device)
    (x,) = evaluate([d.init], env)
    return align(x, d.init.dims, d.dims, 2).expand(shape)


def gradients(run: Any, tensors: list[Tensor], needs: tuple[bool, ...], grads: dict[str, Tensor],
              sums: dict[str, Tensor], states: Sequence[Tensor | None]) -> list[Tensor | None]:
    """What a backward returns.

    Args:
        grads: of ins, as the call's tensors. sums: of params, [H, dims...], what is not there being 0.
        states: of initial states, in the order of the call."""
    call, found = run.call, list[Tensor | None]()
    for d, x, need in zip((*call.program.ins, *call.program.params), tensors, needs, strict=False):
        if not need:
            found.append(None)
            continue
        grad = grads.get(d.name)
        if grad is None:
            whole = (call.H, *x.shape[1:])
            none = torch.zeros(whole, dtype=call.dtype, device=x.device)
            grad = sums.get(d.name, none).expand(whole).unflatten(0, (x.shape[0], -1)).sum(1).to(x.dtype)
        found.append(torch.where(x.isinf(), 0.0, grad) if not run.finite and d.open_ended else grad)
    return [*found, *(g if need else None for g, need in zip(states, needs[len(found):], strict=True))]


def all_finite(call: Call) -> bool:
    """Is no input infinite?"""
    ins, params = open_ended(call.program)
    return finite([call.ins[n] for n in ins] + [call.params[n] for n in params])


def finite(xs: Iterable[Tensor]) -> bool:
    """(May say no where they are: a sum may overflow.)"""
    return all(math.isfinite((x.detach() if x.requires_grad else x).sum(dtype=_WIDE.get(x.dtype)).item()) for x in xs)


@once_a_program
def open_ended(program: Program) -> tuple[list[str], list[str]]:
    """The ins and params that may be infinite."""
    return [d.name for d in program.ins if d.open_ended], [d.name for d in program.params if d.open_ended]
