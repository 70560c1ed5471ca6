"""Kernels of states of three dims: a program has one of the matrices beside each other; interpreted, against fp64."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.autotune.tuner import schedule_of
from mixc.codegen import triton_program
from mixc.codegen.config import Config, Tile
from mixc.codegen.triton_program import kernels
from mixc.ir.node import ROW, make
from mixc.passes.beside import one_of
from mixc.targets import find
from tests import cells
from tests.passes.test_beside import CHUNKS, loaded
from tests.passes.test_joint import TOGETHER, spec

ONE_EACH = ("one decay", "a decay of each", "a decay that is a number", "nothing that differs",
            "a decay of each key", "decays along two dims",
            "a decay of each value", "read before the update", "read along the values", "a correction of each",
            "a correction of all by one key", "a correction under a decay of each key", "momentum", "ranks")


def agrees(mixer: mixc.Mixer, tiles: Config | None = None, **cell) -> None:
    cell = dict(length=40, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True) | cell
    assert kernels(mixer.declared).each == ("N",)
    with patch.object(triton_program, "_config", (lambda *_: tiles) if tiles else triton_program._config):
        bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("what", ONE_EACH)
def test_a_program_has_one_of_the_matrices(what):
    agrees(loaded(CHUNKS[what]))


@pytest.mark.parametrize("cell", [
    dict(length=(0, 0, 3, 3, 37)), dict(rows="mask, reverse"), dict(heads="2/1", size=4), dict(rows="step", length=6),
    dict(dtype=torch.bfloat16), dict(dtype=torch.float16, length=17)], ids=cells.label)
def test_calls(cell):
    agrees(loaded(CHUNKS["one decay"], "K, V, N"), **cell)  # u lacks N: its gradient comes in parts


@pytest.mark.parametrize("launches", [("fwd", "bwd"), ("fwd_states", "fwd_outs", "bwd_states", "bwd_grads")])
def test_blocks_and_segments(launches):
    tiles = Config(tuple((n, Tile(16, (("V", 16),))) for n in launches), 32)
    agrees(loaded(CHUNKS["a correction of each"]), tiles, size=20, length=50)


def test_params_that_each_has():
    agrees(mixc.loads("mixer m(N, K, V) {\nin q[K], k[K], v[V]\nparam a[N] where 0 <= a <= 1, A[N, K], c[K], d[V]\n"
                      "state S[N, K, V] = A * d\nS = a * S + A * k * v\nout o[N, V] = sum[K](c * q * A * S)\n}"))


AROUND = {
    "weights of params": "param w[N]\nstate S[N, K, V]\nS = exp(g) * S + k * v\ny = q @ S\n"
                         "out o[V] = sum[N](softmax[N](w) * y * rsqrt(mean[V](square(y)) + 0.1))",
    "one dim that nothing sums over": "state S[N, K, J]\nS = exp(g) * S + k * k[J]\nout o[N, J] = q @ S",
}


@pytest.mark.parametrize("what", AROUND)
def test_programs_of_each_where_nothing_that_they_form_needs_another(what):
    """They ran token by token."""
    agrees(mixc.loads("mixer m(N, K, V, J = K) {\nin q[K], k[K], v[V], g[N] where g <= 0\n" + AROUND[what] + "\n}"))


def test_what_is_summed_over_them_runs_token_by_token():
    """k[N, K] * v[N, V] is no product of one factor of N, K and one of V."""
    made = kernels(loaded("S = exp(gn) * S + k * v\nout o[V] = q @ S").declared)
    assert made.instead == "every entry of N, K, V at every row"


BASED = """mixer based(K, V, E = K) {
    in    q[K], k[K], v[V]
    state S[K, E, V], z[K, E]
    S += k * k[E] * v
    z += k * k[E]
    out o[V] = ((q * q[E]) @ S) / (1 + (q * q[E]) @ z)
}"""


BEGUN = """mixer begun(N, K, V) {
    in    q[K], k[K], v[V], w[N], g[N] where g <= 0
    param S0[N, K, V], a[N]
    state S[N, K, V] = a * S0
    S = exp(g) * S + w * k * v
    out o[V] = w @ (q @ S)
}"""


@pytest.mark.parametrize("mixer", [
    *(pytest.param(spec(body), id=what) for what, body in TOGETHER.items() if "correct" not in what),
    pytest.param(mixc.loads(BASED), id="one size"), pytest.param(mixc.loads(BEGUN), id="a start that is learned")])
def test_two_dims_in_one(mixer):
    """Memories that are read as one, features of a product: a matrix whose keys have both dims."""
    made = kernels(mixer.declared)
    assert made.p.together and made.kernel("fwd").launch.split == ("V",)
    bad = [str(f) for f in cells.compare(mixer, dict(length=(0, 0, 19, 22), size=5, heads="2/1", gates=0.1, start=True,
                                                     dtype=torch.float32, rows="plain"), "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("launches", [("fwd", "bwd"), ("fwd_states", "fwd_outs", "bwd_states", "bwd_grads")])
def test_blocks_and_segments_of_two_dims_in_one(launches):
    mixer, tiles = spec(TOGETHER["a decay of each"]), Config(tuple((n, Tile(16, (("V", 16),))) for n in launches), 32)
    with patch.object(triton_program, "_config", lambda *_: tiles):
        for dtype, rows, size in ((torch.float32, "plain", 20), (torch.bfloat16, "reverse", 4)):
            cell = dict(length=40, heads="1", gates=0.1, start=True, dtype=dtype, rows=rows, size=size)
            bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
            assert not bad, "; ".join(bad)


@pytest.mark.parametrize("body", [
    "S = 0.9 * S + k * v\nout o[V] = sum[N](q @ S)", "S = 0.9 * S + index[N] * k * v\nout o[V] = sum[N](q @ S)",
    "S = 0.9 * S + (r + 1) * k * v\nout o[V] = (r + 1) @ (q @ S)"])
def test_what_is_not_0_behind_the_end_of_two_dims_in_one(body):
    """All of a block of 16 memories were written and read, where there are 3: nothing masked the pair of dims."""
    mixer = mixc.loads(f"mixer m(N, K, V) {{\nin q[K], k[K], v[V], r[N]\nstate S[N, K, V]\n{body}\n}}")
    assert kernels(mixer.declared).p.together
    cell = dict(length=20, size=3, heads="1", gates=1.0, dtype=torch.float32, rows="plain", start=True)
    assert not [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]


def test_a_leaf():
    x = make("in", name="x", dims=(ROW, "N", "K"), kind="real")
    assert one_of(x, ("N",)).dims == (ROW, "K") and one_of(x, ("N",)).attr("of") == (ROW, "N", "K")
    assert one_of(x, ("M",)) is x


def test_the_model_of_programs_beside_each_other_is_that_of_more_heads():
    def seconds(text: str, **sizes: int) -> list[float]:
        step = mixc.loads(text).declared
        _, chosen = schedule_of(step, find("h100"), dict(B=8, T=4096, K=64, V=64, **sizes), "bf16").default()
        return [chosen[n].seconds for n in ("fwd", "bwd")]
    body = "S = exp(g) * S + k * v\nout o{0} = sum[K](q * S)\n}}"
    beside = seconds("mixer m(N, K, V) {\nin q[N, K], k[N, K], v[N, V], g[N] where g <= 0\nstate S[N, K, V]\n"
                     + body.format("[N, V]"), H=16, N=4)
    heads = seconds("mixer m(K, V) {\nin q[K], k[K], v[V], g where g <= 0\nstate S[K, V]\n" + body.format("[V]"), H=64)
    assert beside == pytest.approx(heads, rel=0.05)
