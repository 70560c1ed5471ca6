"""Programs as text and back, and texts that nobody meant: an error or a program, never a crash."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.errors import Diagnostic, Source, SpecError
from mixc.frontend.check import elaborate
from mixc.frontend.parse import parse
from mixc.ir.node import make, number
from mixc.ir.program import Decl, Dim, Group, Program, Range, Result
from mixc.ir.text import print_program, read_program
from mixc.passes.classify import classify
from tests.frontend.specs import GATED_DELTA, body, step

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.mix"))


def returns(p: Program) -> None:
    q = read_program(print_program(p))
    assert (q.level, q.name, q.dims, q.decls, q.groups, q.doc) == (p.level, p.name, p.dims, p.decls, p.groups, p.doc)
    assert q.reverse == p.reverse and [n.message for n in q.notes] == [n.message for n in p.notes]
    for a, b in zip(p.results, q.results, strict=True):
        assert (a.role, a.name) == (b.role, b.name) and a.value is b.value
    assert print_program(q) == print_program(p)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_examples_return(file: Path) -> None:
    for mixer in parse(Source(file.name, file.read_text(encoding="utf-8"))):
        p = elaborate(mixer)
        returns(p)
        returns(classify(p))


def test_chunks_return() -> None:
    from mixc.passes import PIPELINE

    p = step(body("S = sigmoid(g) * S + beta * k * v\nout o[V] = q @ S"))
    for _, run in PIPELINE:
        p = run(p)
        returns(p)


def test_odd_values_return() -> None:
    x, inf = make("in", name="x", dims=("K",), kind="complex"), float("inf")
    odd = make("lag", make("number", value=complex(-0.0, inf)) * number(-inf) + number(-0.0) - x, n=2, name="a b=(\"'}")
    decls = (Decl("in", "x", ("K",), "complex", (Range("abs", (), None, make("const", name="c"), False, True),
                                                 Range("norm", ("K",), number(-1e-30) + number(2.0), None, True))),
             Decl("const", "c", init=number(1e30)), Decl("state", "S", ("K", "N"), init=number(inf)))
    returns(Program("stages", "m", (Dim("K"), Dim("E", "K"), Dim("N", size=3)), decls,
                    (Result("save", "S.0", odd), Result("out", "o", make("neg", odd) / odd)),
                    (Group(("S", "M"), "scan", "a : \"b\" = c"),), True, "two\nlines",
                    (Diagnostic("MX301", "a = b : c"),)))


@pytest.mark.parametrize("line", ["out o = %3  : []", "out o = 1.0 : [K]", "in [", "out o = foo(1.0) : []"])
def test_unreadable(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        read_program(f"step m\n{line}")


# ---------------------------------------------------------------- texts that nobody meant
SEEDS = [GATED_DELTA, *(f.read_text(encoding="utf-8") for f in EXAMPLES),
         body("for n in K {\nS = S + n * k * v\n}\ny = lag(q, 2)\nout o = sum(q @ S) + grad[S](sum(k @ S)) @ S")]
_WORDS = """K V S q g T B ** <= 1j 2 0.5 lag grad sum exp where in out state const param for not and pos index max % //
    complex mixer inf norm softmax if += abs real conj clamp 1e999"""
WORDS = [*"()[]{}\n=@*-,:.0#é'\r\t\x00", *_WORDS.split()]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_specs_never_crash(data: st.DataObject) -> None:
    tokens = re.findall(r"\w+|\s+|.", data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(tokens) - 1))
        j = data.draw(st.integers(0, len(tokens) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                tokens[i] = data.draw(st.sampled_from(WORDS))
            case 1:
                tokens.insert(i, data.draw(st.sampled_from(WORDS)))
            case 2:
                tokens[i], tokens[j] = tokens[j], tokens[i]
            case _:
                tokens[i] = tokens[j]
    _read("".join(tokens))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_never_crashes(text: str) -> None:
    _read(text)
    _read(body(text))


def _read(text: str) -> None:
    try:
        for mixer in parse(Source("fuzz", text)):
            elaborate(mixer)
    except SpecError as e:
        assert e.diagnostics and str(e)
