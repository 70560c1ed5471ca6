"""Node by node to Triton: how a value of named dims is written as a tile expression.

A tile has at most two axes (`axes`), or three with the rows (a scan of matrices).  `Tiles` names every value, aligns
operands by name (`x[:, None]`, `tl.trans(x)`), turns contractions into `dot` or into a product and a sum, and keeps the
padding of a block (dims are padded to powers of two) out of every sum.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from keyword import kwlist

from mixc.codegen import operands as products
from mixc.codegen.axes import Axes, called
from mixc.codegen.lines import literal
from mixc.codegen.notation import is_decay
from mixc.codegen.operands import added, axes_of, dot_axes, entrywise, only_operands, operand_of, sharp, worked_out
from mixc.codegen.padding import zero_padded
from mixc.codegen.refuse import entries, refuse
from mixc.codegen.schedule import Operand
from mixc.codegen.tile_rules import RULES
from mixc.codegen.triton_scan import component_name, is_factor_behind, rows_before
from mixc.codegen.value_names import CHANGED, ValueNames
from mixc.ir.blocks import PART
from mixc.ir.brackets import atom, filled
from mixc.ir.launch import ROWS, feature_dims
from mixc.ir.node import ALIASES, COL, ROW, Node, bare, flat, postorder, source
from mixc.ir.ops import OPS
from mixc.ir.program import free


class Tiles:
    """Writes values into `lines`; `names` maps a node to the tile that holds it.

    Args:
        emit: called with (node, statement) to put a line where the node belongs.
        leaf: the name of a leaf's tile (after loading it).
        axes: which dims make more rows.
        fine: products that meet in a small difference, or whose rounding lasts.
        called: what a value is called, before a number behind it tells equals apart.
    """

    def __init__(self, emit: Callable[[Node, str], None], leaf: Callable[[Node], str], taken: Iterable[str],
                 nodes: list[Node], roots: list[Node], header: tuple[str, ...], axes: Axes, fine: set[Node], called: ValueNames):
        self.emit, self.leaf, self.axes, self.called = emit, leaf, axes, called
        self.block, self.shape, self.aligned = axes.block, axes.shape, axes.aligned
        self.rank = {d: i for i, d in enumerate((ROW, COL, "_u", *header))}
        def place(d: str) -> int:
            return self.rank.get(d, -1)
        self.dot_axes = cache(lambda node: dot_axes(node, axes, place))
        self.grouped = cache(self._grouped)
        self._of = cache(lambda dims: axes.of(tuple(sorted(dims, key=place))))
        self.uses = Counter(a for n in nodes for a in n.args)
        self.uses.update(roots)
        self.user = {a: n for n in nodes for a in n.args if self.uses[a] == 1}
        self.rows = True  # are there rows, so that a tile has few other axes?
        self.through: Callable[[str, Node, tuple[str, str], str], str] | None = None  # how rows are multiplied by a param
        self.added, self.before = added(nodes, self.uses, self.dot_axes), rows_before(nodes)
        self.joined = set(self.added.values())  # and the sums, which stand in the product's statement
        self.reduced = {n.args[0] for n in nodes if n.op == "sum"}  # products that are summed stand in the sum
        self.crossed = {n.args[0] for n in nodes if n.op == "crossing" and self._over_rows(n.args[0])}
        self.operand, self.fine = operand_of(nodes), fine
        self.stacked = products.stacked(self.added, self.uses, self.dot_axes, self.operand_for)
        self.operands = only_operands(nodes, roots, self.fine, self.dot_axes) if self.operand == "OPERAND" else set()
        self.names: dict[Node, str] = {}
        self.components: dict[Node, str] = {}  # of blocks, which are named as one
        self.unread = set[Node]()  # of these: those whose readers have words of their own for it
        self.spans = Counter((n.args[-1], n.attr("reach")) for n in nodes if n.op in ("span_contract", "span_crossing"))
        self.spanned: dict[tuple[Node, Node, str], list[Node]] = defaultdict(list)  # by matrix, logs of decays and reach
        for n in nodes:
            if n.op == "span_contract":
                for a in n.args[:2]:
                    self.spanned[a, n.args[2], n.attr("reach")].append(n)
        self.pairing = False  # are the operands of two such products being formed?
        self.gains: dict[tuple[Node, Node], str] = {}  # by two such products: what one gains less what the other gave
        self.factors: dict[tuple[Node, str], str] = {}  # by logs of decays and reach: what `cut_factors` gives
        self.summed: set[str] = set()  # which running sums of vectors there were
        self.taken = {*taken, *kwlist}  # what `not` forms is no `not`
        self.raw: set[Node] = set()  # loaded tiles, still in the dtype of their tensor
        self.sides = {source(a) for n in nodes if self.dot_axes(n) for a in n.args}  # of products
        self.lefts = {source(left) for n in nodes if (left := self.rows_of_tokens(n))}

    # ------------------------------------------------------------ names
    def fresh(self, base: str) -> str:
        return free(re.sub(r"\W", "_", base), self.taken, "")

    def fresh_for(self, node: Node) -> str:
        """A name for a value; the tensor's it is stored in, of which no other tile may have it."""
        name = self.called(node)
        if node in self.called.wanted and name not in self.names.values():
            return name
        return self.fresh(f"{name}_{CHANGED[node.op]}" if name in self.taken and node.op in CHANGED else name)

    def index(self, dim: str) -> str:
        return "rows" if dim in ROWS else f"in_{self.axes.size_of(dim)}"

    def inside(self, dim: str) -> str:
        return f"has_{self.axes.size_of(dim)}"

    def _over_rows(self, node: Node) -> bool:
        """Is it the sum, over what makes them more, of the rows of tokens?"""
        return node.op == "sum" and self.uses[node] == 1 and set(node.attr("over")) <= self.axes.ranks and (
            len(self.order(node.args[0])) == 2)

    def of(self, dims: Iterable[str]) -> tuple[str, ...]:
        """The axes of a tile of these dims, whatever their order."""
        return self._of(tuple(dims))

    def order(self, node: Node) -> tuple[str, ...]:
        """The axes of a node's tile: rows first, then dims as in the header; a rename keeps its argument's."""
        if node.op == "rename":
            return called(self.order(node.args[0]), dict(node.attr("to")))
        return self.of(node.dims)

    # ------------------------------------------------------------ references
    def name(self, node: Node) -> str:
        """The tile of a node, its axes in the order of node.dims."""
        if node.op == "rename":
            return self.name(node.args[0])
        if node.op == "scan_block" or (node.op == "pick" and node.attr("dim") == PART):
            return component_name(self, node)
        if node not in self.names:
            many = len(self.order(node))
            if self.rows and (many > 3 or (many == 3 and ROW not in node.dims)):
                raise refuse(entries(map(self.axes.size_of, flat(node.dims))), node)
            if not node.args:
                self.names[node] = self.leaf(node)
            else:
                code = self.expression(node)
                if node in self.sides and worked_out(node):
                    code = f"formed({code})"
                if node in self.operands:
                    code = f"{atom(code)}.to(OPERAND)"
                if node not in self.names:  # or formed together with another
                    self.names[node] = self.fresh_for(node)
                    self.emit(node, f"{self.names[node]} = {code}")
        return self.names[node]

    def ref(self, node: Node, want: tuple[str, ...], cast: bool = True) -> str:
        """Code for the node's tile, to be broadcast in an expression over the dims `want`."""
        if node.op == "number":
            return literal(node.attr("value"))
        if node.op == "size":
            return node.attr("dim")
        if node.op == "expand" and set(node.dims) <= set(flat(want)):
            return self.ref(node.args[0], want, cast)
        if self._inline(node):
            return self.aligned(atom(self.expression(node)), self.order(node), want)
        return self.aligned(self._value(node, cast), self.order(node), want)

    def bare(self, node: Node, want: tuple[str, ...], cast: bool = True) -> str:
        """The same for where brackets are added as needed, or never are: as an argument of a call."""
        if not self._inline(node):
            return self.ref(node, want, cast)
        code = self.expression(node)
        return code if self.aligned("", self.order(node), want) == "" else self.aligned(atom(code), self.order(node), want)

    def whole(self, node: Node, order: tuple[str, ...]) -> str:
        """Code for a tile that has all axes of `order`, also those that the value is repeated along."""
        code = self.bare(node, order)
        return code if axes_of(node) == set(flat(order)) else filled(f"tl.zeros({self.shape(order)}, tl.float32) + {{0}}", [code])

    def _value(self, node: Node, cast: bool) -> str:
        name = self.name(node)
        return f"{name}.to(tl.float32)" if cast and bare(node) in self.raw else name

    def inlined(self, node: Node) -> bool:
        """Will the node stand inside the expression that uses it?"""
        return (node.op in ("rename", "expand", "number", "size") or self.absorbed(node) or is_factor_behind(node)
                or (bool(node.args) and self._inline(node)))

    def absorbed(self, node: Node) -> bool:
        """Is it never formed: a product that is added by the way, what a sum is taken of, rows of which the ones before
        are all that is read?"""
        return (node in self.added or node in self.stacked or node in self.crossed or (node in self.before and self.uses[node] == 1) or (
            node in self.reduced and self.uses[node] == 1 and OPS[node.op].elementwise))

    def _grouped(self, node: Node) -> bool:
        """Does the node belong to the statement that uses it: formed with it, entry by entry, or never?"""
        user = self.user.get(node)
        return self.absorbed(node) or (user is not None and entrywise(node) and (entrywise(user) or user.op == "sum"))

    def _inline(self, node: Node) -> bool:
        """Small expressions used once stand where they are used; large ones get a name, and what is written twice."""
        length, user = self._length(node), self.user.get(node)
        if length > 1 and user is not None and user.args[0] is node and user.op not in RULES:
            return length <= _longest(node) and (OPS[user.op].triton or "").count("{0}") < 2
        return length <= _longest(node)

    def _length(self, node: Node) -> float:
        """How many values the expression of a node names; inf: it has a name of its own."""
        if self._turned(node) or self._only_exponent(node):
            return 1  # also under another name of its dims, which has no text of its own
        if node in self.names or not OPS[node.op].elementwise or self.uses.get(node, 0) > 1 or (node.dims and is_decay(node)):
            return math.inf
        if len(node.dims) > 1 and not self.absorbed(node):
            user = self.user.get(node)
            if (user is None or not entrywise(user) or user.dims != node.dims or node in self.operands
                    or node in self.joined):
                return math.inf
        lengths = [(self._length(a) if a.args else 1, _longest(a)) for a in node.args]
        return sum(n if n <= most else 1 for n, most in lengths)

    def _only_exponent(self, node: Node) -> bool:
        """Is it the log of a decay that nothing else reads, of numbers?"""
        user = self.user.get(node)
        return (user is not None and user.op == "exp" and is_decay(user) and node not in self.names
                and node.op in ("cumsum", "segsum", "sum") and len(node.args[0].dims) == 1)

    def _turned(self, node: Node) -> bool:
        """Is it what has a name, with the other sign: written so wherever it is read?"""
        if node.op == "rename":
            return self._turned(node.args[0])
        if node.op != "neg" or node in self.names or node in self.operands or node in self.called.wanted or worked_out(node):
            return False
        if len(node.dims) > 1:
            return False  # a matrix is turned where it was: elsewhere it might cost registers
        return not node.args[0].args or math.isinf(self._length(node.args[0]))

    # ------------------------------------------------------------ expressions
    def expression(self, node: Node) -> str:
        if node.op == "rename":
            return self.expression(node.args[0])
        if node.op in RULES:
            return RULES[node.op](self, node)
        row = OPS[node.op]
        if row.triton is None:
            raise refuse(f"`{node.op}` has no Triton form yet", node)
        args = [self.bare(a, self.order(node)) for a in node.args]
        if node.op not in ("add", "sub", "mul", "div", "neg"):  # sizes are integers, which tl.log2 and its like do not take
            sized = [all(n.args or n.op == "size" for n in postorder([a])) for a in node.args]
            args = [f"{atom(code)} * 1.0" if whole else code for code, whole in zip(args, sized, strict=True)]
        return filled(row.triton, args)

    def rows_of_tokens(self, node: Node) -> Node | None:
        """The left side of a product of matrices, if its rows are tokens."""
        if not self.dot_axes(node):
            return None
        row = flat(self.order(node))[0]
        return next(a for a in node.args if row in a.dims) if row in ROWS else None

    def operands_in(self, node: Node) -> list[Operand]:
        """Of the products whose rows are tokens that a statement forms."""
        found = [x for a in node.args if a.op in ALIASES or self.grouped(a) for x in self.operands_in(a)]
        axes = self.dot_axes(node)
        if axes is None or self.rows_of_tokens(node) is None:
            return found
        bits, sides = 0.5 if self.operand_for(node) == "OPERAND" else 1.0, node.args
        if axes[0] != self.order(node)[0]:
            sides, axes = sides[::-1], axes[::-1]
        left, right = (source(a) if feature_dims(a) else a for a in sides)
        # beside what is not rounded to halves a left side in bf16 stays so: `fine_dot`
        return [*found, Operand(left, (ROW, axes[1]), True, bits if left.args else 0.5), Operand(right, axes[1:], False, bits)]

    def operand_for(self, node: Node) -> str:
        """The dtype that a product rounds its operands to."""
        return "tl.float32" if sharp(node) or node in self.fine else self.operand

    def cleaned(self, node: Node, order: tuple[str, ...], over: Iterable[str] | None = None) -> str:
        """The tile with the padding of its feature dims held at 0."""
        repeated = over is not None and not axes_of(node) >= set(over)
        code = self.whole(node, order) if repeated else self.bare(node, order)
        for d in feature_dims(node):
            if (over is None or {d, *flat([d])} & {*over}) and not zero_padded(node, d):
                code = f"tl.where({self.mask_of(d, order)}, {code}, 0.0)"
        return code

    def summed_code(self, code: str, axes: tuple[str, ...], summed: Iterable[str], fn: str = "tl.sum") -> str:
        """The tile summed over dims; where rows are more than tokens, perhaps over what makes them more alone."""
        summed = {*flat(summed)}

        def without(code: str, axes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
            for a in reversed(axes):
                if {*flat([a])} <= summed:
                    code, axes = f"{fn}({code}, {axes.index(a)})", tuple(x for x in axes if x != a)
            return code, axes
        code, axes = without(code, axes)
        if {*flat(axes)} & summed:
            code, axes = without(f"tl.reshape({code}, {self.shape(flat(axes))})", flat(axes))
        return self.aligned(code, axes, self.of(flat(axes)))

    def mask_of(self, dim: str, axes: tuple[str, ...]) -> str:
        return " & ".join(self.axes.along(self.inside(d), d, axes) for d in flat([dim]))


def _longest(node: Node) -> int:
    """Values in an expression that has no name of its own."""
    return 4 if len(node.dims) > 1 else 6
