"""A call of one token: its straight-line program, where a chunk program would make more calls of torch."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.runtime import cells, chunked
from tests.agree import assert_runs_agree, draw, normal, run

SPECS = ("gla", "gated_delta_rule", "mamba1", "hgrn", "lstm", "mlstm_stabilised", "s5", "max_plus", "log_sum")
pytestmark = pytest.mark.filterwarnings("ignore:.*MX301")


@pytest.fixture
def alone(monkeypatch):
    """No other program runs."""
    def none(*_, **__):
        raise AssertionError("a program of many tokens")
    monkeypatch.setattr(chunked, "run", none)
    monkeypatch.setattr(cells, "run", none)


def given(mixer, T, dtype=torch.float64, **more):
    return draw(mixer.declared, B=2, T=T, H=2, dtype=dtype, seed=T, **more)


@pytest.mark.parametrize("name", SPECS)
def test_one_token(name, alone):
    mixer = mixc.load(name)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = given(mixer, 1, dtype)
        got = run(mixer, x, backend="torch")
        assert_runs_agree(mixer, got, run(mixer, x, wide=dtype == torch.float64), dtype)


@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_without_gradients(name, alone):
    mixer = mixc.load(name)
    x = given(mixer, 1)
    (o, state), (want, last) = (mixer(**x, output_final_state=True, backend=b) for b in ("torch", "reference"))
    torch.testing.assert_close(o, want, rtol=1e-12, atol=1e-12)
    o, state = mixer(**x, output_final_state=True, initial_state=last, reverse=True)
    want, last = mixer(**x, output_final_state=True, initial_state=last, reverse=True, backend="reference")
    torch.testing.assert_close(o, want, rtol=1e-12, atol=1e-12)
    for n, s in last.items():
        torch.testing.assert_close(state[n], s, rtol=1e-12, atol=1e-12)


def test_groups_of_heads_and_an_initial_state_with_a_gradient(alone):
    mixer = mixc.load("gated_delta_rule")
    x = draw(mixer.declared, B=2, T=1, H=4, groups={"k": 2, "q": 1}, dtype=torch.float64)
    sizes = {n: x[d].shape[-1] for n, d in (("K", "k"), ("V", "v"))}
    start = {"S": normal([2, 4, sizes["K"], sizes["V"]], 1, "S", torch.float64)}
    want = run(mixer, x, initial_state=start, wide=True)
    assert_runs_agree(mixer, run(mixer, x, initial_state=start, backend="torch"), want, torch.float64)


def test_what_is_not_for_it():
    """A second derivative, histories, masks and more tokens."""
    gla, conv = mixc.load("gla"), mixc.load("short_conv")
    x = {n: t.requires_grad_() for n, t in given(gla, 1).items()}
    (g,) = torch.autograd.grad(gla(**x)[0].square().sum(), x["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="reference"):
        g.sum().backward()
    for T, mixer, options in ((1, conv, {}), (1, gla, {"mask": torch.arange(2).reshape(2, 1) > 0}), (2, gla, {})):
        y = given(mixer, T)
        assert_runs_agree(mixer, run(mixer, y, backend="torch", **options), run(mixer, y, wide=True, **options),
                          torch.float64)
