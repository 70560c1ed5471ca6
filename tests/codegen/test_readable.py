"""Emitted kernels are for people: none is too long to be read at once, and what makes it short changes no number."""

from __future__ import annotations

import ast
import itertools
import re
from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.codegen import again
from mixc.codegen.again import LONGEST
from mixc.codegen.offline import load_text
from mixc.errors import SpecError
from mixc.runtime.agree import ratio
from mixc.runtime.draw import draw
from mixc.runtime.load import shipped

FEW = {"B": 1, "T": 2048, "H": 4}


def lengths(text: str) -> dict[str, int]:
    """The lines of every function for a GPU."""
    functions = [f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)]
    jitted = (f for f in functions if any("jit" in ast.unparse(d) for d in f.decorator_list))
    return {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in jitted}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_no_kernel_of_an_example_is_too_long(name: str) -> None:
    try:
        found = lengths(mixc.load(name).emit())
    except SpecError:
        pytest.skip("no kernels")
    assert max(found.values()) <= LONGEST, found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped()))
def test_nor_at_other_sizes(name: str) -> None:
    mixer = mixc.load(name)
    for size in (32, 96, 128, 256):
        of_dims = {d.name: size for d in mixer.declared.dims if not d.size}
        for dtype, shape in (("bf16", {}), ("bf16", FEW), ("fp32", FEW)):
            try:
                found = lengths(mixer.emit(shape=of_dims | shape, dtype=dtype))
            except SpecError:
                continue
            assert max(found.values()) <= LONGEST, (size, dtype, shape, found)


BODY = """
    in q[K], k[K] where norm[K](k) <= 1, v[V], g where g <= 0, beta where 0 <= beta <= 1
    param w[V]
    state S[K, V]
    S = exp(g) * S
    S = S + beta * k * (v - k @ S)
    out o[V] = w * (q @ S)
}
"""


@pytest.mark.parametrize("shape", [{}, FEW], ids=["a walk over all chunks", "segments side by side"])
def test_what_is_done_with_a_chunk_in_a_function_of_its_own(shape: dict[str, int]) -> None:
    """With the states that the loop carries, and those formed again."""
    m = mixc.loads(f"mixer apart{len(shape)}(K, V) {{{BODY}")
    with patch.object(again, "LONGEST", 0):
        text = m.emit(shape=shape, dtype="fp32")
    apart = re.findall(r"^def (\w+_chunk)\(", text, re.MULTILINE)
    kernels = re.findall(r"^@triton.jit\(do_not_specialize=.*\ndef (?!\w+_token|add_parts)", text, re.MULTILINE)
    assert len(apart) == len(kernels) > 1
    emitted = getattr(load_text(text), m.__name__)
    x = {n: t.requires_grad_() for n, t in draw(m.declared, T=150).items()}
    for reverse in (False, True):
        o, state = emitted(*x.values(), output_final_state=True, reverse=reverse)
        want, final = m(**x, output_final_state=True, reverse=reverse, backend="reference")
        assert ratio(o, want) < 1e-5 and ratio(state["S"], final["S"]) < 1e-5
        grads, right = (torch.autograd.grad(y.square().sum(), list(x.values())) for y in (o, want))
        assert all(ratio(a, b) < 1e-5 for a, b in zip(grads, right, strict=True))


def test_a_sign_has_no_line_of_its_own() -> None:
    text = mixc.load("momentum_delta_rule").emit()
    assert "exp_la_negated" not in text and "(-exp_la)[:, None]" in text


def test_a_formula_goes_as_far_as_it_fits() -> None:
    """Above the line that forms the value; with the names that are there alone it would say no more than that."""
    lines = [line.strip() for line in mixc.load("momentum_delta_rule").emit().splitlines()]
    above = {line.split(" = ")[0]: comment for comment, line in itertools.pairwise(lines) if comment.startswith("# ")}
    written = "((prefix2 * p) @ -dv) + ((prefix2 * (exp(la) * q)) @ (do * scale))"
    assert above["dS_next"] == f"# dS' = dS * whole2 + {written}"
    assert "dk = total" not in above["dk"] and above["dk"].endswith(" * eta")


def test_components_of_a_block_are_called_what_their_state_is() -> None:
    """They were component, component2, and in a formula `component, component2[i=1]`, the names of both."""
    text = mixc.load("s5").emit()
    assert "x_re_rows, x_im_rows = after_block2(" in text and "dx_re_rows, dx_im_rows = after_block2(" in text
    assert "component2" not in text and "_rows[i=" not in text
