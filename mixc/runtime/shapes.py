"""What calls of a chunk program share that have the same shapes: chunk length, layout, functions, arguments.

Forming these costs more than the program of a short call does.  Those of dense calls are kept, a few for each spec.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from mixc.codegen.torch_program import Segment, safe
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, LEVEL, ROW, Node
from mixc.runtime.call import Call
from mixc.runtime.compiled import Compiled
from mixc.runtime.memory import Frame
from mixc.runtime.segments import Block, Group, Layout

Tensor = torch.Tensor
SEGMENT_BYTES = 1 << 20  # of one temporary: some eight of them share the cache
BAND_BYTES = 1 << 22
SLAB = 1 << 16  # values of a row of all chunks of a scan: two threads share no less than 32,768
MATRIX_SLABS = 1 << 20  # values of all rows of a chunk of a scan of matrices: a few such temporaries share the cache
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
    key = (C, needs, finite, fused, _one_dtype(call), rows.B, rows.T, rows.reverse, call.H, call.dtype, call.device,
           *call.sizes.items(), *call.consts.items())
    found = code.shapes.get(key)
    if found is None:
        if len(code.shapes) >= MOST:
            code.shapes.clear()
        found = code.shapes[key] = Shapes(code, call, C, needs, finite, fused)
    return cast(Shapes, found)


def _one_dtype(call: Call) -> bool:
    """Are rows what the program computes in?"""
    return all(x.dtype == call.dtype for x in call.ins.values()) and all(
        t == call.dtype for t in call.out_dtypes.values())


class Load:
    """Rows of an input, or of an out's cotangent: 0 where no token is."""

    def __init__(self, node: Node, transposed: bool = False):
        self.cot, self.transposed = node.op == "cot", transposed
        self.name = ("d" if self.cot else "") + node.attr("name")

    def __call__(self, block: Block, rows: dict[str, Tensor], out: Tensor) -> None:
        out = out.mT if self.transposed else out
        block.load(rows[self.name], out)
        if self.cot and block.partial:
            out.mul_(block.live.view(block.M, block.C, *[1] * (out.ndim - 2)))  # type: ignore[attr-defined]

    def borrowed(self, block: Block, rows: dict[str, Tensor]) -> Tensor:
        x = block.view(rows[self.name])
        return x.mT if self.transposed else x


class Shapes:
    """Attributes:
        C: rows of a chunk.
        sizes: of every dim of the program; shape: the same by the names of emitted arguments.
        layout: where the tokens are.
        borrow: rows may be views of the call's tensors; handed: the outs that a backward reads.
    """

    def __init__(self, code: Compiled, call: Call, C: int | None, needs: bool, finite: bool, fused: bool):
        self.code = code = code.spreading if fused else code
        self.H, self.dtype, self.device, self.consts = call.H, call.dtype, call.device, call.consts
        self.needs, self.finite, self.fused = needs, finite, fused and (code.scans or code.single)
        self.borrow = code.scans and call.rows.dense and call.H == 1 and _one_dtype(call)
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
        self.shape = {"C": C, "levels": levels, **{safe(n): s for n, s in sizes.items()}}
        self.common = {**self.shape, "dtype": call.dtype, "device": call.device}
        self.layout = self._layout(call, scan_rows)
        self._fixed: dict[tuple[int, int], dict[str, Any]] = {}
        self._loads: dict[int, list[tuple[str, Load]]] = {}
        self._frames: dict[tuple[int, int], Frame] = {}
        self._numbers: dict[int, dict[str, Any]] = {}

    # ------------------------------------------------------------ rows
    def _rows(self, call: Call) -> int:
        """Rows a chunk has: of a short dense call all, so that none is dead."""
        rows = call.rows
        spans = rows.T if rows.dense else max((n for _, n in rows.sequences()), default=0)
        most = min(self._longest(call), chunk_length(spans))
        halves = rows.T > 1 and rows.T & (rows.T - 1) == 0
        return rows.T if rows.dense and 0 < rows.T <= most and (halves or not self.code.levelled) else most

    def _longest(self, call: Call) -> int:
        """Rows a chunk may have."""
        if not self.code.single:
            keys = [call.sizes[d] for d in self.code.solved_over]
            return min(self.code.longest, max(16, 1 << (4 * min(keys)).bit_length() - 1)) if keys else self.code.longest
        widths = [math.prod(call.sizes[n] for n in d.dims) for d in call.program.states]
        slab = max(1, call.rows.N * call.H * max(widths, default=1))
        return min(self.code.longest, max(16, 1 << (MATRIX_SLABS // slab).bit_length() >> 1))

    def _scan_rows(self, call: Call) -> int:
        """Rows a chunk of a scan has: half of them where there are many temporaries, for the sake of memory."""
        if self.fused:
            return 16
        made = [self.code.forward(False, self.finite, self.needs, self.order, self.borrow)]
        if self.needs:
            every = frozenset(d.name for d in (*call.program.ins, *call.program.params))
            made.append(self.code.backward(False, self.finite, every, self.order, self.borrow))
        return 16 if max(len(s.scratch) for s in made) <= 4 else 8

    def _layout(self, call: Call, scan_rows: int) -> Layout:
        code, C = self.code, self.C
        kinds = [d.dims for d in (*call.program.ins, *call.program.outs)]
        rows = C if code.single or code.matrix else 1  # a scan forms the state of every row
        widest = max([C * C, *(C * math.prod(call.sizes[n] for n in dims) for dims in kinds),
                      *(rows * math.prod(call.sizes[n] for n in d.dims) for d in call.program.states)])
        triple = widest * call.dtype.itemsize
        segment = 1 if code.single else scan_rows * SLAB * call.dtype.itemsize if code.scans else SEGMENT_BYTES
        return Layout(call.rows, call.H, C, triple, call.device, segment, 1 if self.borrow else BAND_BYTES)

    # ------------------------------------------------------------ functions
    def borrows(self, group: Group) -> bool:
        return self.borrow and group.whole.viewable

    def forward(self, group: Group) -> Segment:
        fused = self._fused(group, None)
        return fused or self.code.forward(group.whole.partial, self.finite, self.needs, self.order, self.borrows(group))

    def backward(self, group: Group, wanted: frozenset[str]) -> Segment:
        fused = self._fused(group, wanted)
        return fused or self.code.backward(group.whole.partial, self.finite, wanted, self.order, self.borrows(group))

    def _fused(self, group: Group, wanted: frozenset[str] | None) -> Segment | None:
        if not self.fused or group.whole.partial:
            return None
        return self.code.fused(self.finite, self.C, wanted, self.order, self.borrows(group))

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

    def fixed(self, s: Segment, block: Block) -> dict[str, Any]:
        """What a block gives its functions whatever the values of tensors are."""
        key = (id(s), id(block))
        if key not in self._fixed:
            live = {"live": block.live} if s.partial else {}  # type: ignore[attr-defined]
            self._fixed[key] = {"M": block.M, "steps": block.steps, **self.numbers(s), **live, **self.common}
        return self._fixed[key]

    def loads(self, s: Segment) -> list[tuple[str, Load]]:
        """How each argument with a row a token gets it."""
        if id(s) not in self._loads:
            self._loads[id(s)] = [(name, Load(n, s.loads[name] != n.dims)) for name, n in s.rows.items()]
        return self._loads[id(s)]

    @staticmethod
    def small(s: Segment) -> list[tuple[str, Load]]:
        """The same for those of one number a token."""
        return [(name, Load(n)) for name, n in s.small.items()]

    def frame(self, s: Segment, block: Block) -> Frame:
        """The buffers of a segment: rows that are copied, and scratch."""
        key = (id(s), block.M)
        if key not in self._frames:
            loads = {} if self.borrow and block.viewable else s.loads
            self._frames[key] = (block.M, (
                *((n, tuple(self.sizes[d] for d in axes)) for n, axes in loads.items()),
                *((n, tuple(self.shape[d] for d in shape)) for n, shape in s.scratch.items())))
        return self._frames[key]

    def like(self, node: Node) -> list[int]:
        return [self.sizes[d] for d in node.dims]
