"""The two directions of a sequential program, made once a step: what their loops do and what the backward is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from mixc.codegen.torch_cell import loop
from mixc.codegen.torch_cell_plan import Carried, Loop, inside_loop
from mixc.codegen.torch_stages import ALIAS, origin
from mixc.ir.node import ROW, Node, depends, first_below, postorder
from mixc.ir.program import Program, once_a_program
from mixc.ir.ranges import proving
from mixc.passes.cell import cell, products_outside, sums_of_products
from mixc.passes.context import exact_nodes
from mixc.passes.differentiate import cotangent_of_state, differentiate
from mixc.passes.simplify import rewrite, simplify
from mixc.runtime.keep import EXTREMA

_CHEAP = frozenset(("add", "sub", "mul", "neg", "rename", "expand", "pick", "stop_gradient", "where", "lt", "le", "eq",
                    "ne", "and", "or", "not", "to_number", "maximum", "minimum", "abs", "sign", "relu", "square"))


@dataclass(frozen=True, eq=False)
class Half:
    """One direction.

    Attributes:
        saved: what the forward's loop leaves for the backward, in both.
        guards: values formed before the loop, by which it guards products: finite ones need no guard.
        exact, heads: values that no token changes, from numbers and consts alone and from params.
        reads: the ins it reads.
    """

    program: Program
    carried: list[Carried]
    loop: Loop
    saved: tuple[Node, ...]
    exact: tuple[Node, ...]
    heads: tuple[Node, ...]
    reads: frozenset[str]
    guards: tuple[Node, ...] = ()


class Cell:
    """Of a step at level "step" without lags, positions and complex values; `finite`: no input is infinite."""

    def __init__(self, step: Program, finite: bool):
        self.finite, self.lifted = finite, cell(step)
        self._halves: dict[object, Half] = {}

    @cached_property
    def forward_program(self) -> Program:
        with proving(self.lifted):
            p = sums_of_products(simplify(self.lifted, drop_live=True, finite=self.finite))
            return products_outside(p, [d.leaf() for d in p.states])

    @cached_property
    def backward_program(self) -> Program:
        with proving(self.lifted):
            p = sums_of_products(simplify(differentiate(self.forward_program), drop_live=True, finite=self.finite))
            return products_outside(p, [cotangent_of_state(d.name, d.dims) for d in p.states])

    @cached_property
    def guards(self) -> tuple[Node, ...]:
        """What the backward's guards multiply by, of what its loop does not form."""
        p = self.backward_program
        inside = depends(p.values(), [cotangent_of_state(d.name, d.dims) for d in p.states])
        guards = [n for n in postorder(p.values()) if n.op == "guard"]
        return tuple(dict.fromkeys(n.args[1] for n in guards if n.args[1] not in inside))

    @cached_property
    def unguarded_program(self) -> Program:
        """The backward where these values are finite."""
        def rule(n: Node) -> Node | None:
            return n.args[0] * n.args[1] if n.op == "guard" and n.args[1] in self.guards else None
        with proving(self.lifted):
            p = self.backward_program.with_values(rewrite(self.backward_program.values(), (rule,)))
            return products_outside(p, [cotangent_of_state(d.name, d.dims) for d in p.states])

    @cached_property
    def saved(self) -> tuple[Node, ...]:
        """Values of the forward's loop that the backward reads and that nothing gives cheaply."""
        p = self.forward_program
        leaves = [d.leaf() for d in p.states]
        inside, known = set(inside_loop(p, leaves)), set(leaves)
        for nxt in p.values("next"):  # known as the state of the next token
            known.add(nxt)
            while nxt.op in ("rename", "stop_gradient"):
                nxt = nxt.args[0]
                known.add(nxt)
        mine, later = set(postorder(p.values())), list(postorder(self.backward_program.values()))
        read = {a for n in later if n not in mine for a in n.args} | set(self.backward_program.values())
        varying, found = depends(p.values(), leaves), list[Node]()
        for n in later:
            if n not in mine or n in known:
                continue
            if n not in varying or (n.op in (*_CHEAP, *EXTREMA) and all(a in known for a in n.args)):
                known.add(n)
            elif n in inside and n in read:
                found.append(origin(n))  # a renamed value is no tensor of its own
                known |= {n, origin(n)}
        return tuple(dict.fromkeys(found))

    def forward(self, keeps: bool) -> Half:
        """`keeps`: a backward may follow."""
        if keeps not in self._halves:
            p = self.forward_program
            carried = [(d.name, d.leaf(), p.result("next", d.name)) for d in p.states]
            self._halves[keeps] = self._half(p, carried, self.saved if keeps else (), frozenset())
        return self._halves[keeps]

    def backward(self, wanted: frozenset[str], finite: bool = False) -> Half:
        """`wanted`: the inputs and params whose gradient is asked for.  `finite`: so are the values of `guards`."""
        if (wanted, finite) not in self._halves:
            p = (self.unguarded_program if finite else self.backward_program).asked(wanted)
            carried = [(d.name, cotangent_of_state(d.name, d.dims), p.result("next", d.name)) for d in p.states]
            made = self._half(p, carried, self.saved, frozenset(self.saved))
            self._halves[wanted, finite] = made if finite else replace(made, guards=self.guards)
        return self._halves[wanted, finite]

    def _half(self, p: Program, carried: list[Carried], saved: tuple[Node, ...], given: frozenset[Node]) -> Half:
        inside = set(inside_loop(p, [leaf for _, leaf, _ in carried], given))
        known = given | {nxt for _, _, nxt in carried}
        behind = first_below([r.value for r in p.results if r.role != "next"],
                             lambda n: n in inside and n.op not in ALIAS, known)
        wanted = list(dict.fromkeys([*behind, *(() if given else saved)]))
        with proving(self.lifted):
            made = loop(p, carried, wanted, given)
        roots = [*p.values(), *(n for n, _ in made.rows.values()), *(n for n, _ in made.heads.values()),
                 *made.numbers.values(), *(n for s in made.stacks.values() for n in s.given if n is not None),
                 *(n for nodes, *_ in made.weights.values() for n in nodes)]
        order = list(postorder(roots, given))
        tokens = depends(roots, [n for n in order if (not n.args and ROW in n.dims) or n in given])
        tokens |= {n for n in order if ROW in n.dims}  # nothing, repeated for every token
        exact = exact_nodes(order) - tokens
        read = {a for n in order for a in n.args} | set(roots)
        return Half(p, carried, made, saved, tuple(n for n in order if n in exact and n in read),
                    tuple(n for n in order if n not in exact and n not in tokens),
                    frozenset(n.attr("name") for n in order if n.op == "in"))


compiled = once_a_program(Cell)
