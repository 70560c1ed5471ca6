"""The torch backend's run of a chunk program: segments in order, under one autograd function.

The forward keeps, for the backward, its inputs, the state that every chunk received, outs that are scans, and what
`keep.worth_keeping` found cheaper to keep than to form again; without a gradient it keeps nothing.
Temporaries live in a workspace of a fixed size, so time and memory are linear in T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixc.codegen.torch_segment import Segment
from mixc.codegen.torch_values import safe
from mixc.codegen.torch_writer import in_order
from mixc.ir.evaluate import heads
from mixc.ir.program import Decl
from mixc.runtime import memory
from mixc.runtime.call import Call
from mixc.runtime.compiled import Compiled, compiled
from mixc.runtime.flows import BackFlow, Even, Flow
from mixc.runtime.memory import Workspace
from mixc.runtime.places import Steps
from mixc.runtime.recorded import all_finite, gradients, recorded
from mixc.runtime.segments import Band, Block
from mixc.runtime.shapes import shapes

Tensor = torch.Tensor
Put = Callable[[str, str, Tensor, Block], None]  # takes a result (role, name, value, block)


def run(call: Call, C: int | None = None, fused: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outs [B, T, H, ...] and final states [N, H, ...] by name.  C: the chunk length (default: by rule).
    `fused`: what scans runs as bodies that `torch.compile` made."""
    finite = all_finite(call) if call.device.type == "cpu" else None
    code = compiled(call.program, finite is False)
    return recorded(call, lambda needs: _Run(code, call, C, needs, bool(finite), fused), bare=True)


class _Run:
    """One call."""

    def __init__(self, code: Compiled, call: Call, C: int | None, needs: bool, finite: bool, fused: bool = False):
        self.call, self.program, self.needs, self.finite = call, call.program, needs, finite
        self.shapes = shapes(code, call, C, needs, self.finite, fused)
        self.layout, self.handed = self.shapes.layout, self.shapes.handed

    # ------------------------------------------------------------ what both directions give a segment
    def _heads(self, s: Segment, params: list[Tensor]) -> dict[str, Tensor]:
        """What is formed from params, once per call, repeated for the largest segment."""
        if not s.heads:
            return {}
        H, (wide, most) = self.call.H, self.shapes.most
        given = {safe(d.name): heads(p.to(self.call.dtype), H, 0)
                 for d, p in zip(self.program.params, params, strict=True)}
        formed = s.per_head(M=H, **given, **self.shapes.numbers(s), **self.shapes.common)
        return {name: v.repeat(wide if v.ndim <= 2 else most, *[1] * (v.ndim - 1))
                for name, v in zip(s.heads, formed, strict=True)}

    def _states(self, d: Decl) -> Callable[[int], Tensor]:
        """Rows of a state: with dims in memory as bodies that run chunk by chunk read them, or as they are declared."""
        call, dims = self.call, in_order(d.dims, self.shapes.order) if self.shapes.chained else d.dims
        sizes, axes = [call.sizes[n] for n in dims], [1 + dims.index(n) for n in d.dims]

        def rows(count: int) -> Tensor:
            made = memory.empty((count, *sizes), call.dtype, call.device)
            return made if dims == d.dims else made.permute(0, *axes)
        return rows

    def _group(self, steps: Steps, band: Band, flows: list[Any], rows: dict[str, Tensor], of_heads: dict[str, Tensor],
               work: Workspace, put: Put, saved: list[Tensor], places: dict[str, Tensor]) -> None:
        """All segments of a group, in the order of the program's loop."""
        s, group, lone = steps.s, steps.group, len(steps.parts) == 1
        ready = steps.whole.ready(work)
        ready.load(group.whole, rows)
        whole = {**ready.given, **{name: v[:group.whole.M] for name, v in of_heads.items()}}
        a_row = {x.arg: place for x, place, _ in ready.loads}
        if s.early:
            a_row |= zip(s.early, s.before(**whole), strict=True)
        a_row |= zip(s.saved, saved, strict=True)
        exported: list[tuple[Tensor, ...]] = []
        at, step = (group.whole.M, -1) if s.program.reverse else (0, 1)
        for part, block in list(zip(steps.parts, group.blocks, strict=True))[::step]:
            M = block.M
            at -= M if step < 0 else 0
            ready = part.ready(work)
            ready.load(block, rows)
            given = {**ready.given, **(a_row if lone else {name: v[at:at + M] for name, v in a_row.items()})}
            for name, v in of_heads.items():
                given[name] = v[:M]
            if part.borrows:
                for load in part.loads:
                    given[load.arg] = block.view(rows[load.name])
            if not band.even:
                given["finish"] = [None] * len(block.counts)
            for flow, name in zip(flows, s.carried, strict=True):
                flow.places(given, name, block, s.carries)
            for arg, (_, name) in s.direct.items():
                given[arg] = block.view(places[name])
            found = s.run(**given)
            for i, (role, name, take, row) in zip(steps.inside, part.results, strict=True):
                put(role, name, part.whole(found[i], take, row), block)
            if s.exported:
                exported.append(found[len(s.results):])
            for flow in flows:
                flow.advance(block)
            at += M if step > 0 else 0
        if s.late:
            sums = {name: torch.cat(xs[::step]) if len(xs) > 1 else xs[0]
                    for name, *xs in zip(s.exported, *exported, strict=True)}
            found = s.after(**{**whole, **a_row, **sums})
            for y, (role, name, take, row) in zip(found, steps.whole.results, strict=True):
                put(role, name, steps.whole.whole(y, take, row), group.whole)

    # ------------------------------------------------------------ forward
    def forward(self, tensors: list[Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Initial states that are 0 may be None; final states only where they are asked for."""
        call, program, layout, H = self.call, self.program, self.layout, self.call.H
        n_in, n_par = len(program.ins), len(program.params)
        ins = {d.name: layout.gather(x) for d, x in zip(program.ins, tensors, strict=False)}
        params = tensors[n_in:n_in + n_par]
        starts = [x if x is None else layout.by_rank(x) for x in tensors[n_in + n_par:]]
        outs = {d.name: self._out(d) for d in program.outs}
        finals = [self._begun(d, x, call.want_state) for d, x in zip(program.states, starts, strict=True)]
        work, of_heads, kept = Workspace.mine(call.dtype, call.device), dict[int, dict[str, Tensor]](), list[Tensor]()

        def put(role: str, name: str, y: Tensor, block: Block) -> None:
            block.store(y, outs[name])

        for band, groups in zip(layout.bands, self.shapes.steps(None), strict=True):
            low, high = band.low, band.high
            flows: list[Any] = [
                Even(self._states(d), H, band, False, self.needs, x if x is None else x[low:high]) if band.even
                else Flow(self._states(d), H, band, self.needs, final[low:high].flatten(0, 1))  # type: ignore[index]
                for d, x, final in zip(program.states, starts, finals, strict=True)]
            for steps in groups:
                if id(steps.s) not in of_heads:
                    of_heads[id(steps.s)] = self._heads(steps.s, params)
                saved = [memory.empty(shape, call.dtype, call.device) for shape in steps.saved]
                self._group(steps, band, flows, ins, of_heads[id(steps.s)], work, put, saved, outs)
                kept += saved
            for flow, final in zip(flows, finals, strict=True):
                flow.end(None if final is None else final[low:high])
            kept += [f.buffer for f in flows if self.needs]
        found = [layout.by_call(x) for x in finals if x is not None] if call.want_state else []
        return [layout.scatter(o) for o in outs.values()], found, kept

    def _begun(self, d: Decl, x: Tensor | None, wanted: bool) -> Tensor | None:
        """[N, H, dims...] to be written: x, or 0.  None: nobody reads it."""
        if not wanted and all(band.even for band in self.layout.bands):
            return None
        if x is not None:
            return x.clone(memory_format=torch.contiguous_format)
        sizes = (self.call.rows.N, self.call.H, *self.shapes.dims[d.name])
        return torch.zeros(sizes, dtype=self.call.dtype, device=self.call.device)

    def _out(self, d: Decl) -> Tensor:
        rows, call = self.call.rows, self.call
        out = memory.empty((rows.B, rows.T, call.H, *self.shapes.dims[d.name]), call.out_dtypes[d.name], call.device)
        return out if rows.dense else out.zero_()

    # ------------------------------------------------------------ backward
    def backward(self, tensors: list[Any], kept: list[Tensor], cotangents: list[Tensor],
                 needs: tuple[bool, ...]) -> list[Tensor | None]:
        call, program, layout, H = self.call, self.program, self.layout, self.call.H
        n_in, n_par, n_out = len(program.ins), len(program.params), len(program.outs)
        rows = {d.name: layout.gather(x) for d, x in zip(program.ins, tensors, strict=False)}
        rows |= {f"d{d.name}": layout.gather(c) for d, c in zip(program.outs, cotangents, strict=False)}
        params = tensors[n_in:n_in + n_par]
        wanted = frozenset(d.name for d, need in zip((*program.ins, *program.params), needs, strict=False) if need)
        grads = {d.name: memory.empty(x.shape, x.dtype, x.device)
                 for d, x in zip(program.ins, tensors, strict=False) if d.name in wanted}
        if not call.rows.dense:
            for grad in grads.values():
                grad.zero_()
        sums: dict[str, Tensor] = {}
        ends = [layout.by_rank(c) for c in cotangents[n_out:]] if call.want_state else [None for _ in program.states]
        states = [self._begun(d, c, need)
                  for d, c, need in zip(program.states, ends, needs[n_in + n_par:], strict=True)]
        work, kept, of_heads = Workspace.mine(call.dtype, call.device), list(kept), dict[int, dict[str, Tensor]]()
        rows |= {name: layout.gather(kept.pop()) for name in reversed(self.handed)}

        def put(role: str, name: str, y: Tensor, block: Block) -> None:
            if role == "grad":
                block.store(y, grads[name])
            else:
                part = y.unflatten(0, (block.N, H)).sum(0)
                sums[name] = sums[name].add_(part) if name in sums else part

        for band, groups in zip(reversed(layout.bands), reversed(self.shapes.steps(wanted)), strict=True):
            low, high, received = band.low, band.high, [kept.pop() for _ in program.states][::-1]
            flows: list[Any] = [
                Even(self._states(d), H, band, True, False, end if end is None else end[low:high], S) if band.even
                else BackFlow(self._states(d), H, band, x[low:high].flatten(0, 1), S)  # type: ignore[index]
                for d, x, end, S in zip(program.states, states, ends, received, strict=True)]
            for steps in reversed(groups):
                if id(steps.s) not in of_heads:
                    of_heads[id(steps.s)] = self._heads(steps.s, params)
                saved = [kept.pop() for _ in steps.saved][::-1]
                self._group(steps, band, flows, rows, of_heads[id(steps.s)], work, put, saved, grads)
            for flow, x in zip(flows, states, strict=True):
                flow.end(None if x is None else x[low:high])
        whole = {name: layout.scatter(grad) for name, grad in grads.items()}
        return gradients(self, tensors, needs, whole, sums, [x if x is None else layout.by_call(x) for x in states])
