"""Specs by name, by path and as text."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import mixc
from mixc import frontend
from mixc.runtime.load import shipped

parses = pytest.mark.skipif(not hasattr(frontend, "elaborate"), reason="the front end is not there yet")
TWO = """
# The sum so far.
mixer total(D) {
    in x[D]
    state s[D]
    s = s + x
    out o[D] = s
}
mixer first(D) {
    in x[D]
    out o[D] = x
}
"""


def test_unknown_names():
    assert "gated_delta_rule" in shipped()
    with pytest.raises(mixc.SpecError, match=r"MX401.*\n.*did you mean gated_delta_rule"):
        mixc.load("gated_deltarule")
    with pytest.raises(FileNotFoundError):
        mixc.load("nowhere/x.mix")


def test_what_is_no_text():
    with pytest.raises(mixc.InputError, match="`text`: expected the text of a spec, got NoneType"):
        mixc.loads(None)
    for given in (mixc.load, mixc.nn.Mixer):
        with pytest.raises(mixc.InputError, match="`spec`: expected the name of a shipped mixer or a path, got int 3"):
            given(3)
    with pytest.raises(mixc.InputError, match='dims="K, V = 4", got int 3'):
        mixc.jit(dims=3)


@parses
def test_one_of_several(tmp_path):
    path = tmp_path / "two.mix"
    path.write_text(TWO)
    assert mixc.load(path, "total").__name__ == mixc.load(str(path), "total").__name__ == "total"
    with pytest.raises(mixc.SpecError, match=r"MX402.*holds 2 mixers; it holds total, first"):
        mixc.load(path)
    with pytest.raises(mixc.SpecError, match=r"MX402.*no mixer `last`"):
        mixc.loads(TWO, "last")


@parses
def test_a_loaded_mixer_runs_and_travels():
    total = mixc.loads(TWO, "total")
    x = torch.randn(2, 5, 3)
    for mixer in (total, copy.deepcopy(total), pickle.loads(pickle.dumps(total))):
        o, state = mixer(x, output_final_state=True, backend="reference")
        torch.testing.assert_close(o, x.cumsum(1))
        torch.testing.assert_close(state["s"], x.sum(1))
    assert total.__doc__.startswith("The sum so far.")


@parses
@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_spec_loads(name):
    mixer = mixc.load(name)
    assert set(mixer.form) == {d.name for d in mixer.declared.states} and repr(mixer).startswith("<mixer ")


@parses
def test_loops_take_their_length_from_the_call():
    mixer = mixc.load("gated_deltaproduct")
    for N in (1, 3):
        k = torch.nn.functional.normalize(torch.randn(1, 4, 2, N, 8), dim=-1) * 0.9
        args = (torch.randn(1, 4, 2, 8), k, torch.randn(1, 4, 2, N, 5), -torch.rand(1, 4, 2), torch.rand(1, 4, 2, N))
        assert mixer(*args, backend="reference")[0].isfinite().all()


def test_a_spec_loaded_again_is_not_compiled_again():
    from mixc.runtime.compiled import compiled

    a, b, c = mixc.load("simple_gla"), mixc.load("simple_gla"), mixc.load("retnet")
    assert a.declared is not b.declared
    assert compiled(a.declared) is compiled(b.declared)
    assert compiled(a.declared) is not compiled(c.declared)


def test_texts_of_other_editors(tmp_path):
    """A mark of the byte order before the text, line ends of two characters, and a form feed, which is no line end."""
    text = ("# what it does\x0c, in a line\nmixer m(D) {\n in x[D]\x0c\n state h[D]\n h = 0.5 * h + x\n"
            " out y[D] = h\n}\n")
    path = tmp_path / "m.mix"
    path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    for made in (mixc.load(path), mixc.load(path, "m"), mixc.loads("\ufeff" + text)):
        again = mixc.loads(made.text)
        assert again.hash == made.hash and again.text == made.text and again.__doc__ == made.__doc__
        assert made.__doc__.startswith("what it does\x0c, in a line\n\nArguments")
    with pytest.raises(mixc.SpecError) as e:
        mixc.loads(text.replace("+ x", "+ z"))
    assert (found := e.value.diagnostics[0].span) is not None and found.source.line(found.line) == " h = 0.5 * h + z"
