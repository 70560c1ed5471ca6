"""Every code that the package can raise has a text that raises it (those of the frontend: tests/frontend)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import mixc
from docs.codes import CODES, LATER
from mixc.errors import SpecError
from mixc.runtime import backends
from mixc.runtime.mixer import Mixer
from tests.build import scalar_decay

ROOT = Path(mixc.__file__).parent
SEQUENTIAL = "mixer m(D, E) {\n    in x[D], y[E]\n    state h[D, E]\n    h = tanh(h + x * y)\n    out o[E] = x @ h\n}\n"
TWO = "mixer a(D) {\n    in x[D]\n    out o[D] = x\n}\nmixer b(D) {\n    in x[D]\n    out o[D] = x\n}\n"


def sequential() -> mixc.Mixer:
    return mixc.loads(SEQUENTIAL)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.shutil, "which", lambda *_: None)


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backends.importlib.util.find_spec
    monkeypatch.setattr(backends.importlib.util, "find_spec",
                        lambda name, *rest: None if name == "triton" else found(name, *rest))


# code: what raises it, words of the message
CAUSES = {
    "MX310": (lambda _: mixc.loads("mixer m(D) {\n    in x[D] complex\n    state h[D]\n    h = sqrt(h) + x\n"
                                   "    out o[D] = real(h)\n}\n")(torch.zeros(1, 3, 1, 2) + 0j, backend="triton"),
              "no Triton kernels: a complex value"),
    "MX311": (lambda patch: (without_triton(patch), mixc.load("simple_gla")(
        *(torch.zeros(1, 2, 1, 3) for _ in "qkv"), torch.zeros(1, 2, 1), backend="triton")), "not installed"),
    "MX312": (lambda _: mixc.load("simple_gla").emit(target="abacus"), "no target"),
    "MX313": (lambda patch: (without_compiler(patch), mixc.load("hgrn")(
        *[torch.zeros(1, 2, 1, 3)] * 2, backend="torch.compile")), "C++ compiler"),
    "MX401": (lambda _: mixc.load("no_such_mixer"), "no_such_mixer"),
    "MX402": (lambda _: mixc.loads(TWO, "c"), "`c`"),
    "MX403": (lambda _: Mixer(scalar_decay("log")).text, "no text"),
}


def test_kernels_of_tensors_on_a_cpu(monkeypatch):
    monkeypatch.setattr(backends, "_interpreted", lambda: False)
    with pytest.raises(SpecError, match=r"MX311.*the tensors are on cpu"):
        mixc.load("simple_gla")(*(torch.zeros(1, 2, 1, 3) for _ in "qkv"), torch.zeros(1, 2, 1), backend="triton")


@pytest.mark.parametrize("code", CAUSES)
def test_raised(code, monkeypatch):
    cause, words = CAUSES[code]
    with pytest.raises(SpecError) as e:
        cause(monkeypatch)
    (d,) = e.value.diagnostics
    assert d.code == code and words in d.message, str(d)


def test_the_note_on_a_sequential_form():
    (note,) = sequential().notes
    assert note.code == "MX301" and note.span is not None and "tanh" in str(note)


def test_every_code_has_an_example():
    used = {code for p in ROOT.rglob("*.py") for code in re.findall(r"\bMX\d{3}\b", p.read_text())}
    assert used - set(CODES) == {*CAUSES, "MX301"} == set(LATER)
