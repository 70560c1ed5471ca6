"""States of more than two dims: matrices beside each other along the dims that factors of what is written share."""

from __future__ import annotations

import pytest
import torch

import mixc
from tests import cells
from tests.agree import assert_runs_agree, draw, run

INS = ("in q[N, K], k[N, K] where norm[K](k) <= 1, p[K] where norm[K](p) <= 1, v[N, V], u[V], n[N], g where g <= 0\n"
       "in gn[N] where gn <= 0, gk[K] where gk <= 0, gv[V] where gv <= 0, a[N] where -1 <= a <= 1\n"
       "in b[N] where 0 <= b <= 1, kr[R, N, K], vr[R, N, V]")
EACH = "out o[N, V] = sum[K](q * S)"
CHUNKS = {
    "one decay": f"S = exp(g) * S + k * u\n{EACH}",
    "a decay of each": f"S = exp(gn) * S + k * v\n{EACH}",
    "a decay that is a number": f"S = a * S + k * v\n{EACH}",
    "nothing that differs": "S = exp(g) * S + n * p * u\nout o[N, V] = p @ S",
    "a decay of each key": f"S = exp(gk) * S + k * v\n{EACH}",
    "decays along two dims": f"S = exp(gk) * exp(gn) * S + p * v\n{EACH}",
    "a decay of each value": f"S = exp(gv) * S + k * v\n{EACH}",
    "read before the update": f"{EACH}\nS = exp(gn) * S + k * u",
    "the sum of what is read of each": "S = exp(gn) * S + k * v\nout o[V] = q @ S",
    "the same of values without the dim": "S = exp(g) * S + k * u\nout o[V] = q @ S",
    "a read of their sum": "S = exp(g) * S + k * v\nout o[V] = p @ (n @ S)",
    "read along the values": "S = exp(gn) * S + k * v\nout o[N, K] = S @ u",
    "a correction of each": f"S = exp(gn) * S\nS = S + b * k * (v - sum[K](k * S))\n{EACH}",
    "a correction of each without a decay": f"S = S + b * k * (v - sum[K](k * S))\n{EACH}",
    "a correction of all by one key": f"S = exp(gn) * S\nS = S + b * p * (v - p @ S)\n{EACH}",
    "a correction under a decay of each key": f"S = exp(gk) * S\nS = S + b * k * (u - sum[K](k * S))\n{EACH}",
    "momentum": f"M = 0.5 * M + k * v\nS = exp(g) * S + M\n{EACH}",
    "ranks": "S = exp(gn) * S + sum[R](kr * vr)\nout o[R, N, V] = sum[K](kr * S)",
    "the states themselves": "S = exp(gn) * S + k * v\nout o[N, K, V] = tanh(S)",
}


def loaded(body: str, dims: str = "N, K, V") -> mixc.Mixer:
    states = ", ".join(f"{s}[{dims}]" for s in "SM" if f"{s} = " in body)
    return mixc.loads(f"mixer m({dims}, R) {{\n{INS}\nstate {states}\n{body}\n}}")


@pytest.mark.parametrize("dims,length,rows", [("N, K, V", 33, "plain"), ("K, V, N", (0, 0, 3, 3, 20), "mask, reverse")])
@pytest.mark.parametrize("what", CHUNKS)
def test_matrices_beside_each_other(what, dims, length, rows):
    mixer = loaded(CHUNKS[what], dims)
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    cell = dict(length=length, size=4, heads="4/2", gates=1.0, dtype=torch.float64, rows=rows, start=True)
    with cells.cut(8):
        bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


def test_why():
    assert "matrices beside each other along N" in loaded(CHUNKS["a decay of each"]).why["S"]
    assert "matrices beside each other along N" in loaded(CHUNKS["a decay of each"], "K, V, N").why["S"]


@pytest.mark.parametrize("body,form,why", [
    ("S = exp(gn) * S + tanh(k * v)", "scan", "is no sum of outer products"),
    ("S = exp(gn) * S\nS = S + 0.3 * b * k * (u - k @ S)", "sequential", "S is corrected by a sum over N: `k @ S`")])
@pytest.mark.filterwarnings("ignore:.*MX301")
def test_what_is_no_matrix_beside_another(body, form, why):
    mixer = loaded(f"{body}\n{EACH}")
    assert mixer.form == {"S": form} and why in mixer.why["S"], mixer.why
    cell = dict(length=20, size=3, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=True)
    assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


SUMMED = {
    "a mixture": "p = softmax[N](r)\nS = exp(g) * S\nS = S + b * p * k * (v - k @ S)\nout o[V] = p @ (q @ S)",
    "one is chosen": "p = where(r >= max[N](r), 1, 0)\nS = where(p > 0, 0.9, 1) * S\n"
                     "S = S + b * p * k * (v - k @ S)\nout o[V] = p @ (q @ S)",
    "all are read at once": "p = softmax[N](r)\nS = where(p > 0.3, exp(g), 1) * S\n"
                            "S = S + (p > 0.3) * b * k * (v - sum[K](k * S))\nout o[V] = (p * q) @ S",
    "levels by their number": "S = exp(g) * where(pos % 2 ** (index[N] + 1) == 0, 0, 1) * S\n"
                              "S = S + (index[N] == 0) * b * k * (v - k @ S)\nout o[V] = (r * q) @ S",
    "slots of one key": "S = exp(g) * S\nS = S + b * k * (v + r - k @ S)\nout o[V] = softmax[N](r) @ (q @ S)\n"
                        "out e[V] = v - mean[N](k @ S)",
    "an attention over what is read": "S = exp(g) * S\nS = S + b * softmax[N](r) * k * (v - k @ S)\ny = q @ S\n"
                                      "out o[V] = sum[N](softmax[N](norm[V](y)) * y)",
}


@pytest.mark.parametrize("what", SUMMED)
def test_sums_over_what_lies_beside_each_other_are_formed_around_kernels(what):
    """Each state is a program's own; softmax[N] of an input stands in front, sums over N of what is read behind."""
    from mixc.codegen.module import Module
    from mixc.codegen.triton_program import kernels

    mixer = mixc.loads("mixer m(K, V, N = 3) {\nin q[K], v[V], r[N], g where g <= 0, b where 0 <= b <= 1\n"
                       f"in k[K] where norm[K](k) <= 1\nstate S[N, K, V]\n{SUMMED[what]}\n}}")
    made = kernels(mixer.declared)
    assert type(made) is Module and made.each == ("N",), what
    tensors = draw(mixer.declared, B=2, T=20, H=2, sizes=dict(K=5, V=4, N=3), dtype=torch.float32, seed=1)
    want = run(mixer, tensors, wide=True)
    assert_runs_agree(mixer, run(mixer, tensors, backend="triton"), want)
    in_front = "in front of the kernels, of all tokens at once in torch: `" in (told := mixer.explain())
    assert in_front == (what not in ("slots of one key", "levels by their number"))
    assert "neither the bytes nor the bound above count: forward bytes `0`" not in told


def test_each_sees_the_ranges_of_what_it_holds():
    """A step that only erases keeps errors from growing: its products need no operands of TF32."""
    from mixc.codegen.triton_program import kernels

    mixer = mixc.loads("mixer m(K, V, N = 3) {\nin q[K], v[V], r[N], g where g <= 0, b where 0 <= b <= 1\n"
                       f"in k[K] where norm[K](k) <= 1\nstate S[N, K, V]\n{SUMMED['all are read at once']}\n}}")
    made = kernels(mixer.declared)
    assert all("dot(" in k.text and "tl.float32, PRECISION" not in k.text for k in made.kernels.values())
    assert ("fwd_for_K", "bwd_for_K", "bwd_along_K") in [a + b for a, b in made.plans]


def test_a_sum_of_a_product_reads_the_state_as_it_then_is():
    """`sum[K](k * S)` is `k @ S`, S decayed before it is read: no decay of the row itself is left beside it."""
    ins = "mixer m(N, K, V) {\nin q[K], k[K] where norm[K](k) <= 1\nin v[V], g[N] where g <= 0\nstate S[N, K, V]\n"
    texts = [mixc.loads(f"{ins}S = exp(g) * S\nS = S + 0.5 * k * (v - {read})\nout o[N, V] = q @ S\n}}").emit()
             for read in ("k @ S", "sum[K](k * S)")]
    assert "def unit_inverse" in texts[0] and texts[0].split('"""', 2)[2] == texts[1].split('"""', 2)[2]
