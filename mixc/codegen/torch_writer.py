"""Writes the values of one stage after the other as lines of torch code.

Keeps who still reads what: a large value that nothing reads any more gives its buffer to the next one.
Renamed and repeated values are no new tensors: they are the old one under other axes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mixc.codegen.torch_contract import emit_add, emit_contract
from mixc.codegen.torch_ops import rule_of
from mixc.codegen.torch_scan import absorbs as absorbs_shifted
from mixc.codegen.torch_scan import emit_mul_before, shifted_operands
from mixc.codegen.torch_stages import ALIAS, Level, origin, small
from mixc.codegen.torch_values import Dims, Names, Scratch, Value, literal, size_of
from mixc.ir.node import Node, called
from mixc.ir.ranges import bounds


def in_order(dims: Dims, order: Dims) -> Dims:
    """Axes for a new value: time first, then features in `order`."""
    time = tuple(d for d in dims if d[0] == "_")
    features = [d for d in dims if d[0] != "_"]
    if not set(features) <= set(order) or time != dims[:len(time)]:
        return dims
    return (*time, *sorted(features, key=order.index))


class Writer:
    """
    Args:
        level: of every node. known: values that exist from the start.
        names: of everything in the function. buffered: large results go to scratch.
        order: dims from the outermost to the innermost, for axes that nothing else orders (others: as declared).
        instead: templates of ops, where they are not those of the table.
    """

    def __init__(self, level: dict[Node, Level], known: dict[Node, Value], names: Names, buffered: bool,
                 order: Dims = (), instead: Mapping[str, str] | None = None):
        self.order, self.instead = order, instead or {}
        self.level, self.values, self.names, self.buffered = level, dict(known), names, buffered
        self.scratch = Scratch()
        self.lines: list[str] = []
        self.indent = "    "
        self.uses: Counter[Node] = Counter()
        self.absorbed: set[Node] = set()
        self.masks: set[Node] = set()  # conditions that nothing but `where` reads
        self.fixed: dict[Node, str] = {}  # values with a buffer of their own: saved, or kept by the loop

    # ------------------------------------------------------------ before writing
    def plan(self, stages: Iterable[list[Node]], roots: Iterable[Node]) -> None:
        """Decides which values are absorbed by their only reader, and counts readers."""
        stages, roots = list(stages), list(roots)
        readers = Counter(origin(a) for nodes in stages for n in nodes if n.op not in ALIAS for a in n.args)
        readers.update(map(origin, roots))
        shifts = Counter(x for nodes in stages for n in nodes for x in shifted_operands(n))
        if self.buffered:
            self._find_masks([n for nodes in stages for n in nodes], roots)
        for nodes in stages:
            inside = {n for n in nodes if n not in self.fixed and (readers[n] == 1 or shifts[n] == readers[n])}
            for n in nodes:
                taken = self._absorbs(n, inside)
                self.absorbed.update(x for x in taken if not any(
                    y.op == "previous" and y in self.absorbed for y in x.args))
        for nodes in stages:
            for n in nodes:
                if n.op not in ALIAS and n not in self.absorbed:
                    self.uses.update(self.operands(n))
        self.uses.update(map(origin, roots))

    def _find_masks(self, nodes: list[Node], roots: list[Node]) -> None:
        asked = {n.args[0] for n in nodes if n.op == "where" and self.is_large(n.args[0].dims)
                 and set(n.args[0].dims) == set(n.dims)}
        other = {origin(a) for n in nodes for a in (n.args[1:] if n.op == "where" else n.args)} | set(map(origin, roots))
        self.masks = {n for n in nodes if n in asked - other and n.op in ("lt", "le", "eq", "ne")
                      and all(a.kind == "real" for a in n.args)}

    def _absorbs(self, n: Node, free: set[Node]) -> list[Node]:
        """The arguments of n that need no line of their own."""
        a = n.args
        shifted = absorbs_shifted(n, free)
        if shifted:
            return shifted
        if n.op in ("add", "sub"):
            whole = [x for x in reversed(a) if x in free and set(x.dims) == set(n.dims)]
            products = [x for x in whole if x.op == "contract" and (n.op == "add" or x is a[1])
                        and set(a[0].dims) == set(a[1].dims)]
            muls = [x for x in whole if x.op == "mul" and n.op == "add" and not small(x)
                    and not any(self.is_float(y) for y in x.args)]
            return products[:1] or muls[:1]
        if n.op == "mul" and any(map(self.is_float, a)):
            core = a[1] if self.is_float(a[0]) else a[0]
            product = core.op == "contract" or (core.op in ("add", "sub") and any(
                x in self.absorbed and x.op == "contract" for x in core.args))
            return [core] if core in free and product else []
        if n.op == "exp" and a[0] in free and a[0].op == "cumsum" and len(a[0].args[0].dims) == 1:
            return [a[0]]
        if n.op == "exp" and a[0] in free and a[0].op == "mul" and self.is_large(n.dims) and bounds(a[0]).nonpositive \
                and min(len(x.dims) for x in a[0].args) < len(n.dims) and not any(map(self.is_float, a[0].args)):
            return [a[0]]
        if n.op == "sum" and a[0] in free and a[0].op == "mul" and not any(map(self.is_float, a[0].args)):
            return [a[0]] if any(set(x.dims) == set(a[0].dims) for x in a[0].args) else []
        return []

    def is_float(self, n: Node) -> bool:
        return not n.dims and self.level[n] == Level.NUMBER

    def operands(self, n: Node) -> list[Node]:
        """The tensors that the line of n reads."""
        return [y for a in n.args for y in (self.operands(a) if a in self.absorbed else [origin(a)])]

    # ------------------------------------------------------------ operands
    def value(self, n: Node) -> Value:
        """Its tensor; axes along which it only repeats may be missing."""
        if n in self.values:
            return self.values[n]
        if n.op == "number":
            return Value(literal(n.attr("value")), (), scalar=True)
        assert n.op in ALIAS, n
        v = self.value(n.args[0])
        return replace(v, axes=called(n, v.axes))

    def sorted(self, dims: Dims) -> Dims:
        return in_order(dims, self.order)

    def whole(self, n: Node) -> Value:
        """Its tensor with all its axes, and M entries."""
        v = self.value(n)
        if set(v.axes) == set(n.dims) and not v.scalar and self.level[n] != Level.NUMBER:
            return v
        return Value(self.full(n, n.dims), n.dims)

    def full(self, n: Node, want: Dims) -> str:
        """Code for the value with the axes `want`, all M entries of it."""
        v = self.value(n)
        text = self.over(v, want)
        if set(v.axes) == set(want) and self.level[n] != Level.NUMBER:
            return text
        return f"{text}.expand({', '.join(['M', *(size_of(d) for d in want)])})"

    def number(self, text: str) -> str:
        return f"number({text}, dtype, device)"

    # ------------------------------------------------------------ results
    def is_large(self, axes: Dims) -> bool:
        return self.buffered and len(axes) >= 2

    def room(self, n: Node, axes: Dims, over: bool = True, operands: Iterable[Node] | None = None) -> str:
        """A buffer for n: its own, that of an operand which dies here (if `over`), or a free one."""
        if n in self.fixed and set(axes) == set(n.dims):
            return Value(self.fixed[n], n.dims).over(axes)
        mine = Counter(self.operands(n))
        for a in map(origin, operands) if operands is not None else list(mine) if over else []:
            v = self.values.get(a)
            if operands is not None and mine[a] != 1:
                continue  # also a factor of the product that is added to it
            if v and v.scratch and len(v.axes) == len(axes) and self.uses[a] == mine[a] and self._in_place(n, a, axes):
                self.values[a] = Value(v.text, v.axes)  # the buffer is no longer this value's
                return v.scratch
        return self.scratch.take(axes)

    def _in_place(self, n: Node, a: Node, axes: Dims) -> bool:
        """May n be written over a: is a read under one name only, entry by entry?"""
        found = {self.value(x).axes for x in self._readings(n) if origin(x) is a}
        return found == {axes}

    def _readings(self, n: Node) -> list[Node]:
        return [y for x in n.args for y in (self._readings(x) if x in self.absorbed else [x])]

    def line(self, n: Node, code: str, axes: Dims, out: str | None = None, note: Node | None = None) -> Value:
        """Emits `name = code`; `out` goes into the call."""
        name = self.names.fresh(n)
        whole = set(axes) == set(n.dims) and n.kind != "bool"  # buffers hold numbers
        if out is not None:
            code = f"{code[:-1]}, out={out})"
        elif n in self.fixed and whole:
            code = f"{Value(self.fixed[n], n.dims).over(axes)}.copy_({code})"
        comment = f"  # sum over {', '.join(_summed(note))}" if note is not None else ""
        self.lines.append(f"{self.indent}{name} = {code}{comment}")
        if n in self.fixed and not whole:  # it repeats along some of its dims, or is a condition
            self.lines.append(f"{self.indent}{self.fixed[n]}.copy_({Value(name, axes).over(n.dims)})")
        return Value(name, axes, None if n in self.fixed else out)  # what is kept is not overwritten

    def put(self, n: Node, call: str, axes: Dims, note: Node | None = None, **room: Any) -> Value:
        """A call that takes an `out`, written to a buffer where the value is large (`room`: which, see there)."""
        return self.line(n, call, axes, out=self.room(n, axes, **room) if self.is_large(axes) else None, note=note)

    def over(self, v: Value, axes: Dims) -> str:
        """A tensor, of a number too, that broadcasts against these axes."""
        return self.number(v.text) if v.scalar else v.over(axes)

    def write(self, nodes: list[Node]) -> None:
        for n in nodes:
            if n.op in ALIAS or n in self.absorbed or n in self.values:
                continue
            self.values[n] = self._emit(n)
            self.release(self.operands(n))

    def _emit(self, n: Node) -> Value:
        taken = [a for a in n.args if a in self.absorbed]
        if taken and n.op in ("add", "sub"):
            return emit_add(self, n, n) or self._unabsorbed(n, taken)
        if taken and n.op == "mul":
            if taken[0].op == "previous":
                return emit_mul_before(self, n, taken[0])
            (core,), factor = taken, next(self.value(a).text for a in n.args if a not in taken)
            if core.op == "contract":
                return emit_contract(self, n, core, factor)
            return emit_add(self, n, core, factor) or self._unabsorbed(n, taken)
        return rule_of(n)(self, n)

    def _unabsorbed(self, n: Node, taken: list[Node]) -> Value:
        """A fusion that does not fit after all: its parts line by line."""
        for a in taken:
            self.absorbed.discard(a)
            self.uses[a] += 1
            self.values[a] = self._emit(a)
        return self._emit(n)

    def release(self, operands: Iterable[Node]) -> None:
        for a in operands:
            self.uses[a] -= 1
            v = self.values.get(a)
            if self.uses[a] == 0 and v is not None and v.scratch is not None:
                self.scratch.give(v.scratch)


def _summed(n: Node) -> list[str]:
    have = dict.fromkeys(d for a in n.args for d in a.dims)
    return [{"_t": "t", "_s": "s", "_u": "u"}.get(d) or size_of(d) for d in have if d not in n.dims]
