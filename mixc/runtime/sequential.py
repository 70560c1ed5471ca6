"""The step run token by token: the meaning of the language, and the fallback of the torch backend.

What reads no state is evaluated once for all tokens; the rest in a loop over time, one slice of the
packed tokens after the other, under torch's autograd.  In fp64 this is `backend="reference"`.
"""

from __future__ import annotations

import math

import torch

from mixc.ir.evaluate import Env, align, compute, dtype_of, evaluate, heads
from mixc.ir.node import Node
from mixc.ir.program import Decl
from mixc.passes.context import name_of
from mixc.runtime.call import Call, histories
from mixc.runtime.guarded import RULES
from mixc.runtime.packing import Packing
from mixc.runtime.plan import plan_of

Tensor = torch.Tensor


def run(call: Call, dtype: torch.dtype | None = None, *, careful: bool = False) -> tuple[dict[str, Tensor],
                                                                                        dict[str, Tensor]]:
    """Outs [B, T, H, dims...] by name, and states: [N, H, dims...], histories [N, n, H, dims...], `pos` [N].

    Args:
        dtype: the real dtype of the run (default: the call's).
        careful: keep a cotangent of 0 at 0 for inputs outside their ranges too.
    On a device, ragged and masked calls wait for it: the loop must know the lengths.
    """
    with torch.autocast(call.device.type, enabled=False):
        return _Run(call, dtype or call.dtype, careful).results()


class _Run:
    def __init__(self, call: Call, dtype: torch.dtype, careful: bool):
        self.call, self.dtype, self.program = call, dtype, call.program
        self.plan = plan_of(call.program)
        self.packing = Packing(call.rows, call.device)
        self.R = self.packing.R
        rules = {**(RULES if careful else self.plan.rules), "lag": self._lag, "window": self._lag}
        self.env = Env(self._leaf, call.sizes, dtype=dtype, device=call.device, rules=rules)
        self.lags = histories(self.program, call.sizes)
        self._values: dict[str, Tensor] = {}
        self.known: dict[Node, Tensor] = {}

    def results(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self._exact()
        evaluate(self.plan.fixed, self.env, self.known)
        looped, states = self._loop()
        outs = {}
        for d in self.program.outs:
            node = self.plan.outs[d.name]
            value = looped[d.name] if d.name in looped else self._full(self.known[node], node, d, self.R)
            outs[d.name] = self.packing.unpack(value)
        return outs, {name: self.packing.by_call(s) for name, s in states.items()} | self._histories() | self._pos()

    # ------------------------------------------------------------ leaves: values of every token
    def _leaf(self, node: Node) -> Tensor:
        name = node.attr("name")
        if node.op == "in":
            x = self._to(self.packing.pack(self.call.ins[name]), node.kind)
            return _deaf_where_infinite(self._heads(x, 1), self.program.decl(name))
        if node.op == "param":
            x = self._to(self.call.params[name], node.kind)
            return _deaf_where_infinite(self._heads(x, 0), self.program.decl(name)).unsqueeze(0)
        if node.op == "const":
            return torch.full((1, 1), self.call.consts[name], dtype=self.env.dtype, device=self.call.device)
        raise AssertionError(node)

    def _to(self, x: Tensor, kind: str) -> Tensor:
        return x.to(dtype_of(kind, self.dtype))

    def _heads(self, x: Tensor, axis: int) -> Tensor:
        """One head stays one, and is broadcast."""
        return x if x.shape[axis] == 1 else heads(x, self.call.H, axis)

    def _exact(self) -> None:
        """What depends on nothing but pos, index, numbers and consts is formed in fp64 and rounded once."""
        env = Env(self._exact_leaf, self.call.sizes, dtype=torch.float64, device=self.call.device)
        for node, value in zip(self.plan.exact, evaluate(self.plan.exact, env), strict=True):
            self.known[node] = value if node.kind == "bool" else self._to(value, node.kind)

    def _exact_leaf(self, node: Node) -> Tensor:
        if node.op == "const":
            return torch.full((1, 1), self.call.consts[node.attr("name")], dtype=torch.float64,
                              device=self.call.device)
        pos = self.packing.time
        if self.call.pos0 is not None:
            pos = pos + self.packing.by_rank(self.call.pos0)[self.packing.rank]
        return pos.to(torch.float64).unsqueeze(1)

    # ------------------------------------------------------------ lag
    def _history(self, name: str, value: Tensor) -> Tensor:
        """cat(values of all tokens [R, H, ...], what came before the call [N * n, H, ...])."""
        if name not in self._values:
            node, depth = self.lags[name]
            x = self._full(value, node, None, self.R)
            if name in self.call.lags0:
                old = self.packing.by_rank(self._to(self.call.lags0[name], node.kind)).flatten(0, 1)
            else:
                old = x.new_zeros(self.packing.N * depth, *x.shape[1:])
            self._values[name] = torch.cat([x, old])
        return self._values[name]

    def _lag(self, node: Node, args: list[Tensor], env: Env) -> Tensor:
        name = name_of(node)
        if name not in self.lags:  # nothing but lags of 0 tokens
            return args[0] if node.op == "lag" else args[0].unsqueeze(2)
        depth = self.lags[name][1]
        values = self._history(name, args[0])
        if node.op == "lag":
            return values.index_select(0, self.packing.shifted(node.attr("n"), depth))
        W = self.call.sizes[node.attr("dim")]
        return torch.stack([values.index_select(0, self.packing.shifted(w, depth)) for w in range(W)], 2)

    def _histories(self) -> dict[str, Tensor]:
        found = {}
        for name, (node, depth) in self.lags.items():
            values = self._history(name, self.known[node])
            last = values.index_select(0, self.packing.last(depth).flatten())
            found[name] = self.packing.by_call(last.reshape(self.packing.N, depth, *values.shape[1:]))
        return found

    def _pos(self) -> dict[str, Tensor]:
        if not self.plan.counts_tokens:
            return {}
        lens = self.packing.by_call(self.packing.lens)
        return {"pos": lens if self.call.pos0 is None else self.call.pos0 + lens}

    # ------------------------------------------------------------ the loop over time
    def _full(self, x: Tensor, node: Node, d: Decl | None, n: int) -> Tensor:
        """The value of `node` as [n, H, dims...] with the dims of its declaration, in their order."""
        dims = node.dims if d is None else d.dims
        if dims == node.dims and x.shape[:2] == (n, self.call.H) and (d is None or d.kind == node.kind):
            return x
        x = align(x, node.dims, dims, 2).expand(n, self.call.H, *[self.call.sizes[name] for name in dims])
        return self._to(x, "complex" if "complex" in (node.kind, d.kind if d else "") else "real")

    def _start(self, d: Decl) -> Tensor:
        """[N, H, dims...], longest sequence first."""
        if d.name in self.call.states0:
            return self.packing.by_rank(self._to(self.call.states0[d.name], d.kind))
        N, shape = self.packing.N, [self.call.sizes[name] for name in d.dims]
        if d.init is not None:
            return self._full(self.known[d.init], d.init, d, N)
        return self._to(torch.zeros(N, self.call.H, *shape, dtype=self.dtype, device=self.call.device), d.kind)

    def _loop(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outs that read a state [R, H, dims...], and the final states [N, H, dims...]."""
        plan, counts = self.plan, self.packing.counts or [0]  # no token: one empty step gives outs their shape
        slices = {node: _slices(self.known[node], counts) for node in plan.border}
        states = {d.name: self._start(d) for d in self.program.states}
        leaves = {d.name: d.leaf() for d in self.program.states}
        done: dict[str, list[Tensor]] = {name: [] for name in states}
        pieces: dict[str, list[Tensor]] = {name: [] for name, node in plan.outs.items() if plan.in_loop(node)}
        for t, n in enumerate(counts):
            for name, s in states.items():
                if len(s) > n:
                    done[name].append(s[n:])
                    states[name] = s[:n]
            values = {node: parts[t] for node, parts in slices.items()}
            values |= {leaves[name]: s for name, s in states.items()}
            for node in plan.loop:
                values[node] = compute(node, [values[a] for a in node.args], self.env)
            for name, found in pieces.items():
                found.append(self._full(values[plan.outs[name]], plan.outs[name], self.program.decl(name), n))
            if n:
                states = {d.name: self._full(values[plan.next[d.name]], plan.next[d.name], d, n)
                          for d in self.program.states}
        final = {name: torch.cat([s, *reversed(done[name])]) for name, s in states.items()}
        return {name: torch.cat(found) for name, found in pieces.items()}, final


def _slices(x: Tensor, counts: list[int]) -> list[Tensor]:
    """x [R, ...] by time steps; one that does not vary is read at every step."""
    if x.shape[0] == 1 and sum(counts) != 1:
        return [x] * len(counts)
    return list(x.split(counts))


def _deaf_where_infinite(x: Tensor, d: Decl) -> Tensor:
    """x, its gradient 0 where it lies at an infinite end of its range (g = -inf: forget everything)."""
    return torch.where(x.abs() == math.inf, x.detach(), x) if d.open_ended and x.requires_grad else x
