"""Are two specs one function, beyond the probes of the hash?  And what matches what?

The hash proposes a matching.  Here both specs are given the same fresh inputs under it, near 1 and from 1e-3 to 1e3,
until every decision of both (comparison, `where`, clamp, maximum, ...) has been seen to fall on each of its sides.
What never shows both sides is not confirmed; and where the sides meet, both must agree before and behind (`borders`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mixc.errors import Source
from mixc.hashing.borders import borders, values_at
from mixc.hashing.canonical import Canonical, canonical_of, elaborate_of, outline
from mixc.hashing.evaluate import BATCH, align
from mixc.hashing.spec import Probe, View
from mixc.hashing.values import Value, doubles
from mixc.ir.node import Node, postorder

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

NEAR = tuple(Probe(n % 2 == 0, n % 3 > 0, 11 * n) for n in range(6))
NOTHING = (Probe(True, False, 0, (-math.inf, -math.inf)),)
WIDE = tuple(Probe(n % 2 == 0, n > 0, 1009 * n, (-3.0, 3.0)) for n in range(3))
# sizes, tokens, probes, are these far from 1? Until all decisions were seen on both sides, and the first three at least
ROUNDS: tuple[tuple[tuple[int, ...], int, tuple[Probe, ...], bool], ...] = (
    ((4, 3, 2, 5, 7, 6), 4, NEAR, False), ((2, 3, 4, 2, 2, 2), 3, WIDE, True), ((3, 5, 6, 4, 2, 7), 3, NEAR, False),
    *[((3, 2, 2, 4, 2, 2), 2, WIDE, True)] * 5)


@dataclass(frozen=True)
class Matching:
    """What of one spec is what of the other, by name."""

    dims: dict[str, str]
    names: dict[str, str]  # ins, params, consts, states and outs

    def __str__(self) -> str:
        other = [f"{a} ↔ {b}" for a, b in (*self.names.items(), *self.dims.items()) if a != b]
        return f"with {', '.join(other)}" if other else "name for name"


def same_function(a: Mixer, b: Mixer) -> Matching | None:
    """How b's names match a's if the two are one function, so that one's kernels may run for the other; else None.

    None also where that is not certain: where a decision of either could not be driven to both sides."""
    first, second = canonical_of(a), canonical_of(b)
    if first.digest != second.digest or not _confirmed((a, first), (b, second)):
        return None
    dims = dict(zip(first.dims, second.dims, strict=True))
    names = {d.name: e.name for d, e in zip(first.entities, second.entities, strict=True)}
    return Matching({d.name: dims[d.name] for d in a.declared.dims}, {d.name: names[d.name] for d in a.declared.decls})


def _confirmed(*specs: tuple[Mixer, Canonical]) -> bool:
    seen = [Decisions(), Decisions()]
    sizes, T, *_ = ROUNDS[0]
    none, other = (Trial(*spec, sizes, T, Decisions()).outs(NOTHING, "nothing") for spec in specs)
    if none != other:  # of 0 / 0 and 0 / 1e-30 no other probe tells
        return False
    for n, (sizes, T, probes, far) in enumerate(ROUNDS):
        trials = [Trial(*spec, sizes, T, decisions, far) for spec, decisions in zip(specs, seen, strict=True)]
        first, second = (t.values(probes, f"confirm {n}") for t in trials)
        if first != second:
            return False
        if n >= 2 and not any(d.open() for d in seen):
            return _agree_at_borders(specs, seen)
    return False


def _agree_at_borders(specs: Sequence[tuple[Mixer, Canonical]], seen: Sequence[Decisions]) -> bool:
    """Do both agree on either side of the borders of all decisions of both?"""
    left = [set(d.sides) - d.fixed for d in seen]
    for n, (sizes, T, probes, far) in enumerate((ROUNDS[0], ROUNDS[1])):
        if not any(left):
            break
        trials = [Trial(*spec, sizes, T, decisions, far) for spec, decisions in zip(specs, seen, strict=True)]
        for own, trial in enumerate(trials):
            lanes, settled = borders(trial.view, trial.colours, probes, f"border {n}", trial.decided)
            left[own] -= settled
            for points in lanes:
                first, second = (t.sorted(values_at(t.view, t.colours, probes, f"border {n}", points, far))
                                 for t in trials)
                if first != second:
                    return False
    return not any(left)


class Trial:
    """A spec at some sizes, its names in the order under which both are compared."""

    def __init__(self, mixer: Mixer, order: Canonical, sizes: Sequence[int], T: int, decisions: Decisions,
                 far: bool = False):
        dims = {d.name: d for d in mixer.declared.dims}
        self.view = View(elaborate_of(mixer), [dims[n] for n in order.dims], sizes, T, patient=not far)
        if not far and not self.view.sees_all:
            decisions.sides["a lag too far to be seen"] = set()
        rank = {d.name: i for i, d in enumerate(order.entities)}
        self.far, self.decisions, self.colours = far, decisions, [rank[d.name] for d in self.view.entities]
        tokens = self.view.tokens
        self.nodes = _spellings([*tokens.outs.values(), *tokens.next.values(), *tokens.inits.values(),
                                 *(lag.of for lag in tokens.lags)])
        for n, spelling in self.nodes.items():
            decisions.sides.setdefault(spelling, set())
            by = n.args[:1] if n.op == "where" else n.args
            if all(x.op in ("number", "size", "index") for x in postorder(by) if not x.args):
                decisions.fixed.add(spelling)

    def values(self, probes: Sequence[Probe], seed: str) -> list[bytes]:
        """What leaves by every name; notes which sides of decisions are seen."""
        return self.sorted(self.view.evaluate([self.colours], probes, self.far, seed, self._watch)[0])

    def outs(self, probes: Sequence[Probe], seed: str) -> list[bytes]:
        """What leaves by the outs."""
        found = self.view.evaluate([self.colours], probes, self.far, seed)[0]
        return self.sorted([v if d.role == "out" else b"" for d, v in zip(self.view.entities, found, strict=True)])

    def sorted(self, values: Sequence[bytes]) -> list[bytes]:
        return [v for _, v in sorted(zip(self.colours, values, strict=True))]

    def decided(self, n: Node, args: list[Value]) -> tuple[str, tuple[Any, ...]] | None:
        """Which decision of the spec itself (and not of its derivative) a node is, and what is on each of its sides."""
        if n not in self.nodes:
            return None
        wide = [align(a, x.dims, _union(n)) for a, x in zip(args, n.args, strict=True)]
        return self.nodes[n], (_DECIDING.get(n.op) or _signs)(n, *wide)

    def _watch(self, n: Node, args: list[Value]) -> None:
        found = self.decided(n, args)
        for i, side in enumerate(found[1] if found else ()):
            if np.any(side):
                self.decisions.sides[found[0]].add(i)  # type: ignore[index]


# ---------------------------------------------------------------- decisions
@dataclass
class Decisions:
    """The decisions that a spec makes, and on which of their sides they have been seen.

    Told apart by how they are spelled: another size of a loop makes other nodes."""

    sides: dict[str, set[int]] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)  # those that depend on indices alone: all that they say is seen

    def open(self) -> list[str]:
        """Decisions that have not been seen on every side."""
        return [what for what, sides in self.sides.items() if len(sides) < (3 if what.startswith("clamp") else 2)]


def _union(n: Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(d for a in n.args for d in a.dims))


def _spellings(roots: list[Node]) -> dict[Node, str]:
    """The decisions below `roots`, and for each what it is, whichever round of a loop it belongs to."""
    digests: dict[Node, str] = {}
    for n in postorder(roots):
        attrs = [(k, v) for k, v in n.attrs if k != "i"]
        digests[n] = hashlib.sha256(repr((n.op, attrs, n.dims, [digests[a] for a in n.args])).encode()).hexdigest()
    even = _under_roots(digests)
    return {n: f"{n.op} {d}" for n, d in digests.items() if n.op in _DECIDING or n in even}


def _under_roots(nodes: Iterable[Node]) -> set[Node]:
    """The even powers that are a factor of what a root, a power or a logarithm is taken of: `sqrt(square(x))` is x on
    one side of 0 and -x on the other, with no decision in between."""
    found, left = set[Node](), [n.args[0] for n in nodes if n.op in ("sqrt", "rsqrt", "pow", "log")]
    while left:
        n = left.pop()
        if n.op == "square" or (n.op == "ipow" and n.attr("n") % 2 == 0) or (n.op == "mul" and n.args[0] is n.args[1]):
            if n.args[0].kind == "real" and any(x.op != "number" for x in postorder(n.args[:1]) if not x.args):
                found.add(n)
        elif n.op in ("mul", "div", "neg", "ipow"):
            left += n.args
    return found


def _signs(n: Node, x: Value, *same: Value) -> tuple[Any, Any]:
    return x < 0, x > 0


def _order(n: Node, a: Value, b: Value) -> tuple[Any, Any]:
    return a < b, b < a


def _truth(n: Node, x: Any) -> tuple[Any, Any]:
    return x, ~x


def _clamp(n: Node, x: Value, low: Value, high: Value) -> tuple[Any, Any, Any]:
    return x < low, high < x, (low <= x) & (x <= high)


def _winner(n: Node, x: Value) -> tuple[Any, Any]:
    """Has the first entry won, and another one?"""
    axes = [BATCH + n.args[0].dims.index(d) for d in n.attr("over")]
    v = np.moveaxis(doubles(x), axes, range(-len(axes), 0))
    best = (v if n.op == "max" else -v).reshape(*v.shape[:v.ndim - len(axes)], -1).argmax(-1)
    return best == 0, best != 0


SIDES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "lt": _order,
    "le": _order,
    "eq": lambda n, a, b: _truth(n, a == b),
    "ne": lambda n, a, b: _truth(n, a == b),
    "maximum": _order,
    "minimum": _order,
    "clamp": _clamp,
    "where": lambda n, c, a, b: _truth(n, c),
    "to_number": _truth,
    "relu": _signs,
    "elu": _signs,
    "abs": _signs,
    "sign": _signs,
    "max": _winner,
    "min": _winner,
}

_DECIDING = {**SIDES, **dict.fromkeys(("mod", "floordiv"), lambda n, a, b: _truth(n, a < b))}


# ---------------------------------------------------------------- shipped specs
def shipped_twin(mixer: Mixer) -> tuple[str, Matching] | None:
    """The first shipped mixer that is the same function, and what of it is what of `mixer`; None for its own file."""
    from mixc.frontend import parse
    from mixc.runtime.load import shipped
    from mixc.runtime.mixer import Mixer

    found = None
    for path in shipped().values():
        source = Source(str(path), path.read_text(encoding="utf-8"))
        for spec in parse(source):
            other = Mixer(spec, source)
            if outline(other.declared) != outline(mixer.declared):
                continue
            if other.text == mixer.text:
                return None
            if found is None and (matching := same_function(other, mixer)) is not None:
                found = spec.name, matching
    return found
