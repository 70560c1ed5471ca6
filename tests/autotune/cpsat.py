"""The same space for OR-tools' CP-SAT: an independent opinion on what has a solution, and on the best one."""

from __future__ import annotations

from typing import Any

from ortools.sat.python import cp_model

from mixc.autotune.space import Constraint, Space, Term

WIDE = 1 << 30  # bounds of every subexpression


class CpSat:
    def __init__(self, space: Space):
        self.model = cp_model.CpModel()
        self.domains = space.domains
        self.vars: dict[str, Any] = {}
        self.known: dict[int, Any] = {}
        for name, d in space.domains.items():
            domain = cp_model.Domain.from_values(d.values) if d.values else cp_model.Domain(d.lo, min(d.hi, WIDE >> 5))
            self.vars[name] = self.model.new_int_var_from_domain(domain, name)
        for c in space.constraints:
            self._require(c, [])

    def _require(self, c: Constraint, when: list[Any]) -> None:
        if c.op == "and":
            for a in c.args:
                self._require(a, when)
        elif c.op == "or":
            picks = [self.model.new_bool_var("") for _ in c.args]
            for pick, a in zip(picks, c.args, strict=True):
                self._require(a, [*when, pick])
            self.model.add_bool_or(picks).only_enforce_if(when)
        else:
            a, b = (self._term(t) for t in c.args)
            relation = {"eq": a == b, "ne": a != b, "le": a <= b, "lt": a < b}[c.op]
            made = self.model.add(relation)
            if when:
                made.only_enforce_if(when)

    def _term(self, t: Term) -> Any:
        if t.op == "const":
            return t.value
        if t.op == "var":
            return self.vars[t.name]
        if id(t) not in self.known:
            self.known[id(t)] = self._made(t)
        return self.known[id(t)]

    def _made(self, t: Term) -> Any:
        a, b = (self._term(x) for x in t.args)
        if t.op in ("add", "sub"):
            return a + b if t.op == "add" else a - b
        if t.op == "mul" and (isinstance(a, int) or isinstance(b, int)):
            return a * b
        z = self.model.new_int_var(1 if t.op in ("mul", "pow") and self._positive(t) else -WIDE, WIDE, "")
        if t.op == "mul":
            self.model.add_multiplication_equality(z, [a, b])
        elif t.op == "pow":
            self.model.add_multiplication_equality(z, [a] * t.args[1].value)
        elif t.op == "mod":
            self.model.add_modulo_equality(z, a, b)
        elif t.op == "floordiv":
            self.model.add_division_equality(z, a, b)
        elif t.op == "cdiv":
            self.model.add_division_equality(z, a + b - 1, b)
        else:
            {"min": self.model.add_min_equality, "max": self.model.add_max_equality}[t.op](z, [a, b])
        return z

    def _positive(self, t: Term) -> bool:
        if t.op in ("var", "const"):
            return (t.value if t.op == "const" else self.domains[t.name].lo) > 0
        return t.op in ("mul", "pow", "add") and all(map(self._positive, t.args))

    def solve(self) -> dict[str, int] | None:
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        status = solver.solve(self.model)
        assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.INFEASIBLE), self.model.validate()
        return None if status == cp_model.INFEASIBLE else {n: solver.value(v) for n, v in self.vars.items()}

    def lexicographic(self, order: list[tuple[str, str]]) -> list[int] | None:
        """The best values of the variables in `order`, one after the other."""
        found = []
        for name, want in order:
            (self.model.maximize if want == "max" else self.model.minimize)(self.vars[name])
            point = self.solve()
            if point is None:
                return None
            found.append(point[name])
            self.model.add(self.vars[name] == point[name])
        return found
