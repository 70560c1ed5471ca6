"""The header and the declarations: dims, inputs, params, consts, states, and ranges."""

from __future__ import annotations

from dataclasses import replace

from mixc.errors import Span
from mixc.frontend.expressions import numeral
from mixc.frontend.names import IMPLIED, refusal
from mixc.frontend.scope import Binding, Scope, is_scalar, shown
from mixc.frontend.syntax import Binary, Call, Compare, Declare, DimSyntax, Expr, Name, Number, spelled
from mixc.ir.node import Node, make, number, postorder
from mixc.ir.program import Decl, Dim, Range
from mixc.ir.region import region

_KINDS = {"in": "an input", "param": "a param", "state": "a state", "const": "a const", "dim": "a dim", "out": "an out",
          "local": "a local", "loop": "a loop index"}
_READABLE = {"const": {"number", "size", "const"}, "state": {"number", "size", "const", "param", "index"}}


# ---------------------------------------------------------------- the header
def header(scope: Scope) -> None:
    """The dims of `mixer NAME(...)`."""
    implied = [d.name.name for d in scope.mixer.dims if d.name.name in IMPLIED]
    if implied:
        rest = ", ".join(d.name.name for d in scope.mixer.dims if d.name.name not in IMPLIED)
        first = next(d for d in scope.mixer.dims if d.name.name in IMPLIED)
        scope.error("MX208", f"{' and '.join(implied)}: batch, time and head are implied", first.name.span,
                    f"a mixer is written for one token of one head: `mixer {scope.mixer.name}({rest})`")
    for d in scope.mixer.dims:
        if d.name.name not in IMPLIED and claim(scope, d.name):
            scope.dims[d.name.name] = _dim(scope, d)
            scope.bind(Binding("dim", d.name.name, d.name.span))


def _dim(scope: Scope, d: DimSyntax) -> Dim:
    name, value = d.name.name, d.value
    if isinstance(value, Number):
        if isinstance(value.value, float) and value.value.is_integer() and 1 <= value.value < 2 ** 31:
            return Dim(name, size=int(value.value))
        scope.error("MX224", f"`{spelled(value)}` is no size", value.span, "a size is a whole number from 1 on")
    elif isinstance(value, Name):
        if value.name in scope.dims:
            return Dim(name, alias=scope.root(value.name))
        scope.error("MX224", f"`{value.name}` is no dim to the left of {name}", value.span,
                    f"`{name} = {value.name}` gives {value.name} a second name: write {value.name} first")
    return Dim(name)


def claim(scope: Scope, name: Name) -> bool:
    """Is the name free and allowed? Reports if not."""
    problem = refusal(name.name)
    if problem:
        if name.name not in scope.names:  # one report a name
            scope.error("MX202", problem[0], name.span, problem[1])
            scope.bind(Binding("unknown", name.name, name.span, reads=1))
        return False
    taken = scope.names.get(name.name)
    if taken is not None and taken.role != "unknown":
        scope.error("MX204", f"`{name.name}` is {_KINDS[taken.role]} since line {taken.span.line}", name.span,
                    f"dims, inputs, states and all other names are one namespace: call it `{scope.fresh(name.name)}`")
        return False
    return True


# ---------------------------------------------------------------- declarations
def declare(scope: Scope, s: Declare) -> None:
    """One declared name of role in, param, const or state."""
    free = claim(scope, s.name)
    dims = declared_dims(scope, s)
    b = Binding(s.role, s.name.name, s.name.span, None, dims)
    init = _initial(scope, s, dims)
    if dims is None or not free:
        if free:
            scope.bind(b)
        return
    is_complex = s.is_complex or s.name.name in scope.complex_states or (init is not None and init.kind == "complex")
    kind = "complex" if is_complex and s.role != "const" else "real"
    ranges = _ranges(scope, s, s.where, dims, kind) if s.where is not None else ()
    decl = Decl(s.role, s.name.name, dims, kind, tuple(ranges), init, s.span)
    if s.where is not None and _empty(decl):
        scope.error("MX223", f"nothing lies in `{spelled(s.where)}`", s.where.span,
                    "its ranges hold together: no value is in all of them")
    b.node = decl.leaf()
    scope.bind(b)
    scope.decls[decl.name] = decl


def declared_dims(scope: Scope, s: Declare) -> tuple[str, ...] | None:
    """The dims of a declaration, None if they are wrong."""
    names = [n for n in s.dims if n.name not in IMPLIED or n.name in scope.dims]
    if len(names) < len(s.dims):
        what = ", ".join(n.name for n in s.dims if n not in names)
        rest = f"{s.role} {s.name.name}{shown(tuple(n.name for n in names), '')}"
        scope.error("MX208", f"`{s.name.name}` is declared with {what}: batch, time and head axes are implied", s.span,
                    f"write `{rest}`; the tensor at the call has them all the same")
    dims = scope.known_dims(tuple(names), f"mixer {scope.mixer.name}")
    if dims is None or s.role == "const":
        return dims
    twice = next((d for i, d in enumerate(dims) if d in dims[:i]), None)
    if twice is None:
        return dims
    other = "E" if "E" not in scope.names else scope.fresh(twice)
    square = tuple(other if i == len(dims) - 1 - dims[::-1].index(twice) else d for i, d in enumerate(dims))
    scope.error("MX207", f"`{s.name.name}` has the dim {twice} twice", s.span,
                f"a square one is `{s.role} {s.name.name}{shown(square)}`, with `{other} = {twice}` in the header; "
                f"with one name for both dims, `k * v` is no outer product")
    return None


def _initial(scope: Scope, s: Declare, dims: tuple[str, ...] | None) -> Node | None:
    """The value of a const, or the start of a state."""
    name = s.name.name
    if s.role == "const" and s.dims:
        scope.error("MX222", f"`{name}` is a const with dims", s.span, "a const is a number; a tensor is a `param`")
    if s.value is None:
        if s.role == "const":
            scope.error("MX222", f"`{name}` is a const without a value", s.span, f"write `const {name} = 1.0`")
        return None
    x = numeral(scope, s.value)
    if x is None or s.role not in _READABLE:
        return None
    bad = next((n for n in postorder([x]) if not n.args and n.op not in _READABLE[s.role]), None)
    if bad is not None:
        what = bad.attr("name") or bad.op
        may = "numbers, dims and consts above it" if s.role == "const" else "numbers, dims, consts, params and `index`"
        scope.error("MX222", f"`{name}` reads `{what}` before the first token", s.value.span, f"it may read {may}")
        return None
    if s.role == "const" and (x.kind == "complex" or x.dims):
        scope.error("MX222", f"`{name}` is no real number", s.value.span, "a const is one real number")
        return None
    return x if s.role == "const" or dims is None else fit(scope, x, dims, f"state {name}", s.value.span)


def fit(scope: Scope, x: Node, dims: tuple[str, ...], target: str, span: Span) -> Node | None:
    """x with exactly `dims`; `target` is "state S" or "out o"."""
    if set(x.dims) == set(dims):
        return x
    if not x.dims:
        return make("expand", x, dims=dims)
    role, name = target.split()
    scope.error("MX211", f"`{spelled(span)}` is {shown(x.dims)}, and {role} {name} is {shown(dims)}", span,
                _fit_help(scope, x.dims, dims, target))
    return None


def _fit_help(scope: Scope, have: tuple[str, ...], want: tuple[str, ...], target: str) -> str:
    extra, missing = [d for d in have if d not in want], [d for d in want if d not in have]
    same = next(((a, b) for a in extra for b in want if scope.one_size(a, b)), None)
    if not missing and same and len(want) == 1 and target.startswith("state "):
        return f"a product sums over what both have: to sum over {same[0]}, write `... @ {target[6:]}[{same[0]}]`"
    if not missing:
        return f"sum what is left over, `sum[{', '.join(extra)}](...)`, or declare `{target}{shown(have, '')}`"
    twin = next(((a, b) for b in missing for a in have if scope.one_size(a, b)), None)
    if twin and extra:
        return f"rename its dims in brackets: `x[{', '.join(want)}]`"
    if twin:
        return (f"with one dim name, `k * v` is no outer product: use {twin[1]} for one of them, "
                f"by its declaration, `v[{twin[1]}]`, or in place, `k * v[{twin[1]}]`")
    if not extra:
        return (f"only a value without dims is repeated: a factor with dim {' and '.join(missing)} is missing, "
                f"or declare `{target}{shown(have)}`")
    return f"did you mean `{target}{shown(have)}`?"


# ---------------------------------------------------------------- ranges
def _ranges(scope: Scope, s: Declare, where: Expr, dims: tuple[str, ...], kind: str) -> list[Range]:
    if isinstance(where, Binary) and where.op == "and":
        return [*_ranges(scope, s, where.left, dims, kind), *_ranges(scope, s, where.right, dims, kind)]
    name = s.name.name
    found = [_subject(scope, e, name, dims) for e in where.operands] if isinstance(where, Compare) else []
    at = [i for i, f in enumerate(found) if f is not None]
    if not isinstance(where, Compare) or len(at) != 1 or len(found) > 3 or (len(found) == 3 and at != [1]):
        scope.error("MX223", f"`{spelled(where)}` is no range of `{name}`", where.span,
                    f"ranges are written `{name} <= 0`, `0 <= {name} <= 1`, `abs({name}) < 1`, `norm[K]({name}) <= 1`; "
                    f"`where` concerns the last name before it")
        return []
    of, over = found[at[0]] or ("x", ())
    if of == "x" and kind == "complex":
        scope.error("MX223", f"`{name}` is complex and has no order", where.span,
                    f"bound its modulus: `abs({name}) <= 1`")
        return []
    r = _interval(scope, where, at[0], of, over)
    return [r] if r is not None else []


def _empty(d: Decl) -> bool:
    """Is there no value that all ranges of numbers hold?"""
    known = tuple(r for r in d.ranges if all(b is None or b.op == "number" for b in (r.low, r.high)))
    r = region(replace(d, ranges=known), lambda n: n.attr("value"), d.dims)
    return len(known) > 1 and (r.low > r.high or (r.low == r.high and (r.low_open or r.high_open)))


def _subject(scope: Scope, e: Expr, name: str, dims: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """("x" | "abs" | "norm", over) if `e` is what a range can bound."""
    if isinstance(e, Name) and e.name == name:
        return "x", ()
    if not isinstance(e, Call) or e.fn.name not in ("abs", "norm") or len(e.args) != 1:
        return None
    (arg,) = e.args
    if not isinstance(arg, Name) or arg.name != name or (e.fn.name == "abs" and e.dims is not None):
        return None
    for d in e.dims or ():
        if d.name not in dims:
            scope.error("MX210", f"`{name}` is {shown(dims)} and has no dim {d.name}", d.span)
    named = {d.name for d in e.dims} if e.dims is not None else set(dims)
    return e.fn.name, tuple(d for d in dims if d in named) if e.fn.name == "norm" else ()


def _interval(scope: Scope, e: Compare, at: int, of: str, over: tuple[str, ...]) -> Range | None:
    ends: dict[str, tuple[Node | None, bool]] = {}
    for i, op in enumerate(e.ops):
        bound = e.operands[i + 1 if i == at else i]
        below = (op in ("<", "<=")) == (i != at)  # does the bound lie below the subject?
        side = "low" if below else "high"
        if op in ("==", "!=") or side in ends:
            scope.error("MX223", f"`{spelled(e)}` is no interval", e.span, "write `0 <= a <= 1`")
            return None
        x = _bound(scope, bound)
        if x is None:
            return None
        ends[side] = (None if x is number(-float("inf") if below else float("inf")) else x, op in ("<", ">"))
    low, high = ends.get("low", (None, False)), ends.get("high", (None, False))
    if low[0] is not None and high[0] is not None and low[0].op == high[0].op == "number":
        a, b = low[0].attr("value"), high[0].attr("value")
        if a > b or (a == b and (low[1] or high[1])):
            scope.error("MX223", f"nothing lies in `{spelled(e)}`", e.span, "write the smaller bound first")
    return Range(of, over, low[0], high[0], low[1], high[1])


def _bound(scope: Scope, e: Expr) -> Node | None:
    x = numeral(scope, e)
    if x is None:
        return None
    if not is_scalar(x) or x.kind == "complex":
        scope.error("MX223", f"`{spelled(e)}` is no bound", e.span, "bounds are numbers and consts")
        return None
    scope.shaping(x)
    v = scope.numeric(x, guess=None)
    return number(v) if isinstance(v, float) else x
