"""Where a declared value may lie, as numbers: one form for every spelling of its ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixc.ir.node import Node
from mixc.ir.program import Decl


@dataclass(frozen=True)
class Region:
    """low <= x <= high, and bounds on norms over some dims; over none: on the modulus of a complex value."""

    low: float
    high: float
    low_open: bool
    high_open: bool
    norms: tuple[tuple[tuple[str, ...], float, bool], ...]  # (over, bound, open), sorted

    @property
    def bounded(self) -> bool:
        """A range of values, and not of norms."""
        return self.low > -math.inf or self.high < math.inf


def region(d: Decl, value: Callable[[Node], float], order: Sequence[str]) -> Region:
    """The ranges of a declaration; `value`: of an expression of numbers, sizes and consts. `order`: of the dims."""
    low, high = (-math.inf, True), (math.inf, True)  # (bound, open)
    norms: dict[tuple[str, ...], tuple[float, bool]] = {}
    for r in d.ranges:
        a = -math.inf if r.low is None else value(r.low)
        b = math.inf if r.high is None else value(r.high)
        modulus = r.of == "abs" or (r.of == "norm" and not r.over)
        if (r.of == "norm" and r.over) or (modulus and d.kind == "complex"):
            over = tuple(sorted(r.over, key=order.index))
            if b < math.inf:
                norms[over] = min(norms.get(over, (b, False)), (b, r.high_open), key=lambda x: (x[0], not x[1]))
            continue
        a, a_open = (-b, r.high_open) if modulus else (a, r.low_open if r.low is not None else True)
        low = max(low, (a, a_open))
        high = min(high, (b, r.high_open if r.high is not None else True), key=lambda x: (x[0], not x[1]))
    return Region(low[0], high[0], low[1], high[1], tuple(sorted((k, *v) for k, v in norms.items())))
