"""Scans as Triton kernels, interpreted, against the step in fp64; and compiled for a GPU that is not here."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.errors import SpecError
from tests.agree import assert_runs_agree, draw, normal, run
from tests.codegen.test_offline import compiled
from tests.scans import NAMES, spec


def check(name, T=35, B=1, **options):
    mixer = spec(name) if name in NAMES else mixc.load(name)
    sizes = {d.name: 17 + i for i, d in enumerate(mixer.declared.dims)}
    x = draw(mixer.declared, B=B, T=T, H=2, sizes=sizes, dtype=torch.float32, ends=1 / 16, seed=T)
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    given = {d.name: normal([N, 2, *(sizes[n] for n in d.dims)], 5, d.name) for d in mixer.declared.states}
    want = run(mixer, x, initial_state=given, **options)
    got = run(mixer, x, initial_state=given, backend="triton", **options)
    assert_runs_agree(mixer, got, want, torch.float32)


@pytest.mark.parametrize("name", ["hgrn", "min_gru", "max_plus", "min_plus_before", "max_times", "log_sum",
                                  "before_and_after", "between", "param_decay", "stabilised", "scan_feeds_scan"])
def test_interpreted(name):
    check(name)


@pytest.mark.parametrize("T", [1, 16, 70])
def test_lengths(T):
    check("hgrn", T, B=2)


def test_ragged_reversed_masked():
    check("hgrn", 40, cu_seqlens=torch.tensor([0, 0, 5, 40]), reverse=True)
    check("max_plus", 20, B=2, mask=torch.arange(40).reshape(2, 20) % 3 > 0)


def test_a_scan_of_matrices_has_no_kernel_yet_and_says_so():
    x = draw(mixc.load("mamba1").declared, B=1, T=3, H=1, dtype=torch.float32)
    with pytest.raises(SpecError, match="MX310"):
        mixc.load("mamba1")(**x, backend="triton")


def test_hgrn_compiles_for_sm_90_without_spills():
    assert compiled("hgrn", "sm_90").count("spill=0") == 2
