"""The Triton backend: the emitted module of a mixer, built once and called for every length.

The module is written to a file and imported (Triton reads a kernel's source from its file); what it is
given are the call's tensors in canonical form.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from mixc.errors import InputError
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, ROW, postorder
from mixc.ir.program import Group, Program
from mixc.ir.run import heads
from mixc.passes.planes import is_complex
from mixc.runtime.call import Call

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

_modules: WeakKeyDictionary[Any, dict[Program, ModuleType]] = WeakKeyDictionary()


def has_kernels(stages: Program) -> bool:
    """Of every group of states: those in chunk form, and scans of numbers and vectors."""
    def one(g: Group) -> bool:
        scans = g.form == "scan" and len(g.states) == 1 and len(stages.decl(g.states[0]).dims) < 2
        return g.form == "chunk" or scans
    return bool(stages.groups) and all(map(one, stages.groups)) and not is_complex(stages) and not _unwritten(stages)


_NOT_YET = frozenset(("span_contract", "solve"))


@functools.lru_cache(256)
def _unwritten(stages: Program) -> bool:
    """Does its chunk program hold what has no tiles yet: products under vector decays, triangular systems?"""
    from mixc.passes.chunk import chunk

    nodes = postorder(chunk(stages).values())
    return any(n.op in _NOT_YET or ({ROW, COL} <= set(n.dims) and len(n.dims) > 2) for n in nodes)


def emit(step: Program) -> str:
    """The text of the standalone module of a step whose states have kernels."""
    from mixc.codegen.module import module_text
    from mixc.passes.chunk import chunk
    from mixc.passes.classify import classify
    from mixc.passes.differentiate import differentiate

    forward = chunk(classify(step))
    return module_text(forward, differentiate(forward))


def module(mixer: Mixer, step: Program) -> ModuleType:
    """The imported module; one a mixer and elaborated step."""
    from mixc.codegen.offline import load_text

    found = _modules.setdefault(mixer, {})
    if step not in found:
        found[step] = load_text(emit(step), step.name)
    return found[step]


def run(mixer: Mixer, call: Call) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outs in the call's order of rows, and final states.

    Raises:
        InputError: fp64 inputs, which the kernels do not take."""
    if call.dtype == torch.float64:
        raise InputError('the Triton kernels compute in fp32, an input is fp64; use backend="torch"')
    emitted, p, rows = module(mixer, call.program), call.program, call.rows
    flat = rows.starts is not None or rows.lens is not None
    ins = []
    for d in p.ins:
        x = rows.gather(call.ins[d.name])
        ins.append(x.reshape(1, rows.B * rows.T, *x.shape[2:]) if flat else x)
    params = [call.params[d.name] for d in p.params]
    states = {s.name: _initial(call, s.name) for s in p.states}
    consts = {c.name: call.consts[c.name] for c in p.consts}
    out, final = emitted.run(*ins, *params, **consts, initial_state=states, output_final_state=True,
                             sequences=_sequences(call, flat))
    outs = dict(zip((o.name for o in p.outs), out, strict=True))
    shaped = {n: rows.scatter(y.reshape(rows.B, rows.T, *y.shape[2:])) for n, y in outs.items()}
    return shaped, final


def _sequences(call: Call, flat: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """First row and length of every sequence among the flat rows, or None for a dense batch."""
    rows = call.rows
    if not flat:
        return None
    starts = rows.starts
    if starts is None:
        starts = torch.arange(rows.N, device=call.device) * rows.T
    lens = rows.lens if rows.lens is not None else torch.full_like(starts, rows.T)
    return starts.to(torch.int64).contiguous(), lens.to(torch.int32).contiguous()


def _initial(call: Call, name: str) -> torch.Tensor | None:
    """The given initial state, or the declared one where that is not 0: [N, H, dims...] in fp32."""
    decl = call.program.decl(name)
    if name in call.states0:
        return call.states0[name].to(torch.float32)
    if decl.init is None:
        return None
    env = Env(lambda n: heads(call.params[n.attr("name")].float(), call.H, 0).unsqueeze(0) if n.op == "param"
              else torch.full((1, 1), call.consts[n.attr("name")]), call.sizes, dtype=torch.float32, device=call.device)
    (value,) = evaluate([decl.init], env)
    value = value.permute(0, 1, *[2 + decl.init.dims.index(d) for d in decl.dims])
    return value.expand(call.rows.N, call.H, *(call.sizes[d] for d in decl.dims))
