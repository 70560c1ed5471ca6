"""Complex values as two real ones: the same meaning, the same gradients, and a scan where there was none."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.triton_program import kernels
from mixc.ir.node import postorder
from mixc.passes.chunk import chunk
from mixc.passes.planes import is_complex, planes
from tests import cells
from tests.agree import assert_agree, assert_runs_agree, draw, run
from tests.scans import body

COMPLEX = {
    "products": "in u[D] complex\nin a[D] complex\nstate h[D]\nh = a * h + u\n"
                "out o[D] = h\nout p[D] = real(conj(h) * u)",
    "real_decay": "in u[D] complex\nin f[D]\nstate h[D]\nh = sigmoid(f) * h + u\nout o[D] = h",
    "quotient": "in u[D] complex\nparam w[D]\nstate h[D]\n"
                "h = u / (2 + 1j * w) + exp(1j * w - 1) * h\nout o[D] = imag(h)",
    "reset": "in u[D] complex\nin r\nparam w[D]\nstate h[D]\n"
             "h = where(r > 0.5, u, exp(1j * w) * h)\nout o[D] = square(h)",
}


def check(mixer, T, **options):
    x = draw(mixer.declared, B=1, T=T, H=2, dtype=torch.float64, seed=T)
    assert_runs_agree(mixer, run(mixer, x, backend="torch", **options), run(mixer, x, **options), torch.float64)


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("T", [1, 17, 70])
def test_runs_as_a_scan(name, T):
    mixer = body(COMPLEX[name], name)
    assert set(mixer.form.values()) == {"scan"} and "planes" in mixer.why["h"]
    check(mixer, T)


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_examples(name):
    mixer = mixc.load(name)
    assert mixer.form == {"x": "scan"}
    check(mixer, 70)
    check(mixer, 40, cu_seqlens=torch.tensor([0, 0, 7, 40]), reverse=True)


def test_prefill_then_step():
    mixer = mixc.load("lru")
    x = draw(mixer.declared, B=2, T=9, H=1, dtype=torch.float64)
    whole, end = mixer(**x, output_final_state=True, backend="torch")
    params = {d.name: x[d.name] for d in mixer.declared.params}
    _, state = mixer(u=x["u"][:, :8], **params, output_final_state=True, backend="torch")
    o, state = mixer.step(state, u=x["u"][:, 8], **params)
    assert_agree(o, whole[:, 8], torch.float64)
    assert_agree(state["x"], end["x"], torch.float64)


def test_no_complex_value_is_left():
    for text in COMPLEX.values():
        step = body(text).declared
        made = planes(step)
        assert is_complex(step) and made is not None and not is_complex(made)


def test_what_has_no_planes_stays_sequential():
    mixer = body("in u[D] complex\nstate h[D]\nh = 0.5 * h + sqrt(u)\nout o[D] = h")
    assert planes(mixer.declared) is None and set(mixer.form.values()) == {"sequential"}


CELLS = {
    "vector": "in u[D] complex\nstate h[D]\nh = tanh(h) + u\nout o[D] = h",
    "powers": "in u[D] complex\nstate h[D]\nh = 0.1 * silu(h) ** 3 + u ** -2 * u ** 3\nout o[D] = h",
    "matrix": "in u[D] complex\nin k[N]\nstate h[D, N]\nh = h * sigmoid(h) / (1 + norm(h)) + u * k\nout o[D] = h @ k",
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.filterwarnings("ignore:.*MX301")
def test_cells(name):
    mixer = body(CELLS[name], name)
    assert set(mixer.form.values()) == {"sequential"}
    x = draw(mixer.declared, B=1, T=6, H=2, dtype=torch.float32, seed=0)
    want = run(mixer, x)
    for backend in ("torch", "triton"):
        assert_runs_agree(mixer, run(mixer, x, backend=backend), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_complex_outs_of_half_inputs(backend, dtype):
    """complex64: their planes came in bf16, which torch makes no complex value of."""
    mixer = body("in q[K], k[K], v[V]\nparam th[K]\nstate S[K, V]\nS = exp(1j * th) * S + k * v\nout o[V] = q @ S")
    x = draw(mixer.declared, B=1, T=17, dtype=dtype)
    want, got = run(mixer, x), run(mixer, x, backend=backend)
    assert got.outs["o"].dtype == torch.complex64
    assert_runs_agree(mixer, got, want, dtype)


MATRIX = """in q[K] complex, k[K] complex, v[V] complex, u[V], th[K], t1, tv[V]
in y[K] where norm[K](y) <= 1
in a[K] where a <= 0
in g where g <= 0
in beta where 0 <= beta <= 1
in d where -1 <= d <= 1
param w[K]
state S[K, V]
"""
TURNED = {
    "decay_and_phase": "S = exp(a + 1j * th) * S + k * v\nout o[V] = real(q @ S)",
    "read_before": "out o[V] = q @ S\nS = exp(a) * exp(1j * w) * S + k * u",
    "scalar": "S = exp(g + 1j * t1) * S + y * u\nout o[V] = abs(conj(q) @ S)",
    "phases_of_v": "S = -exp(1j * tv) * S + y * u\nout o[V] = q @ S",
    "both_sides": "S = exp(g + 1j * tv) * exp(a + 1j * th) * S + y * u\nout o[V] = q @ S",
    "signed": "S = d * exp(1j * th) * S + k * v\nout o[V] = imag(q @ S)",
    "reset": "S = where(beta < 0.3, 0, conj(exp(a + 1j * th))) * S + k * v\nout o[V] = real(q @ S)",
    "delta": "S = exp(a + 1j * th) * S\nS = S + beta * y * (v - y @ S)\nout o[V] = real(q @ S)",
    "complex_keys": "S = exp(g + 1j * t1) * S\nS = S + 0.3 * beta * conj(k) * (v - k @ S)\nout o[V] = real(q @ S)",
    "whole": "S = exp(g + 1j * t1) * S + y * u\nout o[K, V] = S",
    "modulus_of_all": "S = exp(g + 1j * g * th) * S + k * u\nout o[V] = real(q @ S)",
    "phase_of_all": "S = exp(a + 1j * t1) * S + k * u\nout o[V] = real(q @ S)",
}


@pytest.mark.parametrize("name", TURNED)
def test_turned_matrix_states_in_chunks(name):
    mixer = body(MATRIX + TURNED[name], name)
    assert mixer.form == {"S": "chunk"} and "its phase turning what is read and written" in mixer.why["S"]
    check(mixer, 37)
    check(mixer, 30, cu_seqlens=torch.tensor([0, 0, 7, 30]))


@pytest.mark.parametrize("name", ["decay_and_phase", "complex_keys", "modulus_of_all"])
def test_turned_matrix_states_in_kernels(name):
    mixer = body(MATRIX + TURNED[name], name)
    x = draw(mixer.declared, B=1, T=37, H=2, dtype=torch.float32, seed=1)
    assert_runs_agree(mixer, run(mixer, x, backend="triton"), run(mixer, {n: t.double() if not t.is_complex() else t.to(
        torch.complex128) for n, t in x.items()}), torch.float32)


def test_a_modulus_that_lacks_the_dim_of_the_phase():
    """It was taken to differ along it: products of vectors in torch, and kernels that ran token by token."""
    mixer = body(MATRIX + TURNED["modulus_of_all"])
    assert not kernels(mixer.declared).by_rule
    assert not any(n.op == "span_contract" for n in postorder(chunk(mixer._staged).values()))


NUMBERS = {
    "vector": "S = z * S + k * v\nout o[V] = real(q @ S)",
    "scalar": "out o[V] = q @ S\nS = conj(z0) * S + y * u",
    "both_sides": "S = d * z * zv * S + y * u\nout o[V] = q @ S",
    "learned": "S = p * z * S + y * u\nout o[V] = q @ S",
    "delta": "S = z * S\nS = S + beta * y * (v - y @ S)\nout o[V] = real(q @ S)",
    "where": "S = where(beta < 0.3, 0, z * exp(1j * th)) * S + k * v\nout o[V] = real(q @ S)",
}
NUMBER = MATRIX.replace("param w[K]", "in z[K] complex where abs(z) <= 1\nin zv[V] complex\nin z0 complex\n"
                        "param w[K], p[K] complex")


def with_zeros(x):
    """Numbers from {0, 1e-6, and what they were}."""
    for name in ("z", "zv", "z0"):
        which = torch.rand(x[name].shape, generator=torch.Generator().manual_seed(1))
        x[name] = torch.where(which < 0.2, 0.0, torch.where(which < 0.4, 1e-6 * x[name], x[name]))
    return x


@pytest.mark.parametrize("name,backend", [
    pytest.param(n, b, marks=[pytest.mark.slow] * (b == "triton" and i % 2 == 1))
    for i, n in enumerate(NUMBERS) for b in ("torch", "triton")])
def test_numbers_that_turn_are_never_divided_by(name, backend):
    """Gradients to them are those of their directions, and along and across these exact."""
    mixer = body(NUMBER + NUMBERS[name], name if name != "where" else "chosen")
    assert mixer.form == {"S": "chunk"} and "its phase turning what is read and written" in mixer.why["S"]
    x = with_zeros(draw(mixer.declared, B=1, T=37, H=2, dtype=torch.float32, seed=1))
    wide = {n: t.to(torch.complex128) if t.is_complex() else t.double() for n, t in x.items()}
    assert_runs_agree(mixer, run(mixer, x, backend=backend), run(mixer, wide), torch.float32)


@pytest.mark.parametrize("scale,bias", [(1, 0), (1, 3), (0, 3.14), (30, 0)])
def test_long_sums_of_phases_lose_no_digits(scale, bias):
    mixer = body(MATRIX + TURNED["decay_and_phase"])
    x = draw(mixer.declared, B=1, T=200, H=1, dtype=torch.float32, seed=1)
    x["th"], x["a"] = torch.randn_like(x["th"]) * scale + bias, x["a"] * 0.02
    assert_runs_agree(mixer, run(mixer, x, backend="torch"), run(mixer, {
        n: t.to(torch.complex128) if t.is_complex() else t.double() for n, t in x.items()}), torch.float32)


@pytest.mark.parametrize("declared", ["in z", "param z"])
def test_what_turns_the_whole_state_turns_pairs_of_rows(declared):
    """What a token reads and writes turned alike, and its gradient by both: they left their rounding, 0.15 of dz."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V]\nin g where g <= 0\n" + declared + "\nstate S[K, V]\n"
                       "S = exp(1j * z + g) * S + k * v\nout o[V] = real(q @ S)\n}")
    cell = dict(length=100, size=20, heads="1", gates=10.0, dtype=torch.bfloat16, rows="plain", start=True)
    found = [f for seed in range(2) for f in cells.compare(mixer, cell, "triton", seed)]
    assert all(f.ok for f in found), "; ".join(str(f) for f in found if not f.ok)


def test_what_has_no_planes_runs_on_torch():
    mixer = body("in u[D] complex\nstate h[D]\nh = 0.5 * h + tanh(u)\nout o[D] = h")
    check(mixer, 9)


@pytest.mark.parametrize("update, term", [
    ("a * h / (1 + abs(h)) + x", "`abs(h)`"), ("a * h * h + x", "`a * h * h`"), ("a * tanh(h) + x", "`tanh(h)`"),
    ("R @ h[E] + x", "`R @ h[E]`")])
def test_the_term_that_makes_a_complex_state_sequential_is_told(update, term):
    """It said `h is complex`, which scans and chunks are too."""
    m = mixc.loads("mixer m(D, E = D) {\nin x[D], a[D] complex\nparam R[D, E] complex\nstate h[D]\n"
                   f"h = {update}\nout y[D] = real(h)\n}}")
    assert m.why["h"].startswith(f"the update of h is not affine in it: {term} (line 5)")
