"""The baseline of `mixc bench` computes what the reference computes."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.eager import eager_loop
from mixc.hashing.evaluate import const_values
from mixc.runtime.draw import dim_sizes, draw
from mixc.runtime.load import shipped
from tests.agree import assert_agree


@pytest.mark.parametrize("name", sorted(shipped()))
def test_eager_loop_is_the_step(name: str) -> None:
    check(mixc.load(name))


def check(m: mixc.Mixer) -> None:
    sizes = dim_sizes(m.declared)
    program, consts = m.specialise(sizes, {})
    assert consts == const_values(m.declared.consts, sizes, {})
    x = draw(m.declared, T=11)
    loop, text = eager_loop(program, sizes, consts, 2)
    want, _ = m(**x, backend="reference")
    (got,) = loop(x).values()
    assert_agree(got, want, torch.float32)
    assert text.startswith("def loop(")


@pytest.mark.filterwarnings("ignore:note")
def test_a_gradient_by_one_entry_is_placed() -> None:
    m = mixc.loads("mixer m(N = 2, K, V) {\n in k[N, K], v[N, V], q[K]\n in b where 0 <= b <= 0.3\n state S[N, K, V]\n"
                   " for n in N {\n  S = S - b * grad[S](0.5 * sum(square(k[n] @ S[n] - v[n])))\n }\n"
                   " out o[V] = q @ sum[N](S)\n}")
    check(m)


@pytest.mark.filterwarnings("ignore:note")
@pytest.mark.parametrize("start", ["A", "exp(A) * index[V]", "s", "s * index[V] * index[K]"])
def test_a_loop_that_starts_at_params(start: str) -> None:
    m = mixc.loads(f"mixer m(K, V) {{\n in q[K], k[K], v[V]\n param A[K, V], s\n state S[K, V] = {start}\n"
                   " out o[V] = q @ S + s\n S = exp(-s * s) * S + k * v\n}")
    check(m)
