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

from mixc.codegen.lines import defined
from mixc.codegen.torch_cell_plan import ONE, Carried, Dims, Fan, Loop, Plan, features, scalar
from mixc.codegen.torch_ops import INFIX, takes_out
from mixc.codegen.torch_stages import ALIAS, origin
from mixc.codegen.torch_values import broadcast, literal
from mixc.ir.node import ROW, Node, called
from mixc.ir.ops import OPS
from mixc.ir.program import Program
from mixc.passes.cell import HEADS, SEQUENCES


def loop(program: Program, carried: list[Carried], wanted: list[Node],
         saved: frozenset[Node] = frozenset()) -> Loop:
    """The loop of a cell program.

    Args:
        carried: names of states, the leaf each is read as and its next value.
        wanted: values of the loop that are read behind it. saved: values that another loop left.
    """
    writer = _Writer(program, carried, wanted, saved)
    made = writer.write()
    made.run = defined(made.text, f"mixc {program.name}")["loop"]
    return made


_REDUCES = {"sum": "sum", "max": "amax", "min": "amin"}
_ALONG = {"softmax": "torch.softmax({}, {})", "norm": "torch.linalg.vector_norm({}, dim={})"}


class _Writer(Plan):
    def __init__(self, program: Program, carried: list[Carried], wanted: list[Node], saved: frozenset[Node]):
        super().__init__(program, carried, wanted, saved)
        self.lines: list[str] = []
        self.once: dict[str, str] = {}  # views made before the loop
        self.free: dict[Dims, list[str]] = {}
        self.owner: dict[Node, str] = {}

    # ------------------------------------------------------------ operands
    def ref(self, n: Node, want: Dims, tensor: bool = True) -> str:
        """Code for a value, to be broadcast over the axes `want`."""
        if origin(n).op == "number" and not tensor:
            return literal(origin(n).attr("value"))
        return broadcast(*self._named(n), want)

    def _named(self, n: Node) -> tuple[str, Dims]:
        """Name and axes of a value's tensor."""
        if n in self.value:
            return self.value[n]
        if n.op == "rename" or (n.op in ALIAS and origin(n) in self.inside):
            text, axes = self._named(n.args[0])
            return text, called(n, axes)
        inner = tuple(sorted(features(n), key=self._by_header))
        if ROW in n.dims or SEQUENCES in n.dims:
            found = (f"x{len(self.made.rows) + 1}", (*ONE, *inner))
            self.made.rows[found[0]] = n, found[1]
        elif n.dims:
            found = (f"c{len(self.made.heads) + 1}", (*ONE, *inner))
            self.made.heads[found[0]] = n, found[1]
        else:
            found = (f"n{len(self.made.numbers) + 1}", ())
            self.made.numbers[found[0]] = n
        self.value[n] = found
        return found

    def _by_header(self, d: str) -> int:
        return self.rank.get(d, -1)

    def axes(self, n: Node) -> Dims:
        """Of a new value: as the next state has them, or as in the header, by the names it is read under."""
        if n in self.nexts:
            return self.next_axes[n]
        read = next((a for u in self.users.get(n, ()) for a in u.args if origin(a) is n and len(a.dims) == len(n.dims)), n)
        own = dict(zip(read.dims, n.dims, strict=True))
        return (*ONE, *(own[d] for d in sorted(features(read), key=self._by_header)))

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
        self.owner[n] = self._temporary(self.axes(n))
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
            common = self._named(b.common)[0]
            if common in self.made.scratch:
                self.once[f"{common}_s"] = f"{common}.unsqueeze(2)"
            wide = f"{common}_s" if common in self.made.scratch else f"{common}.unsqueeze(2)"
            self.line(f"torch.mul({b.given}, {wide}, out={b.into})")
            self.value |= {x: (self.place_of[x], self.axes(x)) for x in b.nodes}
            self.done |= set(b.nodes)
        else:
            self._emit_plain(n)

    def _emit_fan_out(self, fan: Fan) -> None:
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
                self.value[n] = self.view(fan.stack, m, m), (*ONE, *features(fan.nodes[m]))
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
        axes = self.axes(n)
        products = [a for a in n.args if a in self.absorbed] if n.op in ("add", "sub") else []
        if len(products) == 2:
            a, b = ([self.ref(y, axes) for y in p.args] for p in products)
            self.put(n, f"torch.mul({', '.join(a)})")
            self.line(f"{self._named(n)[0]}.addcmul_({', '.join(b)})")
        elif products:
            x = next(a for a in n.args if a is not products[0])
            self._emit_added(n, x, products[0], axes)
        elif n.op in INFIX:
            args = list(n.args)
            if n.op in ("add", "mul") and scalar(args[0]):
                args.reverse()
            refs = [self.ref(args[0], axes), *(self.ref(a, axes, tensor=False) for a in args[1:])]
            self.put(n, f"{INFIX[n.op]}({', '.join(refs)})")
        elif OPS[n.op].elementwise:
            text = (OPS[n.op].torch or "").format(*[self.ref(a, axes) for a in n.args], n=n.attr("n")).replace("REAL", "dtype")
            if takes_out(n) and n.kind != "bool":
                self.put(n, text)
            else:
                self._formed(n, text, axes)
        elif n.op == "contract" and (sides := self._sides(n)) is not None:
            self._emit_product(n, *sides)
        elif n.op in _REDUCES:
            (x,) = n.args
            text, have = self._named(x) if set(self._named(x)[1]) == {*ONE, *features(x)} else ("", ())
            over = [have.index(d) for d in n.attr("over")] if have else []
            left = tuple(d for d in have if d not in n.attr("over"))
            if not have:
                self._called(n)
            elif left == self.axes(n):
                self.put(n, f"torch.{_REDUCES[n.op]}({text}, {over})")
            else:
                self._formed(n, f"{text}.{_REDUCES[n.op]}({over})", left)
        elif n.op in _ALONG and len(n.attr("over")) == 1 and {*self._named(n.args[0])[1]} == {*ONE, *features(n.args[0])}:
            have, (over,) = self.axes(n.args[0]), n.attr("over")
            call = _ALONG[n.op].format(self.ref(n.args[0], have), have.index(over))
            left = tuple(d for d in have if d in n.dims)
            if left == axes:
                self.put(n, call)
            else:
                self._formed(n, call, left)
        else:
            self._called(n)

    def _emit_added(self, n: Node, x: Node, product: Node, axes: Dims) -> None:
        """x + product, or x - product."""
        number = next((y for y in product.args if origin(y).op == "number"), None)
        if number is None:
            parts = [self.ref(y, axes) for y in (x, *product.args)]
            self.put(n, f"torch.addcmul({', '.join(parts)}{', value=-1' if n.op == 'sub' else ''})")
        else:
            (y,) = (y for y in product.args if y is not number)
            value = origin(number).attr("value") * (-1 if n.op == "sub" else 1)
            self.put(n, f"torch.add({self.ref(x, axes)}, {self.ref(y, axes)}, alpha={literal(value)})")

    def _sides(self, n: Node) -> tuple[Dims, Dims, Dims, Dims] | None:
        """Of a product where either side has one dim of its own at most, and sums over one unless neither has: the dims
        that both have and keep, those of the left and of the right side alone, and those that are summed over."""
        of_a, of_b, kept = (set(features(x)) for x in (*n.args, n))
        left, right, over = of_a & kept - of_b, of_b & kept - of_a, (of_a | of_b) - kept
        if max(len(left), len(right)) > 1 or (len(over) != 1 and left | right) or not over <= of_a & of_b or not all(
                of <= set(self._named(x)[1]) for x, of in zip(n.args, (of_a, of_b), strict=True)):
            return None
        each, summed = (tuple(sorted(of, key=self._by_header)) for of in (of_a & of_b & kept, over))
        return each, tuple(left), tuple(right), summed

    def _emit_product(self, n: Node, each: Dims, left: Dims, right: Dims, over: Dims) -> None:
        """Of small tensors torch.matmul costs several times what one product of matrices does, or a sum; a vector stands
        in front, as one row: behind a matrix it takes eight times as long."""
        (a, b), axes = n.args, self.axes(n)
        one = all(self._named(x)[1][:2] == ONE for x in n.args)
        if not left and not right and (*ONE, *each) == axes:
            wide = (*ONE, *each, *over)
            products = self._temporary(wide)
            self.line(f"torch.mul({self.ref(a, wide)}, {self.ref(b, wide)}, out={products})")
            self.put(n, f"torch.sum({products}, {list(range(2 + len(each), len(wide)))})")
            self.free.setdefault(wide, []).append(products)
        elif not each and len(left) + len(right) == 1 and one:
            vector, matrix = (a, b) if right else (b, a)
            rows, columns = self.ref(vector, (*ONE, *over)), self.ref(matrix, (*ONE, *over, *left, *right))
            target = self.room(n)
            self.line(f"torch.bmm({rows}{_AS_ROWS}, {columns}.flatten(0, 1), out={target}{_AS_ROWS})")
            self.value[n] = target, axes
        elif not each and left and right and one:
            if axes != (*ONE, *left, *right):
                a, b, left, right = b, a, right, left
            rows, columns = self.ref(a, (*ONE, *left, *over)), self.ref(b, (*ONE, *over, *right))
            target = self.room(n)
            self.line(f"torch.bmm({rows}.flatten(0, 1), {columns}.flatten(0, 1), out={target}.flatten(0, 1))")
            self.value[n] = target, axes
        else:
            rows = self.ref(a, (*ONE, *each, *(left or ("_left",)), *over))
            columns = self.ref(b, (*ONE, *each, *over, *(right or ("_right",))))
            first = "" if left and right else f"[..., {':' if left else '0'}, {':' if right else '0'}]"
            self._formed(n, f"torch.matmul({rows}, {columns}){first}", (*ONE, *each, *left, *right))

    def _temporary(self, axes: Dims) -> str:
        """A buffer of a line; whoever takes it puts it among those that are free."""
        if self.free.get(axes):
            return self.free[axes].pop()
        name = f"s{len(self.made.scratch) + 1}"
        self.made.scratch[name] = axes
        return name

    def _formed(self, n: Node, text: str, axes: Dims) -> None:
        """A value that torch makes a tensor for."""
        if self.pinned(n) or n in self.place_of:
            target = self.room(n)
            self.line(f"{target}.copy_({broadcast(text, axes, self.axes(n))})")
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
        args = []
        for a in n.args:
            want = tuple(d for d in a.dims if d != ROW)
            alike = SEQUENCES not in want and SEQUENCES in self._named(a)[1]  # a head's, or all heads'
            one = "[:, 0]" if HEADS in want else "[0, 0]"
            args.append(f"{self.ref(a, (*ONE, *features(a)))}{one}" if alike else self.ref(a, want))
        self._formed(n, f"{name}({', '.join(args)})", axes)

    def _text(self) -> str:
        made, names, sources = self.made, list[str](), list[str]()
        said = set(re.findall(r"\w+", "\n".join(self.lines)))
        made.views = {name: v for name, v in made.views.items() if name in said}
        places = {f"{name}_{x}": (f"{name}_all", part) for name, _, _ in made.carried for x, part in _PARTS[made.reverse].items()}
        places |= {name: (name, "[::-1]" * made.reverse) for name in [*made.rows, *made.views, *made.keeps]}
        for name, (whole, part) in places.items():
            for view, changed in self._views_first(name).items():
                places_of = f"each_token({whole}, {changed!r}, lambda x: x{changed}){part}"
                names.append(view)
                sources.append(places_of)
            if any(re.search(rf"\b{name}\b", line) for line in self.lines):
                names.append(name)
                sources.append(f"each_token({whole}){part}")
        for name in [*made.scratch, *made.heads]:
            self.once |= {view: f"once_made({name}, {text!r}, lambda: {name}{text})"
                          for view, text in self._views_first(name, of_all=False).items()}
        args = [*(f"{name}_all" for name, _, _ in made.carried), *made.rows, *made.views, *made.keeps, *made.heads, *made.numbers,
                *made.weights, *made.scratch, *made.calls]
        head = ["import torch", "import torch.nn.functional as F", "",
                "from mixc.codegen.torch_prelude import each_token, guard, once_made", "", "",
                f"def loop(*, {', '.join(args)}, dtype):", *(f"    {name} = {view}" for name, view in self.once.items()),
                f"    for {', '.join(names)} in zip(", *(f"            {s}," for s in sources), "            strict=True):"]
        return "\n".join([*head, *self.lines]) + "\n"

    def _views_first(self, name: str, of_all: bool = True) -> dict[str, str]:
        """Views that every token would make of its part are made before the loop (`of_all`: of the parts of all tokens):
        by the name they have from now on, the text that makes them of the whole."""
        found: dict[str, str] = {}
        for text in dict.fromkeys(m[1] for line in self.lines for m in re.finditer(rf"\b{name}({_VIEW})", line)):
            view = f"{name}_{len(found) + 1}v"
            found[view] = _behind_time(text) if of_all else text
            self.lines = [re.sub(rf"\b{re.escape(name + text)}(?!{_VIEW})", view, line) for line in self.lines]
        return found


_AS_ROWS = ".flatten(0, 1).unsqueeze(1)"
_VIEW = r"(?:\[[:, None]+\]|\.permute\([\d, ]+\)|\.flatten\(0, 1\)|\.unsqueeze\(\d\)|\.mT)+"
# of the buffer of a state, what each token receives and what it leaves: by whether the loop runs backwards
_PARTS = {False: {"now": "[:-1]", "next": "[1:]"}, True: {"now": "[:0:-1]", "next": "[-2::-1]"}}


def _behind_time(text: str) -> str:
    """A view of a token's tensor as one of all tokens."""
    def later(m: re.Match[str]) -> str:
        axes = ["0"] * (m[1] == "permute") + [str(int(d) + 1) for d in m[2].split(", ")]
        return f".{m[1]}({', '.join(axes)})"
    return re.sub(r"\.(\w+)\(([\d, ]+)\)", later, text).replace("[", "[:, ")
