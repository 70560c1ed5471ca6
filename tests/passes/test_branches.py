"""The gradients of both branches of a `where` become one `where`."""

from __future__ import annotations

import pytest
import torch

from mixc.ir.build import where
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import ROW, Node, make, postorder
from mixc.passes.simplify import RULES, rewrite

A, B, X, Y = (make("in", name=n, dims=(ROW, "D"), kind="real") for n in "abxy")
P, Q = make("lt", A, B), make("lt", X, B)

SUMS = {  # the sum, and how many `where` are left
    "both with a factor": (where(P, A, 0.0) * X + where(P, 0.0, B) * Y, 1),
    "one with a factor": (where(P, 0.0, B) + X * where(P, A, 0.0), 1),
    "the same branch": (where(P, A, 0.0) * X + where(P, B, 0.0), 2),
    "two conditions": (where(P, A, 0.0) * X + where(Q, 0.0, B), 2),
    "no zero": (where(P, A, 1.0) * X + where(P, 0.0, B), 2),
}


def value(n: Node, **given: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    drawn = {name: torch.randn(2, 6, 3, dtype=torch.float64) for name in "abxy"} | given
    return evaluate([n], Env(lambda n: drawn[n.attr("name")], {ROW: 6, "D": 3}, dtype=torch.float64, batch=1))[0]


@pytest.mark.parametrize("n,left", SUMS.values(), ids=SUMS.keys())
def test_one_where(n: Node, left: int) -> None:
    (new,) = rewrite([n], RULES)
    assert [x.op for x in postorder([new])].count("where") == left
    torch.testing.assert_close(value(new), value(n), rtol=1e-15, atol=0)


def test_what_is_infinite_where_it_does_not_count() -> None:
    n, _ = SUMS["both with a factor"]
    (new,) = rewrite([n], RULES)
    far = torch.full((2, 6, 3), torch.inf, dtype=torch.float64)
    assert value(n, x=far).isnan().any() and not value(new, x=far).isnan().any()


def test_a_choice_of_one_value_is_no_choice():
    assert rewrite([where(P, Y, Y)], RULES) == [Y]
