"""A call whose states run in parts, one program after another: each is a call of its own, under autograd.

What one hands to the next goes in the precision of the body, whatever the dtype of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mixc.ir.evaluate import heads
from mixc.ir.program import Program, once_a_program
from mixc.passes.classify import classify, parts_of
from mixc.passes.planes import out_kind
from mixc.runtime.call import Call

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

Tensor = torch.Tensor
Results = tuple[dict[str, Tensor], dict[str, Tensor]]
Run = Callable[[Call], Results]


@once_a_program
def is_parallel(part: Program) -> bool:
    """Over time; so is what carries nothing."""
    return all(g.form != "sequential" for g in classify(part).groups)


@once_a_program
def mixer_of(part: Program) -> Mixer:
    """A part as a mixer of its own: what is compiled and tuned for it is kept under its own hash."""
    from mixc.runtime.mixer import Mixer

    return Mixer(part)


def run(call: Call, parallel: Run, sequential: Run, parts: tuple[Program, ...] = ()) -> Results:
    """Outs and final states: of every part by the one or the other. `parts`: default: those that there must be."""
    parts = parts or parts_of(call.program)
    if len(parts) == 1:
        return (parallel if is_parallel(call.program) else sequential)(call)
    known, states = dict(call.ins), dict[str, Tensor]()
    for program in parts:
        outs, final = (parallel if is_parallel(program) else sequential)(_part(call, program, known))
        known |= outs
        states |= final
    return {d.name: known[d.name] for d in call.program.outs}, states


def _part(call: Call, program: Program, known: dict[str, Tensor]) -> Call:
    ins = {d.name: known[d.name] for d in program.ins}
    params = {d.name: call.params[d.name] for d in program.params}
    consts = {d.name: call.consts[d.name] for d in program.consts}
    if ins and all(x.shape[2] != call.H for x in ins.values()):
        first = next(iter(ins))
        ins[first] = heads(ins[first], call.H, 2)
    return replace(call, program=program, ins=ins, params=params, consts=consts,
                   states0={d.name: call.states0[d.name] for d in program.states if d.name in call.states0},
                   out_dtypes={d.name: call.out_dtypes.get(d.name, call.state_dtype(out_kind(program, d)))
                               for d in program.outs})
