"""What Triton makes of products with few rows depends on how a kernel's statements stand: see `wide_last`, `formed`."""

from __future__ import annotations

import re

import pytest

import mixc
from mixc.autotune.trace import Trace
from mixc.codegen.config import Config, Tile
from mixc.codegen.triton_program import kernels

ALONG = ("fwd_for_K", "bwd_for_K", "bwd_along_K")


def text_of(name: str, launches: tuple[str, ...]) -> str:
    return kernels(mixc.load(name).declared).text(Config(tuple((n, Tile(16)) for n in launches)))


@pytest.mark.parametrize("name,launch", [
    ("delta_rule", "bwd_along_K"), ("comba", "bwd_along_K"), ("mlstm", "bwd_along_K"), ("titans_linear", "bwd"),
    ("gated_oja_rule", "fwd"), ("simple_gla", "bwd"), ("gated_delta_rule", "bwd"),
    ("momentum_delta_rule", "bwd_along_K")])
def test_the_last_product_with_few_rows_is_wide(name: str, launch: str) -> None:
    """It gives all of them its layout: warps divide the columns, or each forms all."""
    text = text_of(name, ALONG if launch in ALONG else ("fwd", "bwd"))
    products = Trace(text, f"{name}_{launch}", 16, 2, ["K", "V", "D", "N"]).counts.products
    few = [columns for rows, columns, _, times, _ in products if rows == (16.0, ()) and times[1] == ("chunks",)]
    assert (16.0, ()) in few  # there are narrow ones
    assert few[-1][1], "the last one has as many columns as rows"


@pytest.mark.parametrize("name,formed", [("linear_attention_normalised", True), ("rotary_linear_attention", True),
                                         ("simple_gla", False), ("delta_rule", False)])
def test_a_left_side_that_takes_work_is_formed_once(name: str, formed: bool) -> None:
    """And one that is only scaled stands as it is."""
    kernel = text_of(name, ("fwd", "bwd")).partition(f"def {name}_bwd(")[2]
    assert ("formed(" in kernel) is formed


def test_a_side_that_has_other_uses_too_is_formed_once() -> None:
    """On the right, or kept in fp32 for what else reads it: silu(k), and silu(q), which is multiplied by decays too."""
    kernel = text_of("lightning_attention2", ("fwd", "bwd")).partition("def lightning_attention2_fwd(")[2]
    assert "= formed(k.to(tl.float32) * tl.sigmoid(k.to(tl.float32))).to(OPERAND)" in kernel
    assert "= formed(q.to(tl.float32) * tl.sigmoid(q.to(tl.float32)))\n" in kernel


def test_only_what_is_formed_of_loads_is_formed_before_it_is_halved() -> None:
    """A state is where it was made: formed again it would go through shared memory in fp32."""
    kernel = text_of("deltaproduct", ALONG).partition("def deltaproduct_fwd_for_K(")[2].partition("\ndef ")[0]
    assert "= fine_dot(q, S, " in kernel and "= fine_dot(q, formed(tl.trans(beta_k)), " in kernel
    assert "halves(formed" not in text_of("deltaproduct", ALONG)


@pytest.mark.parametrize("name,left", [
    ("gated_delta_rule", "dv"), ("gated_delta_rule", "do_scale"), ("momentum_delta_rule", "dv")])
def test_products_with_one_left_side_stand_together(name: str, left: str) -> None:
    """Laid out for the first it waits in the registers of every warp for the last: of [32, 128] 64 registers each."""
    kernel = text_of(name, ALONG).partition(f"def {name}_bwd_along_K(")[2].partition("\ndef ")[0]
    dots = re.findall(r"= dot\((\w+), tl\.trans\((\w+)\), ", kernel)
    at = [i for i, (a, _) in enumerate(dots) if a == left]
    assert len({dots[i][1] for i in at}) > 1 and at[-1] - at[0] == len(at) - 1
