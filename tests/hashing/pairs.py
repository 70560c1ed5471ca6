"""Specs that are one function, and specs that nearly are: (name, text, text)."""

from __future__ import annotations

GDN = """mixer gdn(K, V) {
    in q[K], v[V]
    in k[K] where norm[K](k) <= 1
    in g where g <= 0
    in beta where 0 <= beta <= 1
    const scale = K ** -0.5
    state S[K, V]
    S = exp(g) * S
    S = S + beta * k * (v - k @ S)
    out o[V] = scale * (q @ S)
}
"""
DELTA = """mixer delta(K, V) {
    in q[K], v[V]
    in k[K] where norm[K](k) <= 1
    in beta where 0 <= beta <= 1
    state S[K, V]
    S = S + beta * k * (v - k @ S)
    out o[V] = q @ S
}
"""
GLA = """mixer gla(K, V) {
    in q[K], k[K], v[V]
    in g[K] where g <= 0
    const scale = K ** -0.5
    state S[K, V]
    S = exp(g) * S + k * v
    out o[V] = scale * (q @ S)
}
"""
RNN = """mixer rnn(D, E = D) {
    in x[D]
    param R[D, E]
    state h[D]
    h = tanh(x + R @ h[E])
    out o[D] = h
}
"""


def point(body: str, ins: str = "in x[D], y[D]", consts: str = "") -> str:
    """A mixer without state: one expression of x and y."""
    return f"mixer f(D) {{\n    {ins}\n    {consts}\n    out o[D] = {body}\n}}\n"


def many_dims(scale: str) -> str:
    """A mixer of nine dims: sizes of probes tell all of them apart."""
    dims = ["A", "C", "D", "E", "F", "G", "I", "J", "K"]
    return (f"mixer f({', '.join(dims)}) {{\n" + "".join(f"    in x{d}[{d}]\n" for d in dims)
            + "".join(f"    out o{d}[{d}] = x{d} * {scale if d == 'K' else 'A'}\n" for d in dims) + "}\n")


def two_norms(out: str) -> str:
    return ("mixer f(K, V) {\n    in x[K, V] where norm[K](x) <= 1 and norm[V](x) <= 1\n"
            f"    out o[K, V] = {out}\n}}\n")


def cell(line: str, ins: str = "in x[D]\n    in g[D] where g <= 0", start: str = "", out: str = "h") -> str:
    """A mixer with one vector state h."""
    return f"mixer c(D) {{\n    {ins}\n    state h[D]{start}\n    {line}\n    out o[D] = {out}\n}}\n"


EQUAL: list[tuple[str, str, str]] = [
    ("renamed", GDN, GDN.replace("q", "query").replace("beta", "eta").replace("S", "M").replace("scale", "c")),
    ("dims renamed", GDN, GDN.replace("K", "N").replace("V", "P")),
    ("dims exchanged in the header", GDN, GDN.replace("(K, V)", "(V, K)")),
    ("state transposed", GDN, GDN.replace("S[K, V]", "S[V, K]")),
    ("ins in another order", GDN, GDN.replace("    in q[K], v[V]\n", "").replace(
        "    const", "    in v[V], q[K]\n    const")),
    ("expanded correction", DELTA, DELTA.replace("k * (v - k @ S)", "k * v - beta * k * (k @ S)")),
    ("learner", DELTA, DELTA.replace("    S = S + beta * k * (v - k @ S)", """
    loss = 0.5 * sum(square(k @ S - v))
    S = S - beta * grad[S](loss)""")),
    ("decay folded in", GDN, GDN.replace("    S = exp(g) * S\n", "").replace(
        "S + beta * k * (v - k @ S)", "exp(g) * (S - beta * k * (k @ S)) + beta * k * v")),
    ("named subterms", GDN, GDN.replace("    S = S + beta * k * (v - k @ S)",
                                        "    e = v - k @ S\n    w = k * beta\n    S += w * e")),
    ("scale on the query", GLA, GLA.replace("scale * (q @ S)", "(scale * q) @ S")),
    ("q @ S spelled out", GLA, GLA.replace("(q @ S)", "sum[K](q * S)")),
    ("default spelled otherwise", GLA, GLA.replace("K ** -0.5", "1 / sqrt(K)")),
    ("range from both sides", GLA, GLA.replace("g <= 0", "0 >= g")),
    ("range as a modulus", point("x * y", "in x[D] where abs(x) <= 1\n    in y[D]"),
     point("x * y", "in x[D] where -1 <= x <= 1\n    in y[D]")),
    ("range twice", point("x", "in x[D] where x <= 2 and x <= 1"), point("x", "in x[D] where x <= 1")),
    ("sum of products", point("x * y + x * x"), point("x * (y + x)")),
    ("sub as add", point("x - y"), point("x + (-y)")),
    ("associated", point("(x + y) + 1"), point("x + (1 + y)")),
    ("exp of a sum", point("exp(x + y)"), point("exp(x) * exp(y)")),
    ("exp of a product", point("exp(2 * x)"), point("square(exp(x))")),
    ("expm1", point("expm1(x) * y"), point("exp(x) * y - y")),
    ("log1p", point("log1p(exp(x)) + y"), point("softplus(x) + y")),
    ("sigmoid", point("sigmoid(x) * y"), point("y / (1 + exp(-x))")),
    ("complement of sigmoid", point("1 - sigmoid(x)"), point("sigmoid(-x)")),
    ("tanh by sigmoid", point("tanh(x)"), point("2 * sigmoid(2 * x) - 1")),
    ("silu", point("silu(x) * y"), point("x * sigmoid(x) * y")),
    ("logsigmoid", point("logsigmoid(x)"), point("-softplus(-x)")),
    ("log of sigmoid", point("logsigmoid(x)"), point("log(sigmoid(x))")),
    ("logaddexp", point("logaddexp(x, y)"), point("log(exp(x) + exp(y))")),
    ("relu", point("relu(x)"), point("maximum(x, 0)")),
    ("relu by where", point("relu(x) + y"), point("where(x > 0, x, 0) + y")),
    ("abs", point("abs(x)"), point("maximum(x, -x)")),
    ("minimum", point("minimum(x, y)"), point("-maximum(-x, -y)")),
    ("clamp", point("clamp(x, -1, 1)"), point("minimum(maximum(x, -1), 1)")),
    ("softmax", point("softmax[D](x)"), point("exp(x) / sum[D](exp(x))")),
    ("mean", point("x - mean(x)"), point("x - sum(x) / D")),
    ("norm", point("x / norm(x)"), point("x * rsqrt(sum(square(x)))")),
    ("two norms that are short", two_norms("x"), two_norms("x / maximum(1, norm[K](x)) / maximum(1, norm[V](x))")),
    ("square", point("x ** 2"), point("x * x")),
    ("rsqrt", point("rsqrt(1 + x * x)"), point("1 / sqrt(1 + square(x))")),
    ("sine of a sum", point("sin(x + y)"), point("sin(x) * cos(y) + cos(x) * sin(y)")),
    ("symmetric inputs", point("x * y"), point("y * x")),
    ("two symmetric pairs", point("a * b + c * d", "in a[D], b[D], c[D], d[D]"),
     point("a * c + b * d", "in a[D], b[D], c[D], d[D]")),
    ("gates by convex combination", cell("h = sigmoid(x) * h + (1 - sigmoid(x)) * g"),
     cell("h = g + sigmoid(x) * (h - g)")),
    ("read of the old state", cell("h = exp(g) * h + x", out="h"), cell("h = x + h * exp(g)", out="h + x - x")),
    ("lag of a product", point("lag(x, 1) * 2 + y"), "mixer f(D) {\n    in x[D], y[D]\n    z = 2 * x\n"
     "    out o[D] = y + lag(z, 1)\n}\n"),
    ("a lag of a lag", "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 30)\n}\n",
     "mixer f(D) {\n    in x[D]\n    y = lag(x, 10)\n    out o[D] = lag(y, 20)\n}\n"),
    ("window as lags", "mixer f(D, W = 2) {\n    in x[D]\n    param c[D, W]\n    out o[D] = sum[W](c * lag[W](x))\n}\n",
     "mixer f(D, W = 2) {\n    in x[D]\n    param c[D, W]\n    y = c * where(index[W] == 0, x, lag(x, 1))\n"
     "    out o[D] = sum[W](y)\n}\n"),
    ("loop unrolled", "mixer f(D, N = 3) {\n    in x[N, D]\n    state h[D]\n    for n in N {\n        h = h + x[n]\n"
     "    }\n    out o[D] = h\n}\n",
     "mixer f(D, N = 3) {\n    in x[N, D]\n    state h[D]\n    h = h + sum[N](x)\n    out o[D] = h\n}\n"),
    ("two names of one size exchanged", RNN, RNN.replace("E", "F").replace("D", "E").replace("F", "D")),
    ("complex by its planes", "mixer f(D) {\n    in z[D] complex\n    out o[D] = real(z * conj(z))\n}\n",
     "mixer f(D) {\n    in z[D] complex\n    out o[D] = square(real(z)) + square(imag(z))\n}\n"),
    ("Euler", "mixer f(D) {\n    in w[D]\n    out o[D] = exp(1j * w)\n}\n",
     "mixer f(D) {\n    in w[D]\n    out o[D] = cos(w) + 1j * sin(w)\n}\n"),
    ("pos", point("x * (pos % 2)"), point("x * (pos - 2 * (pos // 2))")),
    ("outs exchanged", "mixer f(D) {\n    in x[D]\n    out a[D] = exp(x)\n    out b[D] = sin(x)\n}\n",
     "mixer f(D) {\n    in x[D]\n    out a[D] = sin(x)\n    out b[D] = exp(x)\n}\n"),
    ("an input that does not count", point("x + 0 * y"), point("x")),
    ("start of a state", cell("h = h + x + g", start=" = 1"), cell("h = g + x + h", start=" = 2 - 1")),
]

NEAR: list[tuple[str, str, str]] = [
    ("a range", GLA, GLA.replace("g <= 0", "g < 0")),
    ("a bound", GLA, GLA.replace("g <= 0", "g <= 0.001")),
    ("no range", GLA, GLA.replace(" where g <= 0", "")),
    ("a norm's bound", GDN, GDN.replace("norm[K](k) <= 1", "norm[K](k) <= 2")),
    ("a two-sided range", GDN, GDN.replace("0 <= beta <= 1", "0 <= beta <= 2")),
    ("a default", GLA, GLA.replace("K ** -0.5", "K ** -0.25")),
    ("a default by one in a million", GLA, GLA.replace("K ** -0.5", "1.000001 * K ** -0.5")),
    ("a const for its value", GLA, GLA.replace("    const scale = K ** -0.5\n", "").replace("scale", "K ** -0.5")),
    ("a number's default for a size's", point("c * x", consts="const c = 2"), point("c * x", consts="const c = D")),
    ("resets at 64 and at 128", point("where(pos % 64 == 0, x, y)"), point("where(pos % 128 == 0, x, y)")),
    ("a warm-up of 1000 and of 2000", point("where(pos < 1000, x, y)"), point("where(pos < 2000, x, y)")),
    ("one in a million", GLA, GLA.replace("scale * (q", "1.000001 * scale * (q")),
    ("one in a million in a state", GLA, GLA.replace("+ k * v", "+ 0.999999 * k * v")),
    ("a gradient", GLA, GLA.replace("+ k * v", "+ stop_gradient(k) * v")),
    ("the gradient of a state", GLA, GLA.replace("exp(g) * S", "exp(g) * stop_gradient(S)")),
    ("half a gradient", point("x * x"), point("x * stop_gradient(x)")),
    ("read before the update", GLA, GLA.replace("S[K, V]\n", "S[K, V]\n    out o[V] = scale * (q @ S)\n").replace(
        "k * v\n    out o[V] = scale * (q @ S)", "k * v")),
    ("the error before the decay", GDN, GDN.replace("    S = exp(g) * S\n", "").replace(
        "S + beta * k * (v - k @ S)", "exp(g) * S + beta * k * (v - k @ S)")),
    ("a dim of the decay", GLA, GLA.replace("g[K]", "g")),
    ("a dim shared", RNN, "mixer rnn(D, E) {\n    in x[D]\n    in y[E]\n    param R[D, E]\n    state h[D]\n"
                          "    h = tanh(x + R @ y)\n    out o[D] = h\n}\n"),
    ("transposed product", RNN, RNN.replace("R @ h[E]", "(R[E, D] @ h[E])")),
    ("a param for an input", point("x * y"), point("x * y", "in x[D]\n    param y[D]")),
    ("complex for real", point("x + y"), point("real(x) + y", "in x[D] complex\n    in y[D]")),
    ("a dim fixed", point("x * y"), point("x * y").replace("f(D)", "f(D = 4)")),
    ("another out", point("x"), point("x").replace("}\n", "    out p[D] = y\n}\n")),
    ("out for state", cell("h = exp(g) * h + x"), cell("h = exp(g) * h + x", out="h - x")),
    ("one more state", cell("h = exp(g) * h + x"),
     cell("h = exp(g) * h + x\n    n = n + x").replace("state h[D]", "state h[D], n[D]")),
    ("lag for a state", "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 1)\n}\n",
     "mixer f(D) {\n    in x[D]\n    state s[D]\n    out o[D] = s\n    s = x\n}\n"),
    ("a lag", "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 1)\n}\n",
     "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 2)\n}\n"),
    ("a far lag", "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 11)\n}\n",
     "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 12)\n}\n"),
    ("a lag over a hundred tokens", "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 101)\n}\n",
     "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 102)\n}\n"),
    ("a lag too far to be seen", "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 10001)\n}\n",
     "mixer f(D) {\n    in x[D]\n    out o[D] = lag(x, 10002)\n}\n"),
    ("a lag far behind a state", cell("h = h + lag(x, 40) + g"), cell("h = h + lag(x, 41) + g")),
    ("a start", cell("h = h + x + g"), cell("h = h + x + g", start=" = 1")),
    ("a start at -inf", cell("h = maximum(h + g, x)"), cell("h = maximum(h + g, x)", start=" = -inf")),
    ("max for logaddexp", point("maximum(x, y)"), point("logaddexp(x, y)")),
    ("tanh for sigmoid", point("tanh(x)"), point("sigmoid(2 * x)")),
    ("pairs", point("a * b + c * d", "in a[D], b[D], c[D], d[D]"), point("a * b + c + d", "in a[D], b[D], c[D], d[D]")),
    ("a cycle of four for two of two", point("a * b + c * d", "in a[D], b[D], c[D], d[D]"),
     point("a * b + b * c + c * d + d * a", "in a[D], b[D], c[D], d[D]")),
    ("six in a ring or in two", point("a * b + b * c + c * d + d * e + e * f + f * a",
                                      "in a[D], b[D], c[D], d[D], e[D], f[D]"),
     point("a * b + b * c + c * a + d * e + e * f + f * d", "in a[D], b[D], c[D], d[D], e[D], f[D]")),
    ("pos from 1", point("x * pos"), point("x * (pos + 1)")),
    ("a period", point("x * (pos % 2)"), point("x * (pos % 3)")),
    ("sign of the phase", "mixer f(D) {\n    in z[D] complex\n    param w\n    out o[D] = z * exp(1j * w)\n}\n",
     "mixer f(D) {\n    in z[D] complex\n    param w\n    out o[D] = z * exp(-2j * w)\n}\n"),
    ("conjugate", "mixer f(D) {\n    in z[D] complex, y[D] complex\n    out o[D] = z * z * y\n}\n",
     "mixer f(D) {\n    in z[D] complex, y[D] complex\n    out o[D] = z * conj(z) * y\n}\n"),
    ("mean for sum", point("x - mean(x)"), point("x - sum(x)")),
    ("an exponent", point("x ** n", consts="const n = 2"), point("x ** n", consts="const n = 3")),
    ("an exponent's const for its number", point("x ** n", consts="const n = 2"), point("x ** 2")),
    ("a clamp far out", point("x + y"), point("clamp(x, -50, 50) + y")),
    ("softplus with a threshold", point("softplus(x)"), point("where(x > 20, x, softplus(x))")),
    ("positions taken by another number", point("x * (pos % 5000)"), point("x * (pos % 5001)")),
    ("positions divided by another number", point("x * (pos // 4096)"), point("x * (pos // 4095)")),
    ("the size of another dim", many_dims("J ** -0.5"), many_dims("K ** -0.5")),
]
