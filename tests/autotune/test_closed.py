"""The polynomials that `explain` prints are the tuner's own numbers."""

from __future__ import annotations

import pytest
import sympy

import mixc
from mixc.autotune.closed import closed_forms, state_traffic
from mixc.autotune.tuner import schedule_of
from mixc.targets import find


@pytest.mark.parametrize("name", ["simple_gla", "mamba2", "linear_attention_normalised", "gated_delta_rule", "min_gru"])
def test_polynomials_are_the_models_counts(name: str) -> None:
    mixer, target = mixc.load(name), find("h100")
    sizes = {"B": 8, "T": 2048, "H": 16} | {d.name: 64 for d in mixer.declared.dims}
    s = schedule_of(mixer.declared, target, sizes, "bf16")
    for form in closed_forms(mixer.declared, target):
        at = {sympy.Symbol(n, positive=True): v for n, v in (*sizes.items(), ("C", 32), ("L", 128))}
        space, model = next(x for x in s.spaces[form.launch].spaces if 32 in (x[0].domains["C"].values or ()))
        point = {"C": 32, "segment": 128, "warps": 4, "stages": 1, "turns": 1}
        point |= {n: 64 for n in space.domains if n[0] == "B"}
        assert float(form.bytes.subs(at)) == model.bytes().evaluate(point)
        assert float(form.flops.subs(at)) == pytest.approx(model.estimated.flops.evaluate(point), rel=1e-12)
        assert float(form.bytes.subs(at)) == float(form.saved.subs(at)) + float(form.bound.subs(at))


def test_a_state_that_fits_on_chip_costs_no_traffic() -> None:
    step, target = mixc.load("simple_gla").declared, find("h100")
    sizes = {"B": 8, "T": 2048, "H": 16, "K": 64, "V": 64}
    assert state_traffic(step, sizes, target, 64) == 0
    large = sizes | {"K": 512, "V": 512}
    assert state_traffic(step, large, target, 64) == 8 * 512 * 512 * 8 * 16 * 32


def test_of_a_state_whose_dim_is_divided_an_sm_has_a_block() -> None:
    step, target = mixc.load("simple_gla").declared, find("h100")
    sizes = {"B": 8, "T": 2048, "H": 16, "K": 512, "V": 512}
    assert [f.split for f in closed_forms(step, target)] == [("V",), ("V",)]
    assert state_traffic(step, sizes, target, 64, ["V"]) == 0
    assert state_traffic(step, sizes | {"K": 8192}, target, 64, ["V"]) > 0


def test_explain_says_them() -> None:
    text = mixc.load("simple_gla").explain()
    assert "2*B*H*T*(2*K + K*V/L + 2*V + 1)" in text and "lower bound" in text


@pytest.mark.parametrize("name", ["mamba1", "lru"])
def test_inputs_called_B_and_C_are_no_sizes(name: str) -> None:
    assert "at this shape" in mixc.load(name).explain()


def test_steps_that_look_back_have_costs_and_say_what_these_leave_out() -> None:
    for name in ("short_conv", "rotary_linear_attention"):
        text = mixc.load(name).explain()
        assert "## What the launches move and multiply" in text
        assert "neither the bytes nor the bound count that" in text
