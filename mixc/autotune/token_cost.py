"""What one token costs where tokens come one by one: a decode step, and the loop that a person would write.

FLOPs of the step's values as they stand. A step moves its state once in and once out, its inputs and outs; the eager
loop moves every value of every operation, and starts a kernel for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from mixc.autotune.cost import COEFFICIENTS
from mixc.ir.node import Node, postorder
from mixc.ir.program import Program
from mixc.targets import Target

DISPATCH = 5e-6  # seconds that an operation of torch takes on the host: what bounds an eager loop of small ones
_FREE = ("rename", "expand", "to_number", "stop_gradient", "pick")


@dataclass(frozen=True)
class TokenCost:
    """Of one token of one sequence and head; `operations`: of the eager loop."""

    flops: int
    step_bytes: int
    eager_bytes: int
    operations: int

    def step_seconds(self, target: Target, B: int, H: int) -> float:
        return COEFFICIENTS["start"] + self._busy(self.step_bytes, target, B * H)

    def eager_seconds(self, target: Target, B: int, H: int) -> float:
        return max(self.operations * DISPATCH, self._busy(self.eager_bytes, target, B * H))

    def _busy(self, moved: int, target: Target, heads: int) -> float:
        return heads * max(moved / (target.bandwidth * 1e9), self.flops / (target.peaks["fp32"] * 1e12))


def token_cost(step: Program, sizes: Mapping[str, int]) -> TokenCost:
    """For 16-bit inputs and outs, and values in fp32."""
    def numbers(*nodes: Node) -> int:
        return prod(sizes[d] for d in dict.fromkeys(d for n in nodes for d in n.dims))

    found = [n for n in postorder(step.values()) if n.args and n.op not in _FREE]
    flops = sum(2 * numbers(*n.args) if n.op == "contract" else max(numbers(n), numbers(n.args[0])) for n in found)
    eager = sum(4 * (numbers(n) + sum(numbers(a) for a in n.args)) for n in found)
    tensors = sum(2 * prod(sizes[d] for d in x.dims) for x in (*step.ins, *step.params, *step.outs))
    states = sum(8 * prod(sizes[d] for d in s.dims) * (2 if s.kind == "complex" else 1) for s in step.states)
    return TokenCost(flops, tensors + states, eager, len(found))
