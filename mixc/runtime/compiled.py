"""The emitted functions of a spec, made once and on demand: forward and backward, of segments whose rows are
all tokens and of others."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mixc.codegen.torch_fused import fused_segment
from mixc.codegen.torch_program import segment
from mixc.codegen.torch_segment import Segment, needs_single, prepare, scans_matrix
from mixc.ir.launch import keys_inside
from mixc.ir.node import COL, LEVEL, ROW, Node, make, postorder, substitute
from mixc.ir.program import Program, once_a_program
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from mixc.passes.merge import merge
from mixc.runtime.keep import worth_keeping

_made: dict[object, Compiled] = {}  # by what a program says: a spec that is loaded again is not compiled again


@once_a_program
def compiled(step: Program, endless: bool = False) -> Compiled:
    """Of a program at level "step" whose states all have a chunk program; `endless`: inputs are infinite."""
    made = Compiled(step, endless=endless)
    if endless and made.chunk.values() == compiled(step).chunk.values():
        return compiled(step)
    if len(_made) >= 256:
        _made.clear()
    return _made.setdefault((step.name, step.dims, step.decls, step.results, endless), made)


class Compiled:
    def __init__(self, step: Program, spread: bool = False, endless: bool = False):
        """`spread`: segments have several chunks wherever they can.  `endless`: what may be given what is infinite is
        formed row by row."""
        self.step, self.spread, self.endless = step, spread, endless
        self._prepared: dict[tuple[bool, ...], Program] = {}
        self._saves: dict[tuple[bool, bool, bool], tuple[Node, ...]] = {}
        self._segments: dict[object, Any] = {}  # None: there is no such segment
        self.shapes: dict[object, object] = {}  # of calls, see `shapes.shapes`

    @cached_property
    def chunk(self) -> Program:
        return chunk(classify(self.step), by_rows=True, endless=self.endless)

    @cached_property
    def merged(self) -> tuple[Program, Program]:
        """Forward and backward, values that are one function being one value."""
        return merge(self.chunk), merge(differentiate(self.chunk))

    @cached_property
    def chained(self) -> bool:
        """Has a segment to be one chunk of every sequence?"""
        return needs_single(self.chunk) or needs_single(differentiate(self.chunk))

    @cached_property
    def matrix(self) -> bool:
        """Does it scan matrices?"""
        return scans_matrix(self.chunk) or scans_matrix(differentiate(self.chunk))

    @property
    def single(self) -> bool:
        """Is a segment one chunk of every sequence?  So it is where it scans matrices: their slabs are large."""
        return self.chained or (self.matrix and not self.spread)

    @cached_property
    def spreading(self) -> Compiled:
        """The same for segments of several chunks: where a call costs more than forming things again."""
        if self.chained or not self.matrix:
            return self
        other = Compiled(self.step, True, self.endless)
        other.__dict__ |= {"chunk": self.chunk, "merged": self.merged, "chained": False, "longest": self.longest}
        return other

    @cached_property
    def scans(self) -> bool:
        """Does it scan vectors, and nothing else in chunks?  Then copies of rows would cost more than all else."""
        nodes = list(postorder(self.chunk.values()))
        return not self.single and any(n.op == "scan" for n in nodes) and not any(COL in n.dims for n in nodes)

    @cached_property
    def paired(self) -> bool:
        """Has it values for pairs of rows?"""
        return any(COL in n.dims for n in postorder([*self.chunk.values(), *differentiate(self.chunk).values()]))

    @cached_property
    def longest(self) -> int:
        """Rows a chunk may have: a factor of its own for every pair of rows and every entry along a dim is dear, and so
        are matrices of pairs of rows for every two systems that a token is in."""
        nodes = list(postorder([*self.chunk.values(), *differentiate(self.chunk).values()]))
        if any({ROW, COL} <= set(n.dims) and len(n.dims) > 2 for n in nodes):
            return 16
        if any(n.op == "span_solve" for n in nodes):  # a matrix for every entry, or from row to row
            return 16
        return max(16, 64 >> (max(1, len(self.systems)) - 1).bit_length())

    @cached_property
    def systems(self) -> list[Node]:
        """The matrices of triangular systems."""
        return list(dict.fromkeys(n.args[0] for n in postorder(self.chunk.values()) if n.op in ("solve", "span_solve")))

    @cached_property
    def solved_over(self) -> set[str]:
        """The dims of keys that meet in triangular systems: of many rows with few entries, whose directions come again
        and again, a system of exact reflections magnifies what is rounded."""
        return keys_inside(self.systems, self.chunk)

    @cached_property
    def levelled(self) -> bool:
        """Is a chunk halved again and again, so that its rows are a power of two?"""
        programs = [self.prepared(False, True, reverse) for reverse in (False, True)]
        return any(LEVEL in n.dims for program in programs for n in postorder(program.values()))

    @cached_property
    def handed(self) -> tuple[str, ...]:
        """Outs that are scans: where they lie as segments want them, a backward reads them and scans nothing again."""
        return tuple(r.name for r in self.chunk.results if r.role == "out" and r.value.op == "scan"
                     and r.value.dims == (ROW, *self.step.decl(r.name).dims))

    def prepared(self, partial: bool, finite: bool, reverse: bool, borrowed: bool = False, chained: bool = False
                 ) -> Program:
        key = (partial, finite, reverse, borrowed, chained)
        if key not in self._prepared:
            program = prepare(self.merged[reverse], partial, self.single or chained, finite)
            if reverse and borrowed:
                forward = self.prepared(partial, finite, False)
                there = {x: make("saved", name=name, dims=x.dims) for name in self.handed
                         for x in [forward.result("out", name)] if x.op == "scan"}
                program = program.with_values(substitute(program.values(), there))
            self._prepared[key] = program
        return self._prepared[key]

    def saves(self, partial: bool, finite: bool, borrowed: bool) -> tuple[Node, ...]:
        """What a forward keeps for its backward, besides inputs and the states that chunks received."""
        key = (partial, finite, borrowed)
        if key not in self._saves:
            self._saves[key] = worth_keeping(*(self.prepared(partial, finite, reverse, borrowed)
                                               for reverse in (False, True)))
        return self._saves[key]

    def forward(self, partial: bool, finite: bool, keeps: bool, order: tuple[str, ...] = (),
                borrowed: bool = False) -> Segment:
        """`partial`: some rows are no tokens. `finite`: no input is infinite. `keeps`: a backward may follow.
        `borrowed`: rows are views of the call's tensors.
        `order`: of dims in memory, see `torch_writer.Writer`."""
        key = ("forward", partial, finite, keeps, order, borrowed)
        if key not in self._segments:
            saves = self.saves(partial, finite, borrowed) if keeps else ()
            self._segments[key] = segment(self.prepared(partial, finite, False), partial, saves, self.single,
                                          order, borrowed)
        return self._segments[key]

    def backward(self, partial: bool, finite: bool, wanted: frozenset[str],
                 order: tuple[str, ...] = (), borrowed: bool = False) -> Segment:
        """`wanted`: the inputs and params whose gradient is asked for."""
        key = ("backward", partial, finite, wanted, order, borrowed)
        if key not in self._segments:
            program = self.prepared(partial, finite, True, borrowed).asked(wanted)
            saves = self.saves(partial, finite, borrowed)
            self._segments[key] = segment(program, partial, saves, self.single, order, borrowed)
        return self._segments[key]

    def fused(self, finite: bool, C: int, wanted: frozenset[str] | None, order: tuple[str, ...], borrowed: bool,
              chained: bool) -> Segment | None:
        """For `torch.compile`, forward (`wanted` None) or backward; None: its rows are no work entry by entry.
        `chained`: a segment's chunks run one after the other."""
        key = ("fused", finite, C, wanted, order, borrowed, chained)
        if key not in self._segments:
            program = self.prepared(False, finite, wanted is not None, borrowed, chained)
            program = program if wanted is None else program.asked(wanted)
            self._segments[key] = fused_segment(program, self.single or chained, C, order, borrowed)
        return self._segments[key]
