"""States that are scans: each entry of the next state depends on the same entry of the old one alone.

before: h = exp(g) * h + x                      one token
after:  P = scan(exp(g), x, h0)                 [_t, D]; what a read above the update sees is previous(P, h0)

`scan_form` walks the Step from the state to its next value and keeps a form a * h + b (`passes.block`, one state being
a block of its own), or maximum(a + h, b) and its like (`mixc.ir.scans`), operation by operation; a and b do not read
the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mixc.ir.build import expand, is_number, make, number, plus, times
from mixc.ir.node import ROW, Node, postorder
from mixc.ir.program import Decl, Program
from mixc.ir.ranges import bounds
from mixc.ir.risk import Risks
from mixc.ir.scans import COMBINES, scan
from mixc.passes.block import Scanned, Walk, affine_rows
from mixc.passes.outer import Ranks, apart, outer_products
from mixc.passes.separate import factors_of
from mixc.passes.why import text_of


@dataclass(frozen=True)
class ScanForm:
    """next = update(a, b, state) of `COMBINES[combine]`."""

    combine: str
    a: Node
    b: Node


def scan_form(step: Program, state: Decl) -> ScanForm | None:
    """The form of a state's update, or None.  Call inside `proving(step)`: factors of maxima must be >= 0."""
    update, rows = step.result("next", state.name), affine_rows(step, [state])
    if rows is not None and state.leaf() in set(postorder([update])):
        return ScanForm("affine", rows[0].a[0], rows[0].b)
    for combine, rules in _RULES.items():
        walk = _Walk(step, state, combine, rules)
        form = walk.form(update)
        if form is not None and form.b is not walk.nothing:
            return form
    return None


def reason(step: Program, state: Decl, form: ScanForm) -> str:
    """Why it is a scan, for `mixer.why`: the term that decided it."""
    if form.combine != "affine":
        words = {"max": "maximum", "min": "minimum", "log": "logaddexp"}[form.combine[:3]]
        combine = COMBINES[form.combine]
        how = "times" if combine.times else "plus"
        moved = "" if is_number(form.a, combine.keep) else f" {how} {text_of(form.a)}"
        return f"entry by entry a {words} with what was there{moved}"
    if factors_of(form.a, state.dims) is None:
        return f"affine entry by entry, and its decay {text_of(form.a)} does not separate over {', '.join(state.dims)}"
    if not _outer(step, form.b, set(state.dims)):
        return f"affine entry by entry, and what is added, {text_of(form.b)}, is no sum of outer products"
    return f"affine entry by entry, and its decay {text_of(form.a)} has the dim of the vector"


def _outer(step: Program, added: Node, dims: set[str]) -> bool:
    risks = Risks.of(step)
    products = outer_products(added, dims, Ranks([added]), lambda x: any(risks[x]))
    return bool(apart([f for p in products for f in p], dims))


class _Walk(Walk[ScanForm]):
    def __init__(self, step: Program, state: Decl, combine: str, rules: dict[str, Rule]):
        super().__init__(step, [state])
        self.state, self.combine, self.rules = state, combine, rules
        self.nothing, self.keep = number(COMBINES[combine].nothing), number(COMBINES[combine].keep)

    def _find(self, n: Node) -> ScanForm | None:
        if n in self.leaves:
            return self.of(self.keep, self.nothing)
        if n not in self.reads:
            return None
        rule = self.rules.get(n.op)
        return rule(self, n) if rule else None

    def of(self, a: Node, b: Node) -> ScanForm:
        return ScanForm(self.combine, a, b)

    def sides(self, n: Node) -> tuple[ScanForm, Node] | None:
        """(the form of one argument, the other one, which is free)."""
        for x, c in (n.args, n.args[::-1]):
            if self.free(c):
                f = self.form(x)
                return None if f is None else (f, c)
        return None


Rule = Callable[[_Walk, Node], "ScanForm | None"]


def _same(w: _Walk, n: Node) -> ScanForm | None:
    return w.form(n.args[0]) if set(n.dims) == set(n.args[0].dims) else None


# ---------------------------------------------------------------- maximum(a + h, b) and its like
def _shifted(w: _Walk, n: Node) -> ScanForm | None:
    """(h + c): both sides move."""
    found = w.sides(n)
    if found is None:
        return None
    x, c = found
    return w.of(plus(x.a, c), x.b if x.b is w.nothing else x.b + c)


def _shifted_back(w: _Walk, n: Node) -> ScanForm | None:
    x, c = w.form(n.args[0]), n.args[1]
    return w.of(x.a - c, x.b if x.b is w.nothing else x.b - c) if x and w.free(c) else None


def _scaled(w: _Walk, n: Node) -> ScanForm | None:
    """(h * c), c >= 0: the order stays."""
    found = w.sides(n)
    if found is None or not bounds(found[1]).nonnegative:
        return None
    x, c = found
    return w.of(times(c, x.a), x.b if x.b is w.nothing else x.b * c)


def _joined(op: str) -> Rule:
    def rule(w: _Walk, n: Node) -> ScanForm | None:
        found = w.sides(n)
        if found is not None:
            old, c = found
            return w.of(old.a, c if old.b is w.nothing else make(op, old.b, c))
        x, y = (w.form(a) for a in n.args)
        if x is None or y is None or COMBINES[w.combine].times:  # a * h and c * h: which is larger hangs on h
            return None
        return w.of(make(op, x.a, y.a), y.b if x.b is w.nothing else x.b if y.b is w.nothing else make(op, x.b, y.b))
    return rule


def _chosen(w: _Walk, n: Node) -> ScanForm | None:
    """where(c, h, x), `c` and `x` free: x forgets all that was there by an infinity, which a start at the other one is
    not forgotten by."""
    cond, *sides = n.args
    start = bounds(number(0) if w.state.init is None else w.state.init)
    if start.infinite and w.nothing.attr("value") in (-start.low, -start.high):
        return None
    found = [w.of(w.nothing, x) if w.free(x) else w.form(x) for x in sides]
    x, y = found
    if x is None or y is None or not w.free(cond):
        return None
    if w.nothing in sides and (x.b is w.nothing) != (y.b is w.nothing):  # ties, whose gradient a maximum would split
        return None
    return w.of(*(p if p is q else make("where", cond, p, q) for p, q in ((x.a, y.a), (x.b, y.b))))


def _log_of_sum(w: _Walk, n: Node) -> ScanForm | None:
    """log(exp(h + a) + exp(b)) = logaddexp(h + a, b)"""
    total = n.args[0]
    if total.op != "add":
        return None
    (x, free) = (total.args if total.args[0] in w.reads else total.args[::-1])
    if x.op != "exp" or not w.free(free):
        return None
    f = w.form(x.args[0])
    log = free.args[0] if free.op == "exp" else make("log", free) if bounds(free).nonnegative else None
    return None if f is None or log is None else w.of(f.a, log if f.b is w.nothing else make("logaddexp", f.b, log))


def _tropical(op: str, times: bool) -> dict[str, Rule]:
    moved: dict[str, Rule] = {"mul": _scaled} if times else {
        "add": _shifted, "sub": _shifted_back, "where": _chosen}
    return {**moved, op: _joined(op), "expand": _same}


_RULES: dict[str, dict[str, Rule]] = {
    "max+": _tropical("maximum", False),
    "min+": _tropical("minimum", False),
    "maxx": _tropical("maximum", True),
    "minx": _tropical("minimum", True),
    "log+": {**_tropical("logaddexp", False), "log": _log_of_sum},
}


# ---------------------------------------------------------------- the rule of language.md
def is_scan(step: Program, state: Decl) -> ScanForm | None:
    """The form, if the state counts as a scan and not as a chunk.

    A matrix whose decay separates and which adds outer products is a chunk; so is a vector whose decay has no
    dim, or that of a matrix state."""
    form = scan_form(step, state)
    if form is None or form.combine != "affine":
        return form
    dims = set(state.dims)
    if factors_of(form.a, dims) is None or not _outer(step, form.b, dims):
        return form
    if len(dims) == 1 and form.a.dims and not _shared(step, state, form):
        return form
    return None


def _shared(step: Program, state: Decl, form: ScanForm) -> bool:
    """Does a matrix state have this decay?"""
    for other in step.states:
        if len(other.dims) > 1 and set(state.dims) <= set(other.dims):
            found = scan_form(step, other)
            if found is not None and found.combine == "affine" and _factor(form.a, found.a):
                return True
    return False


def _factor(a: Node, product: Node) -> bool:
    return a is product or (product.op == "mul" and any(_factor(a, x) for x in product.args))


# ---------------------------------------------------------------- Step -> Chunk
class ScanState(Scanned):
    """One state of form scan in a chunk program.

    Args:
        lift: from a value of one token to that of all rows.
    """

    def __init__(self, step: Program, decl: Decl, lift: Callable[[Node], Node]):
        form = scan_form(step, decl)
        assert form is not None
        combine = COMBINES[form.combine]
        self.decl, self.leaf, self.form, self.lift = decl, decl.leaf(), form, lift
        self.keep, self.nothing = combine.keep, combine.nothing
        self.rows: Node | None = None

    def after(self) -> Node:
        """The state after every row: [_t, dims...]."""
        if self.rows is None:
            a, b = self.lift(self.form.a), self.lift(self.form.b)
            a = make("live", expand(a, (ROW,)), fill=self.keep) if not is_number(a, self.keep) else a
            b = make("live", expand(b, (ROW,)), fill=self.nothing)
            self.rows = scan(self.form.combine, a, b, self.leaf, self.decl.dims)
        return self.rows
