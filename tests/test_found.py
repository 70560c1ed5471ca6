"""Specs that the generator found wrong once, cut down to what was wrong with them."""

from __future__ import annotations

import re

import pytest
import torch

import mixc
from mixc.runtime import agree
from tests import cells
from tests.generate import DECLARED

STATES = {"S": "S[K, V]", "Z": "Z[K, V]", "M": "M[V]", "Y": "Y[V]", "L": "L[K]"}
FOUND = {  # what was wrong: the body
    "a sum over q * S was no read": "S = exp(g) * S + k * v\nout o[V] = sum[K](w * S)",
    "what only the backward reads was not kept": "S += k * v\nM += b * (q @ S)\nout o[V] = u * M",
    "rows of all chunks in the loop over one": "S = exp(g) * S + q * v\nM += q @ S\nout o[V] = M",
    "live rows of all chunks in that loop": "S = exp(gk) * S + b * k * (v - (k @ S))\nout o[V] = v",
    "a later state taken for a copy of an earlier one": "S += k * v\nZ += w * (k @ S)\nout o[V] = q @ Z",
    "copies of two states in one read": "Z = exp(g) * Z + p * u\nS += k * (q @ Z)\nout o[V] = q @ (b * S - Z)",
    "a value read of a state taken for its copy": "S += q * u\nL += k\nout o[K] = (S @ D) * (q @ L)",
    "factors of a param's decay": "S = exp(ek) * S\nS -= b * u * (S @ u)\nout o[V] = q @ S",
    "a param's decay and a row's": "S = exp(ek) * S\nS = sigmoid(f) * S + q * u\nout o[V] = q @ S",
    "elimination summed over the columns' own dim":
        "S -= bk * u * (S @ u)\nS += b * u * (q - (S @ u))\nout o[V] = q @ S",
    "a choice of two values without a dim of the condition's": "S += k * v\nout o[V] = where(q @ S > 0, b, c)",
    "a condition that the loop over chunks formed, read after it":
        "Z = where(q @ L > 0, 0.5, 1) * Z\nr = q @ Z\nZ = exp(g) * Z\nL += k\nout o[V] = r * r",
    "a param before the rows in a log decay, beside a correction":
        "S = exp(ek * b) * gv * S\nS -= b * u * (S @ u)\nout o[V] = q @ S",
    "a correction that nothing keeps, in a read": "S += k * v\nout o[V] = q @ (S - b * k * (k @ S))",
    "the same of what is kept corrected":
        "S = exp(g) * S + k * v - b * k * (k @ S)\nT = S + q * (q @ S)\nout o[V] = k @ (T - k * (p @ T))",
    "the same along the other side": "S = S + k * v - b * k * (k @ S)\nout o[V] = q @ (exp(g) * S - (S @ u) * u)",
    "the same that a kept one reads": "S = S + b * k * (v - k @ (S - f * p * (p @ S)))\nout o[V] = q @ S",
    "the same of a vector, beside itself": "M = exp(g) * M + v\nout o[V] = M + u * (u @ M)\nout r[K] = q",
    "a sum over a state beside it": "S += k * v\nout o[V] = q @ (S + sum[K](S))",
    "one system for every column before one for all":
        "S = e * S + bv * p * (u - k @ S) + 0.5 * p * (v - k @ Z)\nZ = 0.3 * Z + 0.2 * a * S + 0.5 * k * (p @ Z)\n"
        "out o[V] = q @ S",
    "a decision on what a decay of 0 erased, in the backward":
        "out o[V] = relu(q @ S) + where(k @ S > 0, v, u)\nS = av * S",
    "a decay of 0 beside the log of another": "S = exp(gv) * S + q * v\nout o[K] = S @ u\nS = av * S",
    "a decay to the power of a quotient of numbers": "S = sigmoid(f) ** (1 / 16) * S + k * v\nout o[V] = q @ S",
    "a mean of V, and half a sum, are one at the size 2":
        "S += k * v\nout o[V] = mean[V](square(v)) * (q @ S)\nout r[V] = 0.5 * sum(square(v)) * (q @ S)",
    "so are softmax(x) @ softmax(y) and the same of -x and -y":
        "S += k * v\nout o[V] = q @ S\nout r = softmax[V](v) @ softmax[V](u) + softmax[V](-v) @ softmax[V](-u)",
    "the halvings of a chunk whose decays the loop forms":
        "Z = Z - (1 - exp(gk)) * Z + b * p * v\nS = S - (1 - av) * S\nZ = exp(-abs(sum[K](S @ u))) * Z\n"
        "Z = Z + b * k * (0.5 * D - k @ Z)\nout o[V] = (b * q) @ S",
    "a condition of all rows that the loop chooses by":
        "S = 0.9 * S + k * u\nZ = exp(gk) * sigmoid(sum[K](S @ u)) * Z + k * v\nout o[V] = q @ Z",
    "a place in a group, and in all, are one at small sizes":
        "S = exp(g) * S + k * v\nout o[V] = (q * cos(index[K])) @ S\nout r[V] = (q * cos(index[K] % 4)) @ S",
    "a decay above 0 that is no scan": "S += (elu(k) + 1) * v\nout o[V] = (elu(q) + 1) @ S",
}


KERNELS = {  # the same of kernels, whose blocks are wider than their dims
    "a correction that nothing keeps": "S = S + k * v - b * k * (k @ S)\nout o[V] = q @ (S - b * k * (p @ S))",
    "two pairs of products, each waiting for the other":
        "S = exp(gv) * S + k * v\nout o[V] = sum[K]((k + q) * S) * ((q / (norm[K](q) + 0.1)) @ S @ u)",
    "a correction of a vector that nothing keeps": "M = exp(g) * M + v\nout o[V] = M + u * (u @ M)\nout r[K] = q",
    "what a chunk left behind the end of a dim was summed by the next one":
        "S = exp(g) * S + sigmoid(k) * v\nout o[V] = sigmoid(q) @ S",
    "what every token writes alike, of the chunks that the backward forms again":
        "out o = M @ Y\nM += D\nY += v\nout r[K] = q",
    "a running sum of nothing but pairs":
        "M = exp(g) * M + q @ S\nS = exp(-exp(ek) * sigmoid(f)) * S + q * u\nout o[V] = q @ S + u",
    "a decision on what a decay of 0 erased, in the backward": "out o[V] = where(k @ S > 0, v, u)\nS = av * S",
    "a product added to what has no axis of its own": "L = L + (k > 0)\nout o[K] = q / (9 + L)\nout r[V] = v",
    "a product added to a sum without an axis of the product": "L = exp(g) * L + k + 1\nout y = q @ L\nout r[V] = v",
    "a product added to what one program of several adds":
        "S = S + sigmoid(k) * v\nL = L + sigmoid(k)\nout o[V] = sigmoid(q) @ S\nout r = sigmoid(q) @ L",
    "rows of a vector that grew behind the end":
        "L = sigmoid(f) * L + (1 - sigmoid(f)) * k\nx = k - L\nS = exp(gk) * S\nS = S + b * x * (v - x @ S)\n"
        "out o[V] = q @ S",
}


def loaded(body):
    used = [d for n, d in DECLARED.items() if re.search(rf"(?<![\w\[]){n}\b", body)]
    used += [f"state {d}" for n, d in STATES.items() if re.search(rf"^{n} ", body, re.M)]
    used.sort(key=lambda d: ["in", "param", "const", "state"].index(d.split()[0]))
    mixer = mixc.loads("\n".join(["mixer m(K, V) {", *used, body, "}"]))
    assert set(mixer.form.values()) == {"chunk"}
    return mixer


@pytest.mark.parametrize("rows", ["plain", "mask, reverse"])
@pytest.mark.parametrize("what", FOUND)
def test_found(what, rows):
    cell = dict(length=17, size=5, heads="2/1", gates=1.0, dtype=torch.float64, rows=rows, start=True)
    with cells.cut(8):
        bad = [str(f) for f in cells.compare(loaded(FOUND[what]), cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("what", KERNELS)
def test_found_in_kernels(what):
    cell = dict(length=40, size=3, heads="1", gates=0.1, dtype=torch.float32, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(loaded(KERNELS[what]), cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


@pytest.mark.parametrize("rows", ["plain", "step"])
def test_a_term_that_only_rare_sequences_of_positions_let_through(rows):
    """Levels of a Fenwick tree (log-linear attention): a level takes over the one below it where a carry comes; on all
    probes of the merge, whose first position was 0, what is left of S0 and S1 in S2 was 0."""
    mixer = mixc.loads(
        "mixer levels(K, V) {\nin q[K], k[K], v[V], g where g <= 0, l0, l1, l2\nstate S0[K, V], S1[K, V], S2[K, V]\n"
        "S2 = where(pos % 4 == 0, exp(g) * S2 + S1 + S0, exp(g) * S2)\n"
        "S1 = where(pos % 4 == 0, 0, where(pos % 2 == 0, exp(g) * S1 + S0, exp(g) * S1))\n"
        "S0 = where(pos % 2 == 0, 0, exp(g) * S0) + k * v\n"
        "out o[V] = l0 * (q @ S0) + l1 * (q @ S1) + l2 * (q @ S2)\n}")
    assert set(mixer.form.values()) == {"chunk"}
    for length in (3, 17, 63):
        cell = dict(length=length, size=3, heads="2", gates=1.0, dtype=torch.float64, rows=rows, start=True)
        bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
        assert not bad, "; ".join(bad)


@pytest.mark.parametrize("rows", ["plain", "reverse", "step"])
def test_levels_in_one_state(rows):
    """The same tree with a dim of levels, told apart by a power of two: `%` refused it as no integer."""
    mixer = mixc.loads("mixer levels(K, V, L = 5) {\nin q[K], k[K], v[V], g where g <= 0, w[L]\nstate S[L, K, V]\n"
                       "S = exp(g) * where(pos % 2 ** (index[L] + 1) == 0, 0, S) + (index[L] == 0) * k * v\n"
                       "out o[V] = (w * q) @ S\n}")
    assert mixer.form == {"S": "chunk"}
    cell = dict(length=35, size=3, heads="2", gates=1.0, dtype=torch.float64, rows=rows, start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)


def test_a_learned_factor_before_a_token_s():
    """Its dims stood before the time axis."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], d[K] where 0 <= d <= 1\nparam p[K] where 0 <= p <= 1\n"
                       "state S[K, V]\nS = p * d * S + k * v\nout o[V] = q @ S\n}")
    cell = dict(length=20, size=5, heads="2", gates=1.0, dtype=torch.float64, rows="plain", start=True)
    assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


def test_a_const_that_is_one_less_itself_by_default():
    """0.5 and 1 - 0.5 were merged, and stayed so at 0.2."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V]\nconst c = 0.5\nstate S[K, V]\nold = q @ S\nS += k * v\n"
                       "out o[V] = c * old + (1 - c) * (q @ S)\n}")
    x = cells.given(mixer, dict(length=9, size=3, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=False))
    want, got = (agree.run(mixer, x.tensors, backend=b, c=0.2) for b in ("reference", "torch"))
    assert all(f.ok for f in agree.judge(mixer.declared, got, want, torch.float64))


def test_a_const_on_the_other_side_of_a_threshold_than_its_default():
    """Where 1 was chosen the clamp let nothing through, so that the choice went from the backward."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], u[V], k[K] where norm[K](k) <= 1\nconst one = 1\n"
                       "state S[K, V], M[K, V]\nS = 0.9 * S + k * u\nM = 0.9 * M + q * u\n"
                       "out o[V] = clamp(where(q @ M > 0, k @ S, one), -0.4, 0.3)\n}")
    cell = dict(length=20, size=3, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=False, consts=0.3)
    assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


def test_a_decision_on_a_const_where_a_number_a_row_is_formed():
    """It was handed on as a number."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], f\nconst c = 0.7\nstate S[K, V]\n"
                       "S = where(c > 0.5, sigmoid(f) ** c, 1) * S + k * v\nout o[V] = q @ S\n}")
    cell = dict(length=9, size=3, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=False)
    assert all(f.ok for value in (None, 0.2) for f in cells.compare(mixer, cell | {"consts": value}, "torch"))


def test_the_last_row_of_a_scan_is_not_overwritten():
    """It was a view of the scan's buffer, which tanh was written to; the state left was tanh(S)."""
    mixer = mixc.loads("mixer m(K) {\nin q[K]\nstate S[K], M[K]\nS = maximum(0.9 * S, q)\nM = tanh(S)\nout o[K] = q\n}")
    cell = dict(length=17, size=3, heads="1", gates=1.0, dtype=torch.float64, rows="plain", start=False)
    assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


@pytest.mark.parametrize("body", ["S += b * (k @ (v - k @ S))", "S = exp(g) * S + k @ (w * v - p @ S)"])
def test_a_sum_over_corrections(body):
    """K, over which the state was read, was taken for the K of what is written."""
    mixer = mixc.loads("mixer m(K, V, R) {\nin q[K], k[K, R] where norm[K, R](k) <= 1, v[R, V], w[R]\n"
                       "in b where 0 <= b <= 1, p[R, K] where norm[R, K](p) <= 1, g where g <= 0\n"
                       f"state S[K, V]\n{body}\nout o[V] = q @ S\n}}")
    cell = dict(length=33, size=3, heads="2/1", gates=1.0, dtype=torch.float64, rows="plain", start=True)
    with cells.cut(8):
        assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


@pytest.mark.parametrize("body", [
    "state S[K, V], n[K]\nS += b * k * v\nn += b * square(k)\nout o[V] = (q / (n + c)) @ S",  # 0 / 0 behind K
    "state S[K, V]\nS += k * v\nout o[V] = K ** -0.5 * (q @ S) + sqrt(V)",  # logarithms of integers
    "state S[K, V]\nS += sqrt(c - 0.05) * k * v\nout o[V] = q @ S",  # roots of less than 0 behind K
    "state S[K, V]\nS = exp(-1 / c) * S + k * v\nout o[V] = q @ S",  # logs of decays: -1 / 0
    "state G[K, J]\nG += k * k[J]\nx = q / c\nr = q - x[J] @ G\ny = r @ (r[J] @ G)\nout o[V] = y * v"])  # 0 / 0
def test_quotients_and_sizes_in_kernels(body):
    mixer = mixc.loads("mixer m(K, V, J = K) {\nin q[K], k[K], v[V], b where 0 <= b <= 1\n"
                       f"param c[K] where 0.1 <= c <= 2\n{body}\n}}")
    cell = dict(length=20, size=5, heads="1", gates=1.0, dtype=torch.float32, rows="plain", start=False)
    assert all(f.ok for f in cells.compare(mixer, cell, "triton"))


def test_numbers_a_row_of_many_segments():
    """A sum over rows by a matrix of params was taken before the segments, where the matrix was not repeated so often;
    what the loop left of a segment for later lay where the next segment wrote its own: dx was wrong."""
    mixer = mixc.loads("mixer m() {\nin x\nparam b\nstate m, s\nm = sigmoid(b) * m + x\ns = 0.9 * s + 0.1 * m\n"
                       "out o = s\n}")
    cell = dict(length=40, size=3, heads="2", gates=1.0, dtype=torch.float64, rows="plain", start=True)
    with cells.cut(8, SEGMENT_BYTES=1):
        assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


@pytest.mark.parametrize("update", ["exp(g) * S + k * v", "tanh(S) + k * v"])
@pytest.mark.parametrize("length", [1, 37, (0, 3, 3, 20)])
def test_a_part_without_outs_in_kernels(update, length):
    """It kept its states for a backward also in calls without one, which have no room for them; or named no KEEP."""
    mixer = mixc.loads("mixer m(K, V) {\nin k[K], v[V], g where g <= 0\nstate S[K, V], y[V]\ny = tanh(y + v)\n"
                       f"S = {update}\nout o[V] = y\n}}")
    cell = dict(length=length, size=5, heads="1", gates=1.0, dtype=torch.float32, rows="plain", start=True)
    assert all(f.ok for f in cells.compare(mixer, cell, "triton"))
    x = cells.given(mixer, cell)
    want, got = (agree.run(mixer, x.tensors, initial_state=x.initial_state, grads=False, backend=b, **x.options)
                 for b in ("reference", "triton"))
    assert all(f.ok for f in agree.judge(mixer.declared, got, want, torch.float32))


def test_nothing_to_the_power_of_nothing_in_kernels():
    """0 ** 0 was NaN where a decay forgets everything: dg of exp(g) ** (1 + index[V])."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], g where g <= 0\nstate S[K, V]\n"
                       "S = exp(g) ** (1 + index[V]) * S + k * v\nout o[V] = q @ S\n}")
    cell = dict(length=40, size=5, heads="1", gates="forget", dtype=torch.float32, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "triton") if not f.ok]
    assert not bad, "; ".join(bad)


def test_a_deep_expression_is_written_at_once():
    """What stands where was asked anew at every level: 40 of them would take days."""
    x = "tanh(" * 40 + "f" + ")" * 40
    text = f"mixer deep(K, V) {{\nin q[K], k[K], v[V], f\nstate S[K, V]\nS = S + {x} * k * v\nout o[V] = q @ S\n}}"
    assert mixc.loads(text).emit().count("tanh(") > 40


FREE = {  # what was wrong: a whole text, and what its call was beside that
    "a lag of what no gradient goes through": (
        "mixer m(K) {\nin x[K], y[K] where y <= 0\nstate S[K]\nt = norm[K](x) * stop_gradient(sum(y))\n"
        "S = 0.9 * S + x * lag(t, 1)\nout o[K] = S\n}", {}),
    "stop_gradient in the way beside complex values": (
        "mixer m(K, E = K) {\nin q[K], k[K], y[E] where norm[E](y) <= 1\nstate S[K, E]\n"
        "S = S + y * (k - stop_gradient(y @ S)) + abs(exp(1j * q)) * y\nout o[K, E] = S\n}", {}),
    "advice on a cell beside complex values, without end": (
        "mixer m(K, E = K) {\nin q[K], y[E], z[K] complex\nparam w[K]\nstate S[K, E]\n"
        "S = 0.8 * (S + tanh(w * ((y @ S) - q) * abs(z)))\nout o[K] = S @ y\n}", {}),
    "advice on a cell that a product is not to blame for": (
        "mixer m(K, E = K) {\nin q[K], y[E], f\nparam wz[K] complex, th[K]\nstate S[K, E], Z[K]\n"
        "S = where(lag(q, 1) * y > S, lag(q, 1) * y, 0.5 * S)\n"
        "Z = where(lag(f, 1) > 0, Z, exp(-exp(th) + 1j * index[K]) * Z + wz)\nout o[E] = y\n}", {}),
    "the log of a gate that is summed up, its row infinite": (
        "mixer m(V) {\nin v[V], g where g <= 0\nstate F, M[V]\nF = F + g\nM = 0.5 * M + g * square(v)\n"
        "out o[V] = exp(F) * v + exp(M)\n}", dict(gates="forget")),
    "the largest entry, and entries that are formed again and rounded otherwise": (
        "mixer m(K, E = K) {\nin q[K], y[E]\nstate M[K, E]\nM = 0.9 * M + q\nM += 0.1 * tanh(max[E](M) * y)\n"
        "out o[K] = q\n}", {}),
    "the cost of a scan of two planes beside a vector with corrections": (
        "mixer m(K, V, E = K) {\nin y[E], v[V]\nstate M[V], Z[K, E]\n"
        "M = where(pos // 2 % 2 == 0, M, 1j * M + 0.5 * v)\nZ = Z - 0.3 * y * (Z @ y)\nout o[K, E] = Z\n}", {}),
    "decays of numbers alone beside a correction along the other side": (
        "mixer m(K, V) {\nin u[V] where norm[V](u) <= 1\nin k[K]\nstate S[K, V]\n"
        "S = where(index[K] % 2 == 0, 0.5, 0.8) * S - 0.5 * u * (S @ u) + k * u\nout o[K] = k\n}", {}),
    "a value without heads in what the evaluator forms of a token": (
        "mixer m(K, V, P = 2) {\nin v[V]\nparam A[K, V], th[K]\nstate S[P, K, V]\n"
        "S = A @ S * th * (index[V] == 1)\nout o[P, K, V] = S\n}", dict(size=2)),
    "the gradient to a param by a product along a dim that both sides keep": (
        "mixer m(K, V) {\nin k[K], v[V]\nparam D[V]\nstate M[K, V]\nz = sigmoid(square(k * v))\n"
        "M = tanh(z * M + (1 - z) * k * D)\nout o[V] = k @ M\n}", {}),
    "a dim whose second name alone a kernel's tensors have": (
        "mixer m(K, E = K) {\nin q[K]\nparam R[K, E]\nstate S\nS += max[E](R @ q)\nout o = S\n}", {}),
    "a dim whose size only the tensors of another part tell": (
        "mixer m(K, V) {\nin q[K], u[V]\nstate S[K], Z[K, V]\nS = 0.9 * S + q\nZ = tanh(Z * u + 0.1)\n"
        "out o[K] = S\nout r[K, V] = Z\n}", {}),
}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("text, call", FREE.values(), ids=FREE.keys())
@pytest.mark.filterwarnings("ignore:.*MX301")
def test_found_freely(text, call, backend):
    cell = dict(length=37, size=3, heads="2", gates=1.0, dtype=torch.float32, rows="plain", start=True) | call
    with cells.cut(16):
        bad = [str(f) for f in cells.compare(mixc.loads(text), cell, backend) if not f.ok]
    assert not bad, "; ".join(bad)
