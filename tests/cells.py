"""One cell of the matrix: a backend against the reference on one kind of call."""

from __future__ import annotations

import itertools
import os
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest.mock import patch

import torch

import mixc
from mixc.runtime import agree, arguments, chunked, shapes
from mixc.runtime.draw import dim_sizes, draw, generator, normal
from tests.pairs import cover
from tests.poison import poisoned

Tensor = torch.Tensor
Cell = dict[str, Any]
AXES: dict[str, tuple[Any, ...]] = dict(
    length=(0, 1, 15, 16, 17, 63, 64, 65, 130, (0, 0, 5, 5, 21, 70), (0, 16, 33, 33, 96, 160, 160)),
    size=(5, 33, 60, 100, 128),
    heads=("1", "4", "4/2", "4/1", "none"),
    gates=(0.01, 0.1, 1.0, 10.0, "zero", "forget"),
    dtype=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    rows=("plain", "reverse", "mask", "mask, reverse", "step"),
    start=(False, True),
)


@contextmanager
def cut(C: int | None = None, **sizes: int) -> Iterator[None]:
    """Chunks of at most C rows, and other sizes of `mixc.runtime.shapes` by name; nothing is remembered."""
    with ExitStack() as stack:
        if C is not None:
            stack.enter_context(patch.object(shapes, "chunk_length", lambda longest: C))
        for name, value in sizes.items():
            stack.enter_context(patch.object(shapes, name, value))
        stack.enter_context(patch.object(chunked, "shapes", shapes.Shapes))
        yield


def allowed(cell: Cell) -> bool:
    return not (cell.get("rows") == "step" and isinstance(cell.get("length"), tuple))


def interpretable(cell: Cell) -> bool:
    """What the interpreter runs within a second: long or wide, not both."""
    return allowed(cell) and not (cell.get("size", 0) > 33 and cell.get("length", 0) not in (1, 15, 16, 17))


@dataclass(frozen=True)
class Plan:
    """The cells of a backend. `share`: a name takes one in so many of a cover of all pairs, another name others;
    `extra`: how many cells of the full product the slow target draws."""

    axes: dict[str, tuple[Any, ...]]
    allowed: Callable[[Cell], bool]
    share: int
    extra: int

    @cached_property
    def cover(self) -> list[Cell]:
        return cover(self.axes, self.allowed)

    def of(self, name: str) -> list[Cell]:
        return self.cover[zlib.crc32(name.encode()) % self.share::self.share]

    def more(self, name: str) -> list[Cell]:
        """Every pair, and cells of the product: `extra`, or MIXC_CELLS of them (a number, or "all")."""
        every = [c for v in itertools.product(*self.axes.values())
                 if self.allowed(c := dict(zip(self.axes, v, strict=True)))]
        count = os.environ.get("MIXC_CELLS", str(self.extra))
        return every if count == "all" else self.cover + random.Random(name).sample(every, min(int(count), len(every)))


_FEW = dict(heads=("1", "2", "2/1", "none"), dtype=AXES["dtype"][1:])  # kernels take no fp64
TORCH = Plan(AXES, allowed, 4, 200)
KERNELS = Plan(AXES | _FEW, interpretable, 18, 40)
# the interpreter runs the combine of a scan entry by entry: a hundred times slower than all else
SCANS = Plan(AXES | _FEW | dict(length=(0, 1, 15, 16, 17, (0, 0, 3, 3, 20)), size=(5,), heads=("1", "2/1", "none")),
             allowed, 6, 10)
CELLS = Plan(SCANS.axes, allowed, 30, 10)  # a token takes the interpreter as long as a chunk


def label(cell: dict[str, Any]) -> str:
    return "-".join(str(v).replace("torch.", "").replace(" ", "") for v in cell.values())


class Decode:
    """A mixer whose calls prefill, and take the last three tokens one by one."""

    def __init__(self, mixer: Any):
        self.mixer, self.declared = mixer, mixer.declared

    def __call__(self, **given: Any) -> tuple[Any, dict[str, Tensor]]:
        options = {n: given.pop(n) for n in list(given) if n in arguments.OPTIONS}
        ins = {d.name: given.pop(d.name) for d in self.declared.ins}
        T = next(iter(ins.values())).shape[1]
        split = max(T - 3, 0)
        o, state = self.mixer(**{n: x[:, :split] for n, x in ins.items()}, **given, **options)
        parts = [o if isinstance(o, tuple) else (o,)]
        for t in range(split, T):
            o, state = self.mixer.step(state, **{n: x[:, t] for n, x in ins.items()}, **given,
                                       backend=options["backend"])
            parts.append(tuple(x.unsqueeze(1) for x in (o if isinstance(o, tuple) else (o,))))
        outs = [torch.cat(xs, 1) for xs in zip(*parts, strict=True)]
        return (outs[0] if len(outs) == 1 else outs), state


@dataclass
class Given:
    """The arguments of a call."""

    tensors: dict[str, Tensor]
    initial_state: dict[str, Tensor] | None
    options: dict[str, Any]


def given(mixer: mixc.Mixer, cell: dict[str, Any], seed: int = 0, batch: int = 2) -> Given:
    """Random arguments as the cell says."""
    step, ragged = mixer.declared, isinstance(cell["length"], tuple)
    B, T = (1, cell["length"][-1]) if ragged else (batch, cell["length"])
    heads, _, fewer = cell["heads"].partition("/")
    heads = int(heads) if heads != "none" else 1
    named = [d.name for d in (*step.ins, *step.params)]
    groups = dict.fromkeys(named[int(fewer) % 2::2], int(fewer)) if fewer else {}
    sizes = sizes_of(mixer, cell["size"])
    scale = cell["gates"] if isinstance(cell["gates"], float) else 0.0 if cell["gates"] == "zero" else 1.0
    dtype, ends = cell["dtype"], 0.4 if cell["gates"] == "zero" else 1 / 16
    x = draw(step, B=B, T=T, H=heads, sizes=sizes, groups=groups, dtype=dtype, seed=seed, gates=scale, ends=ends)
    if cell["gates"] == "forget":
        _forget(step, x, seed)
    real_heads = max(g.shape[2] if d.role == "in" else g.shape[0]
                     for d, g in zip((*step.ins, *step.params), x.values(), strict=True))
    N = len(cell["length"]) - 1 if ragged else B
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    start = {d.name: _state(d, [N, real_heads, *(sizes[n] for n in d.dims)], seed, wide) for d in step.states}
    if cell["heads"] == "none":
        x = {d.name: x[d.name].squeeze(2 if d.role == "in" else 0) for d in (*step.ins, *step.params)}
        start = {n: s.squeeze(1) for n, s in start.items()}
    options: dict[str, Any] = {"cu_seqlens": torch.tensor(cell["length"])} if ragged else {}
    if "reverse" in cell["rows"]:
        options["reverse"] = True
    if cell.get("consts") is not None:
        options |= {d.name: cell["consts"] for d in step.consts if d.init is not None and d.init.op == "number"}
    if "mask" in cell["rows"]:
        options["mask"] = torch.rand(B, T, generator=generator(seed, "mask")) > 0.3
    return Given(x, start if cell["start"] and start else None, options)


def sizes_of(mixer: mixc.Mixer, size: int) -> dict[str, int]:
    """The first dim of the size, the next ones a little smaller; loops over a dim stay short."""
    from mixc.frontend import loop_dims

    loops = loop_dims(mixer._spec) if not hasattr(mixer._spec, "results") else ()
    free = [d.name for d in mixer.declared.dims if d.alias is None and d.size is None]
    return dim_sizes(mixer.declared, {n: 2 if n in loops else max(size - i, 1) for i, n in enumerate(free)})


def _forget(step: Any, x: dict[str, Tensor], seed: int) -> None:
    """-inf at an eighth of every in that has only an upper bound: forget everything."""
    for d in step.ins:
        if any(r.of == "x" and r.high is not None for r in d.ranges) and all(r.low is None for r in d.ranges):
            hit = torch.rand(x[d.name].shape, generator=generator(seed, d.name + " forgets")) < 1 / 8
            x[d.name] = x[d.name].masked_fill(hit, float("-inf"))


def _state(d: Any, shape: list[int], seed: int, dtype: torch.dtype) -> Tensor:
    x = normal(shape, seed, d.name + " at the start", dtype)
    return torch.complex(x, normal(shape, seed, d.name + " at the start, i", dtype)) if d.kind == "complex" else x


def compare(mixer: mixc.Mixer, cell: dict[str, Any], backend: str, seed: int = 0) -> list[agree.Finding]:
    """What one backend gives in poisoned memory against the reference on the same numbers in fp64."""
    large = backend == "triton" and not isinstance(cell["length"], tuple) and cell["length"] * cell["size"] > 500
    g, dtype = given(mixer, cell, seed, 1 if large else 2), cell["dtype"]  # two large ones take the interpreter seconds
    before = {n: x.clone() for n, x in g.tensors.items()}
    want = agree.run(mixer, g.tensors, initial_state=g.initial_state, wide=True, **g.options)
    with poisoned():
        caller = Decode(mixer) if cell["rows"] == "step" else mixer
        got = agree.run(caller, g.tensors, initial_state=g.initial_state, backend=backend, **g.options)
    assert all(torch.equal(before[n], x) for n, x in g.tensors.items()), "an input was modified"

    def rounded() -> agree.Run:
        """What rounding alone does: in fp64 that of the inputs, as the truth itself is in fp64."""
        if dtype == torch.float64:
            moved = {n: x * (1 - 2.0 ** -52) if x.is_floating_point() else x for n, x in g.tensors.items()}
            return agree.run(mixer, moved, initial_state=g.initial_state, wide=True, **g.options)
        return agree.run(agree.Plain(mixer), g.tensors, initial_state=g.initial_state, **g.options)
    return agree.judge(mixer.declared, got, want, dtype, rounded)
