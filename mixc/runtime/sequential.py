"""The step run token by token: the meaning of the language, and the fallback of the torch backend.

What reads no state is evaluated once for all tokens; the rest in a loop over time, one slice of the
packed tokens after the other, under torch's autograd.  In fp64 this is `backend="reference"`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from mixc.ir.evaluate import Env, compute, evaluate
from mixc.ir.node import Node, depends, postorder
from mixc.ir.program import Decl
from mixc.runtime.call import Call, histories, lag_name
from mixc.runtime.guarded import RULES
from mixc.runtime.packing import Packing

Tensor = torch.Tensor
_EXACT = ("number", "size", "const", "index", "pos")


def run(call: Call, dtype: torch.dtype | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outs [B, T, H, dims...] by name, and states: [N, H, dims...], histories [N, n, H, dims...], `pos` [N].

    Args:
        dtype: the real dtype of the run (default: the call's).
    On a device, ragged and masked calls wait for it: the loop must know the lengths.
    """
    with torch.autocast(call.device.type, enabled=False):
        return _Run(call, dtype or call.dtype).results()


class _Run:
    def __init__(self, call: Call, dtype: torch.dtype):
        self.call, self.dtype, self.program = call, dtype, call.program
        self.packing = Packing(call.rows, call.device)
        self.R = self.packing.R
        rules = {**RULES, "lag": self._lag, "window": self._lag}
        self.env = Env(self._leaf, call.sizes, dtype=dtype, device=call.device, rules=rules)
        self.outs = {d.name: self.program.result("out", d.name) for d in self.program.outs}
        self.next = {d.name: self.program.result("next", d.name) for d in self.program.states}
        self.inits = {d.name: d.init for d in self.program.states
                      if d.init is not None and d.name not in call.states0}
        self.lags = histories(self.program, call.sizes)
        self._values: dict[str, Tensor] = {}
        self.known: dict[Node, Tensor] = {}

    def results(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        roots = [*self.outs.values(), *self.next.values()]
        dynamic = depends(roots, [d.leaf() for d in self.program.states])
        loop = [n for n in postorder(roots) if n in dynamic and n.op != "state"]
        fixed = _border(loop, dynamic) + [n for n in (*roots, *self.inits.values()) if n not in dynamic]
        fixed += [x for x, _ in self.lags.values()]
        self._exact(fixed)
        evaluate(fixed, self.env, self.known)
        looped, states = self._loop(loop, dynamic)
        outs = {}
        for d in self.program.outs:
            value = looped[d.name] if d.name in looped else self._full(self.known[self.outs[d.name]],
                                                                     self.outs[d.name], d, self.R)
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
        return x.to(torch.promote_types(self.dtype, torch.complex64) if kind == "complex" else self.dtype)

    def _heads(self, x: Tensor, axis: int) -> Tensor:
        """G heads to H, head h being h // (H/G); one head stays one, and is broadcast."""
        G = x.shape[axis]
        return x if G in (1, self.call.H) else x.repeat_interleave(self.call.H // G, axis)

    def _exact(self, roots: list[Node]) -> None:
        """What depends on nothing but pos, index, numbers and consts is formed in fp64 and rounded once."""
        exact: set[Node] = set()
        order = list(postorder(roots))
        for node in order:
            if node.op in _EXACT or (node.args and all(a in exact for a in node.args)
                                     and node.op not in ("lag", "window")):
                exact.add(node)
        used = [a for n in order if n not in exact for a in n.args if a in exact] + [r for r in roots if r in exact]
        env = Env(self._exact_leaf, self.call.sizes, dtype=torch.float64, device=self.call.device, rules=RULES)
        used = list(dict.fromkeys(used))
        for node, value in zip(used, evaluate(used, env), strict=True):
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
        name = lag_name(node)
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
        if not any(n.op == "pos" for n in postorder([*self.outs.values(), *self.next.values()])):
            return {}
        lens = self.packing.by_call(self.packing.lens)
        return {"pos": lens if self.call.pos0 is None else self.call.pos0 + lens}

    # ------------------------------------------------------------ the loop over time
    def _full(self, x: Tensor, node: Node, d: Decl | None, n: int) -> Tensor:
        """The value of `node` as [n, H, dims...] with the dims of its declaration, in their order."""
        dims = node.dims if d is None else d.dims
        order = [2 + node.dims.index(name) for name in dims if name in node.dims]
        x = x.permute(0, 1, *order)
        have = iter(x.shape[2:])
        x = x.reshape(*x.shape[:2], *[next(have) if name in node.dims else 1 for name in dims])
        x = x.expand(n, self.call.H, *[self.call.sizes[name] for name in dims])
        return self._to(x, "complex" if "complex" in (node.kind, d.kind if d else "") else "real")

    def _start(self, d: Decl) -> Tensor:
        """[N, H, dims...], longest sequence first."""
        if d.name in self.call.states0:
            return self.packing.by_rank(self._to(self.call.states0[d.name], d.kind))
        N, shape = self.packing.N, [self.call.sizes[name] for name in d.dims]
        if d.init is not None:
            return self._full(self.known[d.init], d.init, d, N)
        return self._to(torch.zeros(N, self.call.H, *shape, dtype=self.dtype, device=self.call.device), d.kind)

    def _loop(self, loop: list[Node], dynamic: set[Node]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        counts = self.packing.counts or [0]  # no token: one empty step gives outs their shape
        read = _border(loop, dynamic) + [n for n in self.next.values() if n not in dynamic]
        slices = {n: _slices(self.known[n], counts) for n in dict.fromkeys(read)}
        states = {d.name: self._start(d) for d in self.program.states}
        done: dict[str, list[Tensor]] = {name: [] for name in states}
        pieces: dict[str, list[Tensor]] = {name: [] for name, value in self.outs.items() if value in dynamic}
        for t, n in enumerate(counts):
            for name, s in states.items():
                if len(s) > n:
                    done[name].append(s[n:])
                    states[name] = s[:n]
            values = {node: parts[t] for node, parts in slices.items()}
            values |= {d.leaf(): states[d.name] for d in self.program.states}
            for node in loop:
                values[node] = compute(node, [values[a] for a in node.args], self.env)
            for name, found in pieces.items():
                found.append(self._full(values[self.outs[name]], self.outs[name], self.program.decl(name), n))
            if n:
                states = {d.name: self._full(values[self.next[d.name]], self.next[d.name], d, n)
                          for d in self.program.states}
        final = {name: torch.cat([s, *reversed(done[name])]) for name, s in states.items()}
        return {name: torch.cat(found) for name, found in pieces.items()}, final


def _border(loop: Iterable[Node], dynamic: set[Node]) -> list[Node]:
    """What the loop reads and does not compute."""
    return list(dict.fromkeys(a for n in loop for a in n.args if a not in dynamic))


def _slices(x: Tensor, counts: list[int]) -> list[Tensor]:
    """x [R, ...] by time steps; one that does not vary is read at every step."""
    if x.shape[0] == 1 and sum(counts) != 1:
        return [x] * len(counts)
    return list(x.split(counts))


def _deaf_where_infinite(x: Tensor, d: Decl) -> Tensor:
    """x, its gradient 0 where it lies at an infinite end of its range (g = -inf: forget everything)."""
    open_ended = any(r.of == "x" and (r.low is None) != (r.high is None) for r in d.ranges)
    return torch.where(x.abs() == math.inf, x.detach(), x) if open_ended and x.requires_grad else x
