"""What ranges prove, and where."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

import mixc
from mixc.ir.node import ROW, make, number, postorder
from mixc.ir.ranges import Interval, bounds, proving
from mixc.passes.chunk import chunk


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


@pytest.mark.parametrize("value,low,high", [
    ("x + (1 - x) * y", 0, 1), ("y - x * y", 0, 1), ("x * a + (1 - x) * y", -1, 1), ("x - y + y * x", -1, 1),
    ("(1 - x) + x * exp(g)", 0, 1), ("x * y + (1 - x) * (y * 0.5 + (1 - y))", 0, 1), ("x + x", 0, 2),
    ("x * x - x", -1, 1), ("w + (1 - w) * y", -math.inf, math.inf), ("sigmoid(w) + (1 - sigmoid(w)) * y", 0, 1)])
def test_what_is_affine_in_a_value_that_it_reads_twice(value, low, high):
    step = mixc.loads("mixer m() {\nin x where 0 <= x <= 1, y where 0 <= y <= 1, a where -1 <= a <= 1, w\n"
                      f"in g where g <= 0\nstate S\nS += x\nout o = {value}\n}}").declared
    with proving(step):
        found = bounds(step.result("out", "o"))
    assert (found.low, found.high) == (low, high)


@pytest.mark.parametrize("value,low,high", [
    ("b * square(k) / (1 + b * sum(square(k)))", 0, 1), ("(b / (1 + b * (k @ k))) * square(k)", 0, 1),
    ("k * k * b / (b * sum(square(k)) + square(c) + 1e-6)", 0, 1), ("x / (1 + sum(x))", 0, 1),
    ("x / (1 + sum(x) + sum(k))", -math.inf, math.inf), ("x / (1 + sum(k))", -math.inf, math.inf),
    ("k / (1 + sum(square(k)))", -math.inf, math.inf), ("2 * x / (1 + sum(x))", 0, math.inf),
    ("x / (1 - sum(x))", -math.inf, math.inf), ("x * c / (1 + sum(x * c))", -math.inf, math.inf),
    ("1 - b * square(k) / (1 + b * sum(square(k)))", 0, 1),
    ("abs(square(z) / (1 + sum(square(z))))", 0, math.inf)])
def test_what_is_divided_by_a_sum_that_it_is_in(value, low, high):
    step = mixc.loads("mixer m(K) {\nin k[K], c\nin z[K] complex\nin x[K] where x >= 0\nin b where 0 <= b <= 1\n"
                      f"state S[K]\nS += k\nout o[K] = {value}\n}}").declared
    with proving(step):
        found = bounds(step.result("out", "o"))
    assert found.low <= low and found.high >= high, "sound"
    assert (found.low, found.high) == (low, high)


def test_a_decay_between_a_floor_and_one_goes_by_its_logarithm():
    """lb + (1 - lb) * sigmoid(f) was not known to be 1 at most: for every entry a product of all pairs of rows."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], f[K], v[V]\nparam lb[K] where 0 <= lb <= 1\nstate S[K, V]\n"
                       "d = lb + (1 - lb) * sigmoid(f)\nS = d * S + (1 - d) * v\nout o[V] = q @ S\n}")
    ops = {n.op for n in postorder(chunk(mixer._staged).values())}
    assert "span_contract" in ops and "segprod" not in ops


def test_a_decay_that_a_param_stands_in_front_of_is_explained():
    """The time axis that was put in front of it went for readers, whom the order of dims is nothing to."""
    text = mixc.loads("mixer m(K, V) {\nin q[K], f[K], v[V]\nparam w[K]\nstate S[K, V]\n"
                      "S = (w + f) * S + f * v\nout o[V] = q @ S\n}").explain()
    assert "segprod" in text


def test_a_product_of_decays_is_one():
    step = mixc.loads("mixer m(K) {\nin a where -1 <= a <= 1\nin b where 0 <= b <= 1\nin c\nstate S\nS = c\n"
                      "out p = a\nout q = b\nout r = c\n}").declared
    with proving(step):
        found = [bounds(make("segprod", make("in", name=n, dims=(ROW,), kind="real"), reach="strict")) for n in "abc"]
    assert [(x.low, x.high) for x in found] == [(-1, 1), (0, 1), (-math.inf, math.inf)]
