"""What names mean while a mixer is walked, and what has been found wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mixc.errors import Diagnostic, Span
from mixc.frontend.names import IMPLIED, WORDS, nearest
from mixc.frontend.syntax import Declare, MixerSyntax, Name
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import Node, make, number, postorder, substitute
from mixc.ir.program import Decl, Dim

_SCALARS = {"number", "const", "size"}
_PREVIOUS = re.compile(r"_?(prev|previous|old|last|tm?1)$")


@dataclass
class Binding:
    """A name of the mixer. `role`: dim, in, param, const, state, out, local, loop, or unknown (reported).

    `node` is its value now; None is poison: an error was reported, say no more about it."""

    role: str
    name: str
    span: Span
    node: Node | None = None
    dims: tuple[str, ...] | None = None  # as declared; None for a local
    dim: str = ""  # of a loop index
    reads: int = 0
    in_loop: bool = False
    versions: list[tuple[Node, Span]] = field(default_factory=list)  # of a state: each value, and its line


class Scope:
    """The names of one mixer under given sizes and structural consts."""

    def __init__(self, mixer: MixerSyntax, sizes: Mapping[str, int], consts: Mapping[str, float],
                 complex_states: frozenset[str], marking: bool):
        self.mixer, self.given_sizes, self.given_consts = mixer, sizes, consts
        self.complex_states, self.marking = complex_states, marking
        self.dims: dict[str, Dim] = {}
        self.names: dict[str, Binding] = {}
        self.decls: dict[str, Decl] = {}
        self.found: list[Diagnostic] = []
        self.loops = 0  # how many are open
        self.later: dict[str, int] = {}  # name -> line where the body assigns it
        self.declared_below = {s.name.name: s.span.line for s in mixer.body if isinstance(s, Declare)}
        self.marks: dict[Node, Node] = {}  # a state's value at one line -> what was assigned there
        self.needed_sizes: set[str] = set()
        self.unrolled: set[str] = set()  # of these, the dims that do more than measure a window
        self.structural: set[str] = set()

    # ------------------------------------------------------------ diagnostics
    def error(self, code: str, message: str, span: Span, help: str | None = None, level: str = "error") -> None:
        d = Diagnostic(code, message, span, help, level)
        if not any(f.code == code and f.span == span for f in self.found):  # a loop's lines are walked again
            self.found.append(d)

    def note(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.error(code, message, span, help, "note")

    # ------------------------------------------------------------ dims
    def root(self, dim: str) -> str:
        """The dim that gives `dim` its size."""
        return self.dims[dim].alias or dim

    def one_size(self, a: str, b: str) -> bool:
        """Are two dims declared of one size?"""
        size = self.dims[self.root(a)].size
        return self.root(a) == self.root(b) or (size is not None and size == self.dims[self.root(b)].size)

    def size(self, dim: str, unrolls: bool = True) -> int | None:
        """The size of a dim where it is known; `unrolls`: does the step have another text for another size?"""
        fixed = self.dims[self.root(dim)].size
        if fixed is not None:
            return fixed
        self.needed_sizes.add(dim)
        self.unrolled |= {dim} if unrolls else set()
        return next((self.given_sizes[d] for d in self.dims
                     if d in self.given_sizes and self.root(d) == self.root(dim)), None)

    def order(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """Dims in the header's order."""
        return tuple(d for d in self.dims if d in dims)

    def known_dims(self, names: tuple[Name, ...], what: str) -> tuple[str, ...] | None:
        """The dims that brackets name, or None (reported) if one is no dim."""
        good = [self._known_dim(n, what) for n in names]
        return tuple(n.name for n in names) if all(good) else None

    def _known_dim(self, n: Name, what: str) -> bool:
        if n.name in self.dims:
            self.names[n.name].reads += 1
            return True
        if n.name in IMPLIED:
            over_time = "; over time, a state carries: `state s`, then `s = s + x`" if n.name == "T" else ""
            self.error("MX208", f"{n.name} ({IMPLIED[n.name]}) is no dim of a mixer", n.span,
                       f"a mixer is written for one token of one head: leave {n.name} out{over_time}")
            return False
        near = nearest(n.name, self.dims)
        if near:
            help_ = f"did you mean `{near}`?"
        else:
            header = ", ".join([*(d for d in self.dims if d not in IMPLIED), n.name])
            help_ = f"name it in the header: `mixer {self.mixer.name}({header})`"
        self.error("MX209", f"`{n.name}` is no dim of {what}", n.span, help_)
        return False

    # ------------------------------------------------------------ names
    def bind(self, b: Binding) -> None:
        self.names[b.name] = b
        if self.loops:
            b.in_loop = True

    def fresh(self, name: str) -> str:
        """A name like `name` that is free."""
        return next(n for i in range(2, 10 ** 6) if (n := f"{name}{i}") not in self.names and n not in self.later)

    def read(self, e: Name) -> Node | None:
        """The value that a name stands for here; None if that is an error, now or before."""
        b = self.names.get(e.name)
        if b is None:
            return self._builtin(e)
        b.reads += 1
        if b.role == "dim":
            return make("size", dim=b.name)
        if b.role == "out":
            if b.node is not None:
                name = self.fresh(e.name)
                self.error("MX206", f"`{e.name}` is an out, and outs cannot be read", e.span, f"name its value above: "
                           f"`{name} = ...`, then `out {e.name}{shown(b.dims, '')} = {name}`, and read `{name}`")
            return None
        return b.node

    def _builtin(self, e: Name) -> Node | None:
        if e.name == "pos":
            return make("pos")
        if e.name in ("inf", "pi"):
            return number(getattr(math, e.name))
        self._unknown(e)
        self.bind(Binding("unknown", e.name, e.span, reads=1))  # one report a name
        return None

    def _unknown(self, e: Name) -> None:
        if e.name == "index":
            return self.error("MX201", "`index` needs its dim", e.span, "write `index[K]`")
        if e.name in WORDS:
            return self.error("MX212", f"`{e.name}` is a function", e.span, f"call it: `{e.name}(x)`")
        near = nearest(e.name, [*self.names, "pos", "pi", "inf"])
        if self.later.get(e.name, e.span.line) < e.span.line:
            help_ = f"`{e.name}` ended with the `}}` of its loop: only states carry over"
        elif e.name in self.later:
            help_ = (f"`{e.name}` is assigned on line {self.later[e.name]}; lines run from top to bottom, "
                                 f"and what the last token left is kept by `state {e.name}`")
        elif e.name in IMPLIED:
            count = "; `pos` counts the tokens before this one" if e.name == "T" else ""
            help_ = f"{IMPLIED[e.name]} axes are implied{count}"
        elif e.name in ("True", "False", "None"):
            help_ = "a condition is a comparison, `x > 0`; numbers are 1 and 0"
        elif (b := self.names.get(_PREVIOUS.sub("", e.name))) is not None and b.role == "state" and b.name != e.name:
            help_ = f"`{b.name}` is what the previous token left, until a line assigns it"
        elif e.name in self.declared_below:
            help_ = f"it is declared on line {self.declared_below[e.name]}: a declaration reads those above it"
        elif e.name in ("e", "j", "i"):
            help_ = "numbers are written `1j`, `exp(1)`"
        elif e.name in ("eps", "epsilon", "EPS"):
            help_ = f"write the number, or declare it: `const {e.name} = 1e-6`"
        else:
            help_ = f"did you mean `{near}`?" if near else "inputs are declared above: `in x[D]`"
        self.error("MX201", f"`{e.name}` is not defined", e.span, help_)

    # ------------------------------------------------------------ numbers that shape the step
    def numeric(self, node: Node, guess: int | None = 2) -> float | complex | None:
        """The value of what is made of numbers, consts and sizes alone; None for anything else.

        A size that is not known is taken as `guess`; with None, nothing is known then."""
        if node.op == "number":
            value: float | complex = node.attr("value")
            return value
        if not is_scalar(node):
            return None
        sizes = {n.attr("dim"): self.size(n.attr("dim")) for n in postorder([node]) if n.op == "size"}
        if guess is None and None in sizes.values():
            return None
        env = Env(self._const, {d: s or guess or 2 for d, s in sizes.items()}, batch=0)
        (result,) = evaluate([node], env)
        value = result.item()
        return value

    def _const(self, leaf: Node) -> torch.Tensor:
        name = leaf.attr("name")
        if name in self.given_consts:
            return torch.tensor(float(self.given_consts[name]), dtype=torch.float64)
        init = self.decls[name].init
        value = self.numeric(init) if init is not None else 0.0
        return torch.tensor(value if isinstance(value, float) else 0.0, dtype=torch.float64)

    def shaping(self, node: Node) -> None:
        """Notes that the step itself depends on the consts below `node`."""
        self.structural |= {n.attr("name") for n in postorder([node]) if n.op == "const"}

    # ------------------------------------------------------------ states, as they are at one line
    def assign_state(self, b: Binding, value: Node, span: Span) -> None:
        """The state holds `value` from here on.

        Where the body takes gradients, readers see a mark: only so `grad[S]` can tell what was
        computed from S as it is now from what happens to be the same expression."""
        if self.marking:
            mark = make("state", name=f"{b.name}@{len(b.versions) + 1}", dims=b.dims or (), kind=value.kind)
            self.marks[mark] = value
            value = mark
        b.node = value
        b.versions.append((value, span))

    def unmarked(self, values: list[Node], keep: Node | None = None) -> list[Node]:
        """`values` with every mark but `keep` replaced by what was assigned there."""
        done: dict[Node, Node] = {}
        for mark, value in self.marks.items():
            if mark is not keep:
                (done[mark],) = substitute([value], done)
        return substitute(values, done) if done else values


def is_scalar(node: Node) -> bool:
    """Is it made of numbers, consts and sizes alone?"""
    return all(n.args or n.op in _SCALARS for n in postorder([node]))


def shown(dims: tuple[str, ...] | None, empty: str = "without dims") -> str:
    return f"[{', '.join(dims)}]" if dims else empty
