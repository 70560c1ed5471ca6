"""A call with complex values, run by a program of real ones: every complex tensor goes as its two planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from mixc.ir.program import Decl, once_a_program
from mixc.passes.planes import out_kind, part_names, planes
from mixc.runtime.call import Call

Tensor = torch.Tensor
Results = tuple[dict[str, Tensor], dict[str, Tensor]]
real_program = once_a_program(planes)


def run(call: Call, backend: Callable[[Call], Results]) -> Results:
    """Outs and final states as of a backend, which sees real tensors only."""
    step, real = call.program, real_program(call.program)
    assert real is not None

    def split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, x in tensors.items():
            if step.decl(name).kind == "complex":
                z = x if x.is_complex() else torch.complex(x.to(call.dtype), torch.zeros_like(x, dtype=call.dtype))
                found |= dict(zip(part_names(step, name), (z.real, z.imag), strict=True))
            else:
                found[name] = x
        return found

    def joined(tensors: dict[str, Tensor], decls: tuple[Decl, ...], kind: Callable[[Decl], str]) -> dict[str, Tensor]:
        return {d.name: torch.complex(*(tensors[p].to(call.dtype) for p in part_names(step, d.name)))
                if kind(d) == "complex" else tensors[d.name] for d in decls}

    dtypes = {p: call.dtype for d in step.outs if out_kind(step, d) == "complex" for p in part_names(step, d.name)}
    dtypes |= {n: t for n, t in call.out_dtypes.items() if out_kind(step, step.decl(n)) != "complex"}
    outs, states = backend(replace(call, program=real, ins=split(call.ins), params=split(call.params),
                                   states0=split(call.states0), out_dtypes=dtypes))
    finals = step.states if states else ()  # given where they are asked for
    return joined(outs, step.outs, lambda d: out_kind(step, d)), joined(states, finals, lambda d: d.kind)
