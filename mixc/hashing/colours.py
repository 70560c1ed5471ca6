"""Colourings of what is to be told apart: a number for each, equal ones for what is still alike."""

from __future__ import annotations

from collections.abc import Sequence

Colours = tuple[int, ...]


def ranked(keys: Sequence[object]) -> Colours:
    """Equal keys get one colour; colours follow the order of the keys."""
    ranks = {k: i for i, k in enumerate(sorted(set(keys)))}  # type: ignore[type-var]
    return tuple(ranks[k] for k in keys)


def pairs(colours: Colours) -> list[tuple[int, int]]:
    """Pairs of one colour."""
    return [(i, j) for i in range(len(colours)) for j in range(i + 1, len(colours)) if colours[i] == colours[j]]


def first_cell(colours: Colours) -> list[int] | None:
    """Those of the first colour that several have."""
    cells = ([i for i, x in enumerate(colours) if x == c] for c in sorted(set(colours)))
    return next((cell for cell in cells if len(cell) > 1), None)


def alone(colours: Colours, e: int) -> Colours:
    """e before the others of its colour."""
    return ranked([(c, i != e) for i, c in enumerate(colours)])


def in_order(colours: Colours, cell: Sequence[int]) -> Colours:
    """Those of a cell one after the other."""
    return ranked([(c, cell.index(i) if i in cell else 0) for i, c in enumerate(colours)])
