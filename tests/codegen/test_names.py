"""Names of a spec that emitted code has for itself: dims and values may be called so all the same."""

from __future__ import annotations

import inspect

import pytest
import torch

import mixc
from mixc.autotune.tuner import schedule_of
from mixc.codegen.names import own_names
from mixc.codegen.offline import load_text
from mixc.targets import find
from tests import cells
from tests.agree import assert_agree

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
    ("B_", "has_B_", "in_B_", "v_ptr", "v_rep", "q_initial", "q_ptr"),
    ("V", "K", "device", "unit_inverse", "running_sum", "guard", "place"),
    ("K", "V", "el", "ef", "a", "S", "o"),  # their gradients would be `del` and `def`
]


LOOP = """mixer m({0}, {1}, {2} = 2) {{
    in q[{0}], v[{1}], {3}[{2}]
    in k[{2}, {0}] where norm[{0}](k) <= 1
    param {4}[{1}]
    const {6} = 0.9
    state {5}[{0}, {1}]
    for n in {2} {{
        {5} = {6} * {5} + {3}[n] * k[n] * (v - k[n] @ {5})
    }}
    out o[{1}] = cos({6} * pos) * (q @ {5}) + {4}
}}
"""
LOOPS = [("len", "C_", "M", "C", "zip", "type", "float"), ("live", "q_ptr", "chunk", "M_", "dict", "evice", "S_final"),
         ("K", "S_ptr", "n_", "torch_", "len_", "S_initial", "torch")]


@pytest.mark.parametrize("backend, dtype", [("torch", torch.float64), ("triton", torch.float32)])
@pytest.mark.parametrize("names", LOOPS, ids="-".join)
def test_loops_and_consts(names, backend, dtype):
    cell = dict(length=17, size=3, heads="2/1", gates=1.0, dtype=dtype, rows="mask", start=True)
    bad = [str(f) for f in cells.compare(mixc.loads(LOOP.format(*names)), cell, backend) if not f.ok]
    assert not bad, "; ".join(bad)


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
    cell = dict(length=17, size=3, heads="2/1", gates=1.0, dtype=torch.float32, rows="mask", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


def test_only_what_clashes_is_called_otherwise():
    assert [own_names(mixc.loads(TEXT.format(*n)).declared) for n in NAMES] == [
        {"C": "C_", "keep": "keep_", "live": "live_"}, {}, {}, {"span_pair": "span_pair_", "C": "C_"},
        {"dq": "dq_", "dv": "dv__"},
        {n: n + "_" for n in ("SIGN", "rows", "pid", "head", "seq", "chunk")},
        {n: n + "_" for n in ("has_B_", "in_B_", "v_ptr", "v_rep", "q_initial", "q_ptr")},
        {n: n + "_" for n in ("device", "unit_inverse", "running_sum")}, {"el": "el_", "ef": "ef_"}]


CLASH = """mixer m(K, C) {
    in q[K], k[K], dk[C], rows where rows <= 0
    const seq = 0.5
    param dq[C]
    param start[K, C]
    state S[K, C] = start, dS[K, C]
    dS = exp(rows) * dS + k * dk
    S = exp(rows) * S + seq * k * dk
    out o[C] = q @ S + q @ dS + dq
}
"""


def test_the_emitted_module_has_the_names_of_its_spec():
    mixer = mixc.loads(CLASH)
    made = load_text(mixer.emit(shape=dict(K=16, C=16), dtype="fp32"), "clash")
    assert list(inspect.signature(made.m).parameters)[:7] == ["q", "k", "dk", "rows", "dq", "start", "seq"]
    x = {"q": torch.randn(1, 20, 2, 5), "k": torch.randn(1, 20, 2, 5), "dk": torch.randn(1, 20, 2, 6),
         "rows": -torch.rand(1, 20, 2), "dq": torch.randn(2, 6), "start": torch.randn(2, 5, 6)}
    states = {"dS": torch.randn(1, 2, 5, 6)}
    (want, after), (got, final) = (f(**x, seq=0.25, initial_state=states, output_final_state=True, check=True, **more)
                                   for f, more in ((mixer, dict(backend="torch")), (made.m, {})))
    assert_agree(got, want)
    assert list(final) == ["S", "dS"] and all(torch.allclose(final[n], after[n], atol=1e-4) for n in final)
    with pytest.raises(ValueError, match=r"`dk`: expected \[B, T, H, C\]"):
        made.m(**{**x, "dk": x["dk"][0]})


@pytest.mark.parametrize("name", ["block", "run", "merged", "tl", "b", "b_k", "sequences", "past", "len", "Chunk"])
def test_a_mixer_may_have_any_name(name):
    mixer = mixc.loads(f"mixer {name}(K, V) {{\n in q[K], called[V]\n state S[K, V]\n S = 0.5 * S + q * called\n"
                       " out o[V] = q @ S\n out Outs = sum(q)\n}")
    cell = dict(length=9, size=3, heads="2/2", gates=1.0, dtype=torch.float32, rows="mask", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)
    x = {"q": torch.randn(1, 9, 2, 3), "called": torch.randn(1, 9, 2, 4)}
    made = load_text(mixer.emit(dtype="fp32"), name)
    o, state = getattr(made, name + "_" if hasattr(made, name + "__step") else name)(**x, output_final_state=True)
    want, after = mixer(**x, backend="torch", output_final_state=True)
    assert_agree(o.o, want.o)
    assert_agree(state["S"], after["S"])


def test_values_may_be_called_as_what_a_call_of_the_module_calls():
    mixer = mixc.loads("mixer m(D) {\nin tuple[D], zip[D]\nparam dict[D] complex where abs(dict) < 1\nstate list[D]\n"
                       "list = dict * list + tuple\nout len[D] = list * zip\nout type[D] = real(list)\n}")
    x = {"tuple": torch.randn(1, 9, 2, 3), "zip": torch.randn(1, 9, 2, 3), "dict": 0.5 * torch.randn(2, 3) + 0.2j}
    for got, want in zip(load_text(mixer.emit(dtype="fp32")).m(**x)[0], mixer(**x, backend="torch")[0], strict=True):
        assert_agree(got, want)


@pytest.mark.parametrize("name,own", [("pid", True), ("head", True), ("run", False)])
def test_a_mixer_called_as_a_local_of_kernels(name, own):
    """Its functions have its name all the same; one that the file itself calls has an underscore."""
    mixer = mixc.loads(f"mixer {name}(D) {{\nin x[D]\nstate h[D]\nh = 0.5 * h + x\nout o[D] = h\n}}")
    made, x = load_text(mixer.emit(dtype="fp32")), torch.randn(1, 9, 2, 3)
    call, step = (getattr(made, name + "_" * (not own) + s) for s in ("", "_step"))
    assert_agree(call(x)[0], mixer(x, backend="torch")[0])
    assert_agree(step(None, x[:, 0])[0], x[:, 0])


BY_TOKENS = {
    "a vector": """mixer m(C, D = C) {
    in x[C], dh[C]
    const seq = 0.5
    param R[C, D], dx[C]
    state h[C]
    h = tanh(x + seq * dh + R @ h[D] + dx)
    out rows[C] = h
}
""",
    "a matrix": """mixer m(K, C) {
    in q[K], k[K], dk[C], rows where rows <= 0
    state S[K, C], dS[C]
    S = exp(rows) * S + k * tanh(dk + k @ S)
    dS = 0.5 * dS + tanh(q @ S + dS)
    out o[C] = q @ S + dS
}
"""}


@pytest.mark.parametrize("state", BY_TOKENS)
@pytest.mark.filterwarnings("ignore:note")
def test_kernels_that_run_token_by_token(state):
    cell = dict(length=9, size=3, heads="2/2", gates=1.0, dtype=torch.float32, rows="mask", start=True)
    bad = [str(f) for f in cells.compare(mixc.loads(BY_TOKENS[state]), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


def test_costs_and_tiles_are_told_in_the_names_of_the_spec():
    mixer = mixc.loads(CLASH)
    assert "C_" in mixer.explain()
    sizes = {"B": 1, "T": 64, "H": 2, "K": 16, "C": 16}
    schedule = schedule_of(mixer.declared, find("h100"), sizes, "bf16")
    config = schedule.default()[0]
    outer = {inner: outer for outer, inner in schedule.module.own.items()}
    assert outer["C_"] == "C"
    assert schedule.module.text(config.named(outer)) == schedule.module.text(config)


@pytest.mark.parametrize("state", ["B", "C", "T", "H", "seq", "rows"])
def test_a_state_may_have_any_name(state):
    text = TEXT.format("K", "V", "k", "g", "p", state, "o")
    cell = dict(length=17, size=3, heads="2/2", gates=1.0, dtype=torch.float32, rows="cu_seqlens", start=True)
    bad = [str(f) for f in cells.compare(mixc.loads(text), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


def test_what_a_condition_is_called():
    """`and`, `or` and `not` are no names for what they form."""
    mixer = mixc.loads("mixer m(D) {\nin x[D], f\nstate h[D]\na = (f > 0) and not (f > 1)\n"
                       "h = where(a or f < -1, 0.5, 1) * h + a * x\nout o[D] = clamp(h, -1, 1)\n}")
    cell = dict(length=5, size=3, heads="2", gates=1.0, dtype=torch.float32, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)
