"""A product taken apart by dims multiplies to what it was, and each factor has one of the dims at most."""

from __future__ import annotations

from functools import reduce

import pytest
import torch

from mixc.ir.build import exp, make
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import Node
from mixc.passes.separate import factors_of

G, H, C = (make("in", name=n, dims=d, kind="real") for n, d in (("g", ("K",)), ("h", ("V",)), ("c", ())))
APART = {
    "a product": G * H * C,
    "a quotient": (G * C) / (H * G),
    "negated": -(G * H),
    "a square": make("square", G * H),
    "a root of a modulus": make("sqrt", make("abs", G * H)),
    "an exponential of a sum": exp(C * (G + H)),
    "of a difference": exp(G - H),
    "of what is negated": exp(-(G + H)) * C,
    "a vector": exp(G * G + C),
}
JOINED = {"a sum": G + H, "an exponential of a product": exp(G * H), "a root of a sum": make("sqrt", G * G + H * H)}
SIZES = {"K": 3, "V": 4}


def value(x: Node) -> torch.Tensor:
    drawn = {n: torch.rand([SIZES[d] for d in n.dims], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
             for n in (G, H, C)}
    (found,) = evaluate([x], Env(drawn.__getitem__, SIZES, batch=0))
    return found


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    factors = factors_of(APART[name], ("K", "V"))
    assert factors is not None and all(len(f.dims) <= 1 for f in factors)
    product = value(reduce(Node.__mul__, factors))
    torch.testing.assert_close(product, value(APART[name]).reshape(product.shape))


@pytest.mark.parametrize("name", JOINED)
def test_joined(name: str) -> None:
    assert factors_of(JOINED[name], ("K", "V")) is None
