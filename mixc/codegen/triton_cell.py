"""A cell's launch as one Triton kernel: all steps in one loop, the rows of its tiles being sequences.

The state and the weights of a head stay on chip; a program has C sequences, so that a product with weights has C rows.
"""

from __future__ import annotations

from mixc.codegen.kernel import Kernel, KernelWriter, safe
from mixc.codegen.lines import at_once, group, indent, plus, times
from mixc.codegen.refuse import refuse
from mixc.ir.launch import Launch, Store
from mixc.ir.node import ROW, Node, unrenamed
from mixc.ir.program import Program


class CellWriter(KernelWriter):
    """As `KernelWriter`: what differs is that a row is a sequence, and the loop goes over tokens."""

    def __init__(self, launch: Launch, forward: Program | None = None):
        super().__init__(launch, forward=forward)
        self.tiles.through, self.whole = self._through, "group"

    def _emit(self, node: Node, line: str) -> None:
        """What no token changes is formed in front of the loop, where no row is known."""
        super()._emit(node, line if node in self.varying else line.replace(", row_at, ", ", 0, "))

    # ------------------------------------------------------------ addresses: pointers are one a row
    def _at(self, pointer: str, stride: str, dims: tuple[str, ...], row: str = "row") -> str:
        """Addresses of a tile: `pointer` and then `row` rows of `stride` further, in every sequence."""
        wide = (ROW, *dims)
        return f"{self._axis(wide, ROW, f'({pointer} + {row} * {group(stride)})')}{plus(self._flat(dims, wide))}"

    def _masked(self, dims: tuple[str, ...], rows: str) -> str:
        wide = (ROW, *dims)
        return " & ".join([self._axis(wide, ROW, rows), *self._inside(wide)])

    def _load_rows(self, node: Node) -> str:
        tensor, dims = safe(node.attr("name")), tuple(d for d in node.dims if d != ROW)
        self.loaded[tensor] = self.program.decl(node.attr("name"))
        self.body.append(f"{tensor} = tl.load({self._at(f'{tensor}_ptr', f'{tensor}_st', dims)}, "
                         f"mask={self._masked(dims, 'live')}, other=0.0)")
        return tensor

    def _load_cotangent(self, node: Node) -> str:
        name, dims = "d" + node.attr("name"), tuple(d for d in node.dims if d != ROW)
        self.cots.append(node.attr("name"))
        self.body.append(f"{name} = tl.load({self._at(f'{name}_ptr', self._row_stride(dims), dims)}, "
                         f"mask={self._masked(dims, 'live')}, other=0.0)")
        return name

    def _load_param(self, node: Node) -> str:
        return self._weights(node, "row_at" if self.launch.reverse else "0")

    def _through(self, rows: str, matrix: Node, axes: tuple[str, str], plus: str) -> str:
        """Rows times a matrix of the head, [summed, left]; "" where it is no param."""
        matrix, outer = unrenamed(matrix)
        if matrix.op != "param":
            return ""
        self.tiles.name(matrix)
        (M, N), name = matrix.dims, safe(matrix.attr("name"))
        flipped = outer[M] == axes[1]
        left, summed = (M, N) if flipped else (N, M)
        steps = f"{N}, 1" if flipped else f"1, {N}"
        first = self.tiles.rank[left] < self.tiles.rank[summed]  # of a tile's axes, which are as in the header
        return (f"through({rows}, {name}, {self.tiles.index(left)}, {self.tiles.inside(left)}, {steps}, row_at, {summed}, "
                f"B{summed}, {first}, HELD, {plus})")

    def _load_start(self, node: Node) -> str:
        """The state before the token: as the forward left it after the token before, or the initial one."""
        name, dims = node.attr("name"), tuple(d for d in node.dims if d != ROW)
        earlier = self._at(f"{name}_kept", self._row_stride(dims), dims, "(row - SIGN)")
        first = f"tl.load({self._ends_at(f'{name}_first', dims)}, mask={self._masked(dims, 'starting')}, other=0.0)"
        self.body += [f"{safe(name)} = tl.load({earlier}, mask={self._masked(dims, 'later')}, other=0.0).to(tl.float32)",
                      f"if STARTED:\n    {safe(name)} = tl.where(row_at > 0, {safe(name)}, {first})"]
        return safe(name)

    def _ends_at(self, pointer: str, dims: tuple[str, ...]) -> str:
        """Addresses of a state where a sequence begins or ends."""
        wide = (ROW, *dims)
        return f"{self._axis(wide, ROW, f'({pointer} + (seq * H + head){times(dims)})')}{plus(self._flat(dims, wide))}"

    # ------------------------------------------------------------ stores
    def _store_rows(self, s: Store) -> list[str]:
        value = self.tiles.whole(s.value, self.tile((ROW, *s.dims)))
        line = (f"tl.store({self._at(f'{s.name}_ptr', self._row_stride(s.dims), s.dims)}, {value}, "
                f"mask={self._masked(s.dims, 'live')})")
        return [f"if KEEP:\n    {line}"] if self._only_kept(s) else [line]

    def _assign(self, targets: list[tuple[str, Node, tuple[str, ...]]]) -> None:
        """A sequence that has ended keeps its state; what is no part of a block stays 0."""
        for name, value, dims in targets:
            self._explain(f"{name}'", value, f"{name}_next")
            code = self.tiles.whole(value, self.tile((ROW, *dims)))
            self.body.append(f"{name}_next = tl.where({self._masked(dims, 'live')}, {code}, {name})")
        self.body.append(at_once([name for name, _, _ in targets], "{0}_next"))

    # ------------------------------------------------------------ the whole
    def write(self) -> Kernel:
        for c in self.launch.carries:
            if len(c.dims) > 1:
                raise refuse(f"a token loop whose state [{', '.join(c.dims)}] is a matrix", c.next)
        return super().write()

    def _keep(self) -> list[str]:
        return []  # what is kept of the states are rows

    def _keeping(self) -> list[str]:
        keep = any(map(self._only_kept, self.launch.stores))
        started = self.launch.reverse and bool(self.launch.starts)
        return ["KEEP"] * keep + ["HELD"] * self.weights + ["STARTED"] * started

    def _kept_arguments(self) -> list[str]:
        """Where the states are kept, and the initial ones."""
        return [x for s in self.launch.starts for x in (f"{s}_kept", f"{s}_first")] if self.launch.reverse else []

    def _sequence_arguments(self) -> list[str]:
        return ["count"]

    def _sequence(self) -> list[str]:
        return ["group, head = pid // H, pid % H",
                "rows = tl.arange(0, C)  # the sequences of this program",
                "lane = group * C + rows",
                "there = lane < count",
                "seq, first, length, batch, token = sequences_of_lanes(lane, count, starts, lengths, T, SIGN, RAGGED)",
                "longest = tl.max(length, 0)"]

    def _where(self) -> list[str]:
        lines = super()._where()
        if self.launch.reverse:
            lines += [f"{s}_kept += (first * H + head){times(self.program.decl(s).dims)}" for s in self.launch.starts]
        return lines

    def _initial(self, sums: list[Store]) -> list[str]:
        given, zero = [], []
        for c in self.launch.carries:
            given.append(f"{safe(c.name)} = tl.load({self._ends_at(f'{c.name}_initial', c.dims)}, "
                         f"mask={self._masked(c.dims, 'there')}, other=0.0).to(tl.float32)")
            zero.append(f"{safe(c.name)} = tl.zeros({self.tiles.shape(self.tile((ROW, *c.dims)))}, tl.float32)")
        return [*self._said(self.launch.carries), "if HAS_INITIAL:", *indent(given), "else:", *indent(zero), *self._sums(sums)]

    def _loop(self) -> list[str]:
        at = "longest - 1 - i" if self.launch.reverse else "i"
        inner = [f"row_at = {at}", "row = tl.cast(row_at, tl.int64) * SIGN", "live = row_at < length"]
        if self.launch.reverse and self.launch.starts:
            inner += ["later, starting = live & (rows + row_at > rows), live & (rows + row_at == rows)"]
        # what is asked for at every token would have its addresses made before the loop, and fill the registers
        moved = ", disable_licm=not HELD" if self.weights else ""
        return [f"for i in tl.range(0, longest, num_stages=STAGES{moved}):",
                *indent(inner + self.body)]

    def _final(self, sums: list[Store]) -> list[str]:
        lines = [f"tl.store({self._ends_at(f'{c.name}_final', c.dims)}, {safe(c.name)}, mask={self._masked(c.dims, 'there')})"
                 for c in self.launch.carries]
        return ["if STORE_FINAL:", *indent(lines), *self._stored(sums)]


def product_text(count: int) -> str:
    """The kernel and the function that form `count` products with one right side: [H, count, M, N]."""
    def each(text: str, sep: str = "\n") -> str:
        return sep.join(text.replace("#", str(i)) for i in range(count))
    return f'''

@triton.jit(do_not_specialize=["T", "count"])
def row_products{count}({each("a#_ptr", ", ")}, b_ptr, first_ptr, out_ptr, starts, lengths, count, T, H,
                  M: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, C: tl.constexpr, SIGN: tl.constexpr,
                  RAGGED: tl.constexpr, BEFORE: tl.constexpr, STARTED: tl.constexpr, OPERAND: tl.constexpr,
                  PRECISION: tl.constexpr):
    """out [parts, {count}, H, M, N]: sums over the tokens of every parts-th sequence of a row [M] times b's row [N]; BEFORE:
    times b's row of the token before, and (STARTED) `first` at the first token."""
    pid = tl.program_id(0)
    in_N, pid = pid % tl.cdiv(N, BN) * BN + tl.arange(0, BN), pid // tl.cdiv(N, BN)
    in_M, pid = pid % tl.cdiv(M, BM) * BM + tl.arange(0, BM), pid // tl.cdiv(M, BM)
    part, head = (pid // H).to(tl.int64), pid % H
    parts = tl.num_programs(0) // (H * tl.cdiv(M, BM) * tl.cdiv(N, BN))
    rows = tl.arange(0, C)
{each("    total# = tl.zeros([BM, BN], tl.float32)")}
    for seq in range(part, count, parts):
        if RAGGED:
            first, length = tl.load(starts + seq).to(tl.int64), tl.load(lengths + seq).to(tl.int32)
        else:
            first, length = tl.cast(seq, tl.int64) * T, T
        if SIGN < 0:
            first = first + length - 1
        for chunk in range(0, tl.cdiv(length, C)):
            at = chunk * C + rows
            row = ((first + at.to(tl.int64) * SIGN) * H + head)[:, None]
            live = (at < length)[:, None]
            if BEFORE:
                b = tl.load(b_ptr + (row - SIGN * H) * N + in_N[None, :],
                            mask=live & (at > 0)[:, None] & (in_N < N)[None, :], other=0.0)
                if STARTED:
                    start = tl.load(first_ptr + (seq * H + head) * N + in_N[None, :] + at[:, None] * 0,
                                    mask=live & (at == 0)[:, None] & (in_N < N)[None, :], other=0.0)
                    b = tl.where((at == 0)[:, None], start.to(b.dtype), b)
            else:
                b = tl.load(b_ptr + row * N + in_N[None, :], mask=live & (in_N < N)[None, :], other=0.0)
            offset, inner = row * M + in_M[None, :], live & (in_M < M)[None, :]
{each("            total# = dot(tl.trans(tl.load(a#_ptr + offset, mask=inner, other=0.0)), b, OPERAND, PRECISION, total#)")}
    out_ptr += (part * ({count} * H) + head) * (M * N)
    inner = (in_M < M)[:, None] & (in_N < N)[None, :]
{each("    tl.store(out_ptr + # * H * M * N + in_M[:, None] * N + in_N[None, :], total#, mask=inner)")}


def summed_rows{count}(a, b, first, seqs, before, dtype):
    """[{count}, H, M, N]: for each of a the sum over all tokens of its rows [B, T, H, M] times those of b [B, T, H, N].

    Sequences are divided among parts as long as that costs few bytes."""
    B, T, H, M = a[0].shape
    N = b.shape[-1]
    BM, BN = block(M, 64), block(N, 64)
    cells = H * triton.cdiv(M, BM) * triton.cdiv(N, BN)
    parts = max(1, min(seqs.count, triton.cdiv(264, cells), B * T * (M + N) // (128 * M * N)))
    out = torch.empty(parts, {count}, H, M, N, dtype=dtype if parts == 1 else torch.float32, device=b.device)
    row_products{count}[(parts * cells,)](
        *a, b, first, out, seqs.starts, seqs.lengths, seqs.count, T, H, M=M, N=N, BM=BM, BN=BN,
        C=128 // b.element_size(), SIGN=seqs.sign, RAGGED=seqs.ragged, BEFORE=before, STARTED=first is not None,
        OPERAND=operand(b.dtype), PRECISION=precision(b.dtype), num_warps=8, num_stages=2)
    return merged(out, dtype)
'''
