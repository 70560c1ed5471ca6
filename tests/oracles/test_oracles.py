"""The meaning of every example against a program that somebody else wrote: outs, final states, gradients."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import mixc
from mixc.runtime.backends import has_torch_program
from mixc.runtime.load import shipped
from tests.agree import assert_agree, assert_runs_agree, draw, normal, run
from tests.oracles import more, scans  # noqa: F401  (more cases)
from tests.oracles.cases import CASES, Case

NEEDS = ("fla", "flashrnn", "mlstm_kernels", "accelerated_scan")


@pytest.fixture(scope="session", autouse=True)
def oracles() -> None:
    for name in NEEDS:
        importlib.import_module(name) if name == "fla" else pytest.importorskip(name)


class Oracle:
    """A case behind the interface of a mixer, so that it is run, pulled back and judged like one."""

    def __init__(self, mixer: Any, case: Case):
        self.declared, self.case = mixer.declared, case

    def __call__(self, *, initial_state: Any, output_final_state: bool, backend: str, **tensors: Any) -> Any:
        o, states = self.case.run(tensors, initial_state or {})
        return o, states or {}


def test_every_example_has_an_oracle() -> None:
    assert set(shipped()) == set(CASES)


@pytest.mark.parametrize("start", [False, True], ids=["fresh", "initial"])
@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_agrees_with_oracle(backend: str, name: str, start: bool) -> None:
    case, mixer = CASES[name], mixc.load(name)
    if backend == "torch" and not has_torch_program(mixer):
        pytest.skip("the torch backend runs it as the reference does")
    if start and not case.start:
        pytest.skip("the oracle takes no initial state")
    T, H = 19, 4
    dtype = torch.float64 if case.wide else torch.float32
    x = draw(mixer.declared, B=2, T=T, H=H, dtype=dtype, ends=case.ends, groups=dict.fromkeys(case.groups, 2), seed=3)
    sizes = {dim: n for d in (*mixer.declared.ins, *mixer.declared.params)
             for dim, n in zip(d.dims, x[d.name].shape[x[d.name].ndim - len(d.dims):], strict=True)}
    sizes |= {d.name: sizes[d.alias] for d in mixer.declared.dims if d.alias}
    initial = {d.name: _initial(d, [2, H, *(sizes[n] for n in d.dims)], dtype) for d in mixer.declared.states}
    given = initial if start else None
    theirs = run(Oracle(mixer, case), x, initial_state=given)
    ours = run(mixer, x, initial_state=given, wide=True, backend=backend, state_cotangents=bool(theirs.states))
    theirs.states = ours.states | theirs.states  # what the oracle does not give is not compared
    assert_runs_agree(mixer, theirs, ours, dtype)


def test_gated_oja_rule_is_that_of_fla() -> None:
    """The kernel, interpreted, against the loop that stands in for it: it has no backward, and no CPU version."""
    x = draw(mixc.load("gated_oja_rule").declared, B=2, T=19, H=2, sizes=dict(K=5, V=7))
    S0 = normal([2, 2, 5, 7], 5, "S0")
    oja = importlib.import_module("fla.ops.gated_oja_rule.fused_recurrent").fused_recurrent_oja_fwd
    o, S = oja(x["q"], x["k"], x["v"], x["g"], x["beta"], 5 ** -0.5, S0, True)
    want, state = CASES["gated_oja_rule"].run(x, {"S": S0})
    assert_agree(o, want, name="o")
    assert_agree(S, (state or {})["S"], name="S")


def _initial(d: Any, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    x = normal(shape, 5, d.name + "0", dtype)
    return torch.complex(x, normal(shape, 6, d.name + "0", dtype)) if d.kind == "complex" else x
