"""Small specs of states that are scans, by name; tests of several levels share them."""

from __future__ import annotations

import textwrap

import mixc

_BODIES = {
    "max_plus": """
        in a[D], x[D]
        state h[D] = -inf
        h = maximum(h + a, x)
        out o[D] = h""",
    "min_plus_before": """
        in a[D], x[D]
        state h[D] = inf
        out p[D] = where(h > 100, 0, h)
        h = minimum(x, a + h)
        out o[D] = h""",
    "max_times": """
        in d[D] where 0 <= d <= 1
        in x[D]
        state h[D]
        h = maximum(d * h, x)
        out o[D] = h""",
    "log_sum": """
        in a[D] where a <= 0
        in x[D]
        state h[D] = -inf
        h = logaddexp(a + h, x)
        out o[D] = h""",
    "log_of_sum": """
        in a[D] where a <= 0
        in x[D]
        state h[D] = -inf
        h = log(exp(a + h) + exp(x))
        out o[D] = h""",
    "before_and_after": """
        in f[D] where 0 <= f <= 1
        in x[D]
        state h[D]
        out b[D] = tanh(h) * x
        h = f * h + (1 - f) * x
        out o[D] = h""",
    "lerp": """
        in k[D], c[D]
        state h[D]
        h += sigmoid(k) * (tanh(c) - h)
        out o[D] = h""",
    "reset": """
        in r, x[D]
        in f[D] where 0 <= f <= 1
        state h[D]
        h = where(r > 0.5, 0, f * h) + x
        out o[D] = h""",
    "best_since_a_reset": """
        in r, x[D]
        state h[D] = -inf
        h = where(r > 0.5, x, maximum(h - 0.1, x))
        out o[D] = h""",
    "log_sum_since_a_reset": """
        in r, x[D], a[D] where a <= 0
        state h[D] = -inf
        h = logaddexp(a + where(r > 0.5, -inf, h), x)
        out o[D] = h""",
    "what_was_there_last": """
        in r[D], x[D]
        state h[D] = -inf
        h = where(r > 0.2, x, h)
        out o[D] = where(h > -100, h, 0)""",
    "since_when": """
        in r, x[D]
        state n = inf
        n = where(r > 0.5, 0, n + 1)
        out o[D] = exp(-n) * x""",
    "between": """
        in f[D], x[D]
        state h[D]
        h = sigmoid(f) * h
        out m[D] = h * h
        h = h + x
        out o[D] = h""",
    "param_decay": """
        in x[D]
        param a[D] where 0 <= a <= 1
        state h[D]
        h = a * h + x
        out o[D] = h""",
    "matrix": """
        in x[D], w[N]
        param A[D, N]
        state h[D, N]
        h = sigmoid(A) * h + tanh(x * w)
        out o[D] = h @ w""",
    "scan_feeds_scan": """
        in f[D], g[D] where 0 <= g <= 1
        in x[D]
        state h[D], m[D]
        h = sigmoid(f) * h + x
        m = g * m + h
        out o[D] = m""",
    "stabilised": """
        in q[K], k[K], v[V], i, f
        state S[K, V], n[K]
        state m = -inf
        a = logsigmoid(f) + m
        m = maximum(a, i)
        S = exp(a - m) * S + exp(i - m) * k * v
        n = exp(a - m) * n + exp(i - m) * k
        out h[V] = (q @ S) / (abs(q @ n) + exp(-m))""",
    "slow_gate": """
        in q[K], k[K], v[V], r[K]
        state z[K]
        state S[K, V]
        z = 0.9 * z * sigmoid(r) + r
        S = sigmoid(sum(z)) * S + k * v
        out h[V] = q @ S""",
    "rotation": """
        in u[D], r where 0 <= r <= 1
        param w[D]
        state x[D], y[D]
        a = x
        x = r * (cos(w) * a - sin(w) * y) + u
        y = r * (sin(w) * a + cos(w) * y)
        out o[D] = x + y""",
    "momentum": """
        in x[D], b[D], e
        state m[D], h[D]
        out p[D] = tanh(h) * m
        m = sigmoid(b) * m - sigmoid(e) * (h - x)
        h = h + m
        out o[D] = h""",
    "three_coupled": """
        in x[D], f[D]
        state a[D], b[D], c[D]
        t = a
        a = 0.5 * a + 0.2 * c + x
        b = sigmoid(f) * b + 0.3 * t
        c = 0.7 * c - 0.1 * b
        out o[D] = a * b + c""",
    "coupled_matrices": """
        in x[D], w[N]
        param A[D, N]
        state p[D, N], q[D, N]
        t = p
        p = sigmoid(A) * (p - 0.3 * q) + x * w
        q = sigmoid(A) * (q + 0.3 * t)
        out o[D] = sum[N](p * w)""",
}
NAMES = tuple(_BODIES)


def spec(name: str) -> mixc.Mixer:
    """The mixer of one of `NAMES`."""
    return body(_BODIES[name], name)


def body(text: str, name: str = "m") -> mixc.Mixer:
    """A mixer from its body; the dims are the capitals in it."""
    dims = [d for d in "DNKV" if f"[{d}" in text or f" {d}]" in text]
    return mixc.loads(f"mixer {name}({', '.join(dims)}) {{\n{textwrap.dedent(text)}\n}}\n")
