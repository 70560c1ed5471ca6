"""A call whose step reads earlier inputs or positions, run by a program that has them as inputs.

What a lag holds is a view of one tensor with a halo in front (a ragged call gathers it); tables of positions are
formed in fp64 and rounded once.  All under autograd: a backend's gradients to such an input flow on by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from mixc.ir.evaluate import Env, evaluate, heads
from mixc.ir.node import Node, postorder
from mixc.ir.program import Decl, Program, once_a_program
from mixc.passes.context import Context, context, has_context, name_of
from mixc.runtime.call import Call, counts_tokens, histories

Tensor = torch.Tensor
Results = tuple[dict[str, Tensor], dict[str, Tensor]]


def context_of(step: Program, sizes: dict[str, int]) -> Context | None:
    """`context(step)`; None where the step needs none."""
    windows = _windows(step)
    return _context(step, tuple((d, s) for d, s in sizes.items() if d in windows))


@once_a_program
def _context(step: Program, sizes: tuple[tuple[str, int], ...]) -> Context | None:
    return context(step, dict(sizes)) if has_context(step) else None


@once_a_program
def _windows(step: Program) -> set[str]:
    return {n.attr("dim") for n in postorder(step.values()) if n.op == "window"}


def run(call: Call, backend: Callable[[Call], Results]) -> Results:
    """Outs and final states, histories and `pos`, as of a backend that knows none of them."""
    found = context_of(call.program, call.sizes)
    if found is None:
        return backend(call)
    with torch.autocast(call.device.type, enabled=False):
        former = _Former(call)
        ins = call.ins | {name: former.tensor(node, found.program.decl(name)) for name, node in found.given.items()}
        kept = former.histories() if call.want_state else {}
    given = {d.name: ins[d.name] for d in found.program.ins}
    outs, states = backend(replace(call, program=found.program, ins=given, lags0={}, pos0=None))
    return outs, states | kept


class _Former:
    """Values of all tokens, [B, T, G, dims...] in the order in which they run (see `Rows.gather`)."""

    def __init__(self, call: Call):
        self.call, self.rows = call, call.rows
        self.depth = {name: depth for name, (_, depth) in histories(call.program, call.sizes).items()}
        self.whole: dict[str, Tensor] = {}  # with the halo
        self.known: dict[Node, Tensor] = {}
        rules = {"lag": self._lag, "window": self._lag}
        self.env = Env(self._leaf, call.sizes, dtype=call.dtype, batch=3, device=call.device, rules=rules)
        exact = Env(self._exact_leaf, call.sizes, dtype=torch.float64, batch=3, device=call.device)
        self.exact = exact

    def tensor(self, node: Node, d: Decl) -> Tensor:
        """A value in the order of the call, as an input."""
        x = self._value(node)
        order = [3 + node.dims.index(n) for n in d.dims]
        x = x.permute(0, 1, 2, *order).expand(self.rows.B, self.rows.T, -1, *(self.call.sizes[n] for n in d.dims))
        return x if self.rows.plain else self.rows.scatter(x)

    def _value(self, node: Node) -> Tensor:
        if node in self.known:
            return self.known[node]
        if node.op in ("lag", "window"):
            x = self._lag(node, [self._value(node.args[0])], self.env)
        elif node.op == "in":
            x = self.rows.gather(self.call.ins[node.attr("name")])
        elif any(n.op in ("in", "param") for n in postorder([node])):
            (x,) = evaluate([node], self.env, self.known)
        else:
            (x,) = evaluate([node], self.exact)
            x = x.to(self.call.dtype if node.kind != "complex" else self.call.state_dtype("complex"))
        self.known[node] = x
        return x

    # ------------------------------------------------------------ leaves
    def _leaf(self, node: Node) -> Tensor:
        name, call = node.attr("name"), self.call
        if node.op == "in":
            x = self.rows.gather(call.ins[name]).to(call.state_dtype(node.kind))
            return heads(x, call.H, 2) if x.shape[2] != 1 else x
        if node.op == "param":
            x = call.params[name].to(call.state_dtype(node.kind))
            return heads(x, call.H, 0)[None, None]
        return self._exact_leaf(node).to(call.dtype)

    def _exact_leaf(self, node: Node) -> Tensor:
        call, rows = self.call, self.rows
        if node.op == "const":
            return torch.full((1, 1, 1), call.consts[node.attr("name")], dtype=torch.float64, device=call.device)
        assert node.op == "pos", node
        if rows.dense:
            time = torch.arange(rows.T, device=call.device).unsqueeze(0)
            time = time if call.pos0 is None else time + call.pos0.unsqueeze(1)
        else:
            sequence, at = self._place
            time = (at if call.pos0 is None else at + call.pos0[sequence]).view(rows.B, rows.T)
        return time.to(torch.float64).unsqueeze(2)

    @property
    def _starts(self) -> Tensor:
        rows = self.rows
        return torch.arange(rows.N, device=self.call.device) * rows.T if rows.starts is None else rows.starts

    @property
    def _place(self) -> tuple[Tensor, Tensor]:
        """int64 [B * T] each: the sequence of every row, and its token there."""
        flat, starts = torch.arange(self.rows.B * self.rows.T, device=self.call.device), self._starts
        sequence = torch.searchsorted(starts, flat, right=True) - 1
        return sequence, flat - starts[sequence]

    # ------------------------------------------------------------ lag
    def _lag(self, node: Node, args: list[Tensor], env: Env) -> Tensor:
        name = name_of(node)
        if name not in self.depth:  # nothing but lags of 0 tokens
            return args[0] if node.op == "lag" else args[0].unsqueeze(3)
        if name not in self.whole:
            self.whole[name] = self._with_halo(name, args[0])
        if node.op == "lag":
            return self._shifted(name, node.attr("n"))
        return torch.stack([self._shifted(name, w) for w in range(self.call.sizes[node.attr("dim")])], 3)

    def _with_halo(self, name: str, x: Tensor) -> Tensor:
        """Dense: [B, depth + T, G, ...]; else [B * T + N * depth, G, ...], what came before behind the rows."""
        rows, depth, old = self.rows, self.depth[name], self.call.lags0.get(name)
        x = x.expand(rows.B, rows.T, *x.shape[2:])
        if old is not None:
            x = heads(x, self.call.H, 2)
            x = x.to(torch.promote_types(x.dtype, old.dtype))
            old = old.to(x.dtype)
        else:
            old = x.new_zeros(rows.N, depth, *x.shape[2:])
        return torch.cat([old, x], 1) if rows.dense else torch.cat([x.flatten(0, 1), old.flatten(0, 1)])

    def _shifted(self, name: str, n: int) -> Tensor:
        whole, depth, rows = self.whole[name], self.depth[name], self.rows
        if rows.dense:
            return whole[:, depth - n:depth - n + rows.T]
        sequence, time = self._place
        flat = torch.arange(rows.B * rows.T, device=whole.device)
        behind = rows.B * rows.T + sequence * depth + depth + time - n
        return whole.index_select(0, torch.where(time >= n, flat - n, behind)).unflatten(0, (rows.B, rows.T))

    def histories(self) -> dict[str, Tensor]:
        """By name the last values [N, n, H, ...], oldest first, and `pos`."""
        call, rows, found = self.call, self.rows, dict[str, Tensor]()
        lens = torch.full((rows.N,), rows.T, device=call.device) if rows.lens is None else rows.lens
        for name, (node, depth) in histories(call.program, call.sizes).items():
            if name not in self.whole:
                self.whole[name] = self._with_halo(name, self._value(node))
            whole = self.whole[name]
            if rows.dense:
                last = whole[:, rows.T:]
            else:
                at = lens.unsqueeze(1) - depth + torch.arange(depth, device=call.device)
                first = rows.B * rows.T + torch.arange(rows.N, device=call.device).unsqueeze(1) * depth + depth
                index = torch.where(at >= 0, self._starts.unsqueeze(1) + at, first + at)
                last = whole.index_select(0, index.flatten()).unflatten(0, (rows.N, depth))
            found[name] = heads(last, call.H, 2).to(call.state_dtype(node.kind))
        if counts_tokens(call.program):
            found["pos"] = lens.to(torch.int64) if call.pos0 is None else call.pos0 + lens
        return found
