"""Launch -> Launch: states of more than two dims are matrices beside each other, and a program has one of them.

before: q[_t, N, K] @ S[N, K, V], N along with both        tiles of three axes
after:  q[_t, K] @ S[K, V], loaded at the program's N      matrices

A program of its own has each entry of N, as with blocks of other dims that programs divide; what N is summed over, in a
backward, is a partial sum.
"""

from __future__ import annotations

from dataclasses import replace

from mixc.ir.build import contract, exp, total
from mixc.ir.launch import Launch, splittable
from mixc.ir.node import COL, ROW, Node, fold, make, postorder
from mixc.ir.program import Program
from mixc.ir.ranges import proving


def one_each(forward: Program) -> tuple[str, ...]:
    """Dims of which a program is to have one entry, so that no state has more than two others: such that nothing sums
    over, and products have along with both their sides; else the first of several."""
    many = [s.dims for s in forward.states if len(s.dims) > 2]
    if not many:
        return ()
    nodes, most = list(postorder(forward.values())), max(map(len, many)) - 2
    along = {d for n in nodes if n.op == "contract" for d in n.dims if all(d in a.dims for a in n.args)}
    free = splittable(nodes, [d for d in many[0] if all(d in m for m in many)])
    both = tuple(d for d in free if d in along)
    return both[:most] if both or {*many[0]} & along or len(free) <= most else free[:most]


def of_one(launch: Launch, dims: tuple[str, ...]) -> Launch:
    """The launch whose programs have one entry of `dims` each; carries, stores and tensors have them still."""
    done: dict[Node, Node] = {}

    def of_one_entry(roots: list[Node]) -> list[Node]:
        return fold(roots, lambda n, args: without(n, tuple(args), {*dims}), done)
    with proving(launch.program):  # of what an inverse sums it is asked how large it is
        of_one_entry([c.leaf for c in launch.carries])
        made = launch.with_nodes(of_one_entry)
    carries = tuple(replace(c, leaf=done[c.leaf]) for c in made.carries)
    return replace(made, carries=carries, each=dims)


def one_of(leaf: Node, dims: tuple[str, ...]) -> Node:
    """What such a launch calls a leaf."""
    return without(leaf, (), {*dims})


def tensor_dims(leaf: Node) -> tuple[str, ...]:
    """The dims of the tensor, one entry of which is perhaps all that a program has."""
    dims: tuple[str, ...] = leaf.attr("of", leaf.dims)
    return dims


def _solved_under_numbers(n: Node, A: Node, b: Node, y: Node, g: Node) -> Node:
    """A system whose decays are the same for all entries that a program has."""
    from mixc.passes.lower import solve_by_inverse

    L = b * (A * exp(make("segsum", g, reach=n.attr("reach"))))
    system = make("solve", L, y, **{k: v for k, v in n.attrs if k != "reach"})
    return solve_by_inverse(system) or system


def _under_numbers(x: Node, y: Node, decay: Node, out: tuple[str, ...]) -> Node:
    """Their product under a decay of pairs of rows [_t, _s]: with that which has both."""
    for a, b in ((x, y), (y, x)):
        if {ROW, COL} <= {*a.dims}:
            return contract(a * decay, b, out)
    return contract(x, y, out) * decay


def without(n: Node, args: tuple[Node, ...], gone: set[str]) -> Node:
    """A node of these arguments, which lack some dims."""
    if args == n.args and not gone & {*n.dims}:
        return n
    attrs = {k: tuple(d for d in v if d not in gone) if k in ("dims", "out", "over") else v for k, v in n.attrs}
    if not args:
        return make(n.op, span=n.span, **{**attrs, "of": tensor_dims(n)})
    if n.op == "contract":
        return contract(args[0], args[1], attrs["out"])
    if n.op == "sum":
        return total(args[0], attrs["over"])
    if n.op == "span_solve" and args[-1].dims == (ROW,):
        return _solved_under_numbers(n, *args)
    if n.op == "span_contract" and args[-1].dims == (ROW,):
        return _under_numbers(args[0], args[1], exp(make("segsum", args[-1], reach=n.attr("reach"))), attrs["out"])
    if n.op == "expand" and not attrs["dims"]:
        return args[0]
    return make(n.op, *args, span=n.span, **attrs)
