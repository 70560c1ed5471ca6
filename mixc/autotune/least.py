"""What the points of a launch's space take at least, before they are tried out.

Blocks, turns and stages are as good for each part of the cost as any may be: the largest blocks move fewest bytes and
run in fewest programs, the smallest take fewest registers.  Rows of a chunk, of a segment and warps stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from mixc.autotune.arrays import Table
from mixc.autotune.cost import COEFFICIENTS, LACKING, NEARLY, SPILL, LaunchModel
from mixc.autotune.domain import Domain

EXACT = 1 - 1e-9  # of a bound: what rounding does to it


@dataclass(frozen=True)
class Least:
    """Of a number of rows a chunk, with what spills counted. `each`: by rows of a segment; `more`: of more rows too, as
    these take no fewer registers and bytes."""

    each: Mapping[int, float]
    more: float

    @property
    def whole(self) -> float:
        return min(self.each.values(), default=inf)


def least_of(domains: Mapping[str, Domain], model: LaunchModel) -> dict[int, Least]:
    """By rows of a chunk."""
    target, kept = model.target, ("C", "segment", "warps")
    axes = np.ix_(*[np.array(domains[n].values, float) for n in kept])
    smallest = {n: float(d.lo) for n, d in domains.items()} | dict(zip(kept, axes, strict=True))
    fewest = smallest | {n: float(d.hi) for n, d in domains.items() if n[0] == "B" or n == "stages"}
    with np.errstate(all="ignore"):
        registers, at = Table(smallest).value(model.registers), Table(fewest)
        places = np.minimum(target.warps // axes[2], target.registers_sm // (registers * target.warp * axes[2]))
        waves = at.value(model.work()) / (np.maximum(np.minimum(places, target.blocks), 1) * target.sms)
        waits = np.maximum(waves, 1) * at.value(model.cycles) / (target.clock * 1e6)
        moved = at.value(model.bytes()) / (target.bandwidth * 1e9)
        times = model.pressed(registers, np.maximum(0, registers - (target.registers_thread - NEARLY)))
        times = times * (1 + np.maximum(0, registers - target.registers_thread) * (LACKING / SPILL)) * EXACT
        each, more = (np.broadcast_to((seconds + COEFFICIENTS["start"]) * times, np.broadcast_shapes(
            *(x.shape for x in axes))).min(2) for seconds in (np.maximum(moved, waits), moved))
    segments, single = domains["segment"].values or (), model.kernel.launch.loop == "chunk"
    return {C: Least({s: float(b) for s, b in zip(segments, row, strict=True) if s % C == 0 and (s == C or not single)},
                     0.0 if model.cells else float(rest.min()))
            for C, row, rest in zip(domains["C"].values or (), each, more, strict=True)}
