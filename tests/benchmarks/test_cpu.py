"""The CPU benchmark at small shapes: what it is held against computes the same, and every figure is there."""

from __future__ import annotations

import dataclasses

import pytest
import torch

SMALL = dict(simple_gla=dict(B=1, T=64, H=2, K=4, V=5), lstm=dict(B=2, T=7, H=2, D=5),
             hgrn=dict(B=2, T=48, H=1, D=5))


def small(name: str):
    from cpu import CASES

    return dataclasses.replace(CASES[name], shape=SMALL[name])


@pytest.mark.parametrize("name,other", [("simple_gla", "hand"), ("hgrn", "hand"), ("lstm", "stacked loop"),
                                        ("lstm", "eager")])
def test_variants_compute_the_same(name: str, other: str) -> None:
    from cpu import both, inputs, variants

    mixer, x = inputs(small(name))
    programs = variants(small(name), mixer)
    want = programs["mixc"](x)
    torch.testing.assert_close(programs[other](x), want, rtol=1e-4, atol=1e-5)
    grads = []
    for variant in ("mixc", other):
        both(programs[variant], x, torch.linspace(-1, 1, want.numel()).view_as(want))
        grads.append({n: t.grad for n, t in x.items()})
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_figures() -> None:
    from cpu import PASSES, peak, times

    found = times(small("simple_gla"), 0.01, compiled=False)
    assert set(found) == set(PASSES)
    assert all(t["runs"] > 0 and t["min"] > 0 for by in found.values() for t in by.values())
    assert {"forward", "forward MB", "forward+backward", "forward+backward MB"} == set(peak(small("lstm"), "eager", 9))


def test_every_class_has_its_example() -> None:
    from cpu import CASES, inputs, variants

    for case in CASES.values():
        mixer, x = inputs(case, 3)
        assert set(x) == {d.name for d in (*mixer.declared.ins, *mixer.declared.params)}
        assert {"mixc", "eager"} <= set(variants(case, mixer))
