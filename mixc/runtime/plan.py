"""What the token-by-token program does when: found once for a step, whatever the sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mixc.ir.evaluate import Rule
from mixc.ir.node import Node, depends, postorder
from mixc.ir.program import Program, once_a_program
from mixc.ir.risk import guarded_nodes
from mixc.passes.context import exact_nodes, looked_back
from mixc.runtime.guarded import rules_for


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of work of a step.

    Attributes:
        outs, next, inits: values by name of out and of state.
        exact: what depends on nothing but pos, index, numbers and consts, as far as others read it.
        fixed: what reads no state, as far as the loop or the results read it.
        loop: what reads a state, arguments first; border: what the loop reads and does not compute.
        lags: what is looked back at, as `looked_back` gives it; counts_tokens: whether `pos` is read.
    """

    program: Program
    outs: dict[str, Node]
    next: dict[str, Node]
    inits: dict[str, Node]
    exact: tuple[Node, ...]
    fixed: tuple[Node, ...]
    loop: tuple[Node, ...]
    border: tuple[Node, ...]
    lags: dict[str, tuple[Node, int, tuple[str, ...]]]
    counts_tokens: bool

    @cached_property
    def rules(self) -> dict[str, Rule]:
        """Guarded gradients where ranges leave the risk of an infinite derivative, plain ones elsewhere."""
        return rules_for(guarded_nodes(self.program))

    def in_loop(self, node: Node) -> bool:
        return node in self._loop_set

    @cached_property
    def _loop_set(self) -> frozenset[Node]:
        return frozenset(self.loop) | {d.leaf() for d in self.program.states}


@once_a_program
def plan_of(program: Program) -> Plan:
    outs = {d.name: program.result("out", d.name) for d in program.outs}
    states = {d.name: program.result("next", d.name) for d in program.states}
    inits = {d.name: d.init for d in program.states if d.init is not None}
    roots = [*outs.values(), *states.values()]
    order = list(postorder([*roots, *inits.values()]))
    dynamic = depends(roots, [d.leaf() for d in program.states])
    loop = tuple(n for n in order if n in dynamic and n.op != "state")
    border = [a for n in loop for a in n.args if a not in dynamic]
    border += [n for n in states.values() if n not in dynamic]
    shifted = [n.args[0] for n in order if n.op in ("lag", "window")]
    fixed = [*border, *(n for n in (*roots, *inits.values()) if n not in dynamic), *shifted]
    exact = exact_nodes(order)
    used = [a for n in order if n not in exact for a in n.args if a in exact] + [n for n in fixed if n in exact]
    return Plan(program, outs, states, inits, tuple(dict.fromkeys(used)), tuple(dict.fromkeys(fixed)), loop,
                tuple(dict.fromkeys(border)), looked_back(program),
                any(n.op == "pos" for n in order))

