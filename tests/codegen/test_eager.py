"""The baseline of `mixc bench` computes what the reference computes."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.eager import eager_loop
from mixc.runtime.checks import const_values
from mixc.runtime.draw import dim_sizes, draw
from mixc.runtime.load import shipped
from tests.agree import assert_agree


@pytest.mark.parametrize("name", sorted(shipped()))
def test_eager_loop_is_the_step(name: str) -> None:
    m = mixc.load(name)
    sizes = dim_sizes(m.declared)
    program, consts = m.specialise(sizes, {})
    assert consts == const_values(m.declared, sizes, {})
    x = draw(m.declared, T=11)
    loop, text = eager_loop(program, sizes, consts, 2)
    want, _ = m(**x, backend="reference")
    (got,) = loop(x).values()
    assert_agree(got, want, torch.float32)
    assert text.startswith("def loop(")
