"""Tile sizes without a search: what should fit a target, and the cheapest of that by a roofline.

A first rule, for who has not tuned: estimates of registers (fitted to what ptxas says of the examples' kernels), of
bytes, products and serial steps.  `feasible` is what a tuner chooses from; it compiles and looks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mixc.codegen.config import Config, Tile, padded
from mixc.codegen.kernel import Kernel, numbers, safe
from mixc.codegen.tiles import dot_axes
from mixc.ir.node import COL, ROW, Node
from mixc.targets import Target

CHUNKS, WARPS, BLOCKS, SEGMENTS = (16, 32, 64), (4, 8), (16, 32, 64, 128, 256), (64, 128)
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# what a kernel holds beside its tiles: addresses, vectors, and the operands of the product that runs
OVERHEAD, OVERHEAD_BACKWARD, MARGIN = 115, 128, 10


@dataclass(frozen=True)
class Problem:
    """What a module is to be fast for. `sizes`: of every dim; `count`: sequences times heads."""

    sizes: Mapping[str, int]
    target: Target
    dtype: str
    count: int = 128
    T: int = 4096

    @staticmethod
    def of(shape: Mapping[str, int], dims: Mapping[str, int], target: Target, dtype: str) -> Problem:
        """`shape` may hold B, T, H and dims; `dims` the sizes that it does not name."""
        sizes = {d: shape.get(d, n) for d, n in dims.items()}
        return Problem(sizes, target, dtype, shape.get("B", 8) * shape.get("H", 16), shape.get("T", 4096))

    @property
    def element(self) -> int:
        return BYTES[self.dtype]


def feasible(kernel: Kernel, problem: Problem) -> Iterator[Tile]:
    """Tiles whose estimates keep the target's limits: by chunk, blocks and warps."""
    divided = [d for d in kernel.launch.split if d in kernel.dims]
    choices = [[b for b in BLOCKS if b <= padded(problem.sizes[d])] for d in divided]
    for chunk, warps, *blocks in itertools.product(CHUNKS, WARPS, *choices):
        tile = Tile(chunk, tuple(zip(divided, blocks, strict=True)), warps, 1 if kernel.launch.reverse else 2)
        if registers(kernel, tile, problem) <= problem.target.registers_thread - MARGIN:
            yield tile


def registers(kernel: Kernel, tile: Tile, problem: Problem) -> float:
    """Registers a thread, estimated."""
    sizes = {d: tile.block(d, problem.sizes[d]) for d in kernel.dims}
    # warp groups beyond the rows of a chunk repeat each other's work in chained products
    rows = tile.chunk * (2 if tile.chunk >= 64 and tile.warps > 4 else 1)
    wide = 1.0 if problem.element == 2 else 1.5
    # a scan composes updates of spans: two pairs and their results
    scans = max((numbers(n.dims, {ROW: rows, **sizes}) for n in kernel.launch.body() if n.op in ("scan", "scan_block")),
                default=0)
    matrices = wide * kernel.peak({ROW: rows, **sizes}) + 6 * scans
    return matrices / (problem.target.warp * tile.warps) + (OVERHEAD_BACKWARD if kernel.launch.reverse else OVERHEAD)


def seconds(kernel: Kernel, tile: Tile, problem: Problem, segment: int) -> float:
    """A roofline: bytes over bandwidth, products over peaks, and the serial steps of one program."""
    target, rows = problem.target, problem.count * problem.T
    flops, programs, steps = 0.0, float(problem.count), 0.0
    parts = 1
    for d in kernel.launch.split:
        if d in kernel.dims:
            blocks = -(-problem.sizes[d] // tile.block(d, problem.sizes[d]))
            programs *= blocks
            parts *= blocks if d in kernel.launch.summed else 1
    again = (segment // tile.chunk - 1) / 2 if kernel.launch.reverse else 0.0
    for times, nodes in ((1.0, kernel.launch.body()), (again, kernel.replayed)):
        dots = [n for n in nodes if dot_axes(n)]
        flops += times * sum(_flops(n, tile, problem) for n in dots) * problem.T / tile.chunk * problem.count
        steps += times * (0.8e-6 + 0.15e-6 * len(dots))
    waves = -(-programs // target.sms)
    serial = waves * steps * problem.T / tile.chunk
    peak = target.peaks["tf32" if problem.element == 4 else problem.dtype] * 1e12 * (1.0 if tile.chunk >= 64 else 0.5)
    busy = min(1.0, programs / target.sms)
    moved = _bytes(kernel, problem, parts, segment) * rows
    return max(moved / (target.bandwidth * 1e9), flops / peak / busy, 0.4 * serial)


def _flops(n: Node, tile: Tile, problem: Problem) -> float:
    out = 2.0
    for d in dict.fromkeys((*n.args[0].dims, *n.args[1].dims)):
        out *= tile.chunk if d in (ROW, COL, "_u") else problem.sizes[d]
    return out


def _bytes(kernel: Kernel, problem: Problem, parts: int, segment: int) -> float:
    """Bytes a token and head."""
    launch, sizes = kernel.launch, problem.sizes

    loads = sum(numbers(d.dims, sizes) for d in launch.program.ins if safe(d.name) in kernel.loads) * problem.element
    cots = sum(numbers(launch.program.decl(name).dims, sizes) for name in kernel.cots) * problem.element
    stores = 0.0
    for s in launch.stores:
        partial = parts > 1 and any(d not in s.dims for d in launch.summed)
        if s.kind == "rows":
            stores += numbers(s.dims, sizes) * ((parts * 8 + problem.element) if partial else problem.element)
    states = sum(numbers(launch.program.decl(s).dims, sizes) for s in launch.starts) * problem.element / segment
    return loads + cots + stores + states


def choose(kernels: Mapping[str, Kernel], problem: Problem) -> Config:
    """The config of least modelled time; among near equals the one with most registers to spare.

    Where nothing seems to fit, the smallest tiles: a compiler may still find room, or spill."""
    found = []
    for segment in SEGMENTS:
        tiles, total = [], 0.0
        for name, kernel in kernels.items():
            cost, tile = _best(kernel, problem, segment)
            tiles.append((name, tile))
            total += cost
        found.append((total, segment, tuple(tiles)))
    _, segment, tiles_of = min(found)
    return Config(tiles_of, segment)


def _best(kernel: Kernel, problem: Problem, segment: int) -> tuple[float, Tile]:
    tiles = list(feasible(kernel, problem))
    if not tiles:
        divided = [d for d in kernel.launch.split if d in kernel.dims]
        tiles = [Tile(16, tuple((d, 16) for d in divided), 8, 1)]
    costs = [(seconds(kernel, t, problem, segment), t) for t in tiles]
    least = min(c for c, _ in costs)
    near = [(c, t) for c, t in costs if c <= 1.05 * least]
    return min(near, key=lambda ct: (-ct[1].chunk, [-b for _, b in ct[1].blocks], registers(kernel, ct[1], problem)))
