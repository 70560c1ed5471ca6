"""The one node type of every level: an operation, its arguments, its attributes.

Nodes are frozen and interned: two nodes that say the same are the same object, so
equality is `is` and a dictionary of nodes is a dictionary of values.  A node carries the
*named* dims of its value (batch and head are implied everywhere) and its kind.  The span
says where in the user's text it came from and is no part of its identity.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from mixc.errors import Span

# The time axes inside a chunk.  User names never start with an underscore.
ROW = "_t"  # the row that reads (and, in token tensors, the token itself)
COL = "_s"  # the row that wrote
LEVEL = "_l"  # halvings of a chunk: 1, 2, 4, ... rows
T = TypeVar("T")
JOINT = "*"  # between dims that stand in one, the last of them the fastest


@lru_cache(maxsize=4096)
def _flat(axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(d for a in axes for d in a.split(JOINT))


def flat(axes: Iterable[str]) -> tuple[str, ...]:
    """The dims of axes."""
    return _flat(tuple(axes))


def _binary(op: str, swapped: bool = False) -> Callable[[Node, Node | float], Node]:
    def operator(self: Node, other: Node | float) -> Node:
        return make(op, as_node(other), self) if swapped else make(op, self, as_node(other))
    return operator


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Node:
    """A value: `op` applied to `args`, with static `attrs`.

    Attributes:
        dims: names of the value's axes, in the order its tensor has them.
        kind: "real", "complex" or "bool".
        span: source position of what first produced this value in the text that was read last, or None.
    """

    op: str
    args: tuple[Node, ...]
    attrs: tuple[tuple[str, Any], ...]
    dims: tuple[str, ...]
    kind: str
    span: Span | None

    def attr(self, name: str, default: Any = None) -> Any:
        for key, value in self.attrs:
            if key == name:
                return value
        return default

    def on(self, *args: Node) -> Node:
        """The same operation on other arguments."""
        return self if args == self.args else make(self.op, *args, span=self.span, **dict(self.attrs))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.op, self.args, self.attrs, self.span)

    def __repr__(self) -> str:
        attrs = "".join(f" {k}={v}" for k, v in self.attrs)
        return f"<{self.op}{attrs} [{', '.join(self.dims)}]>"

    # Arithmetic, so that derivation rules read as the formula they implement.
    __add__, __radd__ = _binary("add"), _binary("add", swapped=True)
    __sub__, __rsub__ = _binary("sub"), _binary("sub", swapped=True)
    __mul__, __rmul__ = _binary("mul"), _binary("mul", swapped=True)
    __truediv__, __rtruediv__ = _binary("div"), _binary("div", swapped=True)

    def __neg__(self) -> Node:
        return make("neg", self)


_reading: ContextVar[set[Node] | None] = ContextVar("reading", default=None)
_interned: WeakValueDictionary[tuple[Any, ...], Node] = WeakValueDictionary()
_interning = threading.Lock()  # two threads that say the same get one object


def make(op: str, *args: Node, span: Span | None = None, **attrs: Any) -> Node:
    """The node `op(*args)` with `attrs`; the same object whenever the same is said.

    Raises:
        TypeError: the op's row in the table refuses these arguments (a compiler bug: what a
            user can get wrong is caught, with a span, by `frontend.check`).
    """
    from mixc.ir.ops import OPS

    items = tuple(sorted(attrs.items()))
    # repr tells 1 from 1.0 and 0.0 from -0.0, which hash alike
    key = (op, tuple(map(id, args)), repr(items))
    found = _interned.get(key)
    if found is None:
        row = OPS[op]
        if row.arity is not None and len(args) != row.arity:
            raise TypeError(f"{op} takes {row.arity} arguments, got {len(args)}")
        dims = row.dims(args, attrs)
        new = Node(op, args, items, dims, row.kind(args, attrs), span)
        with _interning:
            found = _interned.get(key)
            if found is None:
                found = _interned[key] = new
    if span is not None and (here := _reading.get()) is not None and found not in here:
        here.add(found)
        place(found, span)  # perhaps said before, in another spec: messages are about the one read last
    return found


@contextmanager
def reading() -> Iterator[set[Node]]:
    """While a spec is read: nodes stand where it says them first; those that it says."""
    said: set[Node] = set()
    token = _reading.set(said)
    try:
        yield said
    finally:
        _reading.reset(token)


def place(node: Node, span: Span) -> None:
    """From now on the node stands there: two texts may say the same."""
    object.__setattr__(node, "span", span)


def _rebuild(op: str, args: tuple[Node, ...], attrs: tuple[tuple[str, Any], ...], span: Span | None) -> Node:
    return make(op, *args, span=span, **dict(attrs))


def number(value: float | complex) -> Node:
    return make("number", value=value if isinstance(value, complex) else float(value))


def as_node(value: Node | float | complex) -> Node:
    return value if isinstance(value, Node) else number(value)


def is_number(node: Node, value: float | None = None) -> bool:
    return node.op == "number" and (value is None or node.attr("value") == value)


ALIASES = ("rename", "expand")  # the same values under other axes


def source(node: Node, through: Container[str] = ALIASES) -> Node:
    """What the node is another view of, or itself; `through`: the ops that make views."""
    while node.op in through:
        node = node.args[0]
    return node


def bare(node: Node) -> Node:
    """The same tensor, whatever its dims are called."""
    return source(node, ("rename",))


def unrenamed(node: Node) -> tuple[Node, dict[str, str]]:
    """The same tensor, and by its dims what they are called where the node stands."""
    x = bare(node)
    return x, dict(zip(x.dims, node.dims, strict=True))


def called(node: Node, dims: Iterable[str]) -> tuple[str, ...]:
    """Dims of what an alias reads, under the names that it gives them."""
    to = dict(node.attr("to", ()))
    return tuple(to.get(d, d) for d in dims)


def postorder(roots: Iterable[Node], stop: Container[Node] = ()) -> Iterator[Node]:
    """Every node below `roots` once, arguments first; nothing below what is in `stop`."""
    seen: set[Node] = set()
    for root in roots:
        stack = [root]
        while stack:
            node = stack[-1]
            if node not in seen:
                if node not in stop and (left := [arg for arg in node.args if arg not in seen]):
                    left.reverse()
                    stack += left
                    continue
                seen.add(node)
                yield node
            stack.pop()


def first_below(roots: Iterable[Node], hit: Callable[[Node], bool], known: Iterable[Node] = ()) -> list[Node]:
    """The first nodes below `roots` that hit, on every way down; no way goes through what is known."""
    found, seen, stack = list[Node](), set(known), list(roots)[::-1]
    while stack:
        n = stack.pop()
        if n not in seen:
            seen.add(n)
            if hit(n):
                found.append(n)
            else:
                stack.extend(reversed(n.args))
    return found


def depends(roots: Iterable[Node], on: Iterable[Node]) -> set[Node]:
    """The nodes below `roots` that read, directly or not, one of `on` (which are included)."""
    hit = set(on)
    for node in postorder(roots):
        if any(arg in hit for arg in node.args):
            hit.add(node)
    return hit


def fold(roots: Iterable[Node], f: Callable[[Node, list[T]], T], known: MutableMapping[Node, T] | None = None
         ) -> list[T]:
    """Of every root f(node, what it gave for the node's arguments); `known` is read and filled, nothing is looked at
    below what it holds."""
    roots, known = list(roots), {} if known is None else known
    for root in roots:
        stack = [] if root in known else [root]
        while stack:
            node = stack[-1]
            if node not in known:
                if left := [a for a in node.args if a not in known]:
                    stack += reversed(left)
                    continue
                known[node] = f(node, [known[a] for a in node.args])
            stack.pop()
    return [known[r] for r in roots]


def substitute(roots: Iterable[Node], mapping: Mapping[Node, Node]) -> list[Node]:
    """`roots` with every node in `mapping` replaced, bottom up."""
    return fold(roots, lambda node, args: node.on(*args), dict(mapping))
