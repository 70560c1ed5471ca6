"""Matrix states that need each other come out in chunks: momentum, rotations, corrections that cross between states."""

import math

import pytest
import torch

import mixc
from tests.passes.test_affine_class import HEADER, assert_chunks_equal_tokens, assert_equal_runs, draw, run

TWO = HEADER.replace("state S[K, V]", """in dc where -1 <= dc <= 1
    in dd where -1 <= dd <= 1
    state S[K, V], M[K, V], N[K, V]""")
BODIES = {
    "momentum": """
    M = exp(g) * M - beta * k * (v - k @ S)
    S = d * S - 0.5 * M
    out o[V] = q @ S
    """,
    "rotation": """
    A = d * S - dc * M + k * v
    M = dc * S + dd * M
    S = A
    out o[V] = q @ S
    out r[V] = y @ M
    """,
    "reads_between": """
    out o[V] = q @ S
    S = exp(g) * S + dc * M
    M = d * M + beta * y * (v - k @ S)
    S = S + k * v
    out r[V] = y @ S
    out w2[V] = q @ (S + 0.3 * M)
    """,
    "crossed_corrections": """
    a = v - y @ M
    M = exp(g) * M - beta * k * (v - k @ S)
    S = exp(gk) * S + beta * y * a
    out o[V] = q @ S
    out r[V] = k @ M
    """,
    "crossed_corrections_of_v": """
    a = k - M @ x
    M = exp(g) * M - beta * (k - S @ x) * w
    S = exp(gv) * S + dc * a * w
    out o[V] = q @ S
    out r[V] = k @ M
    """,
    "rotation_corrected": """
    a = v - y @ M
    A = d * S - dc * M + k * v
    M = dc * S + dd * M + beta * k * a
    S = A
    out o[V] = q @ S
    out r[V] = y @ M
    """,
    "decays_along_k": """
    M = dk * M - beta * k * (v - k @ S)
    S = exp(gk) * S - 0.5 * M
    out o[V] = q @ S
    """,
    "decays_along_v": """
    M = dv * M - beta * k * (v - k @ S)
    S = exp(gv) * S - bv * M
    out o[V] = q @ S
    """,
    "whole": """
    M = d * M - beta * k * (v - k @ S)
    S = S - M
    out o[K, V] = S
    out r[K, V] = M
    """,
    "swap": """
    A = M
    M = d * S + beta * k * (v - y @ S)
    S = A
    out o[V] = q @ S
    """,
    "three": """
    N = exp(g) * N - beta * k * (v - k @ S)
    M = d * M + 0.5 * N
    S = dd * S + dc * M
    out o[V] = q @ S
    """,
    "three_in_a_ring": """
    A = d * S + 0.5 * M
    M = dd * M + dc * N + k * v
    N = 0.5 * N - 0.5 * S
    S = A
    out o[V] = q @ S + y @ N
    """,
    "mean_of_a_memory": """
    M = d * M + beta * k * (v - k @ M)
    S = exp(g) * S + (1 - exp(g)) * M
    out o[V] = q @ S
    """,
    "nothing_of_its_own": """
    S = M + k * v
    M = exp(g) * M + beta * y * (v - k @ S)
    out o[V] = q @ S
    """,
    "fed_by_two": """
    M = d * M + 0.5 * beta * y * (y @ M)
    N = exp(g) * N + beta * k * (v - k @ M)
    S = dd * S + 0.3 * M + 0.3 * N
    out o[V] = q @ S
    """,
    "reset_in_between": """
    M = where(beta < 0.4, 0, exp(g) * M) - beta * k * (v - k @ S)
    S = where(beta < 0.2, 0, d * S) - M
    out o[V] = q @ S
    """,
}


def load(name):
    header = TWO if "N" in BODIES[name] else TWO.replace(", N[K, V]", "")
    return mixc.loads(header.format(normaliser="", body=BODIES[name]))


@pytest.mark.parametrize("name", BODIES)
def test_chunks_equal_tokens(name):
    mixer = load(name)
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    assert all("affine in each other" in why for why in mixer.why.values())
    assert_chunks_equal_tokens(mixer)


@pytest.mark.parametrize("gates", ["forget", "near one", "signs and zeros"])
@pytest.mark.parametrize("name", ["momentum", "rotation", "three"])
def test_decays_at_their_ends_in_fp32(name, gates):
    """Against the step in fp64 on the same numbers: no decay is divided by, whatever it is."""
    mixer = load(name)
    tensors, states = draw(mixer, 2, 150, 1, dict(K=8, V=8))
    decays, n = [x for x in ("d", "dd", "dc") if x in tensors], tensors["g"].numel()
    if gates == "forget":
        tensors["g"].view(-1)[torch.randperm(n)[:n // 3]] = -100.0
        tensors["g"].view(-1)[::37] = -math.inf
    elif gates == "near one":
        tensors["g"] *= 1e-4
        tensors["d"] = 1 - 1e-4 * tensors["d"].abs()
        if name == "rotation":  # turns by angles, its norm kept
            tensors["dc"] = (1 - tensors["d"] ** 2).sqrt()
            tensors["dd"] = tensors["d"]
    for x in decays if gates == "signs and zeros" else ():
        tensors[x].view(-1)[torch.randperm(n)[:n // 5]] = 0.0
        tensors[x].view(-1)[torch.randperm(n)[:n // 5]] = -1.0
    tensors, states = ({k: x.float() for k, x in t.items()} for t in (tensors, states))
    want = run(mixer, *({k: x.double() for k, x in t.items()} for t in (tensors, states)), "reference")
    got = run(mixer, tensors, states, "torch")
    assert_equal_runs(got, want, torch.float32)


REFUSED = {
    "along both": ("M = exp(gk) * M + k * v\n S = exp(gv) * S - beta * k * (k @ M) + 0.5 * M\n M = M - 0.5 * S",
                   "decays along K and V"),
    "tanh": ("M = exp(g) * M - k * tanh(k @ S)\n S = S + M", "not affine in S and M: `tanh(k @ S)`"),
    "both sides": ("M = exp(g) * M - beta * k * (v - k @ S)\n S = S + M + x * (y - S @ x)",
                   "S and M are corrected along both sides"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_of_the_class_is_refused_with_the_term(name):
    body, why = REFUSED[name]
    mixer = mixc.loads(TWO.replace(", N[K, V]", "").format(normaliser="", body=body + "\n out o[V] = q @ S"))
    assert set(mixer.form.values()) == {"sequential"}
    assert why in mixer.why["S"]


def test_states_of_different_dims_are_refused_with_the_term():
    """Two projections that are to agree, none of which has all dims of the other."""
    mixer = mixc.loads("mixer agree(K, V, M) {\nin q[K], k[K] where norm[K](k) <= 1, v[V] where norm[V](v) <= 1\n"
                       "state A[K, M], B[V, M]\ne = k @ A - v @ B\nA = A - 0.5 * k * e\n"
                       "B = B + 0.5 * v * e\nout o[M] = q @ A\n}")
    assert "A [K, M] and B [V, M] are coupled and differ in their dims: `v @ B` (line 4)" in mixer.why["A"]
