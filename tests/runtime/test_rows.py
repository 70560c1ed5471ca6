"""The view of a call's sequences that kernels get: gather, starts, lens, scatter."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mixc.runtime.packing import Packing
from mixc.runtime.rows import rows

CU = [0, 0, 3, 4, 4, 9]


def expected(B, T, cu, mask, reverse):
    """The flat rows of every sequence in the order they run, by hand."""
    spans = [(b * T, (b + 1) * T) for b in range(B)] if cu is None else list(pairwise(cu.tolist()))
    found = []
    for a, b in spans:
        run = [i for i in range(a, b) if mask is None or mask.flatten()[i]]
        found.append(run[::-1] if reverse else run)
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_sequences(reverse, masked, ragged):
    B, T = (1, 9) if ragged else (3, 5)
    cu = torch.tensor(CU, dtype=torch.int32) if ragged else None
    mask = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    view = rows(B, T, cu_seqlens=cu, mask=mask, reverse=reverse)
    want = expected(B, T, cu, mask, reverse)
    x = torch.arange(B * T).reshape(B, T, 1).double().requires_grad_()
    y = view.gather(x)
    assert [y.flatten()[a:a + n].tolist() for a, n in view.sequences()] == want
    assert len(want) == view.N and view.dense == (not masked and not ragged)
    back = view.scatter(torch.where(torch.ones_like(y).bool(), y, y))
    assert torch.equal(back, x if mask is None else torch.where(mask[..., None], x, 0))
    (g,) = torch.autograd.grad(back.sum(), x)
    assert torch.equal(g.flatten() != 0, torch.ones(B * T).bool() if mask is None else mask.flatten())
    packing = Packing(view, x.device)
    packed = packing.pack(x)
    assert packed.flatten().tolist() == [s[t] for t in range(T) for s in sorted(want, key=len, reverse=True)
                                         if t < len(s)]
    assert torch.equal(packing.unpack(packed), back)
    if not masked and not reverse:
        assert view.plain and view.gather(x) is x


def test_what_is_behind_the_end_never_shows():
    mask = torch.tensor([[True, False, True]])
    view = rows(1, 3, mask=mask)
    y = view.gather(torch.tensor([[[1.0], [float("nan")], [3.0]]]))
    assert y.flatten().tolist() == [1, 3, 0] and view.lens.tolist() == [2]
    y = y.masked_fill(torch.tensor([False, False, True]).reshape(1, 3, 1), float("nan"))  # a kernel wrote nothing
    assert view.scatter(y).flatten().tolist() == [1, 0, 3]


@pytest.mark.parametrize(("B", "T"), [(0, 3), (2, 0), (0, 0)])
def test_nothing(B, T):
    for mask in (None, torch.ones(B, T).bool()):
        for reverse in (False, True):
            view = rows(B, T, mask=mask, reverse=reverse)
            x = torch.zeros(B, T, 2)
            assert view.gather(x).shape == x.shape == view.scatter(x).shape
            assert [n for _, n in view.sequences()] == [T] * B
            assert Packing(view, x.device).counts == ([B] * T if B else [])
