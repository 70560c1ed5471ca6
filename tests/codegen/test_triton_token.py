"""Token loops with matrices for states as Triton kernels, interpreted, against the step in fp64."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.config import Config, Tile
from mixc.codegen.offline import load_text
from mixc.codegen.token_module import TokenModule
from mixc.codegen.triton_program import kernels
from mixc.runtime import backends
from tests.agree import assert_runs_agree, draw, run
from tests.cell_specs import spec
from tests.codegen.test_triton_cell import check

CELLS = ("tanh_memory", "norm_memory", "memory_into_cell", "robust_learner", "two_layers", "mixed_rows", "three_dims")
WITHOUT_CHUNKS = {  # of form chunk or scan, whose chunks have no kernels
    "three_dims": "in q[K], k[K], v[V], w[M], g[K] where g <= 0\nstate S[K, V, M]\nS = exp(g) * S + k * v * w\n"
                  "out o[V, M] = sum[K](q * S)\nout r[K] = sum[V, M](v * w * S)",
    "whole_state": "in k[K], v[V], g where g <= 0\nstate S[K, V]\nS = exp(g) * S + k * v\nout o[K, V] = S",
    "vector_momentum": "in q[K], k[K], v[V]\nin a[K] where 0 <= a <= 1\nstate S[K, V], M[K, V]\nM = a * M + k * v\n"
                       "S = a * S + M\nout o[V] = q @ S",
    "both_sides": "in q[K], k[K], v[V], a[K] where 0 <= a <= 1\nin b[V] where 0 <= b <= 1\nstate S[K, V], M[K, V]\n"
                  "M = a * M + k * v\nS = a * S + b * M\nout o[V] = q @ S",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*MX301")


def check_all(mixer):
    check(mixer)
    check(mixer, 35, B=1, H=1, start=False)  # more than a segment
    check(mixer, 9, B=1, cu_seqlens=torch.tensor([0, 0, 1, 4, 9, 9]))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    mixer = spec(name)
    assert isinstance(kernels(mixer.declared), TokenModule)
    check_all(mixer)


@pytest.mark.parametrize("name", WITHOUT_CHUNKS)
def test_what_has_no_chunk_kernels(name):
    body = WITHOUT_CHUNKS[name]
    dims = ", ".join(d for d in "KVM" if f"[{d}]" in body or f", {d}]" in body)
    mixer = mixc.loads(f"mixer m({dims}) {{\n{body}\n}}")
    assert "sequential" not in mixer.form.values() and kernels(mixer.declared).instead
    assert "token by token" in mixer.explain()
    check_all(mixer)


@pytest.mark.parametrize("name", ["robust_learner", "norm_memory", "mixed_rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(name, dtype):
    check(spec(name), 6, dtype=dtype, size=17)


def test_rows():
    mixer = spec("robust_learner")
    check(mixer, 6, reverse=True)
    check(mixer, 7, mask=torch.arange(14).reshape(2, 7) % 3 > 0, reverse=True)
    check(mixer, 0)
    check(mixer, 6, H=4, change=lambda x: x | {n: x[n][:, :, :2] for n in "kb"} | {"m": x["m"][:, :, :1]})


@pytest.mark.parametrize("name", ["tanh_memory", "memory_into_cell", "mixed_rows"])
def test_blocks_of_a_dim_and_short_segments(name):
    """Programs divide V; what lacks it comes in parts."""
    mixer = spec(name)
    made = kernels(mixer.declared)
    blocks = (("V", 16),)
    emitted = load_text(made.text(Config((("fwd", Tile(16, blocks)), ("bwd", Tile(16, blocks))), 16)), name)
    sizes = dict(K=5, V=40, W=40, J=5)
    x = draw(mixer.declared, B=2, T=19, H=1, sizes=sizes, dtype=torch.float32, seed=0)

    class Emitted:
        declared = mixer.declared

        def __call__(self, backend, **given):
            return getattr(emitted, name)(**given)
    assert_runs_agree(mixer, run(Emitted(), x, backend="triton"), run(mixer, x), torch.float32)


def test_prefill_then_step():
    mixer = spec("robust_learner")
    x = draw(mixer.declared, B=2, T=6, H=2, sizes=dict(K=5, V=3), dtype=torch.float32, seed=0)
    want, _ = mixer(**x, backend="triton")
    o, state = mixer(**{n: t[:, :5] for n, t in x.items()}, output_final_state=True, backend="triton")
    last, _ = mixer.step(state, **{n: t[:, 5] for n, t in x.items()}, backend="triton")
    torch.testing.assert_close(torch.cat([o, last.unsqueeze(1)], 1), want, rtol=1e-5, atol=1e-6)


def test_every_cell_has_kernels():
    assert all(backends.has_chunk_program(spec(name)) for name in CELLS)


def test_lags_and_positions():
    mixer = mixc.loads("mixer m(K, V, W = 3) {\nin q[K], k[K], v[V]\nparam c[K, W]\nstate S[K, V]\n"
                       "w = sum[W](c * lag[W](k))\nS = tanh(where(pos % 4 == 0, 0, 0.9 * S) + w * v)\n"
                       "out o[V] = q @ S\n}")
    check(mixer, 7, start=False)


def test_a_size_that_only_a_state_tells():
    mixer = mixc.loads("mixer m(K, M) {\nin k[K]\nstate W[K, M]\nW = tanh(0.9 * W + k)\nout o[M] = k @ W\n}")
    assert not backends.has_chunk_program(mixer)
    with pytest.raises(mixc.SpecError, match=r"MX310.*no in or param tells the size of M"):
        mixer(torch.zeros(1, 3, 1, 4), initial_state={"W": torch.zeros(1, 1, 4, 5)}, backend="triton")
