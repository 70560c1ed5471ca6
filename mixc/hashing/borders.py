"""Where the sides of decisions meet.

Inputs drawn at random show that a decision has two sides, hardly where they meet: `x > 0.5` and `x > 0.501` agree on
all but a thousandth.  So the way from one input to another, on which a decision changes, is halved until the place is
known to 12 digits, and the two points around it are where two specs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixc.hashing.spec import Probe, View
from mixc.hashing.tokens import Ports
from mixc.hashing.values import Value, numbers
from mixc.ir.node import Node

Array = Any
Sides = Callable[[Node, list[Value]], tuple[str, tuple[Array, ...]] | None]
HALVINGS = 40


@dataclass(frozen=True)
class Lanes:
    """Points between probes: `share` of the way from `first` to `second`, all arrays of one length."""

    first: Array
    second: Array
    share: Array

    def __len__(self) -> int:
        return len(self.first)

    def at(self, share: Array) -> Lanes:
        return replace(self, share=share)

    def ports(self, view: View, colours: Sequence[int], probes: Sequence[Probe], seed: str) -> Ports:
        """What enters there; positions are whole."""
        found = {port: self._between(x) for port, x in view.ports([colours], probes, seed).items()}
        starts = np.array([float(p.pos) for p in probes])
        a, b = starts[self.first], starts[self.second]
        found["pos", ""] = numbers(np.rint(a + (b - a) * self.share)[:, None] + np.arange(view.T))
        return found

    def _between(self, x: Value) -> Value:
        a, b = x[self.first], x[self.second]
        return a + (b - a) * numbers(self.share.reshape(-1, *[1] * (x.ndim - 1)))


def borders(view: View, colours: Sequence[int], probes: Sequence[Probe], seed: str, sides: Sides
            ) -> tuple[list[Lanes], set[str]]:
    """Points before and behind the borders of decisions on the ways between probes, and the decisions that have some.

    Args:
        sides: of a node and its arguments' values what decision it is, if one, and which entries are on each side."""
    count = np.arange(len(probes))
    ways = Lanes(count, np.roll(count, -1), np.zeros(len(probes)))

    def seen(lanes: Lanes) -> dict[str, Array]:
        return _seen(view, lanes.ports(view, colours, probes, seed), _fresh(lanes, probes), sides)
    before, after = seen(ways), seen(ways.at(np.ones(len(probes))))
    crossings: list[tuple[str, int, int]] = []
    for what, a in before.items():
        found = np.argwhere(a != after[what])
        for i in dict.fromkeys((0, len(found) // 2, len(found) - 1) if len(found) else ()):
            crossings.append((what, int(found[i][0]), int(found[i][1])))
    if not crossings:
        return [], set()
    way = np.array([w for _, w, _ in crossings])
    lanes = Lanes(ways.first[way], ways.second[way], np.zeros(len(way)))
    low, high = np.zeros(len(way)), np.ones(len(way))
    side = np.array([before[what][w, entry] for what, w, entry in crossings])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        now = seen(lanes.at(middle))
        same = np.array([now[what][i, entry] for i, (what, _, entry) in enumerate(crossings)]) == side
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return [lanes.at(low), lanes.at(high)], {what for what, _, _ in crossings}


def values_at(view: View, colours: Sequence[int], probes: Sequence[Probe], seed: str, lanes: Lanes, far: bool
              ) -> list[bytes]:
    """By entity: a digest of all that leaves by it at those points."""
    return view.digests(lanes.ports(view, colours, probes, seed), _fresh(lanes, probes), far=far)[0]


def _fresh(lanes: Lanes, probes: Sequence[Probe]) -> Array:
    return np.array([p.fresh for p in probes])[lanes.first]


def _seen(view: View, ports: Ports, fresh: Array, sides: Sides) -> dict[str, Array]:
    """By decision: a row a point, which entries are on which side, whenever it is decided."""
    found: dict[str, list[Array]] = {}

    def watch(n: Node, args: list[Value]) -> None:
        decided = sides(n, args)
        for side in decided[1] if decided else ():
            full = np.broadcast_to(side, (len(fresh), *side.shape[1:]))
            found.setdefault(decided[0], []).append(full.reshape(len(fresh), -1))  # type: ignore[index]
    view.tokens.watched(ports, view.T, fresh, watch)
    return {what: np.concatenate(parts, 1) for what, parts in found.items()}
