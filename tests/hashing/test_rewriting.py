"""Rewriting never changes the hash; a disturbance that shows on the probes always does."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixc
from mixc.frontend.syntax import MixerSyntax
from mixc.runtime.load import shipped
from tests.hashing.pairs import many_dims
from tests.hashing.rewrite import disturbed, read, rewritten, text

STORED = Path(__file__).with_name("stored.json")
NAMES = sorted(json.loads(STORED.read_text()))


@functools.cache
def tree(name: str) -> MixerSyntax:
    return read(shipped()[name].read_text())


@functools.cache
def hash_of(name: str) -> str:
    return mixc.load(name).hash


@pytest.mark.parametrize("name", NAMES)
def test_a_tree_written_out_is_the_same_spec(name: str) -> None:
    assert mixc.loads(text(tree(name))).hash == hash_of(name)


@given(st.sampled_from(NAMES), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_rewriting_never_changes_the_hash(name: str, seed: int) -> None:
    assert mixc.loads(text(rewritten(tree(name), Random(seed)))).hash == hash_of(name)


@given(st.sampled_from(NAMES), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_visible_disturbance_always_does(name: str, seed: int) -> None:
    other, _ = disturbed(tree(name), Random(seed))
    assert mixc.loads(text(rewritten(other, Random(seed)))).hash not in {hash_of(n) for n in NAMES}


def test_examples_are_different_functions() -> None:
    assert len({hash_of(name) for name in shipped()}) == len(shipped())


def test_stored_hashes(update_golden: bool) -> None:
    """Of another machine, and of other versions of torch and numpy."""
    found = {name: hash_of(name) for name in shipped()}
    if update_golden:
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(STORED.read_text())
    assert {name: h for name, h in found.items() if name in stored} == stored


@pytest.mark.parametrize("seed", ["0", "1"])
def test_another_process(seed: str) -> None:
    code = "import mixc; print(mixc.load('gated_delta_rule').hash, mixc.load('slstm').hash)"
    out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
                         capture_output=True, text=True).stdout.split()
    assert out == [hash_of("gated_delta_rule"), hash_of("slstm")]


def test_structure_of_shapes_and_symmetries() -> None:
    """What refinement alone cannot tell apart, and what has many symmetries."""
    def ring(n: int, order: list[int]) -> str:
        names = ", ".join(f"x{i}[D]" for i in order)
        edges = " + ".join(f"x{i} * x{(i + 1) % n}" for i in order)
        return f"mixer ring(D) {{\n in {names}\n out o[D] = {edges}\n}}\n"

    assert mixc.loads(ring(7, [0, 1, 2, 3, 4, 5, 6])).hash == mixc.loads(ring(7, [4, 2, 6, 0, 5, 1, 3])).hash
    assert mixc.loads(ring(7, [0, 1, 2, 3, 4, 5, 6])).hash != mixc.loads(ring(8, list(range(8)))).hash
    dims = "mixer f({}) {{\n in a[{}], b[{}], c[{}]\n out o[K, L, M] = {} * {} * c\n}}\n"
    one = dims.format("K, L, M", "K", "L", "M", "sigmoid(a)", "tanh(b)")
    two = dims.format("M, K, L", "M", "K", "L", "tanh(a)", "sigmoid(b)").replace("sigmoid(b) * c", "c * sigmoid(b)")
    assert mixc.loads(one).hash == mixc.loads(two).hash


@pytest.mark.parametrize("n", [2, 4])
def test_many_dims_that_are_declared_alike(n: int) -> None:
    """Pairs of dims, each of a state of its own: whichever comes first, and not all (2 n)! orders of them."""
    def pairs(seed: int, last: str = "") -> str:
        rng, dims = Random(seed), list("ACDEFGIJ"[:2 * n])
        rng.shuffle(dims)
        mine = rng.sample(range(n), n)
        header = rng.sample(dims, 2 * n)
        lines = [[f"in k{i}[{dims[i]}], v{i}[{dims[n + i]}]" for i in mine],
                 [f"state S{i}[{dims[i]}, {dims[n + i]}]" for i in mine],
                 [f"S{i} = 0.5 * S{i} + k{i} * v{i}" for i in mine],
                 [f"out o{i}[{dims[n + i]}] = k{i} @ S{i}{last if i == 0 else ''}" for i in mine]]
        return f"mixer f({', '.join(header)}) {{\n" + "\n".join(x for part in lines for x in part) + "\n}\n"
    assert len({mixc.loads(pairs(seed)).hash for seed in range(4)}) == 1
    assert mixc.loads(pairs(0)).hash != mixc.loads(pairs(0, " * 1.000001")).hash


def test_nine_dims_of_which_seven_may_be_exchanged() -> None:
    one, two = many_dims("K ** -0.5"), many_dims("K ** -0.5").replace("A, C, D", "D, A, C")
    assert mixc.loads(one).hash == mixc.loads(two).hash


def test_dims_that_meet_in_tensors_along_a_ring() -> None:
    """Turned round they are the same; with a chord they are not, and no order but that along the ring is."""
    def ring(order: list[int], chord: str = "") -> str:
        dims = "ACDEFG"
        lines = [f"in x{i}[{dims[i]}]\nparam A{i}[{dims[i]}, {dims[(i + 1) % 6]}]" for i in order]
        lines += [f"out o{i}[{dims[i]}] = A{i} @ x{(i + 1) % 6}{chord if i == 0 else ''}" for i in order]
        return f"mixer f({', '.join(dims[i] for i in order)}) {{\n" + "\n".join(lines) + "\n}\n"
    found = {mixc.loads(ring(Random(seed).sample(range(6), 6))).hash for seed in range(4)}
    assert len(found) == 1
    chords = [mixc.loads(ring(list(range(6)), f" * sum(x{j})")).hash for j in (2, 3)]
    assert len({*found, *chords}) == 3
