"""The torch backend's run of a chunk program: segments in order, under one autograd function.

The forward keeps, for the backward, its inputs, the state that every chunk received, outs that are scans, and what
`keep.worth_keeping` found cheaper to keep than to form again; without a gradient it keeps nothing.
Temporaries live in a workspace of a fixed size, so time and memory are linear in T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixc.codegen.torch_program import Segment, safe
from mixc.ir.evaluate import heads
from mixc.ir.node import ROW, Node
from mixc.ir.program import Decl
from mixc.runtime import memory
from mixc.runtime.call import Call
from mixc.runtime.compiled import Compiled, compiled
from mixc.runtime.memory import Workspace
from mixc.runtime.recorded import all_finite, gradients, recorded
from mixc.runtime.segments import Band, Block, Group
from mixc.runtime.shapes import shapes

Tensor = torch.Tensor
Put = Callable[[str, str, tuple[str, ...], Tensor, Block], None]  # takes a result (role, name, axes, value, block)


def run(call: Call, C: int | None = None, fused: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outs [B, T, H, ...] and final states [N, H, ...] by name.  C: the chunk length (default: by rule).
    `fused`: what scans runs as bodies that `torch.compile` made."""
    code = compiled(call.program)
    return recorded(call, lambda needs: _Run(code, call, C, needs, fused))


class _Run:
    """One call."""

    def __init__(self, code: Compiled, call: Call, C: int | None, needs: bool, fused: bool = False):
        self.call, self.program, self.needs = call, call.program, needs
        self.finite = call.device.type == "cpu" and all_finite(call)
        self.shapes = shapes(code, call, C, needs, self.finite, fused)
        self.layout, self.handed = self.shapes.layout, self.shapes.handed

    # ------------------------------------------------------------ what both directions give a segment
    def _heads(self, s: Segment, params: list[Tensor]) -> dict[str, Tensor]:
        """What is formed from params, once per call, repeated for the largest segment."""
        if not s.heads:
            return {}
        H, blocks = self.call.H, [b for band in self.layout.bands for g in band.groups for b in g.blocks]
        given = {safe(d.name): heads(p.to(self.call.dtype), H, 0)
                 for d, p in zip(self.program.params, params, strict=True)}
        formed = s.per_head(M=H, **given, **self.shapes.numbers(s), **self.shapes.common)
        wide = max((g.whole.N for band in self.layout.bands for g in band.groups), default=0)
        most = max((b.N for b in blocks), default=0)
        return {name: v.repeat(wide if v.ndim <= 2 else most, *[1] * (v.ndim - 1))
                for name, v in zip(s.heads, formed, strict=True)}

    def _for(self, s: Segment, block: Block, of_heads: dict[str, Tensor]) -> dict[str, Any]:
        """What M triples are given whatever their tokens are."""
        return {**self.shapes.fixed(s, block), **{name: v[:block.M] for name, v in of_heads.items()}}

    def _small(self, s: Segment, block: Block, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of one number a token, for a whole group: [M, C]."""
        found = {}
        for name, load in self.shapes.small(s):
            found[name] = torch.empty(block.M, self.shapes.C, dtype=self.call.dtype, device=self.call.device)
            load(block, rows, found[name])
        return found

    def states(self, rows: int, d: Decl) -> Tensor:
        return memory.empty([rows, *[self.call.sizes[n] for n in d.dims]], self.call.dtype, self.call.device)

    def _group(self, s: Segment, group: Group, flows: list[Any], rows: dict[str, Tensor], of_heads: dict[str, Tensor],
               work: Workspace, put: Put, saved: dict[str, Tensor], places: dict[str, Tensor]) -> None:
        """All segments of a group, in the order of the program's loop."""
        whole, borrows = self._for(s, group.whole, of_heads), self.shapes.borrows(group)
        loads = self.shapes.loads(s)
        small = self._small(s, group.whole, rows)
        early = dict(zip(s.early, s.before(**small, **whole), strict=True)) if s.early else {}
        a_row = {**small, **early}
        exported: list[tuple[Tensor, ...]] = []
        at, step = (group.whole.M, -1) if self.reverse(s) else (0, 1)
        for i in range(len(group.blocks))[::step]:
            block = group.blocks[i]
            at -= block.M if step < 0 else 0
            given = self._for(s, block, of_heads) | work.frame(self.shapes.frame(s, block))
            given["finish"] = [None] * len(block.counts)
            given |= {name: v[at:at + block.M] for name, v in a_row.items()}
            for name, load in loads:
                if borrows:
                    given[name] = load.borrowed(block, rows)
                else:
                    load(block, rows, given[name])
            for flow, name in zip(flows, s.carried, strict=True):
                finish = [None] * len(block.counts) if s.carries else given["finish"]
                given |= flow.places(name, block, finish, s.carries)
            given |= {arg: block.view(places[name]) for arg, (_, name) in s.direct.items()}
            given |= {name: x[at:at + block.M] for name, x in saved.items()}
            found = s.run(**given)
            for (role, name, axes), y in zip(s.results, found, strict=False):
                if (role, name) not in s.direct.values():
                    put(role, name, axes, y, block)
            exported.append(found[len(s.results):])
            for flow in flows:
                flow.advance(block)
            at += block.M if step > 0 else 0
        if s.late:
            sums = {name: torch.cat(xs[::step]) if len(xs) > 1 else xs[0]
                    for name, *xs in zip(s.exported, *exported, strict=True)}
            found = s.after(**a_row, **sums, **whole)
            for (role, name, axes), y in zip(s.late, found, strict=True):
                put(role, name, axes, y, group.whole)

    @staticmethod
    def reverse(s: Segment) -> bool:
        return s.program.reverse

    # ------------------------------------------------------------ forward
    def forward(self, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        call, program = self.call, self.program
        n_in, n_par = len(program.ins), len(program.params)
        ins = {d.name: self.layout.gather(x) for d, x in zip(program.ins, tensors[:n_in], strict=True)}
        params, starts = tensors[n_in:n_in + n_par], tensors[n_in + n_par:]
        outs = {d.name: self._out(d) for d in program.outs}
        finals = [self.layout.by_rank(x).clone() for x in starts]
        work, of_heads = Workspace.mine(call.dtype, call.device), dict[int, dict[str, Tensor]]()
        kept: list[Tensor] = []

        def put(role: str, name: str, axes: tuple[str, ...], y: Tensor, block: Block) -> None:
            block.store(self._whole(y, axes, program.decl(name), block.M), outs[name])

        for band in self.layout.bands:
            flows = [_Flow(self, d, final[band.low:band.high].flatten(0, 1), band)
                     for d, final in zip(program.states, finals, strict=True)]
            for group in band.groups:
                s = self.shapes.forward(group)
                if id(s) not in of_heads:
                    of_heads[id(s)] = self._heads(s, params)
                saved = {name: self._like(group.whole.M, node) for name, node in s.saved.items()}
                self._group(s, group, flows, ins, of_heads[id(s)], work, put, saved, outs)
                kept += saved.values()
            kept += [f.buffer for f in flows if self.needs]
        finals = [self.layout.by_call(x) for x in finals]
        return [self.layout.scatter(o) for o in outs.values()], finals, kept

    def _like(self, M: int, node: Node) -> Tensor:
        return memory.empty([M, *self.shapes.like(node)], self.call.dtype, self.call.device)

    def _out(self, d: Decl) -> Tensor:
        rows, call = self.call.rows, self.call
        out = memory.empty([rows.B, rows.T, call.H, *[call.sizes[n] for n in d.dims]], call.out_dtypes[d.name],
                           call.device)
        return out if rows.dense else out.zero_()

    def _whole(self, y: Tensor, axes: tuple[str, ...], d: Decl, M: int, rows: bool = True) -> Tensor:
        """A result [M, axes...] with all axes of its declaration."""
        want = ((ROW,) if rows else ()) + d.dims
        if axes != want:
            have = iter(y.shape[1:])
            y = y.reshape(y.shape[0], *[next(have) if n in axes else 1 for n in want])
        whole = (M, *[self.shapes.sizes[n] for n in want])
        return y if y.shape == whole else y.expand(whole)

    # ------------------------------------------------------------ backward
    def backward(self, tensors: list[Tensor], kept: list[Tensor], cotangents: list[Tensor],
                 needs: tuple[bool, ...]) -> list[Tensor | None]:
        call, program, layout = self.call, self.program, self.layout
        n_in, n_par, n_out = len(program.ins), len(program.params), len(program.outs)
        rows = {d.name: layout.gather(x) for d, x in zip(program.ins, tensors[:n_in], strict=True)}
        rows |= {f"d{d.name}": layout.gather(c) for d, c in zip(program.outs, cotangents[:n_out], strict=True)}
        params = tensors[n_in:n_in + n_par]
        wanted = frozenset(d.name for d, need in zip((*program.ins, *program.params), needs, strict=False) if need)
        grads = {d.name: memory.empty(x.shape, x.dtype, x.device)
                 for d, x in zip(program.ins, tensors[:n_in], strict=True) if d.name in wanted}
        if not call.rows.dense:
            for grad in grads.values():
                grad.zero_()
        sums: dict[str, Tensor] = {}
        final = [layout.by_rank(c).contiguous() for c in cotangents[n_out:]]
        work, kept = Workspace.mine(call.dtype, call.device), list(kept)
        of_heads: dict[int, dict[str, Tensor]] = {}
        rows |= {name: layout.gather(kept.pop()) for name in reversed(self.handed)}

        def put(role: str, name: str, axes: tuple[str, ...], y: Tensor, block: Block) -> None:
            y = self._whole(y, axes, program.decl(name), block.M, rows=role == "grad")
            if role == "grad":
                block.store(y, grads[name])
            else:
                part = y.unflatten(0, (block.N, call.H)).sum(0)
                sums[name] = sums[name].add_(part) if name in sums else part

        for band in reversed(layout.bands):
            starts = [kept.pop() for _ in program.states][::-1]
            flows = [_BackFlow(self, d, dF[band.low:band.high].flatten(0, 1), band, s0)
                     for d, dF, s0 in zip(program.states, final, starts, strict=True)]
            for group in reversed(band.groups):
                s = self.shapes.backward(group, wanted)
                if id(s) not in of_heads:
                    of_heads[id(s)] = self._heads(s, params)
                saved = {name: kept.pop() for name in reversed(s.saved)}
                self._group(s, group, flows, rows, of_heads[id(s)], work, put, saved, grads)
            for flow in flows:
                flow.finish()
        whole = {name: layout.scatter(grad) for name, grad in grads.items()}
        return gradients(self, tensors, needs, whole, sums, [layout.by_call(x) for x in final])


# ---------------------------------------------------------------- states
class _Flow:
    """One state through a band: a buffer in which every chunk finds what it receives, and leaves what the
    next one does; `final` [n * H, ...] gets what each sequence ends with."""

    def __init__(self, run: _Run, d: Decl, final: Tensor, band: Band):
        self.H, self.keep, self.final = run.call.H, run.needs, final
        sizes = [b.M for b in band.blocks]
        most = [max(b.steps) for b in band.blocks]  # what a chunk leaves is as long as what it received
        rows = sum(sizes) + max(most, default=0) if self.keep else max(map(int.__add__, sizes, most), default=0)
        self.buffer, self.base = run.states(rows, d), 0
        first = band.running * self.H
        self.buffer[:first] = final[:first]

    def places(self, name: str, block: Block, finish: list[Callable[[], None] | None], whole: bool) -> dict[str, Any]:
        """`whole`: as one tensor, where chunks are uniform."""
        at, to, offset = [], [], self.base
        if block.uniform:
            return self._uniform(name, block, finish, whole)
        counts = [*block.counts[1:], block.after]
        for j, (m, after) in enumerate(zip(block.steps, counts, strict=True)):
            at.append(self.buffer[offset:offset + m])
            to.append(self.buffer[offset + m:offset + 2 * m])
            offset += m
            if after * self.H < m:
                finish[j] = _then(finish[j], self.final[after * self.H:m], to[j][after * self.H:])
        return {f"{name}_at": at, f"{name}_to": to, name: self.buffer[self.base:offset],
                f"{name}_done": finish}

    def _uniform(self, name: str, block: Block, finish: list[Callable[[], None] | None], whole: bool) -> dict[str, Any]:
        """The same where every chunk has as many sequences."""
        m, M, base = block.steps[0], block.M, self.base
        now, then = self.buffer[base:base + M], self.buffer[base + m:base + m + M]
        if not block.after:
            finish[-1] = _then(finish[-1], self.final[:m], then[-m:])
        at, to = (now, then) if whole else (now.split(m), then.split(m))
        return {f"{name}_at": at, f"{name}_to": to, name: now, f"{name}_done": finish}

    def advance(self, block: Block) -> None:
        if self.keep:
            self.base += block.M
        elif block.after:
            n = block.after * self.H
            self.buffer[:n] = self.buffer[block.M:block.M + n].clone()


def _then(before: Callable[[], None] | None, to: Tensor, value: Tensor) -> Callable[[], None]:
    def finish() -> None:
        if before is not None:
            before()
        to.copy_(value)
    return finish


class _BackFlow:
    """The cotangent of one state through a band, from its end; `final` [n * H, ...] holds that of the final
    states, and in the end that of the initial ones."""

    def __init__(self, run: _Run, d: Decl, final: Tensor, band: Band, starts: Tensor):
        self.H, self.final, self.starts, self.base = run.call.H, final, starts, sum(b.M for b in band.blocks)
        self.first = band.running * self.H
        # first what goes to the block before, then what each chunk receives
        both = run.states(self.first + max((b.M for b in band.blocks), default=0), d)
        self.both, self.carry, self.buffer = both, both[:self.first], both[self.first:]

    def places(self, name: str, block: Block, finish: list[Any], whole: bool) -> dict[str, Any]:
        self.base -= block.M
        after, sizes, slots = block.after * self.H, block.steps[::-1], self.buffer[:block.M].split(block.steps)[::-1]
        if slots:
            slots[0][:after] = self.carry[:after]
        for slot, m in zip(slots, sizes, strict=True):
            if after < m:  # sequences that end here
                slot[after:] = self.final[after:m]
                after = m
        if whole and block.uniform and block.steps[0] == self.first:
            return {f"d{name}_at": self.buffer[:block.M], f"d{name}_to": self.both[:block.M],
                    f"d{name}": self.buffer[:block.M], name: self.starts[self.base:self.base + block.M],
                    f"d{name}_done": finish}
        to = [x if n == m else x[:m] for x, n, m in zip(slots[1:], sizes[1:], sizes, strict=False)]
        to += [self.carry[:m] for m in sizes[-1:]]
        return {f"d{name}_at": slots, f"d{name}_to": to, f"d{name}": self.buffer[:block.M],
                name: self.starts[self.base:self.base + block.M], f"d{name}_done": finish}

    def advance(self, block: Block) -> None:
        pass

    def finish(self) -> None:
        self.final[:self.first] = self.carry
