"""Specs rewritten at random into others of the same meaning, and disturbed into others of another one.

Works on the syntax tree, so that loops stay loops; `text` writes a tree out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from mixc.errors import Source
from mixc.frontend.parse import parse
from mixc.frontend.syntax import (
    Assign,
    Binary,
    Call,
    Compare,
    Declare,
    Expr,
    For,
    Index,
    MixerSyntax,
    Name,
    Number,
    Statement,
    Unary,
    children,
    expressions,
)

Rule = Callable[[Expr], Expr | None]


def read(spec: str) -> MixerSyntax:
    (mixer,) = parse(Source("<rewritten>", spec))
    return mixer


# ---------------------------------------------------------------- writing a tree
def text(m: MixerSyntax) -> str:
    dims = [d.name.name + ("" if d.value is None else f" = {_size(d.value)}") for d in m.dims]
    return f"mixer {m.name}({', '.join(dims)}) {{\n" + "".join(_line(s, "    ") for s in m.body) + "}\n"


def _size(v: Name | Number) -> str:
    return v.name if isinstance(v, Name) else str(int(v.value.real))


def _line(s: Statement, pad: str) -> str:
    if isinstance(s, For):
        inner = "".join(_line(x, pad + "    ") for x in s.body)
        return f"{pad}for {s.var.name} in {s.dim.name} {{\n{inner}{pad}}}\n"
    if isinstance(s, Assign):
        return f"{pad}{s.target.name} {s.op or ''}= {_spell(s.value)}\n"
    dims = f"[{', '.join(d.name for d in s.dims)}]" if s.dims else ""
    value = f" = {_spell(s.value)}" if s.value is not None else ""
    where = f" where {_spell(s.where, bare=True)}" if s.where is not None else ""
    return f"{pad}{s.role} {s.name.name}{dims}{value}{' complex' if s.is_complex else ''}{where}\n"


def _spell(e: Expr, bare: bool = False) -> str:
    """With brackets around every operation: precedence is the parser's business."""
    match e:
        case Number():
            return repr(e.value)
        case Name():
            return e.name
        case Unary():
            return f"({e.op} {_spell(e.arg)})"
        case Binary():
            inner = f"{_spell(e.left, bare)} {e.op} {_spell(e.right, bare)}"
            return inner if bare and e.op == "and" else f"({inner})"
        case Compare():
            rest = "".join(f" {op} {_spell(x)}" for op, x in zip(e.ops, e.operands[1:], strict=True))
            return f"{_spell(e.operands[0])}{rest}" if bare else f"({_spell(e.operands[0])}{rest})"
        case Index():
            return f"{_spell(e.base)}[{', '.join(n.name for n in e.entries)}]"
    dims = f"[{', '.join(d.name for d in e.dims)}]" if e.dims is not None else ""
    return f"{e.fn.name}{dims}({', '.join(map(_spell, e.args))})"


# ---------------------------------------------------------------- laws
def num(v: float, like: Expr) -> Expr:
    return Number(float(v), like.span)


def op(o: str, a: Expr, b: Expr) -> Expr:
    return Binary(o, a, b, a.span)


def neg(a: Expr) -> Expr:
    return Unary("-", a, a.span)


def fn(name: str, *args: Expr, dims: Any = None) -> Expr:
    return Call(Name(name, args[0].span), dims, args, args[0].span)


def _binary(o: str, law: Callable[[Expr, Expr], Expr | None]) -> Rule:
    return lambda e: law(e.left, e.right) if isinstance(e, Binary) and e.op == o else None


def _call(name: str, law: Callable[..., Expr | None]) -> Rule:
    return lambda e: law(*e.args) if isinstance(e, Call) and e.fn.name == name and e.dims is None else None


def _distribute(a: Expr, b: Expr) -> Expr | None:
    if isinstance(b, Binary) and b.op in "+-":
        return op(b.op, op("*", a, b.left), op("*", a, b.right))
    return None


def _associate(o: str) -> Rule:
    def law(a: Expr, b: Expr) -> Expr | None:
        if isinstance(a, Binary) and a.op == o:
            return op(o, a.left, op(o, a.right, b))
        if isinstance(b, Binary) and b.op == o:
            return op(o, op(o, a, b.left), b.right)
        return None
    return _binary(o, law)


def _factor(a: Expr, b: Expr) -> Expr | None:
    """a x + a y = a (x + y)"""
    same = isinstance(a, Binary) and isinstance(b, Binary) and a.op == b.op == "*" and _spell(a.left) == _spell(b.left)
    return op("*", a.left, op("+", a.right, b.right)) if same else None  # type: ignore[union-attr]


LAWS: tuple[Rule, ...] = (
    _binary("+", lambda a, b: op("+", b, a)),
    _binary("*", lambda a, b: op("*", b, a)),
    _binary("@", lambda a, b: op("@", b, a)),
    _associate("+"),
    _associate("*"),
    _binary("*", _distribute),
    _binary("+", _factor),
    _binary("-", lambda a, b: op("+", a, neg(b))),
    _binary("-", lambda a, b: neg(op("-", b, a))),
    _binary("+", lambda a, b: op("-", a, neg(b))),
    _binary("/", lambda a, b: op("*", a, op("/", num(1, a), b))),
    lambda e: op("*", num(-1, e), e.arg) if isinstance(e, Unary) and e.op == "-" else None,
    _call("exp", lambda x: op("*", fn("exp", x.left), fn("exp", x.right))
          if isinstance(x, Binary) and x.op == "+" else None),
    _call("exp", lambda x: op("/", num(1, x), fn("exp", neg(x)))),
    _call("exp", lambda x: op("+", fn("expm1", x), num(1, x))),
    _call("exp", lambda x: fn("square", fn("exp", op("/", x, num(2, x))))),
    _call("expm1", lambda x: op("-", fn("exp", x), num(1, x))),
    _call("sigmoid", lambda x: op("/", num(1, x), op("+", num(1, x), fn("exp", neg(x))))),
    _call("sigmoid", lambda x: op("-", num(1, x), fn("sigmoid", neg(x)))),
    _call("sigmoid", lambda x: op("/", op("+", num(1, x), fn("tanh", op("/", x, num(2, x)))), num(2, x))),
    _call("logsigmoid", lambda x: neg(fn("softplus", neg(x)))),
    _call("logsigmoid", lambda x: fn("log", fn("sigmoid", x))),
    _call("softplus", lambda x: fn("log1p", fn("exp", x))),
    _call("softplus", lambda x: fn("logaddexp", x, num(0, x))),
    _call("tanh", lambda x: op("-", op("*", num(2, x), fn("sigmoid", op("*", num(2, x), x))), num(1, x))),
    _call("silu", lambda x: op("*", x, fn("sigmoid", x))),
    _call("square", lambda x: op("*", x, x)),
    _call("square", lambda x: op("**", x, num(2, x))),
    _call("rsqrt", lambda x: op("/", num(1, x), fn("sqrt", x))),
    _call("sqrt", lambda x: op("*", x, fn("rsqrt", x))),
    _call("maximum", lambda a, b: fn("maximum", b, a)),
    _call("maximum", lambda a, b: neg(fn("minimum", neg(a), neg(b)))),
    _call("maximum", lambda a, b: fn("where", Compare((">",), (a, b), a.span), a, b)),
    _call("logaddexp", lambda a, b: fn("logaddexp", b, a)),
    _call("where", lambda c, a, b: fn("where", Unary("not", c, c.span), b, a)),
    _call("relu", lambda x: fn("maximum", x, num(0, x))),
    _call("elu", lambda x: fn("where", Compare((">",), (x, num(0, x)), x.span), x, fn("expm1", x))),
    _call("cos", lambda x: fn("cos", neg(x))),
    _call("sin", lambda x: neg(fn("sin", neg(x)))),
)
ANYWHERE: tuple[Callable[[Expr], Expr], ...] = (
    lambda e: neg(neg(e)), lambda e: op("*", e, num(1, e)), lambda e: op("+", e, num(0, e)),
    lambda e: op("/", op("*", num(4, e), e), num(4, e)))


# ---------------------------------------------------------------- one random step
def places(e: Expr) -> Iterator[tuple[Expr, Callable[[Expr], Expr]]]:
    """Numbers that may be spelled otherwise, each with the way to put another in its place.

    Not: exponents, what `%` and `//` work on, and names that `lag`, `grad` or brackets must see."""
    if isinstance(e, Number) or (isinstance(e, Binary) and e.op in ("%", "//")):
        return
    if isinstance(e, Call) and e.fn.name in ("lag", "grad"):
        return
    if not isinstance(e, Compare) and not (isinstance(e, Binary) and e.op in ("and", "or")) and not (
            isinstance(e, Unary) and e.op == "not"):
        yield e, lambda new: new
    kids = () if isinstance(e, Index) else children(e)
    for i, kid in enumerate(kids):
        if isinstance(e, Binary) and e.op == "**" and i == 1:
            continue
        for found, put in places(kid):
            yield found, lambda new, i=i, put=put: _with_child(e, i, put(new))  # type: ignore[misc]


def _with_child(e: Expr, i: int, new: Expr) -> Expr:
    match e:
        case Unary():
            return replace(e, arg=new)
        case Binary():
            return replace(e, left=new) if i == 0 else replace(e, right=new)
        case Compare():
            return replace(e, operands=tuple(new if j == i else x for j, x in enumerate(e.operands)))
    assert isinstance(e, Call)
    return replace(e, args=tuple(new if j == i else x for j, x in enumerate(e.args)))


def _lines(body: tuple[Statement, ...], at: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Statement]]:
    for i, s in enumerate(body):
        if isinstance(s, For):
            yield from _lines(s.body, (*at, i))
        elif s.value is not None and not (isinstance(s, Declare) and s.role == "state"):
            yield (*at, i), s


def _replaced(body: tuple[Statement, ...], at: tuple[int, ...], new: tuple[Statement, ...]) -> tuple[Statement, ...]:
    i, *rest = at
    if rest:
        loop = body[i]
        assert isinstance(loop, For)
        new = (replace(loop, body=_replaced(loop.body, tuple(rest), new)),)
    return (*body[:i], *new, *body[i + 1:])


def respell(m: MixerSyntax, rng: Random) -> MixerSyntax:
    """One expression spelled otherwise, or given a name."""
    at, s = rng.choice(list(_lines(m.body)))
    assert not isinstance(s, For) and s.value is not None
    found = list(places(s.value))
    if not found:
        return m
    e, put = rng.choice(found)
    is_const = isinstance(s, Declare) and s.role == "const"
    if rng.random() < 0.15 and not is_const and not isinstance(e, Name):
        name = Name(f"t{rng.randrange(10**6)}", e.span)
        local = Assign(name, e, e.span)
        return replace(m, body=_replaced(m.body, at, (local, replace(s, value=put(name)))))
    laws = [y for law in LAWS if (y := law(e)) is not None]
    new = rng.choice(laws) if laws and rng.random() < 0.85 else rng.choice(ANYWHERE)(e)
    return replace(m, body=_replaced(m.body, at, (replace(s, value=put(new)),)))


# ---------------------------------------------------------------- names and order
def rename(m: MixerSyntax, rng: Random) -> MixerSyntax:
    """Every name another one."""
    old = [d.name.name for d in m.dims] + [s.name.name for s in m.body if isinstance(s, Declare)]
    old += [s.target.name for s in _assigned(m.body)] + [s.var.name for s in m.body if isinstance(s, For)]
    new = [f"n{i}" for i in range(len(old))]
    rng.shuffle(new)
    table = dict(zip(old, new, strict=True))

    def walk(x: Any) -> Any:
        if isinstance(x, Name):
            return replace(x, name=table.get(x.name, x.name))
        if isinstance(x, tuple):
            return tuple(map(walk, x))
        if hasattr(x, "__dataclass_fields__") and not isinstance(x, (Number,)):
            fields = {f: walk(getattr(x, f)) for f in x.__dataclass_fields__
                      if f not in ("span", "source", "role", "op", "ops", "doc") and not (f == "name" and x is m)}
            return replace(x, **fields)
        return x
    return walk(m)  # type: ignore[no-any-return]


def _assigned(body: tuple[Statement, ...]) -> Iterator[Assign]:
    for s in body:
        if isinstance(s, For):
            yield from _assigned(s.body)
        elif isinstance(s, Assign):
            yield s


def reorder(m: MixerSyntax, rng: Random) -> MixerSyntax:
    """Declarations, the dims of the header and of declarations in another order."""
    head = [s for s in m.body if isinstance(s, Declare) and s.role != "out"]
    rest = tuple(s for s in m.body if not (isinstance(s, Declare) and s.role != "out"))
    consts = [s for s in head if s.role == "const"]  # one may read those above it
    others = [s for s in head if s.role != "const"]
    rng.shuffle(others)
    many = {e.base.name for e in expressions(m.body) if isinstance(e, Index) and isinstance(e.base, Name)
            and len(e.entries) > 1}
    body = (*consts, *(_shuffled(s, rng) if s.name.name not in many else s for s in others),
            *(_shuffled(s, rng) if isinstance(s, Declare) else s for s in rest))
    free = [d for d in m.dims if not isinstance(d.value, Name)]
    rng.shuffle(free)
    dims = (*free, *(d for d in m.dims if isinstance(d.value, Name)))
    return replace(m, dims=m.dims if many else dims, body=body)


def _shuffled(s: Declare, rng: Random) -> Declare:
    dims = list(s.dims)
    rng.shuffle(dims)
    return replace(s, dims=tuple(dims))


def rewritten(m: MixerSyntax, rng: Random, steps: int = 8) -> MixerSyntax:
    """The same function in other words."""
    for _ in range(steps):
        m = respell(m, rng)
    return rename(reorder(m, rng), rng)


# ---------------------------------------------------------------- another function
def disturbed(m: MixerSyntax, rng: Random) -> tuple[MixerSyntax, str]:
    """Nearly the same function: what an out or a state gets changed by 1e-6, a gradient cut, a default or a range."""
    outs = [at for at, s in _lines(m.body) if isinstance(s, Declare) and s.role == "out"]
    states = {s.name.name for s in m.body if isinstance(s, Declare) and s.role == "state"}
    last = {s.target.name: at for at, s in _lines(m.body) if isinstance(s, Assign) and s.target.name in states}
    consts = [at for at, s in _lines(m.body) if isinstance(s, Declare) and s.role == "const"]
    ranged = [(i,) for i, s in enumerate(m.body) if isinstance(s, Declare) and s.where is not None]
    at, how = rng.choice([(at, h) for h, ats in (("value", [*outs, *last.values()]), ("gradient", outs),
                                                 ("default", consts), ("range", ranged)) for at in ats])
    s = _line_at(m.body, at)
    if how == "range":
        new: Statement = replace(s, where=None)
    elif how == "gradient":
        new = replace(s, value=fn("stop_gradient", s.value))
    else:
        new = replace(s, value=op("*", num(1.000001, s.value), s.value))
    return replace(m, body=_replaced(m.body, at, (new,))), how


def _line_at(body: tuple[Statement, ...], at: tuple[int, ...]) -> Any:
    s = body[at[0]]
    return _line_at(s.body, at[1:]) if isinstance(s, For) else s
