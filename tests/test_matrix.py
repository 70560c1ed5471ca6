"""Every shipped spec with a derived form, on every backend that has it, against the step in fp64.

Forward, final states, all gradients, from random cotangents of outs and final states, in poisoned memory.
The default suite meets the axes of `cells` pairwise, some names sharing out a cover; the slow target gives
every name all of it and a draw of the full product.
"""

from __future__ import annotations

import functools
import glob
from pathlib import Path

import pytest

import mixc
from mixc.runtime import backends
from tests import cells

load = functools.cache(mixc.load)  # compiled once for all cells
NAMES = sorted(Path(p).stem for p in glob.glob(str(Path(__file__).parents[1] / "examples" / "*.mix")))
DERIVED = [n for n in NAMES if backends.has_torch_program(load(n))]
KERNELS = [n for n in NAMES if backends.has_chunk_program(load(n))]


# what is known to fail, and why: strict, so that what is mended shows
KNOWN: dict[str, str] = {}


def kernels(name):
    forms = load(name).form.values()
    return cells.CELLS if "sequential" in forms else cells.SCANS if "scan" in forms else cells.KERNELS


def check(name, cell, backend):
    bad = [str(f) for f in cells.compare(load(name), cell, backend) if not f.ok]
    assert not bad, f"{cells.label(cell)}: {'; '.join(bad)}"


def each(names, plan):
    labels = [(n, c, f"{n}-{cells.label(c)}") for n in names for c in plan(n).of(n)]
    return [pytest.param(n, c, id=i, marks=[pytest.mark.xfail(strict=True, reason=KNOWN[i])] if i in KNOWN else [])
            for n, c, i in labels]


@pytest.mark.parametrize("name,cell", each(DERIVED, lambda name: cells.TORCH))
def test_torch(name, cell):
    check(name, cell, "torch")


@pytest.mark.parametrize("name,cell", each(KERNELS, kernels))
def test_triton_interpreted(name, cell):
    check(name, cell, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVED)
def test_torch_full_product(name):
    for cell in cells.TORCH.more(name):
        check(name, cell, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_triton_full_product(name):
    for cell in kernels(name).more(name):
        check(name, cell, "triton")
