"""The launches of a step, and each launch's space: variables, constraints, and its cost at every point.

Nothing here knows a mixer: variables come from the launch (which dims its programs divide), constraints from the
target's limits and from what the trace of the kernel's own text counts.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from math import inf
from typing import Any, TypeVar

from mixc.autotune.cost import LACKING, SPILL, Costs, LaunchModel, Shape
from mixc.autotune.counts import Counts, Size
from mixc.autotune.least import Least, least_of
from mixc.autotune.space import Infeasible, Space, Term, ceil_div, divides, maximum, powers_of_two, product, total
from mixc.autotune.terms import Constraint, operation, term
from mixc.autotune.trace import counts_of
from mixc.codegen.config import Tile, padded
from mixc.codegen.file_text import with_called
from mixc.codegen.kernel import Kernel
from mixc.codegen.offline import Report
from mixc.targets import Target

CHUNKS = [16, 32, 64, 128]
FEW = [2, 4, 8]  # where tokens have more rows
SEGMENTS = [16, 32, 64, 96, 128, 192, 256]
KEPT = 0.35  # the most that states kept for the backward may add to the bytes of inputs, outs and gradients
NEAR = 16  # registers that a tile may lack by the estimate, which is as much off, to be compiled where it is tuned
ESTIMATED = " (estimated)"
REGISTERS = "registers a thread" + ESTIMATED
SHARED = "shared memory a block" + ESTIMATED
OWN_16, OWN_32 = (f"every warp has 16 x {n} results of some product" for n in (16, 32))


@dataclass(frozen=True)
class Candidate:
    """A point of a launch's space, and what the model says of it.

    Attributes:
        seconds: modelled; binds: the longest part; registers, shared: estimated, or the compile's own (`report`).
        times: its bytes over those of its tensors, each moved once."""

    launch: str
    tile: Tile
    segment: int
    seconds: float
    binds: str
    parts: tuple[tuple[str, float], ...]
    bytes: float
    times: float
    flops: float
    programs: int
    occupancy: int
    registers: float
    shared: float
    report: Report | None = None
    failed: str = ""

    @property
    def spill(self) -> int:
        return self.report.spill if self.report else 0

    @property
    def good(self) -> bool:
        return not self.failed and not self.spill


Found = tuple[float, Callable[[], Candidate]]  # seconds, the candidate when asked for
Ranked = tuple[float, int, Callable[[], Candidate]]  # with its segment
Key = TypeVar("Key")


@dataclass(frozen=True)
class Variant:
    """A kernel of a launch, and its module, which has what it may call. `single`: where a segment is one chunk, or
    where it is several (None: either)."""

    kernel: Kernel
    module: Any
    single: bool | None = None

    def counts(self, *asked: Any) -> dict[tuple[int, ...], Callable[[], Counts]]:
        """`counts_of` its text, found once. `asked`: rows, operand, and values of constexpr arguments."""
        kernel = self.kernel
        if asked not in kernel.counted:
            text, (rows, operand, *known) = with_called(kernel, self.module), asked
            kernel.counted[asked] = counts_of(text, kernel.launch.name, rows, operand, tuple(kernel.dims), *known)
        return kernel.counted[asked]


class LaunchSpace:
    """The space of one launch of a module.

    Args:
        name: as a Config names it."""

    def __init__(self, name: str, variants: list[Variant], target: Target, shape: Shape):
        self.name, self.variants, self.target, self.shape = name, variants, target, shape
        self.kernel = variants[0].kernel
        self._made: dict[tuple[int, bool, int], tuple[Space, LaunchModel]] = {}
        self._floors_of: dict[LaunchModel, dict[int, Least]] = {}
        self._loose: dict[LaunchModel, list[Callable[[], dict[tuple[int, int], Found]]]] = {}

    def traces(self, of: Variant, held: bool) -> dict[tuple[int, ...], Callable[[], Counts]]:
        """Chunk sizes, and the counts of a trace that serves them: one for all where the text allows it. Of a cell the
        rows are sequences, and there is a trace for weights that are held, one for those that are read every token."""
        launch, sizes = of.kernel.launch, dict(self.shape.dims)
        cells = launch.loop == "cells"
        chunks = [*(FEW if of.kernel.ranks else ()), *CHUNKS]
        rows = [c for c in chunks if c <= max(16, padded(self.shape.B if cells else self.shape.T))]
        whole = tuple((f"B{d}", padded(sizes[d])) for d in of.kernel.dims if d not in launch.split) if cells else ()
        return of.counts(tuple(rows), self.shape.operand, (("HELD", held), *whole))

    @property
    def turned(self) -> str:
        """The dim whose blocks a program may take in turn: the longest of those over which gradients are summed."""
        sizes = dict(self.shape.dims)
        dims = {*self.kernel.dims} - {*self.kernel.launch.each}
        return max((d for d in self.kernel.launch.summed if d in dims), key=sizes.__getitem__, default="")

    @cached_property
    def spaces(self) -> list[tuple[Space, LaunchModel]]:
        return [made for growing in self._growing() for made in growing]

    def _growing(self, chunk: int = 0) -> Iterator[Iterator[tuple[Space, LaunchModel]]]:
        """The spaces, those of one kernel from few rows a chunk to many; each is made when it is asked for. `chunk`:
        those that have so many rows (0: all)."""
        def made(v: Variant, held: bool) -> Iterator[tuple[Space, LaunchModel]]:
            for rows, counts in self.traces(v, held).items():
                key = self.variants.index(v), held, rows[0]
                if chunk in (0, *rows):
                    if key not in self._made:
                        self._made[key] = self._space(v, rows, counts(), held)
                    yield self._made[key]
        for v in self.variants:
            for held in (True, False) if "HELD" in v.kernel.constexprs else (False,):
                yield made(v, held)

    def segments(self) -> list[int]:
        """Rows from one kept state to the next: few need nothing formed again, and cost bytes and memory."""
        if self.kernel.launch.loop == "cells":
            return [64]  # every state is kept
        shape, launch, program = self.shape, self.kernel.launch, self.kernel.launch.program
        states = [program.decl(s).dims for s in launch.starts]
        states += [c.dims for c in launch.carries if c.name in launch.keeps or launch.alone]
        kept = 2 * sum(map(shape.of, states))
        moved = 3 * sum(shape.of(d.dims) for d in program.ins) + 2 * sum(shape.of(d.dims) for d in program.outs)
        # partial sums that fill the GPU with programs take their share: written, read to be added to, and merged
        parts = min(dict(shape.dims)[self.turned] // 16, self.target.sms // (shape.B * shape.H)) if self.turned else 0
        summed = 6 * parts * sum(shape.of(s.dims) for s in self.kernel.launch.stored
                                 if s.kind == "rows" and self.turned not in s.dims) if parts > 1 else 0
        return [s for s in SEGMENTS if s >= 64 or (states and kept <= (KEPT * moved - summed) * s)]

    def _space(self, of: Variant, rows: tuple[int, ...], counts: Counts, held: bool) -> tuple[Space, LaunchModel]:
        kernel = of.kernel
        space, sizes, target = Space(), dict(self.shape.dims), self.target
        names: dict[str, Any] = {"C": space.variable("C", rows), "SEGMENT": space.variable("segment", self.segments())}
        for d in kernel.dims:
            full = kernel.block(d, sizes[d])
            if d in kernel.launch.split and d not in kernel.launch.each:
                names[f"B{d}"] = space.variable(f"B{d}", [*powers_of_two(16, full)])
            else:
                names[f"B{d}"] = full
        warps, stages = space.variable("warps", powers_of_two(1, 8)), space.variable("stages", [1, 2, 3])
        turned = self.turned
        turns: Any = space.variable("turns", powers_of_two(1, padded(sizes[turned]) // 16)) if turned else 1
        model = LaunchModel(kernel, counts, target, self.shape, names, warps, stages, turns, turned, held=held,
                            chunk=rows[0] if len(rows) == 1 else 0)
        C = names["C"]
        if of.single is not None:
            chunks = (names["SEGMENT"] == C, "a segment is a chunk") if of.single else \
                (names["SEGMENT"] > C, "a segment has several chunks")
            space.require(*chunks)
        more = product(names[f"B{d}"] for d in sorted(kernel.ranks))  # rows of a token
        for side in dict.fromkeys(s for m, n, k, *_ in counts.products for s in (m, n, k) if kernel.ranks):
            space.require(whole(model.size(side)) >= 16, "tensor cores want 16 of every side")
        space.require(divides(C, names["SEGMENT"]), "a segment is a whole number of chunks")
        if any("replays" in often[1] for *_, often in counts.memory):
            space.require((names["SEGMENT"] == C) | (stages == 1), "only a loop without a loop inside is pipelined")
        space.require(warps * target.warp <= 1024, "threads a block")
        if turned:
            space.require(turns * names[f"B{turned}"] <= padded(sizes[turned]), "a program's blocks lie in their dim")
        space.require(whole(model.registers) <= target.registers_thread, REGISTERS)
        space.require(whole(model.shared) <= target.shared_block, SHARED)
        space.require(whole(model.programs()) <= 2 ** 31 - 1, "programs of a grid")
        if "HELD" in kernel.constexprs:
            beyond = model.beyond()
            space.require(beyond <= 0 if held else beyond > 0, "weights are held where there is room for them")
        scans = any(n.op in ("scan", "scan_block") and len(n.dims) > 1 for n in kernel.launch.body())
        if counts.products and not scans:
            largest = maximum(512, *dict.fromkeys(model.size(m) * model.size(n) for m, n, *_ in counts.products))
            wide = 16 if model.cells else 32
            space.require(whole(largest) >= warps * (16 * wide), OWN_16 if model.cells else OWN_32)
            if not model.cells:
                widest = maximum(0, *dict.fromkeys(map(model.size, self._of_few_rows(kernel, counts, len(rows) > 1))))
                space.require((target.full_rows <= C * more) | (warps * 16 <= C * more) | (whole(widest) > C * more),
                              "the last product of few rows has more columns, or every warp forms all (`wide_last`)")
        return space, model

    def _of_few_rows(self, kernel: Kernel, counts: Counts, ordered: bool) -> list[Size]:
        """Columns of the last product with few rows, by which Triton lays out all; of all such products where the order
        is not known (beside what is counted by rows), or the last one never has more columns than rows."""
        few = [n for m, n, _, often, _ in counts.products
               if n[1] and not {*m[1]} - {"C", *(f"B{d}" for d in kernel.ranks)} and "replays" not in often[1]]
        sizes = dict(self.shape.dims)
        can = few and max(kernel.block(d, sizes[d]) if f"B{d}" in few[-1][1] else 0 for d in kernel.dims) > 16
        return few[-1:] if ordered and can else few

    @cached_property
    def _fitting(self) -> dict[tuple[int, int], Found]:
        """By rows of a chunk and of a segment: the best point that keeps the estimates."""
        found = dict[tuple[int, int], Found]()
        for growing in self._growing():
            for space, model in growing:
                if self._least_registers(space, model) > self.target.registers_thread:
                    break  # and more rows take more
                self._take(found, self._least(space, partial(_rank, model), model))
        return found

    def _least(self, space: Space, rank: Callable[[], Term], model: LaunchModel) -> dict[tuple[int, int], Found]:
        """By rows of a chunk and of a segment: the best point."""
        return {(C, segment): (seconds, partial(self.candidate, point, model, model.estimated))
                for (C, segment), (seconds, point) in space.least(rank, "C", "segment").items()}

    @staticmethod
    def _take(found: dict[Key, Found], more: Mapping[Key, Found]) -> None:
        """The better of both."""
        found |= {key: new for key, new in more.items() if key not in found or new[0] < found[key][0]}

    @staticmethod
    def _least_registers(space: Space, model: LaunchModel) -> float:
        """Of a thread, where the most warps have the smallest tiles."""
        smallest = {n: d.hi if n == "warps" else d.lo for n, d in space.domains.items()}
        return float(whole(model.registers).evaluate(smallest))

    def fits(self, chunk: int = 0) -> bool:
        """Has it a point that keeps the estimates? `chunk`: with so many rows (0: any)."""
        return any(chunk in (0, C) for C, _ in self._fitting)

    @cached_property
    def least(self) -> float:
        """Seconds that no point takes less than, what spills counted."""
        found = min((found[0] for found in self._fitting.values()), default=0.0) or inf
        for growing in () if self._fitting else self._growing():
            for space, model in growing:
                floors = self._floors(space, model).values()
                found = min(found, *(f.whole for f in floors))
                if min(f.more for f in floors) >= found:
                    break
        return found

    def _floors(self, space: Space, model: LaunchModel) -> dict[int, Least]:
        """By rows of a chunk: what no point of one of the spaces takes less than."""
        if model not in self._floors_of:
            self._floors_of[model] = least_of(space.domains, model)
        return self._floors_of[model]

    def floor(self, chunk: int) -> Least:
        """What no point with so many rows takes less than."""
        found = [self._floors(space, model)[chunk] for growing in self._growing(chunk) for space, model in growing]
        return Least({0: min((f.whole for f in found), default=inf)}, min((f.more for f in found), default=inf))

    def by_segment(self, chunk: int = 0) -> dict[int, Found]:
        """The best of every segment, with so many rows a chunk (0: any).

        Raises:
            Infeasible: the limits of the target leave none."""
        return self._of_chunk(self._fitting, chunk) or self._tight(chunk)

    def _of_chunk(self, fits: Mapping[tuple[int, int], Found], chunk: int) -> dict[int, Found]:
        """The best of every segment among these."""
        found = dict[int, Found]()
        for (C, segment), best in fits.items():
            if chunk in (0, C):
                self._take(found, {segment: best})
        return found

    @cached_property
    def first(self) -> Candidate:
        """The best of all."""
        return min(self.by_segment().values(), key=lambda f: f[0])[1]()

    @property
    def leaves_parts(self) -> bool:
        """Does the best of all leave partial sums to be added up?"""
        tile, summed = self.first.tile, self.kernel.launch.summed
        return tile.turns > 1 or any(tile.block(d, n) < n for d, n in self.shape.dims if d in summed)

    def _tight(self, chunk: int) -> dict[int, Found]:
        """The best of every segment where no point keeps the estimates."""
        found = dict[int, Found]()
        def known(floors: Iterable[tuple[int, float]]) -> bool:
            """Has what is found as little?"""
            return all(segment in found and found[segment][0] <= seconds for segment, seconds in floors)
        for growing in self._growing(chunk):
            for space, model in growing:
                floors = self._floors(space, model).values() if found and not chunk else ()
                if not floors or not known(x for f in floors for x in f.each.items()):
                    ways = (self._of_chunk(way(), chunk) for way in self._spilling(space, model))
                    self._take(found, next(filter(None, ways), {}))
                elif known((s, f.more) for f in floors for s in self.segments() if s > space.domains["C"].hi):
                    break
        if not found and not chunk:
            raise self.infeasible()
        return found

    def _spilling(self, space: Space, model: LaunchModel) -> list[Callable[[], dict[tuple[int, int], Found]]]:
        """Each way to loosen a space: by rows of a chunk and of a segment the best point."""
        if model not in self._loose:
            self._loose[model] = [cache(partial(self._least, loose, partial(_rank_spilling, model), model))
                                  for loose in self._loosened(space)]
        return self._loose[model]

    def best(self) -> Iterator[Ranked]:
        """Every point by modelled time, with what it should spill: of those that keep the estimates, or nearly; where
        there are none, of all.  A compiler may find room."""
        return self._merged([self._ranked(self._nearly(space, model), partial(_rank_spilling, model), model)
                             for space, model in self.spaces]) if self._fitting else self._beyond()

    @staticmethod
    def _nearly(space: Space, model: LaunchModel) -> Space:
        """The space with as many more registers as the estimate of them is off."""
        near = space.relaxed(lambda c: c.why != REGISTERS)
        near.require(whole(model.registers) <= model.target.registers_thread + NEAR, REGISTERS)
        return near

    def _beyond(self) -> Iterator[Ranked]:
        """Points whatever their registers, by modelled time with what they should spill."""
        each = list[Iterator[Ranked]]()
        for space, model in self.spaces:
            for loose in self._loosened(space):
                found = self._ranked(loose, partial(_rank_spilling, model), model)
                first = next(found, None)
                if first is not None:
                    each.append(itertools.chain([first], found))
                    break
        return self._merged(each)

    @staticmethod
    def _loosened(space: Space) -> Iterator[Space]:
        """The space without a limit on registers, and where programs divide no dim also with warps that repeat each
        other's work, so that each spills less; then without a limit on shared memory either."""
        undivided = [Term("var", name=n) == d.hi for n, d in space.domains.items() if n[0] == "B"]
        for kept in ((SHARED,), ()):
            loose = space.relaxed(partial(_kept, kept))
            loose.constraints += [c | whole for c in space.constraints if c.why == OWN_32 for whole in undivided]
            yield loose

    @staticmethod
    def _merged(each: list[Iterator[Ranked]]) -> Iterator[Ranked]:
        return heapq.merge(*each, key=lambda found: found[0])

    def _ranked(self, space: Space, rank: Callable[[], Term], model: LaunchModel) -> Iterator[Ranked]:
        for seconds, point in space.ranked(rank):
            yield seconds, point["segment"], partial(self.candidate, point, model, model.estimated)

    def candidate(self, point: dict[str, int], model: LaunchModel, costs: Costs) -> Candidate:
        known = dict[int, int | float]()
        def number(t: Term) -> float:
            return float(t.evaluate(point, known))

        parts = {k: number(t) for k, t in costs.parts.items()}
        launch = model.kernel.launch
        split = [d for d in launch.split if d in model.kernel.dims and d not in launch.each]
        turns = point.get("turns", 1)
        tile = Tile(point["C"], tuple((d, point[f"B{d}"]) for d in split), point["warps"], point["stages"], turns,
                    self.turned if turns > 1 else "")
        moved = number(costs.bytes)
        return Candidate(self.name, tile, point["segment"], number(costs.time), max(parts, key=parts.__getitem__),
                         tuple(parts.items()), moved, moved / self._bound, number(costs.flops),
                         int(number(costs.programs)), int(number(costs.occupancy)), number(model.registers),
                         number(model.shared))

    @cached_property
    def _bound(self) -> float:
        """Bytes of its tensors, each moved once; nothing kept, no sum in parts."""
        space, model = next(iter(self._made.values()))
        whole = {n: d.lo if n == "turns" else d.hi for n, d in space.domains.items()}
        return float(total(map(model.extent, model.pointers[0])).evaluate(whole))

    def point(self, tile: Tile, segment: int) -> tuple[dict[str, int], LaunchModel]:
        """Where a tile lies, and the model there."""
        for space, model in self.spaces:
            if model.kernel.launch.alone and (model.kernel.launch.loop == "chunk") != (tile.chunk == segment):
                continue
            point = {"C": tile.chunk, "segment": segment, "warps": tile.warps, "stages": tile.stages}
            point |= {"turns": tile.turns} if "turns" in space.domains else {}
            point |= {name: tile.block(name[1:], dict(self.shape.dims)[name[1:]])
                      for name in space.domains if name[:1] == "B"}
            other = "HELD" in self.kernel.constexprs and model.held != (model.beyond().evaluate(point) <= 0)
            if tile.chunk in (space.domains["C"].values or ()) and not other:
                return point, model
        raise ValueError(f"{self.name}: no chunk of {tile.chunk} rows here")

    def at(self, tile: Tile, segment: int, report: Report | None = None) -> Candidate:
        """The candidate of a given tile; with a compile's report its registers and shared memory count."""
        point, model = self.point(tile, segment)
        if report is None:
            return self.candidate(point, model, model.estimated)
        found = self.candidate(point, model, model.costs(max(report.registers, 16), report.shared))
        return replace(found, report=report, registers=report.registers, shared=report.shared)

    def infeasible(self) -> Infeasible:
        return self.spaces[0][0].infeasible()


def _kept(estimates: tuple[str, ...], c: Constraint) -> bool:
    """Whatever is no estimate, and these."""
    return c.why in estimates or not c.why.endswith((ESTIMATED, OWN_32))


def _rank(model: LaunchModel) -> Term:
    return model.estimated.rank


def _rank_spilling(model: LaunchModel) -> Term:
    """The same where more registers are wanted than a thread has: each of the others is spilled."""
    return model.estimated.rank * (1 + maximum(0, model.registers - model.target.registers_thread) * (LACKING / SPILL))


def whole(t: Term) -> Term:
    """The same term with its constants rounded up to integers, and `/` a division that rounds up."""
    try:
        return t.rounded
    except AttributeError:
        t.rounded = _whole(t)
        return t.rounded


def _whole(t: Term) -> Term:
    if t.op == "const":
        return term(-int(-t.value // 1))
    if not t.args or t.op == "where":
        return t
    if t.op == "mul" and any(a.op == "const" and a.value != int(a.value) for a in t.args):
        a, b = sorted(t.args, key=lambda x: x.op != "const")
        return ceil_div(whole(b) * round(a.value * 64), 64)
    a, b = map(whole, t.args)
    return ceil_div(a, b) if t.op == "div" else operation(t.op, a, b)
