"""The emitted functions of a spec, made once and on demand: forward and backward, of segments whose rows are
all tokens and of others."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from mixc.codegen.torch_program import Segment, needs_single, prepare, segment
from mixc.ir.node import Node
from mixc.ir.program import Program
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from mixc.runtime.keep import worth_keeping

_known: dict[int, Compiled] = {}


def compiled(step: Program) -> Compiled:
    """Of a program at level "step" whose states all have a chunk program."""
    found = _known.get(id(step))
    if found is None or found.step is not step:
        if len(_known) >= 256:
            _known.clear()
        found = _known[id(step)] = Compiled(step)
    return found


class Compiled:
    def __init__(self, step: Program):
        self.step = step
        self._prepared: dict[tuple[bool, bool], Program] = {}
        self._saves: dict[bool, tuple[Node, ...]] = {}
        self._segments: dict[object, Segment] = {}

    @cached_property
    def chunk(self) -> Program:
        return chunk(classify(self.step))

    @cached_property
    def single(self) -> bool:
        """Is a segment one chunk of every sequence?"""
        return needs_single(self.chunk) or needs_single(differentiate(self.chunk))

    def prepared(self, partial: bool, reverse: bool) -> Program:
        if (partial, reverse) not in self._prepared:
            program = differentiate(self.chunk) if reverse else self.chunk
            self._prepared[partial, reverse] = prepare(program, partial, self.single)
        return self._prepared[partial, reverse]

    def saves(self, partial: bool) -> tuple[Node, ...]:
        """What a forward keeps for its backward, besides inputs and the states that chunks received."""
        if partial not in self._saves:
            self._saves[partial] = worth_keeping(self.prepared(partial, False), self.prepared(partial, True))
        return self._saves[partial]

    def forward(self, partial: bool, keeps: bool) -> Segment:
        key = ("forward", partial, keeps)
        if key not in self._segments:
            self._segments[key] = segment(self.prepared(partial, False), partial, self.saves(partial) if keeps else (),
                                          self.single)
        return self._segments[key]

    def backward(self, partial: bool, wanted: frozenset[str]) -> Segment:
        """`wanted`: the inputs and params whose gradient is asked for."""
        key = ("backward", partial, wanted)
        if key not in self._segments:
            program = self.prepared(partial, True)
            results = tuple(r for r in program.results if r.role == "next" or r.name in wanted)
            self._segments[key] = segment(replace(program, results=results), partial, self.saves(partial),
                                          self.single)
        return self._segments[key]
