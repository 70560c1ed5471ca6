"""A call of one token: its straight-line program, under torch's autograd.

A chunk program makes as many calls of torch for one token as for a thousand, several times as many as the token itself
needs, and a token loop forms before and behind it what a single token forms in passing.  (Of two tokens and more the
guards of gradients cost as much; and what runs must not depend on whether there are any: the bits would.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mixc.codegen.step_program import step_function
from mixc.ir.program import Program, once_a_program
from mixc.runtime.call import Call, counts_tokens, histories
from mixc.runtime.once import differentiable_once
from mixc.runtime.recorded import exact, start

Tensor = torch.Tensor
Step = Callable[..., tuple[Tensor, ...]]
Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def run(call: Call) -> Results | None:
    """Outs [B, 1, H, ...] and states [N, H, ...] by name; None: there are other tokens, or it looks back at some."""
    if not call.rows.dense or call.rows.T != 1 or not call.rows.B:
        return None
    given = (call.ins, call.params, call.states0)
    grad = torch.is_grad_enabled() and any(x.requires_grad for of in given for x in of.values())
    if ("token", grad) not in call.memo:
        call.memo["token", grad] = _step(call, grad)
    step: Step | None = call.memo["token", grad]
    return None if step is None else _results(differentiable_once(call), step)


def _step(call: Call, grad: bool) -> Step | None:
    p = call.program
    if histories(p, call.sizes) or counts_tokens(p):
        return None
    given = [(x.dtype, x.shape[2 if i else 0]) for i, of in enumerate((call.params, call.ins)) for x in of.values()]
    states = [(n, x.dtype) for n, x in call.states0.items()]
    key = (grad, call.H, call.dtype, call.device, *call.sizes.items(), *call.consts.items(), *given, *states)
    known = _steps(p)
    if key not in known:
        known[key] = step_function(replace(call, states0=_starts(call)), grad)
    return known[key]


@once_a_program
def _steps(program: Program) -> dict[tuple[Any, ...], Step]:
    return {}


def _starts(call: Call) -> dict[str, Tensor]:
    return {d.name: start(call, d, call.state_dtype(d.kind)) for d in call.program.states}


def _results(call: Call, step: Step) -> Results:
    p = call.program
    with exact(call.device):
        found = step(*(x[:, 0] for x in call.ins.values()), *call.params.values(), *_starts(call).values())
    outs = {d.name: x.unsqueeze(1).to(call.out_dtypes[d.name]) for d, x in zip(p.outs, found, strict=False)}
    return outs, dict(zip((d.name for d in p.states), found[len(p.outs):], strict=True))
