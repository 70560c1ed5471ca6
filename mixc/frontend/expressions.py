"""Expressions: from syntax to nodes, with the rules for dims and kinds checked on the way.

A value of None is poison: what is wrong with it has been reported.
"""

from __future__ import annotations

from mixc.frontend import functions
from mixc.frontend.names import VALUES, WORDS
from mixc.frontend.scope import Scope, is_scalar, shown
from mixc.frontend.syntax import Binary, Call, Compare, Expr, Index, Name, Number, Unary, spelled
from mixc.ir.node import Node, make, number, postorder
from mixc.ir.ranges import bounds

_ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_EXACT = {"number", "pos", "index", "size", "const", "add", "sub", "mul", "neg", "mod", "floordiv", "ipow", "rename",
          "pick", "to_number"}


def value(scope: Scope, e: Expr) -> Node | None:
    """The node of an expression."""
    match e:
        case Number():
            return number(e.value)
        case Name():
            return scope.read(e)
        case Unary():
            return _unary(scope, e)
        case Binary(op="and" | "or"):
            a, b = condition(scope, e.left), condition(scope, e.right)
            return None if a is None or b is None else make(e.op, a, b, span=e.span)
        case Binary():
            left, right = numeral(scope, e.left), numeral(scope, e.right)
            return None if left is None or right is None else _binary(scope, e, left, right)
        case Compare():
            return _compare(scope, e)
        case Index():
            return _index(scope, e)
    return _call(scope, e)


def numeral(scope: Scope, e: Expr) -> Node | None:
    """The node of an expression used as a number: a condition becomes 1 or 0."""
    return functions.as_number(value(scope, e))


def condition(scope: Scope, e: Expr) -> Node | None:
    """The node of an expression used as a condition."""
    node = value(scope, e)
    if node is not None and node.kind != "bool":
        scope.error("MX214", f"`{spelled(e)}` is a number, and a condition is wanted", e.span,
                    f"compare it: `{spelled(e)} > 0`")
        return None
    return node


def _unary(scope: Scope, e: Unary) -> Node | None:
    if e.op == "not":
        x = condition(scope, e.arg)
        return None if x is None else make("not", x, span=e.span)
    x = numeral(scope, e.arg)
    if x is None or e.op == "+":
        return x
    return number(-x.attr("value")) if x.op == "number" else make("neg", x, span=e.span)


def _binary(scope: Scope, e: Binary, a: Node, b: Node) -> Node | None:
    if e.op in _ARITHMETIC:
        return make(_ARITHMETIC[e.op], a, b, span=e.span)
    if e.op == "**":
        return _power(scope, e, a, b)
    if e.op == "@":
        return _contraction(scope, e, a, b)
    for x, side in ((a, e.left), (b, e.right)):
        if not all(n.op in _EXACT or _power_of_two(n) for n in postorder([x])) or x.kind == "complex":
            scope.error("MX216", f"`{e.op}` works on exact integers, and `{spelled(side)}` may be anything", side.span,
                        "it takes pos, index[K], loop indices, numbers, and 2 to the power of those")
            return None
    return make("mod" if e.op == "%" else "floordiv", a, b, span=e.span)


def _power_of_two(n: Node) -> bool:
    """Exact in whatever it is formed."""
    return n.op == "pow" and n.args[0] is number(2) and bounds(n.args[1]).nonnegative


def _power(scope: Scope, e: Binary, a: Node, b: Node) -> Node | None:
    """An integer exponent makes a product; consts in it then shape the step."""
    if is_scalar(b) and (b.op == "number" or not is_scalar(a)):
        n = scope.numeric(b)
        if isinstance(n, float) and n.is_integer() and abs(n) < 2 ** 31:
            scope.shaping(b)
            return make("ipow", a, span=e.span, n=int(n))
    return make("pow", a, b, span=e.span)


def _contraction(scope: Scope, e: Binary, a: Node, b: Node) -> Node | None:
    shared = [d for d in a.dims if d in b.dims]
    if shared:
        out = tuple(d for d in dict.fromkeys((*a.dims, *b.dims)) if d not in shared)
        return make("contract", a, b, span=e.span, out=out)
    left, right = spelled(e.left), spelled(e.right)
    other = _other_declaration(scope, e.right, a) or _other_declaration(scope, e.left, b)
    outer = f"`{left} * {right}` is the outer product"
    if other and len(a.dims) == len(b.dims) == 1:
        other = f"{other} {outer}"
    scope.error("MX203", f"`{spelled(e)}` shares no dim: {left} is {shown(a.dims)}, {right} is {shown(b.dims)}", e.span,
                other or ("`*` multiplies by a number" if not a.dims or not b.dims else outer))
    return None


def _other_declaration(scope: Scope, e: Expr, other: Node) -> str | None:
    """How the name `e` would have to be declared to share the dim of `other`; states come first."""
    b = scope.names.get(e.name) if isinstance(e, Name) else None
    if b is None or b.dims is None or len(b.dims) < len(other.dims) or not other.dims:
        return None
    dims = (*other.dims, *b.dims[len(other.dims):])
    return (f"{b.name} was declared with {shown(b.dims)} on line {b.span.line}; "
            f"did you mean `{b.role} {b.name}{shown(dims)}`?")


def _compare(scope: Scope, e: Compare) -> Node | None:
    operands = [numeral(scope, x) for x in e.operands]
    result: Node | None = None
    if None in operands:
        return None
    for op, a, b in zip(e.ops, operands, operands[1:], strict=False):
        assert a is not None and b is not None
        if op not in ("==", "!=") and "complex" in (a.kind, b.kind):
            scope.error("MX213", f"`{op}`: complex values have no order", e.span, "compare `abs(x)` or `real(x)`")
            return None
        if op in (">", ">="):
            a, b = b, a
        name = {"<": "lt", ">": "lt", "<=": "le", ">=": "le", "==": "eq", "!=": "ne"}[op]
        one = make(name, a, b, span=e.span)
        result = one if result is None else make("and", result, one, span=e.span)
    return result


# ---------------------------------------------------------------- x[...]
def _index(scope: Scope, e: Index) -> Node | None:
    if isinstance(e.base, Name) and e.base.name not in scope.names and e.base.name in WORDS:
        return _index_of(scope, e, e.base.name)
    x = numeral(scope, e.base)
    loops = [n for n in e.entries if n.name in scope.names and scope.names[n.name].role == "loop"]
    for n in loops:
        loop = scope.names[n.name]
        loop.reads += 1
        if x is not None and loop.dim not in x.dims:
            scope.error("MX217", f"`{spelled(e.base)}` is {shown(x.dims)} and has no dim {loop.dim} to pick from",
                        n.span, f"{n.name} runs over {loop.dim}")
            x = None
        elif x is not None and loop.node is not None:
            x = make("pick", x, span=e.span, dim=loop.dim, i=int(loop.node.attr("value")))
    names = tuple(n for n in e.entries if n not in loops)
    if x is None or not names:
        return x
    picked = {scope.names[n.name].dim for n in loops}
    declared = scope.names[e.base.name].dims if isinstance(e.base, Name) and e.base.name in scope.names else None
    have = tuple(d for d in (declared or scope.order(x.dims)) if d not in picked)
    return _renamed(scope, e, x, have, names)


def _renamed(scope: Scope, e: Index, x: Node, have: tuple[str, ...], names: tuple[Name, ...]) -> Node | None:
    locals_ = [n for n in names if n.name in scope.names and scope.names[n.name].role != "dim"]
    if locals_:
        scope.error("MX217", f"`{locals_[0].name}` in brackets is no dim and no loop index", locals_[0].span,
                    f"products are written `{spelled(e.base)} * {locals_[0].name}`")
        return None
    new = scope.known_dims(names, f"`{spelled(e.base)}`")
    if new is None:
        return None
    if len(new) != len(have):
        scope.error("MX217", f"`{spelled(e)}` names {len(new)} of its dims, and it has {shown(have)}", e.span,
                    "brackets name all remaining dims, or none")
        return None
    if len(set(new)) != len(new):
        scope.error("MX217", f"`{spelled(e)}` names a dim twice", e.span, "no value has one dim twice")
        return None
    for a, b in zip(have, new, strict=True):
        if not scope.one_size(a, b):
            scope.error("MX217", f"`{spelled(e)}` exchanges {a} for {b}, which may have another size", e.span,
                        f"if it has not, say so in the header: `{b} = {a}`; "
                        f"the order of the dims here is {shown(have)}")
            return None
    to = tuple((a, b) for a, b in zip(have, new, strict=True) if a != b)
    return make("rename", x, span=e.span, to=to) if to else x


def _index_of(scope: Scope, e: Index, word: str) -> Node | None:
    if word in VALUES:
        scope.error("MX217", f"`{word}` is one number, and has no dims", e.span,
                    f"write `{word}`; `index[K]` counts along K")
        return None
    if word != "index":
        scope.error("MX212", f"`{spelled(e)}` lacks its argument", e.span, f"write `{spelled(e)}(x)`")
        return None
    dims = scope.known_dims(e.entries, "`index`")
    if dims is not None and len(dims) != 1:
        scope.error("MX217", "`index` counts along one dim", e.span, "write `index[K]`")
        return None
    return None if dims is None else make("index", dims=dims)


def _call(scope: Scope, e: Call) -> Node | None:
    if e.fn.name in scope.names:
        b = scope.names[e.fn.name]
        b.reads += 1
        if b.node is not None or b.role == "dim":
            scope.error("MX212", f"`{e.fn.name}` is a value, and no function", e.fn.span,
                        f"a product is written `{e.fn.name} * (...)`")
        return None
    if e.fn.name == "grad":
        return functions.grad(scope, e, [numeral(scope, a) for a in e.args])
    if e.fn.name == "where" and len(e.args) == 3:
        args = [condition(scope, e.args[0]), *(numeral(scope, a) for a in e.args[1:])]
    else:
        args = [numeral(scope, a) for a in e.args]
    return functions.call(scope, e, args)
