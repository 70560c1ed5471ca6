"""Emitted modules of steps that read earlier inputs and positions, as a user calls them, against the step in fp64."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache, partial

import pytest
import torch

import mixc
from mixc.codegen.offline import load_text
from mixc.runtime.agree import Plain
from tests.agree import assert_runs_agree, draw, normal, run

SPECS = {
    "ar_net": None, "rotary_linear_attention": None, "short_conv": None,
    "position_in_window": """mixer position_in_window(K, V, W) {
        in q[K], k[K], v[V]
        param c[K, W], a[W]
        const far = 100
        state S[K, V]
        key = max[W](lag[W](k)) * cos((pos % 7) * far ** (-index[K] / K)) + sum[W](c * softmax[W](a) * lag[W](k))
        S = 0.9 * S + key * where(pos % 4 == 0, 0, v)
        out o[V] = q @ S
    }""",
    "turned": """mixer turned(N, J = N) {
        in u[N] complex
        in x[J], g where g <= 0
        param w[N, J]
        state z[N]
        decay = exp(g)
        turn = exp(1j * pos * 0.3) * u + (w @ x)
        z = 0.9 * exp(1j * pos * 0.2) * z + lag(turn, 2) * lag(decay, 1) + lag(u, 3)
        out o[N] = real(z) + imag(lag(u, 1)) + abs(turn)
    }""",
    "trapezoid": """mixer trapezoid(N, P) {
        in x[P], B[N] complex, C[N] complex
        in dt where dt >= 0
        in lam where 0 <= lam <= 1
        in theta[N]
        param A where A <= 0
        state h[N, P]
        a = exp(dt * A) * exp(1j * dt * theta)
        h = a * h + (1 - lam) * dt * a * lag(B, 1) * lag(x, 1) + lam * dt * B * x
        out y[P] = real(C @ h) + cos(pos) * x
    }""",
    "depths": """mixer depths(K, V, W = 3) {
        in q[K], k[K], v[V]
        in g[K] where g <= 0
        param w[K]
        state S[K, V]
        u = tanh(w * k) / norm[K](1 + square(k)) + lag(k, 5) * (1 + pos % 3)
        S = exp(g + lag(g, 2)) * S + lag(u, 3) * (v + lag(v, 1)) + where(pos < 2, 0, lag(k, 2)) * sum[W](lag[W](v))
        out o[V] = q @ S
        out p = sum(lag(u, 1) * q)
    }""",
    "cell": """mixer cell(D, E = D, W = 3) {
        in x[D], f[D]
        param R[D, E], c[D, W]
        state h[D] = 0.5 * index[D] / D
        u = silu(sum[W](c * lag[W](x)))
        h = tanh(R @ h[E] + u) + 0.1 * lag(f, 2) * cos(pos)
        out o[D] = h
    }""",
    "convolved": """mixer convolved(K, V, W = 4) {
        in q[K], k[K], v[V], g where g <= 0
        in beta where 0 <= beta <= 1
        param cq[K, W], ck[K, W], cv[V, W]
        state S[K, V]
        S = exp(g) * S
        S = S + beta * silu(sum[W](ck * lag[W](k))) * (silu(sum[W](cv * lag[W](v))) - 0.1 * (k @ S))
        out o[V] = silu(sum[W](cq * lag[W](q))) @ S
    }""",
    "started": """mixer started(K, V) {
        in q[K], k[K], v[V]
        state S[K, V] = 0.5
        S = 0.9 * S + lag(k, 1) * v
        out o[V] = q @ S
    }""",
    "memory": """mixer memory(K, V) {
        in q[K], k[K], v[V]
        state S[K, V]
        S = tanh(where(pos % 4 == 0, 0, 0.9 * S) + lag(k, 1) * v)
        out o[V] = q @ S
    }""",
}


@cache
def spec(name):
    text = SPECS[name]
    return mixc.load(name) if text is None else mixc.loads(text)


@cache
def emitted(mixer):
    mixer = spec(mixer) if isinstance(mixer, str) else mixer
    return load_text(mixer.emit(), mixer.__name__)


class Emitted:
    def __init__(self, mixer):
        self.declared, self.function = mixer.declared, getattr(emitted(mixer), mixer.__name__)

    def __call__(self, backend, **given):
        return self.function(check=True, **given)


def sizes(name):
    found = {d.name: d.size or 3 + i for i, d in enumerate(spec(name).declared.dims)}
    return found | {d.name: found[d.alias] for d in spec(name).declared.dims if d.alias}


def tensors(name, T, B=2, H=2, **more):
    return draw(spec(name).declared, B=B, T=T, H=H, sizes=sizes(name), dtype=torch.float32, seed=T, **more)


def state_of(name, x, N):
    """States, histories and positions, as a call on some tokens leaves them."""
    ins = {d.name for d in spec(name).declared.ins}
    first = {n: t[:1, :1].repeat(N, 4, *[1] * (t.ndim - 2)) if n in ins else t for n, t in x.items()}
    _, state = spec(name)(**first, output_final_state=True, backend="reference")
    return {n: t + 11 if n == "pos" else t + 0.1 * normal(t.shape, 3, n, t.dtype) for n, t in state.items()}


def check(name, T, B=2, H=2, x=None, begun=True, **options):
    mixer = spec(name)
    x = x or tensors(name, T, B, H)
    start = state_of(name, x, len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B) if begun else None
    want = run(mixer, x, initial_state=start, wide=True, **options)
    got = run(Emitted(mixer), x, initial_state=start, **options)
    assert_runs_agree(mixer, got, want, torch.float32, partial(run, Plain(mixer), x, initial_state=start, **options))
    assert set(got.states) == set(want.states)
    assert {y.dtype for y in got.outs.values()} == {torch.float32}


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"cu_seqlens": torch.tensor([0, 2, 2, 24, 40])},
                                     {"cu_seqlens": torch.tensor([0, 19, 40]), "reverse": True}], ids=str)
@pytest.mark.parametrize("name", ["ar_net", "short_conv", "convolved", "depths", "cell"])
def test_where_nothing_was_before_kernels_look_back_themselves(name, options):
    check(name, 40, B=1 if "cu_seqlens" in options else 2, begun=False, **options)


@pytest.mark.parametrize("options", [{}, {"cu_seqlens": torch.tensor([0, 2, 2, 24, 40])}, {"reverse": True},
                                     {"mask": torch.arange(40).reshape(1, 40) % 3 > 0}], ids=str)
def test_kernels_of_a_call_look_back_themselves(options, monkeypatch):
    from mixc.codegen import triton_program

    found, ask = list[frozenset[str]](), triton_program.read_alone
    monkeypatch.setattr(triton_program, "read_alone", lambda *given: found.append(ask(*given)) or found[-1])
    for name, alone in (("convolved", {f"{x}_lag{n}" for x in "qkv" for n in (1, 2, 3)}),
                        ("depths", {"k_lag2", "v_lag1", "v_lag2"}), ("started", {"k_lag1"})):
        mixer, x = spec(name), tensors(name, 40, B=1)
        assert_runs_agree(mixer, run(mixer, x, backend="triton", **options), run(mixer, x, wide=True, **options))
        assert found.pop() == alone
    start = state_of("convolved", tensors("convolved", 40, B=1), 1)  # with a history they are given what was
    x = tensors("convolved", 40, B=1)
    assert_runs_agree(spec("convolved"), run(spec("convolved"), x, backend="triton", initial_state=start),
                      run(spec("convolved"), x, wide=True, initial_state=start))


def test_inputs_some_tokens_ago_are_no_tensors_of_their_own():
    for name, where in (("short_conv", {"x"}), ("convolved", {"q", "k", "v"}), ("cell", set())):
        text = spec(name).emit(shape={"W": 3} if name == "short_conv" else None)
        assert all(f"{x}_lag2 = past.ago('{x}', 2) if '{x}' in initial else None" in text for x in where)
        assert ("with_taps" in text) == bool(where)
        assert not any(f"d{x}_lag1" in text for x in where)
    text = spec("depths").emit()
    assert "with_later" in text and "with_taps" not in text


def test_what_turns_a_complex_state_is_known_beside_lags():
    """A phase goes with what is read and written: the state is a chunk's, with products, and no scan of matrices."""
    text = spec("trapezoid").emit()
    assert "B_lag1_re = past.ago('B_re', 1) if 'B_re' in initial else None" in text
    assert "= dot(" in text and "associative_scan" not in text


@pytest.mark.parametrize("name", SPECS)
def test_dense(name):
    check(name, 21, begun=False)
    check(name, 19, reverse=True)


@pytest.mark.parametrize("name", SPECS)
def test_ragged(name):
    check(name, 23, B=1, cu_seqlens=torch.tensor([0, 0, 2, 5, 23, 23]))
    check(name, 20, B=1, cu_seqlens=torch.tensor([0, 1, 20]), reverse=True, begun=False)
    check(name, 11, mask=torch.arange(22).reshape(2, 11) % 3 > 0)
    masked = torch.arange(20).reshape(1, 20) % 4 == 0
    check(name, 20, B=1, cu_seqlens=torch.tensor([0, 0, 9, 20]), mask=~masked, reverse=True)


@pytest.mark.parametrize("name", SPECS)
def test_no_tokens(name):
    f, start = getattr(emitted(name), name), state_of(name, tensors(name, 1), 2)
    _, state = f(**tensors(name, 0), initial_state=start, output_final_state=True)
    for n, y in state.items():
        torch.testing.assert_close(y, start[n])
    _, state = f(**tensors(name, 0, B=1), output_final_state=True, cu_seqlens=torch.tensor([0, 0, 0]))
    assert all(len(y) == 2 for y in state.values())


@pytest.mark.parametrize("name", SPECS)
def test_prefill_then_steps(name):
    f, step = getattr(emitted(name), name), getattr(emitted(name), name + "_step")
    x, ins = tensors(name, 9), {d.name for d in spec(name).declared.ins}
    want, last = f(**x, output_final_state=True)
    _, state = f(**{n: t[:, :5] if n in ins else t for n, t in x.items()}, output_final_state=True)
    for t in range(5, 9):
        o, state = step(state, **{n: y[:, t] if n in ins else y for n, y in x.items()})
        for a, b in zip(several(o), several(want), strict=True):
            torch.testing.assert_close(a, b[:, t], rtol=1e-4, atol=1e-5)
    for n in last:
        torch.testing.assert_close(state[n], last[n], rtol=1e-4, atol=1e-5)


def several(o):
    return [o] if torch.is_tensor(o) else o


def test_groups_of_heads_and_none():
    x = tensors("depths", 20, H=4)
    check("depths", 20, H=4, x=x | {n: x[n][:, :, :g] for n, g in dict(k=2, v=1, g=2).items()})
    x = {n: t[:, :, 0] if n in ("x", "f") else t[0] for n, t in tensors("cell", 9, H=1).items()}
    check("cell", 9, x=x)


def test_half_inputs_give_half_outs():
    x = {n: t.bfloat16() for n, t in tensors("ar_net", 9).items()}
    o, state = emitted("ar_net").ar_net(**x, output_final_state=True)
    assert o.dtype == torch.bfloat16 and state["x"].dtype == torch.float32
    o, _ = emitted("ar_net").ar_net(**x, initial_state=state)
    assert o.dtype == torch.bfloat16


def test_positions_are_exact_far_from_the_start():
    x, start = tensors("depths", 8), {"pos": torch.tensor([1_000_000, 3])}
    want, _ = spec("depths")(**x, initial_state=start, backend="reference")
    for a, b in zip(emitted("depths").depths(**x, initial_state=start)[0], want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "module"])
def test_a_cotangent_of_zero_stays_zero(backend):
    """Also where what is looked back at has an infinite derivative."""
    mixer = mixc.loads("mixer m(D) {\nin x[D], y[D] where y >= 0\nparam p[D]\nconst c = 0.5\nstate h[D]\n"
                       "u = where(y > 0, log(y) * p + c / y, maximum(c, p))\n"
                       "h = 0.5 * h + lag(u, 1)\nout o[D] = h * x\n}")
    x = draw(mixer.declared, B=2, T=40, H=2)
    assert (x["y"] == 0).any()
    got = run(Emitted(mixer) if backend == "module" else mixer, x, backend=backend)
    assert_runs_agree(mixer, got, run(mixer, x, wide=True), torch.float32, partial(run, Plain(mixer), x))


@pytest.mark.parametrize("backend", ["torch", "module"])
def test_what_forgets_everything_has_no_gradient_through_what_is_kept(backend):
    mixer = mixc.loads("mixer m(D) {\nin x[D], g where g <= 0\nstate h[D]\n"
                       "h = exp(g + lag(g, 1)) * h + x\nout o[D] = h\n}")
    x = draw(mixer.declared, B=2, T=5, H=2)
    x["g"][:, [0, -1]] = -torch.inf
    got = run(Emitted(mixer) if backend == "module" else mixer, x, backend=backend)
    assert_runs_agree(mixer, got, run(mixer, x, wide=True))


@pytest.mark.parametrize(("name", "state", "words"), [
    ("short_conv", {"y": torch.zeros(1)}, "no state `y`; there are x"),
    ("short_conv", {"x": torch.zeros(2, 3, 2, 4)}, r"expected x \[2, 3, 2, 3\]"),
    ("depths", {"pos": torch.zeros(2)}, r"expected pos \[2\]"),
])
def test_bad_pasts_are_named(name, state, words):
    with pytest.raises(ValueError, match=words):
        getattr(emitted(name), name)(**tensors(name, 5), initial_state=state)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "rotary_linear_attention" else [pytest.mark.slow])
                                  for n in ("ar_net", "rotary_linear_attention", "short_conv", "turned")])
def test_the_file_needs_torch_and_triton_only(name, tmp_path):
    (tmp_path / "kernels.py").write_text(spec(name).emit())
    x = tensors(name, 7)
    torch.save([x, spec(name)(**x, backend="reference")[0]], tmp_path / "case.pt")
    program = (f"import sys, torch\nsys.modules['mixc'] = None\nimport kernels\nx, want = torch.load('case.pt')\n"
               f"o, _ = kernels.{name}(**x)\ntorch.testing.assert_close(o, want, rtol=1e-4, atol=1e-5)\n")
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-1500:]


def test_rows_that_are_more_than_tokens_look_back_too():
    """Of every token R of them: whether there was such a token is asked of each."""
    text = mixc.load("mamba3_mimo").emit()
    compile(text, "emitted", "exec")
    assert "row * SIGN + held_by_R >= x_lag1_back)[:, None]" in text


def test_tables_of_positions_have_no_gradients():
    text = spec("rotary_linear_attention").emit()
    assert "cos_of_pos_ptr" in text and "dcos_of_pos" not in text and "dsin_of_pos" not in text
    assert "dpos_of" not in spec("position_in_window").emit() and "dposition" not in spec("cell").emit()


def test_explain_and_tune_are_of_the_kernels_that_emit_writes():
    """A window of a known size is read as single rows some tokens ago, and so it is told."""
    mixer = mixc.load("short_conv")
    assert "bytes `4*D*H*(B*T + 2)`" in mixer.explain(shape={"W": 4})
    assert [d.name for d in mixer.as_emitted({"W": 4}).dims if d.size == 4] == ["W"]


def test_a_part_may_have_an_input_some_tokens_ago_without_the_input():
    mixer = mixc.loads("mixer m(K, V) {\nin k[K], v[V], q[K]\nstate y[K], S[K, V]\n"
                       "y = tanh(0.5 * y * square(y) + lag(k, 2))\nS = 0.9 * S + (y + lag(k, 1) + lag(k, 2)) * v\n"
                       "out o[V] = (q + lag(k, 1)) @ S\n}")
    x = draw(mixer.declared, B=2, T=40, H=1, sizes=dict(K=5, V=4), dtype=torch.float32, seed=1)
    assert_runs_agree(mixer, run(mixer, x, backend="triton"), run(mixer, x, wide=True))
    assert mixer.emit()
