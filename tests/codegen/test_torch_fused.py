"""Bodies for `torch.compile`: what they compute, how often they are compiled, and what needs a compiler."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen import torch_bodies
from mixc.errors import SpecError
from mixc.runtime import backends, shapes
from mixc.runtime.compiled import compiled
from tests.agree import assert_runs_agree, draw, normal, run

FUSED = ("hgrn", "min_gru", "mamba1", "min_lstm", "rg_lru", "s4d_real", "qrnn", "sru")
SPEC = """
mixer {name}(D) {{
    in    x[D]
    in    g[D] where g <= 0
    param w[D]
    state h[D]

    h = exp(g) * h + w * x

    out o[D] = tanh(h)
}}
"""


def check(mixer, T, B=2, H=1, dtype=torch.float64, **options):
    x = draw(mixer.declared, B=B, T=T, H=H, dtype=dtype, ends=1 / 16, seed=T)
    sizes = {n: s for d in mixer.declared.ins for n, s in zip(d.dims, x[d.name].shape[3:], strict=True)}
    sizes |= {n: s for d in mixer.declared.params for n, s in zip(d.dims, x[d.name].shape[1:], strict=True)}
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    given = {d.name: normal([N, H, *(sizes[n] for n in d.dims)], 5, d.name, dtype) for d in mixer.declared.states}
    want = run(mixer, x, initial_state=given, wide=True, **options)
    assert_runs_agree(mixer, run(mixer, x, initial_state=given, backend="torch.compile", **options), want, dtype)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bodies(name, dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    mixer = mixc.load(name)
    check(mixer, 83, dtype=dtype)
    check(mixer, 80, B=1, H=2, dtype=dtype)
    check(mixer, 90, B=1, cu_seqlens=torch.tensor([0, 0, 5, 48, 90]), dtype=dtype)
    made = [s for k, s in compiled(mixer.declared).spreading._segments.items() if k[0] == "fused"]
    assert made and all(hasattr(s, "run") for s in made), f"{name} ran no such body"


@pytest.mark.parametrize("name", ["mamba1", "s4d_real"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_wide_states_chunk_by_chunk(name, dtype, monkeypatch):
    """Sums over features of what is scanned are formed behind the bodies, from rows that these wrote."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr(shapes, "CHAINED", 1)
    mixer = mixc.load(name)
    check(mixer, 163, dtype=dtype)
    check(mixer, 160, B=1, H=2, dtype=dtype)
    check(mixer, 170, B=1, cu_seqlens=torch.tensor([0, 0, 5, 98, 170]), dtype=dtype)
    made = [s for k, s in compiled(mixer.declared).spreading._segments.items() if k[0] == "fused" and k[-1]]
    assert made and all("def sums" in s.text and "def ends" not in s.text for s in made)


@pytest.mark.parametrize("name", ["hgrn", "mamba1"])
def test_what_a_call_in_inference_mode_leaves_serves_one_with_gradients(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    mixer = mixc.load(name)
    x = draw(mixer.declared, B=2, T=96, H=1, seed=0)
    with torch.inference_mode():
        mixer(**x, backend="torch.compile")
    check(mixer, 96)


@pytest.mark.parametrize("name", ["lru", "simple_gla", "gru"])
def test_what_is_no_scan_of_numbers_runs_as_on_torch(name):
    mixer = mixc.load(name)
    mixer.noted = True
    check_same(mixer)


def check_same(mixer):
    x = draw(mixer.declared, B=1, T=33, H=1, dtype=torch.float64, ends=0.0)
    a, b = (run(mixer, x, backend=backend) for backend in ("torch", "torch.compile"))
    assert all(torch.equal(a.outs[n], b.outs[n]) for n in a.outs)


def test_compiled_once_whatever_the_lengths(monkeypatch):
    graphs, compile_ = [], torch.compile

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, backend=count, fullgraph=True))
    mixer = mixc.loads(SPEC.format(name="counted"))
    for T in (64, 200, 48, 333, 96):
        check(mixer, T, B=3)
    assert len(graphs) == 6, "shared, ends and body, forward and backward"


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(backends.shutil, "which", lambda *_: None)
    with pytest.raises(SpecError, match="C\\+\\+ compiler") as e:
        mixc.load("hgrn")(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2), backend="torch.compile")
    assert e.value.diagnostics[0].code == "MX313"


def test_a_graph_runs_by_itself_where_arguments_are_as_before(monkeypatch):
    from torch._inductor import compile_fx

    calls = []

    def inner(module, inputs, **_):
        def run(given):
            calls.append(len(given))
            found = module(*given)
            given.clear()
            return found
        return run

    def f(*, x, rows, scale, out):
        out.copy_(x + rows[0] * scale)
        return (x * rows[1],)

    monkeypatch.setattr(compile_fx, "compile_fx_inner", inner)
    f = torch_bodies.Compiled(f)
    looked, plain = [], f._run
    f._run = lambda **given: looked.append(1) or plain(**given)
    for n, (size, scale) in enumerate([(4, 2.0), (4, 2.0), (6, 2.0), (6, 2.0), (4, 3.0), (4, 2.0)]):
        x, a, b, out = (torch.randn(size, generator=torch.Generator().manual_seed(4 * n + i)) for i in range(4))
        (product,) = f({"x": x, "rows": [a, b], "scale": scale, "out": out}, known=size)
        assert torch.equal(product, x * b) and torch.equal(out, x + a * scale)
    assert len(looked) == 3, "once a size and a number"
    assert len(calls) == 6


@pytest.mark.slow
def test_with_the_compiler_of_loops(monkeypatch):
    check(mixc.loads(SPEC.format(name="built")), 70, dtype=torch.float32)
    monkeypatch.setattr(shapes, "CHAINED", 1)
    mixer = mixc.load("mamba1")
    for _ in range(2):
        check(mixer, 163, dtype=torch.float32)
        check(mixer, 170, B=1, cu_seqlens=torch.tensor([0, 0, 5, 98, 170]), dtype=torch.float32)
