"""A state that lacks a dim of the matrix that it needs, a bias beside a learned matrix: it is read without a query and
written without a key."""

import pytest
import torch

import mixc
from mixc.codegen.triton_program import kernels
from mixc.ir.node import COL, ROW, postorder
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from tests import cells
from tests.passes.test_affine_class import HEADER, assert_chunks_equal_tokens

BODIES = {
    "bias_of_a_learner": """
    loss = 0.5 * sum(square(k @ S + m - v))
    e = grad[S](loss)
    m = m - beta * grad[m](loss)
    S = S - beta * e
    out o[V] = q @ S + m
    """,
    "bias_first": """
    m = m - beta * grad[m](0.5 * sum(square(k @ S + m - v)))
    S = S - beta * grad[S](0.5 * sum(square(k @ S + m - v)))
    out o[V] = q @ S + m
    """,
    "forgets": """
    u = k @ S + m - v
    S = exp(g) * S - beta * k * u
    m = sigmoid(g) * m - 0.3 * u
    out o[V] = q @ S
    out r[V] = m
    """,
    "rates_by_column": """
    u = k @ S + bv * m - v
    S = exp(gv) * S - beta * k * u
    m = exp(gv) * m - beta * bv * u
    out o[V] = q @ S + m
    """,
    "decays_along_k": """
    out r[V] = m
    u = v - k @ S - m
    S = exp(gk) * S + beta * k * u
    m = 0.9 * m + 0.1 * u
    out o[V] = q @ S
    """,
    "mean_of_errors": """
    S = exp(g) * S + beta * k * (v - k @ S - m)
    m = 0.9 * m + 0.1 * (v - k @ S)
    out o[V] = q @ S
    """,
    "read_by_columns": """
    m = m + 0.2 * x * (v - k @ S) - 0.1 * v
    S = exp(g) * S + beta * k * (v - k @ S - m)
    out o[V] = q @ S
    out r = sum(x * m)
    """,
    "of_keys": """
    u = S @ x + n - k
    S = exp(gv) * S - beta * u * x
    n = d * n - beta * u
    out o[V] = q @ S
    out r[K] = n
    """,
    "momentum": """
    loss = 0.5 * sum(square(k @ S + m - v))
    M = 0.5 * M - beta * grad[S](loss)
    c = 0.5 * c - beta * grad[m](loss)
    S = exp(g) * S + M
    m = exp(g) * m + c
    out o[V] = q @ S + m
    """,
    "written_without_a_key": """
    S = exp(g) * S + beta * k * (v - k @ S)+ 0.1 * m
    m = 0.5 * m + 0.1 * (v - k @ S)
    out o[V] = q @ S
    """,
    "two_units": """
    u = k @ S + m - v
    S = exp(g) * S - beta * k * u
    m = m - 0.1 * u
    z = y @ S + m - v
    S = S - beta * y * z
    m = m - 0.2 * z
    out o[V] = q @ S + m
    """,
}
STATES = {"of_keys": "S[K, V], n[K]", "momentum": "S[K, V], m[V], M[K, V], c[V]"}


def agrees(mixer, backend="triton", by_token=False, **cell) -> None:
    cell = dict(length=40, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True) | cell
    assert bool(getattr(kernels(mixer.declared), "instead", "")) is by_token
    bad = [str(f) for f in cells.compare(mixer, cell, backend) if not f.ok]
    assert not bad, "; ".join(bad)


def load(name: str) -> mixc.Mixer:
    header = HEADER.replace("state S[K, V]", f"state {STATES.get(name, 'S[K, V], m[V]')}")
    return mixc.loads(header.format(normaliser="", body=BODIES[name]))


@pytest.mark.parametrize("name", BODIES)
def test_chunks_equal_tokens(name):
    mixer = load(name)
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    assert_chunks_equal_tokens(mixer)


def test_the_value_that_corrects_both_is_solved_for_once():
    """And read at once: what the keys of two rows have in common is k . k' + 1."""
    program = chunk(classify(load("bias_of_a_learner").declared))
    nodes = list(postorder(program.values()))
    solve, = (n for n in nodes if n.op == "solve")
    assert not {*solve.args[0].dims} - {ROW, COL}
    pairs = [n for n in nodes if n.op == "contract" and COL in {d for a in n.args for d in a.dims} - {*n.dims}]
    assert len(pairs) == 1  # of o


@pytest.mark.parametrize("cell", [
    dict(length=(0, 0, 3, 3, 37)), dict(rows="mask, reverse"), dict(rows="step", length=6), dict(dtype=torch.bfloat16)],
    ids=cells.label)
@pytest.mark.parametrize("name", ["bias_of_a_learner", "forgets", "of_keys"])
def test_kernels_at_every_call(name, cell):
    agrees(load(name), **cell)


FEW = ("bias_of_a_learner", "rates_by_column", "momentum", "written_without_a_key")  # beside those of every call


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FEW)) for n in BODIES])
def test_kernels(name):
    """Systems for every column run token by token there."""
    agrees(load(name), size=16, by_token=name in ("rates_by_column", "read_by_columns"))


def test_a_vector_with_a_number_beside_it():
    """Linear regression with an intercept: a system of the scalars k . k' + 1."""
    mixer = mixc.loads("mixer m(K) {\nin q[K], k[K] where norm[K](k) <= 1, y, b where 0 <= b <= 1, g where g <= 0\n"
                       "state n[K], c\ne = k @ n + c - y\nn = exp(g) * n - b * k * e\nc = exp(g) * c - b * e\n"
                       "out o = q @ n + c\n}")
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    agrees(mixer)
    agrees(mixer, backend="torch")


def test_memories_beside_each_other_with_a_bias_each():
    mixer = mixc.loads("mixer m(N, K, V) {\nin q[N, K], k[N, K], v[N, V]\nin b[N] where 0 <= b <= 0.1\n"
                       "state S[N, K, V], m[N, V]\nu = sum[K](k * S) + m - v\nS = S - b * k * u\nm = m - b * u\n"
                       "out o[N, V] = sum[K](q * S) + m\n}")
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    agrees(mixer)
    agrees(mixer, backend="torch")
