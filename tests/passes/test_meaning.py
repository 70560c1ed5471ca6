"""Every pass x every example x ragged lengths: what a program means before is what it means after.

The rungs of the ladder are run by the evaluator of their level, node by node in fp64 (`ir.run.run_chunks`), as if each
were a backend, and compared with the step run token by token: outs, final states, gradients.  Lags and positions
(`passes.context`) and complex planes are below them where a spec has some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixc
from mixc.codegen.torch_segment import prepare
from mixc.ir.program import Program
from mixc.ir.text import print_program, read_program
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from mixc.passes.planes import is_complex
from mixc.passes.simplify import plain, simplify
from mixc.runtime import agree, arguments, backends, context, planes
from mixc.runtime.call import Call
from mixc.runtime.load import shipped
from mixc.runtime.recorded import start
from tests import cells
from tests.chunks import ChunkRun, run_chunks

NAMES = sorted(shipped())
DERIVED = [n for n in NAMES if backends.has_torch_program(mixc.load(n))]
RAGGED = dict(length=(0, 0, 1, 6, 19), size=3, heads="4/2", gates=1.0, dtype=torch.float64, start=True)
Tensors = dict[str, torch.Tensor]


class Rung:
    """A mixer whose calls are run by the programs of one rung: `make` gives forward and backward (None: autograd's)."""

    def __init__(self, mixer: mixc.Mixer, make: Callable[[Program], tuple[Program, Program | None]], C: int):
        self.mixer, self.declared, self.make, self.C = mixer, mixer.declared, make, C

    def __call__(self, **given: Any) -> Any:
        options = {n: given.pop(n) for n in list(given) if n in arguments.OPTIONS}
        call = arguments.bind(self.mixer, (), given, options)
        outs, states = context.run(call, lambda c: planes.run(c, self.run) if is_complex(c.program) else self.run(c))
        return self.mixer._outs(outs, call), self.mixer._states(states, call)

    def run(self, call: Call) -> tuple[Tensors, Tensors]:
        """One sequence after the other."""
        programs = self.make(call.program)
        ins = {n: call.rows.gather(x).flatten(0, 1) for n, x in call.ins.items()}
        starts = {d.name: start(call, d, call.dtype) for d in call.program.states}
        outs: dict[str, list[torch.Tensor]] = {d.name: [] for d in call.program.outs}
        finals: dict[str, list[torch.Tensor]] = {d.name: [] for d in call.program.states}
        for n, (first, count) in enumerate(call.rows.sequences()):
            state = {name: s[n:n + 1] for name, s in starts.items()}
            if count:
                rows = [x[first:first + count].unsqueeze(0) for x in ins.values()]
                found = sequence(programs, call, self.C, rows, list(state.values()))
                state = dict(zip(state, found[len(outs):], strict=True))
                for out, x in zip(outs.values(), found, strict=False):
                    out.append(x[0])
            for name, s in state.items():
                finals[name].append(s)
        B, T = call.rows.B, call.rows.T
        whole = {n: torch.cat(x).view(B, T, *x[0].shape[1:]) for n, x in outs.items()}
        return {n: call.rows.scatter(x) for n, x in whole.items()}, {n: torch.cat(x) for n, x in finals.items()}


def sequence(programs: tuple[Program, Program | None], call: Call, C: int, rows: list[torch.Tensor],
             states: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outs [1, T, H, ...] and final states of one sequence."""
    forward, backward = programs
    params = list(call.params.values())
    if backward is not None:
        return list(_Derived.apply(forward, backward, call, C, len(rows), len(params), *rows, *params, *states))
    return _values(_forward(forward, call, C, rows, params, states), call)


def _forward(program: Program, call: Call, C: int, rows: list[torch.Tensor], params: list[torch.Tensor],
             states: list[torch.Tensor]) -> ChunkRun:
    tensors = dict(zip([*call.ins, *call.params], [*rows, *params], strict=True))
    start = {d.name: s for d, s in zip(call.program.states, states, strict=True)}
    return run_chunks(program, tensors, start, call.sizes, C, consts=call.consts)


def _values(run: ChunkRun, call: Call) -> list[torch.Tensor]:
    return [*(run.outs[d.name] for d in call.program.outs), *(run.states[d.name] for d in call.program.states)]


class _Derived(torch.autograd.Function):
    """A forward program whose gradient is what the derived backward program gives."""

    @staticmethod
    def forward(ctx: Any, program: Program, backward: Program, call: Call, C: int, n_in: int, n_par: int,
                *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        split = [list(tensors[:n_in]), list(tensors[n_in:n_in + n_par]), list(tensors[n_in + n_par:])]
        run = _forward(program, call, C, *split)
        ctx.found, ctx.split = (backward, call, C, run.starts), split[:2]
        return tuple(x.clone() for x in _values(run, call))

    @staticmethod
    def backward(ctx: Any, *cots: torch.Tensor) -> tuple[Any, ...]:
        (program, call, C, starts), (rows, params) = ctx.found, ctx.split
        outs = [d.name for d in call.program.outs]
        given = dict(zip([*call.ins, *call.params], [*rows, *params], strict=True))
        given |= {f"cot:{n}": c for n, c in zip(outs, cots, strict=False)}
        finals = {d.name: c for d, c in zip(call.program.states, cots[len(outs):], strict=True)}
        run = run_chunks(program, given, finals, call.sizes, C, consts=call.consts, starts=starts)
        found = [_grouped(run.outs[n], x, 2) for n, x in zip(call.ins, rows, strict=True)]
        found += [_grouped(run.sums[n].sum(0), x, 0) for n, x in zip(call.params, params, strict=True)]
        return (*[None] * 6, *found, *(run.states[d.name] for d in call.program.states))


def _grouped(grad: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    return grad.unflatten(axis, (x.shape[axis], -1)).sum(axis + 1)


# ---------------------------------------------------------------- the rungs, each after one more pass
def chunked(step: Program) -> tuple[Program, Program | None]:
    return chunk(classify(step)), None


def differentiated(step: Program) -> tuple[Program, Program | None]:
    forward = chunk(classify(step))
    return forward, differentiate(forward)


def simplified(step: Program) -> tuple[Program, Program | None]:
    forward, backward = differentiated(step)
    assert backward is not None
    return simplify(forward), simplify(backward)


def explained(step: Program) -> tuple[Program, Program | None]:
    forward, backward = differentiated(step)
    assert backward is not None
    return plain(forward), plain(backward)


def prepared(step: Program) -> tuple[Program, Program | None]:
    forward, backward = differentiated(step)
    assert backward is not None
    return prepare(forward, partial=True), prepare(backward, partial=True)


@pytest.mark.parametrize("rung", [chunked, differentiated, simplified, explained, prepared], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", DERIVED)
def test_means_the_same(name, rung):
    mixer = mixc.load(name)
    cell = RAGGED | dict(rows="reverse" if rung is prepared else "plain")
    g = cells.given(mixer, cell, seed=1)
    want = agree.run(mixer, g.tensors, initial_state=g.initial_state, **g.options)
    got = agree.run(Rung(mixer, rung, C=4), g.tensors, initial_state=g.initial_state, **g.options)
    bad = [str(f) for f in agree.judge(mixer.declared, got, want, torch.float64) if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("name", NAMES)
def test_classify_changes_no_value(name):
    step = mixc.load(name).declared
    stages = classify(step)
    assert stages.values() == step.values() and stages.decls == step.decls
    assert sorted(s for g in stages.groups for s in g.states) == sorted(d.name for d in step.states)


@pytest.mark.parametrize("name", DERIVED)
def test_prepared_programs_return_from_text(name):
    mixer = mixc.load(name)
    step = mixer._staged
    for program in prepared(step):
        again = read_program(print_program(program))
        assert again.values() == program.values() and again.decls == program.decls
