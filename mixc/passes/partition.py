"""Chunk -> Kernels: which launch computes what.

before: one DAG for a chunk
after:  launches, each with its loads, its stores and its loop over time

A direction (forward, backward) is cut in one of two ways.  `fused` keeps the state on chip: one launch walks over the
chunks of a sequence and does all of it.  `split` cuts at the carried states: a first launch walks over the chunks and
forms nothing but the states, of which it keeps what enters each segment; a second begins every segment with that, all
segments at once.  It moves more bytes, and does not wait: for few sequences and heads, and where what one launch would
have to hold does not fit on chip.
What the backward reads of the forward is a cut through the forward's values, bytes as
capacities: values computed again cost no bytes, values kept cost a write and a read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache

from mixc.ir.launch import PRODUCTS, Carry, Launch, Store, row_dims, splittable
from mixc.ir.node import COL, ROW, Node, depends, make, postorder, substitute
from mixc.ir.ops import CHOICES
from mixc.ir.program import Program, free
from mixc.ir.ranges import bounds, proving
from mixc.ir.scans import chooses
from mixc.passes.differentiate import cotangent_of_state
from mixc.passes.entries import stored_apart
from mixc.passes.shares import Along, cotangents, shares

Plan = tuple[tuple[Launch, ...], tuple[Launch, ...]]


def plans(forward: Program, backward: Program, keeps: tuple[str, ...], each: tuple[str, ...] = ()) -> list[Plan]:
    """The launches that the forward and the backward may be cut into, the fused ones first; of `keeps` the forward
    keeps what each segment receives, and of the dims `each` every program is to have one entry."""
    forwards = [(fused_forward(forward, keeps),), split_forward(forward, keeps)]
    backwards = [(fused_backward(forward, backward),), split_backward(forward, backward),
                 backward_by_dims(forward, backward)]
    found = list(itertools.product(filter(None, forwards), filter(None, backwards)))
    fused = backwards[0][0]
    more = {*row_dims(fused.nodes(), forward), *forward.inner, *forward.together}
    dims = [d.name for d in forward.dims if d.name not in {*fused.split, *more} - {*fused.summed}]
    handed = (_handed_on(forward, backward, d, keeps, each) for d in dims)
    return found + [(cut[:1], cut[1:]) for cut in handed if cut]


def fused_forward(program: Program, keeps: tuple[str, ...] = ()) -> Launch:
    """One launch for outs and final states; of `keeps` it stores what each segment receives."""
    launch = Launch(f"{program.name}_fwd", program, "chunks", False, _states(program), _outs(program), keeps=keeps)
    return _with_split(replace(launch, exact=in_full(program), fine=meets(program)))


def fused_backward(forward: Program, backward: Program) -> Launch:
    """One launch, from the last chunk to the first, that carries the cotangents of the states."""
    carries, stores = _cotangents(forward, backward), _gradients(forward, backward)
    return _with_split(_reversed(forward, backward, "bwd", carries, stores))


def split_forward(program: Program, keeps: tuple[str, ...] = ()) -> tuple[Launch, ...]:
    """A launch for states, also those of `keeps`, and one for outs.  Empty where no out reads a state."""
    stores, exact, fine = _outs(program), in_full(program), meets(program)
    entering = _needed(_states(program), [s.value for s in stores])
    if not entering:
        return ()
    kept = {*keeps, *(c.name for c in entering)}
    states = Launch(f"{program.name}_fwd_states", program, "chunks", False, _states(program), (),
                    keeps=tuple(s.name for s in program.states if s.name in kept), exact=exact, fine=fine)
    outs = Launch(f"{program.name}_fwd_outs", program, "segment", False, entering, stores, exact=exact, fine=fine)
    return _with_split(states), _with_split(outs)


def split_backward(forward: Program, backward: Program) -> tuple[Launch, ...]:
    """A launch for cotangents of states, and one for gradients.  Empty where no gradient reads such a cotangent."""
    stores, carries = _gradients(forward, backward), _cotangents(forward, backward)
    entering = _needed(carries, [s.value for s in stores])
    if not entering:
        return ()
    states = replace(_reversed(forward, backward, "bwd_states", carries, ()), keeps=tuple(c.name for c in entering))
    gradients = replace(_reversed(forward, backward, "bwd_grads", entering, stores), loop="segment")
    return _with_split(states), _with_split(gradients)


def backward_by_dims(forward: Program, backward: Program) -> tuple[Launch, ...]:
    """A launch from the last chunk to the first for each dim along which gradients can be formed part by part: its
    programs divide that dim, and no row is a partial sum.  Empty where one such launch, or none, has them all.

    before: dq, dk of K and dv of V in one launch, whose programs hold all of K and of V
    after:  dq, dk by programs that hold a part of K, dv by others that hold a part of V
    """
    left, carries = list(_gradients(forward, backward)), _cotangents(forward, backward)
    found = dict[str, tuple[Store, ...]]()
    for d in [d.name for d in forward.dims]:
        own = tuple(s for s in left if d in s.dims and _apart(s, carries, d))
        found |= {d: own} if own else {}
        left = [s for s in left if s not in own]
    if len(found) < 2 or any(s.tile for s in left):
        return ()
    most, out = max(found, key=lambda d: len(found[d])), list[Launch]()
    found[most] += tuple(left)  # numbers, of which each program has a part
    for d, stores in found.items():
        read = _needed(carries, [s.value for s in stores])
        out.append(_with_split(_reversed(forward, backward, f"bwd_of_{d}", read, stores), (d,)))
    carried = {c.name for x in out for c in x.carries}
    return tuple(out) if all(x.split for x in out) and len(carried) == len(carries) else ()


def _handed_on(forward: Program, backward: Program, d: str, keeps: tuple[str, ...], each: tuple[str, ...]
               ) -> tuple[Launch, ...]:
    """`handed_on`, with matrices of pairs of rows where without them what is handed on has `d`."""
    cut = handed_on(forward, backward, d, keeps, each) or handed_on(forward, backward, d, keeps, each, needs=True)
    whole = [s for launch in cut for s in launch.stores if s.result == "save" and d in s.dims]
    return (handed_on(forward, backward, d, keeps, each, pairs=True) or cut) if whole else cut


def handed_on(forward: Program, backward: Program, d: str, keeps: tuple[str, ...] = (), each: tuple[str, ...] = (),
              pairs: bool = False, needs: bool = False) -> tuple[Launch, ...]:
    """A forward and a backward of launches that hand rows on, so that those of the last divide `d`; empty where that
    does not do, or needs no such rows.

    before: dq, dk by programs that hold all of K, as u = solve(k k', ...) and dv want it
    after:  u stored by the forward, dv by programs that hold all of K; dq, dk by others that hold a part of K
    """
    carries, stores, states = _cotangents(forward, backward), _gradients(forward, backward), _states(forward)
    roots = [c.next for c in (*carries, *states)] + [s.value for s in stores]
    count = itertools.count()
    def leaf(n: Node) -> Node | None:
        """None: it has a dim that no tensor has."""
        return None if {*n.dims} & {*forward.inner} else make("saved", name=f"row {next(count)}", dims=n.dims)
    found = Along(roots, [c.leaf for c in carries], d, leaf, pairs, needs)
    own = found.formed.keys() - found.handed.keys()
    mine = tuple(s for s in stores if s.value in own and (d in s.dims or not s.tile))
    needed = _needed(carries, [s.value for s in stores])
    unread = [c for c in carries if c not in needed]  # of initial states alone
    read = _needed(carries, [s.value for s in mine] + [c.next for c in unread])
    read = tuple(c for c in carries if c in read or c in unread)
    formed = [c.next for c in (*read, *_needed(states, [c.next for c in read] + [s.value for s in mine]))]
    if not any(d in s.dims for s in mine) or any(n not in found.formed for n in formed):
        return ()
    last = _reversed(forward, backward, f"bwd_along_{d}", read, mine, lambda values: [found.part(x) for x in values])
    shared = any(d not in dims for dims in (*(c.dims for c in last.carries), *(s.dims for s in last.stores)))
    last = replace(last, split=(d,), summed=(d,) if shared else ())
    left, used = tuple(s for s in stores if s not in mine), set(last.nodes())
    rows = _rows([n for n, leaf in found.handed.items() if leaf in used], left, forward)
    if not rows:
        return ()
    # behind the end, cotangents are 0; other values are divided by, or worse
    behind = {n: 0 if n in found.linear or _dead(n) == 0 else None for n in rows}
    saved = {n: make("saved", name=s.name, dims=(ROW, *s.dims), behind=behind[n], linear=n in found.linear)
             for n, s in rows.items()}
    saved |= {n: make("live", leaf, fill=fill) for n, leaf in saved.items() if (fill := _dead(n))}
    early = {n: leaf for n, leaf in saved.items() if n not in found.linear}
    stores = (*left, *(s for n, s in rows.items() if n not in early and s not in left))
    read = _needed(carries, [s.value for s in stores])
    first = _reversed(forward, backward, f"bwd_for_{d}", read, stores, lambda values: substitute(values, early))
    last = last.with_nodes(lambda values: substitute(values, {found.handed[n]: leaf for n, leaf in saved.items()}))
    of_each = _with_split(last, each) if each else last
    last = replace(of_each, split=tuple(dict.fromkeys((*last.split, *of_each.split))),
                   summed=tuple(dict.fromkeys((*last.summed, *of_each.summed))))
    fused = fused_forward(forward, keeps)
    fused = replace(fused, name=f"{forward.name}_fwd_for_{d}", stores=(*fused.stores, *(rows[n] for n in early)))
    whole = {s.name for s in rows.values()}
    return (_with_split(fused), *([_with_split(first, whole=whole)] if stores else []), last)


def _dead(n: Node) -> float | None:
    """What a value that is held on the rows that are no tokens is there; None for others."""
    if n.op in ("rename", "expand", "neg"):
        fill = _dead(n.args[0])
        return -fill if fill is not None and n.op == "neg" else fill
    if n.op == "mul":
        return 0.0 if 0.0 in map(_dead, n.args) else None
    return float(n.attr("fill")) if n.op == "live" else None


def _rows(values: list[Node], stores: tuple[Store, ...], program: Program) -> dict[Node, Store]:
    """The rows that hold each of `values`: a gradient's, or its own, under a name that nothing has. (Of several
    corrections in a row gradients that were rounded are not enough.)"""
    taken, rows = program.names, dict[Node, Store]()
    for n in values:
        rows[n] = next((s for s in stores if s.value is n and not s.at), None) or Store(
            "rows", free("handed", taken, ""), n, tuple(x for x in n.dims if x != ROW), "save")
    return rows


def _apart(store: Store, carries: tuple[Carry, ...], d: str) -> bool:
    """Is a part of it along `d` formed from parts along `d` alone?"""
    read = _needed(carries, [store.value])
    return bool(splittable(list(postorder([store.value, *(c.next for c in read)])), [d]))


def of_a_chunk(launch: Launch) -> Launch:
    """A launch that begins every segment anew, where a segment is one chunk: nothing is carried on, or formed again."""
    read = set(postorder(s.value for s in launch.stores))
    starts = tuple(n for n in launch.starts if launch.program.decl(n).leaf() in read)
    carries = tuple(c for c in launch.carries if c.leaf in read)
    return replace(launch, loop="chunk", carries=carries, starts=starts, replay=())


def _states(program: Program) -> tuple[Carry, ...]:
    return tuple(Carry(s.name, s.leaf(), program.result("next", s.name), s.dims) for s in program.states)


def _cotangents(forward: Program, backward: Program) -> tuple[Carry, ...]:
    return tuple(Carry("d" + s.name, cotangent_of_state(s.name, s.dims), backward.result("next", s.name), s.dims)
                 for s in forward.states)


def _outs(program: Program) -> tuple[Store, ...]:
    outs = ((o, program.result("out", o.name)) for o in program.outs)
    return tuple(s for o, value in outs for s in _by_rows(o.name, value, o.dims, "out", program))


@lru_cache(maxsize=8)
def _gradients(forward: Program, backward: Program) -> tuple[Store, ...]:
    grads = ((d, backward.result("grad", d.name)) for d in forward.ins if not d.table)
    rows = (s for d, value in grads for s in _by_rows("d" + d.name, value, d.dims, "grad", forward))
    sums = (Store("partial", "d" + d.name, backward.result("sum", d.name), d.dims, "sum") for d in forward.params)
    return (*rows, *sums)


def _by_rows(name: str, value: Node, dims: tuple[str, ...], result: str, program: Program) -> list[Store]:
    """The stores of a row a token: one, or one for each entry that the value is put together of."""
    sizes = {d.name: d.size for d in program.dims}
    return [Store("rows", name, x, dims, result, at) for x, at in stored_apart(value, dims, sizes)]


def _reversed(forward: Program, backward: Program, name: str, carries: tuple[Carry, ...],
              stores: tuple[Store, ...], formed: Callable[[list[Node]], list[Node]] = list) -> Launch:
    """From the last chunk to the first, with the states that it reads; `formed`: what its programs form of values."""
    launch = Launch(f"{forward.name}_{name}", backward, "chunks", True, carries, stores, exact=in_full(forward))
    launch = launch.with_roots(formed(launch.roots()))
    starts = _needed(_states(forward), launch.roots())
    replay = _replay(tuple(formed([c.next for c in starts])))
    return replace(launch, starts=tuple(c.name for c in starts), replay=replay, fine=bool(starts) and meets(forward))


@lru_cache(maxsize=8)
def in_full(program: Program) -> frozenset[str]:
    """States kept in fp32: those whose absolute error an exponential sees, where half a percent of a state is far more
    of a factor, and those of which something is chosen: rounded, they choose another, whose gradient it then is.

    The operands of products are rounded anyway."""
    def above(n: Node) -> set[Node]:
        ends = ("contract",) if _chooses(n) else ("contract", "tanh", "sigmoid")
        found, stack = set[Node](), [n]
        while stack:
            x = stack.pop()
            if x not in found:
                found.add(x)
                stack += [] if x.op in ends else x.args
        return found
    if meets(program):
        return frozenset(s.name for s in program.states)
    seen = set[Node]().union(*(above(n) for n in postorder(program.values()) if _chooses(n) or _magnifies(n)))
    return frozenset(s.name for s in program.states if s.leaf() in seen)


@lru_cache(maxsize=8)
def meets(program: Program) -> bool:
    """Does what a backward forms meet in small differences, of which half a percent of an operand is far more?"""
    return averages(program) or normalises(program)


def averages(program: Program) -> bool:
    """Is a sum over rows, with weights that are all at least 0, divided by what such weights make too?

    The mean of many rows hardly depends on the query: its gradient is what is left of a row of the state where the part
    along the mean is taken off, and what was rounded of both is as large."""
    with proving(program):
        order = list(postorder(program.values()))
        products = [n for n in order if n.op in PRODUCTS]
        weights = [n for n in products if {*n.dims} == {ROW, COL} and bounds(n).low >= 0]
        made = depends(order, weights)
        return any(n.op in ("mul", "div") and all(a in made for a in n.args) and COL not in n.dims
                   and len({len(a.dims) for a in n.args}) > 1 for n in order)


def normalises(program: Program) -> bool:
    """Is a read divided by its own size: a norm, or another sum over its entries?

    The cotangent of such a read has no part along it.  Where few writes are seen, or one, they are nearly along the
    read, and what each adds to gradients is what is left of a product whose operands were rounded."""
    order = list(postorder(program.values()))
    of_states = depends(order, [s.leaf() for s in program.states])
    reads = [n for n in order if n.op in PRODUCTS and ROW in n.dims and COL not in n.dims and (
        n in of_states or any(COL in a.dims for a in n.args))]
    made = depends(order, reads)

    def by_size(a: Node, f: Node, divisor: bool) -> bool:
        inside, own = list(postorder([f])), depends(postorder([f, a]), {*reads} & {*postorder([a])})
        sizes = [s for s in inside if s in own and any(x in made and {*x.dims} - {*s.dims, ROW, COL} for x in s.args)]
        return bool(sizes) and (divisor or any(map(_inverts, depends(inside, sizes) & {*inside})))
    quotients = [n for n in order if n.op in ("mul", "div") and COL not in n.dims and all(x in made for x in n.args)]
    return any({*f.dims} < {*a.dims} and by_size(a, f, n.op == "div") for n in quotients
               for a, f in (n.args, *([n.args[::-1]] if n.op == "mul" else [])))


def _inverts(n: Node) -> bool:
    return n.op in ("rsqrt", "div") or (n.op == "ipow" and n.attr("n") < 0)


def _magnifies(n: Node) -> bool:
    return n.op in ("exp", "expm1", "logaddexp") or n.attr("combine") == "log+"


def _chooses(n: Node) -> bool:
    return n.op in CHOICES or chooses(n)


def _needed(carries: tuple[Carry, ...], roots: list[Node]) -> tuple[Carry, ...]:
    """What of `carries` the roots read, and what is needed to carry that on."""
    below, found, left = set[Node](), tuple[Carry, ...](), list(roots)
    while left:
        while left:
            if (n := left.pop()) not in below:
                below.add(n)
                left += n.args
        found = tuple(c for c in carries if c.leaf in below)
        left = [c.next for c in found if c.next not in below]
    return found


@lru_cache(maxsize=16)
def _replay(after: tuple[Node, ...]) -> tuple[Node, ...]:
    """What a chunk leaves of the states; it is a whole one, all its rows are tokens."""
    from mixc.passes.simplify import RULES, all_rows_live, rewrite

    return tuple(rewrite(after, (all_rows_live, *RULES)))


def token_loop(step: Program) -> Launch:
    """The step itself, a token at a time: decode, and short sequences."""
    return _with_split(Launch(f"{step.name}_token", step, "tokens", False, _states(step), _outs(step)))


def _with_split(launch: Launch, only: tuple[str, ...] = (), whole: Iterable[str] = ()) -> Launch:
    """A dim (of `only`) may be split if nothing sums over it; in a backward also if only cotangents do, and no store
    that `whole` names is a partial sum.

    A backward is linear in its cotangents, so each program's sums over its own part of the dim add up
    to the whole: what has not the dim is then a partial sum."""
    nodes, program = launch.nodes(), launch.program
    used = {d for n in nodes for d in n.dims} | {d for s in launch.stores for d in s.tile}
    used -= row_dims(nodes, program)  # every block of those would form the states again
    used -= program.together  # each with a part of one would need all of another
    dims = [d.name for d in program.dims if d.name in used and (not only or d.name in only)]
    own = splittable(nodes, dims)
    if not launch.reverse:
        return replace(launch, split=own)
    needed = [c.dims for c in launch.carries if launch.keeps] + [s.dims for s in launch.stores if s.name in whole]
    linear = depends(nodes, cotangents(nodes))
    partial = list[str]()
    for d in splittable([n for n in nodes if n not in linear], dims):
        if d in own or not all(d in x for x in needed):  # what others read is no part
            continue
        found = shares(launch.roots(), [c.leaf for c in launch.carries], d)
        if found is not None:
            partial.append(d)
            launch = launch.with_roots(found)
    return replace(launch, split=(*own, *partial), summed=tuple(partial))
