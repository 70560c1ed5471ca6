"""The search for an order of statements, against all orders that there are."""

from __future__ import annotations

import itertools
import random

import pytest

from mixc.codegen.beam import Beam

COUNT = 6


def peak(order: tuple[int, ...], taken: list[list[int]], size: list[float], within: list[float], forever: list[int],
         there: list[int]) -> float:
    """The most that is alive at once; what a statement makes may be written over what it is the last to take."""
    live, found = {*there}, sum(size[j] for j in there)
    for at, i in enumerate(order):
        live |= {*taken[i]}
        found = max(found, sum(size[j] for j in live) + within[i])
        live -= {j for j in taken[i] if j not in forever and not any(j in taken[k] for k in order[at + 1:])}
        found = max(found, sum(size[j] for j in live) + size[i])
        if i in forever or any(i in t for t in taken):
            live |= {i}
    return found


@pytest.mark.parametrize("seed", range(12))
def test_no_order_has_a_smaller_peak(seed: int) -> None:
    draw = random.Random(seed)
    tiles = COUNT + 3
    taken = [draw.sample([*range(i), *range(COUNT, tiles)], draw.randint(1, min(3, i + 3))) for i in range(COUNT)]
    size = [float(draw.choice([0.5, 1, 2, 4, 8])) for _ in range(tiles)]
    within = [float(draw.choice([0, 0, 0, 6])) for _ in range(COUNT)]
    rest = taken, size, within, [draw.randrange(COUNT)], [COUNT]
    may = [o for o in itertools.permutations(range(COUNT))
           if all(j >= COUNT or o.index(j) < at for at, i in enumerate(o) for j in taken[i])]
    found = Beam(*rest).best(1000)
    assert found in may and peak(found, *rest) == min(peak(o, *rest) for o in may)
    assert Beam(*rest).best(1) in may


def test_of_equals_the_first_comes_first() -> None:
    assert Beam([[2], [2]], [1.0, 1.0, 1.0], [0.0, 0.0], [0, 1], []).best(10) == (0, 1)
    assert Beam([], [], [], [], []).best(10) == ()
