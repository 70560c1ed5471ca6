"""A launch as the source of one Triton kernel.

The kernel walks over the chunks (or tokens) of one sequence and head; its arguments are the pointers
and strides of what it loads and stores, and constexpr sizes and blocks.  Text only: nothing here
knows where the launch came from.
"""

from __future__ import annotations

from functools import cached_property

from mixc.codegen.axes import Axes, is_rows, more_rows
from mixc.codegen.lines import group, indent, plus, times, wrapped
from mixc.codegen.names import RESERVED
from mixc.codegen.names import safe as safe
from mixc.codegen.notation import formula, is_decay, span_formula
from mixc.codegen.refuse import refuse
from mixc.codegen.schedule import nominal_sizes, numbers, schedule
from mixc.codegen.tiles import Tiles
from mixc.codegen.written import WARPS as WARPS
from mixc.codegen.written import Kernel as Kernel
from mixc.ir.launch import Carry, Launch, Store, row_dims
from mixc.ir.node import COL, JOINT, ROW, Node, flat, postorder, source
from mixc.ir.program import Decl
from mixc.passes.beside import one_of, tensor_dims
from mixc.passes.entries import Entry


class KernelWriter:
    """Builds the text of a launch; `write()` returns the Kernel.

    Args:
        turned: programs take blocks of this dim in turn; what lacks it is added up where it is stored."""

    past = "past_row = tl.cast(past * C, tl.int64) * SIGN"  # the first row of an earlier chunk

    def __init__(self, launch: Launch, turned: str = ""):
        self.launch, self.program, self.turned = launch, launch.program, turned
        self.weights = False  # does it hold matrices of a head, if they fit?
        self.alive: list[list[tuple[tuple[str, ...], float]]] = []
        self.vectors = 0
        nodes = launch.nodes()
        self.varying = launch.varying()
        self.before: list[str] = []
        self.body: list[str] = []
        self.loaded: dict[str, Decl] = {}
        self.cots: list[str] = []
        self.given: dict[str, tuple[str, ...]] = {}  # rows that another launch stored, and their dims
        tiled = {d for n in nodes for d in n.dims} | {d for s in launch.stores for d in s.tile}
        tiled |= {d for c in launch.carries for d in c.dims}
        sized = {d for s in launch.stores for d in s.dims} | {d for n in nodes for d in n.attr("of", ()) if n.attr("at")}
        sized |= {n.attr("dim") for n in nodes if n.op == "size"}
        tiled, dims = ({self.program.inner.get(d, d) for d in flat(x)} for x in (tiled, tiled | sized))
        self.dims = [d.name for d in self.program.dims if d.name in dims]
        self.tiled = [d for d in self.dims if d in tiled]  # others are those of tensors alone
        self.consts = [c.name for c in self.program.consts if any(n is c.leaf() for n in nodes)]
        taken = {*RESERVED, *(d.name for d in self.program.decls), *self.dims, *(f"{x}_{d}" for d in self.dims for x in ("in", "has")),
                 *(c.name for c in launch.carries), *(s.name for s in launch.stores),
                 *("d" + d.name for d in self.program.decls), *(n.attr("name") for n in nodes if n.op == "saved")}
        self.header = tuple(d.name for d in self.program.dims)
        self.by_rows = launch.loop not in ("tokens", "cells")
        self.axes = Axes(row_dims(nodes, self.program) if self.by_rows else frozenset(), self.program.inner,
                         frozenset(launch.each), tuple(flat([d]) for d in self.header if JOINT in d))
        self.tiles = Tiles(self._emit, self._leaf, taken, launch.body(), launch.roots(), self.header, self.axes, launch.fine)
        self.whole, self.ends = "seq", launch.carries  # what its loop is over, and what has an initial and a final value there
        self.row, self.held = "row", "held"  # the chunk's first row, and its rows that there are
        self.carry_of = {c.leaf: c for c in launch.carries}

    # ------------------------------------------------------------ values
    def _emit(self, node: Node, line: str) -> None:
        lines = self.body if node in self.varying else self.before
        if is_decay(node) and (words := span_formula(node, self.tiles.names.get(node, ""))):
            lines.append(f"# {words}")
        lines.append(line)

    def _formula(self, name: str, value: Node) -> list[str]:
        """A comment: what is stored or carried, in the language's notation."""
        text = formula(value, self.tiles.names)
        return [f"# {name} = {text}"] if text and text != name else []

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
        self.loaded[tensor] = self.program.decl(node.attr("name"))
        name = self._called(tensor, node, self.row)
        offset = self._row_offset(f"{tensor}_st", tensor_dims(node), self.held, node.attr("at", ()))
        self.body.append(f"{name} = tl.load({tensor}_ptr + {self.row} * {tensor}_st{plus(offset)}{self._guard(node.dims, rows=False)})")
        return name

    def _called(self, tensor: str, node: Node, row: str) -> str:
        """The name of what is loaded of a tensor for the chunk that begins at this row."""
        here = "_".join([tensor, *(str(i) for _, i in node.attr("at", ())), *([row] if row != "row" else [])])
        return here if here == tensor else self.tiles.fresh(here)

    def _load_cotangent(self, node: Node) -> str:
        self.cots.append(node.attr("name"))
        return self._load_own("d" + node.attr("name"), node, 0)

    def _load_given(self, node: Node) -> str:
        self.given[node.attr("name")] = tuple(d for d in tensor_dims(node) if d != ROW)
        return self._load_own(node.attr("name"), node, node.attr("behind"))

    def _load_own(self, tensor: str, node: Node, behind: float | None) -> str:
        """Rows of a tensor [B, T, H, dims...] of the module's own; behind the end 0, or the last one, if any may stand there."""
        name, dims = self._called(tensor, node, self.row), tensor_dims(node)
        stride, masked = self._row_stride(dims), self.row == "row" and behind is not None
        offset = self._row_offset(stride, dims, "rows" if masked else self.held, node.attr("at", ()))
        self.body.append(f"{name} = tl.load({tensor}_ptr + {self.row} * {group(stride)}{plus(offset)}"
                         f"{self._guard(node.dims, rows=masked)})")
        return name

    def _load_param(self, node: Node) -> str:
        name = safe(node.attr("name"))
        self.loaded[name] = self.program.decl(node.attr("name"))
        dims, called = tensor_dims(node), self._called(name, node, "row")
        size = " * ".join(flat(dims))
        base = f"{name}_ptr + (head // {name}_rep)" + (f" * ({size})" if size else "")
        offset = self._flat(dims, at=node.attr("at", ()))
        self.before.append(f"{called} = tl.load({base}{plus(offset)}{self._guard(node.dims, False)})")
        return called

    def _weights(self, node: Node, at: str) -> str:
        """Matrices of a head are held for all tokens, or asked for at every token (`at`) where they do not fit."""
        if len(node.dims) < 2:
            return KernelWriter._load_param(self, node)
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
        launch = self.launch
        body, self.body = self.body, []
        self._replay(names)
        loop = ["for past in tl.range(chunk // (SEGMENT // C) * (SEGMENT // C), chunk, num_stages=1):", *indent(self.body)]
        self.body = [*body, "if SEGMENT > C:  # the chunks of the segment before this one", *indent(loop)]
        self.body += [f"{names[s]} = {names[s]}.to({s}_starts.dtype.element_ty)" for s in launch.starts]

    def _replay(self, names: dict[str, str]) -> None:
        """One chunk on, for the states of `starts`."""
        launch, outer = self.launch, self.tiles
        inner = Tiles(self._emit, self._leaf, (), list(postorder(launch.replay)), list(launch.replay), self.header, self.axes, launch.fine)
        inner.taken, inner.rows = outer.taken, outer.rows
        self.tiles, self.row, self.held = inner, "past_row", "rows"
        inner.names = {self._start(s): names[s] for s in launch.starts}
        inner.names |= {n: name for n, name in outer.names.items() if n not in self.varying}
        self.body.append(self.past)
        for node in self._ordered(list(launch.replay), set(inner.names), inner, tuple(launch.replay)):
            if not inner.inlined(node):
                inner.name(node)
        self._assign(list(zip(names.values(), launch.replay, (self.program.decl(s).dims for s in launch.starts), strict=True)))
        outer.names |= {n: name for n, name in inner.names.items() if n not in self.varying}
        outer.raw |= inner.raw - self.varying
        self.tiles, self.row, self.held = outer, "row", "held"

    def _assign(self, targets: list[tuple[str, Node, tuple[str, ...]]]) -> None:
        """Carried tiles get their next values, all at once; what is no part of a block stays 0, as it is loaded."""
        new = [(name, self.tiles.cleaned(value, self.tile(dims), dims)) for name, value, dims in targets]
        self.body += [line for name, value, _ in targets for line in self._formula(name + "'", value)]
        new = [(name, code) for name, code in new if code != name]
        if len(new) > 1:
            self.body += [f"{name}_next = {code}" for name, code in new]
        self.body += [f"{name} = {name + '_next' if len(new) > 1 else code}" for name, code in new]

    def _kept(self, tensor: str, dims: tuple[str, ...]) -> str:
        """What is kept of this segment, loaded."""
        return f"tl.load({tensor} + {self._segment_of(dims)}{plus(self._flat(dims))}{self._guard(dims, False)})"

    def _segment_of(self, dims: tuple[str, ...]) -> str:
        """Where the state of this chunk's segment is kept."""
        size = " * ".join(flat(dims)) or "1"
        return f"((first_segment + {self._segment()}).to(tl.int64) * H + head) * ({size})"

    def _segment(self) -> str:
        return "chunk // (SEGMENT // C)"

    def _begins(self) -> str:
        """Does the loop enter a segment here?"""
        if self.launch.reverse:
            return "(i == 0 or (chunk + 1) % (SEGMENT // C) == 0)"
        return "chunk % (SEGMENT // C) == 0"

    def _index(self, node: Node) -> str:
        return f"{self.tiles.index(node.dims[0])}.to(tl.float32)"

    def _ordered(self, roots: list[Node], held: set[Node], tiles: Tiles, kept: tuple[Node, ...]) -> list[Node]:
        def part(n: Node) -> float:
            """Of a register, for one number of a matrix; loads and operands have half the bits."""
            return 0.0 if len(n.dims) < 2 else 0.5 if n not in held and (not n.args or n in tiles.operands) else 1.0
        def within(n: Node) -> float:
            """The factors of four levels, and what they multiply."""
            return 6.0 * size(n.args[-1].dims) if n.op in ("span_contract", "span_crossing") else 0.0
        nominal = nominal_sizes(self.launch, self.axes.ranks)
        def size(dims: tuple[str, ...]) -> int:
            return numbers(tuple(map(self.axes.size_of, flat(dims))), nominal)
        def wide(n: Node) -> bool | None:
            """Has the product that a statement forms more columns than rows, where those are few (16 or 32 tokens)?"""
            inner = [x for a in n.args if a.op in ("rename", "expand") or tiles.grouped(a) if (x := wide(a)) is not None]
            if tiles.rows_of_tokens(n):
                inner.append(not is_rows(d := tiles.order(n)[1]) and nominal[d] > 32)
            return any(inner) if inner else None
        found = schedule(roots, held, lambda n: part(n) * size(n.dims), tiles.grouped, kept, within, wide)
        placed = {*found.statements, *held}
        for n, there in found.alive:
            formed = [n, *(x for x in postorder(n.args, placed) if x not in placed)]
            lefts = {left.dims for x in formed if (left := tiles.rows_of_tokens(x))}
            sized = [(m.dims, part(m)) for m in there] + [((*dims, WARPS), 0.5) for dims in sorted(lefts)]
            self.alive.append([(tuple(map(self.axes.size_of, flat(dims))), n) for dims, n in sized])
        self.vectors = max(self.vectors, found.vectors)
        return found.statements

    # ------------------------------------------------------------ addresses
    def _axis(self, dims: tuple[str, ...], d: str, code: str) -> str:
        axes = self.tile(dims)
        return code if axes == (d,) or d in self.axes.each else self.axes.along(code, d, axes)

    def tile(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """The axes of a tile of these dims: as `Tiles.order` has them, whatever the tensor's."""
        return self.tiles.of(dims)

    def _flat(self, dims: tuple[str, ...], axes: tuple[str, ...] | None = None, at: Entry = ()) -> str:
        """Offsets into a contiguous tensor of these dims; `axes`: of the tile they are for, where it has others; `at`: at
        which entries of what the tile lacks."""
        terms, whole, entry = [], flat(dims), dict(at)
        for i, d in enumerate(whole):
            step = " * ".join(whole[i + 1:])
            term = str(entry[d]) if d in entry else self._axis(axes or _apart_from(dims, at), d, self.tiles.index(d))
            if term != "0":
                terms.append(f"{term} * {step}" if step and term != "1" else step or term)
        return " + ".join(terms)

    def _row_stride(self, dims: tuple[str, ...]) -> str:
        return " * ".join(["H", *(d for d in flat(dims) if d != ROW)])

    def _row_offset(self, stride: str, dims: tuple[str, ...], rows: str = "rows", at: Entry = ()) -> str:
        """Offsets of a tile's rows and columns from the chunk's first row."""
        axes = _apart_from(dims, at)
        terms = [f"{self._axis(axes, ROW, rows)} * SIGN * {group(stride)}"] if ROW in dims else []
        return " + ".join(filter(None, [*terms, self._flat(tuple(d for d in dims if d != ROW), axes, at)]))

    def _inside(self, dims: tuple[str, ...]) -> list[str]:
        """What holds where a tile's entries are within their dims, those of rows aside."""
        return [self._axis(dims, d, self.tiles.inside(d)) for d in flat(dims) if d not in (ROW, COL, *self.axes.each)]

    def _guard(self, dims: tuple[str, ...], rows: bool) -> str:
        masks = self._inside(dims)
        if rows and ROW in dims:
            masks.append(self._axis(dims, ROW, "live"))
        return f", mask={' & '.join(masks)}, other=0.0" if masks else ""

    def _mask(self, dims: tuple[str, ...], rows: bool) -> str:
        return self._guard(dims, rows).replace(", other=0.0", "")

    # ------------------------------------------------------------ stores
    def _store_rows(self, s: Store) -> list[str]:
        dims = ((ROW,) if self.by_rows else ()) + s.dims
        stride = self._row_stride(dims)
        target = f"{s.name}_ptr + row * {group(stride)}{plus(self._row_offset(stride, dims, at=s.at))}"
        axes = _apart_from(dims, s.at)
        value, mask = self.tiles.whole(s.value, self.tile(axes)), self._mask(axes, rows=True)
        line = f"tl.store({target}, {value}{self._earlier(target, mask, s.dims)}{mask})"
        return [f"if KEEP:\n    {line}"] if self._only_kept(s) else [line]

    def _only_kept(self, s: Store) -> bool:
        """Is it stored for the backward, thus only where gradients are asked for?"""
        return s.result == "save" and not self.launch.reverse

    def _earlier(self, target: str, mask: str, dims: tuple[str, ...]) -> str:
        """What the blocks before this one have left there, if it is their sum."""
        if not self.turned or self.turned in dims:
            return ""
        if not mask:
            return f" + tl.where(block_{self.turned} > first_{self.turned}, tl.load({target}), 0.0)"
        return f" + tl.load({target}{mask} & more_{self.turned}, other=0.0)"

    def _store_ready(self, pending: list[Store], force: bool = False) -> list[Store]:
        """Write what can be written: a stored tile is alive no longer."""
        waiting = []
        for s in pending:
            if not force and source(s.value) not in self.tiles.names:
                waiting.append(s)
            elif s.kind == "rows":
                self.body += [*self._formula(s.name, s.value), *self._store_rows(s)]
            else:
                self.body.append(f"{s.name}_sum += {self.tiles.whole(s.value, self.tile(s.dims))}")
        return waiting

    def _store_state(self, name: str, pointer: str, where: str | None, dims: tuple[str, ...]) -> str:
        size = " * ".join(flat(dims)) or "1"
        at = self._segment_of(dims) if where is None else f"({where}) * ({size})"
        target, mask = f"{pointer} + {at}{plus(self._flat(dims))}", self._mask(dims, False)
        earlier = self._earlier(target, mask, dims) if pointer.endswith("_final") else ""
        return f"tl.store({target}, {name}{earlier}{mask})"

    # ------------------------------------------------------------ the whole
    def write(self) -> Kernel:
        launch = self.launch
        self.body += self._keep()  # what the segment receives, before anything changes it
        sums = [s for s in launch.stores if s.kind != "rows"]
        pending = list(launch.stores)
        first = [n for n in launch.nodes() if n.op == "state"] if launch.replay else []
        for node in first:  # formed again while nothing else is alive
            self.tiles.name(node)
        carried, held = self.carry_of.values(), {*self.carry_of, *first}
        for node in self._ordered(launch.roots(), held, self.tiles, tuple(c.next for c in carried)):
            if not self.tiles.inlined(node):
                self.tiles.name(node)
            pending = self._store_ready(pending)
        self._store_ready(pending, force=True)
        self._assign([(safe(c.name), c.next, c.dims) for c in carried])
        return self._assemble(sums)

    def _keep(self) -> list[str]:
        launch = self.launch
        kept = [self._store_state(safe(c.name), launch.kept(c.name), None, c.dims)
                for c in launch.carries if c.name in launch.keeps]
        return [f"if {'KEEP and ' if launch.stores else ''}{self._begins()}:", *indent(kept)] if kept else []

    def _assemble(self, sums: list[Store]) -> Kernel:
        launch = self.launch
        arguments = self._arguments(sums)
        constexprs = [*self.dims, "C", *(f"B{d}" for d in self.tiled), *(["TURNS"] if self.turned else []), "SIGN", "RAGGED",
                      *self._keeping(), *self._flags(),
                      "OPERAND", "PRECISION", "STAGES"]
        # a length is no specialisation key; strides of rows of numbers vary with it, those of features stay aligned
        fixed = [*(n for n in ("T", "count") if n in arguments), *(f"{name}_sb" for name, d in self.loaded.items() if d.role == "in" and not d.dims)]
        head = f"@triton.jit(do_not_specialize={fixed!r})\ndef {launch.name}(\n"
        head += wrapped(arguments) + wrapped([f"{c}: tl.constexpr" for c in constexprs]) + "):\n"
        text = head + "\n".join(indent(self._lines(sums))) + "\n"
        return Kernel(launch, text, arguments, constexprs, list(self.loaded), self.dims, self.cots, self.alive,
                      self.vectors, self.given, self.turned, self.axes.ranks & {*self.dims},
                      self.axes.narrow(self.program.dims) & {*self.dims})

    def _lines(self, sums: list[Store]) -> list[str]:
        d = self.turned
        if not d:
            return [*self._where(), *map(self._place, self.tiled), *self.before, *self._initial(sums), *self._loop(), *self._final(sums)]
        own, common = ([s for s in sums if (d in s.dims) is has] for has in (True, False))
        turn = [f"more_{d} = block_{d} + tl.arange(0, 1) > first_{d}", "tl.debug_barrier()  # what the block before has left is there", self._place(d), *self.before,
                *self._initial(own), *self._loop(), *self._final(own)]
        return [*self._where(), f"first_{d} = group_{d} * TURNS", *(self._place(e) for e in self.tiled if e != d), *self._sums(common),
                f"for block_{d} in range(first_{d}, tl.minimum(first_{d} + TURNS, tl.cdiv({d}, B{d}))):", *indent(turn),
                *self._stored(common)]

    def _flags(self) -> list[str]:
        return ["HAS_INITIAL", "STORE_FINAL"] if self.ends else []

    def _keeping(self) -> list[str]:
        return [*(["SEGMENT"] if self._by_segment else []), *(["KEEP"] if self.launch.stores and (self.launch.keeps or any(map(self._only_kept, self.launch.stores))) else [])]

    @property
    def _by_segment(self) -> bool:
        """Is there anything of every segment that it stores or loads?"""
        return bool(self.launch.starts or self.launch.keeps)

    def _arguments(self, sums: list[Store]) -> list[str]:
        launch, out = self.launch, []
        self.loaded = {safe(d.name): d for d in self.program.decls if safe(d.name) in self.loaded}
        self.cots = [d.name for d in self.program.decls if d.name in self.cots]
        for name, d in self.loaded.items():
            out += [f"{name}_ptr", f"{name}_rep"]
            if d.role == "in":
                out += [f"{name}_sb", f"{name}_st", f"{name}_sh"]
        out += [f"{name}_ptr" for name in (*(f"d{n}" for n in self.cots), *self.given)]
        out += [f"{s.name}_ptr" for s in launch.stored]
        for c in self.ends:
            out += [f"{c.name}_initial", f"{c.name}_final"]
        out += self._kept_arguments()
        out += [f"{s.name}_part" for s in launch.stored if self.launch.partial_over(s.dims)]
        out += [f"{c.name}_part" for c in self.ends if self.launch.partial_over(c.dims)]
        return [*out, "starts", "lengths", *self._sequence_arguments(), *self.consts, "T", "H"]

    def _kept_arguments(self) -> list[str]:
        return [*(f"{name}_starts" for name in self.launch.starts), *map(self.launch.kept, self.launch.keeps)]

    def _sequence_arguments(self) -> list[str]:
        return ["segment_at"] * self._by_segment

    def _where(self) -> list[str]:
        """Which sequence, head and block this program has, and where its tokens lie."""
        lines = ["pid = tl.program_id(0)"]
        for d in self.launch.split:
            if d in self.dims:
                lines += [f"{self._own(d)} = pid % {self._count(d)}", f"pid = pid // {self._count(d)}"]
        lines += [*self._sequence(), "if SIGN < 0:  # reversed: the first row of a sequence is its last token",
                  "    first, token = first + length - 1, token + length - 1"]
        for name, decl in self.loaded.items():
            if decl.role == "in":
                lines.append(f"{name}_ptr += batch * {name}_sb + token * {name}_st + (head // {name}_rep) * {name}_sh")
        own = {f"d{n}": self.program.decl(n).dims for n in self.cots} | self.given
        lines += [f"{name}_ptr += (first * H + head){times(dims)}" for name, dims in own.items()]
        for s in self.launch.stored:
            if s.kind == "rows":
                line = f"{s.name}_ptr += (first * H + head){times(s.dims)}"
                lines.append(f"if KEEP:\n    {line}" if self._only_kept(s) else line)
            if parts := self.launch.partial_over(s.dims):
                lines.append(f"{s.name}_ptr += {self._part(parts)} * {s.name}_part  # a partial sum over {', '.join(parts)}")
        for c in self.ends:
            if parts := self.launch.partial_over(c.dims):
                lines.append(f"{c.name}_final += {self._part(parts)} * {c.name}_part")
        return lines + (["rows = tl.arange(0, C)", *self.axes.places(self.joint)] if self.by_rows else [])

    @cached_property
    def joint(self) -> list[str]:
        """The axes of several dims: whose rows are more than tokens, and of dims that stand in one; one of each kind."""
        dims = [n.dims for n in self.launch.nodes()] + [(ROW, *s.tile) for s in self.launch.stores]
        dims += [c.dims for c in self.launch.carries]
        return sorted({self.axes.suffix(a): a for d in dims for a in self.tile(d) if more_rows(a)}.values())

    def _place(self, d: str) -> str:
        if d in self.axes.each:
            return f"in_{d} = block_{d}"
        begin = f"block_{d} * B{d} + " if d in self.launch.split else ""
        return f"in_{d} = {begin}tl.arange(0, B{d})\nhas_{d} = inside(in_{d}, {d}, B{d})"

    def _own(self, d: str) -> str:
        return f"{'group' if d == self.turned else 'block'}_{d}"

    def _count(self, d: str) -> str:
        """Programs along a dim."""
        return f"tl.cdiv({d}, B{d}{' * TURNS' if d == self.turned else ''})"

    def _sequence(self) -> list[str]:
        return ["seq, head = (pid // H).to(tl.int64), pid % H",
                "if RAGGED:",
                "    first, length = tl.load(starts + seq).to(tl.int64), tl.load(lengths + seq).to(tl.int32)",
                "    batch, token = 0, first",
                "else:",
                "    first, length, batch, token = seq * T, T, seq, 0"]

    def _part(self, parts: list[str]) -> str:
        """Which of the partial sums over these dims is the program's own."""
        code = self._own(parts[0])
        for d in parts[1:]:
            code = f"({code} * {self._count(d)} + {self._own(d)})"
        return f"{code}.to(tl.int64)"

    def _initial(self, sums: list[Store]) -> list[str]:
        lines = []
        for c in self.ends:
            size, shape = " * ".join(flat(c.dims)) or "1", self.tiles.shape(self.tile(c.dims))
            zero = f"tl.zeros({shape}, tl.float32)" if c.dims else "0.0"
            load = self._for_one(f"tl.load({c.name}_initial + (seq * H + head) * ({size}){plus(self._flat(c.dims))}"
                                 f"{self._guard(c.dims, False)}).to(tl.float32)", c)
            lines.append(f"if HAS_INITIAL:\n    {safe(c.name)} = {load}\nelse:\n    {safe(c.name)} = {zero}")
        return [*lines, *self._sums(sums)]

    def _sums(self, sums: list[Store]) -> list[str]:
        return [f"{s.name}_sum = " + (f"tl.zeros({self.tiles.shape(self.tile(s.dims))}, tl.float32)" if s.dims else "0.0") for s in sums]

    def _loop(self) -> list[str]:
        if self.launch.loop == "tokens":
            return ["for row_at in range(0, length):", *indent(["row = tl.cast(row_at, tl.int64) * SIGN", *self.body])]
        lines = ["chunks = tl.cdiv(length, C)"]
        if self._by_segment:
            lines += self._first_segment()
        # what a compiler hoists out of the loop, above all addresses of shared memory, would fill the registers
        loop = ["for i in tl.range(0, chunks, num_stages=STAGES, disable_licm=True):"]
        inner = ["chunk = chunks - 1 - i"] if self.launch.reverse else ["chunk = i"]
        return lines + loop + indent([*inner, *self._in_chunk()])

    def _in_chunk(self) -> list[str]:
        """The body, behind the chunk's place in its sequence."""
        return ["row = (chunk * C).to(tl.int64) * SIGN",
                "live = rows < length - chunk * C",
                "held = tl.minimum(rows, length - 1 - chunk * C)  # rows behind the end repeat the last token",
                *self.axes.in_chunk(self.joint), *self.body]

    def _first_segment(self) -> list[str]:
        ragged = "if RAGGED and KEEP:" if "KEEP" in self._keeping() else "if RAGGED:"
        return [ragged, "    first_segment = tl.load(segment_at + seq)", "else:",
                "    first_segment = seq * tl.cdiv(length, SEGMENT)"]

    def _final(self, sums: list[Store]) -> list[str]:
        lines = [f"if STORE_FINAL:\n    {self._store_state(safe(c.name), f'{c.name}_final', 'seq * H + head', c.dims)}"
                 for c in self.ends]
        return [*lines, *self._stored(sums)]

    def _stored(self, sums: list[Store]) -> list[str]:
        return [self._store_state(f"{s.name}_sum", f"{s.name}_ptr", f"{self.whole} * H + head", s.dims) for s in sums]


def _apart_from(dims: tuple[str, ...], at: Entry) -> tuple[str, ...]:
    """The dims of which no single entry is taken."""
    return tuple(d for d in dims if d not in dict(at))
