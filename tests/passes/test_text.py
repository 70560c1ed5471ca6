"""Programs of every level print and read back to the very same nodes."""

import glob
import pickle

import pytest

import mixc
from mixc.ir.text import print_program, read_program
from mixc.passes import PIPELINE


@pytest.mark.parametrize("path", sorted(glob.glob("examples/*.mix")))
def test_round_trip_of_every_stage(path):
    program = mixc.load(path).declared
    for name, stage in (("step", lambda p: p), *PIPELINE):
        program = stage(program)
        again = read_program(print_program(program))
        assert again.values() == program.values(), name
        assert [d.init for d in again.decls] == [d.init for d in program.decls]
        assert again.decls == program.decls and again.groups == program.groups and again.dims == program.dims
        if name == "classify" and {g.form for g in program.groups} != {"chunk"}:
            break


def test_spans_are_those_of_the_text_that_is_asked():
    body = "in x[D]\nparam R[D, E]\nstate h[D]\nh = R @ h[E] + x\nout o[D] = h\n}"
    first = mixc.loads("mixer m(D, E = D) {\n\n\n" + body)
    second = mixc.loads("mixer m(D, E = D) {\n" + body)
    third = pickle.loads(pickle.dumps(first))
    assert "(line 7)" in first.why["h"] and "(line 5)" in second.why["h"] and "(line 7)" in third.why["h"]
    both = "".join(f"mixer {n}(D, E = D) {{\n{body}\n" for n in "ab")
    assert "(line 5)" in mixc.loads(both, "a").why["h"] and "(line 12)" in mixc.loads(both, "b").why["h"]
