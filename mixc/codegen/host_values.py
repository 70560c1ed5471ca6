"""Values that an emitted module forms in torch, line by line, in front of its kernels.

before: angle = pos * base ** (-index[P] / P);  cos(angle)
after:  _x1 = past.position()
        _x2 = torch.arange(P, dtype=torch.float64, device=device)[None, None, None]
        ...
        _x6 = torch.cos(_x5)
        _x7 = past.rounded(_x6)

What depends on nothing but positions, indices, numbers and consts is formed in fp64 and rounded once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace

from mixc.codegen.expressions import PLAIN, Expressions, python_text
from mixc.codegen.names import safe
from mixc.codegen.past import Guarded, Past
from mixc.ir.node import Node, depends, flat, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Decl, Result
from mixc.ir.risk import guarded_nodes
from mixc.passes.context import Context, exact_nodes, has_context, looked_back, name_of

_VARYING = ("in", "param", "pos", "index", "lag", "window")


class HostValues(Expressions):
    """`lines` grow with every value asked for.  They read `device`, and names of the spec as `called` says."""

    device, dtype = "device", "torch.float32"
    guarded: frozenset[Node] = frozenset()  # whose gradient is 0 wherever the cotangent is

    def __init__(self, roots: Iterable[Node], called: Callable[[str], str]):
        order = list(postorder(roots))
        self.called, self.lines = called, list[str]()
        self.exact, self.varies = exact_nodes(order), depends(order, [n for n in order if n.op in _VARYING])
        self.names, self.near = dict[Node, str](), dict[Node, str]()  # of values, and of exact ones when rounded
        self.exactly = False  # is a line written that is formed in fp64?

    def leaf(self, node: Node) -> str:
        """An input, a param or the position: a tensor of all heads, or of one."""
        raise NotImplementedError(f"`{node.op}` on the host")

    def rounded(self, x: str) -> str:
        return f"{x}.float()"

    def value(self, root: Node) -> str:
        """The name of a tensor that a line has formed."""
        for n in postorder([root], self.names):
            if n.args and self.number(n) is None:
                self._own(n)
        return self.name(root)

    def name(self, node: Node) -> str:
        if node not in self.exact or self.exactly or node.kind == "bool":
            return self._own(node)
        if node not in self.near:
            number = self.number(node)
            self.near[node] = self._put(self.rounded(self._own(node)) if number is None else self._full(number, self.dtype))
        return self.near[node]

    def number(self, node: Node) -> str | None:
        if node in self.varies:
            return None
        if node.op in PLAIN:
            args = [self.number(a) for a in node.args]
            return None if None in args else f"({self.template(node).format(*args)})"
        if node.op != "number" and any(n.kind != "real" for n in postorder([node])):
            return None
        try:
            return python_text(node, self.called)
        except NotImplementedError:
            return None

    def size(self, dim: str) -> str:
        return self.called(dim)

    def template(self, node: Node) -> str:
        return super().template(node).replace("F.", "torch.nn.functional.").replace("REAL", self.dtype)

    def expression(self, node: Node) -> str:
        if node not in self.guarded or node in self.exact or not OPS[node.op].elementwise:
            return super().expression(node)
        plain = node.op in PLAIN
        wide = [self.over(a, node.dims, plain) for a in node.args]
        tensors = {x: f"_a{i}" for i, x in enumerate(wide) if not (plain and self.number(node.args[i]))}
        text = self.template(node).format(*(tensors.get(x, x) for x in wide), n=node.attr("n"))
        return f"Guarded.apply(lambda {', '.join(tensors.values())}: {text}, {', '.join(tensors)})"

    # ------------------------------------------------------------ lines
    def _put(self, text: str) -> str:
        self.lines.append(f"_x{len(self.lines) + 1} = {text}")
        return f"_x{len(self.lines)}"

    def _own(self, node: Node) -> str:
        """As it is formed: in fp64 if it is exact."""
        if node not in self.names:
            outer, self.exactly = self.exactly, node in self.exact
            number = self.number(node)
            if number is not None:
                text = self._full(number, "torch.complex128" if node.kind == "complex" else
                                  "torch.bool" if node.kind == "bool" else "torch.float64")
            elif node.op == "index":
                text = f"torch.arange({self.size(node.dims[0])}, dtype=torch.float64, device={self.device})" \
                       f"[{', '.join(['None'] * self.lead)}]"
            else:
                text = self.expression(node) if node.args else self.leaf(node)
            self.names[node] = self._put(text)
            self.exactly = outer
        return self.names[node]

    def _full(self, number: str, dtype: str) -> str:
        return f"torch.full(({'1, ' * self.lead}), {number}, dtype={dtype}, device={self.device})"


class PastValues(HostValues):
    """What a program has as inputs that its step has not, out of the step's own; `past` is a `Past`."""

    lead, device, dtype = 3, "past.device", "past.dtype"

    def __init__(self, found: Context, called: Callable[[str], str], backs: Container[str] = ()):
        self.history = looked_back(found.step)
        roots = [*found.given.values(), *(x for x, *_ in self.history.values())]
        super().__init__(roots, called)
        results = tuple(Result("out", str(i), x) for i, x in enumerate(roots))
        self.guarded = guarded_nodes(replace(found.step, decls=(*found.step.ins, *found.step.params), results=results))
        self.step, self.followed, self.heard = found.step, set[str](), dict[str, str]()
        for name, node in found.given.items():
            if called(name) in backs:
                self.lines.append(f"{called(name)} = {self.back(node)} if {name_of(node)!r} in initial else None")
                continue
            x = self.value(node) if node.op not in ("lag", "window") else self._own(node)  # inputs stay in their dtype and heads
            self.lines.append(f"{called(name)} = past.full({x if node.kind != 'bool' else self.rounded(x)})")
        for name, (node, *_) in self.history.items():
            self._follow(name, node)

    def leaf(self, node: Node) -> str:
        if node.op == "pos":
            return "past.position()"
        return f"past.wide({self.given(node)}{'[None, None]' if node.op == 'param' else ''})"

    def given(self, node: Node) -> str:
        """An input or param as the caller gave it, its gradient 0 at an infinite end of its range."""
        name = node.attr("name")
        if name not in self.heard:
            self.heard[name] = self.called(name)
            if self.step.decl(name).open_ended:
                self.heard[name] = self._put(f"past.deaf({self.heard[name]})")
        return self.heard[name]

    def rounded(self, x: str) -> str:
        return f"past.rounded({x})"

    def name(self, node: Node) -> str:
        if node.op in ("lag", "window") and node not in self.near:
            self.near[node] = self._put(f"past.wide({self._own(node)})")
        return self.near[node] if node in self.near else super().name(node)

    def back(self, node: Node) -> str:
        name = name_of(node)
        self._follow(name, node.args[0])
        return f"past.ago({name!r}, {node.attr('n')})" if node.op == "lag" else \
            f"past.window({name!r}, {self.size(node.attr('dim'))})"

    def _follow(self, name: str, x: Node) -> None:
        if name not in self.followed:
            self.followed.add(name)
            tensor = self.given(x) if x.op == "in" else self.value(x)
            self.lines.append(f"past.follow({name!r}, {tensor}, {depth_text(*self.history[name][1:], self.size)})")


@functools.cache
def past_text() -> str:
    """The classes that such lines read."""
    return "".join("\n\n" + inspect.getsource(c) for c in (Guarded, Past))


def past_lines(found: Context, called: Callable[[str], str], backs: Container[str] = ()) -> list[str]:
    """Lines that form the inputs which `found.program` has and the step has not, out of B, T, H and what was given.

    Args:
        backs: inputs that kernels read at earlier rows of others, where nothing was before the first token."""
    if not has_context(found.step):
        return []
    return ["past = Past(B, T, H, *(sequences or (None, None)), reverse, initial, torch.float32, device)",
            "with torch.autocast(device.type, enabled=False):", *(f"    {line}" for line in PastValues(found, called, backs).lines)]


def depth_text(most: int, windows: tuple[str, ...], size: Callable[[str], str]) -> str:
    """How many values are looked back at: by a lag at most, and by windows."""
    terms = [*([str(most)] if most or not windows else []), *(f"{size(d)} - 1" for d in windows)]
    return f"max({', '.join(terms)})" if len(terms) > 1 else terms[0]


# ---------------------------------------------------------------- initial states that a spec declares
def start_lines(states: Mapping[str, Decl]) -> list[str]:
    """Lines that put every declared state which is not given, and does not start at 0, into `initial`.

    `states`: by their keys in `initial`.  The lines read B, T, H, sizes of dims, params, consts, `device` and `seqs`."""
    lines = []
    for key, s in states.items():
        if s.init is not None:
            dims = flat(s.dims)
            shape = ", ".join(["seqs.count", "H", *dims])
            values = _Start([s.init], safe)
            values.value(s.init)
            last = f"initial['{key}'] = {values.over(s.init, dims)}.expand({shape})"
            lines += [f"if initial.get('{key}') is None:", *(f"    {line}" for line in (*values.lines, last))]
    return lines


class _Start(HostValues):
    def leaf(self, node: Node) -> str:
        return f"heads_of({self.called(node.attr('name'))}.float(), H)[None]"
