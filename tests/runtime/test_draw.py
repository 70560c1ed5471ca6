"""Inputs are drawn inside their ranges, ends included, the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch

from mixc.ir.node import number
from mixc.ir.program import Decl, Dim, Program, Range
from mixc.runtime.draw import draw, is_gate


def program(*decls: Decl) -> Program:
    return Program("step", "p", (Dim("K"), Dim("V"), Dim("E", alias="K")), decls, ())


G = Decl("in", "g", (), ranges=(Range(high=number(0)),))
BETA = Decl("in", "beta", (), ranges=(Range(low=number(0), high=number(1)),))
OPEN = Decl("in", "a", (), ranges=(Range(low=number(-1), high=number(1), low_open=True, high_open=True),))
DISC = Decl("in", "z", ("K",), "complex", ranges=(Range("abs", high=number(1), high_open=True),))
KEY = Decl("in", "k", ("K",), ranges=(Range("norm", ("K",), high=number(1)),))
FREE = Decl("in", "q", ("K", "V"))
PARAM = Decl("param", "A", ("K", "E"))


def many(d: Decl, **options: object) -> torch.Tensor:
    return draw(program(d), B=4, T=500, sizes={"K": 8, "V": 16}, **options)[d.name]  # type: ignore[arg-type]


def test_one_sided() -> None:
    g = many(G)
    assert g.max() == 0 and g.min() < -2
    assert torch.allclose(many(G, gates=10.0), 10 * g)
    assert (many(G, ends=0.0) < 0).all()


def test_two_sided_with_both_ends() -> None:
    beta = many(BETA)
    assert beta.min() == 0 and beta.max() == 1
    assert abs(beta.mean() - 0.5) < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_open_ends_stay_open_after_rounding(dtype: torch.dtype) -> None:
    assert many(OPEN, dtype=dtype).abs().max() < 1
    assert many(DISC, dtype=dtype).abs().max() < 1


def test_norms_reach_their_bound() -> None:
    size = many(KEY).norm(dim=-1)
    assert size.max() <= 1 + 1e-6
    assert ((size - 1).abs() < 1e-6).double().mean() > 0.1


def test_without_a_range_the_variance_is_one_over_the_size() -> None:
    assert abs(many(FREE).square().mean() * 8 * 16 - 1) < 0.01


def test_shapes_groups_and_streams() -> None:
    p = program(KEY, FREE, PARAM)
    x = draw(p, B=2, T=3, H=4, sizes={"K": 5}, groups={"k": 2})
    assert x["k"].shape == (2, 3, 2, 5)
    assert x["A"].shape == (4, 5, 5)
    again = draw(program(KEY), B=2, T=3, H=4, sizes={"K": 5}, groups={"k": 2})
    assert torch.equal(x["k"], again["k"])  # other inputs do not change it
    assert not torch.equal(x["k"], draw(p, B=2, T=3, H=4, sizes={"K": 5}, groups={"k": 2}, seed=1)["k"])


def test_what_counts_as_a_gate() -> None:
    assert [is_gate(d) for d in (G, BETA, KEY, FREE, PARAM, Decl("in", "i"))] == [True, True, False, False, False, True]
    assert math.isfinite(float(many(G).sum()))


def test_two_norms_both_hold() -> None:
    both = Decl("in", "m", ("K", "V"), ranges=(Range("norm", ("K",), high=number(1)),
                                               Range("norm", ("V",), high=number(0.5))))
    disc = Decl("in", "z", ("K",), "complex", ranges=(Range("abs", high=number(1)), KEY.ranges[0]))
    assert many(both).norm(dim=-2).max() <= 1 + 1e-6 and 0.49 < many(both).norm(dim=-1).max() <= 0.5 + 1e-6
    assert many(disc).abs().max() <= 1 and 0.99 < many(disc).norm(dim=-1).max() <= 1 + 1e-6
