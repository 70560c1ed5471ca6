"""The axes of tiles: one a dim, but for dims that make more rows of a token, which stand with its rows in one, and dims
of a state that stand in one (passes/joint).

    q[_t, R, K]: axes (_t*R, K), a tile [C * BR, BK], of which row t * BR + r is q[t, r]
    S[N*K, V]: axes (N*K, V), a tile [BN * BK, BV], of which row n * BK + k is S[n, k]
    g[_t], S[K, V]: an axis a dim

So products of matrices have matrices, whatever a token has of its rows; else a value has its dims for axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mixc.ir.launch import ROWS
from mixc.ir.node import JOINT, flat
from mixc.ir.program import Dim


def is_rows(axis: str) -> bool:
    return axis.split(JOINT)[0] in ROWS


def more_rows(axis: str) -> tuple[str, ...]:
    """The dims that stand with rows in one axis."""
    return tuple(axis.split(JOINT)[1:])


@dataclass(frozen=True)
class Axes:
    """ranks: dims that make more rows of a token. inner: by dim that no tensor has the one whose size it has; among
    rows under two names these are the later one's. each: dims of which a tile has one entry, and no axis. pairs:
    dims that stand in one where a value has both."""

    ranks: frozenset[str]
    inner: Mapping[str, str]
    each: frozenset[str] = frozenset()
    pairs: tuple[tuple[str, ...], ...] = ()

    def narrow(self, dims: Iterable[Dim]) -> frozenset[str]:
        """Dims whose blocks have no least size: those that make more rows, and the first of such as stand in one, where
        the others' blocks are large enough. (Dims of one size have one block.)"""
        shared = {x for d in dims if d.alias for x in (d.name, d.alias)}
        return self.ranks | {p[0] for p in self.pairs} - shared

    def of(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        """Of a tile of these dims, which are in order."""
        dims = tuple(d for d in dims if d not in self.each)
        for pair in self.pairs:
            if {*pair} <= {*dims}:
                at = min(map(dims.index, pair))
                dims = tuple(JOINT.join(pair) if i == at else d for i, d in enumerate(dims) if i == at or d not in pair)
        rows = [d for d in dims if d in ROWS]
        if len(dims) < 3 or not rows or not self.ranks & {*dims}:
            return dims
        own: dict[str, list[str]] = {r: [r] for r in rows}
        for d in dims:
            if d in self.ranks:
                own[rows[-1 if d in self.inner else 0]].append(d)
        return tuple(JOINT.join(own.get(d, [d])) for d in dims if d not in self.ranks)

    def joint(self, dims: Iterable[str]) -> str | None:
        """The one axis of these dims, which are in order; None where they have several."""
        first, *more = dims = tuple(dims)
        if (pair := next((p for p in self.pairs if {*p} == {*dims}), None)) is not None:
            return JOINT.join(pair)
        if not more:
            return None if first in self.ranks else first
        return JOINT.join((first, *more)) if first in ROWS and {*more} <= self.ranks else None

    def size_of(self, dim: str) -> str:
        """The dim whose size it has."""
        return self.inner.get(dim, dim)

    def block(self, axis: str) -> str:
        return " * ".join("C" if d in ROWS else f"B{self.size_of(d)}" for d in axis.split(JOINT))

    def shape(self, axes: Iterable[str]) -> str:
        return "[" + ", ".join(map(self.block, axes)) + "]"

    def suffix(self, axis: str) -> str:
        """What the names of the rows of such an axis end in."""
        return "".join(f"_by_{self.size_of(d)}" for d in more_rows(axis))

    def places(self, axes: list[str]) -> list[str]:
        """Of every row of such axes: its token, and its place in the dims that make more of them; of every entry of dims
        that stand in one its place in each."""
        lines = []
        for a in axes:
            by, place, names = self.suffix(a), f"tl.arange(0, {self.block(a)})", [*map(self.size_of, more_rows(a))]
            for d in reversed(names):
                lines += [f"in_{d}{by} = {place} % B{d}", f"has_{d}{by} = inside(in_{d}{by}, {d}, B{d})"]
                place += f" // B{d}"
            if is_rows(a):
                lines.append(f"rows{by} = {place}  # a row for every {', '.join(names)}")
            else:
                d = self.size_of(a.split(JOINT)[0])
                lines += [f"in_{d}{by} = {place}", f"has_{d}{by} = inside(in_{d}{by}, {d}, B{d})"]
        return lines

    def in_chunk(self, axes: list[str]) -> list[str]:
        """As `live` and `held` of its tokens."""
        return [line for by in map(self.suffix, filter(is_rows, axes)) for line in (
            f"live{by} = rows{by} < length - chunk * C", f"held{by} = tl.minimum(rows{by}, length - 1 - chunk * C)")]

    def along(self, name: str, dim: str, axes: tuple[str, ...], form: str = "{}") -> str:
        """The tile of a name that is one number for every entry of a dim, for broadcasting; where rows are more than
        tokens the name has one for every row.  `form`: of what is made of it."""
        axis = next(a for a in axes if dim in a.split(JOINT))
        code = form.format(name + self.suffix(axis))
        return code if len(axes) < 2 else code + "[" + ", ".join(":" if a == axis else "None" for a in axes) + "]"

    def aligned(self, code: str, have: tuple[str, ...], want: tuple[str, ...]) -> str:
        """A tile of some axes, for broadcasting with those of `want`."""
        if not {*have} <= {*want}:
            code, have = self._parted(code, have, want)
        order = tuple(a for a in want if a in have)
        if order != have:
            assert sorted(order) == sorted(have), (have, want)
            axes = ", ".join(str(have.index(d)) for d in order)
            code = f"tl.trans({code})" if len(have) == 2 else f"tl.permute({code}, ({axes}))"
        if len(want) > 1 and len(have) < len(want) and have:
            code += "[" + ", ".join(":" if d in have else "None" for d in want) + "]"
        return code

    def _parted(self, code: str, have: tuple[str, ...], want: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The tile with those axes of `want` that have one of its dims: repeated along what stands with that."""
        dims = flat(have)
        axes = tuple(a for a in want if {*a.split(JOINT)} & {*dims})
        more = {tuple(map(self.size_of, more_rows(a))) for a in axes}
        if len(more) == 1 and tuple(a.split(JOINT)[0] for a in axes) == have:
            by = " * ".join(f"B{d}" for d in more.pop())
            code = code[1:-1] if code[:1] + code[-1:] == "()" else code  # its brackets are the call's
            return f"{'repeated' if len(have) == 1 else 'repeated_both'}({code}, {by})", axes
        if dims != have:
            code = f"tl.reshape({code}, {self.shape(dims)})"
        whole = flat(axes)
        assert {*dims} <= {*whole}, (have, want)
        order = tuple(d for d in whole if d in dims)
        if order != dims:
            code = f"tl.permute({code}, ({', '.join(str(dims.index(d)) for d in order)}))"
        if order != whole:
            marks = ", ".join(":" if d in dims else "None" for d in whole)
            code = f"tl.broadcast_to({code}[{marks}], {self.shape(whole)})"
        return (code if whole == axes else f"tl.reshape({code}, {self.shape(axes)})"), axes


def called(axes: tuple[str, ...], to: dict[str, str]) -> tuple[str, ...]:
    """The axes under other names of dims."""
    return tuple(JOINT.join(to.get(d, d) for d in flat([a])) for a in axes)
