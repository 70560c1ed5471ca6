"""What is emitted for a segment of chunks: a function, what it must be given, and the program as it is emitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mixc.codegen.torch_stages import stages
from mixc.codegen.torch_values import Dims
from mixc.ir.node import Node, postorder
from mixc.ir.program import Program
from mixc.ir.scans import carry_first
from mixc.passes import lower
from mixc.passes.simplify import crossings_meet, rewrite, simplify


@dataclass
class Segment:
    """The emitted function of one program, and what it must be given.

    Attributes:
        rows: leaves with a row a token, by the name of their argument: loaded for each segment.
        small: leaves of one number a token: loaded for many segments at once.
        early: names of what `before` forms for many segments, in order; `exported`: likewise of what a
            segment hands to `after`, behind its results; `late`: the results that `after` gives.
        received: state leaves that are read for all chunks at once: [M, dims...].
        numbers: values formed in fp64 once per call, as arguments n1, n2, ...
        heads: values formed from params by `per_head`, as arguments h1, h2, ...
        scratch: shapes of the buffers, as names of sizes.
        results: (role, name, dims of the tensor returned) in order.
        direct: results formed at a place that is given under this name: (role, name).
        carries: the loop over chunks is nothing but affine updates, which `carry` makes.
        saved: values written to (`keep`, forward) or read from a forward.
    """

    program: Program
    text: str = ""
    rows: dict[str, Node] = field(default_factory=dict)
    small: dict[str, Node] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    exported: list[str] = field(default_factory=list)
    late: list[tuple[str, str, Dims]] = field(default_factory=list)
    received: dict[str, Node] = field(default_factory=dict)
    numbers: dict[str, Node] = field(default_factory=dict)
    heads: dict[str, Node] = field(default_factory=dict)
    scratch: dict[str, Dims] = field(default_factory=dict)
    results: list[tuple[str, str, Dims]] = field(default_factory=list)
    saved: dict[str, Node] = field(default_factory=dict)
    direct: dict[str, tuple[str, str]] = field(default_factory=dict)
    carried: list[str] = field(default_factory=list)
    carries: bool = False
    partial: bool = False
    run: Callable[..., tuple[Any, ...]] = lambda *a, **k: ()
    per_head: Callable[..., tuple[Any, ...]] = lambda *a, **k: ()
    before: Callable[..., tuple[Any, ...]] = lambda *a, **k: ()
    after: Callable[..., tuple[Any, ...]] = lambda *a, **k: ()


def prepare(program: Program, partial: bool, single: bool = False, finite: bool = False) -> Program:
    """The program as it is emitted: simplified, without `live` where all rows are tokens, without guards where
    `finite` inputs need none, and (but for `single`) with scans whose ends are formed before the states come in."""
    program = simplify(program.with_values(lower.zeros_forget(program)), not partial, finite)
    roots = lower.with_crossings(rewrite(program.values(), (crossings_meet,)))  # before they are lowered
    return program.with_values(rewrite(roots, lower.RULES if single else (*lower.RULES, carry_first)))


def needs_single(program: Program) -> bool:
    """Does what one chunk leaves to the next depend on scans, so that the loop over chunks does everything?"""
    scans = [n for n in postorder(program.values()) if n.op in ("scan", "scan_block")]
    return any(n.op == "scan_block" for n in scans) or (
        bool(scans) and any(n.op in _OF_ROWS for n in stages(prepare(program, True)).loop))


_OF_ROWS = ("scan", "scan_end", "previous")  # what forms rows one after the other


def scans_matrix(program: Program) -> bool:
    """Does it scan a matrix, so that a slab of one chunk is large?"""
    return any(n.op == "scan" and len(n.attr("dims")) > 1 for n in postorder(program.values()))
