"""`mixc explain --html`: one file that needs nothing else, with the parts of its form."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import unescape

import pytest
from matplotlib.mathtext import MathTextParser

import mixc
from mixc.cli.page import page
from mixc.codegen import derivation
from mixc.codegen.derivation import lowered, split
from mixc.codegen.latex import latex
from mixc.codegen.mathml import equations, written
from mixc.codegen.notation import Spelling
from mixc.ir.node import make, number
from mixc.ir.program import Result
from mixc.passes.cell import cell
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify, parts_of
from mixc.passes.differentiate import differentiate
from mixc.passes.planes import is_complex, planes
from mixc.passes.simplify import plain
from mixc.runtime.load import shipped
from mixc.targets import find
from tests.build import scalar_decay

CHUNKS = ("One chunk of tokens", "kept for the backward", "Bytes and FLOPs",
          "carries on chip", "kernels, forward")
PARTS = {"simple_gla": (*CHUNKS, "decay", "written"), "hgrn": (*CHUNKS, "factor", "added"),
         "elman": ("the loop over the state", "from the last token to the first", "eager loop")}


@pytest.mark.parametrize("spec", PARTS)
def test_a_page(spec) -> None:
    m = mixc.load(spec)
    sizes = {"B": 2, "T": 256, "H": 4} | {d.name: 64 for d in m.declared.dims}
    text = page(m, find("h100"), sizes)
    for part in (*PARTS[spec], "The spec", "The step", m.why[next(iter(m.form))].split("`")[0], "Its adjoint", "<svg"):
        assert part in text.replace("&gt;", ">"), part
    assert "kernels, forward" in text
    assert "`" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)
    loaded = re.findall(r"(?:src|href|@import|url)\b[=( ]*[\"']?[^\"'> ]*", text)
    assert not loaded and "<script" not in text
    links = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert links <= {"http://www.w3.org/1998/Math/MathML"}
    formulas = re.findall(r"<math .*?</math>", text)
    assert len(formulas) > 5
    for formula in [*formulas, *re.findall(r"<svg.*?</svg>", text)]:
        ElementTree.fromstring(formula)
    arguments = {"mfrac": 2, "msup": 2, "msub": 2, "munder": 2, "mover": 2, "msubsup": 3}
    for formula in formulas:
        for e in ElementTree.fromstring(formula).iter():
            wanted = arguments.get(e.tag.split("}")[1])
            assert wanted is None or len(e) == wanted, formula


def words(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"<[^>]*>", " ", text))


def test_signs_and_brackets() -> None:
    a, b, c = (make("in", name=n, dims=(), kind="real") for n in "abc")
    value = a - (b - c) * -1.0 - (a + b) * c
    (line,) = equations(_only(scalar_decay("log"), value))
    assert words(line) == "y=a+b−c−(a+b)c"
    (line,) = equations(_only(scalar_decay("log"), make("where", make("lt", number(-2.0), a), b * -2.0, c)))
    assert words(line) == "y={b(−2)where&#160;−2&lt;acelse"


def test_a_negative_exponent_is_one_element() -> None:
    x = make("in", name="x", dims=(), kind="real")
    (line,) = equations(_only(scalar_decay("log"), make("pow", x, make("number", value=-0.5))))
    assert latex(line) == "y = x^{-0.5}"


def test_an_index_that_a_sum_binds_is_not_the_row_around_it() -> None:
    """sum over t of x[t, s], read at s = t: the sum runs over another letter."""
    x = make("segsum", make("in", name="g", dims=("_t",), kind="real"), reach="strict")
    value = make("rename", make("sum", make("mask", x, keep="strict"), over=("_t",)), to=(("_s", "_t"),))
    line = words(equations(_only(scalar_decay("log"), value))[0])
    assert line.startswith("yt=∑r𝟙t&lt;r∑") and "t&lt;j≤rgj" in line, line


OUTER = """mixer mine(K, V) {
    in q[K], v[V], eta, lam where lam <= 0
    in k[K] where norm[K](k) <= 1
    state S[V, K]
    keep = exp(lam) * S
    S = keep - eta * k * (keep @ k) + eta * k * v
    out y[V] = S @ q
}
"""


@pytest.mark.parametrize("name", [*sorted(shipped()), "mine"])
def test_no_sign_stands_before_a_sign(name) -> None:
    """Derivation by rules leaves `I + -(-1 * x)`, and a factor -1 that reads as a difference."""
    step = (mixc.loads(OUTER) if name == "mine" else mixc.load(name)).declared
    made, lines = split(step), [Spelling({}, whole=True).text(n) for *_, n in split(step)]
    formulas = written(step, [(f"<mi>{kind}</mi>", n) for kind, _, n in made])
    for p in map(lowered, parts_of(step)):
        forward = cell(p) if any(g.form == "sequential" for g in classify(p).groups) else chunk(classify(p))
        for q in (forward, differentiate(forward)):
            q = plain(q, drop_live=True)
            lines += derivation.equations(q)
            formulas += equations(q)
    for line in lines:
        assert not re.search(r"[-+] -|-\(-|\b1\[|\* -?1\b(?![.e])|(?<![\w.])-?1 \* ", line), line
    for formula in formulas:
        shown = words(formula.replace("<msqrt>", "<mi>r</mi>"))
        assert not re.search("[−+]−|0[+]u|[a-z)]−1(?=[a-zη∑])(?!.*(I|t−1))", shown), shown


def test_bars_are_wider_than_a_letter_and_overlines_in_latex() -> None:
    """A glyph for a bar is drawn inside the letter where the font has none that stretches."""
    *_, line = equations(differentiate(chunk(classify(scalar_decay("log")))), adjoint=True)
    assert "border-top" in line and latex(line).startswith(r"\overline{n} = \overline{n'}")


def _only(step, value):
    return replace(step, results=(Result("out", "y", value),))


@pytest.mark.parametrize("spec", ["gated_delta_rule", "kda", "decaying_max", "norm_attention", "s5"])
def test_latex_is_what_others_parse(spec) -> None:
    """matplotlib's reader of TeX takes every formula but for amsmath's environments, which are closed."""
    p = mixc.load(spec).declared
    real = planes(p) if is_complex(p) else p
    forward = chunk(classify(real))
    backward = differentiate(forward)
    formulas = [latex(f) for f in (*equations(p), *equations(forward), *equations(backward, adjoint=True))]
    parser, plain = MathTextParser("path"), 0
    for text in formulas:
        assert text.count("{") == text.count("}") and "<m" not in text
        assert sorted(re.findall(r"\\begin{(\w+)}", text)) == sorted(re.findall(r"\\end{(\w+)}", text))
        if "\\begin" not in text:
            parser.parse(f"${text}$")
            plain += 1
    assert plain > 4


def test_latex_of_the_delta_rule() -> None:
    lines = [latex(f) for f in equations(mixc.load("delta_rule").declared)]
    assert lines[-1].startswith("o = ") and r"\sum_{K} q \, S'" in lines[-1]
    assert lines[0] == r"S' = S - \beta \, \left(\sum_{K} k \, S - v\right) \, k"


def test_a_scan_of_cotangents_starts_with_all_that_comes_from_behind() -> None:
    """It said that the value behind the last row is the cotangent, and left its factor there, of no token, open."""
    for spec, start in [("mamba1", r"w_{C+1}^{(1)} \, w_{C+1}^{(2)} = \overline{x'}"),
                        ("second_order", r"d_{C+1}\end{pmatrix} z_{C+1}^{(3)} = \begin{pmatrix}\overline{x'}")]:
        step = mixc.load(spec).declared
        lines = [latex(f) for f in equations(plain(differentiate(chunk(classify(step))), drop_live=True), adjoint=True)]
        (line,) = [x for x in lines if r"\quad" in x and "C+1" in x]
        assert start in line


def test_places_positions_and_rows_beside_each_other() -> None:
    """They were place(...) without a place, floordiv(index, 2) without a dim, a minus sign that TeX does not know."""
    m = mixc.loads("mixer m(K, V, W = 3) {\nin q[K], k[K], v[V]\nparam c[W, K], w\nstate S[K, V], h\n"
                   "a = pos * 100 ** (-2 * (index[K] // 2) / K)\nS = 0.5 * S + sum[W](c * lag[W](k)) * v\n"
                   "h = maximum(h - 1, w)\nout o[V] = (q * cos(a)) @ S + h\n}")
    text = unescape(page(m, find("h100"), dict(B=1, T=64, H=1, K=16, V=16, W=3)))
    sources = "".join(re.findall(r"<pre>(\\begin.*?)</pre>", text, re.DOTALL))
    assert r"\lfloor \frac{{\mathrm{index}}_{K}}{2} \rfloor" in sources
    assert r"{\mathbb{1}}_{W = 2} \, \sum_{t}" in sources
    assert "u_{t-1}" in sources and "place" not in sources and "−" not in sources


def test_params_that_states_start_at_get_no_zero() -> None:
    m = mixc.loads("mixer m(D) {\nin x[D]\nparam w[D], unread[D]\nstate h[D] = w\nh = 0.5 * h + x\nout y[D] = h\n}")
    text = m.explain()
    assert "dw[D] = 0" not in text and "dunread[D] = 0" in text
    assert "- the gradient to w comes from the cotangent of the first states, which start there" in text
    assert "the gradient to w comes from" in page(m, find("h100"), dict(B=1, T=64, H=1, D=16))
