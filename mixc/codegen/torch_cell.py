"""The token loop of a cell as torch code: as few calls a token as its recurrence allows.

    for z, z_1, ..., h_now, h_next, c_now, c_next in zip(...):
        z.baddbmm_(h_now, w1)                  all gates that read h: one product, their inputs put in place before
        torch.sigmoid(z_1_3, out=z_1_3)        and one call for all that go through the same function
        ...

Values of a token are [_h, _n, dims...].  Products with weights of a head that read the same value are stacked along
their results; a sum of products of different values is one product stacked along what it sums (the backward of the
former).  Products of one loop value with several values formed before it are one call likewise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mixc.codegen.torch_ops import INFIX, NO_OUT
from mixc.codegen.torch_stages import ALIAS, above, origin
from mixc.codegen.torch_values import literal
from mixc.ir.build import rename
from mixc.ir.node import ROW, Node, depends
from mixc.ir.ops import OPS
from mixc.ir.program import Program
from mixc.passes.cell import AXES, HEADS, SEQUENCES

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
    nodes = above(program.values("next"), saved | set(carried))
    hit = depends(program.values("next"), carried) - saved
    return [n for n in nodes if n in hit and n not in carried]


def loop(program: Program, carried: list[Carried], wanted: list[Node],
         saved: frozenset[Node] = frozenset()) -> Loop:
    """The loop of a cell program.

    Args:
        carried: names of states, the leaf each is read as and its next value.
        wanted: values of the loop that are read behind it. saved: values that another loop left.
    """
    writer = _Writer(program, carried, wanted, saved)
    made = writer.write()
    scope: dict[str, Any] = {}
    exec(compile(made.text, f"<mixc {program.name}>", "exec"), scope)
    made.run = scope["loop"]
    return made


@dataclass
class _Fan:
    """A product of stacked weights: `nodes` are the values it leaves (out) or sums (in)."""

    stack: str
    nodes: list[Node]
    sources: list[Node]
    weight: str


@dataclass(frozen=True, eq=False)
class _Bundle:
    """The same loop value times values formed before: `into` = `given` * `common`, views with an axis of slots."""

    nodes: list[Node]
    common: Node
    given: str
    into: str


class _Writer:
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
        self.fans: dict[Node, _Fan] = {}
        self.place_of: dict[Node, str] = {}  # values formed at a place of a stack
        self.bundles: dict[Node, _Bundle] = {}
        self.reads_left: Counter[Node] = Counter()
        self.lines: list[str] = []
        self.free: dict[Dims, list[str]] = {}
        self.owner: dict[Node, str] = {}

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
            z, wz = _features(x), _features(w)
            if (origin(x) in self.inside and w not in self.inside and not {ROW, SEQUENCES} & set(w.dims) and len(z) == 1
                    and len(wz) == 2 and z[0] in wz and len(origin(x).dims) == len(x.dims)):
                (y,) = (d for d in wz if d != z[0])
                return (origin(x), w, z[0], y) if _features(n) == (y,) else None
        return None

    def _terms(self, n: Node, inner: list[Node]) -> list[Node]:
        """n as a sum, through sums that nothing else reads (`inner`)."""
        found = []
        for a in n.args:
            c = a
            while c.op == "rename":
                c = c.args[0]
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
            fan = _Fan(stack, nodes, [x], weight)
            for n in nodes:
                self.fans[n] = fan

    def _function(self, n: Node) -> str:
        """The function that n alone goes through, and may be overwritten by."""
        users = self.users.get(n, [])
        if len(users) == 1 and not self.pinned(n) and len(users[0].args) == 1 and users[0].args[0] is n and users[0] not in \
                self.nexts and re.fullmatch(r"torch\.\w+\(\{0\}\)", OPS[users[0].op].torch or "") and users[0].op not in NO_OUT:
            return users[0].op
        return ""

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
            self.made.stacks[stack] = Stack([_features(x)[0] for x in xs], [None] * len(xs))
            for i, x in enumerate(xs):
                if x in self.order and x not in self.place_of and x not in self.nexts and x not in self.fans \
                        and x not in self.fan_in and xs.count(x) == 1:
                    self.place_of[x] = self.view(stack, i, i)
                    self.wanted.discard(x)
                    self.made.kept_in[x] = stack, i
            self._bundle(stack, xs)
        self.fans[n] = _Fan(stack, [n], xs, weight)

    def _factors(self, x: Node) -> tuple[Node, Node] | None:
        """(loop value, value formed before) of a product of the two."""
        if x.op == "mul" and x in self.inside:
            for a, f in (x.args, x.args[::-1]):
                if origin(a) in self.inside and f not in self.inside and _features(a) == _features(x) == _features(f):
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
                self.made.stacks[name] = Stack([_features(x)[0] for x in run], [f[1] for x in run if (f := self._factors(x))])
                given, into = self.view(name, 0, j - i, True), self.view(stack, i, j, True)
                self.bundles |= dict.fromkeys(run, _Bundle(run, first[0], given, into))
            i = j + 1

    def _absorb_product(self, n: Node) -> None:
        """a + b * c, the product read by nothing else: one call."""
        terms = self.fan_in[n][1] if n in self.fan_in else list(n.args) if n.op in ("add", "sub") and n not in self.fans else []
        if n in self.absorbed and n not in self.fan_in:
            return
        whole = [t for t in terms if t.op == "mul" and self.alone(t) and t not in self.absorbed and t not in self.place_of
                 and set(t.dims) == set(n.dims) and not any(_scalar(x) for x in t.args)]
        if n in self.fan_in:
            self.absorbed |= set(whole)
        elif n.op == "sub":
            self.absorbed |= {t for t in whole if t is n.args[1]}
        elif whole and not _scalar(n.args[0]) and not _scalar(n.args[1]):
            self.absorbed.add(whole[-1])

    def operands(self, n: Node) -> list[Node]:
        """The loop values that the lines of n read."""
        if n in self.fans and n not in self.fan_in:
            return list(self.fans[n].sources)
        args = [*self.fans[n].sources, *self.fan_in[n][1]] if n in self.fan_in else n.args
        return [y for a in args for y in (self.operands(a) if a in self.absorbed else [origin(a)]) if y in self.inside]

    # ------------------------------------------------------------ operands
    def view(self, stack: str, i: int, j: int, slots: bool = False) -> str:
        name = f"{stack}_{i + 1}" if i == j else f"{stack}_{i + 1}to{j + 1}"
        name += "s" if slots else ""
        self.made.views[name] = stack, i, j, slots
        return name

    def ref(self, n: Node, want: Dims, tensor: bool = True) -> str:
        """Code for a value, to be broadcast over the axes `want`."""
        if n.op == "rename" and n not in self.value:
            text, axes = self._named(n.args[0])
            to = dict(n.attr("to"))
            return _over(text, tuple(to.get(d, d) for d in axes), want)
        if n.op in ALIAS and origin(n) in self.inside:
            return self.ref(n.args[0], want, tensor)
        if n.op == "number" and not tensor:
            return literal(n.attr("value"))
        return _over(*self._named(n), want)

    def _named(self, n: Node) -> tuple[str, Dims]:
        """Name and axes of a value's tensor."""
        if n in self.value:
            return self.value[n]
        if n.op in ALIAS and origin(n) in self.inside:
            if n.op == "rename":
                text, axes = self._named(n.args[0])
                to = dict(n.attr("to"))
                return text, tuple(to.get(d, d) for d in axes)
            return self._named(n.args[0])
        features = tuple(sorted(_features(n), key=self._by_header))
        if ROW in n.dims or SEQUENCES in n.dims:
            found = (f"x{len(self.made.rows) + 1}", (*ONE, *features))
            self.made.rows[found[0]] = n, found[1]
        elif n.dims:
            found = (f"c{len(self.made.heads) + 1}", (HEADS, *features))
            self.made.heads[found[0]] = n, found[1]
        else:
            found = (f"n{len(self.made.numbers) + 1}", ())
            self.made.numbers[found[0]] = n
        self.value[n] = found
        return found

    def _by_header(self, d: str) -> int:
        return self.rank.get(d, -1)

    def axes(self, n: Node) -> Dims:
        """Of a new value: as the next state has them, or as in the header."""
        if n in self.nexts:
            return self.next_axes[n]
        return (*ONE, *sorted(_features(n), key=self._by_header))

    def room(self, n: Node) -> str:
        """Where the value is formed."""
        if n in self.nexts:
            self.in_place.add(n)
            return f"{self.nexts[n]}_next"
        if n in self.place_of:
            return self.place_of[n]
        if n in self.wanted:
            name = f"k{len(self.made.keeps) + 1}"
            self.made.keeps[name] = n, self.axes(n)
            return name
        axes = self.axes(n)
        if self.free.get(axes):
            self.owner[n] = self.free[axes].pop()
        else:
            self.owner[n] = f"s{len(self.made.scratch) + 1}"
            self.made.scratch[self.owner[n]] = axes
        return self.owner[n]

    def line(self, text: str) -> None:
        self.lines.append("        " + text)

    def put(self, n: Node, text: str) -> None:
        """The line of a value whose call takes an `out`."""
        target = self.room(n)
        self.line(f"{text[:-1]}, out={target})")
        self.value[n] = target, self.axes(n)

    # ------------------------------------------------------------ lines
    def write(self) -> Loop:
        self.plan()
        for n in self.order:
            if n in self.absorbed or n in self.done:
                continue
            self._emit(n)
            for a in self.operands(n):
                self.reads_left[a] -= 1
                if not self.reads_left[a] and a in self.owner:
                    self.free.setdefault(self.axes(a), []).append(self.owner.pop(a))
        for name, leaf, nxt in self.carried:
            if self.nexts.get(origin(nxt)) != name or origin(nxt) not in self.in_place:
                self.line(f"{name}_next.copy_({self.ref(nxt, leaf.dims[1:])})")
        self.made.text = self._text()
        return self.made

    def _emit(self, n: Node) -> None:
        if n in self.fan_in:
            self._emit_fan_in(n)
        elif n in self.fans:
            self._emit_fan_out(self.fans[n])
        elif n in self.bundles:
            b = self.bundles[n]
            self.line(f"torch.mul({b.given}, {self._named(b.common)[0]}.unsqueeze(2), out={b.into})")
            self.value |= {x: (self.place_of[x], self.axes(x)) for x in b.nodes}
            self.done |= set(b.nodes)
        else:
            self._emit_plain(n)

    def _emit_fan_out(self, fan: _Fan) -> None:
        stack, x = self.made.stacks[fan.stack], self._named(fan.sources[0])[0]
        self.made.views[fan.stack] = fan.stack, 0, len(fan.nodes) - 1, False
        if stack.filled:
            self.line(f"{fan.stack}.baddbmm_({x}, {fan.weight})")
        else:
            self.line(f"torch.bmm({x}, {fan.weight}, out={fan.stack})")
        functions = [self._function(n) for n in fan.nodes]
        self.done |= set(fan.nodes)
        i = 0
        while i < len(fan.nodes):
            j = i
            while functions[i] and j + 1 < len(functions) and functions[j + 1] == functions[i]:
                j += 1
            if functions[i]:
                part = self.view(fan.stack, i, j)
                self.line(f"{(OPS[functions[i]].torch or '').format(part)[:-1]}, out={part})")
            for m in range(i, j + 1):
                n = self.users[fan.nodes[m]][0] if functions[i] else fan.nodes[m]
                self.value[n] = self.view(fan.stack, m, m), (*ONE, *_features(fan.nodes[m]))
                if n in self.wanted:
                    self.made.kept_in[n] = fan.stack, m
                self.done.add(n)
            i = j + 1

    def _emit_fan_in(self, n: Node) -> None:
        fan, rest = self.fans[n], self.fan_in[n][1]
        x = self._named(fan.sources[0])[0]
        if fan.stack:
            self.made.views[fan.stack] = fan.stack, 0, len(fan.sources) - 1, False
            x = fan.stack
            for i, source in enumerate(fan.sources):
                if self.place_of.get(source) != f"{fan.stack}_{i + 1}":
                    self.line(f"{self.view(fan.stack, i, i)}.copy_({self._named(source)[0]})")
        axes = self.axes(n)
        plain = [t for t in rest if t not in self.absorbed]
        muls = [t for t in rest if t in self.absorbed]
        target = self.room(n)
        if plain:
            self.line(f"torch.baddbmm({self.ref(plain[0], axes)}, {x}, {fan.weight}, out={target})")
        else:
            self.line(f"torch.bmm({x}, {fan.weight}, out={target})")
        for t in plain[1:]:
            self.line(f"{target}.add_({self.ref(t, axes)})")
        for t in muls:
            self.line(f"{target}.addcmul_({self.ref(t.args[0], axes)}, {self.ref(t.args[1], axes)})")
        self.value[n] = target, axes

    def _emit_plain(self, n: Node) -> None:
        axes, template = self.axes(n), OPS[n.op].torch or ""
        product = next((a for a in n.args if a in self.absorbed), None) if n.op in ("add", "sub") else None
        if product is not None:
            x = next(a for a in n.args if a is not product)
            parts = [self.ref(y, axes) for y in (x, *product.args)]
            self.put(n, f"torch.addcmul({', '.join(parts)}{', value=-1' if n.op == 'sub' else ''})")
        elif n.op in INFIX:
            args = list(n.args)
            if n.op in ("add", "mul") and _scalar(args[0]):
                args.reverse()
            refs = [self.ref(args[0], axes), *(self.ref(a, axes, tensor=False) for a in args[1:])]
            self.put(n, f"{INFIX[n.op]}({', '.join(refs)})")
        elif OPS[n.op].elementwise and n.kind != "bool" and (found := re.fullmatch(r"torch\.(\w+)\([^()]*\)", template)) \
                and found[1] not in NO_OUT:
            self.put(n, template.format(*[self.ref(a, axes) for a in n.args], n=n.attr("n")))
        elif OPS[n.op].elementwise:
            self._formed(n, template.format(*[self.ref(a, axes) for a in n.args], n=n.attr("n")).replace("REAL", "dtype"), axes)
        elif n.op == "sum":
            (x,) = n.args
            text, have = self._named(x) if set(self._named(x)[1]) == {*ONE, *_features(x)} else ("", ())
            over = [have.index(d) for d in n.attr("over")] if have else []
            left = tuple(d for d in have if d not in n.attr("over"))
            self._formed(n, f"{text}.sum({over})", left) if have else self._called(n)
        else:
            self._called(n)

    def _formed(self, n: Node, text: str, axes: Dims) -> None:
        """A value that torch makes a tensor for."""
        if self.pinned(n) or n in self.place_of:
            target = self.room(n)
            self.line(f"{target}.copy_({_over(text, axes, self.axes(n))})")
            self.value[n] = target, self.axes(n)
        else:
            name = f"v{len(self.lines) + 1}"
            self.line(f"{name} = {text}")
            self.value[n] = name, axes

    def _called(self, n: Node) -> None:
        """An operation that the evaluator knows."""
        name = f"f{len(self.made.calls) + 1}"
        self.made.calls[name] = n
        axes = tuple(d for d in n.dims if d != ROW)
        args = [self.ref(a, tuple(d for d in a.dims if d != ROW)) for a in n.args]
        self._formed(n, f"{name}({', '.join(args)})", axes)

    def _text(self) -> str:
        made, names, sources = self.made, list[str](), list[str]()
        said = set(re.findall(r"\w+", "\n".join(self.lines)))
        made.views = {name: v for name, v in made.views.items() if name in said}
        order = "reversed({})" if made.reverse else "{}"
        for name, _, _ in made.carried:
            names += [f"{name}_now", f"{name}_next"]
            sources += [f"{name}_at", f"{name}_to"]
        for name in [*made.rows, *made.views, *made.keeps]:
            names.append(name)
            sources.append(order.format(f"{name}.unbind(0)"))
        args = [f"{name}_{x}" for name, _, _ in made.carried for x in ("at", "to")]
        args += [*made.rows, *made.views, *made.keeps, *made.heads, *made.numbers, *made.weights, *made.scratch, *made.calls]
        head = ["import torch", "import torch.nn.functional as F", "", "from mixc.codegen.torch_prelude import guard", "", "",
                f"def loop(*, {', '.join(args)}, dtype):",
                f"    for {', '.join(names)} in zip(", *(f"            {s}," for s in sources), "            strict=True):"]
        return "\n".join([*head, *self.lines]) + "\n"


def _features(n: Node) -> Dims:
    return tuple(d for d in n.dims if d not in AXES)


def _scalar(n: Node) -> bool:
    return not n.dims


def _over(text: str, axes: Dims, want: Dims) -> str:
    """Code that broadcasts a tensor of these axes against one of the axes `want`."""
    order = tuple(d for d in want if d in axes)
    assert len(order) == len(axes), (text, axes, want)
    if order != axes:
        text += f".permute({', '.join(str(axes.index(d)) for d in order)})"
    if not axes or len(order) == len(want):
        return text
    return f"{text}[{', '.join(':' if d in order else 'None' for d in want)}]"
