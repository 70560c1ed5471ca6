"""What a launch's kernel loads and forms: its leaves, the states at the start of a chunk, the order of its statements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache

from mixc.codegen.again import CALL, Again
from mixc.codegen.axes import is_rows
from mixc.codegen.kernel_addresses import Addresses
from mixc.codegen.lines import WIDTH, at_once, indent, plus, times
from mixc.codegen.names import safe
from mixc.codegen.notation import bare_code, formula, is_decay, span_formula
from mixc.codegen.operands import fine_products, lasting, turned_products
from mixc.codegen.refuse import refuse
from mixc.codegen.schedule import NOMINAL_WARPS, Operand, Tile, fitted_sizes, nominal_sizes, numbers, schedule
from mixc.codegen.tiles import Tiles
from mixc.codegen.value_names import ValueNames
from mixc.codegen.written import WARPS
from mixc.ir.launch import Carry, Store
from mixc.ir.node import ROW, Node, flat, postorder, source
from mixc.ir.program import Decl, Program
from mixc.passes.beside import one_of, tensor_dims

# as many tiles of what is last among its arguments as a statement needs while it runs: the factors of four levels, and
# what they multiply; products in three parts
WITHIN = {"span_contract": 6.0, "span_crossing": 6.0, "unit_inverse": 8.0}


class Loads(Addresses):
    """The values of a launch, written into `before` its loop or into the loop's `body`."""

    program: Program
    header: tuple[str, ...]
    forward: Program | None
    varying: set[Node]
    by_rows: bool
    carry_of: dict[Node, Carry]

    def __init__(self) -> None:
        self.before: list[str] = []
        self.body: list[str] = []
        self.loaded: dict[str, Decl] = {}
        self.cots: list[str] = []
        self.given: dict[str, tuple[str, ...]] = {}  # rows that another launch stored, and their dims
        self.backs: dict[str, None] = {}  # how many tokens ago tensors are read
        self.weights = False  # does it hold matrices of a head, if they fit?
        self.alive: list[list[tuple[tuple[str, ...], float]]] = []
        self.vectors = 0
        self.estimates = True  # are they found beside the order of statements, or not at all?
        self.held = "held"  # the chunk's rows that there are
        self.again: Again | None = None

    def _names_of(self, nodes: list[Node], stores: Iterable[Store], carried: Iterable[tuple[str, Node]]) -> ValueNames:
        """What values are called; those that are stored or carried on by where they go."""
        wanted = {source(x): safe(name) + "_next" for name, x in carried}
        wanted |= {source(s.value): s.name for s in stores if s.kind == "rows" and s.result != "save"}
        return ValueNames(nodes, wanted, self.program, self.forward)

    def _fine(self, nodes: list[Node], carried: list[tuple[Node, Node]]) -> set[Node]:
        """The products of these nodes whose operands are not rounded to the dtype of the inputs."""
        return (fine_products(nodes) if self.launch.fine else set()) | lasting(nodes, carried) | turned_products(nodes)

    def _emit(self, node: Node, line: str) -> None:
        lines = self.body if node in self.varying else self.before
        words = span_formula(node, self.tiles.names.get(node, "")) if is_decay(node) else None
        beside = words and len(f"{line}  # {words}") <= WIDTH - 12  # as far as it is indented
        lines += [f"{line}  # {words}"] if beside else [f"# {words}", line] if words else [line]

    def _leaf(self, node: Node) -> str:
        if node in self.carry_of:
            return safe(self.carry_of[node].name)
        load = {"in": self._load_rows, "cot": self._load_cotangent, "param": self._load_param,
                "saved": self._load_given, "state": self._load_start, "index": self._index}.get(node.op)
        if load is not None:
            name = load(node)
            if node.op != "index":
                self.tiles.raw.add(node)
            return name
        if node.op == "const":
            return str(node.attr("name"))
        raise refuse(f"`{node.op}` is no leaf of a kernel yet", node)

    def _for_one(self, load: str, c: Carry) -> str:
        """A cotangent enters one of the partial sums."""
        first = "".join(f" and block_{d} == 0" for d in self.launch.partial_over(c.dims))
        return f"tl.where({first[5:]}, {load}, 0.0)" if first else load

    def _load_rows(self, node: Node) -> str:
        tensor = safe(node.attr("name"))
        decl = self.loaded[tensor] = self.program.decl(node.attr("name"))
        return self._load_earlier(tensor, node) if decl.ago else self._load_of(tensor, f"{tensor}_st", node)

    def _load_earlier(self, tensor: str, node: Node) -> str:
        """Rows of an input `back` tokens ago, 0 where there were none; where it is 0 the tensor has them as they are read."""
        name, dims, back, rows = self._called(tensor, node), tensor_dims(node), f"{tensor}_back", self.held
        address = self._rows_at(f"{tensor}_ptr", f"(row - {back} * SIGN)", f"{tensor}_st", dims, rows, node.attr("at", ()))
        early = self.axes.along(rows, ROW, self.tile(node.dims), f"(row * SIGN + {{}} >= {back})") if ROW in node.dims else \
            f"(row * SIGN >= {back})"
        there = " & ".join([early, *self._inside(node.dims)])
        self.body.append(f"{name} = tl.load({address}, mask={there}, other=0.0)")
        self.backs[back] = None
        return name

    def _called(self, tensor: str, node: Node) -> str:
        """The name of what is loaded of a tensor."""
        here = "_".join([tensor, *(str(i) for _, i in node.attr("at", ()))])
        return here if here == tensor else self.tiles.fresh(here)

    def _load_cotangent(self, node: Node) -> str:
        self.cots.append(node.attr("name"))
        return self._load_of("d" + node.attr("name"), None, node, 0)

    def _load_given(self, node: Node) -> str:
        self.given[node.attr("name")] = tuple(d for d in tensor_dims(node) if d != ROW)
        return self._load_of(node.attr("name"), None, node, node.attr("behind"))

    def _load_of(self, tensor: str, stride: str | None, node: Node, behind: float | None = None) -> str:
        """Rows of a tensor (no stride: of the module's own, [B, T, H, dims...]); behind the end 0, or the last one, if any
        may stand there."""
        name, dims = self._called(tensor, node), tensor_dims(node)
        stride, masked = stride or self._row_stride(dims), self.held == "held" and behind is not None
        address = self._rows_at(f"{tensor}_ptr", "row", stride, dims, "rows" if masked else self.held, node.attr("at", ()))
        self.body.append(f"{name} = tl.load({address}{self._guard(node.dims, rows=masked)})")
        return name

    def _load_param(self, node: Node) -> str:
        name = safe(node.attr("name"))
        self.loaded[name] = self.program.decl(node.attr("name"))
        dims, called = tensor_dims(node), self._called(name, node)
        base = f"{name}_ptr + (head // {name}_rep){times(dims)}"
        offset = self._flat(dims, at=node.attr("at", ()))
        self.before.append(f"{called} = tl.load({base}{plus(offset)}{self._guard(node.dims, False)})")
        return called

    def _weights(self, node: Node, at: str) -> str:
        """Matrices of a head are held for all tokens, or asked for at every token (`at`) where they do not fit."""
        if len(node.dims) < 2:
            return Loads._load_param(self, node)
        name, offsets, mask = safe(node.attr("name")), self._flat(node.dims), " & ".join(self._inside(node.dims))
        self.loaded[name] = self.program.decl(node.attr("name"))
        self.before.append(f"{name} = weights({name}_ptr + (head // {name}_rep) * ({' * '.join(node.dims)}), {offsets}, "
                           f"{mask}, 0, HELD)")
        self.weights = True
        return f"weights({name}, {offsets}, {mask}, {at}, not HELD)"

    def _load_start(self, node: Node) -> str:
        """The states at the start of the chunk: as the forward kept them at the start of the segment, and formed
        again over the chunks between."""
        launch = self.launch
        names = {s: safe(s) for s in launch.starts}
        self.body += self._kept_at
        for s in launch.starts:
            dims = self.program.decl(s).dims
            self.body.append(f"{names[s]} = {self._kept(f'{s}_starts', dims)}{'.to(tl.float32)' if launch.replay else ''}")
        if launch.replay:
            self._form_again(names)
        for s in launch.starts:
            leaf = self._start(s)
            self.tiles.names[leaf] = names[s]
            self.tiles.raw.add(leaf)
        return names[node.attr("name")]

    def _start(self, name: str) -> Node:
        """The leaf of a state."""
        return one_of(self.program.decl(name).leaf(), self.launch.each)

    def _form_again(self, names: dict[str, str]) -> None:
        """The states at the start of this chunk, from those at the start of its segment."""
        self._replay(names, "tl.cast(past * C, tl.int64) * SIGN")
        loop = ["for past in tl.range(chunk // (SEGMENT // C) * (SEGMENT // C), chunk, num_stages=1):", f"    {CALL}"]
        self.body += ["if SEGMENT > C:  # the chunks of the segment before this one", *indent(loop)]
        self.body.append(at_once([names[s] for s in self.launch.starts], "{0}.to({0}_starts.dtype.element_ty)"))

    def _again(self) -> Tiles:
        """Of what is formed again."""
        launch, outer = self.launch, self.tiles
        body = list(postorder(launch.replay))
        fine = self._fine(body, list(zip(map(self._start, launch.starts), launch.replay, strict=True)))
        inner = Tiles(self._emit, self._leaf, outer.taken, body, list(launch.replay), self.header, self.axes, fine,
                      self._names_of(body, (), list(zip(launch.starts, launch.replay, strict=True))))
        inner.rows = outer.rows
        return inner

    def _replay(self, names: dict[str, str], row: str, what: str = "chunk") -> None:
        """The function that takes the states of `starts` one chunk (`what`) on, which begins at `row`."""
        launch, outer, inner, body = self.launch, self.tiles, self._again(), self.body
        self.tiles, self.held, self.body = inner, "rows", []
        inner.names = {self._start(s): names[s] for s in launch.starts}
        inner.names |= {n: name for n, name in outer.names.items() if n not in self.varying}
        for node in self._ordered(list(launch.replay), set(inner.names), inner, tuple(launch.replay)):
            if not inner.inlined(node):
                inner.name(node)
        dims = [self.program.decl(s).dims for s in launch.starts]
        given = [inner.cleaned(x, self.tile(d), d) for x, d in zip(launch.replay, dims, strict=True)]
        for s, n in zip(names.values(), launch.replay, strict=True):
            self._explain(f"{s}'", n, f"{s}_next")
        self.again = Again([*names.values()], self.body, given, row, what)
        outer.names |= {n: name for n, name in inner.names.items() if n not in self.varying}
        outer.taken |= {name for n, name in inner.names.items() if n not in self.varying}
        outer.raw |= inner.raw - self.varying
        self.tiles, self.held, self.body = outer, "held", body

    def _assign(self, targets: list[tuple[str, Node, tuple[str, ...]]]) -> None:
        """Carried tiles get their next values, all at once; what is no part of a block stays 0, as it is loaded."""
        new = [(name, self.tiles.cleaned(value, self.tile(dims), dims)) for name, value, dims in targets]
        for name, value, _ in targets:
            self._explain(f"{name}'", value, f"{name}_next")
        new = [(name, code) for name, code in new if code != name]
        if len(new) > 1:
            self.body += [f"{name}_next = {code}" for name, code in new if code != name + "_next"]
        self.body += [f"{name} = {code}" for name, code in new] if len(new) < 2 else [at_once([name for name, _ in new], "{0}_next")]

    def _explain(self, name: str, value: Node, formed: str) -> None:
        """A comment: what is stored or carried, in the language's notation, above the line that forms it, if that does not
        say the same."""
        tiles = self.tiles
        whole = {n for n in tiles.names if n.op == "scan_block"}
        text = formula(value, {n: x for n, x in (tiles.names | tiles.components).items() if n not in tiles.unread | whole})
        at = next((i for i, line in enumerate(self.body) if line.startswith(f"{formed} = ")), len(self.body))
        if text and text != name and bare_code("".join(self.body[at:at + 1])) != f"{formed} = {text}":
            self.body.insert(at, f"# {name} = {text}")

    def _kept(self, tensor: str, dims: tuple[str, ...]) -> str:
        """What is kept of this segment, loaded."""
        return self._state(tensor, "kept_at", dims)

    @property
    def _kept_at(self) -> list[str]:
        """Which of the states that are kept is this chunk's segment's."""
        return [f"kept_at = (first_segment + {self._segment()}).to(tl.int64) * H + head"]

    def _segment(self) -> str:
        return "chunk // (SEGMENT // C)"

    def _index(self, node: Node) -> str:
        return f"{self.tiles.index(tensor_dims(node)[0])}.to(tl.float32)"

    def _ordered(self, roots: list[Node], held: set[Node], tiles: Tiles, kept: tuple[Node, ...]) -> list[Node]:
        """The statements; what is alive in between is estimated beside it."""
        if self.estimates:
            self._estimate(roots, held, tiles, kept)
        nominal, part = nominal_sizes(self.launch, self.axes.ranks), _parts(held, tiles)
        size, wide, few = self._sizes(nominal), self._wide(tiles, nominal), self.by_rows and nominal[ROW] < 64
        def weight(n: Tile) -> float:
            if isinstance(n, Operand):
                return n.bits * size(n.dims) * (NOMINAL_WARPS if n.left else 1) if few else 0.0
            return part(n) * size(n.dims)
        def within(n: Node) -> float:
            return WITHIN.get(n.op, 0.0) * size(n.args[-1].dims)
        return schedule(roots, held, weight, tiles.grouped, kept, within, wide, tiles.operands_in).statements

    def _estimate(self, roots: list[Node], held: set[Node], tiles: Tiles, kept: tuple[Node, ...]) -> None:
        """What estimates of registers read, `alive`: in the orders that they were fitted to, by the sizes of tiles alone or
        with left sides of products of few rows twice, as every warp has all of one while they use it."""
        nominal, part = fitted_sizes(self.launch, self.axes.ranks), _parts(held, tiles)
        size, wide = self._sizes(nominal), self._wide(tiles, nominal)
        def plain(n: Tile) -> float:
            return part(n) * size(n.dims)  # type: ignore[arg-type]
        def weight(n: Tile) -> float:
            return plain(n) * (2 if n in tiles.lefts and nominal[ROW] < 64 and part(n) < 1 else 1)  # type: ignore[arg-type]
        def within(n: Node) -> float:
            return 0.0 if n.op == "unit_inverse" else WITHIN.get(n.op, 0.0) * size(n.args[-1].dims)
        ways = [weight, plain] if tiles.lefts and nominal[ROW] < 64 else [plain]
        orders = [schedule(roots, held, way, tiles.grouped, kept, within, wide) for way in ways]
        found = min(orders, key=lambda o: o.cost(weight))
        placed = {*found.statements, *held}
        for n, there in found.alive:
            formed = [n, *(x for x in postorder(n.args, placed) if x not in placed)]
            # of TF32 not twice as much: ptxas does not hold all of them at once
            lefts = {(left.dims, 0.75 if tiles.operand == "tl.float32" or x in tiles.fine else 0.5)
                     for x in formed if (left := tiles.rows_of_tokens(x))}
            sized = [(m.dims, part(m)) for m in there] + [((*dims, WARPS), bits) for dims, bits in sorted(lefts)]  # type: ignore[arg-type]
            self.alive.append([(tuple(map(self.axes.size_of, flat(dims))), bits) for dims, bits in sized])
        self.vectors = max(self.vectors, found.vectors)

    def _sizes(self, nominal: Mapping[str, int]) -> Callable[[tuple[str, ...]], int]:
        """Of a tile of these dims."""
        return cache(lambda dims: numbers(tuple(map(self.axes.size_of, flat(dims))), nominal))

    def _wide(self, tiles: Tiles, nominal: Mapping[str, int]) -> Callable[[Node], int | None]:
        """The columns of the product that a statement forms, if its rows are tokens; 0: they are tokens too."""
        def wide(n: Node) -> int | None:
            inner = [x for a in n.args if a.op in ("rename", "expand") or tiles.grouped(a) if (x := wide(a)) is not None]
            if tiles.rows_of_tokens(n):
                inner.append(0 if is_rows(d := tiles.order(n)[1]) else nominal[d])
            return max(inner, default=None)
        return wide


def _parts(held: set[Node], tiles: Tiles) -> Callable[[Node], float]:
    """Of a register, for one number of a matrix; loads and operands have half the bits."""
    return cache(lambda n: 0.0 if len(n.dims) < 2 else 0.5 if n not in held and (not n.args or n in tiles.operands) else 1.0)
