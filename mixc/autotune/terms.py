"""Integer expressions and constraints, written with Python's operators and printed back readably.

`C * warps + ceil_div(K, BK) <= 96` is a constraint object; nothing is decided until a `Space` solves it.
Comparison is overloaded, so terms compare by identity in sets and dicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Number = int | float
Values = Mapping[str, int]


class Term:
    """An expression: `op` is "var", "const" or an operation; `args` its operands.

    `/` and float constants are for costs only; constraints are over the integers."""

    __slots__ = ("args", "name", "op", "rounded", "value")
    rounded: Term  # `whole`, once it was asked for

    def __init__(self, op: str, args: tuple[Any, ...] = (), name: str = "", value: Number = 0):
        self.op, self.args, self.name, self.value = op, args, name, value

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError(f"`{self}` has no value yet")

    def __add__(self, o: Termlike) -> Term: return operation("add", self, o)
    def __radd__(self, o: Termlike) -> Term: return operation("add", o, self)
    def __sub__(self, o: Termlike) -> Term: return operation("sub", self, o)
    def __rsub__(self, o: Termlike) -> Term: return operation("sub", o, self)
    def __mul__(self, o: Termlike) -> Term: return operation("mul", self, o)
    def __rmul__(self, o: Termlike) -> Term: return operation("mul", o, self)
    def __floordiv__(self, o: Termlike) -> Term: return operation("floordiv", self, o)
    def __rfloordiv__(self, o: Termlike) -> Term: return operation("floordiv", o, self)
    def __mod__(self, o: Termlike) -> Term: return operation("mod", self, o)
    def __rmod__(self, o: Termlike) -> Term: return operation("mod", o, self)
    def __pow__(self, o: Termlike) -> Term: return operation("pow", self, o)
    def __rpow__(self, o: Termlike) -> Term: return operation("pow", o, self)
    def __truediv__(self, o: Termlike) -> Term: return operation("div", self, o)
    def __rtruediv__(self, o: Termlike) -> Term: return operation("div", o, self)
    def __neg__(self) -> Term: return operation("sub", 0, self)

    def __eq__(self, o: object) -> Constraint: return Constraint("eq", (self, term(o)))  # type: ignore[override]
    def __ne__(self, o: object) -> Constraint: return Constraint("ne", (self, term(o)))  # type: ignore[override]
    def __le__(self, o: Termlike) -> Constraint: return Constraint("le", (self, term(o)))
    def __lt__(self, o: Termlike) -> Constraint: return Constraint("lt", (self, term(o)))
    def __ge__(self, o: Termlike) -> Constraint: return Constraint("le", (term(o), self))
    def __gt__(self, o: Termlike) -> Constraint: return Constraint("lt", (term(o), self))

    def __str__(self) -> str:
        return _text(self, 0)

    __repr__ = __str__

    def evaluate(self, values: Values, known: dict[int, Number] | None = None) -> Number:
        """The value at a point. Raises ZeroDivisionError where it has none.

        `known`: what was evaluated there already, by id, of terms that are still there."""
        if self.op == "const":
            return self.value
        if self.op == "var":
            return values[self.name]
        known = {} if known is None else known
        found = known.get(id(self))
        if found is None:
            found = known[id(self)] = self._evaluated(values, known)
        return found

    def _evaluated(self, values: Values, known: dict[int, Number]) -> Number:
        if self.op == "where":
            condition, yes, no = self.args
            if condition.holds(values):
                return yes.evaluate(values, known)
            if (~condition).holds(values):
                return no.evaluate(values, known)
            raise ZeroDivisionError(f"`{condition}` has no value")
        a, b = self.args
        return APPLY[self.op](a.evaluate(values, known), b.evaluate(values, known))


class Constraint:
    """A relation between terms, or `&`, `|`, `~` of constraints. `why` is what a person calls it."""

    __slots__ = ("args", "op", "why")

    def __init__(self, op: str, args: tuple[Any, ...], why: str = ""):
        self.op, self.args, self.why = op, args, why

    def __bool__(self) -> bool:
        raise TypeError(f"`{self}` is a constraint, no condition: join constraints with & and |, and do not chain them")

    def __and__(self, o: Constraint) -> Constraint: return Constraint("and", (self, o))
    def __or__(self, o: Constraint) -> Constraint: return Constraint("or", (self, o))

    def __invert__(self) -> Constraint:
        if self.op in ("and", "or"):
            return Constraint("or" if self.op == "and" else "and", tuple(~a for a in self.args))
        a, b = self.args
        op = {"eq": "ne", "ne": "eq", "le": "lt", "lt": "le"}[self.op]
        return Constraint(op, (a, b) if self.op in ("eq", "ne") else (b, a))

    def __str__(self) -> str:
        if self.op in ("and", "or"):
            return f" {'&' if self.op == 'and' else '|'} ".join(f"({a})" for a in self.args)
        sign = {"eq": "==", "ne": "!=", "le": "<=", "lt": "<"}[self.op]
        return f"{self.args[0]} {sign} {self.args[1]}"

    __repr__ = __str__

    def holds(self, values: Values) -> bool:
        """Is it true at a point? A term without a value there (a division by 0) makes its relation false."""
        if self.op == "and":
            return all(a.holds(values) for a in self.args)
        if self.op == "or":
            return any(a.holds(values) for a in self.args)
        try:
            a, b = (t.evaluate(values) for t in self.args)
        except ZeroDivisionError:
            return False
        return bool(a == b if self.op == "eq" else a != b if self.op == "ne" else a <= b if self.op == "le" else a < b)


Termlike = Term | int | float


# What was written before is the same object, so that it is worked out once; the entry holds the operands whose ids are
# its key. Forgotten when it grows.
_written: dict[tuple[Any, ...], Term] = {}
_MOST = 1 << 15


def _once(key: tuple[Any, ...], op: str, args: tuple[Any, ...] = (), name: str = "", value: Number = 0) -> Term:
    found = _written.get(key)
    if found is None:
        if len(_written) >= _MOST:
            _written.clear()
        found = _written[key] = Term(op, args, name, value)
    return found


def term(x: object) -> Term:
    if isinstance(x, Term):
        return x
    if x.__class__ is int or x.__class__ is float:
        return _once((x.__class__, x), "const", value=x)
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        return _once((type(x), x), "const", value=x)
    raise TypeError(f"{x!r} is no number and no term")


def variable(name: str) -> Term:
    return _once(("var", name), "var", name=name)


def operation(op: str, a: Termlike, b: Termlike) -> Term:
    """A term; operations on numbers are done at once, and those that change nothing are not written."""
    a = a if a.__class__ is Term else term(a)
    b = b if b.__class__ is Term else term(b)
    found = _written.get(key := (op, id(a), id(b)))
    if found is not None:
        return found
    if b.op == "const":
        if a.op == "const":
            return term(APPLY[op](a.value, b.value))
        if _NEUTRAL.get(op) == b.value:
            return a
    elif a.op == "const" and op != "sub" and _NEUTRAL.get(op) == a.value:
        return b
    return _once(key, op, (a, b))


def ceil_div(a: Termlike, b: Termlike) -> Term:
    return operation("cdiv", a, b)


def _fold(op: str, items: Iterable[Termlike]) -> Term:
    first, *rest = items
    out = term(first)
    for x in rest:
        out = operation(op, out, x)
    return out


def minimum(*items: Termlike) -> Term:
    return _fold("min", items)


def maximum(*items: Termlike) -> Term:
    return _fold("max", items)


def product(items: Iterable[Termlike]) -> Term:
    return _fold("mul", [*items] or [1])


def total(items: Iterable[Termlike]) -> Term:
    return _fold("add", [*items] or [0])


def where(condition: Constraint, yes: Termlike, no: Termlike) -> Term:
    """One of two terms; a condition on numbers decides at once."""
    if all(a.__class__ is Term and a.op == "const" for a in condition.args):
        return term(yes if condition.holds({}) else no)
    key = condition.op, *map(id, condition.args), id(term(yes)), id(term(no))
    return _once(("where", *key), "where", (condition, term(yes), term(no)))


def divides(d: Termlike, n: Termlike) -> Constraint:
    return term(n) % d == 0


def _power(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b < 0:
        raise ZeroDivisionError("a negative power of an integer")
    return a ** b


APPLY: dict[str, Callable[..., Number]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b, "mod": lambda a, b: a % b, "pow": _power, "min": min, "max": max,
    "cdiv": lambda a, b: -(-a // b),
}
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1}
_SIGN = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2), "floordiv": ("//", 2), "mod": ("%", 2),
         "pow": ("**", 3)}


def _text(t: Term, outer: int) -> str:
    if t.op == "var":
        return t.name
    if t.op == "const":
        return f"{t.value}" if isinstance(t.value, int) or not math.isfinite(t.value) else f"{t.value:g}"
    if t.op not in _SIGN:
        name = {"cdiv": "ceil_div", "min": "minimum", "max": "maximum"}.get(t.op, t.op)
        return f"{name}({', '.join(map(str, t.args))})"
    sign, level = _SIGN[t.op]
    a, b = t.args
    right = level if t.op in ("add", "mul") and b.op == t.op else level + 1
    text = f"{_text(a, level + (t.op == 'pow'))} {sign} {_text(b, right)}"
    return f"({text})" if level < outer else text
