"""Every construct of the language: what it becomes, and what it means for one token."""

import math

import pytest
import torch

from mixc.errors import Source
from mixc.frontend.check import elaborate, loop_dims, structural_consts
from mixc.frontend.parse import parse
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import Node, make, number
from mixc.ir.program import Program, Range
from tests.frontend.specs import GATED_DELTA, body, step


def run(p: Program, tensors: dict[str, torch.Tensor], sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    """Outs and next states of one token, with dims as declared."""
    def leaf(n: Node) -> torch.Tensor:
        if n.op == "const":
            init = p.decl(n.attr("name")).init
            assert init is not None
            return evaluate([init], env)[0]
        x = tensors[n.attr("name")].to(torch.complex128 if n.kind == "complex" else torch.float64)
        return x.unsqueeze(0)

    env = Env(leaf, sizes, batch=1)
    found = {}
    for r, x in zip(p.results, evaluate(p.values(), env), strict=True):
        found[r.name] = x.squeeze(0).permute([r.value.dims.index(d) for d in p.decl(r.name).dims])
        assert r.value.kind == p.decl(r.name).kind
    return found


X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def value(expression: str) -> torch.Tensor:
    """An expression over x[K], K = V = 3."""
    p = step(f"mixer m(K, V = K) {{\nin x[K]\ny = {expression}\nout o[K] = y + 0 * index[K]\n}}")
    return run(p, {"x": X}, {"K": 3, "V": 3})["o"]


@pytest.mark.parametrize(("expression", "expected"), [
    ("2 ** 3 ** 2", 512.0), ("-2 ** 2", -4.0), ("2 ** -1", 0.5), ("1 - 2 - 3", -4.0), ("2 / 4 * 2", 1.0),
    ("7 // 2 * 2", 6.0), ("7 % 4 - 1", 2.0), ("-7 % 4", 1.0), ("1 + 2 * 3", 7.0), ("(1 + 2) * 3", 9.0), ("+3", 3.0),
    ("1 < 2 <= 2", 1.0), ("1 < 2 > 2", 0.0), ("not 1 > 2 and 2 > 1", 1.0), ("1 > 2 or not 2 == 2", 0.0),
    ("(1 < 2) + (3 >= 3) + (1 != 1)", 2.0), ("where(1 < 2, 5, 6)", 5.0), ("1e-3 + .5 + 1_000", 1000.501),
    ("abs(3 + 4j)", 5.0), ("real(conj(1j) * 1j)", 1.0), ("imag(3)", 0.0), ("exp(-inf)", 0.0), ("pi", math.pi),
    ("K * V", 9.0), ("mean[K](x)", 0.5), ("sum(x * x)", 5.25), ("max(x)", 2.0), ("min[K](x)", -1.0), ("x @ x", 5.25),
    ("norm[K](x)", 5.25 ** 0.5), ("norm(2 - 5)", 3.0), ("sum[K](softmax[K](x))", 1.0), ("softmax(3)", 1.0),
    ("sum(x * x[V])", 2.25), ("sum(index[K] % 2)", 1.0), ("sum(index[V] // 2 * 2)", 2.0), ("clamp(3, 0, 1)", 1.0),
    ("sum(5 % 2 ** (index[K] + 1))", 7.0), ("6 // 2 ** (2 - 1)", 3.0),
    ("logaddexp(-inf, 2)", 2.0), ("maximum(1, 2) - minimum(1, 2)", 1.0), ("(\n 1 +\n 2\n)", 3.0),
    ("stop_gradient(sign(-2))", -1.0), ("(-3) ** 2", 9.0), ("sum(abs(x) ** 2.0)", 5.25), ("4 ** 0.5", 2.0),
])
def test_value(expression: str, expected: float) -> None:
    assert torch.allclose(value(expression), torch.full((3,), expected, dtype=torch.float64)), expression


def test_gated_delta() -> None:
    p = step(GATED_DELTA)
    assert p.doc == "Gated delta rule (Yang et al. 2024, arXiv 2412.06464)\nin two lines of comment"
    assert [(d.role, d.name) for d in p.decls] == [
        ("in", "q"), ("in", "v"), ("in", "k"), ("in", "g"), ("in", "beta"), ("const", "scale"),
        ("state", "S"), ("out", "o")]
    assert p.decl("k").ranges == (Range("norm", ("K",), None, number(1.0)),)
    assert p.decl("beta").ranges == (Range("x", (), number(0.0), number(1.0)),)
    assert p.decl("g").dims == () and p.decl("S").init is None and not p.notes
    torch.manual_seed(0)
    t = {n: torch.randn(s, dtype=torch.float64) for n, s in
         dict(q=(4,), k=(4,), v=(3,), g=(), beta=(), S=(4, 3)).items()}
    got = run(p, t, {"K": 4, "V": 3})
    S = t["g"].exp() * t["S"]
    S = S + t["beta"] * torch.outer(t["k"], t["v"] - t["k"] @ S)
    torch.testing.assert_close(got["S"], S)
    torch.testing.assert_close(got["o"], 0.5 * t["q"] @ S)


@pytest.mark.parametrize(("where", "expected"), [
    ("0 >= x", Range(high=number(0.0))), ("x > -1", Range(low=number(-1.0), low_open=True)),
    ("1 > x >= -1", Range(low=number(-1.0), high=number(1.0), high_open=True)),
    ("abs(x) < 2 * 3", Range("abs", high=number(6.0), high_open=True)),
    ("norm(x) <= c", Range("norm", ("K", "V"), high=number(4.0))),
    ("-inf < x < 0", Range("x", (), None, number(0.0), True, True)),
    ("norm[V](x) <= K", Range("norm", ("V",), high=make("size", dim="K"))),
])
def test_ranges(where: str, expected: Range) -> None:
    p = step(f"mixer m(K, V) {{\nconst c = 2 ** 2\nin x[K, V] where {where}, y\nout o = sum(x) * y\n}}")
    assert p.decl("x").ranges == (expected,)
    both = step(f"mixer m(K, V) {{\nconst c = 4\nin x[K, V] where {where} and x <= 9, y\nout o = sum(x) * y\n}}")
    assert len(both.decl("x").ranges) == 2 and not both.decl("y").ranges


def test_loops_unroll_and_pick() -> None:
    text = body("for n in N {\n  d = k[n] * (n + 1)\n  S = S + d * v\n}\nout o[V] = q @ S", "K, V, N",
                "in q[K], k[N, K], v[V]\nstate S[K, V]")
    (mixer,) = parse(Source("t", text))
    assert loop_dims(mixer) == {"N"}
    t = dict(q=torch.ones(2), k=torch.arange(6.0).reshape(3, 2), v=torch.ones(1), S=torch.zeros(2, 1))
    got = run(elaborate(mixer, {"N": 3}), t, {"K": 2, "V": 1, "N": 3})
    assert got["S"].flatten().tolist() == [0 + 2 * 2 + 3 * 4, 1 + 2 * 3 + 3 * 5]


def test_nested_loops_and_both_entries() -> None:
    p = step(body("for i in N {\nfor j in M {\nS = S + A[i, j] * 10 ** i * 2 ** j\n}\n}\nout o = S", "N = 2, M = N",
                  "in A[N, M]\nstate S"))
    assert run(p, dict(A=torch.ones(2, 2), S=torch.zeros(())), {"N": 2, "M": 2})["o"] == 33.0


def test_renames() -> None:
    p = step(body("out o[D] = A[E, D] @ h[E]", "D, E = D", "in A[D, E], h[D]"))
    A, h = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    torch.testing.assert_close(run(p, dict(A=A, h=h), {"D": 3, "E": 3})["o"], A.T @ h)
    p = step(body("out o[N, M] = x[N]", "N = 3, M = 3", "in x[M]").replace("x[N]", "x[N] * x"))
    assert p.result("out", "o").dims == ("N", "M")


def test_state_order_is_the_declared_one() -> None:
    p = step(body("S = v * k\nout o[K, V] = S\nout p[V] = q @ S[K, V]"))
    assert p.result("next", "S").dims == ("V", "K")
    p = step(body("S = 1\nout o[V, K] = 2"))
    assert p.result("next", "S") is make("expand", number(1.0), dims=("K", "V"))


def test_augmented_assignment_and_names_like_keywords() -> None:
    a = step(body("S += k * v\nS *= g\nout o[V] = q @ S"))
    b = step(body("S = S + k * v\nS = S * g\nout o[V] = q @ S"))
    assert a.values() == b.values()
    p = step("mixer mixer(K) {\nin complex[K] complex\nconst const = 2\n"
             "out = real(complex) * const\nB = out\nout o[K] = B\n}")
    assert p.name == "mixer" and p.decl("complex").kind == "complex"


def test_complex_spreads() -> None:
    p = step(body("b = a + S\na = q @ q\nS = exp(1j) * M * g\nM = M * S\nR = R + real(S)\nout o = S\nout r = R"
                  .replace("b = a + S\n", ""), declarations="in q[K], g\nstate S, M = 1, R"))
    assert [d.kind for d in p.states] == ["complex", "complex", "real"]
    assert p.decl("o").kind == "complex" and p.decl("r").kind == "real"
    p = step(body("x = g\nS = 1j * g\nS = real(S) * g\nout o = S", declarations="in g\nstate S"))
    assert p.result("next", "S").kind == "complex"


def test_initial_states() -> None:
    p = step(body("m = maximum(m, g)\nS = S * g\nout o = m + sum(S)", declarations="param p[V]\nin g\nconst c = K + 1\n"
                  "state m = -inf, S[K, V] = p * c * index[K]"))
    assert p.decl("m").init is number(-math.inf)
    init = p.decl("S").init
    assert init is not None and set(init.dims) == {"K", "V"}


def test_lag_and_window() -> None:
    text = body("y = g * q\na = lag(y, d)\nb = lag(q, 2)\nw = sum[W](c * lag[W](q))\nout o[K] = a + b + w + lag(q, 0)",
                "K, W", "in q[K], g\nparam c[W, K]\nconst d = 3")
    (mixer,) = parse(Source("t", text))
    assert loop_dims(mixer) == {"W"} and structural_consts(mixer) == {"d"}
    p = elaborate(mixer, {"W": 4}, {"d": 5})
    nodes = [n for n in _all(p) if n.op in ("lag", "window")]
    assert {(n.op, n.attr("name"), n.attr("n")) for n in nodes} == {
        ("lag", "y", 5), ("lag", None, 2), ("window", None, 4)}
    assert all(n.attr("n") is None for n in _all(elaborate(mixer)) if n.op == "window")


def _all(p: Program) -> list[Node]:
    from mixc.ir.node import postorder

    return list(postorder(p.values()))


def test_structural_consts() -> None:
    text = body("x = g ** n\ny = g ** h\nz = c ** n2\nout o = x * y * z", declarations="in g\n"
                "const n = 3, h = 0.5, c = 2, n2 = 2, unread = 1, top = 3; in b where b <= 2 * top".replace("; ", "\n"))
    (mixer,) = parse(Source("t", text))
    assert structural_consts(mixer) == {"n", "top"}
    p = elaborate(mixer, None, {"n": 4.0, "top": 1.0})
    assert {n.attr("n") for n in _all(p) if n.op == "ipow"} == {4}
    assert p.decl("b").ranges == (Range(high=number(2.0)),)
    assert [n.message.split()[0] for n in p.notes if n.code == "MX225"] == ["`unread`", "`b`"]


def test_grad_is_the_delta_rule() -> None:
    p = step(body("loss = 0.5 * sum(square(k @ S - v))\nS = S - beta * grad[S](loss)\nout o[V] = q @ S"))
    t = {n: torch.randn(s, dtype=torch.float64) for n, s in dict(q=(4,), k=(4,), v=(3,), beta=(), S=(4, 3)).items()}
    got = run(p, t, {"K": 4, "V": 3})["S"]
    torch.testing.assert_close(got, t["S"] - t["beta"] * torch.outer(t["k"], t["k"] @ t["S"] - t["v"]))


def test_grad_sees_through_states_assigned_in_this_token() -> None:
    p = step(body("S = 3 * S\nM = S * S + M\ne = M * g\nout o = grad[S](e)", declarations="in g\nstate S, M"))
    got = run(p, dict(g=torch.tensor(2.0), S=torch.tensor(5.0), M=torch.tensor(7.0)), {})
    assert got["o"] == 2 * 15 * 2  # d(S*S*g)/dS at S = 15
    # what only looks like S as it is now is no dependence on it
    p = step(body("t = 3 * S\nS = 3 * S\nout o = grad[S](t + S)", declarations="in g\nstate S"))
    assert run(p, dict(S=torch.tensor(5.0)), {})["o"] == 1
    p = step(body("out o = grad[S](stop_gradient(S))\nS = g", declarations="in g\nstate S"))
    assert run(p, dict(S=torch.tensor(5.0), g=torch.tensor(1.0)), {})["o"] == 0


def test_several_mixers_and_docs() -> None:
    a, b = parse(Source("t", "# one\nmixer a() {\n in x\n out o = x\n}\n# apart\n\n"
                          "mixer b(K,) {\n\n in x[K]\n out o[K] = x\n\n}"))
    assert (a.name, a.doc, b.name, b.doc) == ("a", "one", "b", "")
    assert elaborate(a).dims == () and elaborate(b).outs[0].dims == ("K",)
    assert parse(Source("t", "\r\nmixer c()\r\n{\r\nin x # é\r\n\r\nout o = x }"))[0].name == "c"


def test_notes() -> None:
    p = step(body("y = g\nS = S + k * v\nout o[V] = q @ S", "K, V, N"))
    assert [(n.code, n.level) for n in p.notes] == [("MX225", "note"), ("MX225", "note"), ("MX224", "note")]
    assert "its gradient is 0" in p.notes[1].message + p.notes[0].message


def test_a_name_of_a_second_name_has_the_size_of_the_first() -> None:
    p = step(body("out o[F] = x * y[F] * z[F]", "D, E = D, F = E, N = 4, M = N", "in x, y[D], z[E]"))
    assert [d.alias for d in p.dims] == [None, "D", "D", None, "N"]
    assert p.root == dict(D="D", E="D", F="D", N="N", M="N") and p.told(p.ins) == {"D", "E", "F", "N", "M"}
