"""What values may be infinite or no number, for inputs inside their ranges, and where a cotangent of 0 could meet an
infinite derivative.

The reference guards every op.  The fallback guards the ops found here, and leaves the others to
PyTorch's own, faster gradients: `exp(g) * S` with g <= 0 needs no guard, `log(x)` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixc.ir.node import Node, fold, postorder
from mixc.ir.program import Program
from mixc.ir.ranges import bounds, proving

Risk = tuple[bool, bool]  # may be infinite, may be NaN
_SAFE: Risk = (False, False)
_ALWAYS = frozenset(("log", "log1p", "sqrt", "rsqrt", "pow", "logaddexp", "norm"))
_FACTORS = frozenset(("mul", "contract", "square", "ipow", "softmax", "norm", "sin", "cos", "silu", "gelu"))
_LARGEST = 80.0  # exp of it is finite in fp32


def guarded_nodes(program: Program) -> frozenset[Node]:
    """The nodes whose gradient must be guarded."""
    roots = program.values("out", "next")
    order = list(postorder([*roots, *program.inits]))
    with proving(program):
        risks = Risks.of(program)
        return frozenset(n for n in order if n.args and _needs(n, risks))


class Risks:
    """What values may be, under the ranges of the enclosing `proving` block.

    Args:
        states: what states may be; of one that is not named, what its start may be."""

    def __init__(self, states: Mapping[Node, Risk] | None = None):
        self._known = dict(states or {})

    @staticmethod
    def of(step: Program) -> Risks:
        """Of a step: a state is as risky as what it is given."""
        states = {d.leaf(): _SAFE for d in step.states}
        while True:  # twice per state at most
            found = Risks(states)
            after = {d.leaf(): _join(states[d.leaf()], found[step.result("next", d.name)],
                                     found[d.init] if d.init is not None else _SAFE) for d in step.states}
            if after == states:
                return found
            states = after

    def __getitem__(self, node: Node) -> Risk:
        return fold([node], self._found, self._known)[0]

    @staticmethod
    def _found(n: Node, args: list[Risk]) -> Risk:
        (infinite, nan), interval = _of(n, args), bounds(n)
        return infinite and not (math.isfinite(interval.low) and math.isfinite(interval.high)), nan


def _needs(n: Node, risks: Risks) -> bool:
    if n.op == "div":
        low, high = bounds(n.args[1]).low, bounds(n.args[1]).high
        if low <= 0 <= high:
            return True
    if n.op in ("exp", "expm1") and any(risks[n]):
        return True
    return n.op in _ALWAYS or (n.op == "ipow" and n.attr("n") < 0) or any(any(risks[a]) for a in n.args)


def _join(*risks: Risk) -> Risk:
    return any(r[0] for r in risks), any(r[1] for r in risks)


def _of(n: Node, args: list[Risk]) -> Risk:
    if n.op in ("in", "param", "state"):
        return bounds(n).infinite, False
    if n.op == "number":
        value = n.attr("value")
        return not isinstance(value, complex) and math.isinf(value), False
    infinite, nan = _join(*args) if args else _SAFE
    low = bounds(n.args[0]).low if args else 0.0
    if n.op in ("exp", "expm1"):
        return infinite or bounds(n.args[0]).high > _LARGEST, nan
    if n.op in ("log", "log1p"):
        least = 0 if n.op == "log" else -1
        return infinite or low <= least, nan or low < least
    if n.op == "sqrt":
        return infinite, nan or low < 0
    if n.op == "div":
        below = bounds(n.args[1])
        return (True, True) if below.low <= 0 <= below.high else (infinite, nan or infinite)
    if n.op == "rsqrt" and low > 0:
        return False, nan
    if n.op in ("rsqrt", "pow") or (n.op == "ipow" and n.attr("n") < 0):
        return True, True
    if n.op in ("add", "sub"):
        return infinite, nan or (args[0][0] and args[1][0])
    return infinite, nan or (infinite and n.op in _FACTORS)
