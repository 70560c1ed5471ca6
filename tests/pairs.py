"""Cells of a product such that every two values of two axes meet.

Our own thirty lines and not a package: cells that make no sense must never be formed (a condition on half
a cell prunes them), the order must be the same on every machine, and the greedy of AETG needs no more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

Cell = dict[str, Any]
Pair = tuple[str, int, str, int]


def cover(axes: Mapping[str, Sequence[Any]], allowed: Callable[[Cell], bool] = lambda cell: True, *,
          seed: int = 0, tries: int = 12) -> list[Cell]:
    """Cells that between them hold every allowed pair of values; each the best of `tries` greedy ones.

    Args:
        allowed: of a cell that may lack axes; false never becomes true by adding one.
    """
    rng, names = random.Random(seed), list(axes)
    todo = {(a, i, b, j) for a, b in combinations(names, 2) for i in range(len(axes[a])) for j in range(len(axes[b]))
            if allowed({a: axes[a][i], b: axes[b][j]})}
    cells: list[Cell] = []
    while todo:
        found = [_greedy(axes, names, allowed, todo, rng) for _ in range(tries)]
        best = max(filter(None, found), key=lambda c: len(_pairs(c, names) & todo), default=None)
        gained = _pairs(best, names) & todo if best else set()
        if not gained:
            raise ValueError(f"no allowed cell holds {sorted(todo)[0]}")
        todo -= gained
        cells.append({n: axes[n][best[n]] for n in names})
    return cells


def _pairs(cell: dict[str, int], names: list[str]) -> set[Pair]:
    return {(a, cell[a], b, cell[b]) for a, b in combinations(names, 2) if a in cell and b in cell}


def _greedy(axes: Mapping[str, Sequence[Any]], names: list[str], allowed: Callable[[Cell], bool], todo: set[Pair],
            rng: random.Random) -> dict[str, int] | None:
    """A cell that starts from a pair still to be met; each further axis takes the value that meets the most."""
    a, i, b, j = rng.choice(sorted(todo))
    cell, rest = {a: i, b: j}, [n for n in names if n not in (a, b)]
    for name in rng.sample(rest, len(rest)):
        def gain(k: int, name: str = name) -> float:
            return len(_pairs(cell | {name: k}, names) & todo) + rng.random()
        fits = [k for k in range(len(axes[name]))
                if allowed({n: axes[n][v] for n, v in (cell | {name: k}).items()})]
        if not fits:
            return None
        cell[name] = max(fits, key=gain)
    return cell
