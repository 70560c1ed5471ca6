"""`mixc explain --html`: one file that needs nothing else, with the parts of its form."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

import mixc
from mixc.cli.page import page
from mixc.codegen.mathml import equations
from mixc.ir.node import make
from mixc.ir.program import Result
from mixc.targets import find
from tests.build import scalar_decay

CHUNKS = ("One chunk of tokens", "What is kept for the backward", "Bytes and FLOPs",
          "carries on chip", "chunks, forward")
PARTS = {"simple_gla": (*CHUNKS, "decay", "written"), "hgrn": (*CHUNKS, "factor", "added"),
         "elman": ("the loop over the state", "from the last token to the first", "eager loop")}


@pytest.mark.parametrize("spec", PARTS)
def test_a_page(spec) -> None:
    m = mixc.load(spec)
    sizes = {"B": 2, "T": 256, "H": 4} | {d.name: 64 for d in m.declared.dims}
    text = page(m, find("h100"), sizes)
    for part in (*PARTS[spec], "The spec", "The step", m.why[next(iter(m.form))].split("`")[0], "Its adjoint", "<svg"):
        assert part in text.replace("&gt;", ">"), part
    assert ("chunks, forward" in text) == (spec != "elman")
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


def test_an_index_that_a_sum_binds_is_not_the_row_around_it() -> None:
    """sum over t of x[t, s], read at s = t: the sum runs over another letter."""
    x = make("segsum", make("in", name="g", dims=("_t",), kind="real"), reach="strict")
    value = make("rename", make("sum", make("mask", x, keep="strict"), over=("_t",)), to=(("_s", "_t"),))
    line = words(equations(_only(scalar_decay("log"), value))[0])
    assert line.startswith("yt=∑r𝟙t&lt;r∑") and "t&lt;j≤rgj" in line, line


def _only(step, value):
    return replace(step, results=(Result("out", "y", value),))
