"""Emitted modules start states as their spec declares, with gradients to the params in it."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.offline import load_text
from mixc.runtime.agree import ratio
from mixc.runtime.draw import draw

FROM_PARAMS = """
mixer m(K, V) {
    in q[K], k[K], v[V]
    param a[V], b[K]
    const c = 2
    state S[K, V] = c * a * exp(b) + index[K]
    S = 0.9 * S + k * v
    out o[V] = q @ S
}
"""
TWO = """
mixer two(D) {
    in x[D]
    state h[D] = -inf
    state s[D]
    h = maximum(h, x)
    s = 0.5 * s + x
    out o[D] = h * x
    out p[D] = 2 * s
}
"""


@pytest.mark.parametrize("text", [FROM_PARAMS, TWO])
def test_declared_starts(text: str) -> None:
    m = mixc.loads(text)
    emitted = getattr(load_text(m.emit()), m.__name__)
    x = {n: t.requires_grad_() for n, t in draw(m.declared, T=20, groups={"a": 1}).items()}
    for kept in (None, {s.name: torch.randn(2, 2, *([5, 7][:len(s.dims)])) for s in m.declared.states[-1:]}):
        o, state = emitted(*x.values(), initial_state=kept, output_final_state=True)
        want, final = m(**x, initial_state=kept, output_final_state=True, backend="reference")
        o, want = (y if isinstance(y, torch.Tensor) else torch.cat(tuple(y), -1) for y in (o, want))
        assert ratio(o, want) < 1e-5
        assert all(ratio(state[n], final[n]) < 1e-5 for n in final)
        grads, right = (torch.autograd.grad(y.square().sum(), list(x.values()), allow_unused=True) for y in (o, want))
        assert all(b is None or a is None or ratio(a, b) < 1e-5 for a, b in zip(grads, right, strict=True))
        if kept is None and "a" in x:
            assert grads[3] is not None and grads[4] is not None
