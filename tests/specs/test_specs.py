"""Affine recurrences that stand in no library, each against a token loop written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mixc
from mixc.runtime import backends
from tests.agree import assert_runs_agree, draw, normal, run
from tests.specs.loops import STEPS, Loop

HERE = Path(__file__).parent
SIZES = dict(K=4, V=5, W=3, M=6)


def test_every_spec_has_a_loop():
    assert {p.stem for p in HERE.glob("*.mix")} == set(STEPS)


def given(mixer, dtype, T):
    sizes = {d.name: SIZES.get(d.name, 3) for d in mixer.declared.dims}
    tensors = draw(mixer.declared, B=2, T=T, H=2, sizes=sizes, dtype=dtype, seed=1)
    start = {d.name: normal([2, 2, *(sizes[n] for n in d.dims)], 2, d.name, dtype) for d in mixer.declared.states}
    return tensors, start


@pytest.mark.parametrize("name,backend", [
    pytest.param(n, b, marks=[pytest.mark.slow] * (b == "triton" and n == "reflections"))  # 25 seconds interpreted
    for n in STEPS for b in ("reference", "torch", "triton")])
def test_equals_the_loop(name, backend):
    mixer = mixc.load(str(HERE / f"{name}.mix"))
    assert set(mixer.form.values()) == {"chunk"}, mixer.why
    if backend == "triton" and not backends.has_chunk_program(mixer):
        pytest.skip("no kernels yet")
    dtype = torch.float32 if backend == "triton" else torch.float64
    tensors, start = given(mixer, dtype, 37)
    loop = Loop(mixer, STEPS[name])
    want = run(loop, tensors, initial_state=start, wide=True)
    got = run(mixer, tensors, initial_state=start, backend=backend)
    assert_runs_agree(mixer, got, want, dtype, lambda: run(loop, tensors, initial_state=start))
