"""Specs that nobody wrote, on random calls: form, outs, states and gradients against the step in fp64.

MIXC_SPECS: how many specs of the scalar-decay class (300 by default), four times as many as of the whole affine one,
twelve times as many as of coupled ones, of cells and of both kinds mixed; the slow target runs ten thousand of each.
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

import mixc
from mixc.runtime import backends, shapes
from tests import cells
from tests.generate import Spec, specs
from tests.generate_free import free_specs

PER_SEED = 25
SPECS = int(os.environ.get("MIXC_SPECS", "300"))
QUIET = settings(max_examples=PER_SEED, deadline=None, database=None, phases=(Phase.generate, Phase.shrink),
                 suppress_health_check=list(HealthCheck))


def calls(**axes: tuple) -> st.SearchStrategy:
    kinds = dict(length=(17, 0, 1, 5, 16, 33, (0, 0, 3, 3, 20)), size=(3, 2, 5), heads=("1", "2", "4/2", "4/1", "none"),
                 gates=(1.0, 0.1, 10.0, "zero", "forget"), dtype=(torch.float64, torch.float64, torch.float32),
                 rows=("plain", "reverse", "mask", "mask, reverse", "step"), start=(False, True),
                 consts=(None, 0.3, 1.0, 0.0)) | axes
    return st.fixed_dictionaries({n: st.sampled_from(v) for n, v in kinds.items()}).filter(cells.allowed)


def check(spec: Spec, call: cells.Cell, C: int, backend: str, must: str | None = None) -> None:
    note(f"{spec.text}\n{call}, chunks of {C}")
    mixer = mixc.loads(spec.text)
    if must is not None:
        assert set(mixer.form.values()) == {must}, (mixer.form, mixer.why)
    segment = shapes.SEGMENT_BYTES if C > 8 else 1  # short chunks: one a segment, so that calls have several
    with cells.cut(C, SEGMENT_BYTES=segment), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = [str(f) for f in cells.compare(mixer, call, backend) if not f.ok]
    assert not bad, "; ".join(bad)


def seeds(count: int, per_seed: int = PER_SEED) -> range:
    return range(-(-count // per_seed))


@pytest.mark.parametrize("number", seeds(SPECS))
def test_scalar_decay(number: int) -> None:
    @seed(number)
    @QUIET
    @given(specs(), calls(), st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch", "chunk")
    run()


@pytest.mark.parametrize("number", seeds(SPECS // 4))
def test_affine(number: int) -> None:
    @seed(number + 3)  # these draw specs of fewer corrections, in half the time of those before
    @QUIET
    @given(specs("wide"), calls(), st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch")
    run()


@pytest.mark.parametrize("number", seeds(SPECS // 12))
def test_ranks(number: int) -> None:
    """Affine states with writes, reads and corrections of a rank, and such of three dims."""
    @seed(number)
    @QUIET
    @given(specs("ranks"), calls(dtype=(torch.float64,)), st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch")
    run()


@pytest.mark.parametrize("number", seeds(SPECS // 12))
def test_mixed(number: int) -> None:
    """Cells and affine states, in parts."""
    @seed(number)
    @QUIET
    @given(specs("mixed"), calls(dtype=(torch.float64,)), st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch")
    run()


@pytest.mark.parametrize("number", seeds(SPECS // 12))
def test_coupled(number: int) -> None:
    @seed(number)
    @QUIET
    @given(specs("coupled"), calls(gates=(1.0, 0.1, "zero", "forget"), dtype=(torch.float64,)),
           st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch", "chunk")
    run()


@pytest.mark.parametrize("number", seeds(SPECS // 12))
def test_cells(number: int) -> None:
    @seed(number)
    @QUIET
    @given(specs("cells"), calls(dtype=(torch.float64,)))
    def run(spec, call):
        check(spec, call, 8, "torch")
    run()


@pytest.mark.parametrize("number", seeds(SPECS // 12))
def test_free(number: int) -> None:
    """The whole language.  Gates are finite: one that is read as a number leaves none in the step either."""
    @seed(number)
    @QUIET
    @given(free_specs(), calls(gates=(1.0, 0.1, 10.0, "zero"), dtype=(torch.float64,), consts=(None,)),
           st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch")
    run()


SMALL = calls(length=(17, 40, 1, 16, (0, 0, 3, 3, 37)), size=(3, 5), heads=("1", "2/1", "none"),
              dtype=(torch.float32,))  # in bf16 what is rounded falls on the other side of abs and where


@pytest.mark.parametrize("kind,number", [(k, n) for k in ("scalar", "wide", "cells", "mixed") for n in range(2)])
def test_interpreted(kind: str, number: int) -> None:
    @seed(number)
    @settings(QUIET, max_examples=3, phases=(Phase.generate,))  # shrinking what is interpreted takes minutes
    @given(specs(kind), SMALL)
    def run(spec, call):
        if backends.has_chunk_program(mixc.loads(spec.text)):
            check(spec, call, 16, "triton")
    run()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scalar", "wide", "cells", "mixed"])
def test_ten_thousand(kind: str) -> None:
    @settings(QUIET, max_examples=10_000)
    @given(specs(kind), calls(), st.sampled_from([8, 4, 16, 64]))
    def run(spec, call, C):
        check(spec, call, C, "torch", "chunk" if kind == "scalar" else None)
    run()
