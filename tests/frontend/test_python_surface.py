"""`@mixc.jit`: the same tree as a `.mix` text, and diagnostics that point into the Python file."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import mixc
from docs.codes import CODES
from mixc.errors import Source
from mixc.frontend.parse import parse
from mixc.frontend.unparse import unparse
from mixc.lang import *  # noqa: F403
from mixc.lang import Const, In, State
from mixc.runtime.load import shipped
from tests.frontend.python_text import as_python, run

SHIPPED = sorted(shipped())


@mixc.jit
def gated_delta_rule(q: In("K"), k: In("K", where="norm[K](k) <= 1"), v: In("V"),
                     g: In(high=0), beta: In(low=0, high=1),
                     S: State("K", "V"), scale=Const("K ** -0.5")):  # noqa: B008
    """The step of the contract."""
    S = exp(g) * S  # noqa: F405
    S = S + beta * k * (v - k @ S)
    return scale * (q @ S)


def same(a: mixc.Mixer, b: mixc.Mixer) -> bool:
    """The same values, node for node (nodes are interned), and the same declarations."""
    values = {(r.role, r.name): r.value for r in a.declared.results} == {(r.role, r.name): r.value
                                                                        for r in b.declared.results}
    return values and set(a.declared.decls) == set(b.declared.decls) and a.declared.dims == b.declared.dims


def test_a_function_is_its_mix_text() -> None:
    assert same(gated_delta_rule, mixc.load("gated_delta_rule"))
    assert [d.name for d in gated_delta_rule.declared.ins] == ["q", "k", "v", "g", "beta"]
    assert gated_delta_rule.__doc__.startswith("The step of the contract.")
    assert gated_delta_rule.__module__ == __name__


@pytest.mark.parametrize("name", SHIPPED)
def test_every_spec_as_a_function(name: str) -> None:
    (syntax,) = parse(Source(name, shipped()[name].read_text()))
    outs = [s for s in syntax.body if getattr(s, "role", "") == "out"]
    if any(s is not t for s, t in zip(syntax.body[-len(outs):], outs, strict=True)):
        pytest.skip("an out stands above an update: a function returns at its end")
    assert same(run(as_python(syntax), syntax.name), mixc.load(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_text_round_trip(name: str) -> None:
    mixer = mixc.load(name)
    assert mixer.text == mixc.loads(mixer.text).text and same(mixer, mixc.loads(mixer.text))
    written = unparse(mixer._spec, mixer.declared)
    assert same(mixer, mixc.loads(written)) and written == mixc.loads(written).text


def test_a_function_pickles_copies_and_prints_as_text() -> None:
    for again in (pickle.loads(pickle.dumps(gated_delta_rule)), copy.deepcopy(gated_delta_rule),
                  mixc.loads(gated_delta_rule.text)):
        assert same(again, gated_delta_rule) and again.__name__ == "gated_delta_rule"
    assert copy.deepcopy({"m": gated_delta_rule})["m"].declared is gated_delta_rule.declared


def test_it_runs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 1, 4)
    g, beta = -torch.rand(2, 5, 1), torch.rand(2, 5, 1)
    k = k / k.norm(dim=-1, keepdim=True)
    given = dict(q=q, k=k, v=v, g=g, beta=beta, backend="reference", scale=0.5)
    a, _ = gated_delta_rule(**given)
    b, _ = mixc.load("gated_delta_rule")(**given)
    assert torch.equal(a, b)


# ---------------------------------------------------------------- what comes out
OUTS = [
    ("return q @ S", ["o"], "o[V]"),
    ("y = q @ S\n    return y", ["y"], "y[V]"),
    ("y = q @ S\n    z = 2 * y\n    return z", ["z"], "z[V]"),
    ("return S", ["o"], "o[K, V]"),
    ("return q @ S, S", ["o0", "o1"], "o0[V]"),
    ("y = q @ S\n    return mixc.outs(y=y, z=y * 2)", ["y", "z"], "z[V]"),
    ("return outs(y=v * q)", ["y"], "y[K, V]"),
]


@pytest.mark.parametrize("lines, names, shape", OUTS)
def test_names_and_dims_of_outs(lines: str, names: list[str], shape: str) -> None:
    m = run("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V')):\n"
            f"    S += q * v\n    {lines}\n", "f")
    assert [d.name for d in m.declared.outs] == names and f"out {shape} = " in m.text
    assert same(m, mixc.loads(m.text))


def test_the_order_of_an_out() -> None:
    head = "@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V'))"
    m = run(f"{head} -> Out('V', 'K'):\n    S += q * v\n    return S\n", "f")
    assert m.declared.decl("o").dims == ("V", "K")
    m = run(f"{head} -> tuple:\n    S += q * v\n    return S\n".replace("tuple", "(Out('V', 'K'), Out('V'))").replace(
        "return S", "return S, v"), "f")
    assert m.declared.decl("o0").dims == ("V", "K")


# ---------------------------------------------------------------- where functions stand
def test_consts_from_a_closure_are_taken_by_value() -> None:
    def make(alpha: float) -> mixc.Mixer:
        def build():
            @mixc.jit
            def decay(x: In("D"), s: State("D")):
                s = alpha * s + x
                return s
            return decay
        made = build()
        alpha = 7.0
        return made
    m = make(0.5)
    note = next(d for d in m.declared.notes if d.code == "MX116")
    assert "`alpha` is the const 0.5" in str(note) and "return" not in note.message and note.level == "note"
    assert note.span is not None and "alpha * s" in note.span.source.line(note.span.line)
    x = torch.ones(1, 3, 2)
    assert torch.equal(m(x, backend="reference")[0][0, :, 0], torch.tensor([1.0, 1.5, 1.75]))
    assert torch.equal(m(x, alpha=0.0, backend="reference")[0], x)
    assert same(pickle.loads(pickle.dumps(m)), m)


class Layer:
    @mixc.jit
    def running(x: In("D"), s: State("D")):
        s = s + x
        return s

    @staticmethod
    @mixc.jit
    def static(x: In("D"), s: State("D")):
        s = s + x
        return s


def test_in_a_class_and_decorated() -> None:
    x = torch.ones(1, 2, 3)
    for m in (Layer().running, Layer.static):
        assert m(x, backend="reference")[0][0, 1, 0] == 2
    assert "Layer.running" in Layer.running.__qualname__

    def logged(f: mixc.Mixer) -> mixc.Mixer:
        return f

    @logged
    @mixc.jit
    def above(x: In("D"), s: State("D")):
        s = s + x
        return s
    assert above(x, backend="reference")[0][0, 1, 0] == 2


def test_names_of_dims_for_linters() -> None:
    m = run("K, V = dims('K, V')\n@mixc.jit\ndef f(q: In(K), v: In(V), S: State(K, V)):\n"
            "    S = S + q * v\n    return sum[K](q * S)\n", "f")
    assert m.declared.decl("o").dims == ("V",)


def test_the_names_do_nothing_when_run() -> None:
    import mixc.lang as lang
    assert isinstance(lang.sum[0](lang.exp(1) * 2 @ lang.pos), lang.Value)
    with pytest.raises(TypeError, match="mean something only"):
        bool(lang.index[3] > 0)


def test_annotations_as_text() -> None:
    m = run("from __future__ import annotations\ndef make(low):\n    @mixc.jit\n"
            "    def f(q: In('K', low=-1), S: State('K')):\n        S = S + low * q\n        return S\n"
            "    return f\nf = make(2)\n", "f")
    assert m.declared.decl("q").ranges and "const low = 2" in m.text


# ---------------------------------------------------------------- refusals
def bad(lines: str, head: str = "q: In('K'), v: In('V'), g: In(), S: State('K', 'V')", last: str = "return q @ S") -> str:
    return f"@mixc.jit\ndef f({head}):\n    {lines}\n    S = S + q * v\n    {last}\n"


GOOD = "    S = S + q * v\n    return q @ S\n"
BAD: list[tuple[str, str, int, int, str, str]] = [  # text, code, line, column, in the message, in the help
    (bad("if g > 0:\n        y = g"), "MX103", 3, 5, "`if`", "where(cond, a, b)"),
    (bad("y = g if q > v else q"), "MX103", 3, 9, "`if`", "where(q > v, g, q)"),
    (bad("import math"), "MX103", 3, 5, "`import`", "nothing is imported"),
    (bad("from torch import exp"), "MX103", 3, 5, "`from`", "nothing is imported"),
    (bad("while g > 0:\n        y = g"), "MX103", 3, 5, "`while`", "`for n in N:`"),
    (bad("with g:\n        y = g"), "MX103", 3, 5, "`with`", "stop_gradient(x)"),
    (bad("assert g > 0"), "MX103", 3, 5, "`assert`", "g: In(high=0)"),
    (bad("raise ValueError"), "MX103", 3, 5, "`raise`", "g: In(high=0)"),
    (bad("def h(x): return x"), "MX103", 3, 5, "`def`", "give the value a name"),
    (bad("pass"), "MX103", 3, 5, "`pass`", "leave it out"),
    (bad("global y"), "MX103", 3, 5, "`global`", "top to bottom"),
    (bad("return g"), "MX103", 3, 5, "`return`", "last line"),
    (bad("for i in range(3):\n        y = g"), "MX103", 3, 5, "range(3)", "`for n in N:`"),
    (bad("y = torch.exp(g)"), "MX105", 3, 9, "torch.exp", "write `exp(x)`"),
    (bad("y = math.pi * g"), "MX105", 3, 9, "math.pi", "write `pi`"),
    (bad("y = helper(g)"), "MX212", 3, 9, "helper", "stand in the body"),
    (bad("y = math.tau"), "MX105", 3, 9, "math.tau", "functions of the language"),
    (bad("y = torch.nn.functional.silu(g)"), "MX105", 3, 9, "silu", "write `silu(x)`"),
    (bad("y = q.sum(-1)"), "MX104", 3, 9, "no methods", "`sum[K](q)`"),
    (bad("y = q.T @ S"), "MX104", 3, 9, "q.T", "nothing is transposed"),
    (bad("y = S[:, 0]"), "MX106", 3, 9, "S[:, 0]", "by a mask"),
    (bad("y = S[0]"), "MX106", 3, 9, "by position", "for n in N:"),
    (bad("y = S['K', 'V']"), "MX106", 3, 9, "quotes", "write `S[K, V]`"),
    (bad("y = State('K')"), "MX117", 3, 5, "`y` is declared in the body", "`y: State('K')`"),
    (bad("a, b = q, v"), "MX107", 3, 5, "one name", "keep the old value"),
    (bad("S[0] = g"), "MX108", 3, 5, "no name to assign to", "whole names"),
    (bad("q.x += g"), "MX108", 3, 5, "no name to assign to", "whole names"),
    (bad("y = softmax(q, dim=-1)"), "MX109", 3, 20, "no keywords", "`softmax[K](x)`"),
    (bad("q @ S"), "MX110", 3, 5, "goes nowhere", "return it"),
    (bad("y = z = g"), "MX101", 3, 5, "several names", "one name"),
    (bad("y = (g)(q)", "q: In('K'), v: In('V'), g: In(), S: State('K', 'V')"), "MX212", 3, 10, "is a value", "`g * (...)`"),
    (bad("y = q & v"), "MX111", 3, 9, "`&`", "write `and`"),
    (bad("y: float = g"), "MX117", 3, 5, "no type", "write `y = ...`"),
    (bad("y = [g, g]"), "MX117", 3, 9, "a collection", "its own name"),
    (bad("y = [g for n in q]"), "MX117", 3, 9, "a comprehension", "for n in N:"),
    (bad("y = (lambda: g)"), "MX117", 3, 10, "a lambda", "give the value a name"),
    (bad("y = f'{g}'"), "MX117", 3, 9, "a string", "no strings"),
    (bad("y = 'g'"), "MX117", 3, 9, "no number", "no strings"),
    (bad("y = True * g"), "MX117", 3, 9, "no number", "1 or 0"),
    (bad("y = (z := g)"), "MX117", 3, 10, "`:=`", "line of its own"),
    (bad("y = q is v"), "MX117", 3, 9, "`is`", "`==`"),
    (bad("y = max(g, g)"), "MX212", 3, 9, "reduces one value", "maximum(g, g)"),
    (bad("q = q / 2"), "MX205", 3, 5, "an input", "write `q2 = q / 2`"),
    (bad("y = helper(g)"), "MX212", 3, 9, "no function", "section 1"),
    (bad("y = weight * g"), "MX116", 3, 9, "Tensor around", "Param"),
    (bad("y = gg"), "MX201", 3, 9, "not defined", "did you mean `g`"),
    (bad("y = g @ S"), "MX203", 3, 9, "without dims", "`*`"),
    (bad("y = sum[N](q)"), "MX209", 3, 13, "`N` is no dim", '@mixc.jit(dims="K, V, N")'),
    (bad("y = v @ q"), "MX203", 3, 9, "shares no dim", 'did you mean `q: In("V")`'),
    (bad("β = g"), "MX111", 3, 5, "`β`", "ASCII"),
    (bad("'ä'; y = q @ g"), "MX203", 3, 14, "q is [K]", ""),
    ("@mixc.jit\ndef f(q: In('K'), S: State('K', 'K')):\n    S = S + q\n    return q\n", "MX207", 2, 19, "K twice",
     '`S: State("K", "E")`'),
    ("@mixc.jit\ndef f(q, v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX114", 2, 7, "`q`", 'q: In("D")'),
    ("@mixc.jit\ndef f(self, q: In('K'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX114", 2, 7, "`self`", "no object"),
    ("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V'), c=1):\n" + GOOD, "MX114", 2, 53, "default", "c=Const(1)"),
    ("@mixc.jit\ndef f(q: In(3), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX106", 2, 10, "no name of a dim", "N = 4"),
    ("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K, V')):\n" + GOOD, "MX106", 2, 34, "no name", 'State("K", "V")'),
    ("@mixc.jit\ndef f(q=In('K'), v=In('V'), S=State('K', 'V')):\n" + GOOD, "MX114", 2, 9, "default", "`q: In('K')`"),
    ("@mixc.jit\ndef f(*q: In('K'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX114", 2, 8, "`*q`", "every input"),
    ("@mixc.jit\ndef f(q: float, v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX114", 2, 7, "`q`", 'q: In("D")'),
    ("@mixc.jit\ndef f(q: In('K', hihg=0), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX114", 2, 23, "no `hihg`", "`high`"),
    ("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V', start=1)):\n" + GOOD, "MX114", 2, 56, "`start`", "init"),
    ("@mixc.jit\ndef f(q: In('K', low='1 +'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX101", 2, 23, "too early", ""),
    ("@mixc.jit\ndef f(q: In('K', where='q < v'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX201", 2, 29, "`v`", ""),
    ("@mixc.jit(dims='K, V, K')\ndef f(q: In('K'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX204", 1, 23, "dim", ""),
    ("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V')):\n    S = S + q * v\n", "MX115", 2, 5, "returns nothing",
     "return y"),
    ("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V')) -> int:\n" + GOOD, "MX115", 2, 54, "does not say",
     'Out("V", "M")'),
    ("@mixc.jit\ndef f(q: In('K'), v: In('V'), S: State('K', 'V') = None):\n" + GOOD, "MX114", 2, 52, "default", "init="),
    ("@mixc.jit\ndef f(v: In('V'), S: State('K', 'V'), q: In('K') = 0):\n" + GOOD, "MX114", 2, 52, "default", "every call"),
    ("@mixc.jit\ndef f(v: In('V'), S: State('K', 'V'), **q: In('K')):\n" + GOOD, "MX114", 2, 41, "`**q`", "every input"),
    ("@mixc.jit(dims='')\ndef f(q: In('K'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX209", 2, 14, "`K` is no dim",
     '@mixc.jit(dims="K")'),
    ("@mixc.jit(dims='K, V, 3')\ndef f(q: In('K'), v: In('V'), S: State('K', 'V')):\n" + GOOD, "MX101", 1, 23, "`3`",
     "a header has names of dims"),
    (bad("y = nan * g"), "MX116", 3, 9, "`nan` is nan", ""), (bad("y = huge * g"), "MX116", 3, 9, "no number of fp64", ""),
    (bad("y = c * g", "q: In('K'), v: In('V'), g: In(), S: State('K', 'V'), c=Const(1e999 - 1e999)"), "MX114", 2, 62,
     "`value` is nan", ""),
    (bad("y = g", last="return mixc.outs(g)"), "MX115", 5, 12, "by name", "mixc.outs(y="),
    (bad("y = g", last="return mixc.outs(q=g)"), "MX204", 5, 24, "is an input", ""),
]


@pytest.mark.parametrize("text, code, line, column, message, help_", BAD, ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD)])
def test_refused(text: str, code: str, line: int, column: int, message: str, help_: str) -> None:
    with pytest.raises(mixc.SpecError) as e:
        run(text, "f", helper=len, weight=torch.ones(2), nan=float("nan"), huge=10 ** 400)
    found = e.value.diagnostics
    d = next((d for d in found if d.code == code), found[0])
    assert (d.code, d.span and d.span.line, d.span and d.span.column) == (code, line, column), str(e.value)
    assert message in d.message and help_ in (d.help or ""), str(d)
    assert d.code in CODES and "<cell" in str(d)
    assert "{ " not in (d.help or "")  # no braces of the other surface


def test_a_header_without_dims() -> None:
    """It was the end of a text."""
    made = run("@mixc.jit(dims='')\ndef f(x: In(), s: State()):\n    s = 0.5 * s + x\n    return s\n", "f")
    assert made.form == {"s": "chunk"} and made.declared.dims == ()


def test_several_at_once() -> None:
    with pytest.raises(mixc.SpecError) as e:
        run(bad("y = torch.exp(g)\n    a, b = q, v\n    z = q.sum()"), "f")
    assert [d.code for d in e.value.diagnostics] == ["MX105", "MX107", "MX104"]


def test_what_cannot_be_read_says_why() -> None:
    with pytest.raises(mixc.SpecError, match=r"MX113.*lambda"):
        mixc.jit(lambda x: x)
    with pytest.raises(mixc.SpecError, match=r"MX113.*no plain function"):
        mixc.jit(torch.nn.Linear(1, 1))
    space: dict = {"mixc": mixc, "In": In}
    with pytest.raises(mixc.SpecError, match=r"MX113.*holds no text"):
        exec("@mixc.jit\ndef f(x: In('D')):\n    return x\n", space)
