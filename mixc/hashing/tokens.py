"""A step run over some tokens, forward and backward, on numbers of many digits.

A port is a name that values enter or leave by: ("in", "q"), ("param", "A"), ("const", "scale"), ("state", "S"), and
("out", "o") and ("next", "S") for results; going in under those two, it is their cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from mixc.hashing.evaluate import BATCH, Env, align, compute, evaluate, widen
from mixc.hashing.values import ZERO, Value, numbers, precision
from mixc.ir.derivatives import gradient
from mixc.ir.node import Node, depends, make, postorder, substitute
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import proving

Port = tuple[str, str]
Ports = dict[Port, Value]


@dataclass(frozen=True)
class Lag:
    """A `lag` or `lag[W]` node as a leaf of its own: what it shifts, and by how much."""

    leaf: Node
    of: Node
    distances: tuple[int, ...]
    dim: str | None


class Tokens:
    """The work of a step, found once for given sizes.

    What reads no state is evaluated for all tokens at once, the rest token after token; likewise backward, where the
    chain is the cotangent of the state.
    """

    def __init__(self, program: Program, sizes: Mapping[str, int]):
        self.program, self.sizes = program, sizes
        values, self.lags = _without_lags(program, sizes)
        self.outs = dict(zip([d.name for d in program.outs], values, strict=False))
        self.next = dict(zip([d.name for d in program.states], values[len(self.outs):], strict=True))
        self.inits = {d.name: d.init for d in program.states if d.init is not None}
        given = [d.leaf() for d in (*program.ins, *program.params)]
        states = [d.leaf() for d in program.states]
        wrt = [*given, *states, *(lag.leaf for lag in self.lags)]
        roots = [(self.outs[d.name], _cot(d, "out")) for d in program.outs]
        roots += [(self.next[d.name], _cot(d, "next")) for d in program.states]
        with proving(program):
            self.grads = _found(gradient(roots, wrt), wrt)
            self.lag_grads = [_found(gradient([(lag.of, _lag_cot(lag))], wrt), wrt) for lag in self.lags]
            self.init_grads = {d.name: _found(gradient([(d.init, _cot(d, "next"))], given), given)
                               for d in program.states if d.init is not None}
        self.carried = depends(values, states)
        self.reach = _reach(self.lags)
        every = [*self.grads.values(), *(g for found in (*self.lag_grads, *self.init_grads.values())
                                         for g in found.values())]
        self.cotangents = depends(every, [n for n in postorder(every) if n.op == "cot"])
        self.chained = depends(self.grads.values(), [_cot(d, "next") for d in program.states])

    def run(self, ports: Ports, T: int, fresh: Any, watch: Callable[[Node, list[Value]], None] | None = None,
            far: bool = False) -> Ports:
        """Outs, final states, and gradients of ins, params and given initial states.

        Args:
            ports: ins [P, T, dims...], params, consts and states [P, 1, dims...], cotangents of outs [P, T, dims...]
                and of final states [P, 1, dims...]; ("pos", "") [P, T].
            fresh: bool [P]: which probes start as declared, and not in the given state.
            far: are they far from 1?
        """
        with precision(far):
            return _Run(self, ports, T, np.asarray(fresh), watch).results()

    def watched(self, ports: Ports, T: int, fresh: Any, watch: Callable[[Node, list[Value]], None]) -> None:
        """`watch` is called with every node and its arguments' values, forward."""
        with precision(False):
            _Run(self, ports, T, np.asarray(fresh), watch).forward()


def _without_lags(program: Program, sizes: Mapping[str, int]) -> tuple[list[Node], list[Lag]]:
    """Outs and next states that read leaves instead of lags; the lags, inner ones first."""
    values = [program.result("out", d.name) for d in program.outs]
    values += [program.result("next", d.name) for d in program.states]
    mapping: dict[Node, Node] = {}
    lags: list[Lag] = []
    for n in postorder(values):
        if n.op in ("lag", "window"):
            leaf = make("in", name=f"lag@{len(lags)}", dims=n.dims, kind=n.kind)
            dim = n.attr("dim") if n.op == "window" else None
            far = tuple(range(sizes[dim])) if dim is not None else (n.attr("n"),)
            lags.append(Lag(leaf, substitute(n.args, mapping)[0], far, dim))
            mapping[n] = leaf
    return substitute(values, mapping), lags


def _reach(lags: list[Lag]) -> int:
    """How many tokens back anything is read, lags of lags included."""
    far: dict[Node, int] = {}
    for lag in lags:
        far[lag.leaf] = max(lag.distances) + max([0, *(far[n] for n in postorder([lag.of]) if n in far)])
    return max([0, *far.values()])


def _cot(d: Decl, role: str) -> Node:
    return make("cot", name=f"{role}:{d.name}", dims=d.dims, kind=d.kind)


def _lag_cot(lag: Lag) -> Node:
    return make("cot", name=lag.leaf.attr("name"), dims=lag.of.dims, kind=lag.of.kind)


def _found(grads: list[Node | None], wrt: list[Node]) -> dict[Node, Node]:
    return {leaf: g for leaf, g in zip(wrt, grads, strict=True) if g is not None}


class _Run:
    def __init__(self, plan: Tokens, ports: Ports, T: int, fresh: Any,
                 watch: Callable[[Node, list[Value]], None] | None):
        self.plan, self.ports, self.T = plan, ports, T
        self.program, self.fresh = plan.program, fresh
        self.env = Env(self._leaf, plan.sizes, watch, plan.cotangents)
        self.known: dict[Node, Value] = {}
        self.sums: dict[Node, Value] = {}

    def results(self) -> Ports:
        states = self.forward()
        found: Ports = {("out", d.name): self._full(self.plan.outs[d.name], d) for d in self.program.outs}
        found |= {("next", name): s for name, s in states.items()}
        start = self._backward()
        for d in self.program.states:
            keep = self.fresh.reshape(-1, *[1] * (1 + len(d.dims)))
            self._start(d, np.where(keep, start[d.name], ZERO))
            found["state", d.name] = widen(np.where(keep, ZERO, start[d.name]), d.dims, self.env.sizes)
        for d in (*self.program.ins, *self.program.params):
            g = self.sums.get(d.leaf(), self._zero(d))
            found[d.role, d.name] = widen(self._every(g) if d.role == "in" else g, d.dims, self.env.sizes)
        return found

    # ------------------------------------------------------------ leaves
    def _leaf(self, node: Node) -> Value:
        if node.op == "cot":
            role, _, name = node.attr("name").partition(":")
            return self.ports[role, name]
        return self.ports[node.op, node.attr("name", "")]

    def _zero(self, d: Decl | Node) -> Value:
        return numbers(np.zeros((1,) * (BATCH + len(d.dims))))

    def _full(self, node: Node, d: Decl) -> Value:
        """The value of a node of every token, its dims those of a declaration in their order."""
        x = widen(self._every(self.known[node]), node.dims, self.env.sizes)
        return x.transpose(0, 1, *[BATCH + node.dims.index(n) for n in d.dims])

    def _every(self, x: Value) -> Value:
        return np.broadcast_to(x, (x.shape[0], self.T, *x.shape[BATCH:]))

    # ------------------------------------------------------------ forward
    def forward(self) -> dict[str, Value]:
        """Fills `known` with every value of all tokens; the final states."""
        for lag in self.plan.lags:
            (x,) = evaluate([lag.of], self.env, self.known)
            shifted = [_shift(self._every(x), n) for n in lag.distances]
            self.known[lag.leaf] = shifted[0] if lag.dim is None else np.stack(shifted, BATCH)
        loop = [n for n in postorder([*self.plan.outs.values(), *self.plan.next.values()]) if n in self.plan.carried]
        border = [a for n in loop for a in n.args if a not in self.plan.carried]
        evaluate([*border, *(n for n in (*self.plan.outs.values(), *self.plan.next.values())
                             if n not in self.plan.carried)], self.env, self.known)
        states = {d.name: self._first(d) for d in self.program.states}
        history: dict[Node, list[Value]] = {n: [] for n in loop}
        for t in range(self.T):
            now = {a: _at(self.known[a], t) for a in border}
            now |= {d.leaf(): states[d.name] for d in self.program.states}
            for n in loop:
                if n.op != "state":
                    now[n] = compute(n, [now[a] for a in n.args], self.env)
                history[n].append(now[n])
            states = {d.name: self._next(d, now, t) for d in self.program.states}
        self.known |= {n: _over_time(parts) for n, parts in history.items()}
        return states

    def _first(self, d: Decl) -> Value:
        given = self.ports["state", d.name]
        start = self._zero(d)
        if d.name in self.plan.inits:
            init = self.plan.inits[d.name]
            (start,) = evaluate([init], self.env, self.known)
            start = align(start, init.dims, d.dims)
        return np.where(self.fresh.reshape(-1, *[1] * (1 + len(d.dims))), start, given)

    def _next(self, d: Decl, now: dict[Node, Value], t: int) -> Value:
        node = self.plan.next[d.name]
        x = now[node] if node in now else _at(self.known[node], t)
        return widen(align(x, node.dims, d.dims), d.dims, self.env.sizes)

    # ------------------------------------------------------------ backward
    def _backward(self) -> dict[str, Value]:
        """Fills `sums` with gradients; the cotangents of the initial states."""
        plan = self.plan
        chain = {_cot(d, "next"): self.ports["next", d.name] for d in self.program.states}
        loop = [n for n in postorder(plan.grads.values()) if n in plan.chained and n not in chain]
        border = [a for n in loop for a in n.args if a not in plan.chained]
        evaluate([*border, *(g for g in plan.grads.values() if g not in plan.chained)], self.env, self.known)
        pieces: dict[Node, list[Value]] = {leaf: [] for leaf, g in plan.grads.items() if g in plan.chained}
        for t in reversed(range(self.T)):
            now = {a: _at(self.known[a], t) for a in border} | chain
            for n in loop:
                now[n] = compute(n, [now[a] for a in n.args], self.env)
            for leaf, found in pieces.items():
                found.append(align(now[plan.grads[leaf]], plan.grads[leaf].dims, leaf.dims))
            chain = {_cot(d, "next"): self._previous(d, now, t) for d in self.program.states}
        for leaf, g in plan.grads.items():
            whole = (_over_time(pieces[leaf][::-1]) if leaf in pieces else align(self.known[g], g.dims, leaf.dims))
            if leaf.op != "state":
                self._add(leaf, self._every(whole))
        for lag, grads in zip(reversed(plan.lags), reversed(plan.lag_grads), strict=True):
            self._through(lag, grads)
        return {d.name: chain[_cot(d, "next")] for d in self.program.states}

    def _previous(self, d: Decl, now: dict[Node, Value], t: int) -> Value:
        g = self.plan.grads.get(d.leaf())
        if g is None:
            return self._zero(d)
        return align(now[g] if g in now else _at(self.known[g], t), g.dims, d.dims)

    def _through(self, lag: Lag, grads: dict[Node, Node]) -> None:
        """The cotangent of a lag belongs to what it shifts, that many tokens earlier."""
        c = self.sums.get(lag.leaf)
        if c is None:
            return
        if lag.dim is None:
            back = _shift(c, -lag.distances[0])
        else:
            c = widen(c, lag.leaf.dims, self.env.sizes)
            back = reduce(add, [_shift(np.take(c, w, BATCH), -w) for w in lag.distances])
        known = {**self.known, _lag_cot(lag): back}
        for leaf, value in zip(grads, evaluate(grads.values(), self.env, known), strict=True):
            self._add(leaf, self._every(align(value, grads[leaf].dims, leaf.dims)))

    def _start(self, d: Decl, c: Value) -> None:
        """The cotangent of a declared start goes to the params it reads."""
        grads = self.plan.init_grads.get(d.name, {})
        known = {**self.known, _cot(d, "next"): c}
        for leaf, value in zip(grads, evaluate(grads.values(), self.env, known), strict=True):
            self._add(leaf, align(value, grads[leaf].dims, leaf.dims))

    def _add(self, leaf: Node, c: Value) -> None:
        if leaf.op == "param":  # the same for every token
            c = reduce(add, [_at(c, t) for t in range(c.shape[1])])
        self.sums[leaf] = self.sums[leaf] + c if leaf in self.sums else c


def _at(x: Value, t: int) -> Value:
    return x if x.shape[1] == 1 else x[:, t:t + 1]


def _over_time(parts: list[Value]) -> Value:
    if len({p.shape for p in parts}) > 1:  # size 1 where a value did not vary yet
        parts = list(np.broadcast_arrays(*parts))
    return np.concatenate(parts, 1)


def _shift(x: Value, n: int) -> Value:
    """x of n tokens ago (n < 0: ahead), 0 where there was none."""
    T = x.shape[1]
    src = np.arange(T) - n
    there = ((src >= 0) & (src < T)).reshape(1, T, *[1] * (x.ndim - BATCH))
    return np.where(there, np.take(x, np.clip(src, 0, T - 1), 1), ZERO)
