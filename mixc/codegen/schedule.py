"""The order of a kernel's statements: few tiles alive at a time.

A kernel's registers are the tiles that are alive at once, and the compiler hardly moves a statement across a
product.  So what makes or reads a matrix is placed by a beam search for the least peak (then the least sum) of
live tiles, and then earlier where that lets tiles die earlier (the search puts off what ends in a vector); a load is
placed with its first use, and the rest just before what needs it.  With few rows the sides of products are tiles of
their own: what two products read is laid out for both at once and waits in registers, most on the left, where every
warp holds all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mixc.codegen.beam import Beam
from mixc.ir.blocks import PART
from mixc.ir.launch import ROWS, Launch
from mixc.ir.node import ALIASES, ROW, Node, flat, postorder, source

_WIDTH, _WIDE = 100, 128  # orders that are followed at once, up to so many statements; of more fewer, as time allows
NOMINAL_WARPS = 8  # by which statements are ordered
_BLOCK = 6  # statements that are moved together, at most
_FOUND: dict[tuple[Any, ...], tuple[int, ...]] = {}  # of problems: their orders
_MOST_FOUND = 1 << 10


def nominal_sizes(launch: Launch, ranks: Iterable[str] = ()) -> Mapping[str, int]:
    """The blocks by whose sizes statements are ordered, whatever a config's. Rows are handed on where heads are wide,
    and chunks are short where systems over their tokens are solved; `ranks`: dims that make more rows of a token."""
    more = dict.fromkeys(ranks, 4) | ({ROW: 16} if ranks else {})
    ops = {n.op for n in launch.nodes()}
    if "saved" not in ops:
        return defaultdict(lambda: 64, ({ROW: 32} if "unit_inverse" in ops else {}) | more)
    return defaultdict(lambda: 128, {ROW: 16} | dict.fromkeys(launch.split, 64) | more)


def fitted_sizes(launch: Launch, ranks: Iterable[str] = ()) -> Mapping[str, int]:
    """Those of the orders that estimates of registers were fitted to."""
    more = dict.fromkeys(ranks, 4) | ({ROW: 16} if ranks else {})
    if not any(n.op == "saved" for n in launch.nodes()):
        return defaultdict(lambda: 64, more)
    return defaultdict(lambda: 128, {ROW: 32} | dict.fromkeys(launch.split, 32) | more)


def numbers(dims: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[ROW if d in ROWS else d] for d in flat(dims) if d != PART)


@dataclass(frozen=True)
class Operand:
    """A side of a product, laid out for it: there from the first product that takes it so to the last. `dims`: its own
    axis and the summed one; `left`: is it the one whose rows are tokens, of which every warp has all?"""

    node: Node
    dims: tuple[str, ...]
    left: bool
    bits: float

    @property
    def args(self) -> tuple[Node, ...]:
        return ()


Tile = Node | Operand


@dataclass(frozen=True)
class Order:
    """Statements in order, each that makes or reads a matrix with the tiles that are alive then, and the most vectors
    that are alive at once."""

    statements: list[Node]
    alive: list[tuple[Node, tuple[Tile, ...]]]
    vectors: int

    def cost(self, size: Callable[[Tile], float]) -> tuple[float, float]:
        """Peak and sum of what is alive."""
        found = [sum(map(size, tiles)) for _, tiles in self.alive]
        return max(found, default=0.0), sum(found)


def schedule(roots: list[Node], held: set[Node], size: Callable[[Tile], float],
             inside: Callable[[Node], bool] = lambda n: False, kept: tuple[Node, ...] = (),
             within: Callable[[Node], float] = lambda n: 0.0,
             wide: Callable[[Node], int | None] = lambda n: None,
             operands: Callable[[Node], Iterable[Operand]] = lambda n: ()) -> Order:
    """Every statement below `roots`, ordered.

    Args:
        held: tiles that are there from the beginning (what the loop carries).
        size: of a node's tile. inside: does a node stand in the expression that uses it?
        kept: roots that stay alive to the end; the others are stored as soon as they are formed.
        within: what a statement needs while it runs, beside what it takes and makes.
        wide: the columns of the product that a statement forms, if its rows are tokens; 0: they are tokens too.
        operands: of the products that a statement forms."""
    order, needs = [], dict[Node, set[Node]]()
    for n in postorder(roots):
        needs[n] = set().union(*(needs[a] if _passes(a, inside) and a not in held else {a} for a in n.args))
        if not _passes(n, inside):
            order.append(n)
    big = [n for n in order if n.args and n not in held and (size(n) >= 1 or any(size(a) >= 1 for a in needs[n]))]
    problem = _Problem(big, needs, held, size, {source(k) for k in kept}, within, operands)
    path = problem.wide_last(problem.best(), [wide(n) for n in big])
    made = [big[i] for i in path]
    statements = _with_the_rest(made, order, needs, held, roots)
    return Order(statements, list(zip(made, problem.alive(path), strict=True)), _vectors(statements, needs))


def _vectors(statements: list[Node], needs: dict[Node, set[Node]]) -> int:
    """The most vectors that wait for a later statement."""
    last = {a: i for i, n in enumerate(statements) for a in needs[n]}
    change = [0] * (len(statements) + 1)
    for i, n in enumerate(statements):
        if len(n.dims) == 1:
            change[i] += 1
            change[last.get(n, i) + 1] -= 1
    return max(accumulate(change))


def _passes(n: Node, inside: Callable[[Node], bool]) -> bool:
    return n.op in (*ALIASES, "number", "size", "const") or (bool(n.args) and inside(n))


_Step = tuple[float, float]  # what a statement adds to the size of live tiles, and the most that it adds meanwhile


class _Problem:
    """Matrices as bits: what each needs, who uses it, how large it is."""

    def __init__(self, big: list[Node], needs: dict[Node, set[Node]], held: set[Node], size: Callable[[Tile], float],
                 kept: set[Node], within: Callable[[Node], float], operands: Callable[[Node], Iterable[Operand]]):
        rank = {n: i for i, n in enumerate(needs)}
        self.count = len(big)
        at = {n: i for i, n in enumerate(big)}
        tiles: dict[Tile, int] = {}  # loads and held tiles, behind the statements
        reach: dict[Node, set[Node]] = {}

        def matrices(n: Node) -> set[Node]:
            """The matrices that a statement needs, also by way of what is none."""
            if n not in reach:
                reach[n] = set()
                for a in needs[n]:
                    whole = a in at or ((a in held or not a.args) and size(a) >= 1)
                    reach[n] |= {a} if whole else matrices(a) if a.args and a not in held else set()
            return reach[n]
        self.needs = []
        for n in big:
            found = 0
            for a in sorted(matrices(n), key=rank.__getitem__):
                i = at[a] if a in at else tiles.setdefault(a, self.count + len(tiles))
                found |= 1 << i
            for operand in operands(n):
                found |= 1 << tiles.setdefault(operand, self.count + len(tiles))
            self.needs.append(found)
        self.tiles = [*big, *tiles]
        self.size, self.within = [size(n) for n in self.tiles], [within(n) for n in big]
        self.taken = [_bits(mask) for mask in self.needs]
        self.users = [0] * len(self.tiles)
        for i, tiles_of in enumerate(self.taken):
            for j in tiles_of:
                self.users[j] |= 1 << i
        self.computed = (1 << self.count) - 1
        self.needs_computed = [m & self.computed for m in self.needs]
        self.forever = sum(1 << at[k] for k in kept if k in at)
        self.mortal = [[j for j in tiles_of if not self.forever >> j & 1] for tiles_of in self.taken]
        self.first = sum(1 << i for n, i in tiles.items() if n in held)
        self.matter = [0] * self.count  # what statement i changes depends on which of these are done
        for i, tiles_of in enumerate(self.taken):
            for j in tiles_of:
                self.matter[i] |= self.users[j]
        self.steps: list[dict[int, _Step]] = [{} for _ in big]  # `step` of each, by what matters

    def best(self) -> tuple[int, ...]:
        """The best order found. Launches of several plans form the same again, and so do those of the same spec."""
        key = tuple(self.needs), tuple(self.size), tuple(self.within), self.forever, self.first
        if key not in _FOUND:
            if len(_FOUND) >= _MOST_FOUND:
                _FOUND.clear()
            _FOUND[key] = self.earlier(self.search())
        return _FOUND[key]

    def search(self) -> tuple[int, ...]:
        width = _WIDTH if self.count <= _WIDE else max(_WIDTH * _WIDE**2 // self.count**2, 8)
        return Beam(self.taken, self.size, self.within, _bits(self.forever), _bits(self.first)).best(width)

    def earlier(self, path: tuple[int, ...]) -> tuple[int, ...]:
        """The same with blocks of statements that end in what no other needs, as early as makes peak or sum less."""
        best = self._cost(path)
        for length in range(_BLOCK, 0, -1):
            for start in range(1, self.count - length + 1):
                block = path[start:start + length]
                if self.users[block[-1]]:
                    continue
                needs = 0
                for i in block:
                    needs |= self.needs_computed[i]
                first = next((p for p in range(start, 0, -1) if needs >> path[p - 1] & 1), 0)
                for at in range(first, start):
                    moved = (*path[:at], *block, *path[at:start], *path[start + length:])
                    if (cost := self._cost(moved, best[0])) < best:
                        path, best = moved, cost
                        break
        return path

    def wide_last(self, path: tuple[int, ...], wide: list[int | None]) -> tuple[int, ...]:
        """The same with narrower products before the last of the widest, where they do not need it.

        Triton gives all products of a loop that have few rows one layout, by the last: if that is wide the warps divide
        the columns of each among them, else every warp forms all of all (8 warps, 16 rows: 8 times the registers)."""
        most = max((w for w in wide if w), default=0)
        at = max((k for k, i in enumerate(path) if most and wide[i] == most), default=len(path))
        behind, first = list(path[at + 1:]), list[int]()
        for i in path[at + 1:]:
            width = wide[i]
            chain = self._chain(i, behind) if width is not None and width < most else []
            if not any(self.needs_computed[j] >> path[at] & 1 for j in chain):
                first += [j for j in chain if j not in first]
        path = (*path[:at], *first, *path[at:at + 1], *(i for i in behind if i not in first))
        return self._behind(path, [i for i in behind if wide[i] is not None and i not in first],
                            [i for i in path[:at] if wide[i] == most])

    def _behind(self, path: tuple[int, ...], narrow: list[int], widest: list[int]) -> tuple[int, ...]:
        """The same with the last of `widest` on which none of `narrow` depends behind them, and what depends on it."""
        for w in reversed(widest if narrow else []):
            depend, mask = list[int](), 1 << w
            for i in path[path.index(w):path.index(narrow[-1]) + 1]:
                if i == w or self.needs_computed[i] & mask:
                    depend, mask = [*depend, i], mask | 1 << i
            if not mask & sum(1 << i for i in narrow):
                last = path.index(narrow[-1]) + 1
                return (*(i for i in path[:last] if i not in depend), *depend, *path[last:])
        return path

    def _chain(self, i: int, among: list[int]) -> list[int]:
        """A statement behind those of `among` that it needs."""
        wanted, out = {i}, list[int]()
        for j in reversed(among):
            if j in wanted:
                out.append(j)
                wanted |= set(_bits(self.needs_computed[j]))
        return out[::-1]

    def live(self) -> float:
        """The size of the tiles that are there from the beginning."""
        return sum(self.size[i] for i in _bits(self.first))

    def _cost(self, path: tuple[int, ...], limit: float = math.inf) -> tuple[float, float]:
        """Peak and sum of live sizes; above the limit the peak is not sought further."""
        size = peak = self.live()
        done, area = 0, 0.0
        for i in path:
            more, most = self.steps[i].get(done & self.matter[i]) or self.step(i, done)
            if size + most > peak and (peak := size + most) > limit:
                return peak, math.inf
            size, done = size + more, done | 1 << i
            area += size
        return peak, area

    def alive(self, path: tuple[int, ...]) -> list[tuple[Tile, ...]]:
        """The tiles that are there while each statement runs; one that is written over another counts once."""
        done, alive, out = 0, self.first, []
        for i in path:
            dying = self._dying(i, done)
            # a tile may be written over one that dies, as large or larger
            over = next((1 << j for j in dying if self.size[j] >= self.size[i]), 0)
            done, alive = done | 1 << i, alive | self.needs[i] | 1 << i
            out.append(tuple(self.tiles[j] for j in _bits(alive & ~over)))
            alive &= ~sum(1 << j for j in (dying if self._stays(i) else [*dying, i]))
        return out

    def _dying(self, i: int, done: int) -> list[int]:
        users, left = self.users, ~(done | 1 << i)
        return [j for j in self.mortal[i] if not users[j] & left]

    def _stays(self, i: int) -> bool:
        """Is what it makes there behind statement i?"""
        return bool(self.users[i] or self.forever >> i & 1)

    def step(self, i: int, done: int) -> _Step:
        """What statement i changes where these are done."""
        made = self.size[i]
        absent = [j for j in self.taken[i] if j >= self.count and not (self.users[j] & done or self.first >> j & 1)]
        loads = sum(self.size[j] for j in absent)
        more = loads + made - sum(self.size[j] for j in self._dying(i, done))
        most, more = max(more, loads + self.within[i]), more if self._stays(i) else more - made
        found = self.steps[i][done & self.matter[i]] = more, most
        return found


def _bits(mask: int) -> list[int]:
    out = []
    while mask:
        low = mask & -mask
        out.append(low.bit_length() - 1)
        mask ^= low
    return out


def _with_the_rest(big: list[Node], order: list[Node], needs: dict[Node, set[Node]], held: set[Node],
                   roots: list[Node]) -> list[Node]:
    """Everything else just before its first use."""
    rank, done, out = {n: i for i, n in enumerate(order)}, set(held), list[Node]()

    def place(n: Node) -> None:
        if n in done or n not in rank:
            return
        done.add(n)
        for a in sorted(needs[n] & set(rank), key=rank.__getitem__):
            place(a)
        out.append(n)
    for n in [*big, *(source(r) for r in roots)]:
        for a in [n] if n in rank else sorted(needs[n] & set(rank), key=rank.__getitem__):
            place(a)
    return out
