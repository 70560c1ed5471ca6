"""Names of a spec that kernels have a use of their own for, and what they are called there instead.

before: in k[C], dk, rows     C: rows of a chunk, dk: the gradient of k, rows: those of a chunk's tile
after:  in k[C_], dk_, rows_
"""

from __future__ import annotations

import symtable
from dataclasses import replace
from keyword import iskeyword
from typing import Any

from mixc.codegen import library
from mixc.codegen.lines import camel
from mixc.ir.node import Node, fold, make
from mixc.ir.program import Decl, Program

# names that a kernel's text uses itself; a user's name that equals one gets an underscore
RESERVED = frozenset([
    "tl", "triton", "pid", "seq", "head",
    "B", "C", "T", "H", "rows", "live", "held", "row", "row_at", "chunk", "chunks", "first", "length", "batch",
    "token", "starts", "lengths", "segment_at", "first_segment", "kept_at", "past", "i", "SIGN", "RAGGED", "SEGMENT", "KEEP", "HAS_INITIAL",
    "STORE_FINAL", "OPERAND", "PRECISION", "STAGES", "print", "range", "float", "int", "min", "max", "abs", "any",
    "ctx", "seqs", "device", "count", "tile", "keep", "bound", "has_initial", "has_final", "parts", "initial",
    "lane", "there", "group", "longest", "late", "begin", "some", "segment", "HELD", "STARTED", "piece", "pieces", "piece_of",
    "entered", "torch", "math", "os", "run", "block", "operand", "precision", "merged", "add_parts", "over_group", "features_packed",
    "registers", "dict", "Sequences", "Past", "Guarded", "pieces_of", "FORWARD", "BACKWARD", "FORWARD_STATES", "FORWARD_OUTS",
    "BACKWARD_STATES", "BACKWARD_GRADS", "INTERPRETED", "BEHIND_FORWARD", "BEHIND_BACKWARD", "BEHIND_STEP", *library.names("basics", "cells", "spans", "rows", "solves", "products", "later"),
])
_HOST = library.names("host", "calls") | {
    "INS", "PARAMS", "STATES", "PAST", "ALIASES", "SIZES", "PLANES", "collections",
    "ValueError", "all", "bool", "getattr", "hasattr", "isinstance", "iter", "len", "list", "map", "next", "pow", "reversed",
    "staticmethod", "tuple", "type", "zip"}  # of Python's, what modules call (and RESERVED holds)


def safe(name: str) -> str:
    """The spec's name in a kernel's text."""
    return name + "_" if name in RESERVED else name


def named(p: Program) -> Program:
    """The step, called otherwise if its module has a use of its own for the mixer's name: `run` is `run_`."""
    return replace(p, name=p.name + "_") if p.name in _HOST or p.name in RESERVED else p


def under_its_name(text: str, p: Program) -> str:
    """The file, its functions also under the mixer's own name, where they are called otherwise only because a kernel
    has a local of that name."""
    called = named(p).name
    if called == p.name or p.name in _shared(symtable.symtable(text, "<emitted>", "exec")):
        return text
    return f"{text}\n\n{p.name}, {p.name}_step = {called}, {called}_step\n"


def _shared(scope: symtable.SymbolTable) -> set[str]:
    """The names that a module, or a function in it, looks up in the module or among Python's own."""
    found = {s.get_name() for s in scope.get_symbols() if s.is_global() or scope.get_type() == "module"}
    return found.union(*map(_shared, scope.get_children()))


def class_name(p: Program, name: str) -> str:
    """What the autograd function of a mixer is called: its name in capitals, and as nothing else is called there."""
    dims = [d.name for d in p.dims]
    used = {p.name, *RESERVED, *_HOST, *dims, *(d.name for d in p.decls), *(made for d in dims for made in of_dim(d))}
    found = camel(name)
    while found in used:
        found += "_"
    return found


def own_names(p: Program) -> dict[str, str]:
    """What dims and values are called instead; all others keep their names."""
    dims, names = [d.name for d in p.dims], [d.name for d in p.decls]
    used = RESERVED | {made for d in dims for made in of_dim(d)} | {made for n in names for made in of_value(n)}
    found: dict[str, str] = {}
    for name in (*dims, *names):
        if name in used or iskeyword("d" + name) or name.endswith(_TOLD):
            fresh = name + "_"
            while fresh in used or fresh in (*dims, *names):
                fresh += "_"
            found[name] = fresh
            used |= {fresh, *of_dim(fresh), *of_value(fresh)}
    return found


def of_dim(d: str) -> set[str]:
    """Names that stand for something of a dim: its blocks, places in it, programs along it, and the sizes of these."""
    sizes = {f"{x}_{d}" for x in ("BACKWARD_OF", "FORWARD_FOR", "BACKWARD_FOR", "BACKWARD_ALONG")}
    rows = {f"{x}_by_{d}" for x in ("rows", "live", "held", f"in_{d}", f"has_{d}")}
    return {"B" + d, *rows, *(f"{x}_{d}" for x in ("in", "has", "block", "group", "first", "more", "parts")), *sizes}


def of_value(name: str) -> set[str]:
    """Names that stand for something of a value: its gradient, where it lies, what a state was or becomes."""
    return {"d" + name, *(f"{x}{name}_{end}" for x in ("", "d") for end in _ENDS)}


# by these ends the arguments of a kernel are told apart
_TOLD = tuple("_" + end for end in ("ptr", "sb", "st", "sh", "initial", "final", "starts", "ends", "part", "first", "kept", "aside", "back"))
_ENDS = ("ptr", "rep", "sb", "st", "sh", "initial", "final", "starts", "ends", "part", "sum", "next", "first", "kept", "aside", "back", "later")


def renamed(p: Program, to: dict[str, str]) -> Program:
    """A step whose dims and values are called so."""
    if not to:
        return p
    made: dict[Node, Node] = {}

    def again(n: Node, args: list[Node]) -> Node:
        attrs = {k: _renamed(v, to) if k in ("name", "dim", "dims", "over", "to", "out") else v for k, v in n.attrs}
        return make(n.op, *args, span=n.span, **attrs)

    def node(root: Node) -> Node:
        return fold([root], again, made)[0]

    def decl(d: Decl) -> Decl:
        ranges = tuple(replace(r, over=_renamed(r.over, to), low=r.low and node(r.low), high=r.high and node(r.high))
                       for r in d.ranges)
        ago = d.ago and (to.get(d.ago[0], d.ago[0]), d.ago[1])
        return replace(d, name=to.get(d.name, d.name), dims=_renamed(d.dims, to), init=d.init and node(d.init), ranges=ranges,
                       ago=ago)

    return replace(p, decls=tuple(map(decl, p.decls)), locals=tuple((name, node(x)) for name, x in p.locals), origin=p.origin and renamed(p.origin, to),
                   dims=tuple(replace(d, name=to.get(d.name, d.name), alias=to.get(d.alias or "", d.alias)) for d in p.dims),
                   results=tuple(replace(r, name=to.get(r.name, r.name), value=node(r.value)) for r in p.results))


def _renamed(value: Any, to: dict[str, str]) -> Any:
    """A name, or names in tuples."""
    return tuple(_renamed(v, to) for v in value) if isinstance(value, tuple) else to.get(value, value)
