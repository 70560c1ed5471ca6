"""Every diagnostic by its bad example: code, place, words of the message, words of the help."""

import pytest

from docs.codes import CODES
from mixc.errors import Source, SpecError
from mixc.frontend.parse import parse
from tests.frontend import test_python_surface
from tests.frontend.specs import body, refused, step

TAIL = "\nS = S + k * v\nout o[V] = q @ S"


def last(lines: str, **more: str) -> str:
    """The bad line (line 5), then a body that is right."""
    return body(lines + TAIL, **more)


# text, code, line, column, in the message, in the help
BAD: list[tuple[str, str, int, int, str, str]] = [
    # ------------------------------------------------ the slips a PyTorch user makes first
    (body("out o = q", "D", "in q[D], k[D], v[D]\nstate S[D, D]"), "MX207", 3, 7, "dim D twice", "state S[D, E]"),
    (body("S = k * v\nout o[E] = q @ S", "D, E = D", "in q[D], k[D], v[D]\nstate S[D, E]"), "MX211", 5, 5,
     "is [D], and state S is [D, E]", "no outer product"),
    (last("q = q / 2"), "MX205", 5, 1, "an input and is not assigned", "write `q2 = q / 2`"),
    (last("y = max(g, beta)"), "MX212", 5, 5, "reduces one value", "`maximum(g, beta)`"),
    (last("y = sum(k, -1)"), "MX212", 5, 5, "reduces one value", "`sum[K](k)`"),
    (last("y = k.sum()"), "MX104", 5, 5, "no methods", "sum[K](k)"),
    (last("y = k.sum(dim=-1)"), "MX104", 5, 5, "no methods", "sum[K](k)"),
    (last("y = q.T @ S"), "MX104", 5, 5, "q.T", "nothing is transposed"),
    (last("y = S[:, 0]"), "MX106", 5, 5, "S[:, 0]", "by a mask"),
    (last("y = S[0]"), "MX106", 5, 5, "by position", "for n in N"),
    (last("y = S[..., 0]"), "MX106", 5, 5, "by position", "for n in N"),
    (last("if g > 0 {\n y = g\n}"), "MX103", 5, 1, "`if`", "where(cond, a, b)"),
    (last("if g > 0: y = g"), "MX103", 5, 1, "`if`", "where(cond, a, b)"),
    (last("y = g if beta > 0 else k"), "MX103", 5, 7, "`if`", "where(cond, a, b)"),
    (last("y = torch.exp(g)"), "MX105", 5, 5, "torch.exp", "write `exp(x)`"),
    (last("y = torch.nn.functional.silu(g)"), "MX105", 5, 5, "silu", "write `silu(x)`"),
    (last("y = torch.einsum(q, k)"), "MX105", 5, 5, "einsum", "a @ b"),
    (last("a, b = q, k"), "MX107", 5, 1, "one name", "keep the old value"),
    (body("out o[V] = q @ S", "B, T, H, K, V", "in q[B, T, H, K]\nstate S[B, H, K, V]"), "MX208", 1, 9, "implied",
     "mixer m(K, V)"),
    (body("out o = q @ k", "K", "in q[B, T, H, K], k[K]"), "MX208", 2, 4, "declared with B, T, H", "write `in q[K]`"),
    # ------------------------------------------------ syntax
    (last("y = (k * (q + 1)"), "MX102", 5, 5, "never closed", "close it with `)`"),
    (last("y = k * q)"), "MX102", 5, 10, "closes nothing", "remove it"),
    (last("y = sum[K)(q)"), "MX102", 5, 10, "closes nothing", "remove it"),
    ("mixer m(K) {\nin q[K]\nout o[K] = q\n", "MX102", 1, 12, "never closed", "close it with `}`"),
    (last("return q @ S"), "MX103", 5, 1, "`return`", "out o[V]"),
    (last("import torch"), "MX103", 5, 1, "`import`", "nothing is imported"),
    (last("while g > 0 {"), "MX103", 5, 1, "`while`", "for n in N"),
    (last("S[K, V] = k * v"), "MX108", 5, 1, "no name to assign to", "whole names"),
    (last("y = softmax(k, dim=-1)"), "MX109", 5, 16, "no keywords", "`softmax[K](x)`"),
    (last("k @ S"), "MX110", 5, 1, "goes nowhere", "give it a name"),
    (last("y = g & beta"), "MX111", 5, 7, "`&`", "write `and`"),
    (last("y = einsum('k,k->', q, k)"), "MX111", 5, 12, "`'`", "write `a @ b`"),
    (last("β = g"), "MX111", 5, 1, "`β`", "ASCII"),
    (last("y = g; z = k"), "MX111", 5, 6, "`;`", "own line"),
    (last("y = g +\nk"), "MX101", 5, 8, "end of the line", "in ( )"),
    (last("y := g"), "MX101", 5, 3, "`:`", "is written `x = ...`"),
    (last("y: float = g"), "MX101", 5, 2, "`:`", "no types"),
    (last("for n in range(3) {"), "MX101", 5, 15, "`(`", "`N = 3`"),
    (last("y =\u00a0k * q"), "MX111", 5, 4, "U+00A0", "a space"),
    (last("y = k\u2028 * q"), "MX111", 5, 6, "U+2028", "a space"),
    (last("y = k · q"), "MX111", 5, 7, "`·`", "operators are ASCII"),
    (last("out [V] = v"), "MX108", 5, 1, "no name to assign to", "`out o[V] = ...`"),
    (last("y = pos[K] * k"), "MX217", 5, 5, "no dims", "write `pos`"),
    (last("y = 2 g"), "MX101", 5, 7, "`g`", "operator is missing"),
    (last("y = x = g"), "MX101", 5, 7, "`=`", "one name"),
    ("mixer a(K) {\nin g[K]\nstate S[K, J = K]\nS = S + g\nout o[K] = g\n}", "MX101", 3, 14, "`=`", "in the header"),
    (last("y = S[K](q)(k)"), "MX101", 5, 5, "no function", "`*`"),
    ("mixer a(K) {\nin g in (0, 1)\nstate S[K]\nS = S + g\nout o[K] = S\n}", "MX101", 2, 6, "`in`", "g where g <= 0"),
    ("mixer a(K) {\nin g\nstate S[K] complex\nS = S + g\nout o[K] = S\n}", "MX101", 3, 12, "`complex`", "only inputs"),
    ("x = 3\n", "MX101", 1, 1, "does not belong", "mixer NAME"),
    ("def m(K) {\nin x[K]\nout o[K] = x\n}", "MX101", 1, 1, "does not belong", "mixer NAME"),
    ("mixer m(K) {\ninput x[K]\nout o[K] = x\n}", "MX101", 2, 7, "does not belong", "in q[K], g where g <= 0"),
    ("mixer m(K) {\nin x: [K]\nout o[K] = x\n}", "MX101", 2, 5, "`:`", "no types: inputs are declared"),
    ("mixer m(K) {\nin x[K] where x > 1 and x < 0\nout o[K] = x\n}", "MX223", 2, 15, "nothing lies", "hold together"),
    (last("y = g + eps"), "MX201", 5, 9, "not defined", "const eps = 1e-6"),
    (last("y = leaky_relu(g)"), "MX212", 5, 5, "no function", "maximum(x, 0.01 * x)"),
    (last("y = sinh(g)"), "MX212", 5, 5, "no function", "exp(-x)"),
    ("# nothing\n", "MX112", 0, 0, "no mixer", "mixer NAME"),
    ("mixer m {\n}", "MX101", 1, 9, "does not belong", "mixer NAME() {"),
    ("gated_delta_rule", "MX101", 1, 1, "does not belong", "`mixc.load`"),
    (2 * (body("out o = 1", "", "in x") + "\n"), "MX204", 8, 7, "a mixer since line 1", "names of their own"),
    (last("f = lambda x: x"), "MX103", 5, 5, "`lambda` is no statement", "no functions"),
    (last("y = layernorm(k)"), "MX212", 5, 5, "no function", "y = x - mean[D](x)"),
    (last("y = index(K)"), "MX212", 5, 5, "no function", "index[K]"),
    (last("y = S[t-1] * 2"), "MX106", 5, 5, "picks a token", "what the previous token left"),
    (last("S[t] = k * v"), "MX108", 5, 1, "no name to assign to", "what the previous token left"),
    (last("y = S_prev * 2"), "MX201", 5, 5, "not defined", "`S` is what the previous token left"),
    (last("y = where(True, k, q)"), "MX201", 5, 11, "not defined", "a comparison"),
    (body("S = a * k * v\nout o[V] = q @ S", declarations="in q[K], k[K], v[V]\nconst a = b\nconst b = 1\nstate S[K, V]"),
     "MX201", 3, 11, "not defined", "declared on line 4"),
    (body("h = h + mask\nout o[K] = h", "K", "in mask[K]\nstate h[K]"), "MX202", 2, 4, "argument of every", "`mask_`"),
    (last("in z[4]"), "MX106", 5, 6, "no name of a dim", "mixer f(K, N = 4)"),
    # ------------------------------------------------ names
    (last("y = kk * 2"), "MX201", 5, 5, "not defined", "did you mean `k`"),
    (last("y = z * 2\nz = g"), "MX201", 5, 5, "not defined", "assigned on line 6"),
    (last("for n in K {\nz = k[n]\n}\ny = z"), "MX201", 8, 5, "not defined", "only states carry over"),
    (last("y = index * 2"), "MX201", 5, 5, "index", "index[K]"),
    (last("y = exp * 2"), "MX212", 5, 5, "is a function", "exp(x)"),
    (last("y = ekp(g)"), "MX212", 5, 5, "no function", "did you mean `exp`"),
    (last("y = cumsum(g)"), "MX212", 5, 5, "no function", "a state does that"),
    (last("y = g(k)"), "MX212", 5, 5, "is a value", "`g * (...)`"),
    (last("y = clamp(g, 0)"), "MX212", 5, 5, "takes 3 arguments", "clamp(x, low, high)"),
    (last("y = exp[K](k)"), "MX212", 5, 5, "takes no dims", "exp(x)"),
    (last("y = sum[K]"), "MX212", 5, 5, "lacks its argument", "sum[K](x)"),
    (last("_y = g"), "MX202", 5, 1, "underscore", "call it `y`"),
    (last("lambda_ = g\nclass = g"), "MX202", 6, 1, "keyword of Python", "`class_`"),
    (last("class A: g"), "MX103", 5, 1, "class", "give the value a name"),
    (last("mask = g"), "MX202", 5, 1, "argument of every", "`mask_`"),
    (body("out o[V] = v", "K, V", "in sum[K], v[V]"), "MX202", 2, 4, "word of the language", "`sum_`"),
    (body("out o[V] = v", "K, V", "in K, v[V]"), "MX204", 2, 4, "is a dim since line 1", "call it `K2`"),
    (last("y = g\ny = g + 1"), "MX204", 6, 1, "second time; the first is on line 5", "`y2`"),
    (last("out p = g\np = g"), "MX204", 6, 1, "is an out", "given once"),
    (last("K = g"), "MX205", 5, 1, "is a dim", "`K2`"),
    (last("out p = g\ny = p"), "MX206", 6, 5, "cannot be read", "then `out p = p2`"),
    # ------------------------------------------------ dims
    (last("y = q @ v"), "MX203", 5, 5, "q is [K], v is [V]", "`in v[K]`? `q * v` is the outer"),
    (last("y = g @ S"), "MX203", 5, 5, "g is without dims", "`*` multiplies"),
    (body("out o[V] = v", "K, V", "in k[k], v[V]"), "MX209", 2, 6, "`k` is no dim", "did you mean `K`"),
    (last("y = sum[N](k)"), "MX209", 5, 9, "`N` is no dim", "mixer m(K, V, N)"),
    (last("y = sum[T](k)"), "MX208", 5, 9, "(time) is no dim", "a state carries"),
    (last("y = sum[V](k)"), "MX210", 5, 9, "has no dim V", "reduces over K"),
    (body("z += k\nout o[F] = z + q", "F, D", "in k[D], q[F]\nstate z[F]"), "MX211", 5, 1, "`z += k` is [F, D]", "sum[D]"),
    (last("S = k"), "MX211", 5, 5, "is [K], and state S is [K, V]", "is repeated"),
    (last("out p[V] = S"), "MX211", 5, 12, "is [K, V], and out p is [V]", "sum[K](...)"),
    (last("out p[K] = v"), "MX211", 5, 12, "is [V], and out p is [K]", "did you mean `out p[V]`"),
    (body("h = tanh(x + R @ h)\nout o[D] = h", "D, E = D", "in x[D]\nparam R[D, E]\nstate h[D]"), "MX211", 5, 5,
     "is [D, E], and state h is [D]", "... @ h[E]"),
    (body("out o[D] = h[E]", "D, E = D", "in h[D]"), "MX211", 5, 12, "is [E]", "rename"),
    (last("y = k[V]"), "MX217", 5, 5, "may have another size", "V = K"),
    (last("y = S[V]"), "MX217", 5, 5, "names 1 of its dims", "all remaining dims"),
    (last("y = k[g]"), "MX217", 5, 7, "no dim and no loop index", "`k * g`"),
    (last("y = index[K, V]"), "MX217", 5, 5, "one dim", "index[K]"),
    (body("out o[D] = sum[E](A[D, D])", "D, E = D", "in A[D, E]"), "MX217", 5, 19, "twice", "one dim twice"),
    (last("for n in V {\ny = k[n]\n}"), "MX217", 6, 7, "no dim V to pick from", "runs over V"),
    ("mixer m(K, N = 0) {\nin k[K]\nout o[K] = k\n}", "MX224", 1, 16, "no size", "from 1 on"),
    ("mixer m(E = D, D) {\nin k[D]\nout o[D] = k\n}", "MX224", 1, 13, "to the left", "write D first"),
    # ------------------------------------------------ kinds
    (last("y = 1j * g > 0"), "MX213", 5, 5, "no order", "abs(x)"),
    (last("y = max(1j * k)"), "MX213", 5, 5, "no order", "abs(x)"),
    (last("y = relu(1j * k)"), "MX213", 5, 5, "no meaning for complex", "real(x)"),
    (last("y = where(g, 1, 2)"), "MX214", 5, 11, "is a number", "g > 0"),
    (last("y = not g"), "MX214", 5, 9, "is a number", "g > 0"),
    (last("y = g > 0 and k"), "MX214", 5, 15, "is a number", "k > 0"),
    (last("y = g % 2"), "MX216", 5, 5, "may be anything", "pos"),
    (last("y = pos // g"), "MX216", 5, 12, "may be anything", "pos"),
    (last("y = pos % 2 ** (1 - index[K])"), "MX216", 5, 11, "may be anything", "2 to the power"),
    # ------------------------------------------------ lag and grad
    (last("y = lag(S, 1)"), "MX215", 5, 9, "is a state", "an input, or a local"),
    (last("z = q @ S\ny = lag(z, 1)"), "MX215", 6, 9, "reads a state", "state old"),
    (last("y = lag(k + 1, 1)"), "MX215", 5, 9, "only names", "give the value a name"),
    (last("y = lag(k, 0.5)"), "MX215", 5, 12, "no number of tokens", "whole number"),
    (last("y = lag(k, g)"), "MX215", 5, 12, "no number of tokens", "whole number"),
    (last("y = lag(k, -1)"), "MX215", 5, 12, "no number of tokens", "whole number"),
    (last("y = lag(k)"), "MX215", 5, 5, "no lag", "lag[W](x)"),
    (last("y = lag[K](k)"), "MX215", 5, 5, "a dim of its own", "new dim"),
    (last("for n in K {\nz = k[n]\ny = lag(z, 1)\n}"), "MX215", 7, 9, "inside a `for`", "in front"),
    (last("y = grad[S](k @ S)"), "MX218", 5, 13, "is [V]", "sum(square(...))"),
    (last("y = grad[k](g)"), "MX218", 5, 10, "no state", "by a state"),
    (last("y = grad[S](g)"), "MX218", 5, 5, "does not depend on S", "would be 0"),
    (last("e = sum(k @ S)\nS = 2 * S\nS = S - grad[S](e)"), "MX218", 7, 9, "assigned on line 6, after `e` was formed",
     "before line 6"),
    (last("y = grad(g)"), "MX218", 5, 5, "no gradient", "grad[S](loss)"),
    # ------------------------------------------------ the whole
    (body("out o[V] = v", declarations="in k[K], v[V]\nstate S[K, V]"), "MX219", 3, 7, "never assigned", "`param`"),
    (body("s = k * v\nout o[V] = k @ s", declarations="in k[K], v[V]\nstate S[K, V]"), "MX219", 3, 7, "never assigned",
     "line 5 assigns to `s`"),
    (body("S = S + k * v"), "MX220", 1, 7, "no out", "out o[V]"),
    (last("y = g\nin z"), "MX221", 6, 4, "below a line that computes", "come first"),
    (last("for n in K {\nout z = k[n]\n}"), "MX221", 6, 5, "inside a `for`", "below the loop"),
    (last("out z[K]"), "MX221", 5, 5, "has no value", "`out z[K] = ...`"),
    (last("const c = g"), "MX222", 5, 11, "reads `g`", "consts above it"),
    (last("const c = 1j"), "MX222", 5, 11, "no real number", "one real number"),
    (last("const c"), "MX222", 5, 7, "without a value", "const c = 1.0"),
    (last("const c[K] = 1"), "MX222", 5, 7, "with dims", "`param`"),
    (last("const c = pos"), "MX222", 5, 11, "reads `pos`", "consts above it"),
    (last("state z = g\nz = g"), "MX222", 5, 11, "reads `g`", "params"),
    (last("state z = S\nz = g"), "MX222", 5, 11, "reads `S`", "params"),
    (last("in z where g <= 0"), "MX223", 5, 12, "no range of `z`", "the last name before it"),
    (last("in z where z <= g"), "MX223", 5, 17, "no bound", "numbers and consts"),
    (last("in z where 1 <= z <= 0"), "MX223", 5, 12, "nothing lies in", "smaller bound first"),
    (last("in z where 0 <= z >= 1"), "MX223", 5, 12, "no interval", "0 <= a <= 1"),
    (last("in z where z == 0"), "MX223", 5, 12, "no interval", "0 <= a <= 1"),
    (last("in z where z"), "MX223", 5, 12, "no range", "abs(z) < 1"),
    (last("in z complex where z <= 0"), "MX223", 5, 20, "is complex", "abs(z) <= 1"),
    (body("for n in N {\nfor m in N {\nfor l in N {\ny = g\n}\n}\n}\nout o[V] = v", "V, N = 999", "in v[V], g"),
     "MX226", 7, 1, "more than 20000", "unrolled"),
]


@pytest.mark.parametrize(("text", "code", "line", "column", "message", "help_"), BAD,
                         ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD)])
def test_refused(text: str, code: str, line: int, column: int, message: str, help_: str) -> None:
    found = refused(text)
    d = next((d for d in found if d.code == code and message in d.message), None)
    assert d is not None, "\n\n".join(map(str, found))
    assert (d.span.line, d.span.column) == (line, column) if d.span else line == 0, str(d)
    assert help_ in (d.help or ""), str(d)
    assert len(found) == 1 or code in ("MX207", "MX208", "MX209"), "\n\n".join(map(str, found))


def test_every_code_has_an_example() -> None:
    assert {b[1] for b in [*BAD, *test_python_surface.BAD]} | {"MX225", "MX113"} == set(CODES)


def test_the_diagnostic_of_the_contract() -> None:
    text = """\
# the delta rule,
# with its state declared wrongly
mixer delta(K, V, D) {
    in q[K], k[K], v[V]
    in beta where 0 <= beta <= 1
    state S[D, V]


    S = S + beta * k * (v - k @ S)
    out o[D, V] = S
}
"""
    with pytest.raises(SpecError) as e:
        step(text)
    assert str(e.value).replace("test.mix", "delta.mix") == """\
error[MX203]: `k @ S` shares no dim: k is [K], S is [D, V]
  --> delta.mix:9:29
   |
9  |     S = S + beta * k * (v - k @ S)
   |                             ^^^^^
help: S was declared with [D, V] on line 6; did you mean `state S[K, V]`?"""


def test_independent_errors_come_at_once() -> None:
    found = refused(body("y = kk + 1\nz = y * 2\nx = q @ v\nw = x + 1\nq = g\nout o[V] = q @ S + x"))
    assert [d.code for d in found] == ["MX219", "MX201", "MX203", "MX205"]  # nothing follows from an error
    with pytest.raises(SpecError) as e:
        parse(Source("t", body("y = x.sum()\nz = q.T\na, b = b, a\nw = S[:, 0] * (")))
    assert [d.code for d in e.value.diagnostics] == ["MX104", "MX104", "MX107", "MX106", "MX102"]


def test_depth() -> None:
    for text in ("(" * 5000 + "g" + ")" * 5000, "-" * 5000 + "g", "g" + " + g" * 5000):
        found = refused(body(f"y = {text}" + TAIL)) if text[0] != "(" else None
        assert found is None or found[0].code in ("MX112", "MX226")
