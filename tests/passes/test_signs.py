"""Signs behind products: `dv` and `-dv` are one side of products."""

from __future__ import annotations

from typing import Any

import pytest

import mixc
from mixc.codegen.kernel import KernelWriter
from mixc.codegen.triton_program import kernels
from mixc.ir.node import Node, make, postorder
from mixc.passes.signs import _signs_behind


def matrix(name: str, *dims: str) -> Node:
    return make("in", name=name, dims=dims)


def product(a: Node, b: Node) -> Node:
    return make("contract", a, b, out=("_t", "K"))


def test_a_sign_of_a_side_stands_behind_the_product() -> None:
    a, b, x = matrix("a", "_t", "V"), matrix("b", "K", "V"), matrix("x", "_t", "K")
    plain, negated = product(a, b), product(-a, b)
    assert _signs_behind([plain * x, negated * x]) == [plain * x, -plain * x]
    assert _signs_behind([product(-a, -b)]) == [plain]


def test_a_product_that_is_added_keeps_it() -> None:
    """`x + (-a) @ b` is one product, which x - a @ b is not."""
    a, b, x = matrix("a", "_t", "V"), matrix("b", "K", "V"), matrix("x", "_t", "K")
    total = x + product(-a, b)
    assert _signs_behind([total]) == [total]


def test_no_backward_forms_a_side_twice_for_its_sign() -> None:
    """With a gate `dv` goes back by way of the state and of what was solved for, once with the other sign."""
    module = kernels(mixc.load("gated_delta_rule").declared)
    text = module.kernel("bwd_along_K").text
    launch = module.launches["bwd_along_K"]
    products = [n for n in postorder(launch.roots()) if n.op == "contract" and len(n.dims) > 1]
    assert any(a.op == "neg" for n in products for a in n.args) and "dot(neg" not in text


def test_what_estimates_read_is_found_with_nothing_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fitted to the launch with its signs, the text is of the one without."""
    written, order = list[str](), KernelWriter._ordered
    def ordered(self: KernelWriter, *statements: Any) -> list[Node]:
        written.append(self.launch.name)
        return order(self, *statements)
    monkeypatch.setattr(KernelWriter, "_ordered", ordered)
    kernel = kernels.__wrapped__(mixc.load("gated_delta_rule").declared).kernel("bwd_along_K")
    assert written.count(kernel.launch.name) == 2 and kernel.alive  # the body, and what is formed again
