"""The torch backend: derived chunk programs against the step run token by token in fp64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import mixc
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from mixc.passes.simplify import simplify
from mixc.runtime import arguments, chunked, sequential, shapes
from mixc.runtime.agree import FLOOR, rms
from mixc.runtime.call import Call
from mixc.runtime.compiled import compiled
from mixc.runtime.draw import draw, is_gate
from mixc.runtime.rows import rows
from tests.agree import assert_agree
from tests.build import KINDS, scalar_decay
from tests.cells import cut
from tests.chunks import run_chunks

PROGRAMS = {kind: scalar_decay(kind) for kind in KINDS}


def make_call(kind="log", B=2, T=17, H=4, K=5, V=3, dtype=torch.float64, groups=None, gates=1.0, **which):
    """A call on random tensors: gates at 0, -inf and -100, decays of both signs with zeros, initial states."""
    program, sizes = PROGRAMS[kind], dict(K=K, V=V)
    random = torch.Generator().manual_seed(T)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    ins = {d.name: draw(B, T, (groups or {}).get(d.name, H), *[sizes[n] for n in d.dims]) for d in program.ins}
    ins["g"] = -ins["g"].abs() * gates
    ins["g"][:, 3::11], ins["g"][:, 5::7], ins["g"][:, 6::7] = -math.inf, -100.0, 0.0
    ins["a"][:, 4::9] = 0.0
    params = {d.name: draw((groups or {}).get(d.name, H), *[sizes[n] for n in d.dims]) for d in program.params}
    r = rows(B, T, **which)
    states = {d.name: draw(r.N, H, *[sizes[n] for n in d.dims]) for d in program.states}
    ins, params, states = ({n: x.to(dtype).requires_grad_() for n, x in xs.items()} for xs in (ins, params, states))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Call(program, sizes, {}, H, ins, params, r, wide, {d.name: dtype for d in program.outs},
                torch.device("cpu"), states0=states, want_state=True)


def values_and_gradients(call, run):
    outs, states = run(call)
    values = {**outs, **{n + "'": x for n, x in states.items()}}
    random = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=random, dtype=torch.float64).to(v.dtype) for v in values.values()]
    inputs = {**call.ins, **call.params, **call.states0}
    found = torch.autograd.grad(list(values.values()), list(inputs.values()), cotangents, allow_unused=True)
    pairs = zip(inputs.items(), found, strict=True)
    return values | {"d" + n: torch.zeros_like(x) if g is None else g for (n, x), g in pairs}


def check(call, C=None):
    """By the criterion of `agree.judge`, dtype and kind of every value taken from the call."""
    dtype = next(iter(call.ins.values())).dtype
    want = values_and_gradients(call, lambda c: sequential.run(c, torch.float64))
    got = values_and_gradients(call, lambda c: chunked.run(c, C))
    gates = {f"d{d.name}" for d in (*call.program.ins, *call.program.params) if is_gate(d)}
    grads = {n for n in want if n.startswith("d")}
    floor = FLOOR * max(rms(want[n]) for n in grads)
    for name, w in want.items():
        kind = "gate" if name in gates else "grad" if name in grads else "out"
        assert got[name].isfinite().all(), name
        assert_agree(got[name], w, dtype, kind, floor=floor if name in grads else 0.0, name=name)


LENGTHS = (0, 1, 15, 16, 17, 63, 64, 65, 130)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind, T):
    check(make_call(kind, T=T))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cu", [(0, 0, 5, 5, 21, 70), (0, 16, 32, 33, 130, 130)])
def test_ragged(kind, cu):
    check(make_call(kind, B=1, T=cu[-1], cu_seqlens=torch.tensor(cu), reverse=kind == "log"), C=16)


@pytest.mark.parametrize("C", [1, 8, 32, 128])
def test_any_chunk_length(C):
    check(make_call("between", T=70), C)


@pytest.mark.parametrize("groups", [dict(q=2, k=1), dict(v=2, g=1, D=1), dict(a=2, D=2)])
def test_grouped_heads(groups):
    for which in ({}, {"reverse": True}, {"mask": torch.arange(140).reshape(2, 70) % 3 > 0}):
        check(make_call("between", T=70, groups=groups, **which), 16)


@pytest.mark.parametrize("sizes", [(1, 1), (33, 2), (7, 60)])
def test_odd_sizes(sizes):
    check(make_call("before", T=40, K=sizes[0], V=sizes[1]), 16)


def test_no_sequences():
    check(make_call(B=0))
    check(make_call(B=1, T=0, cu_seqlens=torch.tensor([0, 0, 0])))


@pytest.mark.parametrize("gates", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("kind", ["log", "before"])
def test_single_precision_keeps_its_digits(kind, gates):
    check(make_call(kind, T=130, dtype=torch.float32, gates=gates))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_single_precision(dtype):
    check(make_call("log", T=70, dtype=dtype))


def test_many_segments_and_bands():
    """Segments of a chunk or two, bands of a sequence or two: what flows between them."""
    with cut(SEGMENT_BYTES=1 << 14, BAND_BYTES=1 << 14):
        check(make_call("between", B=3, T=150), 16)
        check(make_call("log", B=1, T=150, cu_seqlens=torch.tensor([0, 3, 80, 80, 150])), 8)


@pytest.mark.parametrize("kind", KINDS)
def test_causality_bit_for_bit(kind):
    call = make_call(kind, T=100, dtype=torch.float32)
    changed = {n: x.detach().clone() for n, x in call.ins.items()}
    for x in changed.values():
        x[:, 70] = -0.5
    with torch.no_grad():
        a, b = chunked.run(call)[0]["o"], chunked.run(replace(call, ins=changed))[0]["o"]
    assert torch.equal(a[:, :70], b[:, :70])
    assert not torch.equal(a[:, 70:], b[:, 70:])


def test_only_wanted_gradients_are_formed():
    call = make_call("log", T=40)
    only = replace(call, ins={n: x.detach().requires_grad_(n == "v") for n, x in call.ins.items()},
                   params={n: x.detach() for n, x in call.params.items()}, states0={})
    o, _ = chunked.run(only)
    (got,) = torch.autograd.grad(o["o"].sum(), [only.ins["v"]])
    (want,) = torch.autograd.grad(sequential.run(only, torch.float64)[0]["o"].sum(), [only.ins["v"]])
    assert_agree(got, want, torch.float64)


def test_backward_twice_along_one_graph():
    call = make_call("log", T=70)
    o, _ = chunked.run(call)
    first = torch.autograd.grad(o["o"].sum(), [call.ins["k"]], retain_graph=True)
    other, _ = chunked.run(call)  # takes scratch in between
    assert torch.equal(first[0], torch.autograd.grad(o["o"].sum(), [call.ins["k"]])[0])
    del other


def test_cotangents_of_final_states_stay():
    call = make_call("log", B=1, T=70)
    _, states = chunked.run(call)
    given = {n: torch.ones_like(x) for n, x in states.items()}
    got = torch.autograd.grad(list(states.values()), [*call.ins.values(), *call.states0.values()],
                              list(given.values()), allow_unused=True)
    assert all(torch.equal(x, torch.ones_like(x)) for x in given.values()) and got[-1] is not None


def test_final_states_only_where_they_are_asked_for():
    call = make_call("log", T=20)
    want, _ = chunked.run(call)
    got, states = chunked.run(replace(call, want_state=False))
    assert not states and torch.equal(got["o"], want["o"])


@pytest.mark.parametrize("T", [5, 64, 150])
def test_places_that_are_kept(T):
    """Calls of one shape share buffers and views of them, whatever their strides, head counts and values are."""
    def turned(call):
        ins = {n: x.detach().transpose(0, 1).contiguous().transpose(0, 1) for n, x in call.ins.items()}
        return replace(call, ins={n: x.requires_grad_() for n, x in ins.items()})
    calls = [make_call("log", T=T), make_call("log", T=T, groups={"q": 2, "v": 1}), make_call("log", B=4, H=2, T=T),
             turned(make_call("log", T=T, gates=0.1))]
    for call in [*calls, *calls[::-1]]:
        got = values_and_gradients(call, chunked.run)
        want = values_and_gradients(call, lambda c: sequential.run(c, torch.float64))
        for name, x in got.items():
            assert_agree(x, want[name], torch.float64)


def test_a_new_length_compiles_nothing():
    code = compiled(PROGRAMS["log"])
    for T in (64, 70, 128):
        values_and_gradients(make_call("log", T=T), chunked.run)
    before = len(code._segments)
    for T in range(65, 200, 9):
        values_and_gradients(make_call("log", T=T, H=2, K=3), chunked.run)
    assert len(code._segments) == before


@pytest.mark.parametrize("N", [1, 2, 4])
def test_chunks_are_shorter_the_more_systems_a_token_is_in(N):
    """Two systems of 32 rows take three quarters of the time of two of 64, four of 16 half the time of four of 64."""
    step, _ = mixc.load("deltaproduct").specialise(dict(K=64, V=64, N=N), {})
    assert compiled(step).longest == 64 // N


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_simplified_programs_mean_the_same(kind, reverse):
    forward = chunk(classify(PROGRAMS[kind]))
    call = make_call(kind, T=12, H=2)
    tensors = {n: x.detach() for n, x in {**call.ins, **call.params}.items()}
    states = {n: x.detach() for n, x in call.states0.items()}
    program, starts = forward, None
    if reverse:
        program, starts = differentiate(forward), run_chunks(forward, tensors, states, call.sizes, 8).starts
        tensors["cot:o"] = torch.randn(2, 12, 2, 3, dtype=torch.float64)
    runs = [run_chunks(p, tensors, states, call.sizes, 8, starts=starts) for p in (program, simplify(program))]
    for a, b in ((runs[0].outs, runs[1].outs), (runs[0].states, runs[1].states), (runs[0].sums, runs[1].sums)):
        for name in a:
            assert_agree(b[name], a[name], torch.float64, name=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_select_is_where_bit_by_bit(dtype):
    from mixc.codegen.torch_prelude import select

    x, y = torch.randn(2, 3, 5, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    x[0, 0, 0], y[0, 0, 1], x[0, 1, 0], y[1, 1, 1] = math.inf, math.nan, math.nan, -math.inf
    zero, one = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    for cond in (torch.rand(2, 3, 5) > 0.5, torch.rand(2, 3, 1) > 0.5):
        for a, b in ((x, y), (x, zero), (zero, y), (one, y), (x, one), (x[:, :1], y), (x, y[:1])):
            want = torch.where(cond, a, b)
            for out in (torch.empty_like(x), a, b):
                if out.shape == x.shape:
                    a2, b2 = (t.clone() for t in (a, b))
                    to = a2 if out is a else b2 if out is b else out.clone()
                    got = select(cond, a2, b2, out=to)
                    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7)) and got is to


@pytest.mark.parametrize("reach", ["incl", "strict", "excl"])
def test_spans_of_vectors_keep_their_digits_beside_what_forgets(reach):
    """They are differences of running sums, in fp32 alone 1e-3 off behind a log of -10000."""
    from mixc.codegen.torch_prelude import span_sum

    g = -torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0))
    g[0, 5] = g[1, 40, 1] = -1e4
    want, got = span_sum(g.double(), reach), span_sum(g, reach)
    assert torch.equal(want == -torch.inf, got == -torch.inf)
    assert (want.exp() - got.exp()).abs().max() < 2e-7


@pytest.mark.parametrize(("name", "sizes", "C"), [("simple_gla", (16, 64), 32), ("simple_gla", (64, 64), 64),
                                                  ("gla", (32, 32), 32), ("gla", (128, 96), 64)])
def test_chunks_of_small_states_are_short(name, sizes, C):
    """Pairs of rows cost by C, what is done with a state by 1/C: small ones are read more often."""
    mixer = mixc.load(name)
    x = draw(mixer.declared, B=1, T=300, H=1, sizes=dict(zip("KV", sizes, strict=True)))
    call = arguments.bind(mixer, (), x, {})
    assert shapes.shapes(compiled(call.program), call, None, False, True, False).C == C
