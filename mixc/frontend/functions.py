"""Calls: functions, reductions, `lag` and `grad`."""

from __future__ import annotations

from functools import reduce

from mixc.frontend.names import FUNCTIONS, REAL_ONLY, REDUCTIONS, nearest
from mixc.frontend.scope import Binding, Scope, shown
from mixc.frontend.slips import instead
from mixc.frontend.syntax import Call, Name, spelled
from mixc.ir.node import Node, depends, make, number, postorder

Args = list[Node | None]
MAX_LAG = 1 << 20


def as_number(x: Node | None) -> Node | None:
    return make("to_number", x) if x is not None and x.kind == "bool" else x


def call(scope: Scope, e: Call, args: Args) -> Node | None:
    """The node of fn[dims](args)."""
    fn = e.fn.name
    if fn in REDUCTIONS:
        return _reduction(scope, e, args)
    if fn == "lag":
        return _lag(scope, e, args)
    if fn not in FUNCTIONS:
        help_ = instead(fn) or (f"did you mean `{near}`?" if (near := nearest(fn, [*FUNCTIONS, *REDUCTIONS, "lag"]))
                                else "a product is written `a * b`; section 1 of language.md lists the functions; "
                                "the lines of one's own stand in the body")
        scope.error("MX212", f"`{fn}` is no function of the language", e.fn.span, help_)
        return None
    if e.dims is not None:
        scope.error("MX212", f"`{fn}` goes element by element and takes no dims", e.span, f"write `{fn}(x)`")
        return None
    if len(args) != FUNCTIONS[fn]:
        form = {"clamp": "clamp(x, low, high)", "where": "where(cond, a, b)"}.get(fn, f"{fn}(a, b)")
        scope.error("MX212", f"`{fn}` takes {_count(FUNCTIONS[fn])}, {len(args)} came", e.span,
                    f"write `{form}`" if FUNCTIONS[fn] > 1 else f"write `{fn}(x)`")
        return None
    good = [a for a in args if a is not None]
    if len(good) != len(args):
        return None
    if fn in REAL_ONLY and any(a.kind == "complex" for a in good):
        scope.error("MX213", f"`{fn}` has no meaning for complex values", e.span,
                    "take `real(x)`, `imag(x)` or `abs(x)`")
        return None
    return _elementwise(e, fn, good)


def _count(n: int) -> str:
    return "1 argument" if n == 1 else f"{n} arguments"


def _elementwise(e: Call, fn: str, args: list[Node]) -> Node:
    x = args[0]
    if x.kind != "complex" and fn in ("real", "conj"):
        return x
    if x.kind != "complex" and fn == "imag":
        return _zero(x.dims)
    if x.kind == "complex" and fn == "silu":  # torch has no derivative of it
        return x * make("sigmoid", x)
    return make(fn, *args, span=e.span)


# ---------------------------------------------------------------- over dims
def _reduction(scope: Scope, e: Call, args: Args) -> Node | None:
    fn = e.fn.name
    if len(args) != 1:
        texts = [spelled(a) for a in e.args]
        if fn in ("max", "min") and len(args) == 2 and e.dims is None:
            help_ = f"the {'larger' if fn == 'max' else 'smaller'} of two values is `{fn}imum({', '.join(texts)})`"
        else:
            help_ = f"dims to reduce over stand in brackets: `{fn}[K]({texts[0] if texts else 'x'})`"
        scope.error("MX212", f"`{fn}` reduces one value, {len(args)} came", e.span, help_)
        return None
    over = None if e.dims is None else scope.known_dims(e.dims, f"`{fn}`")
    x = args[0]
    if x is None or (over is None and e.dims is not None):
        return None
    missing = [n for n in e.dims or () if n.name not in x.dims]
    for n in missing:
        scope.error("MX210", f"`{spelled(e.args[0])}` is {shown(x.dims)} and has no dim {n.name}", n.span,
                    f"it reduces over {' and '.join(x.dims)}" if x.dims else "it has no dims to reduce over")
    if fn in ("max", "min", "softmax") and x.kind == "complex":
        scope.error("MX213", f"`{fn}`: complex values have no order", e.span, "take `abs(x)` or `real(x)`")
        return None
    return None if missing else _reduced(e, fn, x, tuple(d for d in x.dims if over is None or d in over))


def _reduced(e: Call, fn: str, x: Node, over: tuple[str, ...]) -> Node:
    if not over:
        return make("abs", x, span=e.span) if fn == "norm" else number(1.0) if fn == "softmax" else x
    if fn != "mean":
        return make(fn, x, span=e.span, over=over)
    count = reduce(Node.__mul__, [make("size", dim=d) for d in over])
    return make("div", make("sum", x, span=e.span, over=over), count, span=e.span)


# ---------------------------------------------------------------- over time
def _lag(scope: Scope, e: Call, args: Args) -> Node | None:
    if len(args) != (2 if e.dims is None else 1) or (e.dims is not None and len(e.dims) != 1):
        scope.error("MX215", f"`{spelled(e)}` is no lag", e.span,
                    "write `lag(x, n)` for n tokens ago, `lag[W](x)` for the last W values")
        return None
    x, name = args[0], e.args[0]
    window = None if e.dims is None else scope.known_dims(e.dims, "`lag`")
    if x is None or (e.dims is not None and window is None):
        return None
    b = scope.names.get(name.name) if isinstance(name, Name) else None
    problem = _no_lag(b, x)
    if problem is not None or b is None:
        assert problem is not None
        scope.error("MX215", f"`{spelled(name)}` {problem[0]}", name.span, problem[1])
        return None
    label = {} if x.op == "in" else {"name": b.name}  # what the state dict calls its history
    if window is not None:
        (dim,) = window
        if dim in x.dims:
            scope.error("MX215", f"`{b.name}` is {shown(x.dims)}: the window needs a dim of its own", e.span,
                        f"a new dim of the header, `mixer {scope.mixer.name}(..., W)`, and `lag[W]({b.name})`")
            return None
        return make("window", x, span=e.span, dim=dim, n=scope.size(dim, False), **label)
    n = _distance(scope, e, args[1])
    return x if n == 0 else None if n is None else make("lag", x, span=e.span, n=n, **label)


def _no_lag(b: Binding | None, x: Node) -> tuple[str, str] | None:
    """Why there is no lag of x (message, help); None where there is one."""
    if b is None:
        return "has no history: only names have", "give the value a name above, `y = ...`, and write `lag(y, n)`"
    if b.role not in ("in", "local"):
        return f"is a {b.role}, and has no history", "lag takes an input, or a local that reads no state"
    if b.in_loop:
        return "was made inside a `for`", "move the line that makes it in front of the loop"
    if any(n.op == "state" for n in postorder([x])):
        return "reads a state, and its history is one more state", "declare `state old`, and assign it after its use"
    return None


def _distance(scope: Scope, e: Call, n: Node | None) -> int | None:
    if n is None:
        return None
    found = scope.numeric(n)
    if not isinstance(found, float) or not found.is_integer() or not 0 <= found <= MAX_LAG:
        scope.error("MX215", f"`{spelled(e.args[1])}` is no number of tokens", e.args[1].span,
                    "how many tokens ago is a whole number from 0 on: a literal or a const")
        return None
    scope.shaping(n)
    return int(found)


# ---------------------------------------------------------------- grad
def grad(scope: Scope, e: Call, args: Args) -> Node | None:
    """grad[S](e): the derivative by S as it is now, expanded at once."""
    from mixc.ir.derivatives import gradient
    from mixc.passes.simplify import PLAIN, rewrite

    if e.dims is None or len(e.dims) != 1 or len(args) != 1:
        scope.error("MX218", f"`{spelled(e)}` is no gradient", e.span,
                    "write `grad[S](loss)`, with the name of a state")
        return None
    name, root = e.dims[0], args[0]
    b = scope.names.get(name.name)
    if b is None or b.role != "state":
        scope.error("MX218", f"`{name.name}` is no state", name.span, "`grad[S](e)` is the derivative by a state S")
        return None
    b.reads += 1
    if root is None or b.node is None:
        return None
    if root.dims or root.kind == "complex":
        what = shown(root.dims) if root.dims else "complex"
        scope.error("MX218", f"`{spelled(e.args[0])}` is {what}: a derivative is of a real value without dims",
                    e.args[0].span, "`loss = 0.5 * sum(square(...))`")
        return None
    now = b.node
    (whole,) = scope.unmarked([root], keep=now)
    if whole not in depends([whole], [now]):
        _independent(scope, e, b, root)
        return None
    (found,) = gradient([(whole, number(1.0))], [now])
    return rewrite([found], PLAIN)[0] if found is not None else _zero(b.dims or ())


def _zero(dims: tuple[str, ...]) -> Node:
    return make("expand", number(0.0), dims=dims) if dims else number(0.0)


def _independent(scope: Scope, e: Call, b: Binding, root: Node) -> None:
    """S was assigned since e was formed, or e never read it."""
    what = spelled(e.args[0])
    read, stack = set[Node](), [root]
    while stack:
        for node in postorder([stack.pop()]):
            if node in scope.marks and node not in read:
                stack.append(scope.marks[node])
            read.add(node)
    names = [b.name, *(f"{b.name}@{i + 1}" for i in range(len(b.versions)))]
    seen = [i for i, name in enumerate(names) if any(n.op == "state" and n.attr("name") == name for n in read)]
    if not seen:
        scope.error("MX218", f"`{what}` does not depend on {b.name}", e.span, f"the derivative by {b.name} would be 0")
        return
    line = b.versions[seen[-1]][1].line
    scope.error("MX218", f"`{what}` does not depend on {b.name} as it is now: {b.name} was assigned on line {line}, "
                f"after `{what}` was formed", e.span,
                f"take the gradient before line {line}, or form `{what}` after it")
