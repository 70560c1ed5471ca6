"""The kernels of a spec: the launches that each direction may be cut into, the sizes they run with, and their calls.

The calls are text of the emitted file: a grid, the kernel's arguments by name, and its sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import cached_property

from mixc.codegen.config import Config, Tile, padded
from mixc.codegen.kernel import Kernel, KernelWriter, safe
from mixc.codegen.lines import packed
from mixc.codegen.refuse import refuse
from mixc.codegen.segment_kernel import SegmentWriter
from mixc.codegen.value_names import handed_by_name
from mixc.errors import SpecError
from mixc.ir.launch import Launch
from mixc.ir.node import JOINT
from mixc.ir.program import Decl, Program
from mixc.passes.around import Around
from mixc.passes.beside import of_one
from mixc.passes.context import Context
from mixc.passes.entries import entries_apart
from mixc.passes.partition import fused_backward, fused_forward, of_a_chunk, plans, token_loop
from mixc.passes.signs import signs_behind
from mixc.passes.taps import Taps, taps_apart

VALUES = 2 ** 20  # the most that a tile of Triton's may have
LEAST = 16  # tokens of a chunk, where a product has them for a side


class Launches:
    """Of a spec, from its chunk program and that program's backward."""

    by_rule = False  # has it `sizes`, by a rule, and none that are tuned?
    backward: Program | None = None  # None: each direction is one launch, and not to be cut

    each: tuple[str, ...] = ()
    around: Around | None = None  # the step of which this is what stands between products over all tokens
    typed_by_call = False  # have the products' operands the dtype that `seqs` tells?
    config: Config  # what the text is written for, and what its sizes are called
    prefix: str
    seen: Context
    fwd: list[tuple[str, Kernel]]
    bwd: list[tuple[str, Kernel]]

    def __init__(self, forward: Program, backward: Program, step: Program | None = None, spec: Program | None = None,
                 each: tuple[str, ...] = ()):
        """
        Args:
            step: what happens to one token, for a kernel that decodes (None: the chunk's kernel does).
            spec: the step under its user's names, of as many dims and values in the same order (None: these are they).
            each: dims of which a program has one entry.
        """
        self.each = each
        self.p, self.backward, self.spec = forward, backward, spec or forward
        self.token = _token_kernel(step) if step is not None and step.decls == forward.decls else None
        bwd = fused_backward(forward, backward)
        self.starts = bwd.starts
        self.launches = {"fwd": fused_forward(forward, self.starts), "bwd": bwd}
        self.name = forward.name
        self.states, self.outs = forward.states, forward.outs
        self._written: dict[tuple[str, str, bool], Kernel] = {}

    def _of_loops(self, step: Program, spec: Program, forward: Launch, backward: Launch,
                  writer: Callable[[Launch, Program | None], KernelWriter]) -> None:
        """Instead, of a step whose directions are one launch each, from token to token."""
        self.p, self.spec, self.token = step, spec, None
        self.launches = {"fwd": forward, "bwd": backward}
        self._written = {(n, "", False): writer(launch, forward.program if launch.reverse else None).write()
                         for n, launch in self.launches.items()}
        self.starts, self.name = backward.starts, step.name
        self.states, self.outs = step.states, step.outs

    @property
    def inner(self) -> Program:
        """What `spec` is under the names of the kernels."""
        return self.around.step if self.around else self.p

    @cached_property
    def own(self) -> dict[str, str]:
        """What kernels call the dims of the spec."""
        inner = (d.name for d in self.inner.dims if JOINT not in d.name)
        return dict(zip((d.name for d in self.spec.dims), inner, strict=False))

    @cached_property
    def plans(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """The launches that the forward and the backward may be cut into, by names."""
        if self.backward is None:
            return [(("fwd",), ("bwd",))]
        def named(cut: tuple[Launch, ...]) -> tuple[str, ...]:
            names = tuple(launch.name.removeprefix(self.name + "_") for launch in cut)
            self.launches |= {n: launch for n, launch in zip(names, cut, strict=True) if n not in self.launches}
            return names
        def called(fwd: tuple[Launch, ...], bwd: tuple[Launch, ...]) -> tuple[tuple[Launch, ...], tuple[Launch, ...]]:
            found = handed_by_name((*fwd, *bwd), self.p)
            return found[:len(fwd)], found[len(fwd):]
        return [(named(fwd), named(bwd)) for fwd, bwd in itertools.starmap(called, plans(self.p, self.backward, self.starts, self.each))
                if all({*self.each} <= {*launch.split} for launch in (*fwd, *bwd))]

    def sizes(self, sizes: Mapping[str, int], operand: int) -> Config:
        """Those of `by_rule`.

        Args:
            sizes: of every dim. operand: bytes of an input's value."""
        raise NotImplementedError

    @property
    def kernels(self) -> dict[str, Kernel]:
        """Those of the fused schedule."""
        return {n: self.kernel(n) for n in ("fwd", "bwd")}

    def kernel(self, launch: str, turned: str = "", single: bool = False) -> Kernel:
        """Of the launch so named; `turned`: whose programs take blocks of that dim in turn; `single`: where a segment is
        one chunk, if that makes a difference."""
        if launch not in self.launches:
            assert self.plans  # which adds what it finds
        found = self.launches[launch]
        key = launch, turned, single and found.alone
        if key not in self._written:
            writer = SegmentWriter if found.alone else KernelWriter
            found = of_a_chunk(found) if key[2] else found
            if not {*self.each} <= {*found.split}:
                raise refuse(f"programs do not divide {', '.join(self.each)}")
            found = of_one(found, self.each) if self.each else found
            written, taps = taps_apart(signs_behind(found)) if not self.around else (signs_behind(found), {})
            made = writer(written, turned, self.p if written.reverse else None)
            made.estimates = written.roots() == found.roots() and written.replay == found.replay
            self._written[key] = made.write()
            self._written[key].taps = taps
            if not made.estimates:  # as they were fitted
                writer(found, turned).estimate(self._written[key])
        return self._written[key]

    def no_room(self, sizes: Mapping[str, int]) -> str:
        """What has no room in a tile where dims have these sizes: the triangular systems of tokens of many rows, of as
        few tokens as a product takes.  Empty: all has."""
        rows = max((math.prod(padded(sizes[d], 1) for d in k.ranks) for k in self.kernels.values()), default=1)
        return f"a triangular system of {LEAST} tokens of {rows} rows" if (LEAST * rows) ** 2 > VALUES else ""

    def kernel_of(self, launch: str, tile: Tile, segment: int) -> Kernel:
        """The one that runs with this tile."""
        return self.kernel(launch, tile.turned if tile.turns > 1 else "", tile.chunk == segment)

    def parts(self, config: Config) -> list[list[tuple[str, Kernel]]]:
        """The launches of the forward and of the backward with this config, in order."""
        given = {n for n, _ in config.tiles}
        whole = next((p for p in self.plans if {*p[0], *p[1]} <= given), None) if given - {"fwd", "bwd"} else None
        return [[(n, self.kernel_of(n, config.tile(n), config.segment)) for n in cut] for cut in whole or (("fwd",), ("bwd",))]

    # ------------------------------------------------------------ sizes
    def kernel_texts(self) -> list[str]:
        return [k.text for k in (*(k for _, k in self.fwd), *([self.token] if self.token else []), *(k for _, k in self.bwd))]

    @property
    def _splits(self) -> bool:
        return any(k.launch.alone for _, k in (*self.fwd, *self.bwd))

    def size_lines(self) -> list[str]:
        kernels = (*self.fwd, *self.bwd)
        kept = any("SEGMENT" in k.constexprs for _, k in kernels)
        return [*(f"{self._called(n)} = {self._tile(k, n)}" for n, k in kernels),
                *([f"{self.prefix}STEP = {self._tile(self.token, 'step')}  # one token"] if self.token else []),
                *([f"{self._segment} = {self.config.segment}  # rows from one kept state to the next"] if kept else [])]

    @property
    def _segment(self) -> str:
        return self.prefix + "SEGMENT"

    def _called(self, launch: str) -> str:
        """What the sizes of a launch are called."""
        direction, _, rest = launch.partition("_")
        words, _, dim = rest.rpartition("_")  # the dim keeps its letters: FORWARD_FOR_K
        name = {"fwd": "FORWARD", "bwd": "BACKWARD"}[direction]
        return self.prefix + "_".join(filter(None, (name, words.upper(), dim if words else dim.upper())))

    def _tile(self, kernel: Kernel, launch: str) -> str:
        tile = self.config.tile(launch)
        split = [d for d in kernel.launch.split if d in kernel.dims and d not in kernel.launch.each]
        blocks = "".join(f"B{d}={dict(tile.blocks).get(d, 1 << 30)}, " for d in split)
        chunk, turns, stages = (f"{name}={n}, " * (name.upper() in kernel.constexprs) for name, n in (
            ("C", tile.chunk), ("turns", tile.turns), ("stages", tile.stages)))
        return f"dict({chunk}{blocks}{turns}warps={tile.warps}, {stages}".removesuffix(", ") + ")"

    # ------------------------------------------------------------ the call of a kernel
    def _tensors(self) -> list[Decl]:
        return [*self.p.ins, *self.p.params]

    def _blocks(self, kernel: Kernel, tile: str) -> list[str]:
        split = kernel.launch.split
        limit = {d: f", {tile}['B{d}']" for d in split}
        own = {d: f"triton.next_power_of_2({d})" for d in kernel.narrow} | dict.fromkeys(kernel.launch.each, "1")
        own = {d: f"block({d}{limit.get(d, '')})" for d in kernel.dims} | own
        return [f"B{d} = {own[d]}" for d in kernel.dims if f"B{d}" in kernel.constexprs]

    def _held(self, kernel: Kernel) -> list[str]:
        return []

    def _programs(self, kernel: Kernel, tile: str) -> list[str]:
        """Factors of the number of programs, but for split dims."""
        return ["bound" if kernel.launch.alone else "count", "H"]

    def _out_dtype(self, out: Decl | None = None) -> str:
        """That of what is kept and of operands; of an out what it is allocated in."""
        if out is not None and out.exact:
            return "torch.float32"
        return "seqs.dtype" if self.around or self.typed_by_call else self._typed()

    def _typed(self) -> str:
        """The dtype of the inputs."""
        given = [d for d in self.inner.ins if not d.exact] or [*self.inner.params, *self.inner.ins]
        first = next((d for d in given if d.dims), given[0])
        return f"{safe(first.name)}.dtype"

    def _maker(self, name: str) -> Kernel:
        """The kernel of the backward that forms a gradient, or the first that carries one to where a sequence begins."""
        def forms(launch: Launch) -> bool:
            carried = not launch.alone and name.removesuffix("_initial") in {c.name for c in launch.carries}
            return carried if name.endswith("_initial") else name in {s.name for s in launch.stores}
        return next((k for _, k in self.bwd if forms(k.launch)), self.bwd[-1][1])

    def _grid(self, kernel: Kernel, tile: str) -> str:
        """How many programs there are."""
        return " * ".join([*self._programs(kernel, tile), *(count(kernel, d, tile) for d in kernel.launch.split if d in kernel.dims)])

    def _launch(self, kernel: Kernel, tile: str) -> list[str]:
        """The call of a kernel, its arguments by name."""
        grid = self._grid(kernel, tile)
        given: list[str] = []
        for a in kernel.arguments:
            given.append(self._argument(a, kernel))
        reverse = kernel.launch.reverse
        own = [*kernel.dims, *(b for d in kernel.dims if (b := f"B{d}") in kernel.constexprs)]
        pairs = [*(f"{x}={x}" for x in own), f"C={tile}['C']", f"TURNS={tile}['turns']", "SIGN=seqs.sign", "RAGGED=seqs.ragged",
                 f"SEGMENT={self._segment}", "KEEP=keep"]
        pairs += self._held(kernel)
        if "HAS_INITIAL" in kernel.constexprs:
            pairs.append(f"HAS_INITIAL={'has_final' if reverse else 'has_initial'}")
            wanted = any(self._maker(c.name + "_initial") is kernel for c in kernel.launch.carries) if reverse else True
            pairs.append(f"STORE_FINAL={('any(ctx.has_initial)' if wanted else False) if reverse else 'seqs.want_final'}")
        over = "".join(f", {d}" for d in self.inverse_over(kernel))
        pairs += [f"OPERAND=operand({self._out_dtype()}{over})", f"PRECISION=precision({self._out_dtype()})",
                  f"STAGES={tile}['stages']"]
        pairs = [p for p in pairs if p.split("=")[0] in kernel.constexprs]
        pairs += [f"num_warps={tile}['warps']", f"**registers({tile}['warps'])"]
        call = [f"if {grid} > 0:", f"    {kernel.launch.name}[({grid},)]("]
        call += [f"        {line}" for line in packed([*given, *pairs], 100)]
        return [*call, "    )"]

    def inverse_over(self, kernel: Kernel | None = None) -> list[str]:
        """The dims that the products inside inverses sum over: a kernel's own, or where it loads rows all, as whoever
        formed them (None: all)."""
        launches = [kernel.launch] if kernel is not None and not kernel.given else self.launches.values()
        return sorted({d for launch in launches for d in launch.inverse_over()})

    @property
    def backs(self) -> dict[str, tuple[str, int]]:
        """Inputs that are others some tokens ago, and that every kernel can read off these: which, and how many."""
        kernels, inputs = [k for _, k in (*self.fwd, *self.bwd)] + [self.token] * bool(self.token), {d.name for d in self.p.ins}
        def alone(n: str) -> bool:
            return all(f"{n}_back" in k.arguments for k in kernels if k and n in k.loads)
        return {} if self.around else {n: d.ago for d in self.p.ins if d.ago and d.ago[0] in inputs and alone(n := safe(d.name))}

    @property
    def taps(self) -> dict[str, Taps]:
        """Of inputs whose gradients kernels store unweighed, what they are weighed with."""
        return {x: taps for _, k in self.bwd for x, taps in k.taps.items()}

    def _argument(self, a: str, kernel: Kernel) -> str:
        if a.endswith("_back"):
            return a if a.removesuffix("_back") in self.backs else "0"
        for decl in self._tensors():
            n = safe(decl.name)
            if a == f"{n}_ptr" and n in kernel.loads:
                return n
            if a == f"{n}_rep":
                return f"H // {n}.shape[{2 if decl.role == 'in' else 0}]"
            if decl.role == "in" and a in (f"{n}_sb", f"{n}_st", f"{n}_sh"):
                return f"{n}.stride({('b', 't', 'h').index(a[-1])})"
        if a in ("starts", "lengths"):
            return f"seqs.{a}"
        if a.endswith("_part"):
            state = any(c.name == a[:-5] for c in kernel.launch.carries)
            return f"{a[:-5]}{'_initial' if state else ''}.stride(0)"
        if kernel.launch.reverse and a.endswith(("_initial", "_final")):  # its loop begins at the end
            return a.removesuffix("_initial") + "_final" if a.endswith("_initial") else a.removesuffix("_final") + "_initial"
        if a.endswith("_ptr"):
            return a[:-4]
        return a


def count(kernel: Kernel, d: str, tile: str) -> str:
    """Programs along a dim."""
    turns = f" * {tile}['turns']" if d == kernel.turned else ""
    return f"triton.cdiv({d}, B{d}{turns})"


def _token_kernel(step: Program) -> Kernel | None:
    try:
        return KernelWriter(token_loop(entries_apart(step))).write()
    except SpecError:  # an op without tiles: the chunk's kernel runs single tokens too
        return None
