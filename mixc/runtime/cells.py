"""The torch backend's run of a sequential program: a token loop with little in it, under one autograd function.

A *segment* is some consecutive tokens of the sequences that run through all of them: a dense block
[_t, _h, _n, dims...], sequences standing by falling length.  In a segment, what reads no state is formed for all its
tokens, then the loop runs, then the rest.  The backward does the same from the last segment to the first: it reads
the state before every token and what the forward's loop left that is not cheap to form again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixc.codegen.torch_cell_plan import Loop
from mixc.codegen.torch_prelude import once_made
from mixc.ir.evaluate import Env, align, compute, evaluate, heads
from mixc.ir.node import ROW, Node
from mixc.ir.program import Decl
from mixc.passes.cell import AXES, HEADS, SEQUENCES
from mixc.runtime import memory
from mixc.runtime.call import Call
from mixc.runtime.cell_programs import Cell, Half, compiled
from mixc.runtime.cell_values import RULES
from mixc.runtime.packing import Packing
from mixc.runtime.recorded import all_finite, finite, gradients, recorded

Tensor = torch.Tensor
Known = dict[Node, Tensor]
Once = tuple[Half, Known, dict[str, Tensor]]  # a direction, values that no token changes, stacked weights
SEGMENT = 1 << 16  # values of one tensor in a segment: a quarter of a megabyte
LASTS, SMALL = 1 << 20, 1 << 13  # bytes of a tensor that outlives a call; and of one token of what is copied to be kept


def run(call: Call) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outs [B, T, H, ...] and final states [N, H, ...] by name.  Ragged calls wait for the device."""
    code = compiled(call.program, all_finite(call))
    return recorded(call, lambda needs: _Run(code, call, needs))


def _whole(shape: Sequence[int], axes: tuple[str, ...], sizes: dict[str, int]) -> list[int]:
    """The shape of a value with all of its features."""
    return [n if d in AXES else sizes[d] for n, d in zip(shape, axes, strict=True)]


@dataclass(frozen=True)
class Span:
    """Tokens first .. last - 1 of the first n sequences; `at`: of its first token among the packed ones."""

    first: int
    last: int
    n: int
    at: int

    @property
    def T(self) -> int:
        return self.last - self.first


class _Tokens:
    """The tokens of a call in running order, and tensors over them: read and written by spans, [T, n, G, dims...]."""

    def __init__(self, call: Call):
        self.rows, self.packing = call.rows, Packing(call.rows, call.device)
        self.dense = self.packing.uniform

    def read(self, x: Tensor) -> Tensor:
        return self.rows.gather(x).transpose(0, 1) if self.dense else self.packing.pack(x)

    def empty(self, G: int, dims: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.dense:
            return memory.empty([self.rows.B, self.rows.T, G, *dims], dtype, device).transpose(0, 1)
        return torch.empty(self.packing.R, G, *dims, dtype=dtype, device=device)

    def part(self, x: Tensor, s: Span) -> Tensor:
        """A view of a span."""
        return x[s.first:s.last] if self.dense else x[s.at:s.at + s.T * s.n].unflatten(0, (s.T, s.n))

    def whole(self, x: Tensor) -> Tensor:
        """[B, T, G, dims...] of a tensor that was written."""
        return self.rows.scatter(x.transpose(0, 1)) if self.dense else self.packing.unpack(x)

    def spans(self, per_token: int) -> list[Span]:
        counts, found, first, at = self.packing.counts, list[Span](), 0, 0
        while first < len(counts):
            n, last = counts[first], first
            few = SEGMENT // max(1, per_token * n)
            most = first + max(few, min(64, 8 * few), 16)  # what a span costs besides its tokens is worth some of these
            while last < len(counts) and counts[last] == n and last < most:
                last += 1
            found.append(Span(first, last, n, at))
            at += (last - first) * n
            first = last
        return found


class _Run:
    def __init__(self, code: Cell, call: Call, needs: bool):
        self.code, self.call, self.needs, self.program = code, call, needs, call.program
        self.finite, self.handed = code.finite, ()
        self.tokens = _Tokens(call)
        kinds = [d.dims for d in (*self.program.ins, *self.program.outs, *self.program.states)]
        self.spans = self.tokens.spans(call.H * max(math.prod(call.sizes[n] for n in dims) for dims in kinds))
        self.spare: dict[object, Any] | None = None  # what a span leaves to the next one, where nothing is kept

    def room(self, name: tuple[object, ...], shape: list[int], dtype: torch.dtype | None = None,
             handed: bool = False) -> Tensor:
        """A tensor to be written; what of a token is small the next span of its length gets again, with its views: to
        make a view of every token takes longer than to copy it.  `handed`: a backward may be given it: see `own`."""
        dtype = dtype or self.call.dtype
        bytes_ = math.prod(shape) * dtype.itemsize
        if self.call.device.type == "cpu" and bytes_ <= LASTS and (not handed or bytes_ <= SMALL * shape[0]):
            return memory.lasting(name, shape, dtype)
        if self.spare is None:
            return memory.empty(shape, dtype, self.call.device)
        key = (*name, *shape, dtype)
        if key not in self.spare:
            self.spare[key] = memory.empty(shape, dtype, self.call.device)
            self.spare[key].mixc_scratch = True
        return self.spare[key]  # type: ignore[no-any-return]

    def own(self, x: Tensor, room: Tensor) -> Tensor:
        """x, of what lies in a room, to be kept."""
        if not hasattr(room, "mixc_scratch"):
            return x
        return memory.empty(x.shape, x.dtype, x.device).copy_(x)

    # ------------------------------------------------------------ values
    def sizes(self, s: Span | None) -> dict[str, int]:
        return {**self.call.sizes, HEADS: self.call.H, **({ROW: s.T, SEQUENCES: s.n} if s else {})}

    def env(self, s: Span | None, leaf: Callable[[Node], Tensor], dtype: torch.dtype | None = None) -> Env:
        return Env(leaf, self.sizes(s), dtype=dtype or self.call.dtype, batch=0, device=self.call.device, rules=RULES)

    def once(self, half: Half, params: dict[str, Tensor]) -> Known:
        """Values that no token changes; what depends on numbers and consts alone is formed in fp64."""
        call = self.call

        def leaf(n: Node) -> Tensor:
            name = n.attr("name")
            if n.op == "const":
                return torch.full((), call.consts[name], dtype=torch.float64, device=call.device)
            return heads(params[name].to(call.dtype), call.H, 0)
        exact = evaluate(half.exact, self.env(None, leaf, torch.float64))
        known = {n: x if n.kind == "bool" else x.to(call.dtype) for n, x in zip(half.exact, exact, strict=True)}
        found = evaluate(half.heads, self.env(None, leaf), known)
        return known | dict(zip(half.heads, found, strict=True))

    def weights(self, made: Loop, known: Known) -> dict[str, Tensor]:
        found = {}
        for name, (nodes, sums, leaves, along_sum) in made.weights.items():
            parts = [align(known[n], n.dims, (HEADS, z, y), 0).expand(self.call.H, -1, -1)
                     for n, z, y in zip(nodes, sums, leaves, strict=True)]
            found[name] = torch.cat(parts, 1 if along_sum else 2).contiguous()
        return found

    # ------------------------------------------------------------ one loop
    def loop(self, half: Half, s: Span, env: Env, known: Known, fixed: dict[str, Tensor],
             states: list[Tensor]) -> tuple[dict[str, _Slots], Known]:
        """Runs it; what it leaves goes to `known`.  Returns its stacks, and the rooms in which lies what it leaves."""
        made, call, sizes = half.loop, self.call, self.sizes(s)
        evaluate([n for n, _ in made.rows.values()], env, known)
        evaluate([n for stack in made.stacks.values() for n in stack.given if n is not None], env, known)
        given: dict[str, Any] = {"dtype": call.dtype, **fixed}
        given |= {f"{d.name}_all": S for d, S in zip(self.program.states, states, strict=True)}
        for name, (n, axes) in made.rows.items():
            x = align(known[n], n.dims, (ROW, *axes), 0)
            x = x.expand(s.T, *_whole(x.shape[1:], axes, sizes))
            fast = x.is_contiguous() and x.nbytes > LASTS
            given[name] = x if fast else self.room(("of a loop", name), list(x.shape), x.dtype).copy_(x)
        for name, (n, axes) in made.heads.items():
            x = align(known[n], n.dims, axes, 0)
            given[name] = x.expand([sizes[d] for d in axes]).contiguous()
        given |= {name: known[n] for name, n in made.numbers.items()}
        for name, axes in made.scratch.items():
            given[name] = self.room(("of a loop", name), [sizes[d] for d in axes])
        buffers = {name: self._stack(made, name, known, sizes) for name in made.stacks}
        for name, (stack, i, j, slots) in made.views.items():
            given[name] = self._view(buffers[stack], i, j + 1, slots)
        for name, (n, axes) in made.keeps.items():
            given[name] = self.room(("of a loop", name), [s.T, *[sizes[d] for d in axes]],
                                    torch.bool if n.kind == "bool" else None, handed=self.spare is None)
        for name, n in made.calls.items():
            given[name] = functools.partial(self._token_op, n, {**sizes, ROW: 1})
        made.run(**given)
        rooms: Known = {}
        for name, (n, axes) in made.keeps.items():
            known[n], rooms[n] = align(given[name], (ROW, *axes), n.dims, 0), given[name]
        for n, (stack, i) in made.kept_in.items():
            (feature,) = (d for d in n.dims if d not in AXES)
            known[n] = align(buffers[stack][i:i + 1].flat, (*AXES, feature), n.dims, 0)
            rooms[n] = buffers[stack].flat
        return buffers, rooms

    def _weight_sums(self, half: Half, stacks: dict[str, _Slots], env: Env, known: Known) -> None:
        """Sums over tokens and sequences of slots of one stack times the same value: one product for all of them."""
        found: dict[tuple[str, Node], list[tuple[int, Node]]] = {}
        for n in (r.value for r in half.program.results if r.role == "sum"):
            for x, y in (n.args, n.args[::-1]) if n.op == "contract" else ():
                if x in half.loop.kept_in and {*x.dims, *y.dims} == {*AXES, *n.dims} and len(n.dims) == 3 \
                        and x.dims[:3] == y.dims[:3] == AXES and len(x.dims) == len(y.dims) == 4:
                    stack, i = half.loop.kept_in[x]
                    found.setdefault((stack, y), []).append((i, n))
                    break
        for (stack, y), sums in found.items():
            if len(sums) > 1:
                (Y,) = evaluate([y], env, known)
                rows = [x.transpose(0, 1).flatten(1, 2) for x in (Y, stacks[stack].flat)]  # [_h, tokens, width]
                both = _Slots(torch.bmm(rows[0].mT, rows[1]), stacks[stack].widths)
                for i, n in sums:
                    (f,) = (d for d in n.dims if d != HEADS and d not in y.dims)
                    known[n] = align(both[i:i + 1].flat, (HEADS, y.dims[3], f), n.dims, 0)

    def _view(self, buffer: _Slots, i: int, j: int, slots: bool) -> Tensor:
        def made() -> Tensor:
            return buffer[i:j].slots if slots else buffer[i:j].flat
        x = once_made(buffer.flat, ("view", i, j, slots), made)
        if hasattr(buffer.flat, "mixc_scratch"):
            x.mixc_scratch = True  # type: ignore[attr-defined]
        return x

    def _stack(self, made: Loop, name: str, known: Known, sizes: dict[str, int]) -> _Slots:
        stack = made.stacks[name]
        widths = [sizes[d] for d in stack.dims]
        x = self.room(("of a loop", name), [*(sizes[d] for d in AXES), sum(widths)], handed=self.spare is None)
        buffer = _Slots(x, widths)
        for i, n in enumerate(stack.given):
            if n is not None:
                (feature,) = [d for d in n.dims if d not in AXES] or [stack.dims[i]]
                buffer[i:i + 1].flat.copy_(align(known[n], n.dims, (*AXES, feature), 0))
            elif stack.filled:
                buffer[i:i + 1].flat.zero_()
        return buffer

    def _token_op(self, n: Node, sizes: dict[str, int], *args: Tensor) -> Tensor:
        """One operation on the values of one token."""
        wide = []
        for a, x in zip(n.args, args, strict=True):
            x = x.unsqueeze(a.dims.index(ROW)) if ROW in a.dims else x
            wide.append(x.expand([sizes[d] for d in a.dims]))
        env = Env(_no_leaf, sizes, dtype=self.call.dtype, batch=0, device=self.call.device)
        return compute(n, wide, env).squeeze(n.dims.index(ROW))

    def _buffer(self, s: Span, d: Decl) -> Tensor:
        """[T + 1, H, n, dims...]: of every token what it receives, and what the last one leaves."""
        dims = [self.call.sizes[n] for n in d.dims]
        return self.room(("state", d.name), [s.T + 1, self.call.H, s.n, *dims], handed=self.spare is None)

    def _states(self, half: Half, buffers: list[Tensor], after: slice, before: slice) -> Known:
        """Rows of the carried leaves, and of their next values under every name."""
        known: Known = {}
        for (_, leaf, nxt), S in zip(half.carried, buffers, strict=True):
            known[leaf] = S[before]
            n, x = nxt, S[after]
            x = align(x, leaf.dims, n.dims, 0)
            known[n] = x
            while n.op in ("rename", "stop_gradient"):
                n = n.args[0]
                known[n] = x
        return known

    def rows(self, x: Tensor, n: Node) -> Tensor:
        """A span's part [T, n, G, dims...] as [_t, _h, _n, dims...]."""
        x = x.transpose(1, 2).to(self.call.dtype)
        return x.expand(-1, self.call.H, *x.shape[2:]) if x.shape[1] == 1 else heads(x, self.call.H, 1)

    # ------------------------------------------------------------ forward
    def forward(self, tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Any]]:
        call, program, tokens = self.call, self.program, self.tokens
        half = self.code.forward(self.needs)
        self.spare = None if self.needs else {}
        n_in, n_par = len(program.ins), len(program.params)
        ins = {d.name: tokens.read(x) for d, x in zip(program.ins, tensors, strict=False) if d.name in half.reads}
        params = {d.name: x for d, x in zip(program.params, tensors[n_in:n_in + n_par], strict=True)}
        known0 = self.once(half, params)
        fixed = self.weights(half.loop, known0)
        final = [self._by_rank(x) for x in tensors[n_in + n_par:]]
        outs = {d.name: tokens.empty(call.H, [call.sizes[n] for n in d.dims], call.out_dtypes[d.name], call.device)
                for d in program.outs}
        kept: list[Tensor] = []
        for s in self.spans:
            buffers = [self._buffer(s, d) for d in program.states]
            for S, x in zip(buffers, final, strict=True):
                S[0].copy_(x[:, :s.n])
            env = self.env(s, lambda n, s=s: self.rows(tokens.part(ins[n.attr("name")], s), n))  # type: ignore[misc]
            known = known0 | {leaf: S[:-1] for (_, leaf, _), S in zip(half.carried, buffers, strict=True)}
            rooms = self.loop(half, s, env, known, fixed, buffers)[1]
            known |= self._states(half, buffers, slice(1, None), slice(None, -1))
            outputs = [r for r in half.program.results if r.role == "out"]
            for r, y in zip(outputs, evaluate([r.value for r in outputs], env, known), strict=True):
                tokens.part(outs[r.name], s).copy_(self._ordered(y, r.value, r.name).transpose(1, 2))
            for S, x in zip(buffers, final, strict=True):
                x[:, :s.n] = S[-1]
            if self.needs:
                kept += [self.own(S, S) for S in buffers]
                kept += [self.own(known[n], rooms.get(n, known[n])) for n in half.saved]
        finals = [tokens.packing.by_call(x.transpose(0, 1)).contiguous() for x in final]
        return [tokens.whole(o) for o in outs.values()], finals, kept

    def _by_rank(self, x: Tensor) -> Tensor:
        """A copy [H, N, dims...] of a state [N, H, dims...]."""
        x = self.tokens.packing.by_rank(x).transpose(0, 1).to(self.call.dtype)
        return x.clone(memory_format=torch.contiguous_format)

    def _ordered(self, y: Tensor, n: Node, name: str) -> Tensor:
        return align(y, n.dims, (*AXES, *self.program.decl(name).dims), 0)

    # ------------------------------------------------------------ backward
    def backward(self, tensors: list[Tensor], kept: list[Tensor], cotangents: list[Tensor],
                 needs: tuple[bool, ...]) -> list[Tensor | None]:
        program, tokens = self.program, self.tokens
        n_in, n_par, n_out = len(program.ins), len(program.params), len(program.outs)
        wanted = frozenset(d.name for d, need in zip((*program.ins, *program.params), needs, strict=False) if need)
        forward, guarded = self.code.forward(True), self.code.backward(wanted)
        self.spare = {}
        given = {d.name: tokens.read(x) for d, x in zip(program.ins, tensors, strict=False) if d.name in guarded.reads}
        given |= {f"d{d.name}": tokens.read(c) for d, c in zip(program.outs, cotangents[:n_out], strict=True)}
        params = {d.name: x for d, x in zip(program.params, tensors[n_in:n_in + n_par], strict=True)}
        once: dict[bool, Once] = {}
        final = [self._by_rank(c) for c in cotangents[n_out:]]
        grads = {d.name: tokens.empty(x.shape[2], list(x.shape[3:]), x.dtype, x.device)
                 for d, x in zip(program.ins, tensors[:n_in], strict=True) if d.name in wanted}
        sums: dict[str, Tensor] = {}
        for s in reversed(self.spans):
            saved = [kept.pop() for _ in guarded.saved][::-1]
            buffers = [kept.pop() for _ in program.states][::-1]
            cots = [self._buffer(s, d) for d in program.states]
            for D, x in zip(cots, final, strict=True):
                D[-1].copy_(x[:, :s.n])

            def leaf(n: Node, s: Span = s) -> Tensor:
                name = ("d" if n.op == "cot" else "") + n.attr("name")
                return self.rows(tokens.part(given[name], s), n)
            env = self.env(s, leaf)
            known = self._states(forward, buffers, slice(1, None), slice(None, -1))
            known |= dict(zip(guarded.saved, saved, strict=True))
            half, fixed = self._half_of(guarded, wanted, params, once, env, known)
            known |= {c: D[1:] for (_, c, _), D in zip(half.carried, cots, strict=True)}
            stacks, _ = self.loop(half, s, env, known, fixed, cots)
            known |= self._states(half, cots, slice(None, -1), slice(1, None))
            self._weight_sums(half, stacks, env, known)
            outputs = [r for r in half.program.results if r.role != "next"]
            for r, y in zip(outputs, evaluate([r.value for r in outputs], env, known), strict=True):
                if r.role == "sum":
                    y = align(y, r.value.dims, (HEADS, *program.decl(r.name).dims), 0)
                    sums[r.name] = sums[r.name].add_(y) if r.name in sums else y.clone()
                else:
                    self._add(grads[r.name], s, self._ordered(y, r.value, r.name).transpose(1, 2))
            for D, x in zip(cots, final, strict=True):
                x[:, :s.n] = D[0]
        self.spare = None
        whole = {name: tokens.whole(grad) for name, grad in grads.items()}
        states = [tokens.packing.by_call(x.transpose(0, 1)) for x in final]
        return gradients(self, tensors, needs, whole, sums, states)

    def _half_of(self, guarded: Half, wanted: frozenset[str], params: dict[str, Tensor], once: dict[bool, Once],
                 env: Env, known: Known) -> tuple[Half, dict[str, Tensor]]:
        """The backward of a span, without guards where it needs none, and its weights; what no token changes goes to
        `known`.  `once`: what is formed once a call."""
        def formed(finite: bool) -> Once:
            if finite not in once:
                half = self.code.backward(wanted, finite) if finite else guarded
                constant = self.once(half, params)
                once[finite] = half, constant, self.weights(half.loop, constant)
            return once[finite]
        half, constant, fixed = formed(False)
        known |= constant
        if half.guards and finite(evaluate(half.guards, env, known)):
            half, constant, fixed = formed(True)
            known |= constant
        return half, fixed

    def _add(self, grad: Tensor, s: Span, y: Tensor) -> None:
        place = self.tokens.part(grad, s)
        y = y.expand(s.T, s.n, self.call.H, *y.shape[3:])
        G = place.shape[2]
        place.copy_(y if self.call.H == G else y.unflatten(2, (G, -1)).sum(3))


class _Slots:
    """A buffer [_t, _h, _n, width] of slots side by side; `[i:j]` is a part of them."""

    def __init__(self, x: Tensor, widths: list[int]):
        self.flat, self.widths = x, widths

    def __getitem__(self, part: slice) -> _Slots:
        low, high = sum(self.widths[:part.start]), sum(self.widths[:part.stop])
        return _Slots(self.flat[..., low:high], self.widths[part])

    @property
    def slots(self) -> Tensor:
        """[_t, _h, _n, slots, width of each]"""
        return self.flat.unflatten(-1, (len(self.widths), self.widths[0]))


def _no_leaf(n: Node) -> Tensor:
    raise AssertionError(n)
