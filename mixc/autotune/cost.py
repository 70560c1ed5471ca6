"""What a launch costs at a point: bytes, products, special functions, occupancy, waves and latency, as terms.

A roofline with latency, of the same form as the meter's (tools/meter), so that both can be compared:

    time = max(busy / balance, memory, latency) + start
    busy     the longest of products, special functions and elementwise work, each at its peak
    balance  programs over the places they fill, the last wave counted whole
    memory   the longest of distinct bytes over bandwidth, issued bytes over the L2's, and over an SM's share
    latency  waves of resident programs, each with a fixed number of cycles a program, a product and a load

Coefficients: COEFFICIENTS. They are for large chunked kernels on Hopper and Ampere GPUs; measured over modelled time
was 1.36 (geometric deviation 1.09) over 29 published timings of such kernels, and serial loops take longer than said.
Registers and shared memory before a compile are estimates fitted to ptxas reports (see `registers`, `shared`);
what a compile reports takes their place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from operator import ge
from typing import Any

from mixc.autotune.counts import Counts, Names, Poly, Size, times
from mixc.autotune.space import Term, ceil_div, maximum, minimum, product, total, where
from mixc.autotune.terms import Termlike, term
from mixc.codegen.kernel import WARPS, Kernel, safe
from mixc.ir.blocks import PART
from mixc.ir.node import COL, ROW, flat
from mixc.ir.program import Decl
from mixc.targets import Target

COEFFICIENTS = {
    "start": 3e-6,       # seconds a launch, seen from the GPU
    "cycles": 800.0,     # of a program before its loop: set-up and first loads
    "product": 200.0,    # cycles until the result of a product can be used
    "load": 60.0,        # cycles that a load adds; half of them where loads run ahead
    "l2": 1.64,          # bandwidth of the L2 over that of the memory (H100: measured 5.5 TB/s)
    "an_sm": 2.2,        # an SM's share of the bandwidth over an even share
    "rest": 0.03,        # of what the longest part hides: it is not hidden quite
    "pressure": 0.05,    # of the time, for a thread with all its registers taken (only for the order)
    "risk": 0.01,        # of the time, for each of the last 20 registers that are estimated to be taken (likewise): of
                         # 261 kernels 22 of 206 spilled below them, 31 of 55 that came so near
    "narrow": 0.62,      # of the peak, with fewer rows than `full_rows` (mma.sync on Hopper)
}

SPILL = 512  # bytes spilled that count as much as the time itself
LACKING = 24  # bytes spilled for each register that a thread lacks by the estimate (median of 18; 2 to 100)

# registers, fitted to ptxas on sm_90. Of 72 kernels of the examples with heads of 64, 128 and 256, most of them near
# the limit, 53 are on the right side of 255; 16 spill where this says that they fit, all but one fewer than 900 bytes
HELD = 138     # beside tiles: pointers, vectors, masks
CELL = 40      # the same in a loop over tokens
TILES = 0.71   # of the tiles that are alive at once
ACCESS = 1.0   # for each load or store in the text
LEFT = 0.5     # of the left sides of products with fewer rows than four warps have: all warps hold all of them
INVERSE = 5    # where a triangular matrix of 16 rows is inverted; with the square of the rows
LEVEL = 2.5    # for each product of a function with levels, times rows over warps: masks and operands
NEARLY = 20    # registers of a thread, the last that there are
VECTORS = 11   # of rows, alive at once, that take no more room; the others a register for every 4 rows


@dataclass(frozen=True)
class Shape:
    """B sequences of T tokens, H heads, sizes of dims; `operand`: bytes of the tensors' values."""

    B: int
    T: int
    H: int
    dims: tuple[tuple[str, int], ...]
    operand: int = 2

    def of(self, dims: tuple[str, ...]) -> int:
        sizes = dict(self.dims)
        n = 1
        for d in flat(dims):
            n *= sizes[d]
        return n


@dataclass
class Costs:
    """Terms over the variables of a launch: seconds by what takes them, and what the table shows. `rank` is what a
    search goes by: the time, and of equals the one with registers to spare."""

    time: Term
    rank: Term
    parts: dict[str, Term]
    bytes: Term
    flops: Term
    programs: Term
    occupancy: Term


def _numbers(dims: Iterable[str], sizes: Mapping[str, Term]) -> Term:
    return product(sizes[ROW if d in (ROW, COL, "_u") else d] for d in flat(dims) if d != PART)


@lru_cache(maxsize=4096)
def _named(dims: tuple[str, ...]) -> Names:
    """The names by which `_peak` knows the sides of a tile, in an order of their own."""
    return tuple(sorted(ROW if d in (ROW, COL, "_u") else d for d in flat(dims) if d != PART))


def _alive(alive: list[list[tuple[tuple[str, ...], float]]]) -> list[Poly]:
    """The sizes of what is alive at each statement."""
    every: dict[Names, int] = {}
    places = {dims: every.setdefault(_named(dims), len(every)) for tiles in alive for dims, _ in tiles}
    found: dict[tuple[float, ...], None] = {}
    for tiles in alive:
        sizes = [0.0] * len(every)
        for dims, part in tiles:
            sizes[places[dims]] += part
        found[tuple(sizes)] = None
    return [dict(zip(every, sizes, strict=True)) for sizes in found]


def _largest(polys: list[Poly], known: Mapping[str, float]) -> list[Poly]:
    """Those that may be the largest; `known`: of sides that have one size. All have the same names."""
    every: dict[Names, int] = {}
    places = list[tuple[float, int]]()  # the known size of a tile, and which names are left
    for names in polys[0] if polys else ():
        left = tuple(n for n in names if n not in known)
        places.append((prod(known[n] for n in names if n in known), every.setdefault(left, len(every))))
    found: dict[tuple[float, ...], None] = {}
    for p in polys:
        sizes = [0.0] * len(every)
        for c, (size, i) in zip(p.values(), places, strict=True):
            sizes[i] += c * size
        found[tuple(sizes)] = None
    kept: list[tuple[float, ...]] = []
    for candidate in sorted(found, key=sum, reverse=True):
        if not any(all(map(ge, larger, candidate)) for larger in kept):
            kept.append(candidate)
    return [dict(zip(every, sizes, strict=True)) for sizes in kept]


def _counted(c: float) -> float:
    """As an integer where it is one: rounded to integers it is the same term."""
    return int(c) if c == int(c) else c


class LaunchModel:
    """The terms of one launch.

    Args:
        counts: of its trace. names: terms for what the trace left a name: C, blocks, SEGMENT.
        warps, stages: terms. turns: blocks of the dim `turned` that a program takes one after the other.
        held: does a program of a cell keep the head's weights? chunk: the rows of a chunk, where there is no choice."""

    def __init__(self, kernel: Kernel, counts: Counts, target: Target, shape: Shape, names: Mapping[str, Termlike],
                 warps: Termlike, stages: Termlike, turns: Termlike = 1, turned: str = "", *, held: bool = False,
                 chunk: int = 0):
        self.kernel, self.counts, self.target, self.shape, self.held = kernel, counts, target, shape, held
        self.cells = kernel.launch.loop == "cells"  # rows are sequences, the loop goes over tokens
        self.turns, self.turned = term(turns), turned
        self.warps, self.stages = term(warps), term(stages)
        self._products_of: dict[Names, Term] = {}
        C, segment = chunk or names["C"], names["SEGMENT"]
        self.unknown = term(names["C"])  # the rows of a chunk by name
        self.names: dict[str, Any] = dict(names) | {
            "C": C,
            "chunks": shape.T if self.cells else segment / term(C) if kernel.launch.alone else ceil_div(shape.T, C),
            "keeps": C / term(segment), "replays": (segment / term(C) - 1) * 0.5}

    # ------------------------------------------------------------ counts as terms
    def size(self, s: Size) -> Term:
        c, names = s
        found = self._products_of.get(names)
        if found is None:
            found = self._products_of[names] = product(self.names[n] for n in names)
        return found if c == 1 else found * _counted(c)

    def poly(self, p: Poly) -> Term:
        return total(self.size((c, n)) for n, c in sorted(p.items()) if c)

    def sum(self, sizes: Iterable[Size]) -> Term:
        """Of so many that most are of the same names."""
        found: Poly = defaultdict(float)
        for c, names in sizes:
            found[names] += c
        return self.poly(found)

    def blocks(self) -> dict[str, Term]:
        return {d: term(self.names[f"B{d}"]) for d in self.kernel.launch.split if d in self.kernel.dims}

    def cuts(self, dims: Any = None) -> Term:
        """Programs over which the split dims (those of `dims`) are divided."""
        return product(ceil_div(self.shape.of((d,)), b * self.turns if d == self.turned else b)
                       for d, b in self.blocks().items() if dims is None or d in dims)

    def pieces(self) -> Term:
        """Segments of a sequence of which each is a program's own; 1 where a program has them all."""
        return ceil_div(self.shape.T, self.names["SEGMENT"]) if self.kernel.launch.alone else term(1)

    def programs(self) -> Term:
        return self.groups() * self.shape.H * self.pieces() * self.cuts()

    def groups(self) -> Term:
        """Sequences, or how many programs have a cell's."""
        return ceil_div(self.shape.B, self.names["C"]) if self.cells else term(self.shape.B)

    def weights(self) -> Term:
        """Bytes of a cell's weights that a program has: backwards two copies, laid out for both of its products."""
        copies = 2 if self.kernel.launch.reverse else 1
        return total(_numbers(d.dims, {n: term(self.names[f"B{n}"]) for n in d.dims})
                     for d in self.kernel.launch.program.params
                     if len(d.dims) > 1 and safe(d.name) in self.kernel.loads) * (self.shape.operand * copies)

    def adds(self, dims: tuple[str, ...]) -> Term:
        """How many blocks a program adds up of what has these dims."""
        return term(1) if self.turned in dims else self.turns

    def work(self) -> Term:
        """How often the text of a program runs."""
        return self.programs() * self.turns

    def beyond(self) -> Term:
        """Bytes of weights beyond the room that an emitted file gives them (`room`): above 0 they are not held."""
        return self.weights() - self.target.shared_block * 2 // 3

    @cached_property
    def registers(self) -> Term:
        """Of a thread: tiles that are alive at once, spread over the threads, and what a kernel holds beside them.

        The schedule of statements says what is alive. Two groups of four warps repeat the work of a chunk of 64 rows
        or more in chained products. Fitted to ptxas on sm_90 over the examples' kernels: see benchmarks/tuner.py."""
        more = product(self.names[f"B{d}"] for d in sorted(self.kernel.ranks))
        rows, unknown = more * self.names["C"], more * self.unknown  # of all tokens
        values = self._values(self.names["C"], rows, unknown)
        if values.op == "const":  # numbers round as terms do
            values = self._values(self.unknown, unknown, unknown)
        levels = sum(self.counts.nested.values())
        held = term((CELL if self.cells else HELD) + ACCESS * len(self.counts.memory))
        if any(n.op == "unit_inverse" for n in self.kernel.launch.body()):
            held = held + unknown * unknown * (INVERSE / 256)
        held = held + rows * (max(0, self.kernel.vectors - VECTORS) / 4)
        return values * TILES / (self.warps * self.target.warp) + rows * (levels * LEVEL) / self.warps + held

    def _values(self, C: Termlike, rows: Term, unknown: Term) -> Term:
        """The 32-bit numbers of a program's tiles; `rows`: of a chunk of C tokens; `unknown`: the same by name."""
        repeated = where(rows < 64, 1, where(self.warps > 4, 2, 1))
        sizes = {ROW: repeated * C} | {d: term(self.names[f"B{d}"]) for d in self.kernel.dims}
        few = rows.op == "const" and rows.value < 64
        sizes[WARPS] = (self.warps if few else where(unknown < 64, self.warps, 1)) * (LEFT / TILES)
        wide = 1.0 if self.shape.operand == 2 else 1.5
        scans = [(6 if n.op == "scan" else 2 * n.attr("n") * (n.attr("n") + 1)) * _numbers(n.dims, sizes)
                 for n in self.kernel.launch.body() if n.op in ("scan", "scan_block")]
        kept = [s.dims for s in self.kernel.launch.stores if s.kind == "partial"]  # sums and params: all the time
        if not self.cells:
            kept += [d.dims for d in self.kernel.launch.program.params if safe(d.name) in self.kernel.loads]
        return self._peak(sizes) * wide + maximum(0, *scans) + total(_numbers(d, sizes) for d in kept if len(d) > 1)

    def _peak(self, sizes: Mapping[str, Term]) -> Term:
        """The most 32-bit numbers that are alive at a statement; statements that others exceed are left out."""
        peaks, known = self.kernel.peaks, tuple((n, float(t.value)) for n, t in sizes.items() if t.op == "const")
        if () not in peaks:
            peaks[()] = _largest(_alive(self.kernel.alive), {})
        if known not in peaks:
            peaks[known] = _largest(peaks[()], dict(known))
        return maximum(0, *[total(product([*(sizes[n] for n in names), _counted(c)]) for names, c in p.items() if c)
                            for p in peaks[known]])

    @cached_property
    def shared(self) -> Term:
        """Bytes of a block: operands of products, the loads that run ahead, and weights that a cell holds."""
        operand = self.shape.operand
        pairs = [(m, n, k) for m, n, k, *_ in self.counts.products]
        if not pairs:
            return self.warps * 512
        if self.cells:  # the matrices of products are the weights
            widest = maximum(*[self.size(m) * self.size(k) * operand for m, _, k in pairs])
            widest = widest + (self.weights() if self.held else 0)
        else:
            widest = maximum(*[(self.size(m) * self.size(k) + self.size(k) * self.size(n)) * operand
                               for m, n, k in dict.fromkeys(pairs)])
        ahead = self.sum(elements for what, _, elements, often in self.counts.memory
                         if what == "load" and often[1] == ("chunks",) and len(elements[1]) + (elements[0] > 1) > 1)
        return widest + ahead * operand * maximum(self.stages - 1, 0)

    # ------------------------------------------------------------ bytes
    @cached_property
    def pointers(self) -> tuple[list[str], list[str]]:
        """Tensors that others read, or write, once; and what is kept for the backward."""
        launch, found = self.kernel.launch, dict.fromkeys(p for _, p, _, _ in self.counts.memory)
        rows = {f"{s.name}_ptr" for s in launch.stores if s.result == "save" and not launch.reverse}
        kept = [p for p in found if p.endswith(("_starts", "_kept")) or p in rows]
        return [p for p in found if p not in kept], kept

    def extent(self, pointer: str) -> Term:
        """Distinct bytes behind a pointer argument."""
        shape, program = self.shape, self.kernel.launch.program
        rows, sequences = shape.B * shape.T * shape.H, shape.B * shape.H
        name, _, kind = pointer.rpartition("_")
        if kind in ("kept", "first"):
            size = shape.of(program.decl(name).dims)
            return term(rows * size * shape.operand if kind == "kept" else sequences * size * 4)
        if kind in ("initial", "final"):
            carry = next(c for c in self.kernel.launch.carries if safe(c.name) == name or c.name == name)
            return term(sequences * shape.of(carry.dims) * 4)
        if kind in ("starts", "ends"):
            dims = program.decl(name).dims if any(d.name == name for d in program.decls) else \
                next(c.dims for c in self.kernel.launch.carries if c.name.endswith(name))
            kept = 4 if name in self.kernel.launch.exact else shape.operand
            return ceil_div(shape.T, self.names["SEGMENT"]) * (sequences * shape.of(dims) * kept)
        if name in self.kernel.given:
            return term(rows * self._row(self.kernel.given[name]) * self._value(name))
        for store in self.kernel.launch.stores:
            if store.name == name:
                count = rows if store.kind == "rows" else self.groups() * self.pieces() * shape.H
                parts = self.cuts([d for d in self.kernel.launch.summed if d not in store.dims])
                width = term(4)
                if store.kind == "rows":  # turn by turn the sum so far is read, and written again
                    again = self.adds(store.dims)
                    width = where(again > 1, 8, where(parts > 1, 4, self._value(name)))
                return parts * width * (count * self._row(store.dims))
        decl = self._decl(name)
        return term(0) if decl is None or self._seen(decl, name) else term(
            (rows if decl.role != "param" else shape.H) * shape.of(decl.dims) * self._value(name))

    def _row(self, dims: tuple[str, ...]) -> Term:
        """Numbers of a row of a tensor, which may be of pairs of rows."""
        return product([self.names["C"]] * (COL in dims)) * self.shape.of(tuple(d for d in dims if d != COL))

    def _decl(self, name: str) -> Decl | None:
        """What a tensor, or its gradient, is of."""
        return next((d for d in self.kernel.launch.program.decls if name in (safe(d.name), "d" + d.name)), None)

    def _seen(self, decl: Decl, name: str) -> bool:
        """Are these the rows of an input that is loaded under another name too, some tokens ago?"""
        if decl.ago is None or name != safe(decl.name):
            return False
        return next(n for n in self.kernel.loads if self._input(n) == decl.ago[0]) != name

    def _input(self, name: str) -> str:
        """The input whose rows a tensor has."""
        decl = self._decl(name)
        return decl.ago[0] if decl is not None and decl.ago else name

    def _value(self, name: str) -> int:
        """Bytes of a value of a tensor, or of its gradient: what parts hand to each other is in fp32."""
        decl = self._decl(name)
        exact = decl.exact if decl is not None else name in self.kernel.launch.in_fp32
        return 4 if exact else self.shape.operand

    def bytes(self) -> Term:
        """Distinct bytes loaded and stored by the launch."""
        return total(self.extent(p) for _, p in dict.fromkeys((what, p) for what, p, _, _ in self.counts.memory))

    def issued(self) -> Term:
        """Bytes that all programs ask the L2 for; a number a row takes a sector of 32."""
        out = list[Size]()
        for _, pointer, elements, often in self.counts.memory:
            numbers = not any(n.startswith("B") for n in elements[1]) and not (self.cells and elements[0] > 1)
            width = (32 if self.shape.H * self.shape.operand >= 32 else self.shape.operand) if numbers else \
                4 if pointer.endswith(("_initial", "_final")) else self._value(pointer.removesuffix("_ptr"))
            out.append(times(elements, often, (width, ())))
        return self.sum(out) * self.work()

    def merges(self) -> tuple[Term, Term]:
        """Bytes and launches of what adds up gradients behind the launch: partial sums, and those of rows that later
        rows read."""
        moved, launches = [term(0)], [term(0)]
        inputs = {d.name for d in self.kernel.launch.program.ins}  # a part may have one some tokens ago, and not it
        later = Counter(d.ago[0] for s in self.kernel.launch.stored
                        if (d := self._decl(s.name)) is not None and d.ago and d.ago[0] in inputs)
        read = {x: (count + 2, count) for x, count in later.items()}  # tensors, and how many are added to what is there
        read |= {x: (2 + (taps.own is None), len(taps.entries)) for x, taps in self.kernel.taps.items()}
        for x, (tensors, count) in read.items():
            values = self.shape.B * self.shape.T * self.shape.H * self.shape.of(self.kernel.launch.program.decl(x).dims)
            moved.append(term(tensors * values * self.shape.operand))
            launches.append(term(-(-count // 3)))
        for store in self.kernel.launch.stored:
            over = [d for d in self.kernel.launch.summed if d in self.kernel.dims and d not in store.dims]
            if over and store.kind == "rows":
                parts = self.cuts(over)
                values = self.shape.B * self.shape.T * self.shape.H * self.shape.of(store.dims)
                rounded = where(self.adds(store.dims) > 1, 1, 0)  # a single sum, in fp32
                moved.append(where(parts > 1, parts * (4 * values) + values * (8 + self.shape.operand),
                                   rounded * (values * (4 + self.shape.operand))))
                launches.append(where(parts > 1, 2, rounded))
        return total(moved), total(launches)

    # ------------------------------------------------------------ time
    def flops(self) -> Term:
        """Of all products, padding included."""
        return self.sum(times(m, n, k, t, (2, ())) for m, n, k, t, _ in self.counts.products) * self.work()

    def _products(self) -> Term:
        """Seconds of products at the peak of their operands."""
        target, peaks = self.target, self.target.peaks
        rates = {"half": peaks["bf16"], "tf32": peaks["tf32"], "tf32x3": peaks["tf32"] / 3, "ieee": peaks["fp32"]}
        alike: dict[tuple[Size, str], list[Size]] = defaultdict(list)
        for m, n, k, t, how in self.counts.products:
            alike[m, how].append(times(m, n, k, t))
        out = []
        for (m, how), sizes in alike.items():
            slow = where(self.size(m) < target.full_rows, 2e-12 / COEFFICIENTS["narrow"], 2e-12)
            out.append(self.sum(sizes) * slow / rates[how])
        return total(out) * self.work()

    @cached_property
    def cycles(self) -> Term:
        """Of a program for a block, where it waits for every product and load."""
        c, products = COEFFICIENTS, self.sum(often for *_, often, _ in self.counts.products)
        loads = self.sum(often for what, _, _, often in self.counts.memory if what == "load")
        waiting = loads * where(self.stages > 1, c["load"] / 2, c["load"])
        return c["cycles"] + c["product"] * products + waiting

    def pressed(self, registers: Any, nearly: Any) -> Any:
        """Times the time: the rank, with these registers, of which so many are among the last NEARLY or beyond."""
        return 1 + registers * (COEFFICIENTS["pressure"] / self.target.registers_thread) + nearly * COEFFICIENTS["risk"]

    def occupancy(self, registers: Termlike, shared: Termlike) -> Term:
        """Programs that an SM holds at once."""
        t = self.target
        return maximum(1, minimum(t.blocks, t.warps // self.warps, t.registers_sm // (registers * t.warp * self.warps),
                                  t.shared_sm // (shared + 1024)))

    @cached_property
    def estimated(self) -> Costs:
        """All terms, before a compile."""
        return self.costs(self.registers, self.shared)

    def costs(self, registers: Termlike, shared: Termlike) -> Costs:
        """All terms, with registers and shared memory, a compile's own where they are known."""
        t, c = self.target, COEFFICIENTS
        programs, clock = self.programs(), t.clock * 1e6
        resident = self.occupancy(registers, shared)
        work = {kind: self.poly(p) * self.work() for kind, p in self.counts.poly.items()}
        busy = {"products": self._products(),
                "special": work.get("special", term(0)) / (t.sms * t.special * clock),
                "elementwise": work.get("alu", term(0)) / (t.peaks["fp32"] / 2 * 1e12)}
        balance = programs / (t.sms * ceil_div(programs, t.sms) * 1.0)
        moved, merging = self.merges()
        distinct, issued = self.bytes(), self.issued()
        bandwidth = t.bandwidth * 1e9
        parts = {k: v / balance for k, v in busy.items()}
        parts |= {"bytes": distinct / bandwidth, "L2": issued / (bandwidth * c["l2"]),
                  "SM bandwidth": issued / (minimum(programs, t.sms) * (bandwidth / t.sms * c["an_sm"]))}
        waves = ceil_div(programs, resident * t.sms)
        parts["latency"] = waves * self.cycles * self.turns / clock
        after = moved / bandwidth + merging * c["start"]
        longest = maximum(*parts.values())
        time = longest * (1 - c["rest"]) + total(parts.values()) * c["rest"] + after + c["start"]
        rank = time * self.pressed(self.registers, maximum(0, self.registers - (t.registers_thread - NEARLY)))
        return Costs(time, rank, parts, distinct + moved, self.flops(), programs, resident)
