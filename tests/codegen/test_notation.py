"""Formulas in the comments of kernels."""

import re

import pytest

import mixc
from mixc.codegen.notation import formula
from mixc.frontend.names import FUNCTIONS
from mixc.ir.ops import OPS
from tests.build import contract

K, V = mixc.load("simple_gla").declared.decl("q").leaf(), mixc.load("simple_gla").declared.decl("v").leaf()


def test_products_of_matrices_stand_in_brackets_beside_products_entry_by_entry():
    S = mixc.load("simple_gla").declared.decl("S").leaf()
    read = contract(K, S, "V")
    assert formula(read * V + V * 2.0, {}) == "(q @ S) * v + v * 2"
    assert formula(read - (V - read), {}) == "q @ S - (v - (q @ S))"


def test_what_fills_more_than_a_line_is_cut_at_products_that_have_names():
    S = mixc.load("simple_gla").declared.decl("S").leaf()
    read = contract(K, S, "V")
    long = read
    for _ in range(12):
        long = long * V + V
    assert formula(long, {}) is None
    assert formula(read * V, {read: "o"}) == "(q @ S) * v"
    assert formula(long * V, {long: "long", V: "v"}) == "long * v"  # or at all names


def test_every_store_of_a_kernel_says_what_it_is():
    text = mixc.load("simple_gla").emit()
    assert "# o = scale * (" in text and "# dq = " in text and "# dS' = " in text
    assert not re.search(r" $|\n{4}", text, re.MULTILINE) and "new_zeros(S" not in text  # there is one state
    assert "# the walk is from the end: dS_initial is the cotangent of the final state" in text
    text = mixc.load("lstm").emit()
    said = r"# {0} = [^\n]*\n +{0} = [^\n]*\n +tl\.store\(\({0}_ptr"
    assert all(re.search(said.format(name), text) for name in ("y", "dxi", "dxf", "dxo"))


LANGUAGE = {*FUNCTIONS, "lag", "tril", "diag"}


@pytest.mark.parametrize("name", ["gated_delta_rule", "kda", "deltaproduct", "min_gru", "s5", "max_plus", "short_conv",
                                  "rotary_linear_attention", "momentum_delta_rule"])
def test_words_of_formulas_that_the_language_has_not_are_explained(name):
    """`segsum`, `span_contract` and `crossing` stood there without a word on what they are, `pick(x, dim=t, i=-1)` for
    x[t=-1], `window(x, dim=W, n=4)` for lag[W](x), `index` for index[P], and _t for t."""
    text = mixc.load(name).explain()
    formulas = "".join(part for i, part in enumerate(text.split("```")) if i % 2)
    told = re.findall(r"^- `(\w+)`: ", text.partition("## Words in these")[2].partition("##")[0], re.MULTILINE)
    assert set(told) <= set(OPS)
    assert set(re.findall(r"(?<![\w'])([a-z]\w*)\(", formulas)) - LANGUAGE == set(told)
    assert not re.search(r"\b_\w|\bindex\b(?!\[)", formulas)


def test_lags_and_positions_are_written_as_in_the_language():
    mixer = mixc.loads("mixer m(D, W = 4) {\nin x[D]\nparam c[W, D]\nstate h[D]\n"
                       "h = 0.5 * h + norm[W](c * lag[W](x)) * cos(index[D] * pos) - lag(x, 2)\nout y[D] = h\n}")
    assert "norm[W](c * lag[W](x)) * cos(index[D] * pos) - lag(x, 2)" in mixer.explain()


def test_what_is_written_again_and_again_has_a_name_in_the_split():
    """Three steps of an iteration, each spelled out in the next, filled a thousand letters."""
    mixer = mixc.loads("mixer m(K, V, L = K, N = 3) {\nin q[K], k[K], v[V]\nstate G[K, L], S[K, V], z[K]\n"
                       "G += k * k[L]\nS += k * v\nz = q\n"
                       "for n in N { z = z - 0.3 * (G @ z[L] - q) }\nout o[V] = z @ S\n}")
    split = mixer.explain().partition("## What it was split into")[2].partition("## One chunk")[0]
    assert "written, z: x3 - 0.3 * (" in split and max(map(len, split.splitlines())) < 100
    assert "written, S: k * v" in mixc.load("simple_gla").explain()
