"""The gradient of a phase is a difference of what the two sides of pairs of rows get: the products that form these do
not round what turns to halves."""

from __future__ import annotations

import pytest
import torch

import mixc

SPEC = """mixer turned(K, V = K) {
    in q[K], k[K], v[V]
    in g where g <= 0
    ROLE th[K]
    state S[K, V]
    S = exp(g + 1j * th) * S + k * v
    out o[V] = real(q @ S)
}"""


@pytest.mark.parametrize("forgets", [1.0, 20.0])
@pytest.mark.parametrize("role", ["param", "in"])
def test_the_gradient_of_a_phase_in_bf16(role: str, forgets: float) -> None:
    """Where rows see their neighbours alone it was off by 3e-2."""
    mixer, random = mixc.loads(SPEC.replace("ROLE", role)), torch.Generator().manual_seed(0)
    normal = {n: torch.randn(1, 96, 1, 16, generator=random).bfloat16() for n in ("q", "k", "v")}
    g = (-forgets * torch.rand(1, 96, 1, generator=random)).bfloat16()
    th = torch.randn(*((1, 16) if role == "param" else (1, 96, 1, 16)), generator=random)
    th = th if role == "param" else th.bfloat16()
    do = torch.randn(1, 96, 1, 16, generator=random).bfloat16()

    def gradient(backend: str, wide: bool) -> torch.Tensor:
        given = {n: x.double() if wide else x.clone() for n, x in {**normal, "g": g, "th": th}.items()}
        given["th"].requires_grad_()
        o, _ = mixer(**given, backend=backend)
        (found,) = torch.autograd.grad(o, given["th"], do.to(o.dtype))
        return found.double()
    want = gradient("reference", True)
    assert (gradient("triton", False) - want).norm() <= 5e-3 * want.norm()
