"""Expressions put into each other as text say the same as with brackets around everything."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.ir.brackets import atom, filled

TEMPLATES = ("{0} + {1}", "{0} - {1}", "{0} * {1}", "{0} / {1}", "-{0}", "{0} < {1}", "{0} & {1}", "{0} == 0",
             "{0} * f({0})", "f({0})", "f({0}, {1})", "{0}.to(x)", "{0}[:, None]", "max({0}, 1.0) + {1}")
EXPRESSIONS = st.recursive(st.sampled_from(("a", "b", "-2.0", "f(a + b, c)", "a[:, None]")), lambda inner: st.tuples(
    st.sampled_from(TEMPLATES), inner, inner), max_leaves=6)


def written(e, fill):
    return e if isinstance(e, str) else fill(e[0], [written(x, fill) for x in e[1:]])


@given(EXPRESSIONS)
def test_the_same_tree_as_with_all_brackets(e):
    every = written(e, lambda template, operands: template.format(*(f"({x})" for x in operands)))
    assert ast.dump(ast.parse(written(e, filled), mode="eval")) == ast.dump(ast.parse(every, mode="eval"))


@pytest.mark.parametrize("template, operands, text", [
    ("{0} + {1}", ["a + b", "c * d"], "a + b + c * d"),
    ("{0} + {1}", ["a", "b - c"], "a + (b - c)"),
    ("{0} * {1}", ["-a", "b + c"], "-a * (b + c)"),
    ("{0} - {1}", ["a", "-b"], "a - (-b)"),
    ("{0} < {1}", ["-1.0", "b"], "-1.0 < b"),
    ("tl.where({0}, {1}, 0.0)", ["a < b", "c + d"], "tl.where(a < b, c + d, 0.0)"),
    ("{0}.to(tl.float32)", ["a < b"], "(a < b).to(tl.float32)"),
])
def test_no_bracket_too_many(template, operands, text):
    assert filled(template, operands) == text


def test_atoms():
    whole = ["a", "f(a + b)", "1.0", "a[:, None]"]
    assert [atom(x) for x in whole] == whole
    assert [atom(x) for x in ("a + b", "-a", "a and b")] == ["(a + b)", "(-a)", "(a and b)"]
