"""What ranges prove, and where."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import mixc
from mixc.ir.node import make, number
from mixc.ir.ranges import Interval, bounds, proving


def test_two_threads_that_say_the_same_get_one_node():
    def said(i):
        return [make("add", number(1e6 + j), number(2e6 + j)) for j in range(300)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(said, range(4)))
    assert all(a is b for x in found for a, b in zip(x, found[0], strict=True))


def test_another_thread_may_prove_of_another_spec_meanwhile():
    """Compiled in two threads, each spec had the ranges of the other, or lost its own."""
    step = mixc.load("gated_delta_rule").declared
    g = next(d.leaf() for d in step.ins if d.name == "g")
    with ThreadPoolExecutor(1) as other, proving(step):
        assert bounds(g).nonpositive
        assert other.submit(bounds, g).result() == Interval()
        with proving(mixc.load("kda").declared):
            pass
        assert bounds(g).nonpositive
