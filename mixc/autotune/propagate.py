"""Constraints as a network of nodes with domains, and its fixed point.

Every subexpression is a node; `x op y = z` is a propagator over three of them, a relation one over two.  An
alternative of an `or` has nodes and propagators of its own, tried on a copy: what has no value there
(a division by 0) fails that alternative and nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mixc.autotune.domain import INF, Domain, interval, ints, meet, within, without
from mixc.autotune.narrow import narrow
from mixc.autotune.terms import Constraint, Term
from mixc.errors import InputError

Domains = list[Domain]
ANY = interval(-INF, INF)
STEPS = 20_000  # of one call: bounds that creep (x < y, y < x) are left to the search


@dataclass(frozen=True)
class Propagator:
    kind: str  # an operation, or "eq", "ne", "le", "lt", "or"
    nodes: tuple[int, ...]
    alternatives: tuple[tuple[Propagator, ...], ...] = ()

    def run(self, at: Domains) -> tuple[int, ...] | None:
        """Narrow the domains in place; the nodes that changed, or None if it cannot hold."""
        kind, nodes = self.kind, self.nodes
        if kind == "or":
            return self._either(at)
        if len(nodes) == 3:
            x, y, z = nodes
            new = narrow(kind, at[x], at[y], at[z])
            if new is None:
                return None
            if x == y:
                both = meet(new[0], new[1])
                if both is None:
                    return None
                new = both, both, new[2]
            return _write(at, nodes, new)
        a, b = nodes
        da, db = at[a], at[b]
        found: tuple[Domain | None, Domain | None]
        if kind == "eq":
            both = meet(da, db)
            found = both, both
        elif kind == "ne":
            found = (without(da, db.lo) if db.fixed else da), (without(db, da.lo) if da.fixed else db)
        else:
            gap = int(kind == "lt")
            found = (within(da, -INF, db.hi - gap if db.hi < INF else INF),
                     within(db, da.lo + gap if da.lo > -INF else -INF, INF))
        if a == b and kind in ("ne", "lt"):
            return None
        return None if found[0] is None or found[1] is None else _write(at, nodes, found)

    def _either(self, at: Domains) -> tuple[int, ...] | None:
        possible, left = 0, None
        for alternative in self.alternatives:
            trial = at.copy()
            if settle(alternative, trial):
                possible, left = possible + 1, trial
                if possible > 1:
                    return ()
        if left is None:
            return None
        changed = tuple(i for i, d in enumerate(left) if d is not at[i])
        at[:] = left
        return changed


def _write(at: Domains, nodes: tuple[int, ...], new: Any) -> tuple[int, ...]:
    changed: tuple[int, ...] = ()
    for node, d in zip(nodes, new, strict=True):
        if d is not at[node]:
            at[node] = d
            changed += (node,)
    return changed


def settle(propagators: tuple[Propagator, ...], at: Domains) -> bool:
    """Run a few propagators until nothing changes; False if they cannot all hold."""
    for _ in range(50):
        moved = False
        for p in propagators:
            changed = p.run(at)
            if changed is None:
                return False
            moved = moved or bool(changed)
        if not moved:
            break
    return True


@dataclass
class Network:
    """`start` holds every node's domain before propagation; `variables` maps names to nodes."""

    start: Domains = field(default_factory=list)
    propagators: list[Propagator] = field(default_factory=list)
    watchers: list[list[int]] = field(default_factory=list)
    variables: dict[str, int] = field(default_factory=dict)
    known: dict[Any, int] = field(default_factory=dict)

    # ------------------------------------------------------------ building
    def node(self, domain: Domain) -> int:
        self.start.append(domain)
        self.watchers.append([])
        return len(self.start) - 1

    def variable(self, name: str, domain: Domain) -> None:
        self.variables[name] = self.node(domain)

    def require(self, c: Constraint) -> None:
        for p in self.constraint(c, self.known):
            self.post(p)

    def post(self, p: Propagator) -> None:
        self.propagators.append(p)
        for n in _watched(p):
            self.watchers[n].append(len(self.propagators) - 1)

    def constraint(self, c: Constraint, known: dict[Any, int]) -> list[Propagator]:
        """The propagators that say c; terms found in `known` are shared."""
        if c.op == "and":
            return [p for a in c.args for p in self.constraint(a, known)]
        if c.op == "or":
            return [Propagator("or", (), tuple(tuple(self.constraint(a, dict(known))) for a in c.args))]
        out: list[Propagator] = []
        a, b = (self.term(t, known, out) for t in c.args)
        return [*out, Propagator(c.op, (a, b))]

    def term(self, t: Term, known: dict[Any, int], out: list[Propagator]) -> int:
        """The node of a term; the propagators that define it are added to `out`."""
        if t.op == "var":
            return self.variables[t.name]
        if t.op == "const":
            if not isinstance(t.value, int):
                raise InputError(f"{t.value} in a constraint: constraints are over the integers")
            key: Any = ("const", t.value)
            if key not in self.known:
                self.known[key] = self.node(ints((t.value,)))
            return self.known[key]
        if t.op == "div":
            raise InputError(f"`{t}`: a constraint divides with // or ceil_div")
        if t.op == "where":
            condition, yes, no = t.args
            key = ("where", id(t))
            if key not in known:
                z = self.node(ANY)  # type: ignore[arg-type]
                known[key] = z
                sides = []
                for c, value in ((condition, yes), (~condition, no)):
                    inner, parts = dict(known), []
                    parts += self.constraint(c, inner)
                    v = self.term(value, inner, parts)
                    sides.append((*parts, Propagator("eq", (z, v))))
                out.append(Propagator("or", (), tuple(sides)))
            return known[key]
        x, y = (self.term(a, known, out) for a in t.args)
        op = t.op
        if op in ("add", "mul", "min", "max") and x > y:
            x, y = y, x
        key = (op, x, y)
        if key not in known:
            z = known[key] = self.node(ANY)  # type: ignore[arg-type]
            out.append(Propagator("add", (z, y, x)) if op == "sub" else Propagator(op, (x, y, z)))
        return known[key]

    # ------------------------------------------------------------ the fixed point
    def propagate(self, at: Domains, changed: tuple[int, ...] | None = None) -> bool:
        """Narrow `at` until nothing changes (from all propagators, or those that watch `changed`)."""
        first = range(len(self.propagators)) if changed is None else {i for n in changed for i in self.watchers[n]}
        waiting = deque(sorted(first))
        queued = set(waiting)
        for _ in range(STEPS):
            if not waiting:
                return True
            i = waiting.popleft()
            queued.discard(i)
            touched = self.propagators[i].run(at)
            if touched is None:
                return False
            for n in touched:
                for j in self.watchers[n]:
                    if j not in queued:
                        queued.add(j)
                        waiting.append(j)
        return True


def _watched(p: Propagator) -> set[int]:
    found = set(p.nodes)
    for alternative in p.alternatives:
        for q in alternative:
            found |= _watched(q)
    return found
