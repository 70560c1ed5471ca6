"""A launch as the source of one Triton kernel.

The kernel walks over the chunks (or tokens) of one sequence and head; its arguments are the pointers
and strides of what it loads and stores, and constexpr sizes and blocks.  Text only: nothing here
knows where the launch came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from mixc.codegen.again import CHUNK, END, chunk_apart
from mixc.codegen.axes import Axes, more_rows
from mixc.codegen.kernel_stores import Stores
from mixc.codegen.lines import indent, masks_below, names_read, times, without_unread, wrapped
from mixc.codegen.names import RESERVED, of_dim, of_value
from mixc.codegen.names import safe as safe
from mixc.codegen.tiles import Tiles
from mixc.codegen.written import WARPS as WARPS
from mixc.codegen.written import Kernel as Kernel
from mixc.ir.launch import Carry, Launch, Store, row_dims
from mixc.ir.node import JOINT, ROW, Node, flat
from mixc.ir.program import Program


class KernelWriter(Stores):
    """Builds the text of a launch; `write()` returns the Kernel.

    Args:
        turned: programs take blocks of this dim in turn; what lacks it is added up where it is stored.
        forward: the program of which the launch is of the backward."""

    def __init__(self, launch: Launch, turned: str = "", forward: Program | None = None):
        super().__init__()
        self.launch, self.program, self.turned, self.forward = launch, launch.program, turned, forward
        nodes = launch.nodes()
        self.varying = launch.varying()
        tiled = {d for n in nodes for d in n.dims} | {d for s in launch.stores for d in s.tile}
        tiled |= {d for c in launch.carries for d in c.dims}
        sized = {d for s in launch.stores for d in s.dims} | {d for n in nodes for d in n.attr("of", ()) if n.attr("at")}
        sized |= {n.attr("dim") for n in nodes if n.op == "size"}
        tiled, dims = ({self.program.inner.get(d, d) for d in flat(x)} for x in (tiled, tiled | sized))
        self.dims = [d.name for d in self.program.dims if d.name in dims]
        self.tiled = [d for d in self.dims if d in tiled]  # others are those of tensors alone
        self.consts = [c.name for c in self.program.consts if any(n is c.leaf() for n in nodes)]
        taken = {*RESERVED, *(d.name for d in self.program.decls), *self.dims, *(made for d in self.dims for made in of_dim(d)),
                 *(c.name for c in launch.carries), *(s.name for s in launch.stores),
                 *(made for d in self.program.decls for made in of_value(d.name)), *(n.attr("name") for n in nodes if n.op == "saved")}
        self.header = tuple(d.name for d in self.program.dims)
        self.by_rows = launch.loop not in ("tokens", "cells")
        self.axes = Axes(row_dims(nodes, self.program) if self.by_rows else frozenset(), self.program.inner,
                         frozenset(launch.each), tuple(flat([d]) for d in self.header if JOINT in d))
        fine = self._fine(launch.body(), [(c.leaf, c.next) for c in launch.carries])
        self.tiles = Tiles(self._emit, self._leaf, taken, launch.body(), launch.roots(), self.header, self.axes, fine,
                           self._names_of(launch.body(), launch.stores, [(c.name, c.next) for c in launch.carries]))
        self.ends = launch.carries  # what has an initial and a final value where its loop begins and ends
        self.carry_of = {c.leaf: c for c in launch.carries}

    def write(self) -> Kernel:
        launch = self.launch
        self.body += self._keep()  # what the segment receives, before anything changes it
        sums = [s for s in launch.stores if s.kind != "rows"]
        pending = list(launch.stores)
        for node in self._first():  # formed again while nothing else is alive
            self.tiles.name(node)
        carried = self.carry_of.values()
        for node in self._ordered(*self._whole()):
            if not self.tiles.inlined(node):
                self.tiles.name(node)
            pending = self._store_ready(pending)
        self._store_ready(pending, force=True)
        self._assign([(safe(c.name), c.next, c.dims) for c in carried])
        return self._assemble(sums)

    def _first(self) -> list[Node]:
        return [n for n in self.launch.nodes() if n.op == "state"] if self.launch.replay else []

    def _whole(self) -> tuple[list[Node], set[Node], Tiles, tuple[Node, ...]]:
        """What `_ordered` takes, of the loop's body."""
        return self.launch.roots(), {*self.carry_of, *self._first()}, self.tiles, tuple(c.next for c in self.carry_of.values())

    def estimate(self, kernel: Kernel) -> None:
        """What estimates of registers read, in a kernel that was written without."""
        if self._first():
            replay = self.launch.replay
            self._estimate(list(replay), set(map(self._start, self.launch.starts)), self._again(), replay)
        self._estimate(*self._whole())
        kernel.alive, kernel.vectors = self.alive, self.vectors

    def _assemble(self, sums: list[Store]) -> Kernel:
        launch = self.launch
        arguments = self._arguments(sums)
        constexprs = [*self.dims, "C", *(f"B{d}" for d in self.tiled), *(["TURNS"] if self.turned else []), "SIGN", "RAGGED",
                      *self._keeping(), *self._flags(),
                      "OPERAND", "PRECISION", "STAGES"]
        lines, parts = "\n".join(indent(self._lines(sums))), list[str]()
        if self.again:
            part, lines = self.again.in_place(launch.name, lines, arguments, constexprs)
            parts.append(part)
        part, lines = chunk_apart(launch.name, lines, arguments, constexprs)
        parts += [part] if part else []
        body = without_unread(lines.split("\n"))
        read = names_read("\n".join(body))
        constexprs = [c for c in constexprs if c in read]
        # a length is no specialisation key; strides of rows of numbers vary with it, those of features stay aligned
        fixed = [*(n for n in ("T", "count", *sorted(self.backs)) if n in arguments), *(f"{name}_sb" for name, d in self.loaded.items() if d.role == "in" and not d.dims)]
        head = f"@triton.jit(do_not_specialize={fixed!r})\ndef {launch.name}(\n"
        head += wrapped(arguments) + wrapped([f"{c}: tl.constexpr" for c in constexprs]) + "):\n"
        text = "\n\n".join([*parts, head + "\n".join(map(masks_below, body)) + "\n"])
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
        return [*out, *sorted(self.backs), "starts", "lengths", *self._sequence_arguments(), *self.consts, "T", "H"]

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
        lines += self._sequence()
        for name, decl in self.loaded.items():
            if decl.role == "in":
                lines.append(f"{name}_ptr += batch * {name}_sb + token * {name}_st + (head // {name}_rep) * {name}_sh")
        own = {f"d{n}": self.program.decl(n).dims for n in self.cots} | self.given
        lines += [f"{name}_ptr += (first * H + head){times(dims)}" for name, dims in own.items()]
        for s in self.launch.stored:
            parts = self.launch.partial_over(s.dims)
            terms = [f"(first * H + head){times(s.dims)}"] * (s.kind == "rows") + [f"{self._part(p)} * {s.name}_part" for p in [parts] if p]
            if terms:
                line = f"{s.name}_ptr += {' + '.join(terms)}" + (f"  # a partial sum over {', '.join(parts)}" if parts else "")
                lines.append(f"if KEEP:\n    {line}" if s.kind == "rows" and self._only_kept(s) else line)
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

    _place_of = "first, length, batch, token = sequence_of(seq, starts, lengths, T, SIGN, RAGGED)"
    _first_segment = "first_segment = first_segment_of(seq, length, segment_at, SEGMENT)"

    def _sequence(self) -> list[str]:
        return ["seq, head = (pid // H).to(tl.int64), pid % H", self._place_of]

    def _part(self, parts: list[str]) -> str:
        """Which of the partial sums over these dims is the program's own."""
        code = self._own(parts[0])
        for d in parts[1:]:
            code = f"({code} * {self._count(d)} + {self._own(d)})"
        return f"{code}.to(tl.int64)"

    def _said(self, carried: Sequence[Carry]) -> list[str]:
        """Which end of the sequence what is called initial and final belongs to."""
        return [f"# the walk is from the end: {c.name}_initial is the cotangent of the final state, {c.name}_final that "
                "of the initial one" for c in carried[:1] if self.launch.reverse]

    def _initial(self, sums: list[Store]) -> list[str]:
        whole, given, zero = [], [], []
        for c in self.ends:
            name, at = safe(c.name), (f"{c.name}_initial", "seq * H + head")
            if (tile := self._tile_of(*at, c.dims)) is not None:
                whole.append(f"{name} = {self._for_one(f'initial_state({tile}, HAS_INITIAL)', c)}")
                continue
            given.append(f"{name} = {self._for_one(f'{self._state(*at, c.dims)}.to(tl.float32)', c)}")
            zero.append(f"{name} = " + (f"tl.zeros({self.tiles.shape(self.tile(c.dims))}, tl.float32)" if c.dims else "0.0"))
        chosen = ["if HAS_INITIAL:", *indent(given), "else:", *indent(zero)] if given else []
        return [*self._said(self.ends), *whole, *chosen, *self._sums(sums)]

    def _loop(self) -> list[str]:
        if self.launch.loop == "tokens":
            return ["for row_at in range(0, length):", *indent(["row = tl.cast(row_at, tl.int64) * SIGN", *self.body])]
        lines = ["chunks = tl.cdiv(length, C)"]
        if self._by_segment:
            lines.append(self._first_segment)
        # what a compiler hoists out of the loop, above all addresses of shared memory, would fill the registers
        loop = ["for i in tl.range(0, chunks, num_stages=STAGES, disable_licm=True):"]
        inner = ["chunk = chunks - 1 - i"] if self.launch.reverse else ["chunk = i"]
        return lines + loop + indent([*inner, *self._in_chunk()])

    def _in_chunk(self) -> list[str]:
        """The body, behind the chunk's place in its sequence."""
        return [CHUNK, "row = (chunk * C).to(tl.int64) * SIGN",
                "live = rows < length - chunk * C",
                "held = tl.minimum(rows, length - 1 - chunk * C)  # rows behind the end repeat the last token",
                *self.axes.in_chunk(self.joint), *self.body, END]

    def _final(self, sums: list[Store]) -> list[str]:
        lines = [self._store_state(safe(c.name), f"{c.name}_final", "seq * H + head", c.dims) for c in self.ends]
        return [*(["if STORE_FINAL:", *indent(lines)] if lines else []), *self._stored(sums)]
