"""Scans as Triton kernels, interpreted, against the step in fp64; and compiled for a GPU that is not here."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import mixc
from mixc.codegen.config import Config, Tile
from mixc.codegen.offline import load_text
from tests.agree import assert_runs_agree, draw, normal, run
from tests.codegen.test_offline import compiled
from tests.poison import poisoned
from tests.scans import NAMES, spec


def check(name, T=35, B=1, **options):
    mixer = spec(name) if name in NAMES else mixc.load(name)
    sizes = {d.name: 17 + i for i, d in enumerate(mixer.declared.dims)}
    x = draw(mixer.declared, B=B, T=T, H=2, sizes=sizes, dtype=torch.float32, ends=1 / 16, seed=T)
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    given = {d.name: normal([N, 2, *(sizes[n] for n in d.dims)], 5, d.name) for d in mixer.declared.states}
    want = run(mixer, x, initial_state=given, **options)
    got = run(mixer, x, initial_state=given, backend="triton", **options)
    assert_runs_agree(mixer, got, want, torch.float32)


@pytest.mark.parametrize("name", ["hgrn", "min_gru", "max_plus", "min_plus_before", "max_times", "log_sum",
                                  "before_and_after", "between", "param_decay", "stabilised", "scan_feeds_scan"])
def test_interpreted(name):
    check(name)


@pytest.mark.parametrize("T", [1, 16, 70])
def test_lengths(T):
    check("hgrn", T, B=2)


def test_ragged_reversed_masked():
    check("hgrn", 40, cu_seqlens=torch.tensor([0, 0, 5, 40]), reverse=True)
    check("max_plus", 20, B=2, mask=torch.arange(40).reshape(2, 20) % 3 > 0)


def small(name, T=18, **options):
    """The interpreter takes a second an operation of three axes."""
    mixer = spec(name) if name in NAMES else mixc.load(name)
    sizes = {d.name: 3 + 2 * i for i, d in enumerate(mixer.declared.dims)}
    x = draw(mixer.declared, B=1, T=T, H=2, sizes=sizes, dtype=torch.float32, ends=1 / 16, seed=T)
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else 1
    given = {d.name: normal([N, 2, *(sizes[n] for n in d.dims)], 5, d.name) for d in mixer.declared.states
             if d.kind == "real"}
    runs = [run(mixer, x, initial_state=given, backend=b, **options) for b in ("triton", "reference")]
    assert_runs_agree(mixer, *runs, torch.float32)


@pytest.mark.parametrize("name", ["matrix", "rotation", "lru", *(pytest.param(n, marks=pytest.mark.slow) for n in (
    "mamba1", "s4d_real", "s5", "momentum", "three_coupled", "coupled_matrices", "damped_rotation", "second_order"))])
def test_matrices_blocks_and_complex_values_interpreted(name):
    small(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba1", "three_coupled", "lru"])
def test_the_same_ragged(name):
    small(name, 20, cu_seqlens=torch.tensor([0, 0, 3, 20]), reverse=True)


def test_a_state_whose_dims_are_in_another_order_than_the_header():
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V]\nin g where g <= 0\nparam A[V, K]\nstate S[V, K] = A\n"
                       "S = exp(g) * S + k * v\nout o[V] = q @ S + A @ k\n}")
    x = draw(mixer.declared, B=1, T=18, H=2, sizes=dict(K=5, V=3), dtype=torch.float32)
    assert_runs_agree(mixer, *(run(mixer, x, backend=b) for b in ("triton", "reference")), torch.float32)


def test_scans_whose_factor_changes_nothing():
    mixer = mixc.loads("mixer m(D) {\nin x[D]\nstate m[D] = -inf, l[D] = -inf\nout p[D] = tanh(maximum(m, -5))\n"
                       "m = maximum(m, x)\nl = logaddexp(l, x)\nout o[D] = m + l\n}")
    assert set(mixer.form.values()) == {"scan"}
    x = draw(mixer.declared, B=2, T=35, H=1, sizes=dict(D=5), dtype=torch.float32)
    assert_runs_agree(mixer, *(run(mixer, x, backend=b) for b in ("triton", "reference")), torch.float32)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_gradient_to_a_factor_of_an_infinite_start(backend):
    """It is m times a cotangent of 0, which was NaN where m is still infinite."""
    mixer = mixc.loads("mixer m(D) {\nin x[D], d[D] where 0.1 <= d <= 1\nstate m[D] = inf\nm = minimum(d * m, x)\n"
                       "out o[D] = m\n}")
    x = draw(mixer.declared, B=2, T=5, H=1, sizes=dict(D=5), dtype=torch.float32)
    assert_runs_agree(mixer, *(run(mixer, x, backend=b) for b in (backend, "reference")), torch.float32)


def in_blocks(text, backward, **sizes):
    """Gradients of a spec whose dims are cut into blocks of 16; nothing that is not written is read."""
    mixer = mixc.loads(text)
    config = Config((("fwd", Tile(16)), ("bwd", backward)), segment=16)
    emitted = load_text(mixer.emit(config=config), mixer.__name__)
    x = draw(mixer.declared, B=1, T=18, H=1, sizes=sizes, dtype=torch.float32)
    found = []
    for call in (getattr(emitted, mixer.__name__), partial(mixer, backend="reference")):
        given = {n: y.clone().requires_grad_() for n, y in x.items()}
        with poisoned():
            out = call(**given)[0]
            found.append(torch.autograd.grad(out.square().sum(), list(given.values())))
    for name, got, want in zip(x, *found, strict=True):
        assert torch.linalg.vector_norm(got - want) < 1e-5 * torch.linalg.vector_norm(want), name


SHARED = """mixer shared(D, N) {
    in a[D] where a <= 0
    in b[N]
    in r
    param p[D], w
    state x[D, N]
    x = exp(a) * x + r * p * tanh(a * b)
    out y[D] = w * b @ x
}"""


def test_each_gradient_is_summed_over_the_blocks_of_the_dims_that_it_lacks():
    in_blocks(SHARED, Tile(16, (("D", 16), ("N", 16))), D=17, N=18)


def test_a_program_that_takes_several_blocks_in_turn_adds_up_what_they_have_in_common():
    in_blocks(SHARED, Tile(16, (("D", 16), ("N", 16)), turns=2, turned="D"), D=35, N=17)


def test_a_state_in_an_exponent_is_kept_in_full():
    """Half a percent of m, in bf16, would be as much of all that was written before."""
    text = mixc.load("mlstm_stabilised").emit()
    assert "m_starts = torch.empty(bound, H, dtype=torch.float32" in text
    assert "S_starts = torch.empty(bound, H, K, V, dtype=q.dtype" in text


@pytest.mark.parametrize("name", ["hgrn", pytest.param("mlstm_stabilised", marks=pytest.mark.slow)])
def test_compiled_for_sm_90_without_spills(name):
    assert compiled(name, "sm_90").count("spill=0,") == 2
