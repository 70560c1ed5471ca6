"""Kernels of several states that one launch would hold: in programs of their own where together they have no room."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.autotune.tuner import schedule_of, schedules_of
from mixc.codegen import apart
from mixc.codegen.apart import parts_at
from mixc.codegen.triton_program import parts_of_call
from mixc.runtime import backends
from mixc.targets import find
from tests import cells

INS = "in q[K], v[V], g where g <= 0\nin k[K] where norm[K](k) <= 1, b where 0 <= b <= 1\n"
SPECS = {
    "two timescales": "state S[K, V], Z[K, V]\nS = exp(g) * S + b * k * (v - k @ S)\nZ = 0.9 * Z + k * v\n"
                      "out o[V] = q @ S + q @ Z",
    "an out each": "state S[K, V], Z[K, V]\nS = exp(g) * S + k * v\nZ = 0.9 * Z + b * k * v\n"
                   "out o[V] = q @ S\nout r[V] = q @ Z",
    "a read that is written": "state S[K, V], Z[K, V]\nS = exp(g) * S + b * k * (v - k @ S)\ny = q @ S\n"
                              "Z = exp(g) * Z + k * y\nout o[V] = q @ Z",
    "an error of one": "state S[K, V], Z[K, V]\ne = v - k @ S\nS = exp(g) * S + b * k * e\nZ = 0.9 * Z + k * e\n"
                       "out o[V] = q @ (S + Z)",
    "a gate in front": "state h, S[K, V], Z[K, V]\nh = 0.8 * h + g\nS = sigmoid(h) * S + k * v\n"
                       "Z = exp(g) * Z + b * k * (v - k @ Z)\nout o[V] = q @ S * sigmoid(q @ Z)",
    "keys of a norm": "state S[K, V]\nu = silu(k) / (norm[K](silu(k)) + 1e-3)\nS = exp(g) * S\n"
                      "S = S + b * u * (v - u @ S)\nout o[V] = silu(q) @ S",
    "two passes": "state S[K, V], Z[V, K]\nS = exp(g) * S + k * softmax(v)\np = softmax(q @ S)\n"
                  "Z = exp(g) * Z + softmax(v) * k\nout o[K] = p @ Z",
}


def loaded(what: str) -> mixc.Mixer:
    return mixc.loads(f"mixer m(K, V) {{\n{INS}{SPECS[what]}\n}}")


def sizes(D: int) -> dict[str, int]:
    return {"B": 8, "T": 4096, "H": 16, "K": D, "V": D}


FEW = ("two timescales", "keys of a norm", "two passes")


@pytest.mark.parametrize("what", [pytest.param(w, marks=[pytest.mark.slow] * (w not in FEW)) for w in SPECS])
def test_they_are_apart_where_that_is_faster(what):
    step, target = loaded(what).declared, find("h100")
    assert parts_at(step, "h100", sizes(64), "bf16") == (step,)
    parts = parts_at(step, "h100", sizes(128), "bf16")
    made = [schedule_of(step, target, sizes(128), "bf16"), *schedules_of(step, target, sizes(128), "bf16")]
    seconds = [sum(c.seconds for c in s.default()[1].values()) for s in made]
    assert len(parts) > 1 and sum(seconds[1:]) < seconds[0]
    assert sorted(s.name for p in parts for s in p.states) == sorted(s.name for s in step.states)


SHARED = """mixer m(N, K, V) {
    in q[K], v[V], r[N], g where g <= 0
    in k[K] where norm[K](k) <= 1, b where 0 <= b <= 1
    state S[N, K, V], G[K, V]
    p = softmax(r)
    G = exp(g) * G + b * k * (v - exp(g) * (k @ G))
    S = exp(p * g) * S + b * p * k * (v - k @ (exp(p * g) * S))
    out o[V] = q @ G + p @ (q @ S)
}"""


def test_what_each_of_several_beside_each_other_would_form_is_apart():
    """A memory for all beside one for each expert: every program of an expert would form it too."""
    step = mixc.loads(SHARED).declared
    parts = parts_at(step, "h100", sizes(64) | {"N": 4}, "bf16")
    assert [[s.name for s in p.states] for p in parts] == [["S"], ["G"]]


CELL = dict(length=40, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True)


@pytest.mark.parametrize("what,cell", [*((w, {}) for w in SPECS), *(("two timescales", c) for c in (
    dict(length=(0, 0, 3, 3, 37)), dict(rows="mask, reverse"), dict(heads="2/1"), dict(dtype=torch.bfloat16),
    dict(rows="step", length=6)))], ids=str)
def test_their_kernels_agree(what, cell):
    mixer, ran = loaded(what), []

    def longest(step, *_):
        return len(step.states) + len(step.outs)

    def seen(call):
        ran.append(parts_of_call(call))
        return ran[-1]
    with patch.object(apart, "ROOM", 1), patch.object(apart, "_alone", longest), \
            patch.object(apart, "_added", lambda *_: -9.0), patch("mixc.codegen.triton_program.parts_of_call", seen):
        bad = [str(f) for f in cells.compare(mixer, CELL | cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)
    assert {len(parts) > 1 for parts in ran} == ({True, False} if cell.get("rows") == "step" else {True})


def test_the_emitted_file_calls_one_after_the_other():
    mixer = loaded("two timescales")
    text = mixer.emit(target="h100", shape=sizes(128), dtype="bf16")
    assert "(S_read,), final_1 = m_1(q_all, v, g, k, b, " in text and "final_2 = m_2(q, v, k, S_read, " in text
    assert "m_1" not in mixer.emit(target="h100", shape=sizes(64), dtype="bf16")
    assert backends.has_chunk_program(mixer)


def test_explain_says_what_may_run_apart():
    assert "first `S`; hands on `S_read[V]`, then `Z`" in loaded("two timescales").explain()
    assert "one after the other" not in mixc.load("lru").explain()
