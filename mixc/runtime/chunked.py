"""The torch backend's run of a chunk program: segments in order, under one autograd function.

The forward keeps, for the backward, its inputs, the state that every chunk received, outs that are scans, and what
`keep.worth_keeping` found cheaper to keep than to form again; without a gradient it keeps nothing.
Temporaries live in a workspace of a fixed size, so time and memory are linear in T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from mixc.codegen.torch_program import Segment, safe
from mixc.ir.evaluate import Env, evaluate, heads
from mixc.ir.node import COL, LEVEL, ROW, Node
from mixc.ir.program import Decl
from mixc.runtime import memory
from mixc.runtime.call import Call
from mixc.runtime.compiled import Compiled, compiled
from mixc.runtime.memory import Workspace
from mixc.runtime.recorded import all_finite, gradients, recorded
from mixc.runtime.segments import Band, Block, Group, Layout

Tensor = torch.Tensor
Put = Callable[[str, str, tuple[str, ...], Tensor, Block], None]  # takes a result (role, name, axes, value, block)
SEGMENT_BYTES = 1 << 20  # of one temporary: some eight of them share the cache
BAND_BYTES = 1 << 22
SLAB = 1 << 16  # values of a row of all chunks of a scan: two threads share no less than 32,768
MATRIX_SLABS = 1 << 20  # values of all rows of a chunk of a scan of matrices: a few such temporaries share the cache


def run(call: Call, C: int | None = None, fused: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outs [B, T, H, ...] and final states [N, H, ...] by name.  C: the chunk length (default: by rule).
    `fused`: what scans runs as bodies that `torch.compile` made."""
    code = compiled(call.program)
    return recorded(call, lambda needs: _Run(code, call, C, needs, fused))


def chunk_length(longest: int) -> int:
    """64 rows: a product of that size runs at full speed, and half of what it forms is not masked away."""
    return 64 if longest > 32 else max(16, 1 << max(longest - 1, 0).bit_length())


class _Run:
    """One call: where its tokens are, and the functions that run its segments."""

    def __init__(self, code: Compiled, call: Call, C: int | None, needs: bool, fused: bool = False):
        code = code.spreading if fused else code
        self.code, self.call, self.program, self.needs = code, call, call.program, needs
        spans = call.rows.T if call.rows.dense else max((n for _, n in call.rows.sequences()), default=0)
        self.borrow = code.scans and call.rows.dense and call.H == 1 and all(
            x.dtype == call.dtype for x in call.ins.values()) and all(t == call.dtype for t in call.out_dtypes.values())
        self.handed = code.handed if self.borrow and needs else ()
        self.finite = call.device.type == "cpu" and all_finite(call)
        self.fused = fused and (code.scans or code.single)
        # what has a matrix a row lies with the longest dim inside
        self.order = tuple(sorted(call.sizes, key=lambda n: call.sizes[n])) if code.single or code.matrix else ()
        scan_rows = self._scan_rows() if code.scans or self.fused else 0
        self.C = C or scan_rows or min(self._longest(), chunk_length(spans))
        levels = max(1, (self.C - 1).bit_length())
        sizes = code.chunk.sized(call.sizes)
        self.sizes = {**sizes, ROW: self.C, COL: self.C, "_u": self.C, LEVEL: levels}
        self.shape = {"C": self.C, "levels": levels, **{safe(n): s for n, s in sizes.items()}}
        kinds = [d.dims for d in (*self.program.ins, *self.program.outs)]
        rows = self.C if code.single or code.matrix else 1  # a scan forms the state of every row
        widest = max([self.C * self.C, *(self.C * math.prod(call.sizes[n] for n in dims) for dims in kinds),
                      *(rows * math.prod(call.sizes[n] for n in d.dims) for d in self.program.states)])
        triple = widest * call.dtype.itemsize
        segment = 1 if code.single else scan_rows * SLAB * call.dtype.itemsize if code.scans else SEGMENT_BYTES
        self.layout = Layout(call.rows, call.H, self.C, triple, call.device, segment,
                             1 if self.borrow else BAND_BYTES)
        self.common = {**self.shape, "dtype": call.dtype, "device": call.device}

    def _longest(self) -> int:
        """Rows a chunk may have."""
        if not self.code.single:
            return self.code.longest
        widths = [math.prod(self.call.sizes[n] for n in d.dims) for d in self.program.states]
        slab = max(1, self.call.rows.N * self.call.H * max(widths, default=1))
        return min(self.code.longest, max(16, 1 << (MATRIX_SLABS // slab).bit_length() >> 1))

    def _scan_rows(self) -> int:
        """Rows a chunk of a scan has: half of them where there are many temporaries, for the sake of memory."""
        if self.fused:
            return 16
        made = [self.code.forward(False, self.finite, self.needs, self.order, self.borrow)]
        if self.needs:
            every = frozenset(d.name for d in (*self.program.ins, *self.program.params))
            made.append(self.code.backward(False, self.finite, every, self.order, self.borrow))
        return 16 if max(len(s.scratch) for s in made) <= 4 else 8

    # ------------------------------------------------------------ what both directions give a segment
    def _constants(self, s: Segment, params: list[Tensor]) -> dict[str, Any]:
        """Values formed once per call, those of a head repeated for the largest segment."""
        call = self.call
        env = Env(lambda n: torch.full((1,), call.consts[n.attr("name")], dtype=torch.float64), self.sizes, batch=1)
        values = evaluate(s.numbers.values(), env)
        found: dict[str, Any] = {}
        for (name, node), v in zip(s.numbers.items(), values, strict=True):
            found[name] = v.to(call.device, v.dtype if node.kind == "bool" else call.dtype) if node.dims else v.item()
        if s.heads:
            given = {safe(d.name): heads(p.to(call.dtype), call.H, 0)
                     for d, p in zip(self.program.params, params, strict=True)}
            formed = s.per_head(M=call.H, **given, **found, **self.common)
            all_groups = [g for band in self.layout.bands for g in band.groups]
            wide = max((g.whole.N for g in all_groups), default=0)
            most = max((b.N for g in all_groups for b in g.blocks), default=0)
            found |= {name: v.repeat(wide if v.ndim <= 2 else most, *[1] * (v.ndim - 1))
                      for name, v in zip(s.heads, formed, strict=True)}
        return found

    def _for(self, s: Segment, block: Block, constants: dict[str, Any]) -> dict[str, Any]:
        """The constants of M triples."""
        given = {name: (v[:block.M] if name in s.heads else v) for name, v in constants.items()}
        if s.partial:
            given["live"] = block.live  # type: ignore[attr-defined]
        return {"M": block.M, **given, **self.common}

    def _arguments(self, s: Segment, block: Block, constants: dict[str, Any], work: Workspace) -> dict[str, Any]:
        loads = {} if self.borrow and block.viewable else s.loads
        frame = work.frame(block.M, {**{n: [self.sizes[d] for d in axes] for n, axes in loads.items()},
                                     **{n: [self.shape[d] for d in shape] for n, shape in s.scratch.items()}})
        return {"steps": block.steps, **frame, **self._for(s, block, constants), "finish": [None] * len(block.counts)}

    def _small(self, s: Segment, block: Block, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of one number a token, for a whole group: [M, C]."""
        found = {}
        for name, node in s.small.items():
            x = found[name] = torch.empty(block.M, self.C, dtype=self.call.dtype, device=self.call.device)
            self._load(block, rows, node, x)
        return found

    def _load(self, block: Block, rows: dict[str, Tensor], node: Node, out: Tensor) -> None:
        cot = node.op == "cot"
        block.load(rows[("d" if cot else "") + node.attr("name")], out)
        if cot and block.partial:
            out.mul_(block.live.view(block.M, self.C, *[1] * (out.ndim - 2)))  # type: ignore[attr-defined]

    def borrows(self, group: Group) -> bool:
        return self.borrow and group.whole.viewable

    def states(self, rows: int, d: Decl) -> Tensor:
        return memory.empty([rows, *[self.call.sizes[n] for n in d.dims]], self.call.dtype, self.call.device)

    def _group(self, s: Segment, group: Group, flows: list[Any], rows: dict[str, Tensor], constants: dict[str, Any],
               work: Workspace, put: Put, saved: dict[str, Tensor], places: dict[str, Tensor]) -> None:
        """All segments of a group, in the order of the program's loop."""
        whole = self._for(s, group.whole, constants)
        small = self._small(s, group.whole, rows)
        early = dict(zip(s.early, s.before(**small, **whole), strict=True)) if s.early else {}
        a_row = {**small, **early}
        exported: list[tuple[Tensor, ...]] = []
        at, step = (group.whole.M, -1) if self.reverse(s) else (0, 1)
        for i in range(len(group.blocks))[::step]:
            block = group.blocks[i]
            at -= block.M if step < 0 else 0
            given = self._arguments(s, block, constants, work)
            given |= {name: v[at:at + block.M] for name, v in a_row.items()}
            for name, node in s.rows.items():
                if self.borrows(group):
                    row = rows[("d" if node.op == "cot" else "") + node.attr("name")]
                    given[name] = block.view(row) if s.loads[name] == node.dims else block.view(row).mT
                    continue
                natural = s.loads[name] == node.dims
                self._load(block, rows, node, given[name] if natural else given[name].mT)
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
            sums = {name: torch.cat(xs[::step]) for name, *xs in zip(s.exported, *exported, strict=True)}
            found = s.after(**a_row, **sums, **whole)
            for (role, name, axes), y in zip(s.late, found, strict=True):
                put(role, name, axes, y, group.whole)

    @staticmethod
    def reverse(s: Segment) -> bool:
        return s.program.reverse

    def _fused(self, group: Group, wanted: frozenset[str] | None) -> Segment | None:
        if not self.fused or group.whole.partial:
            return None
        return self.code.fused(self.finite, self.C, wanted, self.order, self.borrows(group))

    # ------------------------------------------------------------ forward
    def forward(self, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        call, program = self.call, self.program
        n_in, n_par = len(program.ins), len(program.params)
        ins = {d.name: self.layout.gather(x) for d, x in zip(program.ins, tensors[:n_in], strict=True)}
        params, starts = tensors[n_in:n_in + n_par], tensors[n_in + n_par:]
        outs = {d.name: self._out(d) for d in program.outs}
        finals = [self.layout.by_rank(x).clone() for x in starts]
        work, constants = Workspace.mine(call.dtype, call.device), {}
        kept: list[Tensor] = []

        def put(role: str, name: str, axes: tuple[str, ...], y: Tensor, block: Block) -> None:
            block.store(self._whole(y, axes, program.decl(name), block.M), outs[name])

        for band in self.layout.bands:
            flows = [_Flow(self, d, final[band.low:band.high].flatten(0, 1), band)
                     for d, final in zip(program.states, finals, strict=True)]
            for group in band.groups:
                s = self._fused(group, None) or self.code.forward(
                    group.whole.partial, self.finite, self.needs, self.order, self.borrows(group))
                key = (s.partial, self.borrows(group))
                if key not in constants:
                    constants[key] = self._constants(s, params)
                saved = {name: self._like(group.whole.M, node) for name, node in s.saved.items()}
                self._group(s, group, flows, ins, constants[key], work, put, saved, outs)
                kept += saved.values()
            kept += [f.buffer for f in flows if self.needs]
        finals = [self.layout.by_call(x) for x in finals]
        return [self.layout.scatter(o) for o in outs.values()], finals, kept

    def _like(self, M: int, node: Node) -> Tensor:
        return memory.empty([M, *[self.sizes[d] for d in node.dims]], self.call.dtype, self.call.device)

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
        return y.expand(M, *[self.sizes[n] for n in want])

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
        work, constants, kept = Workspace.mine(call.dtype, call.device), {}, list(kept)
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
                s = self._fused(group, wanted) or self.code.backward(
                    group.whole.partial, self.finite, wanted, self.order, self.borrows(group))
                key = (s.partial, self.borrows(group))
                if key not in constants:
                    constants[key] = self._constants(s, params)
                saved = {name: kept.pop() for name in reversed(s.saved)}
                self._group(s, group, flows, rows, constants[key], work, put, saved, grads)
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
        else:
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
