"""Small specs that run token by token, by name; tests of several levels share them."""

from __future__ import annotations

import textwrap

import mixc

_BODIES = {
    "elman": """
        in x[D]
        param R[D, E]
        state h[D]
        h = tanh(x + R @ h[E])
        out o[D] = h""",
    "peephole": """
        in xi[D], xf[D], xz[D], xo[D]
        param Ri[D, E], Rf[D, E], Rz[D, E], Ro[D, E], pi_[D], pf[D], po[D]
        state h[D], c[D]
        i = sigmoid(xi + Ri @ h[E] + pi_ * c)
        f = sigmoid(xf + Rf @ h[E] + pf * c)
        z = tanh(xz + Rz @ h[E])
        c = f * c + i * z
        o = sigmoid(xo + po * c + Ro @ h[E])
        h = o * tanh(c)
        out y[D] = h""",
    "highway": """
        in x[D]
        param W[D, E], U[D, E], V[D, E], b[D]
        state s[D], m[D]
        t = sigmoid(U @ s[E] + V @ m[E] + b)
        a = tanh(x + W @ s[E])
        m = 0.9 * m + s
        s = t * a + (1 - t) * s
        out o[D] = s + m""",
    "tanh_memory": """
        in q[K], k[K], v[V]
        state S[K, V]
        S = tanh(0.9 * S + k * (v - k @ S))
        out o[V] = q @ S""",
    "norm_memory": """
        in q[K], k[K], v[V]
        state S[K, V], n
        S = S / (1 + norm[K, V](S)) + k * v
        n = max[V](q @ S) - softplus(n)
        out o[V] = softmax[V](q @ S) * n
        out p = sum(S) + n""",
    "memory_into_cell": """
        in q[K], k[K], v[V], g
        param R[V, W]
        state S[K, V], h[V]
        S = sigmoid(g) * S + k * v
        h = tanh(q @ S + R @ h[W])
        out o[V] = h""",
    "robust_learner": """
        in q[K], k[K], v[V], b where 0 <= b <= 1, m where 0 <= m <= 1
        state S[K, V], M[K, V]
        M = m * M - grad[S](sum(sqrt(1 + square(k @ S - v))))
        S = S + b * M
        out o[V] = q @ S""",
    "two_layers": """
        in q[K], k[K], v[V], w[M], b where 0 <= b <= 0.5
        state P[K, M], S[M, V]
        loss = 0.5 * sum(square(tanh(k @ P + w) @ S - v))
        GP = grad[P](loss)
        GS = grad[S](loss)
        P = 0.9 * P - b * GP
        S = 0.9 * S - b * GS
        out o[V] = tanh(q @ P) @ S""",
    "mixed_rows": """
        in q[K], k[K], v[V]
        param R[K, J]
        state S[K, V]
        S = tanh(R @ S[J, V] + k * v)
        out o[V] = q @ S
        out all[K, V] = S * S""",
    "three_dims": """
        in q[K], k[K], v[V], w[M]
        param R[M, L]
        state S[K, V, M], n[M]
        S = tanh(0.9 * S[K, V, M] @ R[M, L] + k * v * w[L])[K, V, M]
        n = softmax(n + w) + max[K, V](S)
        out o[V] = sum[K, M](q * n * S)""",
    "scan_and_cell": """
        in x[D], f[D]
        param R[D, E]
        state m[D] = -inf
        state h[D]
        m = maximum(m - 1, x)
        h = sigmoid(f) * h + exp(x - m) * tanh(R @ h[E])
        out o[D] = where(m > 0, h, 0.5 * h)""",
    "dense": """
        in x[D]
        param R[D, E], a[D] where 0 <= a <= 1
        state h[D]
        out before[D] = h * x
        h = a * h + R @ h[E] + x
        out after[D] = h""",
    "odd_products": """
        in x[D], w[D]
        param R[E, D], Q[D, E]
        state h[D]
        a = R @ h
        b = Q @ a[E]
        h = sigmoid(w @ h) * b + x - a[D]
        out o = w @ h""",
    "two_starts": """
        in x[D]
        param h0[D], R[D, E]
        state h[D] = tanh(h0), p[D]
        t = h
        h = relu(x - R @ h[E] + p)
        p = t
        out o[D] = h * p""",
    "oscillators": """
        in x[K, V]
        param R[K, J]
        state S[K, V] = 0.5
        y = x + R @ S[J, V]
        n = S + 0.3 * (y - sum[V](y * S) * S)
        S = n * rsqrt(sum[V](square(n)) + 1e-6)
        out o[K, V] = S""",
    "stabilised_cell": """
        in z[D], i[D], f[D]
        param rz[D], rf[D]
        state c[D], n[D], m[D] = -inf, h[D]
        a = f + rf * h
        b = maximum(a + m, i)
        c = exp(a + m - b) * c + exp(i - b) * tanh(z + rz * h)
        n = exp(a + m - b) * n + exp(i - b)
        m = b
        h = c / n
        out o[D] = h""",
    "feeds_itself": """
        in q[K], k[K], v[V]
        in g where g <= 0
        param w[V]
        state S[K, V], h[V]
        S = exp(g) * S + k * v
        h = tanh(0.5 * h + q @ S)
        S = S - 0.25 * sigmoid(w @ h) * k * h
        out o[K] = S @ h""",
    "attends": """
        in k[K], v[V]
        state S[K, V]
        p = softmax[K](S @ v)
        S = (S + (p + k) * v) / (1 + norm(S))
        out o[V] = p @ S""",
}
NAMES = tuple(_BODIES)


def spec(name: str) -> mixc.Mixer:
    """The mixer of one of `NAMES`."""
    text = _BODIES[name]
    dims = [d for d in "DKVM" if f"[{d}" in text or f" {d}]" in text]
    dims += [f"{e} = {d}" for e, d in ("ED", "WV", "JK", "LM") if f"[{e}]" in text or f" {e}]" in text]
    return mixc.loads(f"mixer {name}({', '.join(dims)}) {{\n{textwrap.dedent(text)}\n}}\n")
