"""How emitted torch code refers to values: names, axes, and the scratch they are written to.

A value of a segment is a tensor [M, axes...], one entry for every (chunk, sequence, head) triple; values
formed once per call are [M, ...] too (heads repeated) or [1, ...].  Numbers without dims are Python floats.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from keyword import iskeyword

from mixc.codegen import lines, torch_prelude, torch_scan_prelude, torch_span_prelude
from mixc.codegen.lines import broadcast
from mixc.ir.node import COL, LEVEL, ROW, Node
from mixc.ir.program import Program

Dims = tuple[str, ...]

RESERVED = frozenset([
    "torch", "F", "M", "C", "steps", "starts", "nexts", "finish", "live", "scratch", "dtype", "device", "range", "zip", "len", "float",
    "levels", *torch_prelude.__all__, *torch_scan_prelude.__all__, *torch_span_prelude.__all__])


_OURS = re.compile(r"([skhn]|kept)\d+|(buf|to)_\w+|\w+_(at|to|now|next|j)")  # names that are counted or built here


def safe(name: str) -> str:
    """The spec's name in emitted code; those that another one is called there go out of its way."""
    plain = name.rstrip("_")
    return name + "_" if {plain, "d" + plain} & RESERVED or _OURS.fullmatch(plain) or iskeyword("d" + plain) else name


def size_of(dim: str) -> str:
    """The name of a dim's size in emitted code."""
    return "C" if dim in (ROW, COL, "_u") else "levels" if dim == LEVEL else safe(dim)


def argument(n: Node) -> tuple[str, bool]:
    """What a leaf is called in emitted code, and whether it is a state, or a state's cotangent."""
    name = str(n.attr("name"))
    return "d" * (n.op == "cot") + safe(name.rstrip("'")), n.op == "state" or name.endswith("'")


@dataclass(frozen=True)
class Value:
    """A tensor in emitted code: `text` names it, `axes` are its dims in the order they lie in memory.

    `scratch`: it was written to this buffer and may be overwritten once nothing reads it any more.
    `scalar`: a Python float."""

    text: str
    axes: Dims
    scratch: str | None = None
    scalar: bool = False

    def over(self, want: Dims) -> str:
        """Code that broadcasts against tensors with axes `want`, which include its own."""
        return self.text if self.scalar else broadcast(self.text, self.axes, want, 1)


class Scratch:
    """Buffers of a segment, by shape; one is taken again when its value is dead."""

    def __init__(self) -> None:
        self.shapes: dict[str, Dims] = {}  # of every buffer, as size names
        self.free: dict[Dims, list[str]] = {}
        self.count: Counter[Dims] = Counter()

    def take(self, axes: Dims) -> str:
        shape = tuple(size_of(d) for d in axes)
        if self.free.get(shape):
            return self.free[shape].pop()
        self.count[shape] += 1
        name = f"buf_{''.join(shape)}{self.count[shape]}"
        self.shapes[name] = shape
        return name

    def give(self, name: str) -> None:
        if name in self.shapes:
            self.free.setdefault(self.shapes[name], []).append(name)

    def adopt(self, name: str, axes: Dims) -> None:
        """A buffer under a name of its own (a loaded input), free to be overwritten when it is dead."""
        self.shapes[name] = tuple(size_of(d) for d in axes)


class Names:
    """A fresh name for a value, unlike all that a program declares, telling by its first letter what it ranges over."""

    def __init__(self, program: Program):
        spec, dims = ({safe(d.name) for d in of} for of in (program.decls, program.dims))
        self.taken, self.count = {*RESERVED, *dims, *spec, *(f"d{n}" for n in spec)}, Counter[str]()

    def fresh(self, node: Node) -> str:
        rows, cols = ROW in node.dims or "_u" in node.dims, COL in node.dims
        features = any(not d.startswith("_") for d in node.dims)
        if len(node.dims) <= 1 and not features:
            base = "r" if node.dims else "c"  # a number a row; a number a chunk
        elif rows and cols:
            base = "P"
        else:
            base = "x" if rows or cols else "U"
        return self.name(base)

    def name(self, base: str) -> str:
        while True:
            self.count[base] += 1
            name = f"{base}{self.count[base]}"
            if name not in self.taken:
                self.taken.add(name)
                return name


def literal(value: float) -> str:
    """A number in emitted code, in brackets if a sign stands in front."""
    return f"({lines.literal(value)})" if value < 0 and math.isfinite(value) else lines.literal(value)
