"""Token t changes nothing before t, bit for bit, nor anything in another sequence."""

from __future__ import annotations

import pytest
import torch

from mixc.runtime.draw import draw
from tests import cells
from tests.test_matrix import DERIVED, KERNELS, kernels, load


def outs(mixer, x, backend, **options):
    with torch.no_grad():
        o, _ = mixer(**x, backend=backend, **options)
    return o if isinstance(o, tuple) else (o,)


def check(name, T, t, backend, size, **options):
    mixer = load(name)
    x, other = (draw(mixer.declared, B=1, T=T, H=2, sizes=cells.sizes_of(mixer, size), seed=s) for s in (0, 1))
    ins = {d.name for d in mixer.declared.ins}
    changed = {n: torch.cat([x[n][:, :t], other[n][:, t:]], 1) if n in ins else x[n] for n in x}
    before, after = (outs(mixer, given, backend, **options) for given in (x, changed))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :t], b[:, :t])
    assert any(not torch.equal(a[:, t:], b[:, t:]) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", DERIVED)
def test_torch(name):
    for t in (1, 40, 64):
        check(name, 70, t, "torch", 5)
    check(name, 70, 33, "torch", 5, cu_seqlens=torch.tensor([0, 20, 33, 33, 70]))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (i % 2)) for i, n in enumerate(KERNELS)])
def test_triton_interpreted(name):
    T, t = (20, 17) if kernels(name) is cells.KERNELS else (9, 5)
    check(name, T, t, "triton", 5 if T == 20 else 2)
