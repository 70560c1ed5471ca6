"""Scans on the torch backend against the step run token by token: forward, backward, final states."""

from __future__ import annotations

import math

import pytest
import torch

import mixc
from mixc.codegen import torch_scan_prelude
from mixc.codegen.torch_scan_prelude import carry
from mixc.runtime.compiled import compiled
from tests.agree import assert_runs_agree, draw, normal, run
from tests.cells import cut
from tests.scans import NAMES, body, spec

EXAMPLES = ("hgrn", "min_gru", "mamba1", "min_lstm", "rg_lru", "s4d_real", "qrnn", "sru", "max_plus", "log_sum",
            "mlstm_stabilised", "damped_rotation")


def check(mixer, T=70, B=2, H=2, dtype=torch.float64, change=None, start=True, **options):
    x = draw(mixer.declared, B=B, T=T, H=H, dtype=dtype, ends=1 / 16, seed=T)
    for name, value in (change or {}).items():
        x[name] = value(x[name])
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    sizes = {n: s for d in mixer.declared.ins for n, s in zip(d.dims, x[d.name].shape[3:], strict=True)}
    sizes |= {n: s for d in mixer.declared.params for n, s in zip(d.dims, x[d.name].shape[1:], strict=True)}
    given = {d.name: normal([N, H, *(sizes[n] for n in d.dims)], 5, d.name, dtype) for d in mixer.declared.states}
    given = given if start else None
    want = run(mixer, x, initial_state=given, wide=True, **options)
    got = run(mixer, x, initial_state=given, backend="torch", **options)
    assert_runs_agree(mixer, got, want, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [0, 1, 16, 17, 70])
def test_lengths(name, T):
    check(spec(name), T)
    check(spec(name), T, start=False)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("T", [1, 15, 64, 130])
def test_examples(name, T):
    check(mixc.load(name), T)


@pytest.mark.parametrize("name", [*NAMES, *EXAMPLES])
def test_ragged_reversed_masked(name):
    mixer = spec(name) if name in NAMES else mixc.load(name)
    check(mixer, 90, B=1, cu_seqlens=torch.tensor([0, 0, 5, 5, 21, 90]))
    check(mixer, 90, B=1, cu_seqlens=torch.tensor([0, 70, 90]), reverse=True)
    check(mixer, 70, mask=torch.arange(140).reshape(2, 70) % 3 > 0)


@pytest.mark.parametrize("name", ["hgrn", "mamba1", "stabilised", "scan_feeds_scan"])
def test_many_segments_and_bands(name):
    with cut(SEGMENT_BYTES=1 << 12, BAND_BYTES=1 << 12):
        check(spec(name) if name in NAMES else mixc.load(name), 300, B=3)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates_exactly_zero_and_one(gate):
    check(spec("before_and_after"), change={"f": lambda f: torch.full_like(f, gate)})
    check(spec("max_times"), change={"d": lambda d: torch.full_like(d, gate)})


def test_log_gates_at_minus_infinity_forget():
    def some(g):
        g[:, ::3] = -math.inf
        return g
    check(mixc.load("hgrn"), change={"g": some})
    check(spec("log_sum"), start=False, change={"a": some, "x": lambda x: some(x.clone())})


def test_ties_are_split_evenly():
    check(spec("max_plus"), change={"a": torch.zeros_like, "x": torch.zeros_like}, start=False)
    check(spec("max_plus"), change={"a": torch.zeros_like, "x": lambda x: x.round()})
    check(spec("max_times"), change={"d": torch.ones_like, "x": lambda x: x.round()})


def test_everything_at_minus_infinity_has_no_nan():
    check(spec("log_sum"), start=False, change={"x": lambda x: torch.full_like(x, -math.inf)})


def test_forgetful_heads_and_groups():
    check(spec("slow_gate"), H=4, change={"k": lambda k: k[:, :, :2], "r": lambda r: r[:, :, :1]})


def test_stabiliser_with_gates_of_fifty_in_single_precision():
    def wide(g):
        return g * 50
    check(spec("stabilised"), 130, dtype=torch.float32, start=False, change={"i": wide, "f": wide})


def test_a_hundred_thousand_tokens():
    mixer = mixc.load("hgrn")
    x = draw(mixer.declared, B=1, T=100_000, H=1, sizes={"D": 3}, dtype=torch.float32)
    g = x["g"] * 1e-4
    got = mixer(x["x"], g, backend="torch")[0]
    h, rows = torch.zeros(1, 3, dtype=torch.float64), []
    for a, b in zip(g[0].double().exp().unbind(0), x["x"][0].double().unbind(0), strict=True):
        h = a * h + b
        rows.append(h)
    want = torch.stack(rows)
    assert (got[0].double() - want).norm() <= 1e-5 * want.norm()


def test_the_hidden_state_of_mamba_is_never_whole_in_memory():
    """Neither direction allocates [T, D, N]: a block of it at a time."""
    mixer = mixc.load("mamba1")
    sizes = {"D": 16, "N": 16}
    x = draw(mixer.declared, B=1, T=4096, H=1, sizes=sizes, dtype=torch.float32)
    leaves = {n: t.requires_grad_() for n, t in x.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        mixer(**leaves, backend="torch")
    assert max(kept) <= 4096 * 16
    assert sum(kept) - sum(t.numel() for t in leaves.values()) <= 4096 * 16 * 16 // 32


def test_single_chunk_segments_only_where_a_scan_needs_them():
    from mixc.runtime.compiled import compiled

    assert compiled(mixc.load("mamba1").declared).single
    assert compiled(spec("stabilised").declared).single
    assert not compiled(mixc.load("hgrn").declared).single
    assert not compiled(mixc.load("simple_gla").declared).single
    assert not compiled(body("in x[D], f[D]\nstate h[D]\nh = sigmoid(f) * h + x\nout o[D] = h").declared).single


CORRECTED = """in u[D], p[N, D], q[N, D]
    in g where g <= 0
    param d[D]
    state x[D]
    x = exp(g) * sigmoid(d) * x - 0.3 * sum[N](p * sum[D](q * x)) + u
    out o[D] = x"""


def test_a_scan_that_no_chunk_hands_on_is_formed_for_many_chunks_at_once():
    """A corrected vector, every entry of which is read: what a chunk leaves comes of a solve, the scan behind it."""
    mixer = body(CORRECTED)
    assert not compiled(mixer.declared).single
    for T in (16, 70, 160):
        check(mixer, T)
    check(mixer, 90, B=1, cu_seqlens=torch.tensor([0, 0, 5, 5, 21, 90]), reverse=True)
    with cut(SEGMENT_BYTES=1 << 12, BAND_BYTES=1 << 12):
        check(mixer, 300, B=3)


CHAIN = """in x[D]
    param a[D]
    state u[D], v[D]
    u = sigmoid(a) * u + x
    v = tanh(a) * v + u * x
    out o[D] = tanh(v)"""
TURNING = """in x[D], a[D], w[D]
    state u[D], v[D]
    u = 0.9 * u - tanh(w) * v + x
    v = tanh(a) * v + 0.3 * u
    out o[D] = v"""
BLOCKED = {"chain": CHAIN, "turning": TURNING}


@pytest.mark.parametrize("name", [*BLOCKED, "damped_rotation", "log_sum", "max_plus", "stabilised", "scan_feeds_scan"])
@pytest.mark.parametrize("T", [64, 96, 100, 520])
def test_blocks_of_rows_at_once(name, T):
    """A chunk of few values a row is scanned in blocks: what each leaves first, then all of them together."""
    mixer = body(BLOCKED[name]) if name in BLOCKED else spec(name) if name in NAMES else mixc.load(name)
    check(mixer, T)
    check(mixer, T, B=1, reverse=True, start=False)
    check(mixer, T, dtype=torch.float32)


def by_blocks_and_rows(monkeypatch, scan):
    """What it gives by either."""
    got = scan()
    with monkeypatch.context() as m:
        m.setattr(torch_scan_prelude, "_in_blocks", lambda b: False)
        return got, scan()


def rows_of(seed):
    shapes = {"a": [3, 96, 5], "b": [3, 96, 5], "s": [3, 5]}
    return [normal(shape, seed, n, torch.float64) for n, shape in shapes.items()]


@pytest.mark.parametrize("combine", ["max+", "min+", "maxx", "log+"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("factor", [False, True])
def test_blocks_give_what_rows_give(combine, reverse, factor, monkeypatch):
    a, b, start = rows_of(1)
    got, want = by_blocks_and_rows(monkeypatch, lambda: torch_scan_prelude.other_scan(
        a.abs() if factor else None, b, start, combine, reverse, False))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_affine_blocks_give_what_rows_give(shifted, reverse, constant, monkeypatch):
    a, b, start = rows_of(2)
    a[:, 17] = 0.0
    factor = a[:, :1] if constant else a
    for over in (False, True):
        def scan(over=over):
            y = b.clone()
            return torch_scan_prelude.affine_scan(factor, y, start, reverse, shifted, y if over else None)
        got, want = by_blocks_and_rows(monkeypatch, scan)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    got, want = by_blocks_and_rows(monkeypatch, lambda: torch_scan_prelude.block_scan(
        [[a, None], [factor.expand_as(a), a]], [b, b], [start, start], reverse))
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_factors_that_overflow_are_left_to_rows():
    """A product of factors may be no number of fp32 where what they multiply is 0."""
    b, a = torch.zeros(1, 64, 2), torch.full((1, 64, 2), 1e30)
    assert torch_scan_prelude.affine_scan(a, b, torch.zeros(1, 2), False, False).eq(0).all()
    assert torch_scan_prelude.block_scan([[a]], [b], [torch.zeros(1, 2)], False)[0].eq(0).all()


VECTORS = ("max_plus", "min_plus_before", "max_times", "log_sum", "before_and_after", "lerp", "reset", "between",
           "param_decay", "scan_feeds_scan", "hgrn", "min_gru")


@pytest.mark.parametrize("name", VECTORS)
def test_one_head_reads_and_writes_the_tensors_of_the_call(name):
    mixer = spec(name) if name in NAMES else mixc.load(name)
    for T in (16, 70, 160):
        check(mixer, T, B=3, H=1)
    x = draw(mixer.declared, B=2, T=48, H=1, dtype=torch.float32, seed=1)
    before = {n: t.clone() for n, t in x.items()}
    leaves = {n: t.requires_grad_() for n, t in x.items()}
    o = mixer(**leaves, backend="torch")[0]
    first = o if isinstance(o, torch.Tensor) else o[0]
    kept = first.detach().clone()
    first.sum().backward()
    assert all(torch.equal(before[n], t) for n, t in x.items()) and torch.equal(first, kept)


def test_one_head_with_strides_and_half_inputs():
    mixer = mixc.load("hgrn")
    wide = {n: torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(i)).transpose(1, 2).unsqueeze(2)
            for i, n in enumerate("xg")}
    wide["g"] = -wide["g"].abs()
    for dtype in (torch.float32, torch.bfloat16):
        x = {n: t.to(dtype) for n, t in wide.items()}
        assert_runs_agree(mixer, run(mixer, x, backend="torch"), run(mixer, x), dtype)


def test_infinite_inputs_are_guarded_and_finite_ones_are_not():
    from mixc.runtime.compiled import compiled

    names = frozenset(("u", "dt", "B", "C", "A", "skip"))
    code = compiled(mixc.load("mamba1").declared)
    assert "guard(" in code.backward(False, False, names).text
    assert "guard(" not in code.backward(False, True, names).text


@pytest.mark.parametrize("by,guarded", [("sqrt(sum(square(k)) + 1e-6)", False), ("maximum(norm(k), 1)", False),
                                        ("sum(square(k))", True)])
def test_what_divides_is_guarded_where_it_may_be_0(by, guarded):
    from mixc.runtime.compiled import compiled

    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V]\nstate S[K, V]\n"
                       f"S += k / ({by}) * v\nout o[V] = q @ S\n}}")
    text = compiled(mixer.declared).backward(False, True, frozenset("qkv")).text
    assert ("guard(" in text) == guarded


def test_outs_that_are_scans_are_read_by_the_backward():
    """It scans once, for the adjoint; an out that was written to since is refused."""
    mixer = mixc.load("hgrn")
    x = draw(mixer.declared, B=2, T=70, H=1, sizes={"D": 3}, dtype=torch.float32)
    leaves = {n: t.requires_grad_() for n, t in x.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = mixer(**leaves, backend="torch")[0]
    assert y.data_ptr() in kept
    y = mixer(**leaves, backend="torch")[0]
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize("n", [1, 2, 17, 128, 500])
@pytest.mark.parametrize("width", [3, 1 << 14])
@pytest.mark.parametrize("reverse", [False, True])
def test_what_chunks_leave(n, width, reverse):
    """Of few and many chunks, small rows and large ones, decays that overflow among them."""
    random = torch.Generator().manual_seed(n)
    a, b = (torch.randn(n, 2, width, generator=random) for _ in "ab")
    a[:, 0] *= 0.5
    a[-1, 1, 0] = math.inf
    h, want = torch.randn(2, width, generator=random), torch.empty(n, 2, width, dtype=torch.float64)
    places = torch.full((n + 1, 2, width), math.nan)
    now, then = (places[1:], places[:-1]) if reverse else (places[:-1], places[1:])
    (now[-1] if reverse else now[0]).copy_(h)
    x = h.double()
    for t in range(n)[::-1 if reverse else 1]:
        x = want[t] = a[t].double() * x + b[t]
    carry(now.flatten(0, 1), then.flatten(0, 1), a.flatten(0, 1), b.flatten(0, 1), [None], [2] * n, reverse)
    finite = want.abs() < 1e30
    torch.testing.assert_close(then.double()[finite], want[finite], rtol=1e-4, atol=1e-4)


WHOLE = {
    "sums": "S = S + k * v\nout o[K, V] = S",
    "decay": "S = exp(g) * S + k * v\nout o[K, V] = S",
    "before": "out o[K, V] = tanh(S)\nS = exp(g) * S + k * v",
    "corrected": "S = exp(g) * S\nS = S + b * k * (v - k @ S)\nout o[K, V] = S\nout r[V] = k @ S",
    "largest": "S = exp(g) * S + k * v\nout o[K] = max[V](S)",
}


@pytest.mark.parametrize("name", WHOLE)
def test_matrices_read_as_they_are(name):
    """A product for every entry would take C times what a scan does: it took twice the token loop's time."""
    mixer = mixc.loads("mixer m(K, V) {\nin k[K] where norm[K](k) <= 1\nin v[V]\nin g where g <= 0\n"
                       "in b where 0 <= b <= 1\n"
                       f"state S[K, V]\n{WHOLE[name]}\n}}")
    assert mixer.form == {"S": "chunk"}
    for T in (1, 40, 70):
        check(mixer, T)
    check(mixer, 90, B=1, cu_seqlens=torch.tensor([0, 0, 5, 5, 21, 90]), reverse=True)
    check(mixer, 70, dtype=torch.float32, start=False)
    text = compiled(mixer.declared).forward(False, True, True).text
    assert "affine_scan(" in text and "fold(" not in text


def test_a_learned_factor_leaves_time_outermost():
    """Of `B * u` the rows lay as columns: a scan that steps from one to the next took three times as long."""
    mixer = mixc.loads("mixer liquid(D, N) {\nin u[D]\nparam A[D, N] where A <= 0, B[D, N], C[D, N]\nstate x[D, N]\n"
                       "x = (exp(A) + B * u) * x + B * u\nout y[D] = sum[N](C * x)\n}")
    check(mixer)
    made = compiled(mixer.declared)
    texts = [made.forward(False, True, True).text, made.backward(False, True, frozenset("uABC")).text]
    assert not any("permute(0, 3, 2, 1)" in t or "buf_DNC" in t for t in texts)
