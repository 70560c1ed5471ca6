"""The criterion of agreement judges as it says."""

from __future__ import annotations

import math

import torch

from mixc.runtime.agree import FLOOR, Run, judge, ratio, run
from mixc.runtime.draw import draw
from mixc.runtime.mixer import Mixer
from tests.build import scalar_decay


def test_ratio() -> None:
    want = torch.tensor([3.0, 4.0])
    assert math.isclose(ratio(want * 1.01, want), 0.01, rel_tol=1e-4)
    assert ratio(torch.zeros(2), torch.zeros(2)) == 0
    assert ratio(torch.ones(2), torch.zeros(2)) == math.inf
    assert math.isclose(ratio(torch.ones(2), torch.zeros(2), floor=100.0), 0.01)
    assert ratio(torch.zeros(0), torch.zeros(0)) == 0


def test_what_is_not_finite_must_be_the_same() -> None:
    inf = torch.tensor([1.0, -math.inf])
    assert ratio(inf, inf) == 0
    assert ratio(torch.tensor([1.0, math.nan]), torch.ones(2)) == math.inf
    assert ratio(torch.tensor([1.0, math.inf]), inf) == math.inf


def test_small_gradients_are_not_judged_by_their_rounding() -> None:
    m = Mixer(scalar_decay("log"))
    want = Run(grads={"q": torch.ones(4), "k": torch.zeros(4)})
    got = Run(grads={"q": torch.ones(4), "k": torch.full((4,), 0.5 * FLOOR * 1e-5)})
    assert all(f.ok for f in judge(m.declared, got, want, torch.float32))
    got.grads["k"] = torch.full((4,), 2 * FLOOR * 1e-5)
    assert [f.name for f in judge(m.declared, got, want, torch.float32) if not f.ok] == ["dk"]


def test_a_missing_value_is_an_error() -> None:
    m = Mixer(scalar_decay("log"))
    assert not judge(m.declared, Run(), Run(outs={"o": torch.ones(1)}), torch.float32)[0].ok


def test_what_rounding_does_widens_the_bound_but_not_of_half_dtypes() -> None:
    m = Mixer(scalar_decay("log"))
    want, got = Run(outs={"o": torch.ones(9)}), Run(outs={"o": torch.ones(9) + 3e-2})
    for by, ok in ((1e-2, True), (5e-3, False)):
        loop = Run(outs={"o": torch.ones(9) + by})
        assert judge(m.declared, got, want, torch.float32, lambda: loop)[0].ok == ok  # noqa: B023
        assert judge(m.declared, got, want, torch.float64, lambda: loop)[0].ok == ok  # noqa: B023
        assert not judge(m.declared, got, want, torch.bfloat16, lambda: loop)[0].ok  # noqa: B023


def test_where_the_truth_is_exactly_0_rounding_is_held_against_rounding() -> None:
    m = Mixer(scalar_decay("log"))
    want, got = Run(outs={"o": torch.zeros(9)}), Run(outs={"o": torch.full((9,), 3e-17)})
    assert judge(m.declared, got, want, torch.float64, lambda: Run(outs={"o": torch.full((9,), 1e-17)}))[0].ok
    assert not judge(m.declared, got, want, torch.float64, lambda: Run(outs={"o": torch.zeros(9)}))[0].ok
    assert not judge(m.declared, Run(outs={"o": torch.full((9,), torch.nan)}), want, torch.float64, lambda: got)[0].ok


def test_run_pulls_cotangents_of_outs_and_states_to_everything() -> None:
    m = Mixer(scalar_decay("log"))
    x = draw(m.declared)
    start = run(m, x, grads=False).states
    found = run(m, x, initial_state=start)
    assert set(found.grads) == {"q", "k", "v", "g", "a", "D", "S0", "n0"}
    outs_only = run(m, x, initial_state=start, state_cotangents=False)
    assert not torch.equal(found.grads["S0"], outs_only.grads["S0"])
