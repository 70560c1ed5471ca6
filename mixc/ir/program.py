"""A program: what every level of the ladder is.

One token (level "step"), one chunk of tokens ("chunk"), one launch ("kernel"): always named
results over one DAG of nodes.  What differs between levels is which ops and leaves are legal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mixc.errors import Diagnostic, Source, Span
from mixc.ir.node import JOINT, Node, flat, make, place, postorder

T = TypeVar("T")


@dataclass(frozen=True)
class Dim:
    """A feature dim of the header. `alias`: the dim whose size it shares, which has none; `size`: fixed by the spec."""

    name: str
    alias: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Range:
    """low <= f(x) <= high (or <), f being x itself, `abs`, or `norm` over `over`.

    Bounds are nodes over numbers, consts and sizes; None is unbounded."""

    of: str = "x"  # "x" | "abs" | "norm"
    over: tuple[str, ...] = ()
    low: Node | None = None
    high: Node | None = None
    low_open: bool = False
    high_open: bool = False

    def subject(self, name: str) -> str:
        """What of a value lies there, in the spec's words."""
        return {"x": name, "abs": f"abs({name})", "norm": f"norm[{', '.join(self.over)}]({name})"}[self.of]


@dataclass(frozen=True)
class Decl:
    """A declared name. `role`: "in", "param", "const", "state" or "out".

    `init`: the initial value of a state (None: 0), or the value of a const.
    `exact`: its values have the precision of the body, whatever the inputs' dtype: what one part hands to the next.
    `table`: it is formed of positions and numbers alone, so that nothing asks for its gradient.
    `ago`: it is what this other input was so many tokens ago.
    `dims` is the order of the tensor's axes, as declared."""

    role: str
    name: str
    dims: tuple[str, ...] = ()
    kind: str = "real"
    ranges: tuple[Range, ...] = ()
    init: Node | None = None
    span: Span | None = field(default=None, compare=False)
    exact: bool = False
    ago: tuple[str, int] | None = None
    table: bool = False

    @property
    def open_ended(self) -> bool:
        """May it be infinite, at the open end of its range? Its gradient is 0 there."""
        return any(r.of == "x" and (r.low is None) != (r.high is None) for r in self.ranges)

    def leaf(self) -> Node:
        """The node that reads this name at the token level."""
        if self.role == "const":
            return make("const", name=self.name)
        return make(self.role, name=self.name, dims=self.dims, kind=self.kind)


@dataclass(frozen=True)
class Result:
    """A named value of a program. `role`:

    "out": an out of the spec. "next": what a state holds afterwards.
    "grad": the gradient of an input, a row a token. "sum": a contribution to a param's
    gradient, summed over chunks. "save": a value kept for another program."""

    role: str
    name: str
    value: Node


@dataclass(frozen=True)
class Group:
    """States that are found together: one strongly connected component of "is read by"."""

    states: tuple[str, ...]
    form: str  # "chunk", "scan" or "sequential"
    why: str


class _Of(functools.cached_property[tuple[Decl, ...]]):
    """The declarations of a role."""

    def __init__(self, role: str):
        super().__init__(lambda program: program.of(role))


@dataclass(frozen=True)
class Program:
    """`results` over a DAG, under the declarations of a spec.

    Attributes:
        level: "step", "stages", "chunk" or "kernel".
        reverse: a chunk program whose loop runs from the last chunk to the first.
        groups: from "stages" on, the states in the order in which they are found.
        origin: the step of complex values whose real and imaginary planes this step has.
        parts: where one program does not hold all states: steps that run one after another (`passes/parts.py`).
        spans: where nodes stand in the text that this was read from.
        locals: names that the text gives to values, for those who read what is written of them.
    """

    level: str
    name: str
    dims: tuple[Dim, ...]
    decls: tuple[Decl, ...]
    results: tuple[Result, ...]
    groups: tuple[Group, ...] = ()
    reverse: bool = False
    doc: str = ""
    notes: tuple[Diagnostic, ...] = ()
    source: Source | None = field(default=None, compare=False)
    origin: Program | None = None
    parts: tuple[Program, ...] = ()
    spans: tuple[tuple[Node, Span], ...] = field(default=(), compare=False, repr=False)
    locals: tuple[tuple[str, Node], ...] = field(default=(), repr=False)

    def read_again(self) -> None:
        """Messages are about this text from now on: another one that says the same may have been read since."""
        for node, span in self.spans:
            place(node, span)

    def of(self, role: str) -> tuple[Decl, ...]:
        return tuple(d for d in self.decls if d.role == role)

    ins, params, consts, states, outs = map(_Of, ("in", "param", "const", "state", "out"))

    @property
    def names(self) -> set[str]:
        """All that is declared, dims too."""
        return {d.name for d in self.decls} | {d.name for d in self.dims}

    @functools.cached_property
    def root(self) -> dict[str, str]:
        """Of every dim the one that gives it its size."""
        return {d.name: d.alias or d.name for d in self.dims}

    def told(self, tensors: Iterable[Decl]) -> set[str]:
        """The dims whose sizes these tensors tell, or the spec."""
        found = {self.root[d] for x in tensors for d in x.dims} | {self.root[d] for d in self.fixed}
        return {d for d, root in self.root.items() if root in found}

    @property
    def fixed(self) -> dict[str, int]:
        """The dims whose sizes the spec gives."""
        return {d.name: d.size for d in self.dims if d.size is not None}

    @property
    def inits(self) -> list[Node]:
        """What states begin with, where that is not 0."""
        return [d.init for d in self.states if d.init is not None]

    def sized(self, sizes: dict[str, int]) -> dict[str, int]:
        """Sizes of all dims, from those of the header."""
        return {**sizes, **{d.name: d.size or sizes[self.root[d.name]] for d in self.dims if d.name not in sizes}}

    @functools.cached_property
    def inner(self) -> dict[str, str]:
        """Of every dim that no tensor has: whose size it has."""
        have = {d for x in self.decls for d in flat(x.dims)}
        return {d.name: d.alias for d in self.dims if d.alias and d.name not in have}

    @property
    def together(self) -> set[str]:
        """Dims that stand in one, and such ones."""
        return {d for x in self.dims if JOINT in x.name for d in (x.name, *flat([x.name]))}

    def decl(self, name: str) -> Decl:
        return next(d for d in self.decls if d.name == name)

    def result(self, role: str, name: str) -> Node:
        return next(r.value for r in self.results if r.role == role and r.name == name)

    def values(self, *roles: str) -> list[Node]:
        return [r.value for r in self.results if not roles or r.role in roles]

    def part(self, name: str, decls: tuple[Decl, ...], results: list[Result], also: Iterable[Node] = ()) -> Program:
        """A step of these declarations and results, with the dims that they have, and those of `also`."""
        starts = [d.init for d in decls if d.role == "state" and d.init is not None]
        order = postorder([*(r.value for r in results), *starts, *also])
        used = {d for n in order for d in (*n.dims, n.attr("dim"))} | {d for x in decls for d in x.dims}
        used |= {d.alias for d in self.dims if d.name in used}
        return replace(self, name=name, decls=decls, results=tuple(results), groups=(), notes=(), origin=None,
                       dims=tuple(d for d in self.dims if d.name in used))

    def asked(self, wanted: Container[str]) -> Program:
        """A backward that gives the gradients of `wanted` alone, and what it carries."""
        return replace(self, results=tuple(r for r in self.results if r.role == "next" or r.name in wanted))

    def with_values(self, values: list[Node], **changes: Any) -> Program:
        """The same program with its results' values replaced, in order."""
        results = tuple(replace(r, value=v) for r, v in zip(self.results, values, strict=True))
        return replace(self, results=results, **{"origin": None, **changes})


def once_a_program(make: Callable[..., T]) -> Callable[..., T]:
    """`make(program, *args)`, kept for the latest 256: found by the program's identity, since to hash all that it says
    costs more than a call may; what is kept holds the program."""
    known: dict[tuple[Any, ...], tuple[Program, T]] = {}

    @functools.wraps(make)
    def made(program: Program, *args: Any) -> T:
        key = (id(program), *args)
        found = known.get(key)
        if found is None or found[0] is not program:
            if len(known) >= 256:
                known.clear()
            found = known[key] = program, make(program, *args)
        return found[1]
    made.known = known  # type: ignore[attr-defined]
    return made


def free(name: str, taken: set[str], between: str = "_") -> str:
    """The name, with a number behind it if it is taken; it is then."""
    base, i = name, 2
    while name in taken:
        name, i = f"{base}{between}{i}", i + 1
    taken.add(name)
    return name
