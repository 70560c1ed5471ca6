"""Products of matrices in kernels: which contractions are one, what their operands are rounded to, what is kept so, and
what is formed before it is multiplied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from mixc.codegen.axes import Axes
from mixc.ir.launch import PRODUCTS, ROWS, feature_dims, sides
from mixc.ir.node import ALIASES, COL, ROW, Node, depends, flat, postorder, source
from mixc.ir.ops import OPS


def dot_axes(node: Node, axes: Axes, rank: Callable[[str], int]) -> tuple[str, str, str] | None:
    """(a's own axis, the summed one, b's own) where a contraction is a product of two matrices; else None."""
    found = tuple(axes.joint(sorted(side, key=rank)) for side in sides(node) or ())
    return found if found and None not in found else None  # type: ignore[return-value]


def sharp(node: Node) -> bool:
    """A product of ways from row to row: what is rounded in one is wrong for all that passes it."""
    return all(not feature_dims(a) for a in node.args)


def fine_products(nodes: list[Node]) -> set[Node]:
    """Of a launch that is `fine` the products that states and outs are formed by, and those of the cotangent of an out
    with what the out was formed of: they meet in a small difference.  What is summed over the tokens that read is not
    theirs."""
    linear = depends(nodes, [n for n in nodes if n.op == "cot"])

    def meets(n: Node) -> bool:
        cotangents = [a for a in n.args if a in linear]
        return not cotangents or (ROW in n.dims and len(cotangents) == 1 and ROW in cotangents[0].dims)
    return {n for n in nodes if n.op in PRODUCTS and meets(n)}


def turned_products(nodes: list[Node]) -> set[Node]:
    """The products of a backward by which the two sides of pairs of rows that turn get their cotangents: what a phase gets
    is the difference of both, row by row, and small where rows see few others."""
    turns = [n for n in nodes if n.op in ("cos", "sin") and ROW in n.dims]
    if not turns:
        return set()
    turned = depends(nodes, turns)
    linear = depends(nodes, [n for n in nodes if n.op == "cot"])

    def of_pairs(n: Node) -> bool:
        a, b = n.args[:2]
        return any({ROW, COL} <= {*x.dims} and x in linear and y in turned and y not in linear for x, y in ((a, b), (b, a)))
    return {n for n in nodes if n.op in PRODUCTS and of_pairs(n)}


def lasting(nodes: list[Node], carried: list[tuple[Node, Node]]) -> set[Node]:
    """The products by which what is carried, as it came in, reaches what is carried on, if only forgetting ends what was
    rounded there: it adds up over as many tokens as the state remembers."""
    if not any(n.op == "unit_inverse" and n.attr("lasts") for n in nodes):
        return set()
    leaves, after = zip(*carried, strict=True) if carried else ((), ())
    return {n for n in depends(nodes, leaves) & {*postorder(after)} if n.op in PRODUCTS}


def operand_of(nodes: Iterable[Node]) -> str:
    """The dtype that products round their operands to.  Where no range proves that a step keeps errors from growing
    those of half operands would add up: these products are formed in TF32."""
    return "tl.float32" if any(n.op == "unit_inverse" and n.attr("grows") for n in nodes) else "OPERAND"


def entrywise(node: Node) -> bool:
    return bool(node.args) and (OPS[node.op].elementwise or node.op == "mask")


def axes_of(node: Node) -> set[str]:
    """The axes that the code of a tile has: what is repeated along an axis entry by entry is left to broadcasting."""
    if node.op == "rename":
        to = dict(node.attr("to"))
        return {to.get(d, d) for d in axes_of(node.args[0])}
    if node.op == "expand":
        return axes_of(node.args[0])
    if node.op == "sum":
        return axes_of(node.args[0]) - set(flat(node.attr("over")))
    if not entrywise(node):
        return set(flat(node.dims))
    found: set[str] = set()
    for a in node.args:
        found |= axes_of(a) if len(found) < len(flat(node.dims)) else set()
    return found


def added(nodes: list[Node], uses: Counter[Node], is_dot: Callable[[Node], Any]) -> dict[Node, Node]:
    """Sums that a product adds to its own, by the product: `dot(a, b, ..., x)` for x + a @ b."""
    found: dict[Node, Node] = {}
    for n in nodes:
        if n.op == "add":
            for c, x in (n.args[::-1], n.args):
                once = uses[c] == 1
                while c.op == "rename":
                    c = c.args[0]
                    once = once and uses[c] == 1
                if is_dot(c) and once and set(x.dims) == set(n.dims) and x.op not in ("expand", "number"):
                    found[c] = n
                    break
    return found


def stacked(added: dict[Node, Node], uses: Counter[Node], dot_axes: Callable[[Node], tuple[str, str, str] | None],
            operand_for: Callable[[Node], str]) -> set[Node]:
    """Sums of a tile without rows and a product over tokens to which just such another product is added: both are formed
    as one, their rows on top of each other.

    Triton lays a product that another is added to out along the rows of the tile alone: of one with fewer rows than that
    takes (64 for 8 warps) each half of the warps would hold all, and it would change its layout on the way."""
    products = {n: c for c, n in added.items()}

    def over_tokens(n: Node) -> tuple[str, str] | None:
        """The axis that its product sums over and the dtype of its operands."""
        axes = dot_axes(products[n]) if n in products else None
        if axes is None or axes[1] not in ROWS or {axes[0], axes[2]} & {*ROWS}:
            return None
        return axes[1], operand_for(products[n])
    found = set[Node]()
    for n in products:
        for x in n.args:
            if x in products and uses[x] == 1 and n not in found and over_tokens(n) is not None and over_tokens(n) == over_tokens(x):
                found.add(x)
    return found


def only_operands(nodes: list[Node], roots: list[Node], fine: set[Node], is_dot: Callable[[Node], Any]) -> set[Node]:
    """Matrices that nothing but products use, not those that are `fine`: kept in the dtype of operands, half the
    registers."""
    others = {source(a) for n in nodes if (not is_dot(n) or sharp(n) or n in fine) and n.op != "rename" for a in n.args}
    others |= {source(r) for r in roots}
    used = {source(a) for n in nodes if is_dot(n) for a in n.args}
    return {n for n in used - others if n.args and len(n.dims) > 1}


def worked_out(node: Node) -> bool:
    """Is a matrix formed, entry by entry, of several that are loaded, or of one by more than scaling it?"""
    loads, ops = of_loads(node)
    return bool(loads and ops - {"mul", "neg", "live"}) or len(loads) > 1


def scaled(node: Node) -> bool:
    """Is a matrix formed, entry by entry, of what is loaded, and not only turned or cut off?"""
    loads, ops = of_loads(node)
    return bool(loads and ops - {"neg", "live"})


def of_loads(node: Node) -> tuple[set[Node], set[str]]:
    """The matrices that one is formed of, entry by entry, and by what; none where one is not loaded but formed."""
    loads, ops, stack = set[Node](), set[str](), [node]
    while stack:
        n = stack.pop()
        if len(n.dims) < 2:
            continue
        if n.args and n.op not in ALIASES and not entrywise(n):
            return set(), set()
        loads |= set() if n.args else {n}
        ops |= {n.op} - {*ALIASES} if n.args else set()
        stack += n.args
    return loads, ops
