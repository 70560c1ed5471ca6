"""Kernels of tokens with more rows: tiles [C * BR, BK] of values [R, K], interpreted, against the step in fp64."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.autotune.tuner import schedule_of
from mixc.codegen import triton_program
from mixc.codegen.axes import Axes
from mixc.codegen.config import Config, Tile
from mixc.codegen.triton_program import kernels
from mixc.ir.node import COL, ROW
from mixc.runtime import agree
from mixc.runtime.draw import draw
from mixc.targets import find
from tests import cells
from tests.passes.test_ranks import corrected, loaded

KERNELS = {
    "a decay of the head": "S = exp(g) * S + k @ v\nout o[R, V] = q @ S",
    "a decay of each key": "S = exp(gk) * S + k @ v\nout o[R, V] = q @ S",
    "decays along both, a read before": "out o[R, V] = q @ S\nS = exp(gk) * exp(gv) * S + k @ v",
    "a decay of each key, one read": "S = exp(gk) * S + k @ v\nout o[V] = p @ S",
    "a decay of each key, one write": "S = exp(gk) * S + p * u\nout o[R, V] = q @ S",
    "a correction under it": "S = exp(gk) * S + k @ v\nS = S + b * p * (u - p @ S)\nout o[R, V] = q @ S",
    "no decay": "S = S + k @ v\nout o[R, V] = q @ S",
    "a read before the update, summed": "out o[V] = w @ tanh(q @ S)\nS = exp(g) * S + k @ v",
    "a read without the rank": "S = exp(g) * S + k @ v\nout o[V] = p @ S",
    "a read that alone has it": "S = exp(g) * S + p * u\nout o[R, V] = q @ S",
    "a value that the rank is made of": "S = exp(g) * S + k @ (w * u)\nout o[V] = sum[R](w * (q @ S))",
    "the largest of the rows": "S = exp(g) * S + sum[R](w * softmax[R](k) * v)\nout o[V] = max[R](q @ S)",
    "a correction beside it": "S = exp(g) * S\nS = S + b * p * (u - p @ S) + k @ v\nout o[R, V] = q @ S",
    "momentum": "M = b * M + k @ v - p * (p @ S)\nS = exp(g) * S + 0.3 * M\nout o[R, V] = q @ S",
    "a vector beside it": "S = exp(g) * S + k @ v\nn = exp(g) * n + sum[R](k)\n"
                          "out o[R, V] = (q @ S) / (1 + abs(q @ n))",
}


CORRECTED = ("one weight", "a weight of each", "other keys that read", "one that reads, many that write", "a phase",
             "another beside it", "one behind the other", "momentum", "a step down the loss of a batch", "for one read")


def agrees(mixer: mixc.Mixer, chunk: int = 0, **cell) -> None:
    cell = dict(length=40, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True) | cell
    made = kernels(mixer.declared)
    assert not getattr(made, "instead", "")
    def config(*_: object) -> Config:
        return Config(tuple((n, Tile(chunk)) for n in ("fwd", "bwd")), max(chunk, 16))
    with patch.object(triton_program, "_config", config if chunk else triton_program._config):
        bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("what", KERNELS)
def test_chunks_of_tokens_with_more_rows(what):
    agrees(loaded(KERNELS[what]))


@pytest.mark.parametrize("what", CORRECTED)
def test_corrections_of_several_keys_at_once(what):
    agrees(corrected(what))


@pytest.mark.parametrize("chunk", [4, 8, 32])
def test_chunks_of_few_tokens(chunk):
    agrees(loaded(KERNELS["a decay of the head"]), chunk, size=5)  # 5 rows of 8


def test_systems_of_more_than_128_rows():
    """16 tokens of 16 rows: their inverse lacked its last level, and all was off by 1e-3 to 1e-2."""
    agrees(corrected("a weight of each"), 16, size=12, length=16)


@pytest.mark.parametrize("cell", [
    dict(length=(0, 0, 3, 3, 37)), dict(rows="mask, reverse"), dict(heads="2/1", size=4), dict(rows="step", length=6),
    dict(dtype=torch.bfloat16), dict(dtype=torch.float16, length=17)], ids=cells.label)
@pytest.mark.parametrize("what", ["a read before the update, summed", "a decay of each key"])
def test_calls(what, cell):
    agrees(loaded(KERNELS[what]), **cell)


def test_params_of_the_rank_get_gradients():
    """Sums over the tokens, of what each of their rows has."""
    agrees(mixc.loads("mixer m(R, K, V) {\nin q[R, K], k[K, R], v[V], g where g <= 0\n"
                      "param up[R, V], down[R, V], a[R]\nstate S[K, V]\nS = exp(g) * S + k @ (up * v)\n"
                      "y = q @ S\nout o[V] = sum[R](a * down * y)\n}"))


def test_two_dims_make_more_rows():
    agrees(mixc.loads("mixer m(R, J, K, V) {\nin q[R, K], k[R, J, K], v[J, R, V], g where g <= 0\nstate S[K, V]\n"
                      "S = exp(g) * S + sum[R, J](k * v)\nout o[R, V] = q @ S\n}"), heads="2", length=20)


def test_no_launch_divides_what_makes_more_rows():
    """A backward whose programs divide it, rows handed on to them, had no block for it."""
    made = kernels(mixc.loads("mixer m(K, V, R = 2) {\nin k[K], u[V], q[R, K]\nparam e where -1 <= e <= 1\n"
                              "state S[K, V]\nS = e * S + k * u\n"
                              "out o[V] = (k @ S) / maximum(abs(sum[R](q @ S)), 0.7)\n}").declared)
    assert made.plans and not any("R" in launch.split for launch in made.launches.values())


def test_names_that_rows_take():
    agrees(mixc.loads("mixer m(R, K, V) {\nin rows_by_R[R, K], live_by_R[K, R], v[R, V], held where held <= 0\n"
                      "state S[K, V]\nS = exp(held) * S + live_by_R @ v\nout o[R, V] = rows_by_R @ S\n}"), length=17)


def test_axes():
    axes = Axes(frozenset({"R", "R_s"}), {"R_s": "R"})
    assert axes.of((ROW, "R", "K")) == ("_t*R", "K")
    assert axes.of((ROW, "R")) == (ROW, "R") and axes.of(("R", "K")) == ("R", "K")
    assert axes.of((ROW, COL, "R", "R_s")) == ("_t*R", "_s*R_s") and axes.shape(("_t*R", "K")) == "[C * BR, BK]"
    assert axes.aligned("g", (ROW,), ("_t*R", "K")) == "repeated(g, BR)[:, None]"
    assert axes.aligned("(a + b)", (ROW, COL), ("_t*R", "_s*R_s")) == "repeated_both(a + b, BR)"
    assert axes.aligned("w", ("R", "K"), ("_t*R", "K")) == (
        "tl.reshape(tl.broadcast_to(w[None, :, :], [C, BR, BK]), [C * BR, BK])")
    assert axes.aligned("D", (ROW, COL), ("_t*R", COL)) == (
        "tl.reshape(tl.broadcast_to(D[:, None, :], [C, BR, C]), [C * BR, C])")


def test_few_tokens_a_chunk_where_they_have_more_rows():
    """As many rows as a head of that width has without: 32 of 4 a token, and no sides below 16."""
    step = mixc.loads("mixer m(R, K, V) {\nin q[R, K], k[K, R], v[R, V], g where g <= 0\nstate S[K, V]\n"
                      "S = exp(g) * S + k @ v\nout o[R, V] = q @ S\n}").declared
    config, chosen = schedule_of(step, find("h100"), dict(B=8, T=4096, H=16, R=4, K=128, V=64), "bf16").default()
    assert {t.chunk for _, t in config.tiles} <= {4, 8, 16}
    rows = 2 * 8 * 4096 * 16 / (find("h100").bandwidth * 1e9)  # seconds of a number a row
    sizes = {"fwd": 4 * (2 * 128 + 2 * 64) + 1, "bwd": 4 * (4 * 128 + 3 * 64) + 2}
    for name, values in sizes.items():
        assert chosen[name].seconds < 1.35 * values * rows, (name, chosen[name])


WIDE = """mixer wide(K, V, R{}) {{
    in q[K], v[R, V], k[R, K] where norm[R, K](k) <= 1
    in b[R] where 0 <= b <= 1
    state S[K, V]
    S = S + (b * k) @ (v - k @ S)
    out o[V] = q @ S
}}"""


def test_systems_wider_than_a_tile_may_be_run_token_by_token():
    """A tile of 2048 x 2048 was refused when it ran."""
    mixer = mixc.loads(WIDE.format(""))
    x = draw(mixer.declared, B=1, T=20, H=1, sizes=dict(K=8, V=8, R=68))
    want, got = (agree.run(mixer, x, backend=b, wide=b == "reference") for b in ("reference", "triton"))
    assert all(f.ok for f in agree.judge(mixer.declared, got, want, torch.float32))
    few, many = (mixer.emit(shape=dict(K=8, V=8, R=R)) for R in (4, 68))
    assert "unit_inverse" in few and "unit_inverse" not in many
    assert "token by token (no kernel of chunks holds a triangular system of 16 tokens of 128 rows)" in (
        mixc.loads(WIDE.format(" = 68")).explain())
