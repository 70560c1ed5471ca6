"""Which states are scans, and what their chunk programs mean."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.ir.ranges import bounds, proving
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from tests.agree import assert_agree, draw, normal
from tests.chunks import run_chunks
from tests.scans import NAMES, body, spec


@pytest.mark.parametrize("name", ["hgrn", "min_gru", "mamba1"])
def test_examples_are_scans(name):
    assert set(mixc.load(name).form.values()) == {"scan"}


def test_forms_of_mixed_programs():
    assert spec("stabilised").form == {"S": "chunk", "n": "chunk", "m": "scan"}
    assert spec("slow_gate").form == {"z": "scan", "S": "chunk"}


def test_blocks_of_two_or_three_states():
    for name in ("rotation", "momentum", "three_coupled", "coupled_matrices"):
        mixer = spec(name)
        assert set(mixer.form.values()) == {"scan"} and "drive each other" in next(iter(mixer.why.values()))
    four = "a = 0.5 * a + d + x\nb = 0.5 * b + a\nc = 0.5 * c + b\nd = 0.5 * d + c"
    assert "sequential" in body(f"in x[D]\nstate a[D], b[D], c[D], d[D]\n{four}\nout o[D] = a").form.values()
    product = "t = a\na = 0.5 * a * b + x\nb = 0.5 * b + t"
    assert "sequential" in body(f"in x[D]\nstate a[D], b[D]\n{product}\nout o[D] = a").form.values()


@pytest.mark.parametrize("text,form", [
    ("in x[D], a\nstate h[D]\nh = sigmoid(a) * h + x\nout o[D] = h", "chunk"),  # a matrix of one column
    ("in x[D], a[D]\nstate h[D]\nh = sigmoid(a) * h + x\nout o[D] = h", "scan"),
    ("in x[D]\nstate h[D]\nh = h + x\nout o[D] = h", "chunk"),
    ("in x[D], w[N]\nstate h[D, N]\nh = exp(-abs(x * w)) * h + x * w\nout o[D] = h @ w", "scan"),
    ("in x[D], w[N]\nstate h[D, N]\nh = 0.5 * h + tanh(x * w)\nout o[D] = h @ w", "scan"),  # no outer product
    ("in x[D], a[D]\nstate h[D]\nh = tanh(a * h + x)\nout o[D] = h", "sequential"),
    ("in x[D], a[D]\nstate h[D]\nh = sigmoid(h) * a + x\nout o[D] = h", "sequential"),
    ("in x[D], a[D]\nstate h[D]\nh = a * h * h + x\nout o[D] = h", "sequential"),
    ("in x[D], a[D]\nstate h[D]\nh = maximum(a * h, x)\nout o[D] = h", "sequential"),  # a may be negative
    ("in x[D], a[D] where a >= 0\nstate h[D]\nh = minimum(a * h, x)\nout o[D] = h", "scan"),
    ("in x[D], a[D]\nstate h[D]\nh = maximum(h, x) + a\nout o[D] = h", "scan"),
    ("in x[D], a[D]\nstate h[D]\nh = maximum(h, maximum(h + a, x))\nout o[D] = h", "scan"),
    ("in x[D], a[D]\nstate h[D]\nh = maximum(h, x) + minimum(h, a)\nout o[D] = h", "sequential"),
    ("in x[D], a[D]\nstate h[D]\nh = h - a * (h - x) / 2\nout o[D] = h", "scan"),
    ("in x[D], a[D], r\nstate h[D]\nh = where(r > 0, a * h, x)\nout o[D] = h", "scan"),
    ("in x[D], a[D]\nstate h[D]\nh = where(h > 0, a * h, x)\nout o[D] = h", "sequential"),
    # a factor of 0 forgets no infinity, a term of the other one does
    ("in x[D], r\nstate h[D] = -inf\nh = where(r > 0, x, h)\nout o[D] = h", "scan"),
    ("in x[D], r\nstate h[D] = inf\nh = where(r > 0, x, maximum(h, x))\nout o[D] = h", "sequential"),
    ("in x[D], r\nstate h[D] = -inf\nh = where(r > 0, 0, 0.5 * h) + x\nout o[D] = h", "sequential"),
    ("in x[D], r\nstate h[D]\nh = where(r > 0, x, maximum(h, x))\nout o[D] = h", "scan"),
])
def test_forms(text, form):
    assert set(body(text).form.values()) == {form}


def test_why_names_the_infinite_start_last():
    words = {"h = 0.5 * h + x": "starts at an infinity", "h = tanh(h) + x": "is not affine in it: `tanh(h)`"}
    for update, why in words.items():
        assert why in body(f"in x[D]\nstate h[D] = -inf\n{update}\nout o[D] = h").why["h"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T,C", [(1, 4), (13, 8), (16, 4)])
def test_chunks_equal_tokens_forward_and_backward(name, T, C):
    """A chunk of one token is the step; its gradients by autograd are what the derived backward must give."""
    step = spec(name).declared
    program = chunk(classify(step))
    sizes = {d.name: 3 + i for i, d in enumerate(step.dims)}
    x = draw(step, B=2, T=T, H=2, sizes=sizes, dtype=torch.float64)
    tensors = {n: t.requires_grad_() for n, t in x.items()}
    states = {d.name: normal([2, 2, *(sizes[n] for n in d.dims)], 5, d.name, torch.float64).requires_grad_()
              for d in step.states}
    tokens = run_chunks(program, tensors, states, sizes, 1)
    chunks = run_chunks(program, tensors, states, sizes, C)
    cots = {n: torch.randn_like(o) for n, o in tokens.outs.items()}
    finals = {n: torch.randn_like(s) for n, s in tokens.states.items()}
    for n, o in tokens.outs.items():
        assert_agree(chunks.outs[n], o, torch.float64)
    loss = sum((tokens.outs[n] * c).sum() for n, c in cots.items())
    loss = loss + sum((tokens.states[n] * c).sum() for n, c in finals.items())
    loss.backward()
    detached = {n: t.detach() for n, t in tensors.items()} | {f"cot:{n}": c for n, c in cots.items()}
    starts = [{n: s.detach() for n, s in at.items()} for at in chunks.starts]
    back = run_chunks(differentiate(program), detached, finals, sizes, C, starts=starts)
    for n, t in tensors.items():
        got = back.outs[n] if n in back.outs else back.sums[n].sum(0)
        want = torch.zeros_like(t) if t.grad is None else t.grad
        assert_agree(got, want, torch.float64, name=f"d{n}")
    for n, s in states.items():
        assert_agree(back.states[n], s.grad, torch.float64, name=f"d{n}0")


def test_why_names_the_product_and_what_would_make_it_parallel():
    why = mixc.load("lstm").why["h"]
    assert "not affine in h and c: `R" in why and "3 products like it, it would be a scan" in why
    assert "without `R @ h[E]` (line 7), nothing would be carried" in mixc.load("elman").why["h"]
    text = "mixer m(D, E = D) {\nin x[D]\nparam R[D, E]\nstate h[D]\nh = 0.5 * h + R @ h[E] + x\nout o[D] = h\n}"
    why = mixc.loads(text).why["h"]
    assert "`R @ h[E]` (line 5)" in why and "diagonalises" in why
    assert mixc.load("sru_full").why["c"] == ("the update of c is not affine in it: `sigmoid(f + vf * c)` (line 7); "
                                              "without `vf * c` (line 7), it would be a scan")
    assert "5 products like it, it would be a scan" in mixc.load("peephole_lstm").why["c"]  # po sees the new c
    text = ("mixer m(D) {\nin x[D]\nparam w[D], c[D]\nstate y[D], z[D]\n"
            "z = z - c * (tanh(w * y + x) + 0.9 * y)\ny = y + c * z\nout o[D] = y\n}")
    assert mixc.loads(text).why["z"].endswith("without `w * y` (line 5), it would be a scan")


def test_why_of_matrices_that_turn_into_each_other():
    text = ("mixer m(K, V) {\nin q[K], k[K], v[V], t[K]\nstate X[K, V], Y[K, V]\nx = X\n"
            "X = cos(t) * x - sin(t) * Y + k * v\nY = sin(t) * x + cos(t) * Y\nout o[V] = q @ X\n}")
    assert mixc.loads(text).why["Y"].endswith("as one complex state, `X + 1j * Y`, which is turned by a factor, "
                                              "it would be a chunk")
    for other in (text.replace("sin(t) * x", "t * x"), text.replace("k * v", "tanh(k * v)")):
        assert mixc.loads(other).why["Y"].endswith("a scan over small matrices")
    turned = text.replace("Y[K, V]", "").replace("X[K, V], ", "Z[K, V]").replace("x = X\n", "").replace(
        "X = cos(t) * x - sin(t) * Y + k * v\nY = sin(t) * x + cos(t) * Y", "Z = exp(1j * t) * Z + k * v")
    assert mixc.loads(turned.replace("q @ X", "real(q @ Z)")).form["Z"] == "chunk"


def test_why_says_how_many_coupled_states_are_solved():
    four = "w, i, j, k are 4 coupled states, each of which is read by the next one's update, where at most 3 are solved"
    text = ("mixer m(D) {\nin a[D], b[D]\nstate w[D] = 1, i[D], j[D], k[D]\nv = w\nw = a * w - b * k\n"
            "k = a * k - b * j\nj = a * j - b * i\ni = a * i - b * v\nout o[D] = w\n}")
    assert mixc.loads(text).why["w"] == four
    assert "`tanh(b * k)` (line 5)" in mixc.loads(text.replace("- b * k", "- tanh(b * k)")).why["j"]


@pytest.mark.parametrize("update,told", [
    ("maximum(d * S, x)", "; if `d` were known to be >= 0 (as `where` declares it) it would be a scan"),
    ("minimum(tanh(d) * S + x, d)", ""),  # affine inside, which no scan of minima is
    ("maximum(d * S, x * S)", ""),
])
def test_what_would_make_a_maximum_of_multiples_a_scan(update, told):
    mixer = mixc.loads(f"mixer signs(D) {{\n in x[D]\n in d[D]\n state S[D]\n S = {update}\n out o[D] = S\n}}\n")
    assert mixer.form["S"] == "sequential"
    assert mixer.why["S"].partition("(line 5)")[2] == told


@pytest.mark.parametrize(("where", "proved"), [("", True), (" where i <= 0", False)])
def test_what_a_running_maximum_leaves_of_a_value_is_at_most_1(where, proved):
    """exp(i - m) <= 1; but -inf - (-inf) is no number, and i <= 0 may be -inf."""
    p = chunk(classify(mixc.loads(f"mixer m() {{\nin i{where}\nin f\nstate m = -inf\na = logsigmoid(f) + m\n"
                                  "m = maximum(a, i)\nout o = exp(i - m)\n}").declared))
    with proving(p):
        found = bounds(p.result("out", "o"))
    assert (found.high == 1 and not found.infinite) is proved


def test_why_says_what_no_line_spells():
    """A factor that the compiler formed was named by its dims, a param by its node."""
    words = {"h = maximum(h - exp(w), x)": "plus `-exp(w)` (line ", "h = logaddexp(h + b, c) + x": "plus `b + x`",
             "h = where(b > 0, x, h)": "its decay `where(b > 0, 0, 1)` (line ",
             "g = p / (p + exp(c))\nh = h + g * (x - h)\np = (1 - g) * p": "decay `1 - p / (p + exp(c))` (line ",
             "h = tanh(b) * h + A @ x[E] * 0 + c": "has the dim of the vector"}
    for update, why in words.items():
        made = mixc.loads(f"mixer m(D, E = D) {{\nin x[D], b[D], c[D], w[D]\nparam A[D, E]\nstate h[D], p[D]\n"
                          f"p = p + 0.1\n{update}\nout o[D] = h\n}}")
        assert why in made.why["h"], made.why
    dense = mixc.loads("mixer m(K, V) {\nin k[K], v[V]\nstate S[K, V]\nS = 0.5 * S + tanh(k * v)\nout o[K, V] = S\n}")
    assert "`tanh(k * v)` (line 4), is no sum of outer products" in dense.why["S"]
    held = mixc.loads("mixer m(K, V) {\nin k[K], b\nparam S0[K, V]\nstate S[K, V]\nS = S - k * (k @ S) + b * S0\n"
                      "out o[V] = k @ S\n}")
    assert held.why["S"].endswith("no sum of outer products: `S0`")


@pytest.mark.parametrize("write,other", [("b * x", "lag(b, 1) * lag(x, 1)"), ("tanh(b * x)", None)])
def test_a_lag_of_an_outer_product_is_told_to_be_taken_apart(write, other):
    """Any matrix may stand at its start, so that it is one of every token."""
    text = ("mixer m(N, P) {{\nin x[P], b[N], c[N], g where g <= 0\nstate h[N, P]\nw = {}\n"
            "h = exp(g) * h + w + 0.5 * {}\nout y[P] = c @ h\n}}")
    mixer = mixc.loads(text.format(write, "lag(w, 1)"))
    assert mixer.form == {"h": "scan"}
    assert ("as the product of the lags of `b` and `x` it would be a chunk" in mixer.why["h"]) == (other is not None)
    assert other is None or mixc.loads(text.format(write, other)).form == {"h": "chunk"}
