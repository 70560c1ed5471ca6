"""What calls of a chunk program share that have the same shapes: chunk length, layout, functions, places.

Forming these costs more than the program of a short call does.  Those of dense calls are kept, a few for each spec.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, cast

import torch

from mixc.codegen.torch_bodies import APART
from mixc.codegen.torch_fused import apart
from mixc.codegen.torch_scan_prelude import BLOCK
from mixc.codegen.torch_segment import Segment
from mixc.codegen.torch_values import safe
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, LEVEL, ROW
from mixc.runtime.call import Call
from mixc.runtime.compiled import Compiled
from mixc.runtime.places import Part, Steps, Wanted
from mixc.runtime.segments import Group, Layout

Tensor = torch.Tensor
SEGMENT_BYTES = 1 << 20  # of one temporary: some eight of them share the cache
BAND_BYTES = 1 << 22
SLAB = 1 << 16  # values of a row of all chunks of a scan: two threads share no less than 32,768
MATRIX_SLABS = 1 << 20  # values of all rows of a chunk of a scan of matrices: a few such temporaries share the cache
ROW_SLABS = 1 << 18  # of vectors likewise, of a segment of one chunk: there are more temporaries
CHAINED = 1 << 12  # values of a row from which on to run chunk by chunk costs less than to form them twice
MOST = 16  # shapes that a spec remembers


def chunk_length(longest: int) -> int:
    """64 rows: a product of that size runs at full speed, and half of what it forms is not masked away."""
    return 64 if longest > 32 else max(16, 1 << max(longest - 1, 0).bit_length())


def shapes(code: Compiled, call: Call, C: int | None, needs: bool, finite: bool, fused: bool) -> Shapes:
    """C: the chunk length (None: by rule).  needs: a backward may follow.  finite: no input is infinite.
    fused: what scans runs as bodies that `torch.compile` made."""
    rows = call.rows
    if not rows.dense or rows.order is not None:
        return Shapes(code, call, C, needs, finite, fused)
    key = (C, needs, finite, fused, *_key(call))
    found = code.shapes.get(key)
    if found is None:
        if len(code.shapes) >= MOST:
            code.shapes.clear()
        found = code.shapes[key] = Shapes(code, call, C, needs, finite, fused)
    return cast(Shapes, found)


def _key(call: Call) -> tuple[Any, ...]:
    """What a call's shapes are known by; kept with the calls that are alike."""
    known: tuple[Any, ...] | None = call.memo.get("shapes")
    if known is None:
        rows = call.rows
        known = call.memo["shapes"] = (
            _one_dtype(call), rows.B, rows.T, rows.reverse, call.H, call.dtype, call.device, *call.sizes.items(),
            *call.consts.items())
    return known


def _one_dtype(call: Call) -> bool:
    """Are rows what the program computes in?"""
    return all(x.dtype == call.dtype for x in call.ins.values()) and all(
        t == call.dtype for t in call.out_dtypes.values())


class Shapes:
    """Attributes:
        C: rows of a chunk.
        sizes: of every dim of the program; shape: the same by the names of emitted arguments.
        dims: the sizes of every out and state.
        chained: bodies for `torch.compile` run chunk by chunk.
        layout: where the tokens are.
        borrow: rows may be views of the call's tensors; handed: the outs that a backward reads.
    """

    def __init__(self, code: Compiled, call: Call, C: int | None, needs: bool, finite: bool, fused: bool):
        self.code = code = code.spreading if fused else code
        self.H, self.dtype, self.device, self.consts = call.H, call.dtype, call.device, call.consts
        self.needs, self.finite, self.fused = needs, finite, fused and (code.scans or code.single)
        self.chained = self.fused and code.matrix and self._slab(call) >= CHAINED
        self.borrow = code.scans and not self.chained and call.rows.dense and call.H == 1 and _one_dtype(call)
        self.handed = code.handed if self.borrow and needs else ()
        # what has a matrix a row lies with the longest dim inside
        self.order = tuple(sorted(call.sizes, key=lambda n: call.sizes[n])) if code.single or code.matrix else ()
        scan_rows = self._scan_rows(call) if code.scans or self.fused else 0
        if scan_rows and call.rows.dense and not self.fused:
            scan_rows = min(scan_rows, max(1, call.rows.T))
        self.C = C = C or scan_rows or self._rows(call)
        levels = max(1, (C - 1).bit_length())
        sizes = code.chunk.sized(call.sizes)
        self.sizes = {**sizes, ROW: C, COL: C, "_u": C, LEVEL: levels}
        self.dims = {d.name: tuple(call.sizes[n] for n in d.dims) for d in (*call.program.outs, *call.program.states)}
        self.shape = {"C": C, "levels": levels, **{safe(n): s for n, s in sizes.items()}}
        self.shape |= {apart(safe(n)): s + APART for n, s in sizes.items()}
        self.common = {**self.shape, "dtype": call.dtype, "device": call.device}
        self.layout = self._layout(call, scan_rows)
        self._steps: dict[Wanted, list[list[Steps]]] = {}
        self._numbers: dict[int, dict[str, Any]] = {}

    # ------------------------------------------------------------ rows
    def _rows(self, call: Call) -> int:
        """Rows a chunk has: of a short dense call all, so that none is dead."""
        rows = call.rows
        if rows.dense and self._rows_alone and rows.T >= 64:
            most = max(64, min(512, 1 << (ROW_SLABS // self._slab(call)).bit_length() >> 1))
            chunks = -(-rows.T // most)  # of about the same length, in blocks of rows
            return -(-rows.T // (chunks * BLOCK)) * BLOCK
        spans = rows.T if rows.dense else max((n for _, n in rows.sequences()), default=0)
        most = min(self._longest(call), chunk_length(spans))
        halves = rows.T > 1 and rows.T & (rows.T - 1) == 0
        return rows.T if rows.dense and 0 < rows.T <= most and (halves or not self.code.levelled) else most

    def _longest(self, call: Call) -> int:
        """Rows a chunk may have."""
        if not self.code.single:
            longest = min(self.code.longest, 32 if self._side(call) < 64 else 64)
            keys = [call.sizes[d] for d in self.code.solved_over]
            if not keys:
                return longest
            rows = 4 * min(keys)  # of a system; where they are few it counts how many systems a token is in
            each = rows // len(self.code.systems)
            return min(longest, 1 << (rows if each >= 16 else max(4, each)).bit_length() - 1)
        return min(self.code.longest, max(16, 1 << (MATRIX_SLABS // self._slab(call)).bit_length() >> 1))

    @property
    def _rows_alone(self) -> bool:
        """Is all that a chunk does scans of vectors, chunk after chunk?  Longer ones are fewer calls."""
        return self.code.single and not self.code.matrix and not self.code.paired

    def _side(self, call: Call) -> float:
        """K V / (K + V) of the largest state, twice: as many pairs of rows cost as much as the state they save."""
        def side(dims: tuple[str, ...]) -> float:
            K = max((call.sizes[n] for n in dims), default=1)
            V = math.prod(call.sizes[n] for n in dims) / K
            return 2 * K * V / (K + V)
        return max((side(d.dims) for d in call.program.states), default=64)

    def _slab(self, call: Call) -> int:
        """Values of a row of one chunk of every sequence."""
        widths = [math.prod(call.sizes[n] for n in d.dims) for d in call.program.states]
        return max(1, call.rows.N * call.H * max(widths, default=1))

    def _scan_rows(self, call: Call) -> int:
        """Rows a chunk of a scan has: half of them where there are many temporaries, for the sake of memory."""
        if self.fused:
            return 32 if self.chained else 16
        made = [self.code.forward(False, self.finite, self.needs, self.order, self.borrow)]
        if self.needs:
            every = frozenset(d.name for d in (*call.program.ins, *call.program.params))
            made.append(self.code.backward(False, self.finite, every, self.order, self.borrow))
        return 16 if max(len(s.scratch) for s in made) <= 4 else 8

    def _layout(self, call: Call, scan_rows: int) -> Layout:
        code, C = self.code, self.C
        kinds = [d.dims for d in (*call.program.ins, *call.program.outs)]
        rows = C if code.single or code.matrix else 1  # a scan forms the state of every row
        pairs = C * C if code.paired or code.scans else 0
        widest = max([pairs, *(C * math.prod(call.sizes[n] for n in dims) for dims in kinds),
                      *(rows * math.prod(call.sizes[n] for n in d.dims) for d in call.program.states)])
        triple = widest * call.dtype.itemsize
        segment = 1 if code.single else scan_rows * SLAB * call.dtype.itemsize if code.scans else SEGMENT_BYTES
        return Layout(call.rows, call.H, C, triple, call.device, segment, 1 if self.borrow else BAND_BYTES)

    # ------------------------------------------------------------ functions
    def function(self, group: Group, wanted: Wanted, borrows: bool) -> Segment:
        fused, partial = self._fused(group, wanted, borrows), group.whole.partial
        if fused is not None:
            return fused
        if wanted is None:
            return self.code.forward(partial, self.finite, self.needs, self.order, borrows)
        return self.code.backward(partial, self.finite, wanted, self.order, borrows)

    def _fused(self, group: Group, wanted: Wanted, borrows: bool) -> Segment | None:
        if not self.fused or group.whole.partial:
            return None
        return self.code.fused(self.finite, self.C, wanted, self.order, borrows, self.chained)

    def steps(self, wanted: Wanted) -> list[list[Steps]]:
        """Of every band its groups."""
        found = self._steps.get(wanted)
        if found is None:
            known: dict[object, Part] = {}
            found = self._steps[wanted] = [[Steps(self, g, wanted, known) for g in band.groups]
                                           for band in self.layout.bands]
        return found

    @cached_property
    def most(self) -> tuple[int, int]:
        """Sequences of the largest group, and of the largest block."""
        groups = [g for band in self.layout.bands for g in band.groups]
        return max((g.whole.N for g in groups), default=0), max((b.N for g in groups for b in g.blocks), default=0)

    # ------------------------------------------------------------ arguments
    def numbers(self, s: Segment) -> dict[str, Any]:
        """Values of consts and sizes: a number, or a tensor over dims."""
        if id(s) not in self._numbers:
            with torch.inference_mode(False), torch.no_grad():  # they are kept, for calls in any mode
                self._numbers[id(s)] = self._evaluated(s)
        return self._numbers[id(s)]

    def _evaluated(self, s: Segment) -> dict[str, Any]:
        env = Env(lambda n: torch.full((1,), self.consts[n.attr("name")], dtype=torch.float64), self.sizes, batch=1)
        values = evaluate(s.numbers.values(), env)
        return {name: v.to(self.device, v.dtype if node.kind == "bool" else self.dtype) if node.dims else v.item()
                for (name, node), v in zip(s.numbers.items(), values, strict=True)}
