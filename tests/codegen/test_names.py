"""Names of a spec that emitted code has for itself: dims and values may be called so all the same."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.kernel import clashes
from tests import cells

TEXT = """mixer m({0}, {1}) {{
    in q[{0}], v[{1}]
    in {2}[{0}] where norm[{0}]({2}) <= 1
    in {3} where {3} <= 0
    param {4}[{1}]
    state {5}[{0}, {1}]
    {5} = exp({3}) * {5} + {2} * (v - {2} @ {5})
    out {6}[{1}] = q @ {5} + {4}
}}
"""
NAMES = [
    ("M", "C", "keep", "live", "decay", "S1", "out1"), ("F", "N", "steps", "dtype", "select", "finish", "r1"),
    ("K", "V", "x1", "P1", "U1", "buf_CC1", "s1"), ("levels", "BK", "span_pair", "C", "M", "number", "scratch"),
    ("K_", "M_", "dq", "dv", "dS", "dv_", "do"), ("BV", "SIGN", "rows", "pid", "head", "seq", "chunk"),
    ("V", "K", "device", "unit_inverse", "running_sum", "guard", "place"),
]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_torch(names):
    mixer = mixc.loads(TEXT.format(*names))
    cell = dict(length=70, size=3, heads="2/1", gates=1.0, dtype=torch.float64, rows="mask", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_triton_interpreted(names):
    text = TEXT.format(*names).replace(f"* (v - {names[2]} @ {names[5]})", "* v")  # one launch, no solve
    mixer = mixc.loads(text)
    own = clashes(mixer.declared)
    if own:
        with pytest.raises(mixc.SpecError, match=f"MX310.*the name `{own[0]}`; call it otherwise"):
            mixer.emit()
        return
    cell = dict(length=17, size=3, heads="2/1", gates=1.0, dtype=torch.float32, rows="mask", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


def test_few_names_are_refused():
    assert [clashes(mixc.loads(TEXT.format(*n)).declared) for n in NAMES] == [
        ["C"], [], [], [], ["dq", "dv"], ["SIGN"], []]


@pytest.mark.parametrize("state", ["B", "C", "T", "H", "seq", "rows"])
def test_a_state_may_have_any_name(state):
    text = TEXT.format("K", "V", "k", "g", "p", state, "o")
    cell = dict(length=17, size=3, heads="2/2", gates=1.0, dtype=torch.float32, rows="cu_seqlens", start=True)
    bad = [str(f) for f in cells.compare(mixc.loads(text), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)
