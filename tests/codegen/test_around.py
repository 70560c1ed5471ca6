"""Products with params that stand in front of the kernels and behind them, the kernels interpreted, against the step in
fp64: outs, final states, all gradients."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import mixc
from mixc.codegen.offline import load_text
from mixc.codegen.triton_program import kernels
from mixc.passes.classify import parts_of
from tests.agree import assert_runs_agree, draw, run
from tests.codegen.test_triton_cell import check
from tests.poison import poisoned

pytestmark = pytest.mark.filterwarnings("ignore:.*MX301")
SPECS = {
    "layer": """mixer layer(D, K, V) {
        in x[D], g where g <= 0
        param Wq[K, D], Wk[K, D], Wv[V, D], Wo[D, V], b[K]
        const scale = D ** -0.5
        state S[K, V]
        q = D ** -0.5 * sum[D](Wq * silu(x)) + b
        k = Wk @ x
        S = exp(g) * S + k / (1 + norm(k)) * (Wv @ x)
        out y[D] = Wo @ (scale * (q @ S)) * sigmoid(x)
    }""",
    "attention": """mixer attention(D, K, V) {
        in x[D], g where g <= 0
        param Wq[K, D], Wk[K, D], Wv[V, D], Wg[K, D], Wo[D, V]
        const scale = K ** -0.5
        state S[K, V]
        q = Wq @ x
        S = exp(g - softplus(Wg @ x)) * S + Wk @ x * (Wv @ x)
        out y[D] = Wo @ (q * scale @ S)
    }""",
    "memories": """mixer memories(D, N, K, V) {
        in x[D], g[N] where g <= 0
        param Wk[K, D], Wq[K, D], Wv[V, D], Wn[N, D], Wu[N, D], Wo[D, V]
        state S[N, K, V]
        S = exp(g) * S + softmax(Wn @ x) * (Wk @ x) * (Wv @ x)
        out y[D] = Wo @ ((Wu @ x) @ ((Wq @ x) @ S))
    }""",
    "two_layers_of_weights": """mixer two_layers_of_weights(D, F, K) {
        in x[D], z[K]
        param W1[F, D], W2[K, F], A[D], Wo[F, K]
        state h[K]
        u = W2 @ silu(W1 @ x)
        h = sigmoid(z) * h + u
        out y[F] = Wo @ h + (W1 @ x)
        out r[K] = u * h
        out f[F] = sum(h) + W1 @ x
        out s = sum(A * x) + sum(h)
    }""",
    "rows_and_blocks": """mixer rows_and_blocks(J, D, K, V) {
        in x[J, D], v[V]
        param W[J, K, D], U[K, D], M[J, D, K, V], P[D, V]
        state S[K, V], z[V]
        k = U @ sum[J](x) + sum[J](sum[D](W * x)) + max[J](U @ x)
        S = 0.9 * S + k * v + 0.1 * (M @ x)
        z = 0.5 * z + v
        out o[V] = k @ S
        out p[D] = P @ (k @ S) + sum[V](P[D, V] * z)
    }""",
    "cell": """mixer cell(D, E = D, F = D) {
        in x[D]
        param W[D, E], R[D, E], Wo[D, E], Wf[D, E]
        state h[D] = 0.5
        f = sigmoid(Wf @ x[E] + R @ h[E])
        h = f * tanh(W @ x[E]) + (1 - f) * h
        out y[D] = Wo @ h[E]
    }""",
    "memory": """mixer memory(D, K, V) {
        in x[D]
        param Wk[K, D], Wv[V, D], Wo[D, V]
        state S[K, V]
        k = Wk @ x
        S = 0.9 * tanh(S + k * (Wv @ x))
        out y[D] = Wo @ (k @ S) + x
    }""",
    "in_parts": """mixer in_parts(D, K, V, E = V) {
        in x[D], g where g <= 0
        param Wk[K, D], Wv[V, D], R[V, E], Wh[V, E], Wo[D, V]
        state S[K, V], h[V]
        k = Wk @ x
        S = exp(g) * S + k * (Wv @ x)
        h = tanh(R @ h[E] + Wh @ (k @ S)[E])
        out y[D] = Wo @ h
        out r[V] = Wh @ (k @ S)[E]
    }""",
    "turned": """mixer turned(N, D) {
        in u[D], g where g <= 0
        param B[N, D] complex, C[D, N] complex
        state z[N]
        z = exp(g) * exp(1j * 0.3 * pos) * z + B @ lag(u, 1)
        out o[D] = real(C @ z) + imag(C @ z) * u
    }""",
    "phases": """mixer phases(D, C, V) {
        in x[D], turn[C]
        param Wk[C, D] complex, Wq[C, D], Wv[V, D], Wo[D, V] complex
        state S[C, V]
        S = 0.9 * exp(1j * turn) * S + (Wk @ x) * (Wv @ x)
        r = conj(Wq @ x) @ S
        out y[D] = real(Wo @ r)
        out z[D] = Wo @ real(r) + 1j * x
    }""",
}
FRONT = {  # what stands in front of the kernels of each part, and what is formed behind them
    "layer": ["Wk_x Wv_x Wq_x | y"],
    "two_layers_of_weights": ["W2_x W1_x | y"],
    "cell": ["Wf_x W_x | y"],
    "memory": ["Wk_x Wv_x | y"],
    "lru": ["B_re_u B_im_u | y"],
    "phases": ["Wk_x_re Wk_x_im Wv_x Wq_x | y z_re z_im"],
}


@cache
def load(name):
    return mixc.loads(SPECS[name]) if name in SPECS else mixc.load(name)


@cache
def emitted(name):
    return load_text(load(name).emit(), name)


class Emitted:
    """The file that is emitted, called as a mixer."""

    def __init__(self, name):
        self.declared, self.function = load(name).declared, getattr(emitted(name), name)

    def __call__(self, *args, backend="", **options):
        return self.function(*args, **options)


def given(mixer, T, B=2, H=2, dtype=torch.float32, size=5):
    return draw(mixer.declared, B=B, T=T, H=H, sizes={d.name: d.size or size for d in mixer.declared.dims}, dtype=dtype,
                seed=T)


@pytest.mark.parametrize("name", FRONT)
def test_what_stands_where(name):
    found = [kernels(p).around for p in parts_of(load(name).declared)]
    assert [f"{' '.join(a.front)} | {' '.join(a.behind)}" for a in found] == FRONT[name]


@pytest.mark.parametrize("name", [*SPECS, "lru", "s5"])
def test_agreement(name):
    mixer = load(name)
    check(mixer, 37, start=False)
    check(mixer, 1, start=False)
    check(mixer, 19, B=1, start=False, cu_seqlens=torch.tensor([0, 0, 2, 19]))
    check(mixer, 11, start=False, reverse=True, mask=torch.arange(22).reshape(2, 11) % 3 > 0)


@pytest.mark.parametrize("name", ["layer", "attention", "cell", "memory", "lru"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(name, dtype):
    check(load(name), 21, dtype=dtype, start=False, size=17)


@pytest.mark.parametrize("name", [*SPECS, "lru"])
def test_the_emitted_file(name):
    mixer = load(name)
    x = given(mixer, 13)
    assert_runs_agree(mixer, run(Emitted(name), x, backend="triton"), run(mixer, x), torch.float32)


@pytest.mark.parametrize("name", ["layer", "in_parts", "memory"])
@pytest.mark.parametrize("call", ["mixer", "file"])
def test_rows_without_a_token(name, call):
    """What kernels leave unwritten there, or what the caller has there, reaches no sum over all tokens."""
    mixer = load(name)
    x, mask = given(mixer, 11), torch.arange(22).reshape(2, 11) % 3 > 0
    want = run(mixer, x, mask=mask)
    with torch.no_grad():
        x |= {d.name: torch.where(mask.view(2, 11, *[1] * (x[d.name].ndim - 2)), x[d.name], torch.nan)
              for d in mixer.declared.ins}
    with poisoned():
        got = run(mixer if call == "mixer" else Emitted(name), x, backend="triton", mask=mask)
    assert_runs_agree(mixer, got, want, torch.float32)


@pytest.mark.parametrize("counts", [{"x": 1, "Wk": 2, "Wv": 4}, {"x": 2, "Wq": 1, "Wk": 1, "b": 1, "Wv": 1, "Wo": 1},
                                    {"x": 2, "Wk": 3}, {"x": 1, "g": 1, "Wq": 1, "Wk": 1, "Wv": 1, "b": 1, "Wo": 6}])
def test_heads(counts):
    """A head count of any tensor, also one that only products read."""
    mixer = load("layer")
    H = 4 if max(counts.values()) < 6 and 3 not in counts.values() else 6
    x = {n: t[:, :, :counts.get(n, H)] if t.ndim > 2 and n in "xg" else t[:counts.get(n, H)]
         for n, t in given(mixer, 9, H=H).items()}
    want = run(mixer, x)
    assert_runs_agree(mixer, run(mixer, x, backend="triton"), want)
    assert_runs_agree(mixer, run(Emitted("layer"), x, backend="triton"), want)


def test_no_heads_and_mixed_dtypes():
    mixer = load("layer")
    x = {n: t.squeeze(2 if n in "xg" else 0) for n, t in given(mixer, 9, H=1).items()}
    assert_runs_agree(mixer, run(mixer, x, backend="triton"), run(mixer, x))
    mixer = load("cell")
    x = given(mixer, 9, size=17)
    x["x"] = x["x"].bfloat16()  # and params in fp32
    got = run(mixer, x, backend="triton")
    assert_runs_agree(mixer, got, run(mixer, x), torch.bfloat16)
    assert got.outs["y"].dtype == got.grads["x"].dtype == torch.bfloat16 and got.grads["W"].dtype == torch.float32


@pytest.mark.parametrize("name", ["layer", "cell", "lru"])
def test_prefill_then_step(name):
    mixer = load(name)
    x = given(mixer, 6)
    ins = {d.name for d in mixer.declared.ins}
    want, last = mixer(**x, backend="triton", output_final_state=True)
    before = {n: t[:, :5] if n in ins else t for n, t in x.items()}
    _, state = mixer(**before, backend="triton", output_final_state=True)
    got, state = mixer.step(state, **{n: t[:, 5] if n in ins else t for n, t in x.items()}, backend="triton")
    torch.testing.assert_close(got, want[:, 5], rtol=1e-4, atol=1e-5)
    for n in last:
        torch.testing.assert_close(state[n], last[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "cell", "memory", "s5"])
def test_one_token_without_a_gradient(name):
    mixer = load(name)
    x = given(mixer, 1)
    with torch.no_grad():
        assert_runs_agree(mixer, run(Emitted(name), x, backend="triton", grads=False), run(mixer, x, grads=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("counts", [{}, {"x": 1}, {"x": 2}, {"Wq": 1, "Wk": 2, "Wo": 1}])
def test_products_as_on_a_gpu(counts, dtype, monkeypatch):
    """There torch leaves the result in fp32 itself, where it is told to."""
    mixer = load("attention")
    text = mixer.emit().replace(".is_cuda", ".is_cpu")

    def as_there(plain):
        def product(a, b, out_dtype=None, out=None):
            assert out_dtype in (None, torch.float32) and (out_dtype is None or a.dtype == b.dtype == torch.bfloat16)
            found = plain(a.float(), b.float()).to(out_dtype or a.dtype)
            assert out is None or out.dtype == found.dtype
            return found if out is None else out.copy_(found)
        return product
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, as_there(getattr(torch, name)))
    x = {n: t[:, :, :counts.get(n, 4)] if n in "xg" else t[:counts.get(n, 4)]
         for n, t in given(mixer, 20, H=4, dtype=dtype, size=16).items()}
    got = Emitted("attention")
    got.function = load_text(text, "attention").attention
    assert_runs_agree(mixer, run(got, x, backend="triton"), run(mixer, x), dtype)


def test_no_tokens():
    mixer = load("layer")
    x = given(mixer, 3)
    for B, T in ((2, 0), (0, 3)):
        y, state = mixer(**{n: t[:B, :T] if n in "xg" else t for n, t in x.items()}, backend="triton",
                         output_final_state=True)
        assert y.shape == (B, T, 2, 5) and not state["S"].any()


def test_autocast_changes_nothing():
    mixer = load("layer")
    x = given(mixer, 9)
    want = run(mixer, x, backend="triton")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(mixer, x, backend="triton")
    assert all(torch.equal(want.outs[n], got.outs[n]) for n in want.outs)
    assert all(torch.equal(want.grads[n], got.grads[n]) for n in want.grads)


def test_what_is_as_small_as_a_tile_stays():
    """Where the spec fixes the sizes: products in front would write and read what is nothing to form."""
    text = "mixer m(V, N = 4, M = 8) {\nin x[M], v[V]\nparam W[N, M]\nstate S[N, V]\nS = 0.9 * S + (W @ x) * v\n" \
           "out o[V] = sum[N](S)\n}"
    assert kernels(mixc.loads(text).declared).around is None
    assert kernels(mixc.loads(text.replace("M = 8", "M = 32")).declared).around is not None


def test_names_that_kernels_have_a_use_for():
    """The product is called W_x, and so is an input; S_read is an out, dS_read an input."""
    mixer = mixc.loads("mixer m(D, K) {\nin x[D], W_x, dS_read[K]\nparam W[K, D], P[D, K]\nstate S[K]\n"
                       "S = 0.5 * S + W @ x * W_x\nout S_read[D] = P @ S\nout o[K] = S * dS_read\n}")
    check(mixer, 9, start=False)


def test_what_is_left_reads_a_state_that_products_do_not_change():
    """An out that stays and is read by a product, too, is stored once."""
    mixer = mixc.loads("mixer m(D, K) {\nin x[D]\nparam W[K, D], P[D, K]\nstate h[K]\nh = 0.5 * h + W @ x\n"
                       "out o[K] = h\nout y[D] = P @ h\n}")
    assert [d.name for d in kernels(mixer.declared).outs] == ["o"]
    check(mixer, 9, start=False)
    check(mixer, 9, start=False, dtype=torch.bfloat16)


@pytest.mark.parametrize("name,formed", {
    "layer": "y", "lru": "y", "attention": "", "cell": "", "phases": "y z_im", "rows_and_blocks": "p",
    "two_layers_of_weights": "y"}.items())
def test_what_kernels_form_behind_products(name, formed):
    """What is more than a product; what is one is left in the dtype of the out."""
    last = kernels(load(name).declared).behind
    assert " ".join(d.name for d in last[0].program.outs) == formed if formed else last is None


def test_what_is_rounded():
    """What products alone read, as the inputs are; what else is read has the precision of the body."""
    def exact(name):
        p = kernels(load(name).declared).p
        return " ".join(d.name for d in (*p.ins, *p.outs) if d.exact)
    assert exact("attention") == "Wg_x" and exact("layer") == "Wk_x Wq_x" and exact("cell") == "Wf_x W_x"
    assert exact("lru") == "B_re_u B_im_u" and exact("two_layers_of_weights") == "W2_x W1_x"
    assert "Wq_x = projected(x, Wq, x.dtype, x.dtype)" in load("attention").emit()


def test_explain():
    text = load("layer").explain()
    assert "- in front of the kernels, of all tokens at once in torch: `Wk_x = Wk @ x`" in text
    assert "- behind them, of all tokens at once in torch: `Wo_product = Wo @ S_read`" in text
    assert "- behind those, one Triton kernel each way: `y = Wo_product * sigmoid(x)`" in text
    assert "- fwd behind products: bytes `8*B*D*H*T`" in text
    assert "forward bytes `4*B*H*T*(3*D + 2*K + V)`, FLOPs `4*B*D*H*T*(K + V)`" in text


def test_names_of_what_forms_products():
    mixer = mixc.loads("mixer projected(D, K) {\nin fresh[D], widened[K]\nparam in_fp32[K, D], Projected[D, K]\n"
                       "state S[K]\nS = 0.5 * S + in_fp32 @ fresh * widened\nout y[D] = Projected @ S * tanh(fresh)\n}")
    x = given(mixer, 7)
    emitted = load_text(mixer.emit(), "projected")

    class File:
        declared = mixer.declared

        def __call__(self, *args, backend="", **options):
            return emitted.projected_(*args, **options)
    assert_runs_agree(mixer, run(File(), x, backend="triton"), run(mixer, x))
