"""When each value of a chunk program is formed, for a program that runs a segment of chunks at once.

    NUMBER    depends on numbers, consts and sizes alone: once per call, in fp64, rounded once
    HEAD      also on params: once per call, a value a head
    SEGMENT   also on tokens: for all chunks of a segment at once
    CARRIED   also on what the loop over chunks carries

Only what the next carried state needs is computed inside the loop; other CARRIED values are formed for
all chunks at once afterwards, from the states that the loop left behind.  Values of one number a row (gates,
their running sums, their gradients) cost more to call than to compute: what can be of them is formed for
many segments at once, `early` before all of these, `late` after them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from mixc.ir.blocks import PART
from mixc.ir.node import ALIASES, COL, ROW, Node, postorder, source
from mixc.ir.program import Decl, Program
from mixc.passes.differentiate import cotangent_of_state


class Level(IntEnum):
    NUMBER = 0
    HEAD = 1
    SEGMENT = 2
    CARRIED = 3


@dataclass
class Stages:
    """The values of a program in the order they are formed.

    Attributes:
        carried: what the loop carries: (state's name, the leaf it is read as, its next value).
        numbers, heads: values formed once per call that later stages read.
        early, late: numbers a row, formed for many segments at once; `exported`: what `late` reads of a segment.
        single: a segment is one chunk of every sequence, and there is no loop: nothing is in it.
        first: values the loop reads (and what they need). loop: values formed in the loop.
        rest: all other values. kept: loop values that `rest` reads, so each chunk's is kept.
    """

    program: Program
    single: bool
    level: dict[Node, Level]
    carried: list[tuple[Decl, Node, Node]]
    numbers: list[Node] = field(default_factory=list)
    heads: list[Node] = field(default_factory=list)
    early: list[Node] = field(default_factory=list)
    late: list[Node] = field(default_factory=list)
    exported: list[Node] = field(default_factory=list)
    first: list[Node] = field(default_factory=list)
    loop: list[Node] = field(default_factory=list)
    rest: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)

    def roots(self) -> list[Node]:
        """Values that leave a segment other than through the loop."""
        once = {*self.late, *self.early}
        nexts = [n for _, _, n in self.carried] if self.single else []
        return [*(r.value for r in self.program.results if r.role != "next" and origin(r.value) not in once),
                *self.exported, *nexts]


ALIAS = (*ALIASES, "stop_gradient")


def origin(n: Node) -> Node:
    """The node whose tensor this is: renamed and repeated values are no new ones."""
    return source(n, ALIAS)


def small(n: Node) -> bool:
    """One number a row, or a chunk."""
    dims = origin(n).dims
    return len(dims) <= 1 and all(d.startswith("_") for d in dims) and not set(n.dims) - {ROW, COL}


_NUMBERS = ("number", "size", "const", "index")


def levels(nodes: list[Node], carried: set[Node], saved: frozenset[Node], partial: bool) -> dict[Node, Level]:
    """Of nodes that come arguments first. `partial`: some rows are no tokens, so `live` depends on the segment."""
    found: dict[Node, Level] = {}
    for n in nodes:
        if n in saved:
            found[n] = Level.SEGMENT
        elif n in carried:
            found[n] = Level.CARRIED
        elif n.op in _NUMBERS:
            found[n] = Level.NUMBER
        elif not n.args:
            found[n] = Level.HEAD if n.op == "param" else Level.SEGMENT
        else:
            own = Level.SEGMENT if n.op == "live" and partial else Level.NUMBER
            found[n] = max([own, *(found[a] for a in n.args)])
    return found


def stages(program: Program, saved: frozenset[Node] = frozenset(), partial: bool = False,
           single: bool = False) -> Stages:
    """The stages of a chunk program; `saved` values are read, not formed. `single`: see `Stages`."""
    carried = [(d, cotangent_of_state(d.name, d.dims) if program.reverse else d.leaf(),
                program.result("next", d.name)) for d in program.states]
    nodes = list(postorder(program.values(), saved))
    level = levels(nodes, {leaf for _, leaf, _ in carried}, saved, partial)
    s = Stages(program, single, level, carried)
    in_loop = set() if single else {n for n in postorder([n for _, _, n in carried], saved) if level[n] == Level.CARRIED and n.args}
    in_loop |= {n for n in nodes if n.op == "pick" and n.attr("dim") == PART and n.args[0] in in_loop}  # of several tensors
    border = [a for n in nodes if n in in_loop for a in n.args if a not in in_loop]
    border += [nxt for _, _, nxt in carried if nxt not in in_loop]
    needed = set() if single else set(postorder(border, saved))
    nodes = [n for n in nodes if n not in saved and n.args and n.op not in ALIAS]
    s.early = _early(nodes, level)
    s.late = _late(nodes, s, needed | in_loop)
    s.exported = [a for a in dict.fromkeys(origin(a) for n in s.late for a in n.args)
                  if level[a] >= Level.SEGMENT and a.args and a not in s.late and a not in s.early]
    for n in nodes:
        if n in in_loop:
            s.loop.append(n)
        elif level[n] >= Level.SEGMENT and n not in s.early and n not in s.late:
            (s.first if n in needed and level[n] == Level.SEGMENT else s.rest).append(n)
    rest, roots = set(s.rest), s.roots()
    s.rest = [n for n in postorder(roots, saved) if n in rest]  # root by root, so that values die early
    users = [*s.first, *s.rest]
    read = {origin(a) for n in users for a in n.args} | {origin(r) for r in roots}
    s.kept = [n for n in s.loop if n in read]
    _once_a_call(s, [*s.early, *users, *s.loop, *s.late])
    return s


def affine_updates(s: Stages) -> list[tuple[Node, Node]]:
    """(a, b) of every state, where next = a * state + b is all that the loop does."""
    found, inside = list[tuple[Node, Node]](), set[Node]()
    for _, leaf, nxt in s.carried:
        for m, b in (nxt.args, nxt.args[::-1]) if nxt.op == "add" else ():
            if m.op == "mul" and leaf in m.args and s.level[b] < Level.CARRIED:
                a = m.args[m.args[0] is leaf]
                if s.level[a] < Level.CARRIED and a is not leaf:
                    found.append((a, b))
                    inside |= {nxt, m}
    return found if len(found) == len(s.carried) and not s.kept and set(s.loop) <= inside else []


def _early(nodes: list[Node], level: dict[Node, Level]) -> list[Node]:
    found: dict[Node, None] = {}
    for n in nodes:
        if level[n] == Level.SEGMENT and small(n) and all(
                level[a] < Level.HEAD or (small(a) and (  # a head's matrix is there as often as a segment has heads
                    level[a] == Level.HEAD or origin(a) in found or origin(a).op in ("in", "cot"))) for a in n.args):
            found[n] = None
        elif level[n] == Level.SEGMENT and is_span(n) and origin(n.args[0]) in found:
            found[n] = None  # its running sums, see `torch_prelude.span_parts`
    return list(found)


def is_span(n: Node) -> bool:
    """A sum over spans of rows, which is formed from running sums of numbers a row."""
    return n.op == "segsum" and len(n.dims) == 2


def _late(nodes: list[Node], s: Stages, needed: set[Node]) -> list[Node]:
    early, late = set(s.early), set[Node]()
    nexts = {origin(n) for _, _, n in s.carried}
    users: dict[Node, set[Node]] = {}
    for n in nodes:
        for a in n.args:
            users.setdefault(origin(a), set()).add(n)
    for n in reversed(nodes):
        if (s.level[n] >= Level.SEGMENT and small(n) and n not in early and n not in needed and n not in nexts
                and users.get(n, set()) <= late
                and all(small(a) and origin(a).op != "state" and not _of_state(origin(a)) for a in n.args)):
            late.add(n)
    return [n for n in nodes if n in late]


def _of_state(n: Node) -> bool:
    return n.op == "cot" and str(n.attr("name")).endswith("'")


def _once_a_call(s: Stages, users: list[Node]) -> None:
    read = dict.fromkeys([origin(a) for n in users for a in n.args] + [origin(r.value) for r in s.program.results])
    s.heads = [n for n in read if s.level[n] == Level.HEAD]
    below = list(postorder(s.heads))
    read |= dict.fromkeys(origin(a) for n in below if s.level[n] == Level.HEAD for a in n.args)
    s.numbers = [n for n in read if s.level[n] == Level.NUMBER and n.op != "number"]
