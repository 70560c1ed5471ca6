"""Lags and positions in chunk and scan programs, against the step run token by token."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

import mixc
from tests.agree import assert_runs_agree, draw, normal, run

SPECS = {
    "rotary": None,
    "conv_gla": """mixer conv_gla(K, V, W) {
        in q[K], k[K], v[V]
        in g where g <= 0
        param c[K, W], d[W]
        state S[K, V]
        key = silu(sum[W](c * lag[W](k)))
        S = exp(lag(g, 1)) * S + key * (v + lag(v, 2)) * sum[W](d * lag[W](g))
        out o[V] = q @ S
    }""",
    "lag_of_local": """mixer lag_of_local(D) {
        in x[D], f[D]
        param w[D]
        state h[D]
        u = tanh(w * x) + lag(x, 3)
        h = sigmoid(f) * h + u - 0.5 * lag(u, 2)
        out o[D] = h * lag(f, 1)
    }""",
    "resets": """mixer resets(D) {
        in x[D], f[D]
        state h[D]
        h = where(pos % 16 == 0, 0, sigmoid(f) * h) + x * cos(pos * 0.1)
        out o[D] = h
    }""",
    "window_whole": """mixer window_whole(D, W = 4) {
        in x[D], f[D]
        state h[D]
        h = sigmoid(f) * h + max[W](lag[W](x))
        out o[D] = h
    }""",
    "loss_of_a_window": """mixer loss_of_a_window(K, V, W = 3) {
        in q[K], v[V], b where 0 <= b <= 1
        in k[K] where norm[K](k) <= 1
        state S[K, V]
        S = S - 0.3 * grad[S](0.5 * sum(lag[W](b) * square(sum[K](lag[W](k) * S) - lag[W](v))))
        out o[V] = q @ S
    }""",
    "turning_keys": """mixer turning_keys(P, V) {
        in q[P] complex, k[P] complex, v[V]
        state S[P, V]
        turn = exp(1j * pos * 100 ** (-index[P] / P))
        S = 0.9 * S + conj(turn * k) * v
        out o[V] = real((turn * q) @ S)
    }""",
    "turning": """mixer turning(N) {
        in u[N] complex
        in x
        state z[N]
        z = 0.9 * exp(1j * pos * 0.3) * z + lag(u, 1) + lag(x, 1)
        out o[N] = real(z)
    }""",
}


def spec(name):
    text = SPECS[name]
    return mixc.load("rotary_linear_attention") if text is None else mixc.loads(text)


def check(name, T=40, B=2, H=2, backend="torch", dtype=torch.float64, **options):
    mixer = spec(name)
    assert "sequential" not in mixer.form.values()
    sizes = {d.name: d.size or 3 + i for i, d in enumerate(mixer.declared.dims)}
    x = draw(mixer.declared, B=B, T=T, H=H, sizes=sizes, dtype=dtype, seed=T)
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    given = _given(mixer, x, N, H, sizes, dtype)
    for start in (given, None):
        want = run(mixer, x, initial_state=start, wide=dtype == torch.float64, **options)
        got = run(mixer, x, initial_state=start, backend=backend, **options)
        assert_runs_agree(mixer, got, want, dtype)
        assert set(got.states) == set(want.states)


def _given(mixer, x, N, H, sizes, dtype):
    """States, histories and positions, as a call on some tokens leaves them."""
    ins = {d.name for d in mixer.declared.ins}
    first = {n: t[:1, :1].repeat(N, 4, *[1] * (t.ndim - 2)) if n in ins else t for n, t in x.items()}
    _, state = mixer(**first, output_final_state=True, backend="reference")
    return {n: t + 11 if n == "pos" else t + normal(t.shape, 3, n, t.dtype) for n, t in state.items()}


@pytest.mark.parametrize("name", SPECS)
def test_torch(name):
    check(name)
    check(name, 1)
    check(name, 90, B=1, cu_seqlens=torch.tensor([0, 0, 2, 5, 21, 90]))
    check(name, 20, B=1, cu_seqlens=torch.tensor([0, 1, 20]), reverse=True)
    check(name, 30, mask=torch.arange(60).reshape(2, 30) % 3 > 0)
    check(name, 30, reverse=True)


@pytest.mark.parametrize("name", ["conv_gla", "resets", pytest.param("rotary", marks=pytest.mark.slow),
                                  pytest.param("lag_of_local", marks=pytest.mark.slow)])
def test_kernels_interpreted(name):
    check(name, 20, backend="triton", dtype=torch.float32)
    check(name, 20, B=1, backend="triton", dtype=torch.float32, cu_seqlens=torch.tensor([0, 0, 2, 20]), reverse=True)


@pytest.mark.parametrize("name", SPECS)
def test_prefill_then_step(name):
    mixer, sizes = spec(name), {d.name: d.size or 3 + i for i, d in enumerate(spec(name).declared.dims)}
    x = draw(mixer.declared, B=2, T=9, H=2, sizes=sizes, dtype=torch.float64)
    ins = {d.name for d in mixer.declared.ins}
    want, _ = mixer(**x)
    _, state = mixer(**{n: t[:, :5] if n in ins else t for n, t in x.items()}, output_final_state=True)
    for t in range(5, 9):
        o, state = mixer.step(state, **{n: y[:, t] if n in ins else y for n, y in x.items()})
        torch.testing.assert_close(o, want[:, t], rtol=1e-10, atol=1e-10)


def test_groups_of_heads():
    mixer = spec("conv_gla")
    x = draw(mixer.declared, B=2, T=20, H=4, sizes=dict(K=3, V=4, W=3), dtype=torch.float64)
    x |= {n: x[n][:, :, :g] for n, g in dict(k=2, v=1, g=2).items()}
    assert_runs_agree(mixer, run(mixer, x, backend="torch"), run(mixer, x, wide=True), torch.float64)


def test_positions_are_exact_far_from_the_start():
    mixer = spec("rotary")
    x = draw(mixer.declared, B=1, T=8, H=1, dtype=torch.float32)
    start = {"pos": torch.tensor([1_000_000])}
    got, want = (mixer(**x, initial_state=start, backend=b)[0] for b in ("torch", "reference"))
    assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("decay,sized", [
    ("where(pos % (index[K] + 1) == 0, 0.9, 1)", True), ("1 - 1 / (pos + 2)", True), ("sigmoid(lag(y, 1))", False),
    ("where(pos % 3 == 0, 2, 0.5)", False)])
def test_what_positions_and_lags_are_proved_to_be_is_known_of_them_as_inputs(decay, sized):
    """A decay of size 1 at most goes by its log; of any size its products would be formed for all pairs of rows."""
    from mixc.passes.context import context

    mixer = mixc.loads("mixer m(K, V) {\nin k[K], v[V], q[K]\nstate S[K, V]\ny = 2 * k\n"
                       f"S = {decay} * S + k * v\nout o[V] = q @ S\n}}")
    (made,) = (d for d in context(mixer.declared).program.ins if d.name not in "kvq")
    ends = [(r.low.attr("value"), r.high.attr("value")) for r in made.ranges]
    assert ends == ([(0, 1)] if sized else [])


def test_a_correction_by_the_last_keys_is_one_of_their_number():
    """It ran token by token, as single lags; and its strength, repeated for every column, made a system of each."""
    from mixc.runtime.compiled import compiled
    from mixc.runtime.context import context_of

    made = context_of(spec("loss_of_a_window").declared, {"W": 3})
    assert {"k_window", "v_window", "b_window"} <= {d.name for d in made[0].program.ins}
    text = compiled(made[0].program).forward(False, True, False).text
    assert "unit_inverse(" in text and "solve_columns(" not in text


def test_a_step_that_carries_nothing_forms_no_windows():
    """A convolution was formed by the reference, a window a token: 927 ms where conv1d takes 97, now 81."""
    mixer = mixc.load("short_conv")
    x, c = torch.randn(2, 33, 2, 8, requires_grad=True), torch.randn(2, 8, 4, requires_grad=True)
    with patch("mixc.runtime.sequential.run", side_effect=AssertionError("token by token")):
        y, _ = mixer(x, c, backend="torch")
    wide = torch.nn.functional.pad(x.flatten(2).transpose(1, 2), (3, 0))
    want = torch.nn.functional.conv1d(wide, c.flip(-1).reshape(16, 1, 4), groups=16).transpose(1, 2).view_as(y)
    torch.testing.assert_close(y, torch.nn.functional.silu(want))


def test_windows_of_a_given_size_are_lags_in_the_emitted_file():
    """All of a window was formed for every token: four times the bytes of a convolution, and of its gradient."""
    mixer = mixc.load("short_conv")
    shape = dict(B=8, T=2048, H=16, D=64)
    assert "past.window('x', W)" in mixer.emit(shape=shape)
    text = mixer.emit(shape=shape | {"W": 4})
    assert "past.window" not in text and "past.ago('x', 3)" in text and "SIZES = {}, {'W': 4}" in text
