"""Cell -> Kernels: one launch forward over all tokens of a sequence, one backward; a program has one sequence.

before: S' = tanh(S + k * (v - k @ S))           one token
after:  forward   from token to token, the state on chip; every SEGMENT tokens it is kept
        backward  a segment at a time, from the last: its states again from the one that was kept, each put aside; then
                  token by token towards the segment's start, carrying dS and the gradients of params

For states that are matrices, or more: a program of its own for every sequence, head and block of a dim that nothing
sums over.  In the backward also of one that only cotangents are summed over: what lacks it is then a partial sum.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.ir.launch import Launch
from mixc.ir.program import Program
from mixc.ir.ranges import proving
from mixc.passes.cell import cell
from mixc.passes.cell_launches import finite_gradient
from mixc.passes.differentiate import differentiate
from mixc.passes.partition import fused_backward, fused_forward
from mixc.passes.simplify import simplify


def token_launches(step: Program) -> tuple[Launch, Launch]:
    """Forward and backward of a step without lags, positions and complex values."""
    lifted = cell(step, ())
    with proving(lifted):
        forward = simplify(lifted, drop_live=True)
        backward = simplify(differentiate(forward), drop_live=True)
    grads = {d.name: finite_gradient(backward, d, d) for d in step.ins}
    backward = backward.with_values([grads[r.name] if r.role == "grad" else r.value for r in backward.results])
    back = fused_backward(forward, backward)
    front = fused_forward(forward, back.starts)
    return tuple(replace(x, loop="tokens", exact=frozenset(back.starts)) for x in (front, back))  # type: ignore[return-value]
