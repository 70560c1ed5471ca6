"""Functions that are nearly linear at 0 keep the digits of small values in kernels too, where they cancel if written
out plainly."""

from __future__ import annotations

import pytest
import torch

import mixc


@pytest.mark.parametrize("f", ["tanh", "expm1", "log1p", "sin", "silu", "gelu", "elu"])
def test_small_values_keep_their_digits(f: str) -> None:
    mixer = mixc.loads(f"mixer m(D) {{\n in x[D]\n state h[D]\n h = 0.5 * h + {f}(x)\n out o[D] = {f}(x)\n}}\n")
    sizes = 10.0 ** torch.linspace(-6, 0, 32)
    x = (sizes * torch.tensor([1.0, -0.7]).repeat(16)).view(1, 32, 1, 1).expand(1, 32, 1, 5).contiguous()
    got, _ = mixer(x=x, backend="triton")
    want, _ = mixer(x=x.double(), backend="reference")
    assert torch.allclose(got.double(), want, rtol=2e-6, atol=0)
