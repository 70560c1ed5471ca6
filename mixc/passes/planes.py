"""Complex values as two real ones: their real and imaginary planes.

before: state x[N] complex;  x = exp(1j * w) * x + u
after:  state x_re[N], x_im[N];  x_re, x_im = cos(w) * x_re - sin(w) * x_im + u, sin(w) * x_re + cos(w) * x_im

What comes out is a step of real values with the same meaning; gradients of the two planes are the two planes of
PyTorch's gradient.  A plane of None is 0.  A chunk program of complex values becomes one of real ones in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixc.ir.blocks import block_scan, component
from mixc.ir.build import is_number, make, maybe_add, number
from mixc.ir.node import ROW, Node, fold, postorder
from mixc.ir.program import Decl, Group, Program, Result, once_a_program
from mixc.ir.scans import scan
from mixc.passes.context import Context, context, exact_nodes, has_context, looked_back, name_of
from mixc.passes.triangular import eliminate

Planes = tuple[Node | None, Node | None]
PARTS = ("_re", "_im")


@once_a_program
def is_complex(step: Program) -> bool:
    return any(n.kind == "complex" for n in postorder([*step.values(), *(d.leaf() for d in step.decls if d.role in (
        "in", "param", "state"))]))


def part_names(step: Program, name: str) -> tuple[str, str]:
    """Names of the planes of a declared name, unlike all others."""
    base = name
    while any(base + p in step.names for p in PARTS):
        base += "_"
    return base + PARTS[0], base + PARTS[1]


def history_parts(step: Program) -> dict[str, tuple[str, str]]:
    """Of complex values that are looked back at, the names of their planes."""
    found = looked_back(step)
    taken = {*found, *(d.name for d in step.decls), *(p for d in step.decls for p in part_names(step, d.name))}
    names = {}
    for name, (x, *_) in found.items():
        if x.kind == "complex":
            base = name
            while x.op != "in" and any(base + p in taken for p in PARTS):
                base += "_"
            names[name] = part_names(step, name) if x.op == "in" else (base + PARTS[0], base + PARTS[1])
    return names


def out_kind(step: Program, d: Decl) -> str:
    return step.result("out", d.name).kind


def planes(step: Program) -> Program | None:
    """The step, or the chunk program, of real values; None where an operation has no planes here."""
    split = Split(step)
    decls: list[Decl] = []
    results: list[Result] = []
    try:
        for d in step.decls:
            kind = out_kind(step, d) if d.role == "out" else d.kind
            decls += [d] if kind != "complex" else split.decls(d)
        for r in step.results:
            dims = next(d.dims for d in step.decls if d.name == r.name)
            dims = (ROW, *dims) if step.level == "chunk" and r.role == "out" else dims
            kind = out_kind(step, step.decl(r.name)) if r.role == "out" else step.decl(r.name).kind
            names = part_names(step, r.name) if kind == "complex" else (r.name,)
            for name, x in zip(names, split(r.value), strict=False):
                results.append(Result(r.role, name, _present(x, dims)))
    except NotImplementedError:
        return None
    return replace(step, decls=tuple(decls), results=tuple(results), groups=split.groups(), origin=(
        None if step.level == "chunk" else step))


def context_of_planes(step: Program) -> Context | None:
    """The planes of a step, and the same without lags and positions: the planes of the step that has none already, of
    whose complex states it is known what turns them.  None where an operation has no planes here."""
    whole = planes(step)
    if whole is None:
        return None
    if not has_context(step):
        return Context(whole, whole, {})
    found = context(step)
    program, split, given = planes(found.program), Split(step), dict[str, Node]()
    for name, n in found.given.items():
        names = part_names(found.program, name) if n.kind == "complex" else (name,)
        given |= {part: _present(x, n.dims) for part, x in zip(names, split(n), strict=False)}
    return None if program is None else Context(whole, program, given)


def _present(x: Node | None, dims: tuple[str, ...]) -> Node:
    x = number(0) if x is None else x
    missing = tuple(d for d in dims if d not in x.dims)
    return make("expand", x, dims=missing) if missing else x


class Split:
    """The planes of values under the declarations of a program."""

    def __init__(self, step: Program):
        self.step, self.known, self.histories = step, dict[Node, Planes](), history_parts(step)

    def decls(self, d: Decl) -> list[Decl]:
        inits = self(d.init) if d.init is not None else (None, None)
        ranges = tuple(r for r in d.ranges if r.of != "x")
        earlier = part_names(self.step, d.ago[0]) if d.ago else ("", "")
        return [replace(d, name=name, kind="real", init=init, ranges=ranges, ago=d.ago and (x, d.ago[1]))
                for name, init, x in zip(part_names(self.step, d.name), inits, earlier, strict=True)]

    def groups(self) -> tuple[Group, ...]:
        complex_ = {d.name for d in self.step.states if d.kind == "complex"}
        return tuple(replace(g, states=tuple(n for s in g.states for n in (
            part_names(self.step, s) if s in complex_ else (s,)))) for g in self.step.groups)

    def __call__(self, root: Node) -> Planes:
        return fold([root], self._find, self.known)[0]

    def _find(self, n: Node, args: list[Planes]) -> Planes:
        if n.op in ("in", "param", "state"):
            if n.kind != "complex":
                return n, None
            re, im = (make(n.op, name=name, dims=n.dims, kind="real") for name in part_names(self.step, n.attr("name")))
            return re, im
        if n.op == "number" and n.kind == "complex":
            z = n.attr("value")
            return number(z.real) if z.real else None, number(z.imag) if z.imag else None
        if all(im is None for _, im in args) and n.kind != "complex" and n.op not in ("real", "imag"):
            return n.on(*(_present(re, a.dims) for (re, _), a in zip(args, n.args, strict=True))), None
        if n.op in ("lag", "window"):
            re, im = (make(n.op, _present(x, n.args[0].dims), span=n.span, **dict(n.attrs) | {"name": name})
                      for x, name in zip(args[0], self.histories[name_of(n)], strict=True))
            return re, im
        rule = _RULES.get(n.op)
        if rule is None:
            below = list(postorder([n]))
            if n in exact_nodes(below) and any(x.op == "pos" for x in below):
                return make("real", n), make("imag", n)  # formed on the host
            raise NotImplementedError(n.op)
        return rule(n, args)


# ---------------------------------------------------------------- arithmetic where None is 0
def _sub(a: Node | None, b: Node | None) -> Node | None:
    return a if b is None else -b if a is None else a - b


def _mul(a: Node | None, b: Node | None) -> Node | None:
    if a is None or b is None:
        return None
    return b if is_number(a, 1.0) else a if is_number(b, 1.0) else a * b


def _each_plane(f: Callable[[Node | None, Node | None], Node | None], x: Planes, y: Planes) -> Planes:
    return f(x[0], y[0]), f(x[1], y[1])


def _bilinear(times: Callable[[Node, Node], Node | None]) -> Callable[[Node, list[Planes]], Planes]:
    def product(a: Node | None, b: Node | None) -> Node | None:
        return None if a is None or b is None else times(a, b)

    def rule(n: Node, args: list[Planes]) -> Planes:
        (a, b), (c, d) = args
        return _sub(product(a, c), product(b, d)), maybe_add(product(a, d), product(b, c))
    return rule


def _contract(n: Node, args: list[Planes]) -> Planes:
    def times(a: Node, b: Node) -> Node:
        return n.on(_present(a, n.args[0].dims), _present(b, n.args[1].dims))
    return _bilinear(times)(n, args)


def _div(n: Node, args: list[Planes]) -> Planes:
    (a, b), (c, d) = args
    if d is None:
        assert c is not None
        return None if a is None else a / c, None if b is None else b / c
    size = maybe_add(_mul(c, c), _mul(d, d))
    assert size is not None
    re, im = maybe_add(_mul(a, c), _mul(b, d)), _sub(_mul(b, c), _mul(a, d))
    return None if re is None else re / size, None if im is None else im / size


def _exp(n: Node, args: list[Planes]) -> Planes:
    ((a, b),) = args
    size = None if a is None else make("exp", a)
    if b is None:
        return size if size is not None else number(1), None
    turn = make("cos", b), make("sin", b)
    return turn if size is None else (size * turn[0], size * turn[1])


def _square(n: Node, args: list[Planes]) -> Planes:
    return _bilinear(lambda a, b: a * b)(n, [args[0], args[0]])


def _each(n: Node, args: list[Planes]) -> Planes:
    """An operation that acts on the planes alike."""
    ((a, b),) = args
    x, y = (None if x is None else n.on(_present(x, n.args[0].dims)) for x in (a, b))
    return x, y


def _abs(n: Node, args: list[Planes]) -> Planes:
    """The modulus; its derivative at 0 is 0."""
    ((a, b),) = args
    if a is None or b is None:
        return make("abs", a or b or number(0)), None
    return _root(a * a + b * b), None


def _norm(n: Node, args: list[Planes]) -> Planes:
    squares = maybe_add(*(_mul(x, x) for x in args[0]))
    return _root(make("sum", _present(squares, n.args[0].dims), over=n.attr("over"))), None


def _root(size: Node) -> Node:
    none = make("eq", size, number(0))
    return make("where", none, number(0), make("sqrt", make("where", none, number(1), size)))


def _tanh(n: Node, args: list[Planes]) -> Planes:
    """(t + i s c (1 - t^2)) / (t^2 + c^2 (1 - t^2)), t of the real part, s and c of the imaginary one."""
    ((a, b),) = args
    t = make("tanh", number(0) if a is None else a)
    if b is None:
        return t, None
    s, c, rest = make("sin", b), make("cos", b), 1.0 - t * t
    size = t * t + c * c * rest
    return t / size, s * c * rest / size


def _sigmoid(n: Node, args: list[Planes]) -> Planes:
    re, im = _tanh(n, [(_mul(args[0][0], number(0.5)), _mul(args[0][1], number(0.5)))])
    return 0.5 + 0.5 * (re or number(0)), None if im is None else 0.5 * im


def _ipow(n: Node, args: list[Planes]) -> Planes:
    times, one = _bilinear(lambda a, b: a * b), (number(1), None)
    found: Planes = one
    for _ in range(abs(n.attr("n"))):
        found = args[0] if found is one else times(n, [found, args[0]])
    return found if n.attr("n") >= 0 else _div(n, [one, found])


def _live(n: Node, args: list[Planes]) -> Planes:
    ((a, b),) = args
    x = n.args[0]
    return (None if a is None and not n.attr("fill") else make("live", _present(a, x.dims), fill=n.attr("fill")),
            None if b is None else make("live", _present(b, x.dims), fill=0.0))


def _span_contract(n: Node, args: list[Planes]) -> Planes:
    x, y, g = n.args

    def times(a: Node, b: Node) -> Node:
        return n.on(_present(a, x.dims), _present(b, y.dims), g)
    return _bilinear(times)(n, args[:2])


def _solve(n: Node, args: list[Planes]) -> Planes:
    """(1 + L) z = y: two systems that feed each other, or one for both planes."""
    (L, M), y = args
    if n.attr("transposed"):
        raise NotImplementedError(n.op)
    N = [{j: _present(x, n.args[0].dims) for j, x in row.items() if x is not None}
         for row in ({0: _sub(None, L), 1: M}, {0: _sub(None, M), 1: _sub(None, L)})]
    re, im = eliminate(N, [None if p is None else _present(p, n.dims) for p in y], n.attr("rows", ()))
    return re, im


def _span_solve(n: Node, args: list[Planes]) -> Planes:
    """A real system, for each plane."""
    A, b, y, _ = args
    if A[1] is not None or b[1] is not None:
        raise NotImplementedError(n.op)
    def of(x: Node | None) -> Node | None:
        return None if x is None else n.on(*n.args[:2], _present(x, n.args[2].dims), n.args[3])
    return of(y[0]), of(y[1])


def _of_rows(n: Node, args: list[Planes]) -> Planes:
    """A product of rows whose imaginary planes are 0, but not their gradients."""
    ((re, im),) = args
    found = n.on(_present(re, n.args[0].dims))
    return found, None if im is None else make("tangent", found, _present(im, n.args[0].dims))


def _scan(n: Node, args: list[Planes]) -> Planes:
    """Both planes as one scan over small matrices, or a scan each where nothing turns."""
    (re, im), *others = args
    b, start = ([_present(x, of.dims) for x in pair] for of, pair in zip(n.args[1:], others, strict=True))
    a, dims, back = _present(re, n.args[0].dims), n.attr("dims"), n.attr("reverse")
    if im is None:
        return scan("affine", a, b[0], start[0], dims, back), scan("affine", a, b[1], start[1], dims, back)
    block = block_scan([[a, -im], [im, a]], b, start, dims, back)
    return component(block, 0), component(block, 1)


def _previous(n: Node, args: list[Planes]) -> Planes:
    def before(x: Node | None, edge: Node | None) -> Node | None:
        return None if x is None and edge is None else n.on(_present(x, n.args[0].dims), _present(edge, n.args[1].dims))
    return _each_plane(before, *args)


def _where(n: Node, args: list[Planes]) -> Planes:
    (cond, _), x, y = args
    assert cond is not None

    def pick(a: Node | None, b: Node | None) -> Node | None:
        return None if a is None and b is None else make("where", cond, a or number(0), b or number(0))
    return _each_plane(pick, x, y)


_RULES: dict[str, Callable[[Node, list[Planes]], Planes]] = {
    "add": lambda n, a: _each_plane(maybe_add, *a),
    "scan": _scan, "previous": _previous,
    "sub": lambda n, a: _each_plane(_sub, *a),
    "neg": lambda n, a: _each_plane(_sub, (None, None), *a),
    "mul": _bilinear(_mul),
    "div": _div,
    "contract": _contract,
    "exp": _exp,
    "square": _square,
    "where": _where,
    "abs": _abs,
    "norm": _norm,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": lambda n, a: _bilinear(lambda x, y: x * y)(n, [a[0], _sigmoid(n, a)]),
    "ipow": _ipow,
    "live": _live,
    "span_contract": _span_contract,
    "solve": _solve,
    "span_solve": _span_solve,
    **dict.fromkeys(("segprod", "cumprod", "prod"), _of_rows),
    "real": lambda n, a: (a[0][0], None),
    "imag": lambda n, a: (a[0][1], None),
    "conj": lambda n, a: (a[0][0], _sub(None, a[0][1])),
    **dict.fromkeys(("sum", "rename", "expand", "pick", "place", "stop_gradient", "mask"), _each),
}
