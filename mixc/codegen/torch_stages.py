"""When each value of a chunk program is formed, for a program that runs a segment of chunks at once.

    NUMBER    depends on numbers, consts and sizes alone: once per call, in fp64, rounded once
    HEAD      also on params: once per call, a value a head
    SEGMENT   also on tokens: for all chunks of a segment at once
    CARRIED   also on what the loop over chunks carries

Only what the next carried state needs is computed inside the loop; other CARRIED values are formed for
all chunks at once afterwards, from the states that the loop left behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from mixc.ir.node import Node
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
        first: values the loop reads (and what they need). loop: values formed in the loop.
        rest: all other values. kept: loop values that `rest` reads, so each chunk's is kept.
    """

    program: Program
    level: dict[Node, Level]
    carried: list[tuple[Decl, Node, Node]]
    numbers: list[Node] = field(default_factory=list)
    heads: list[Node] = field(default_factory=list)
    first: list[Node] = field(default_factory=list)
    loop: list[Node] = field(default_factory=list)
    rest: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)

    @property
    def roots(self) -> list[Node]:
        """Values that leave a segment other than through the loop."""
        return [r.value for r in self.program.results if r.role != "next"]


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


def stages(program: Program, saved: frozenset[Node] = frozenset(), partial: bool = False) -> Stages:
    """The stages of a chunk program; `saved` values are read, not formed."""
    carried = [(d, cotangent_of_state(d.name, d.dims) if program.reverse else d.leaf(),
                program.result("next", d.name)) for d in program.states]
    nodes = above(program.values(), saved)
    level = levels(nodes, {leaf for _, leaf, _ in carried}, saved, partial)
    s = Stages(program, level, carried)
    in_loop = {n for n in above([n for _, _, n in carried], saved) if level[n] == Level.CARRIED and n.args}
    border = [a for n in nodes if n in in_loop for a in n.args if a not in in_loop]
    border += [nxt for _, _, nxt in carried if nxt not in in_loop]
    needed = set(above(border, saved))
    for n in nodes:
        if n in saved or not n.args:
            continue
        if n in in_loop:
            s.loop.append(n)
        elif level[n] >= Level.SEGMENT:
            (s.first if n in needed and level[n] == Level.SEGMENT else s.rest).append(n)
    s.rest = _depth_first(s, saved)
    users = [*s.first, *s.rest]
    s.kept = [n for n in s.loop if any(n in u.args for u in users) or n in s.roots]
    _once_a_call(s, [*users, *s.loop], nodes)
    return s


def above(roots: list[Node], stop: frozenset[Node]) -> list[Node]:
    """Nodes below `roots`, arguments first, not looking below `stop`."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(r, False) for r in reversed(roots)]
    while stack:
        n, ready = stack.pop()
        if n in seen:
            continue
        if ready or n in stop:
            seen.add(n)
            order.append(n)
        else:
            stack.append((n, True))
            stack.extend((a, False) for a in reversed(n.args) if a not in seen)
    return order


def _depth_first(s: Stages, saved: frozenset[Node]) -> list[Node]:
    """What is left, root by root, so that values die early."""
    rest = set(s.rest)
    return [n for n in above(s.roots, saved) if n in rest]


def _once_a_call(s: Stages, users: list[Node], nodes: list[Node]) -> None:
    read = dict.fromkeys([a for n in users for a in n.args] + [r.value for r in s.program.results])
    s.heads = [n for n in read if s.level[n] == Level.HEAD]
    below = above(s.heads, frozenset())
    read |= dict.fromkeys(a for n in below if s.level[n] == Level.HEAD for a in n.args)
    s.numbers = [n for n in read if s.level[n] == Level.NUMBER and n.op != "number"]
    s.numbers.sort(key=nodes.index)
