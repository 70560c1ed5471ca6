"""Writes that are sums of outer products over a dim that no state has: `k @ v` with k[K, R], v[R, V]."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.runtime import agree
from mixc.runtime.draw import dim_sizes, draw
from tests import cells

MORE = "\nin br[R] where 0 <= br <= 1, bv[V] where 0 <= bv <= 1, kj[K, J] where norm[K, J](kj) <= 1, vj[J, V]"
INS = ("in q[R, K], k[K, R] where norm[K, R](k) <= 1, p[K] where norm[K](p) <= 1, v[R, V], u[V], w[R]\n"
       "in g where g <= 0, gk[K] where gk <= 0, gv[V] where gv <= 0, a[K] where -1 <= a <= 1, b where 0 <= b <= 1, f")
CHUNKS = {  # what is in the way of a sum over one product: the body
    "a decay of the head": "S = exp(g) * S + k @ v\nout o[R, V] = q @ S",
    "a decay of each key": "S = exp(gk) * S + k @ v\nout o[R, V] = q @ S",
    "a decay of each value": "S = exp(gv) * S + k @ v\nout o[R, V] = q @ S",
    "decays along both": "S = exp(gk) * exp(gv) * S + k @ v\nout o[R, V] = q @ S",
    "a decay that is a number, of either sign": "S = a * S + k @ v\nout o[R, V] = q @ S",
    "a phase": "S = exp(g + 1j * f) * S + k @ v\nout o[R, V] = real(q @ S)",
    "a read before the update": "out o[R, V] = q @ S\nS = exp(gk) * S + k @ v",
    "a read without the rank": "S = exp(gk) * S + k @ v\nout o[V] = p @ S",
    "a read that is summed over it": "S = exp(g) * S + k @ v\nout o[V] = w @ tanh(q @ S)",
    "weights": "S = exp(g) * S + sum[R](w * k * v)\nout o[V] = sum[R](q) @ S",
    "a value that the rank is made of": "S = exp(g) * S + k @ (w * u)\nout o[V] = sum[R](w * (q @ S))",
    "terms without it": "S = exp(g) * S + sum[R](w * (k * v - p * u))\nout o[R, V] = q @ S",
    "a choice": "S = exp(g) * S + where(b > 0.5, k @ v, p * u)\nout o[R, V] = q @ S",
    "the tokens before": "S = exp(g) * S + b * (lag(k, 1) @ lag(v, 1)) + (1 - b) * (k @ v)\nout o[R, V] = q @ S",
    "a correction beside it": "S = exp(gk) * S\nS = S + b * p * (u - p @ S) + k @ v\nout o[R, V] = q @ S",
    "a correction of what it wrote": "S = exp(g) * S + k @ v\nS = S + b * p * (u - p @ S)\nout o[R, V] = q @ S",
    "the same along the other side": "S = exp(gk) * S + k @ v\nS = S - 0.1 * b * u * (S @ u)\nout o[R, V] = q @ S",
    "momentum": "M = b * M + k @ v - p * (p @ S)\nS = exp(g) * S + 0.3 * M\nout o[R, V] = q @ S",
    "a state that writes to another": "M = exp(g) * M + k @ v\nS = exp(gk) * S + k @ (q @ M)\nout o[R, V] = q @ S",
    "the state itself read": "S = exp(gk) * S + k @ v\nout o[K, V] = tanh(S)",
    "a vector beside it":
        "S = exp(g) * S + k @ v\nn = exp(g) * n + sum[R](k)\nout o[R, V] = (q @ S) / (1 + abs(q @ n))",
}

CORRECTIONS = {  # those of several keys at once, which all read what the token before left
    "one weight": "S = S + b * (k @ (v - k @ S))",
    "a weight of each": "S = exp(g) * S\nS = S + k @ (br * (v - k @ S))",
    "a sum that is spelled out": "S = exp(g) * S + sum[R](k * br * (v - k @ S))",
    "other keys that read": "S = exp(gk) * S + k @ (br * (w * u - 0.5 * q @ S))",
    "values that lack the rank": "S = exp(gk) * S\nS = S + k @ (br * (u - k @ S))",
    "one that reads, many that write": "S = exp(g) * S + 0.3 * k @ (v - p @ S)",
    "many that write one value": "S = exp(g) * S + 0.2 * sum[R](k * w) * (u - p @ S)",
    "a decay of each value": "S = exp(gv) * S\nS = S + k @ (br * (v - k @ S))",
    "a decay that is a number": "S = a * S\nS = S + k @ (br * (v - k @ S))",
    "a strength of each value": "S = exp(g) * S\nS = S + bv * (k @ (v - k @ S))",
    "a phase": "S = exp(g + 1j * f) * S\nS = S + k @ (v - k @ S)",
    "another beside it": "S = exp(g) * S + 0.5 * k @ (br * (v - k @ S)) + 0.5 * b * p * (u - p @ S)",
    "one of another rank beside it": "S = exp(g) * S + 0.5 * k @ (v - k @ S) + 0.5 * kj @ (vj - kj @ S)",
    "one behind the other": "S = exp(g) * S + k @ (br * (v - k @ S))\nS = S - b * p * (p @ S)\n"
                            "S = S + k @ (v - k @ S)",
    "momentum": "M = 0.5 * M + k @ (v - k @ S)\nS = exp(g) * S + 0.3 * M",
    "a step down the loss of a batch":
        "loss = 0.5 * sum[R](br * sum[V](square(k @ S - v)))\nS = exp(g) * S - b * grad[S](loss)",
    "for one read": "S = exp(g) * S + p * u\nS = S + 0 * (p @ S) * p",
}
READ = {"for one read": "p @ (S - k @ (br * (k @ S)))", "a phase": "real(p @ S)"}


def loaded(body: str) -> mixc.Mixer:
    states = [s for s in ("S[K, V]", "M[K, V]", "n[K]") if f"{s[0]} = " in body]
    more, dims = (MORE, ", J") if any(x in body for x in ("br", "bv", "kj")) else ("", "")
    return mixc.loads(f"mixer m(R, K, V{dims}) {{\n{INS}{more}\nstate {', '.join(states)}\n{body}\n}}")


def corrected(what: str) -> mixc.Mixer:
    return loaded(f"{CORRECTIONS[what]}\nout o[V] = {READ.get(what, 'p @ S')}")


@pytest.mark.parametrize("length,rows", [(33, "plain"), ((0, 0, 3, 3, 20), "mask, reverse")])
@pytest.mark.parametrize("what", CHUNKS)
def test_a_sum_of_outer_products_is_a_chunk(what, length, rows):
    mixer = loaded(CHUNKS[what])
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    cell = dict(length=length, size=4, heads="4/2", gates=1.0, dtype=torch.float64, rows=rows, start=True)
    with cells.cut(8):
        bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("length,rows", [(33, "plain"), ((0, 0, 3, 3, 20), "mask, reverse")])
@pytest.mark.parametrize("what", CORRECTIONS)
def test_corrections_of_several_keys_at_once(what, length, rows):
    mixer = corrected(what)
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    cell = dict(length=length, size=4, heads="4/2", gates=1.0, dtype=torch.float64, rows=rows, start=True)
    with cells.cut(8):
        bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", ["g", "gk"])
def test_other_dtypes_and_decode(decay, dtype):
    mixer = loaded(f"S = exp({decay}) * S + k @ v\nout o[R, V] = q @ S")
    for rows in ("plain", "step"):
        cell = dict(length=70, size=8, heads="2/1", gates=0.1, dtype=dtype, rows=rows, start=True)
        bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
        assert not bad, "; ".join(bad)


def test_why_names_the_rank():
    why = loaded("S = exp(g) * S + k @ v\nout o[R, V] = q @ S").why["S"]
    assert why.endswith("1 outer product written and summed over R")


def test_why_names_the_rank_of_corrections():
    assert "1 of which reads it (rank R)" in corrected("a weight of each").why["S"]
    assert "2 of which read it (rank 1 + R)" in corrected("another beside it").why["S"]


def test_products_of_sums_are_no_sum_of_products():
    """Two sums over one R, entry by entry: R * R outer products."""
    assert loaded("S = exp(g) * S + (k @ v) * (k @ v)\nout o[R, V] = q @ S").form == {"S": "scan"}


def test_a_dim_that_is_called_like_the_rows_that_wrote():
    """Ranks have names of their own there."""
    text = ("mixer m(R, R_s, K, V = R_s) {{\nin q[R, K], k[K, R], v[R, V], x[R_s]\nstate S[K, V]\n"
            "S = 0.9 * S + k @ v\nout {}[R, V] = (q @ S) * x[V]\n}}")
    for name in ("o", "R_s2"):
        mixer = mixc.loads(text.format(name))
        cell = dict(length=20, size=4, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=True)
        assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


def test_one_rank_is_the_same_as_none():
    """To the last bit but those of another order of sums."""
    ranked = loaded("S = exp(gk) * S + k @ v\nout o[V] = p @ S")
    plain = mixc.loads("mixer m(K, V) {\nin p[K], k[K], v[V], gk[K] where gk <= 0\nstate S[K, V]\n"
                       "S = exp(gk) * S + k * v\nout o[V] = p @ S\n}")
    step = ranked.declared
    x = draw(step, B=2, T=40, H=2, sizes=dim_sizes(step, {"R": 1, "K": 5, "V": 3}), dtype=torch.float64)
    one, _ = ranked(**x, backend="torch")
    two, _ = plain(x["p"], x["k"].squeeze(-1), x["v"].squeeze(-2), x["gk"], backend="torch")
    assert agree.ratio(one, two) < 1e-14
