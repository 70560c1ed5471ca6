"""Sequential programs on the torch backend against the step run token by token: forward, backward, final states."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.ir.node import postorder
from mixc.passes.cell import cell
from mixc.runtime import cells
from mixc.runtime.cell_programs import compiled
from tests.agree import assert_runs_agree, draw, normal, ratio, run
from tests.cell_specs import NAMES, spec

EXAMPLES = ("lstm", "gru", "slstm")
pytestmark = pytest.mark.filterwarnings("ignore:.*MX301")


def load(name):
    return spec(name) if name in NAMES else mixc.load(name)


def inputs(mixer, T, B, H, dtype):
    sizes = {d.name: 3 + i for i, d in enumerate(mixer.declared.dims) if d.alias is None}
    sizes |= {d.name: sizes[d.alias] for d in mixer.declared.dims if d.alias}
    return sizes, draw(mixer.declared, B=B, T=T, H=H, sizes=sizes, dtype=dtype, ends=1 / 16, seed=T)


def check(mixer, T=40, B=2, H=2, dtype=torch.float64, change=lambda x: x, **options):
    assert "sequential" in mixer.form.values()
    sizes, x = inputs(mixer, T, B, H, dtype)
    x = change(x)
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    given = {d.name: normal([N, H, *(sizes[n] for n in d.dims)], 5, d.name, dtype) for d in mixer.declared.states}
    for start in (given, None):
        want = run(mixer, x, initial_state=start, wide=dtype == torch.float64, **options)
        got = run(mixer, x, initial_state=start, backend="torch", **options)
        assert_runs_agree(mixer, got, want, dtype)


@pytest.mark.parametrize("name", [*NAMES, *EXAMPLES])
def test_cells(name, monkeypatch):
    monkeypatch.setattr(cells, "SEGMENT", 1)  # segments of 16 tokens
    mixer = load(name)
    check(mixer)
    check(mixer, 1)
    check(mixer, 40, B=1, cu_seqlens=torch.tensor([0, 0, 2, 5, 21, 40]))
    check(mixer, 20, reverse=True)
    check(mixer, 30, mask=torch.arange(60).reshape(2, 30) % 3 > 0)
    check(mixer, 20, dtype=torch.float32)


@pytest.mark.parametrize("name", ["oscillators", "stabilised_cell", "feeds_itself", "attends", "lstm"])
def test_sizes_of_a_layer(name):
    """Large values go to memory that is there, small ones to scratch that outlives the call: a backward has its own."""
    mixer = load(name)
    given = {d.name: 16 if d.name in "KJ" else 64 for d in mixer.declared.dims}
    x = [draw(mixer.declared, B=2, T=150, H=4, sizes=given, seed=seed, ends=0) for seed in (1, 2)]
    want = [run(mixer, y, wide=True) for y in x]
    leaves = [{n: t.clone().requires_grad_() for n, t in y.items()} for y in x]
    outs = [mixer(**y)[0] for y in leaves]  # the second call is made before the backward of the first
    assert_runs_agree(mixer, run(mixer, x[0], backend="torch"), want[0], torch.float32)
    for y, o, w in zip(leaves, outs, want, strict=True):
        (out,) = w.outs.values()
        assert ratio(o, out) < 1e-5
        grads = torch.autograd.grad((o * torch.ones_like(o)).sum(), list(y.values()))
        of_one = torch.autograd.grad(mixer(**y, backend="reference")[0].sum(), list(y.values()))
        assert max(ratio(a, b) for a, b in zip(grads, of_one, strict=True)) < 1e-4


def test_guards_of_a_span_whose_values_are_finite():
    """Only the first token sees m = -inf: the spans behind it multiply without looking for cotangents of 0."""
    mixer = load("stabilised_cell")
    code = compiled(mixer.declared, True)
    names = frozenset(d.name for d in (*mixer.declared.ins, *mixer.declared.params))
    assert "masked_fill" in code.backward(names).loop.text and code.backward(names).guards
    assert "masked_fill" not in code.backward(names, True).loop.text


def test_a_token_makes_no_view_and_no_outer_product():
    mixer = load("feeds_itself")
    code = compiled(mixer.declared, True)
    for half in (code.forward(True), code.backward(frozenset(d.name for d in mixer.declared.ins))):
        assert not any(len(n.dims) == 5 and n.op == "mul" for n, _ in half.loop.rows.values())
        for line in half.loop.text.split("strict=True):\n")[1].splitlines():
            assert not any(view in line for view in ("None", "flatten", "permute", "matmul", "unsqueeze")), line
    oscillators = compiled(load("oscillators").declared, True).forward(True).loop.text
    assert "matmul" not in oscillators and "alpha=0.3" in oscillators


def test_groups_of_heads():
    def fewer(x):
        return x | {n: x[n][:, :, :g] for n, g in dict(xi=2, xf=1, k=2, v=1).items() if n in x} | (
            {"Rf": x["Rf"][:2]} if "Rf" in x else {})
    check(mixc.load("lstm"), H=4, change=fewer)
    check(spec("tanh_memory"), H=4, change=fewer)


def test_no_token_and_no_sequence():
    mixer = mixc.load("lstm")
    _, x = inputs(mixer, 3, 2, 2, torch.float32)
    ins = {d.name for d in mixer.declared.ins}
    h0 = torch.randn(2, 2, 3)
    for B, T in ((2, 0), (0, 3)):
        cut = {n: t[:B, :T].requires_grad_() if n in ins else t.requires_grad_() for n, t in x.items()}
        o, state = mixer(**cut, initial_state={"h": h0[:B]}, output_final_state=True)
        assert o.shape == (B, T, 2, 3) and torch.equal(state["h"], h0[:B])
        o.sum().backward()
        assert not cut["Ri"].grad.any()


def test_prefill_then_step_with_gradients():
    mixer = mixc.load("gru")
    _, x = inputs(mixer, 9, 2, 2, torch.float64)
    ins = {d.name for d in mixer.declared.ins}
    leaves = {n: t.requires_grad_() for n, t in x.items()}
    want = mixer(**leaves)[0]
    o, state = mixer(**{n: t[:, :5] if n in ins else t for n, t in leaves.items()}, output_final_state=True)
    rows = [o]
    for t in range(5, 9):
        o, state = mixer.step(state, **{n: y[:, t] if n in ins else y for n, y in leaves.items()})
        rows.append(o.unsqueeze(1))
    got, cot = torch.cat(rows, 1), torch.randn(want.shape, dtype=want.dtype)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(y, list(leaves.values()), cot) for y in (got, want)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_half_inputs_and_only_some_gradients():
    mixer = mixc.load("lstm")
    _, x = inputs(mixer, 20, 2, 2, torch.float32)
    half = {n: t.bfloat16() for n, t in x.items()}
    assert_runs_agree(mixer, run(mixer, half, backend="torch"), run(mixer, half), torch.bfloat16)
    x["xf"].requires_grad_()
    want, got = (torch.autograd.grad(mixer(**x, backend=b)[0].sum(), x["xf"])[0] for b in ("reference", "torch"))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_infinite_gates():
    text = "mixer m(D, E = D) {\nin g[D] where g <= 0\nin x[D]\nparam R[D, E]\nstate h[D]\n" \
           "h = exp(g) * h + tanh(R @ h[E] + x)\nout o[D] = h\n}"

    def some(x):
        x["g"][:, ::3] = -torch.inf
        return x
    check(mixc.loads(text), change=some)


def test_what_the_backward_reads_under_other_names_of_its_dims():
    check(mixc.loads("mixer m(N, M = N) {\nin e[N]\nparam A[N, M]\nstate p[N] = 1 / N\n"
                     "p = (p @ softmax[M](A))[N] * exp(e)\np = p / sum(p)\nout o[N] = p\n}"))


def test_all_gates_in_one_product_and_few_calls_a_token():
    """Stacked gates, one call for equal functions, one for the cotangents of the gates."""
    mixer = mixc.load("lstm")
    code = compiled(mixer.declared, True)
    names = frozenset(d.name for d in (*mixer.declared.ins, *mixer.declared.params))

    def calls(text):
        return [line.strip() for line in text.split("strict=True):\n")[1].splitlines()]
    forward, backward = calls(code.forward(True).loop.text), calls(code.backward(names).loop.text)
    assert len(forward) == 7 and sum("bmm" in c for c in forward) == 1
    assert len(backward) == 6 and sum("bmm" in c for c in backward) == 1
    gru = compiled(mixc.load("gru").declared, True)
    assert sum("bmm" in c for c in calls(gru.forward(True).loop.text)) == 1


SMALL = {
    "dot": "state h[D], a\nh = sigmoid(a) * h + x\na = w @ h\nout o[D] = h",
    "dots": "state S[D, E], a[D]\nS = sigmoid(a) * S + x * y\na = sum[E](y * S)\nout o[D] = S @ y",
    "rows": "state S[D, E], a[E]\nS = sigmoid(a) * S + x * y\na = tanh(w @ S)\nout o[D] = S @ y",
    "columns": "state S[D, E], a[D]\nS = sigmoid(a) * S + x * y\na = tanh(S @ y)\nout o[D] = a",
    "largest": "state S[D, E], a[D]\nS = sigmoid(a) * S + x * y\na = max[E](S) - min[E](S)\nout o[D] = a",
    "itself": "state S[D, E], a\nS = sigmoid(a) * S + x * y\na = tanh(S @ S)\nout o[D] = S @ y",
    "weights": "param R[D, E]\nstate h[D], a[E]\nh = tanh(h + x)\na = tanh(a + h @ R)\nout o[D] = h * (a @ y)",
}


@pytest.mark.parametrize("name", SMALL)
def test_products_of_a_token(name):
    """torch.matmul of such took half of a loop's time; views of a token's part are made of all tokens at once."""
    lines = SMALL[name].split("\n")
    mixer = mixc.loads("\n".join(["mixer m(D, E) {\nin x[D], w[D], y[E]", *lines, "}"]))
    check(mixer)
    check(mixer, 30, mask=torch.arange(60).reshape(2, 30) % 3 > 0)
    check(mixer, 20, dtype=torch.float32, reverse=True)
    code = compiled(mixer.declared, True)
    names = frozenset(d.name for d in (*mixer.declared.ins, *mixer.declared.params))
    for text in (code.forward(True).loop.text, code.backward(names).loop.text):
        assert "matmul" not in text.split("strict=True")[1]


@pytest.mark.parametrize("name", ["lstm", "slstm", "gru"])
def test_spans_that_share_their_buffers(name, monkeypatch):
    """Without a gradient, and in a backward, a span's buffers and views are those of the span before."""
    monkeypatch.setattr(cells, "SEGMENT", 1)
    mixer = mixc.load(name)
    x = {n: t.requires_grad_() for n, t in inputs(mixer, 70, 2, 2, torch.float64)[1].items()}
    o, state = mixer(**x, output_final_state=True)
    with torch.no_grad():
        o0, state0 = mixer(**x, output_final_state=True)
    assert torch.equal(o, o0) and all(torch.equal(state[n], state0[n]) for n in state)
    first, again = (torch.autograd.grad(o.sum(), list(x.values()), retain_graph=True) for _ in "12")
    want, _ = mixer(**x, backend="reference")
    for a, b, c in zip(first, again, torch.autograd.grad(want.sum(), list(x.values())), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


def test_a_sum_of_a_product_is_a_product():
    """It was formed entry by entry, [K, J, V] for every token, where it was not written with @."""
    mixer = mixc.loads("""mixer m(K, V, J = K) {
        in k[K], v[V]
        state X[K, V]
        G = sum[V](X * X[J, V])
        X = tanh(0.5 * X - 0.1 * sum[J](G * X[J, V]) + k * v)
        out o[V] = sum[K](k * X)
    }""")
    found = [n for n in postorder(cell(mixer.declared, ()).values()) if n.op in ("sum", "contract")]
    assert [n.op for n in found] == 3 * ["contract"]
    check(mixer)


def test_a_state_that_nothing_reads_again():
    """Its factor from token to token is 0, a number for every row."""
    check(mixc.loads("mixer m(D) {\n in x[D]\n state h[D], g[D]\n g = 0.5 * x\n h = tanh(h) + x\n out o[D] = h\n}"))


def test_a_state_on_the_kink_of_its_own_bound():
    """`S / maximum(1, norm(S))` leaves norms of 1 up to rounding: whether a step that writes nothing (b = 0) divides
    again, and so what the gradient to that b is, is the rounding's choice, in any precision.  All else agrees."""
    mixer = mixc.loads("mixer m(K, V, N = 2) {\nin q[K], k[N, K], v[N, V], b[N] where 0 <= b <= 1\nstate S[K, V]\n"
                       "for n in N {\nS = S + b[n] * k[n] * tanh(v[n] - k[n] @ S)\nS = S / maximum(1, norm[V](S))\n}\n"
                       "out o[V] = q @ S\n}")
    sizes = dict(K=5, V=4, N=2)

    def grads(last, backend, dtype):
        x = draw(mixer.declared, T=3, sizes=sizes, dtype=dtype, ends=0)
        x["b"][..., 1] = last
        start = {"S": 3 * normal([2, 2, 5, 4], 1, "S", dtype)}
        return run(mixer, x, initial_state=start, backend=backend, wide=backend == "reference").grads

    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for last in (0.0, 1e-3):
            want, got = grads(last, "reference", dtype), grads(last, "torch", dtype)
            for name, g in want.items():
                away = slice(None, None if last else 1) if name == "b" else slice(None)
                assert ratio(got[name][..., away], g[..., away]) < bound, (name, last, dtype)
    below, above = (grads(b, "reference", torch.float64)["b"][..., 1] for b in (-1e-6, 1e-6))
    assert ratio(below, above) > 0.1  # the two sides of the kink
