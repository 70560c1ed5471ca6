"""Chunk -> Chunk: identities that make a program smaller, each one a rule with a name.

before: x * 1 + -(-y)          (x * y) * z, where x * z is formed anyway
after:  x + y                  y * (x * z)

A rule is a function from a node, whose arguments are simple already, to an equal node or None.  It
holds for every value that the ranges allow; tests evaluate both sides on random inputs.
"""

from __future__ import annotations

import cmath
import math
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from mixc.ir.build import expand, number, renamed_at_once, where
from mixc.ir.evaluate import elementwise
from mixc.ir.node import ROW, Node, fold, is_number, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Program
from mixc.ir.ranges import bounds, proving
from mixc.passes.sums import gather_sums
from mixc.passes.tangent import without_tangents

Rule = Callable[[Node], Node | None]


def simplify(program: Program, drop_live: bool = False, finite: bool = False) -> Program:
    """The program with all rules applied until none does; `drop_live`: every row is a token; `finite`: no input is
    infinite."""
    roots = program.values()
    if finite:
        roots = unguarded(program)
    if drop_live:
        roots = rewrite(roots, (all_rows_live,))
    for _ in range(4):
        before, roots = roots, gather_sums(share_products(rewrite(roots, RULES)))
        if all(a is b for a, b in zip(before, roots, strict=True)):
            break
    return program.with_values(roots)


def plain(program: Program, drop_live: bool = False) -> Program:
    """The program without numbers and signs that say nothing, as a person would write it; `drop_live`: of a whole
    chunk."""
    program = without_tangents(program)
    return program.with_values(rewrite(program.values(), (*PLAIN, all_rows_live) if drop_live else PLAIN))


def rewrite(roots: Iterable[Node], rules: tuple[Rule, ...]) -> list[Node]:
    """`roots` with the first rule that applies applied at every node, bottom up, until none does."""
    done = dict[Node, Node]()
    return fold(roots, lambda node, args: _apply(node.on(*args), rules, done), done)


def _apply(node: Node, rules: tuple[Rule, ...], done: dict[Node, Node]) -> Node:
    for _ in range(20):
        better = next((y for rule in rules if (y := rule(node)) is not None and y is not node), None)
        if better is None:
            return node
        # the new node's arguments may be new as well
        node = better.on(*(done.get(a) or rewrite([a], rules)[0] for a in better.args))
    return node


# ---------------------------------------------------------------- rules
def all_rows_live(n: Node) -> Node | None:
    """live(x) = x"""
    return n.args[0] if n.op == "live" else None


def unguarded(program: Program) -> list[Node]:
    """guard(c, d) = c * d, where d is finite for finite inputs: nothing that may be 0 divides"""
    with proving(program):
        odd = {d.leaf() for d in program.states if bounds(d.leaf()).infinite}

        def finite(x: Node) -> bool:
            numbers = [x.attr("value")] if x.op == "number" else [x.attr("fill", 0.0)]
            apart = x.op in _DIVIDING and (bounds(x.args[-1]).low > 0 or bounds(x.args[-1]).high < 0)
            known = apart or x.op in _FINITE or (x.op == "scan" and x.attr("combine") == "affine")
            return known and x not in odd and not any(map(cmath.isinf, numbers))

        def rule(n: Node) -> Node | None:
            unneeded = n.op == "guard" and all(map(finite, postorder(n.args[1:])))
            return n.args[0] * n.args[1] if unneeded else None
        return rewrite(program.values(), (rule,))


_DIVIDING = ("div", "log", "rsqrt")
_FINITE = frozenset((
    "number", "size", "const", "index", "in", "param", "state", "add", "sub", "mul", "neg", "square", "abs", "sign",
    "rename", "expand", "live", "pick", "place", "contract", "sum", "mean", "max", "min", "norm", "softmax", "sigmoid",
    "tanh", "logsigmoid", "softplus", "relu", "elu", "sin", "cos", "sqrt", "exp", "expm1", "maximum", "minimum",
    "clamp", "where", "lt", "le", "eq", "ne", "and", "or", "not", "to_number", "previous"))


def live_twice(n: Node) -> Node | None:
    """live(live(x)) = live(x);  live(fill) = fill"""
    if n.op == "live" and n.args[0].op == "live" and n.attr("fill") == n.args[0].attr("fill"):
        return n.args[0]
    return None


def mask_twice(n: Node) -> Node | None:
    """mask(mask(x)) = mask(x)"""
    same = n.op == "mask" and n.args[0].op == "mask" and n.attr("keep") == n.args[0].attr("keep")
    return n.args[0] if same else None


def neutral(n: Node) -> Node | None:
    """x * 1 = x,  x / 1 = x,  x + 0 = x,  x - 0 = x"""
    if n.op in ("mul", "add"):
        one = 1.0 if n.op == "mul" else 0.0
        for x, c in (n.args, n.args[::-1]):
            if is_number(c, one) and x.dims == n.dims and x.kind == n.kind:
                return x
    if n.op in ("div", "sub") and is_number(n.args[1], 1.0 if n.op == "div" else 0.0) and n.args[0].kind == n.kind:
        return n.args[0]
    return None


def two_signs(n: Node) -> Node | None:
    """-(-x) = x,  x - (-y) = x + y,  x + (-y) = x - y,  0 - x = -x,  x * -1 = -x"""
    a = n.args
    if n.op == "neg" and a[0].op == "neg":
        return a[0].args[0]
    if n.op == "sub" and a[1].op == "neg":
        return a[0] + a[1].args[0]
    if n.op == "add" and a[1].op == "neg":
        return a[0] - a[1].args[0]
    if n.op == "sub" and is_number(a[0], 0.0):
        return -a[1]
    if n.op == "mul":
        return next((-x for x, c in (a, a[::-1]) if is_number(c, -1.0) and x.dims == n.dims), None)
    return None


def fold_numbers(n: Node) -> Node | None:
    """2 * 3 = 6, for real numbers; what is not finite stays as written"""
    if not n.args or n.kind != "real" or not OPS[n.op].elementwise or n.op in ("live", "to_number"):
        return None
    if not all(is_number(a) and a.kind == "real" for a in n.args):
        return None
    values = [torch.tensor(a.attr("value"), dtype=torch.float64) for a in n.args]
    found = float(elementwise(n, values, torch.float64))
    return number(found) if math.isfinite(found) else None


def settled(n: Node) -> Node | None:
    """where(1 < 2, x, y) = x,  where(p, x, x) = x"""
    if n.op != "where":
        return None
    p, x, y = n.args
    if x is not y:
        if p.op not in ("lt", "le", "eq", "ne") or not all(is_number(a) and a.kind == "real" for a in p.args):
            return None
        sides = [torch.tensor(a.attr("value"), dtype=torch.float64) for a in p.args]
        x = x if elementwise(p, sides, torch.float64) else y
    found = expand(x, n.dims)
    return found if found.dims == n.dims and found.kind == n.kind else None


def numbers_meet(n: Node) -> Node | None:
    """2 * (3 * x) = 6 * x, for finite numbers"""
    if n.op == "mul":
        for c, x in (n.args, n.args[::-1]):
            if is_number(c) and x.op == "mul":
                for d, rest in (x.args, x.args[::-1]):
                    if is_number(d) and rest.dims == x.dims and fold_numbers(c * d):
                        return (c * d) * rest
    return None


def expanded_operand(n: Node) -> Node | None:
    """expand(x) * y = x * y, where y has the new dims anyway"""
    if not OPS[n.op].elementwise or len(n.args) < 2:
        return None
    for i, a in enumerate(n.args):
        if a.op == "expand":
            new = n.on(*(a.args[0] if j == i else x for j, x in enumerate(n.args)))
            if new.dims == n.dims:
                return new
    return None


def branches_meet(n: Node) -> Node | None:
    """where(p, a, 0) * x + where(p, 0, b) * y = where(p, a * x, b * y), as the gradients of both branches of a `where`
    do.  (A factor that is infinite where it does not count is no longer met by the 0.)"""
    if n.op != "add":
        return None
    for p, first, a in _branches(n.args[0]):
        for q, second, b in _branches(n.args[1]):
            if p is q and first != second:
                found = where(p, a, b) if first else where(p, b, a)
                return found if found.dims == n.dims else None
    return None


def _branches(n: Node) -> Iterable[tuple[Node, bool, Node]]:
    """(condition, is it the first branch, what counts there) of what is 0 in the other branch."""
    if n.op == "where":
        p, a, b = n.args
        if is_number(a, 0.0) or is_number(b, 0.0):
            yield p, is_number(b, 0.0), a if is_number(b, 0.0) else b
    elif n.op == "mul":
        for x, factor in (n.args, n.args[::-1]):
            if x.op == "where":
                yield from ((p, first, a * factor) for p, first, a in _branches(x))


def rename_twice(n: Node) -> Node | None:
    """rename(rename(x)) = rename(x), and that of x repeated along what is renamed alone is x repeated"""
    if n.op == "rename" and n.args[0].op == "expand" and not {d for d, _ in n.attr("to")} & {*n.args[0].args[0].dims}:
        return expand(n.args[0].args[0], n.dims)
    if n.op != "rename" or n.args[0].op != "rename":
        return None
    return renamed_at_once(n.args[0], dict(n.attr("to")))


def same_row_before(n: Node) -> Node | None:
    """previous(c, c) = c for a number c"""
    if n.op != "previous" or n.args[0].op != "expand":
        return None
    return n.args[0] if is_number(n.args[0].args[0]) and n.args[0].args[0] is n.args[1] else None


def crossings_meet(n: Node) -> Node | None:
    """crossing(a) + crossing(b) = crossing(a + b),  also beside x.  (A kernel would keep a for b.)"""
    if n.op != "add":
        return None
    for x, y in (n.args, n.args[::-1]):
        for u, rest in ((y, None), *((y.args, y.args[::-1]) if y.op == "add" else ())):
            if x.op == u.op == "crossing" and u.attrs == x.attrs:
                both = x.on(u.args[0] + x.args[0])
                return both if rest is None else rest + both
    return None


def number_of_any_order(n: Node) -> Node | None:
    """1 * x = x, and a number repeated is a number, though the order of dims changes: for readers, who go by names; but
    the time axis stays in front, where sums over spans want it"""
    new = None
    if n.op == "mul":
        new = next((expand(x, n.dims) for x, c in (n.args, n.args[::-1])
                    if is_number(c.args[0] if c.op == "expand" else c, 1.0) and x.kind == n.kind), None)
    if new is None and OPS[n.op].elementwise and len(n.args) > 1:
        args = [a.args[0] if a.op == "expand" and is_number(a.args[0]) else a for a in n.args]
        new = n.on(*args) if args != list(n.args) else None
    same = new is not None and {*new.dims} == {*n.dims} and (new.dims[:1] == (ROW,) or n.dims[:1] != (ROW,))
    return new if same else None


def sign_in_front(n: Node) -> Node | None:
    """x * (-y) = -(x * y),  x @ (-2 * y) = -(x @ (2 * y)),  -(x - y) = y - x,  -x + y = y - x,  -x - y = -(x + y)"""
    a = n.args
    new = None
    if n.op == "neg" and a[0].op == "sub":
        new = a[0].args[1] - a[0].args[0]
    elif n.op == "add" and a[0].op == "neg":
        new = a[1] - a[0].args[0]
    elif n.op == "sub" and a[0].op == "neg":
        new = -(a[0].args[0] + a[1])
    elif not n.attr("fill") and not OPS[n.op].jointly:
        for i in (0, 1) if n.op in ("div", "guard") else OPS[n.op].linear_in:
            if a[i].op == "neg" or (is_number(a[i]) and a[i].kind == "real" and a[i].attr("value") < 0):
                inner = a[i].args[0] if a[i].op == "neg" else number(-a[i].attr("value"))
                new = -n.on(*(inner if j == i else x for j, x in enumerate(a)))
    return new if new is not None and new.dims == n.dims else None


RULES: tuple[Rule, ...] = (live_twice, mask_twice, neutral, two_signs, fold_numbers, settled, expanded_operand,
                           branches_meet, rename_twice, same_row_before)

# of a derivative that was formed by rules, so that it reads as a person would have written it
PLAIN: tuple[Rule, ...] = (neutral, number_of_any_order, two_signs, numbers_meet, fold_numbers, settled,
                           expanded_operand, rename_twice, sign_in_front)


# ---------------------------------------------------------------- one rule on the whole program
def share_products(roots: list[Node]) -> list[Node]:
    """(x * y) * z = y * (x * z), where x * z is formed anyway and x * y has no other use."""
    order = list(postorder(roots))
    uses = Counter(a for n in order for a in n.args)
    uses.update(roots)
    products = {frozenset(n.args): n for n in order if n.op == "mul"}

    def regroup(n: Node) -> Node | None:
        if n.op != "mul":
            return None
        for inner, z in (n.args, n.args[::-1]):
            if inner.op != "mul" or uses[inner] != 1 or inner is z:
                continue
            for x, y in (inner.args, inner.args[::-1]):
                known = products.get(frozenset((x, z)))
                if known is not None and known is not n and uses[known] and set(known.dims) <= set(n.dims):
                    return _mul_as(y, known, n)
        return None
    return [_replace_once(order, regroup).get(r, r) for r in roots]


def _mul_as(y: Node, known: Node, n: Node) -> Node | None:
    for new in (y * known, known * y):
        if new.dims == n.dims:
            return new
    return None


def _replace_once(order: list[Node], rule: Rule) -> dict[Node, Node]:
    """Every node of a program after one sweep of a rule that looks at the program as it was."""
    done: dict[Node, Node] = {}
    for n in order:
        new = rule(n) or n
        done[n] = new.on(*(done.get(a, a) for a in new.args))
    return done
