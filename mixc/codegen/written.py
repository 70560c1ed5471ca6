"""A kernel as it was written: its text, and what a caller, a cost model and a tuner have to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mixc.codegen.config import Tile, padded
from mixc.ir.launch import Launch

WARPS = "_w"  # among the dims of a tile: as many copies as there are warps


@dataclass
class Kernel:
    """The text of one kernel, and what its caller must pass, in order. `alive`: at every statement that makes or reads a
    matrix, the tiles that are there, and the parts of a register that a number takes; with WARPS the left side of a
    product whose rows are tokens: with few rows every warp has all."""

    launch: Launch
    text: str
    arguments: list[str]  # runtime arguments, in order
    constexprs: list[str]  # constexpr arguments, in order
    loads: list[str] = field(default_factory=list)  # ins and params it reads
    dims: list[str] = field(default_factory=list)
    cots: list[str] = field(default_factory=list)  # outs whose cotangents it reads
    alive: list[list[tuple[tuple[str, ...], float]]] = field(default_factory=list)
    vectors: int = 0  # alive at once, at most
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)  # rows of other launches that it reads, and their dims
    turned: str = ""  # the dim of which a program takes TURNS blocks one after the other
    ranks: frozenset[str] = frozenset()  # dims that make more rows of a token
    narrow: frozenset[str] = frozenset()  # dims whose blocks have no least size: these, and such as stand in one with others
    taps: dict[str, Any] = field(default_factory=dict)  # by input, what rows that it stores are weighed with (`passes/taps`)
    peaks: dict[Any, Any] = field(default_factory=dict, repr=False)  # what a model found of `alive`, by known sizes
    counted: dict[Any, Any] = field(default_factory=dict, repr=False)  # and of the text, by what it was asked for

    def block(self, dim: str, size: int, tile: Tile | None = None) -> int:
        """The block of a dim of this size, whole where no tile is given."""
        if dim in self.launch.each:
            return 1
        least = 1 if dim in self.narrow else 16
        return tile.block(dim, size, least) if tile is not None else padded(size, least)
