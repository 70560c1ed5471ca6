"""The pairwise generator meets every allowed pair and forms no cell that is not allowed."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.pairs import cover

AXES = {"a": range(7), "b": "xyz", "c": [True, False], "d": range(4)}


def test_every_pair_is_met_in_few_cells():
    cells = cover(AXES)
    for a, b in combinations(AXES, 2):
        assert {(c[a], c[b]) for c in cells} == {(x, y) for x in AXES[a] for y in AXES[b]}
    assert len(cells) <= 1.3 * 7 * 4
    assert cells == cover(AXES)


def test_what_is_not_allowed_is_never_formed():
    def allowed(cell):
        return not (cell.get("b") == "x" and cell.get("c")) and cell.get("a", 0) + cell.get("d", 0) < 8
    cells = cover(AXES, allowed)
    assert all(map(allowed, cells))
    assert {(c["a"], c["d"]) for c in cells} == {(a, d) for a in range(7) for d in range(4) if a + d < 8}


def test_a_pair_that_no_cell_can_hold_is_an_error():
    with pytest.raises(ValueError, match="no allowed cell"):
        cover({"a": [0], "b": [0], "c": [0]}, lambda cell: len(cell) < 3)
