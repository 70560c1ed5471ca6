"""The scripts of examples/ find what they promise."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def script(name):
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_an_autoregression_finds_its_coefficients():
    torch.manual_seed(0)
    seasonal = script("seasonal")
    a, b = seasonal.fit(seasonal.series(2000), steps=2)
    want = torch.tensor([seasonal.TRUTH.get(n, 0.0) for n in range(1, seasonal.W + 1)])
    assert (a[0] - want).abs().max() < 0.06 and abs(b.item() - 1) < 0.3


@pytest.mark.slow
def test_a_bidirectional_mamba_forecasts():
    assert script("bidirectional").main(60) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["simple_gla", "gla", "delta_net", "gated_deltanet", "kda", "rwkv6"])
def test_a_mixer_stands_in_an_fla_layer(layer):
    pytest.importorskip("fla")
    out, grad = script("fla_layers").compare(layer, T=40)
    assert out < 2e-6 and grad < 2e-5


@pytest.mark.slow
def test_reflections_track_parity_and_nothing_else_does():
    tracking = script("state_tracking")
    ends = [tracking.train(tracking.parity, 2, 1, top, 350)[-24:].mean() for top in (1.0, 2.0)]
    assert ends[0] < 0.6 and ends[1] > 0.95
