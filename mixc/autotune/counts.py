"""What is counted of a kernel: sizes as monomials in the names of blocks, and sums of them by what takes time.

    per program: counts["special"] = {("chunks", "BV"): 64.0, ...}      64 * chunks * BV
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

Names = tuple[str, ...]
Poly = dict[Names, float]
Size = tuple[float, Names]  # a monomial
ONE: Size = (1, ())


@dataclass
class Counts:
    """Of one program. `products`: (rows, columns, summed, times, "half" or how fp32 is multiplied);
    `memory`: ("load" or "store", pointer, elements, times); `direct`, `nested`: products in the text by how, of the
    kernel itself and of the functions that it calls (levels of a solve, of products under decays)."""

    poly: dict[str, Poly] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))  # type: ignore[arg-type]
    products: list[tuple[Size, Size, Size, Size, str]] = field(default_factory=list)
    memory: list[tuple[str, str, Size, Size]] = field(default_factory=list)
    direct: Counter[str] = field(default_factory=Counter)
    nested: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, size: Size, weight: float = 1.0) -> None:
        self.poly[kind][size[1]] += size[0] * weight

    def grouped(self) -> Counts:
        """The same with equal products and equal accesses as one, products in the order of their last."""
        products: dict[Any, float] = {}
        memory: dict[Any, float] = defaultdict(float)
        for m, n, k, (c, names), how in self.products:
            products[m, n, k, names, how] = products.pop((m, n, k, names, how), 0.0) + c
        for what, pointer, elements, (c, names) in self.memory:
            memory[what, pointer, elements, names] += c
        return Counts(self.poly, [(m, n, k, (c, names), how) for (m, n, k, names, how), c in products.items()],
                      [(what, p, e, (c, names)) for (what, p, e, names), c in memory.items()], self.direct, self.nested)

    def at_rows(self, C: int, more: Counts) -> Counts:
        """With so many rows a chunk, and what was counted beside it for that."""
        found = Counts(direct=self.direct + more.direct, nested=self.nested + more.nested)
        for part in (self, more):
            for kind, poly in part.poly.items():
                for names, c in poly.items():
                    found.add(kind, known_rows((c, names), C))
            found.products += [(*(known_rows(s, C) for s in p[:4]), p[4]) for p in part.products]  # type: ignore[misc]
            found.memory += [(what, p, known_rows(e, C), known_rows(t, C)) for what, p, e, t in part.memory]
        return found

    def take(self, other: Counts, weight: Size, inside: bool) -> None:
        """What `other` counted, so many times; `inside`: self is of a function, and not of the kernel."""
        (self.nested if inside else self.direct).update(other.direct)
        self.nested.update(other.nested)
        for kind, poly in other.poly.items():
            for names, c in poly.items():
                self.add(kind, times(weight, (c, names)))
        self.products += [(m, n, k, times(weight, t), how) for m, n, k, t, how in other.products]
        self.memory += [(what, pointer, e, times(weight, t)) for what, pointer, e, t in other.memory]


def times(*sizes: Size) -> Size:
    coefficient, names = 1.0, list[str]()
    for c, n in sizes:
        coefficient *= c
        names += n
    return coefficient, tuple(sorted(names))


def known_rows(s: Size, C: int) -> Size:
    """A size where a chunk has so many rows."""
    c, names = s
    return (c * C ** names.count("C"), tuple(n for n in names if n != "C")) if "C" in names else s


def volume(shape: tuple[Size, ...]) -> Size:
    return times(*shape) if shape else ONE
