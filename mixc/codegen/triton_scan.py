"""Scans as Triton: `tl.associative_scan` over the rows of a tile, and what came in put in afterwards.

    h      = after_affine(a, b, h0, REVERSE)            h of every row
    before = before_affine(a, b, h0, REVERSE)           h of the row before, without a shift
    d      = c + before_affine(f, f * c, d0, True)      the adjoint: its factor, f of the row behind, is f's own
                                                        once the recurrence is written for f * d

A row's update and that of the rows before it compose to one update; `before` carries, besides the update of a
span of rows, that of the span without its last row, which composes likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mixc.ir.blocks import PART, parts
from mixc.ir.brackets import filled
from mixc.ir.node import Node, is_number
from mixc.ir.scans import COMBINES

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles

_NAMES = {"affine": "affine", "max+": "max_plus", "min+": "min_plus", "maxx": "max_times", "minx": "min_times",
          "log+": "log_plus"}


def is_factor_behind(node: Node) -> bool:
    """The adjoint's factor: never a tile of its own."""
    return node.op == "previous" and is_number(node.args[1], 1.0)


def scan_code(tiles: Tiles, node: Node) -> str:
    a, b, start = node.args
    order = tiles.order(node)
    if is_factor_behind(a):
        f, c = tiles.whole(a.args[0], order), tiles.whole(b, order)
        rest = f"before_affine({f}, {filled('{0} * {1}', [f, c])}, {tiles.ref(start, order)}, {node.attr('reverse')})"
        return filled("{0} + {1}", [c, rest])
    if node in tiles.before:  # one scan for both: a row is the update of the row before
        h, x, y = (tiles.ref(n, order) for n in (tiles.before[node], a, b))
        return (_JOIN if _only_joins(node) else _UPDATE)[node.attr("combine")].format(a=_one(x), h=h, b=y)
    return _call(tiles, "after", node, order)


def rows_before(nodes: list[Node]) -> dict[Node, Node]:
    """Scans of which the row before every row is needed too: where that is found without a shift."""
    return {n.args[0]: n for n in nodes if _is_before(n)}


def _is_before(n: Node) -> bool:
    x = n.args[0] if n.op == "previous" else n
    return n is not x and x.op == "scan" and x.args[2] is n.args[1] and x.attr("reverse") == n.attr("reverse")


def _only_joins(scan: Node) -> bool:
    """Does its factor leave every row as it is?"""
    return is_number(scan.args[0], COMBINES[scan.attr("combine")].keep)


def _one(code: str) -> str:
    return f"({code})" if " " in code else code


def previous_code(tiles: Tiles, node: Node) -> str:
    x, edge = node.args
    order = tiles.order(node)
    if _is_before(node):
        return _call(tiles, "before", x, order)
    rows = tiles.whole(x, order)
    return f"row_before({rows}, {tiles.ref(edge, order)}, {node.attr('reverse')})"


def pick_code(tiles: Tiles, node: Node) -> str:
    """One row of a tile."""
    x = node.args[0]
    order = tiles.order(x)
    row = "rows == C - 1" if node.attr("i") == -1 else f"rows == {node.attr('i')}"
    mask = f"({row})[{', '.join([':', *['None'] * (len(order) - 1)])}]" if len(order) > 1 else row
    return f"tl.sum(tl.where({mask}, {tiles.ref(x, order)}, 0.0), 0)"


def _call(tiles: Tiles, which: str, scan: Node, order: tuple[str, ...]) -> str:
    a, b, start = scan.args
    moved = [] if _only_joins(scan) else [tiles.whole(a, order)]
    parts = [*moved, tiles.whole(b, order), tiles.ref(start, order), str(scan.attr("reverse"))]
    return f"{which}_{_NAMES[scan.attr('combine')]}{'' if moved else '_joined'}({', '.join(parts)})"


# ---------------------------------------------------------------- states that drive each other
def component_name(tiles: Tiles, node: Node) -> str:
    """The tile of one component of a block (all of a block are formed by one statement)."""
    block = node.args[0] if node.op == "pick" else node
    if block not in tiles.names:
        A, b, start = parts(block)
        order = tuple(d for d in tiles.order(block) if d != PART)
        rows = [tiles.whole(x, order) for x in (*(a for row in A for a in row), *b)]
        states = [tiles.ref(x, order) for x in start]
        names = [tiles.fresh(f"{tiles.called(x)}_rows") for x in start]
        call = f"after_block{len(b)}({', '.join([*rows, *states, str(block.attr('reverse'))])})"
        tiles.emit(block, f"{', '.join(names)} = {call}")
        tiles.names[block] = ", ".join(names)
    if node is block:
        return tiles.names[block]
    tiles.components[node] = tiles.names[block].split(", ")[node.attr("i")]
    return tiles.components[node]


def _block_functions(n: int) -> str:
    def entries(x: str) -> list[str]:
        return [f"{x}{i}{j}" for i in range(n) for j in range(n)]

    def vector(x: str) -> list[str]:
        return [f"{x}{i}" for i in range(n)]

    def times(a: str, i: int, x: Callable[[int], str]) -> str:
        return " + ".join(f"{a}{i}{k} * {x(k)}" for k in range(n))
    joined = [times("c", i, lambda k, j=j: f"a{k}{j}") for i in range(n) for j in range(n)]  # type: ignore[misc]
    joined += [f"{times('c', i, lambda k: f'b{k}')} + d{i}" for i in range(n)]
    left, right = [*entries("a"), *vector("b")], [*entries("c"), *vector("d")]
    found = [f"{times('a', i, lambda k: f'h{k}')} + b{i}" for i in range(n)]
    return f'''

@triton.jit
def block{n}_rows({", ".join([*left, *right])}):
    """Rows (c, d) after rows (a, b): matrices of {n} x {n} entries, and what they add."""
    return ({", ".join(joined)})


@triton.jit
def after_block{n}({", ".join([*left, *vector("h")])}, REVERSE: tl.constexpr):
    """All components after every row, h coming in."""
    {", ".join(left)} = tl.associative_scan(({", ".join(left)}), 0, block{n}_rows, reverse=REVERSE)
    return {", ".join(found)}
'''


_UPDATE = {"affine": "{a} * {h} + {b}", "max+": "tl.maximum({a} + {h}, {b})", "min+": "tl.minimum({a} + {h}, {b})",
           "maxx": "tl.maximum({a} * {h}, {b})", "minx": "tl.minimum({a} * {h}, {b})",
           "log+": "logaddexp({a} + {h}, {b})"}
_JOIN = {c: code.replace("{a} + ", "").replace("{a} * ", "") for c, code in _UPDATE.items()}  # a leaves h as it is


def scan_prelude(text: str) -> str:
    """The functions that a module's text calls."""
    found = [_functions(c) for c in COMBINES if f"_{_NAMES[c]}(" in text]
    found += [_joined_functions(c) for c in COMBINES if f"_{_NAMES[c]}_joined(" in text]
    found += [_block_functions(n) for n in (2, 3) if f"after_block{n}(" in text]
    return "".join([*found, *([_ROW_BEFORE] if "row_before(" in text else [])])


_ROW_BEFORE = '''

@triton.jit
def two_rows(x1, p1, one1, x2, p2, one2):
    """The last row of a span, the one before it, and whether the span is a single row."""
    return x2, tl.where(one2 > 0, x1, p2), one2 * 0.0


@triton.jit
def row_before(x, edge, REVERSE: tl.constexpr):
    """x of the row before, and edge where there is none."""
    first = tl.zeros(x.shape, tl.float32) + edge
    _, before, _ = tl.associative_scan((x.to(tl.float32), first, tl.full(x.shape, 1.0, tl.float32)), 0, two_rows,
                                       reverse=REVERSE)
    return before
'''


def _nothing(combine: str) -> str:
    return "0.0" if combine == "affine" else f"float('{COMBINES[combine].nothing}')"


def _joined_functions(combine: str) -> str:
    """Without a: it leaves what was there as it is."""
    name, join = _NAMES[combine], _JOIN[combine].format
    return f'''

@triton.jit
def {name}_joined(b1, b2):
    return {join(h="b1", b="b2")}


@triton.jit
def {name}_joined_before(b1, q1, b2, q2):
    """The same, and q without the last row."""
    return {join(h="b1", b="b2")}, {join(h="b1", b="q2")}


@triton.jit
def after_{name}_joined(b, h, REVERSE: tl.constexpr):
    """The state after every row, h coming in."""
    B = tl.associative_scan(b, 0, {name}_joined, reverse=REVERSE)
    return {join(h="h", b="B")}


@triton.jit
def before_{name}_joined(b, h, REVERSE: tl.constexpr):
    """The state before every row."""
    nothing = tl.full(b.shape, {_nothing(combine)}, tl.float32)
    _, B = tl.associative_scan((b, nothing), 0, {name}_joined_before, reverse=REVERSE)
    return {join(h="h", b="B")}
'''


def _functions(combine: str) -> str:
    c, name = COMBINES[combine], _NAMES[combine]
    nothing = _nothing(combine)

    def then(b: str) -> str:
        """b, which the later row's update is applied to (nothing times 0 is nothing)."""
        code = _UPDATE[combine].format(a="a2", h=b, b="b2")
        return f"tl.where({b} == {nothing}, b2, {code})" if combine in ("maxx", "minx") else code
    joined = "a1 * a2" if c.times else "a1 + a2"
    return f'''

@triton.jit
def {name}_rows(a1, b1, a2, b2):
    """Rows (a2, b2) after rows (a1, b1)."""
    return {joined}, {then("b1")}


@triton.jit
def {name}_rows_before(a1, b1, p1, q1, a2, b2, p2, q2):
    """The same, and (p, q) without the last row."""
    return {joined}, {then("b1")}, {joined.replace("a2", "p2")}, {then("b1").replace("a2", "p2").replace("b2", "q2")}


@triton.jit
def after_{name}(a, b, h, REVERSE: tl.constexpr):
    """The state after every row, h coming in."""
    A, B = tl.associative_scan((a, b), 0, {name}_rows, reverse=REVERSE)
    return {_UPDATE[combine].format(a="A", h="h", b="B")}


@triton.jit
def before_{name}(a, b, h, REVERSE: tl.constexpr):
    """The state before every row."""
    keep, nothing = tl.full(a.shape, {c.keep}, tl.float32), tl.full(b.shape, {nothing}, tl.float32)
    _, _, A, B = tl.associative_scan((a, b, keep, nothing), 0, {name}_rows_before, reverse=REVERSE)
    return {_UPDATE[combine].format(a="A", h="h", b="B")}
'''
