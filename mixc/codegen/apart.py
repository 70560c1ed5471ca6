"""States that one launch would hold, in launches of their own where that is faster by the model.

before: S = exp(g) * S + b * k * (v - k @ S);  Z = 0.99 * Z + k * v;  o = q @ (S + Z)     two matrices on chip
after:  1. S = ..., S_read = q @ S an out;  2. Z = ..., o = S_read + q @ Z                a chunk, and a cut, for each

before: u = silu(k) / norm(silu(k));  S = S + b * u * (v - u @ S)           every program holds all of a key
after:  1. k_formed = silu(k) / norm(silu(k));  2. S = S + b * k_formed * (v - k_formed @ S)

Each program reads its own inputs, and the gradients of what both read are added: that costs bytes.  So it is for
states that leave no room: two of 128 x 128, or one and what is formed, whose tiles would be divided, or spill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixc.errors import SpecError
from mixc.ir.program import Program, once_a_program
from mixc.passes.classify import classify, parts_of
from mixc.passes.parts import in_front, in_two
from mixc.passes.planes import is_complex
from mixc.targets import Target, find

ROOM = 2 ** 14  # entries of states that a program holds with ease: one of 128 x 128
MOVES = 3  # of a gradient that is the sum of two: both are read, and the sum is written

Sizes = tuple[tuple[str, int], ...]


def parts_at(step: Program, target: str | Target, sizes: Mapping[str, int], dtype: str) -> tuple[Program, ...]:
    """The programs whose kernels run one after the other at these sizes: those of `parts_of`, or more.

    Args:
        sizes: B, T, H and every dim (see `whole_shape`)."""
    whole = parts_of(step)
    if len(whole) > 1 or is_complex(step) or not _cuts(step, sizes):
        return whole
    return _fastest(step, target, tuple(sorted(sizes.items())), dtype)[1]


_stages = once_a_program(classify)


def _cuts(step: Program, sizes: Mapping[str, int]) -> list[tuple[Program, Program]]:
    """The programs that it may be cut into, where its states, parallel over time, have as many entries as one program
    holds at most with ease, or where each program of some that lie beside each other would form others too."""
    matrices = [s.dims for s in step.states if len(s.dims) > 1]
    held = sum(math.prod(sizes[d] for d in dims[-2:]) for dims in matrices)
    return cuts(step) if held >= ROOM or len({*map(len, matrices)}) > 1 else []


def cuts(step: Program) -> list[tuple[Program, Program]]:
    """The same of matrices of whatever size."""
    if all(len(s.dims) < 2 for s in step.states) or any(g.form == "sequential" for g in _stages(step).groups):
        return []
    return [*filter(None, [in_front(step)]), *in_two(_stages(step))]


@once_a_program
def _fastest(step: Program, target: str | Target, sizes: Sizes, dtype: str) -> tuple[float, tuple[Program, ...]]:
    """Modelled seconds, and the programs."""
    known = dict(sizes)
    best: tuple[float, tuple[Program, ...]] = _alone(step, find(target), known, dtype), (step,)
    for cut in _cuts(step, known):
        seconds = _added(cut, find(target), known, dtype) + _alone(cut[0], find(target), known, dtype)
        if seconds < best[0]:
            more, rest = _fastest(cut[1], target, sizes, dtype)
            best = min(best, (seconds + more, (cut[0], *rest)), key=lambda x: x[0])
    return best


def _alone(step: Program, target: Target, sizes: Mapping[str, int], dtype: str) -> float:
    """Modelled seconds of the kernels of all its states, forward and backward; infinite without such kernels."""
    from mixc.autotune.tuner import schedule_of

    try:
        return sum(c.seconds for c in schedule_of(step, target, sizes, dtype).default()[1].values())
    except SpecError:
        return math.inf


def _added(cut: tuple[Program, Program], target: Target, sizes: Mapping[str, int], dtype: str) -> float:
    """Seconds that it takes to add the gradients of what both programs read."""
    from mixc.autotune.cost import COEFFICIENTS
    from mixc.autotune.tuner import WIDTHS

    first, second = cut
    values = [math.prod(sizes[d] for d in x.dims) for x in first.ins if x.name in {d.name for d in second.ins}]
    rows = sizes["B"] * sizes["T"] * sizes["H"]
    return sum(COEFFICIENTS["start"] + MOVES * rows * n * WIDTHS[dtype] / (target.bandwidth * 1e9) for n in values)
