"""A call whose step reads earlier inputs or positions, run by a program that has them as inputs.

They are formed by the lines that stand in the emitted module too (`codegen/host_values.py`).  All under autograd: a
backend's gradients to such an input flow on by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from mixc.codegen.host_values import PastValues
from mixc.codegen.lines import defined
from mixc.codegen.past import Guarded, Past
from mixc.ir.program import Program, once_a_program
from mixc.passes.context import Context, context, has_context, windows_of
from mixc.runtime.call import Call, counts_tokens

Tensor = torch.Tensor
Results = tuple[dict[str, Tensor], dict[str, Tensor]]
Form = Callable[..., list[Tensor]]


def context_of(step: Program, sizes: dict[str, int]) -> tuple[Context, Form] | None:
    """`context(step)`, and what forms its inputs; None where the step needs none."""
    windows = windows_of(step)
    return _context(step, tuple((d, s) for d, s in sizes.items() if d in windows))


@once_a_program
def _context(step: Program, sizes: tuple[tuple[str, int], ...]) -> tuple[Context, Form] | None:
    if not has_context(step):
        return None
    found = context(step, dict(sizes))
    return found, _form(found, frozenset())


@cache
def _form(found: Context, alone: frozenset[str]) -> Form:
    given = {"torch": torch, "Guarded": Guarded}
    return defined(_text(found, alone), f"what {found.step.name} looks back at", given)["form"]


def _text(found: Context, alone: frozenset[str]) -> str:
    """form(past, *ins, *params, *consts, *sizes): what `found.given` holds, in order; None: what kernels read alone."""
    def called(name: str) -> str:
        return name + "_"  # unlike all other names there
    step = found.step
    names = [*(d.name for d in (*step.ins, *step.params, *step.consts)), *(d.name for d in step.dims)]
    return "\n    ".join([f"def form(past, {', '.join(map(called, names))}):", "initial = past.initial",
                          *PastValues(found, called, set(map(called, alone))).lines,
                          f"return [{', '.join(map(called, found.given))}]"]) + "\n"


def run(call: Call, backend: Callable[[Call], Results],
        alone: Callable[[Call], frozenset[str]] | None = None) -> Results:
    """Outs and final states, histories and `pos`, as of a backend that knows none of them.

    Args:
        alone: which inputs some tokens ago it reads off the inputs themselves (None: none). It is given None in their
            place, where nothing was before the first token."""
    made = context_of(call.program, call.sizes)
    if made is None:
        return backend(call)
    (found, form), step, rows = made, call.program, call.rows
    if alone is not None and not call.lags0.keys() >= {ago[0] for d in found.program.ins if (ago := d.ago)}:
        form = _form(found, alone(replace(call, program=found.program, lags0={}, pos0=None)))
    with torch.autocast(call.device.type, enabled=False):
        initial = call.lags0 | ({} if call.pos0 is None else {"pos": call.pos0})
        past = Past(rows.B, rows.T, call.H, rows.starts, rows.lens, False, initial, call.dtype, call.device)
        tensors = [*(rows.gather(call.ins[d.name]) for d in step.ins), *(call.params[d.name] for d in step.params)]
        numbers = [*(call.consts[d.name] for d in step.consts), *(call.sizes[d.name] for d in step.dims)]
        formed = form(past, *tensors, *numbers)
        kept = past.kept() | ({"pos": past.counted()} if counts_tokens(step) else {}) if call.want_state else {}
    given = [x if x is None or rows.plain else rows.scatter(x) for x in formed]
    ins = call.ins | dict(zip(found.given, given, strict=True))
    outs, states = backend(replace(call, program=found.program, ins={d.name: ins[d.name] for d in found.program.ins},
                                   lags0={}, pos0=None))
    return outs, states | kept
