"""Reads of sums of states, and by queries that are themselves read: no matrix of a token is ever formed."""

import pytest
import torch

import mixc
from mixc.codegen.module import Module
from mixc.codegen.triton_program import kernels
from mixc.ir.node import ROW, postorder
from mixc.passes.chunk import chunk
from tests.agree import assert_runs_agree, draw, run

HEADER = """mixer m(K, V) {{
    in q[K], v[V], u[V], w[V], m
    in k[K] where norm[K](k) <= 1
    in g where g <= 0
    in h[K] where h <= 0
    in b where 0 <= b <= 1
    state S[K, V], R[K, V], n[K]
    S = exp(g) * S + k * v
    n = exp(g) * n + k
    {}
}}
"""
PLAIN = "R = exp(h) * R + k * u\n    out o[V] = "
BODIES = {
    "sum": PLAIN + "q @ (S + R)",
    "difference": PLAIN + "q @ (m * S - R / (1 + m ** 2))",
    "columns": PLAIN + "q @ (S - sigmoid(w) * R)",
    "negative": PLAIN + "q @ -(S + R)",
    "with a write": PLAIN + "q @ (k * u + S + R)",
    "summed": PLAIN + "sum[K](q * (S + R))",
    "with a vector": PLAIN + "sum[K](S + n) + q @ R",
    "chosen": PLAIN + "q @ where(m > 0, S, R)",
    "an outer product of what is read": PLAIN + "q @ (k * (u - q @ R)) + q @ S",
    "of writes that read another state":
        "R = exp(h) * R\n    R = R + b * k * ((u - sum(n) * w) - k @ R)\n    out o[V] = q @ R + q @ S",
    "both sides": PLAIN + "u * (q @ (S + R) @ w)",
    "corrected by it": "R = exp(h) * R\n    R = R + b * k * (u - k @ (S + R))\n    out o[V] = q @ (S + R)",
    "corrected by another": "R = exp(h) * R + k * (q @ (S + sigmoid(m) * S))\n    out o[V] = q @ (S + R)",
}


def load(body):
    return mixc.loads(HEADER.format(body))


def sizes(mixer):
    return {d.name: {"K": 3, "V": 4}.get(d.alias or d.name, 3) for d in mixer.declared.dims}


def assert_equals_the_step(mixer, backends=("torch", "triton"), T=37):
    for backend in backends:
        dtype = torch.float32 if backend == "triton" else torch.float64
        tensors = draw(mixer.declared, B=2, T=T, H=1, sizes=sizes(mixer), dtype=dtype, seed=1)
        want = run(mixer, tensors, wide=True)
        assert_runs_agree(mixer, run(mixer, tensors, backend=backend), want, dtype)


def has_matrix_a_token(mixer):
    values = chunk(mixer._staged).values()
    return any(ROW in n.dims and {"K", "V"} <= {*n.dims} and n.op != "scan" for n in postorder(values))


@pytest.mark.parametrize("name", BODIES)
def test_a_read_of_a_sum_is_a_sum_of_reads(name):
    mixer = load(BODIES[name])
    assert set(mixer.form.values()) == {"chunk"}
    assert not has_matrix_a_token(mixer)
    assert type(kernels(mixer.declared)) is Module
    assert_equals_the_step(mixer, ("torch",))


def test_what_corrects_by_a_vector_beside_it_is_read_whole():
    """q @ (b * k * (v - m - k @ S)) stood alone, as a matrix of every token: m was taken for what is read there."""
    mixer = mixc.loads("mixer m(K, V) {\n in q[K], v[V]\n in k[K] where norm[K](k) <= 1\n in b where 0 <= b <= 1\n"
                       " in g where g <= 0\n state m[V], S[K, V]\n m = 0.9 * m + 0.1 * v\n S = exp(g) * S\n"
                       " S = S + b * k * ((v - m) - k @ S)\n out o[V] = q @ S + m\n}")
    assert not has_matrix_a_token(mixer)
    assert_equals_the_step(mixer)


def test_kernels_of_a_sum_that_corrects():
    assert_equals_the_step(load(BODIES["corrected by it"]))


HOPS = {
    "two hops": "y = q @ S\n    out o[E] = y[K] @ S",
    "back": "y = q @ S\n    out o[K] = S @ y",
    "normalised": "y = k @ S\n    out o[E] = (y / (1 + norm[E](y)))[K] @ S",
    "three hops": "y = q @ S\n    z = tanh(y)[K] @ S\n    out o[K] = S @ z",
}


@pytest.mark.parametrize("name", HOPS)
def test_a_query_may_be_what_was_read(name):
    mixer = mixc.loads("mixer m(K, E = K) {\n in q[K], v[K]\n in k[K] where norm[K](k) <= 1\n in b where 0 <= b <= 1\n"
                       f" state S[K, E]\n S = S + b * k * (v[E] - k @ S)\n {HOPS[name]}\n}}")
    assert type(kernels(mixer.declared)) is Module
    assert_equals_the_step(mixer, ("torch", "triton") if name == "two hops" else ("torch",))


PLANES = ["q @ real(Z)", "sum[K](imag(Z) * q)", "q @ (real(Z) - m * imag(Z))", "q @ conj(Z)"]


@pytest.mark.parametrize("out", PLANES)
def test_what_is_read_of_a_plane_is_the_plane_of_what_is_read(out):
    """So that the phase of a decay goes with what is read, and no plane drives another."""
    mixer = mixc.loads("mixer m(K, V) {\n in q[K], k[K], v[V], m, w[K], g[K] where g <= 0\n state Z[K, V]\n"
                       f" Z = exp(g + 1j * w) * Z + k * v\n out o[V] = real({out})\n}}")
    assert mixer.why["Z"].startswith("affine in itself")
    assert not any(n.op == "scan_block" for n in postorder(chunk(mixer._staged).values()))
    assert_equals_the_step(mixer, ("torch", "triton") if out == PLANES[0] else ("torch",))


NAMED = {
    "transposed": "out o[K] = A[J, K] @ q[J]",
    "beside itself": "out o[K] = (A + A[J, K]) @ q[J]",
    "summed": "out o[J] = sum[K](0.5 * k[J] * A[J, K] * q) + mean[K](A[J, K])",
    "another name": "out o[L] = A[K, L] @ q\n out p[K] = A[L, K] @ q[L]\n out r[K] = A[K, L] @ q[L]",
    "a query that was read": "y = A[J, K] @ q[J]\n out o[J] = tanh(y) @ A",
    "a plane": "out o[K] = real(Z[J, K]) @ q[J] + imag(Z @ q[J])",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_read_under_other_names(name):
    """All of the state was formed for every token, and kernels ran token by token."""
    mixer = mixc.loads("mixer m(K, J = K, L = K) {\n in q[K], k[K], v[K], g where g <= 0, th\n"
                       f" state A[K, J]{', Z[K, J]' * ('Z' in NAMED[name])}\n A = exp(g) * A + k * v[J]\n"
                       f" {'Z = exp(1j * th) * Z + k * v[J]' if 'Z' in NAMED[name] else ''}\n {NAMED[name]}\n}}")
    values = chunk(mixer._staged).values()
    assert not any(ROW in n.dims and {"K", "J"} <= {*n.dims} and n.op != "mul" for n in postorder(values))
    assert type(kernels(mixer.declared)) is Module
    assert_equals_the_step(mixer, ("torch", "triton") if name == "another name" else ("torch",))


@pytest.mark.parametrize("states", ["S[K, V], z[K]", "z[K], S[K, V]"])
def test_of_two_states_that_are_multiplied_the_larger_one_is_read(states):
    """The one declared last was: all of the matrix was formed for every token, and kernels ran token by token."""
    mixer = mixc.loads("mixer m(K, V) {\n in q[K], k[K], v[V], g where g <= 0\n"
                       f" state {states}\n S = exp(g) * S + k * v\n z = 0.9 * z + k\n out o[V] = q @ S + z @ S\n}}")
    assert not has_matrix_a_token(mixer)
    assert type(kernels(mixer.declared)) is Module
    assert_equals_the_step(mixer, ("torch", "triton") if states[0] == "S" else ("torch",))


ALONG = ["out o[V] = sum[K](0.5 * u * q * S)", "out o[K] = sum[V](q * S * u)",
         "S = S + b * k * (v - sum[K](sigmoid(u) * k * S))\n    out o[V] = q @ S"]


@pytest.mark.parametrize("body", ALONG)
def test_a_factor_along_what_is_not_summed_is_in_no_product(body):
    """It was in those of all pairs of rows, each entry with one of its own, for which kernels have no room."""
    mixer = load("R = exp(h) * R + k * u\n    " + body)
    assert type(kernels(mixer.declared)) is Module
    assert_equals_the_step(mixer, ("torch", "triton") if body == ALONG[0] else ("torch",))
