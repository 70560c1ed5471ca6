"""What belongs together in the token loop of a cell: products with stacked weights, sums of products, products that
are part of a sum.  `torch_cell` writes the lines.

Values of a token are [_h, _n, dims...].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mixc.codegen.torch_ops import takes_out
from mixc.codegen.torch_stages import ALIAS, origin
from mixc.ir.build import rename
from mixc.ir.node import ROW, Node, bare, depends, postorder
from mixc.ir.program import Program
from mixc.passes.cell import AXES, SEQUENCES

Dims = tuple[str, ...]
Carried = tuple[str, Node, Node]  # name of a state, the leaf it is read as, its next value
ONE = AXES[1:]  # the axes of a token's value


@dataclass
class Stack:
    """Values side by side in the last axis of one buffer [_t, _h, _n, width], one dim each.

    `given`: what is put there before the loop, by slot; `filled`: whether any is."""

    dims: list[str]
    given: list[Node | None]

    @property
    def filled(self) -> bool:
        return any(g is not None for g in self.given)


@dataclass
class Loop:
    """The emitted loop, and what it must be given, by the name of its argument.

    Attributes:
        rows: values of every token that it reads; heads: values of a head; numbers: plain numbers.
        weights: stacked weights: (nodes, the dim each sums, the dim each leaves, stacked along the sum?).
        stacks, views: buffers, and parts of them by (stack, first slot, last slot, as an axis of slots?).
        keeps: loop values wanted afterwards, with the axes of their buffer; kept_in: those that lie in a stack.
        scratch: dims of buffers of one token. calls: operations with no torch code of their own.
    """

    carried: list[Carried]
    reverse: bool
    rows: dict[str, tuple[Node, Dims]] = field(default_factory=dict)
    heads: dict[str, tuple[Node, Dims]] = field(default_factory=dict)
    numbers: dict[str, Node] = field(default_factory=dict)
    weights: dict[str, tuple[list[Node], list[str], list[str], bool]] = field(default_factory=dict)
    stacks: dict[str, Stack] = field(default_factory=dict)
    views: dict[str, tuple[str, int, int, bool]] = field(default_factory=dict)
    keeps: dict[str, tuple[Node, Dims]] = field(default_factory=dict)
    kept_in: dict[Node, tuple[str, int]] = field(default_factory=dict)
    scratch: dict[str, Dims] = field(default_factory=dict)
    calls: dict[str, Node] = field(default_factory=dict)
    text: str = ""
    run: Callable[..., None] = lambda **_: None


def inside_loop(program: Program, carried: list[Node], saved: frozenset[Node] = frozenset()) -> list[Node]:
    """What the next states need of what they carry, arguments first."""
    nodes = list(postorder(program.values("next"), saved | set(carried)))
    hit = depends(program.values("next"), carried) - saved
    return [n for n in nodes if n in hit and n not in carried]


@dataclass
class Fan:
    """A product of stacked weights: `nodes` are the values it leaves (out) or sums (in)."""

    stack: str
    nodes: list[Node]
    sources: list[Node]
    weight: str


@dataclass(frozen=True, eq=False)
class Bundle:
    """The same loop value times values formed before: `into` = `given` * `common`, views with an axis of slots."""

    nodes: list[Node]
    common: Node
    given: str
    into: str


class Plan:
    """Of a cell program; arguments as `torch_cell.loop` has them."""

    def __init__(self, program: Program, carried: list[Carried], wanted: list[Node],
                 saved: frozenset[Node]):
        leaves = [leaf for _, leaf, _ in carried]
        self.made, self.carried = Loop(carried, program.reverse), carried
        self.order = [n for n in inside_loop(program, leaves, saved) if n.op not in ALIAS]
        self.inside = {*self.order, *leaves}
        self.rank = {d.name: i for i, d in enumerate(program.dims)}
        self.value: dict[Node, tuple[str, Dims]] = {leaf: (f"{name}_now", leaf.dims[1:]) for name, leaf, _ in carried}
        self.users: dict[Node, list[Node]] = {}
        for n in self.order:
            for a in n.args:
                self.users.setdefault(origin(a), []).append(n)
        self.nexts: dict[Node, str] = {}
        self.next_axes: dict[Node, Dims] = {}
        for name, leaf, nxt in carried:
            n = origin(nxt)
            if n in self.order and n not in self.nexts and len(n.dims) == len(nxt.dims):
                back = dict(zip(nxt.dims, n.dims, strict=True))
                self.nexts[n], self.next_axes[n] = name, tuple(back[d] for d in leaf.dims[1:])
        self.wanted = set(wanted)
        self.absorbed: set[Node] = set()
        self.done: set[Node] = set()
        self.in_place: set[Node] = set()  # next states formed where the next token reads them
        self.fan_in: dict[Node, tuple[list[Node], list[Node]]] = {}  # a sum: (products, other terms)
        self.slot_sum: dict[Node, tuple[Node, Node | None]] = {}  # a result: (its product, what is added)
        self.fans: dict[Node, Fan] = {}
        self.place_of: dict[Node, str] = {}  # values formed at a place of a stack
        self.bundles: dict[Node, Bundle] = {}
        self.reads_left: Counter[Node] = Counter()

    # ------------------------------------------------------------ what belongs together
    def pinned(self, n: Node) -> bool:
        return n in self.wanted or n in self.nexts

    def alone(self, n: Node) -> bool:
        """Is it read by one value of the loop, and nothing else?"""
        return n in self.inside and len(self.users.get(n, ())) == 1 and not self.pinned(n)

    def product(self, n: Node) -> tuple[Node, Node, str, str] | None:
        """(x, weights, the dim summed, the dim left) of `weights @ x`, weights being a head's."""
        if n.op != "contract" or n not in self.inside:
            return None
        for x, w in (n.args, n.args[::-1]):
            z, wz = features(x), features(w)
            if (origin(x) in self.inside and w not in self.inside and not {ROW, SEQUENCES} & set(w.dims) and len(z) == 1
                    and len(wz) == 2 and z[0] in wz and len(origin(x).dims) == len(x.dims)):
                (y,) = (d for d in wz if d != z[0])
                return (origin(x), w, z[0], y) if features(n) == (y,) else None
        return None

    def _terms(self, n: Node, inner: list[Node]) -> list[Node]:
        """n as a sum, through sums that nothing else reads (`inner`)."""
        found = []
        for a in n.args:
            c = bare(a)
            if c.op == "add" and self.alone(c) and len(c.dims) == len(n.dims):
                inner.append(c)
                to = dict(zip(c.dims, a.dims, strict=True))
                found += [rename(t, **{d: to[d] for d in t.dims}) for t in self._terms(c, inner)]
            else:
                found.append(a)
        return found

    def plan(self) -> None:
        for n in reversed(self.order):
            if n.op != "add" or n in self.absorbed:
                continue
            inner: list[Node] = []
            terms = self._terms(n, inner)
            products = [origin(t) for t in terms if self.product(origin(t)) and self.alone(origin(t))
                        and len(t.dims) == len(origin(t).dims)]
            rest = [t for t in terms if origin(t) not in products]
            if len(products) == 1 and not any(origin(t) in self.inside for t in rest):
                added = rest[0]
                for t in rest[1:]:
                    added = added + t
                self.slot_sum[n] = products[0], added
            elif products:
                self.fan_in[n] = products, rest
            else:
                continue
            self.absorbed |= {*inner, *products}
        self._fan_outs()
        for n in [n for n in self.order if n in self.fan_in]:
            self._fan_in(n)
        for n in self.order:
            self._absorb_product(n)
        for n in self.order:
            if n not in self.absorbed:
                self.reads_left.update(self.operands(n))

    def _fan_outs(self) -> None:
        groups: dict[tuple[Node, str], list[Node]] = {}
        for n in self.order:
            found = self.product(self.slot_sum[n][0] if n in self.slot_sum else n)
            if found and n not in self.absorbed:
                groups.setdefault((found[0], found[2]), []).append(n)
        for (x, _), nodes in groups.items():
            nodes.sort(key=self._function)
            parts = [self.product(self.slot_sum[n][0] if n in self.slot_sum else n) for n in nodes]
            stack, weight = f"z{len(self.made.stacks) + 1}", f"w{len(self.made.weights) + 1}"
            self.made.stacks[stack] = Stack([p[3] for p in parts if p], [self.slot_sum.get(n, (n, None))[1] for n in nodes])
            self.made.weights[weight] = ([p[1] for p in parts if p], [p[2] for p in parts if p], [p[3] for p in parts if p], False)
            fan = Fan(stack, nodes, [x], weight)
            for n in nodes:
                self.fans[n] = fan

    def _function(self, n: Node) -> str:
        """The function that n alone goes through, and may be overwritten by."""
        reader, *more = self.users.get(n, [n])
        alone = not more and not self.pinned(n) and reader.args == (n,) and reader not in self.nexts
        return reader.op if alone and takes_out(reader) and "n" not in dict(reader.attrs) else ""

    def _fan_in(self, n: Node) -> None:
        products = self.fan_in[n][0]
        parts = {p: found for p in products if (found := self.product(p))}
        place = {x: i for i, x in enumerate(self.order)}

        def common(p: Node) -> int:
            factors = self._factors(parts[p][0])
            return place.get(factors[0], -1) if factors else -2
        products.sort(key=common)
        weight, xs = f"w{len(self.made.weights) + 1}", [parts[p][0] for p in products]
        self.made.weights[weight] = ([parts[p][1] for p in products], [parts[p][2] for p in products],
                                     [parts[p][3] for p in products], True)
        stack = ""
        if len(products) > 1:
            stack = f"z{len(self.made.stacks) + 1}"
            self.made.stacks[stack] = Stack([features(x)[0] for x in xs], [None] * len(xs))
            for i, x in enumerate(xs):
                if x in self.order and x not in self.place_of and x not in self.nexts and x not in self.fans \
                        and x not in self.fan_in and xs.count(x) == 1:
                    self.place_of[x] = self.view(stack, i, i)
                    self.wanted.discard(x)
                    self.made.kept_in[x] = stack, i
            self._bundle(stack, xs)
        self.fans[n] = Fan(stack, [n], xs, weight)

    def _factors(self, x: Node) -> tuple[Node, Node] | None:
        """(loop value, value formed before) of a product of the two."""
        if x.op == "mul" and x in self.inside:
            for a, f in (x.args, x.args[::-1]):
                if origin(a) in self.inside and f not in self.inside and features(a) == features(x) == features(f):
                    return origin(a), f
        return None

    def _bundle(self, stack: str, xs: list[Node]) -> None:
        """Neighbours that are the same loop value times something formed before: one call."""
        i = 0
        while i < len(xs):
            first = self._factors(xs[i])
            j = i
            while first and j + 1 < len(xs) and (more := self._factors(xs[j + 1])) and more[0] is first[0]:
                j += 1
            run = xs[i:j + 1]
            if first and j > i and all(x in self.place_of and self.made.views[self.place_of[x]][0] == stack for x in run) \
                    and all(self.alone(x) or x in self.made.kept_in for x in run):
                name = f"z{len(self.made.stacks) + 1}"
                self.made.stacks[name] = Stack([features(x)[0] for x in run], [f[1] for x in run if (f := self._factors(x))])
                given, into = self.view(name, 0, j - i, True), self.view(stack, i, j, True)
                self.bundles |= dict.fromkeys(run, Bundle(run, first[0], given, into))
            i = j + 1

    def _absorb_product(self, n: Node) -> None:
        """a + b * c, the product read by nothing else: one call; also of tokens' vectors that make a matrix, which nothing
        else reads: to form it before the loop for all tokens takes a pass over memory."""
        terms = self.fan_in[n][1] if n in self.fan_in else list(n.args) if n.op in ("add", "sub") and n not in self.fans else []
        if n in self.absorbed and n not in self.fan_in:
            return
        whole = [t for t in terms if t.op == "mul" and self.alone(t) and t not in self.absorbed and t not in self.place_of
                 and set(t.dims) == set(n.dims) and not any(scalar(x) for x in t.args)]
        if n in self.fan_in:
            self.absorbed |= set(whole)
            return
        whole += [t for t in terms if t.op == "mul" and self.alone(t) and t.dims == n.dims and _times_number(t)]
        outer = [t for t in terms if self._outer(t) and set(t.dims) == set(n.dims)]
        if n.op == "sub":
            self.absorbed |= {t for t in [*whole, *outer] if t is n.args[1]}
        elif [*whole, *outer] and not scalar(n.args[0]) and not scalar(n.args[1]):
            self.absorbed.add([*whole, *outer][-1])
            if whole and outer and not any(map(_times_number, whole)):
                self.absorbed.add(whole[-1])

    def _outer(self, n: Node) -> bool:
        """A matrix made of vectors of every token, which one line of the loop reads."""
        return n.op == "mul" and n not in self.inside and n not in self.absorbed and len(self.users.get(n, ())) == 1 and (
            max(len(features(a)) for a in n.args) < len(features(n))) and any(ROW in a.dims for a in n.args)

    def operands(self, n: Node) -> list[Node]:
        """The loop values that the lines of n read."""
        if n in self.fans and n not in self.fan_in:
            return list(self.fans[n].sources)
        args = [*self.fans[n].sources, *self.fan_in[n][1]] if n in self.fan_in else n.args
        return [y for a in args for y in (self.operands(a) if a in self.absorbed else [origin(a)]) if y in self.inside]

    def view(self, stack: str, i: int, j: int, slots: bool = False) -> str:
        name = f"{stack}_{i + 1}" if i == j else f"{stack}_{i + 1}to{j + 1}"
        name += "s" if slots else ""
        self.made.views[name] = stack, i, j, slots
        return name


def features(n: Node) -> Dims:
    return tuple(d for d in n.dims if d not in AXES)


def scalar(n: Node) -> bool:
    return not n.dims


def _times_number(n: Node) -> bool:
    return sum(origin(a).op == "number" for a in n.args) == 1 and sum(map(scalar, n.args)) == 1
