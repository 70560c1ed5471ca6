"""Specs that nobody wrote: bodies of affine states drawn by hypothesis, of the scalar-decay class or of the whole one.

What is drawn is the text, so that parsing, classification, derivation and emission are all met; a failing spec
shrinks to a short text.  Everything stays bounded: keys have norm at most 1, decays at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

MATRIX = ("K", "V")
DECLARED = {  # what a spec may read, declared when it does
    "q": "in q[K]", "k": "in k[K] where norm[K](k) <= 1", "p": "in p[K] where norm[K](p) <= 1",
    "v": "in v[V]", "u": "in u[V] where norm[V](u) <= 1",
    "g": "in g where g <= 0", "h": "in h where h <= 0", "a": "in a where -1 <= a <= 1",
    "b": "in b where 0 <= b <= 1", "beta": "in beta where 0 <= beta <= 2", "f": "in f", "i": "in i",
    "gk": "in gk[K] where gk <= 0", "gv": "in gv[V] where gv <= 0", "ak": "in ak[K] where -1 <= ak <= 1",
    "av": "in av[V] where 0 <= av <= 1", "bv": "in bv[V] where 0 <= bv <= 1", "bk": "in bk[K] where 0 <= bk <= 1",
    "kn": "in kn[N, K] where norm[K](kn) <= 1", "vn": "in vn[N, V]", "bn": "in bn[N] where 0 <= bn <= 2",
    "w": "param w[K]", "D": "param D[V]", "s": "param s where s <= 0", "e": "param e where -1 <= e <= 1",
    "ek": "param ek[K] where ek <= 0", "c": "const c = 0.5", "scale": "const scale = K ** -0.5",
}
VECTORS = {"K": ("q", "k", "p", "w"), "V": ("v", "u", "D")}


@dataclass
class Spec:
    """A text, what its states are, and whether all of them must be chunks."""

    text: str
    states: dict[str, tuple[str, ...]]
    chunk: bool


@dataclass
class _Writer:
    draw: Any
    wide: bool
    used: dict[str, str] = field(default_factory=dict)
    states: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    outs: int = 0
    chunk: bool = True

    # ------------------------------------------------ values of one token
    def of(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(0, 99)) >= 100 - percent)  # shrinks to no

    def name(self, *options: str) -> str:
        found = str(self.of(*options))
        self.used[found] = DECLARED[found]
        return found

    def vector(self, dim: str, depth: int = 1) -> str:
        """[dim] from inputs and params alone."""
        kind = self.of("leaf", "leaf", "map", "scaled", "sum", "softmax", "unit") if depth else "leaf"
        if kind == "leaf":
            return self.name(*VECTORS[dim])
        x = self.vector(dim, depth - 1)
        if kind == "map":
            return f"{self.of('silu', 'tanh', 'sigmoid', 'square', 'sin')}({x})"
        if kind == "scaled":
            return f"({self.scalar()} * {x})"
        if kind == "sum":
            return f"({x} {self.of('+', '-')} {self.vector(dim, 0)})"
        return f"softmax[{dim}]({x})" if kind == "softmax" else f"({x} * rsqrt(sum[{dim}](square({x})) + 0.5))"

    def scalar(self) -> str:
        kind = self.of("b", "number", "const", "sigmoid", "product", "scale", "exp")
        if kind in ("b", "scale"):
            return self.name(kind)
        if kind == "const":
            return self.name("c")
        if kind == "sigmoid":
            return f"sigmoid({self.name('f', 'i')})"
        if kind == "product":
            return f"({self.name('q', 'k')} @ {self.name('k', 'p', 'w')})"
        return f"exp(-abs({self.name('i')}))" if kind == "exp" else str(self.of("0.5", "1.5", "-1"))

    # ------------------------------------------------ decays
    def decay(self, dims: tuple[str, ...]) -> str | None:
        """A factor of a state; None is 1.  In the scalar class the same for the whole state."""
        sides = [d for d in dims if self.wide and len(dims) == 2]
        kind = self.of("none", "log", "sigmoid", "number", "value", "param", "reset", "twice", *sides, *sides,
                       *(["both"] if len(sides) == 2 else []))
        if kind in ("K", "V"):
            return self.side_decay(kind)
        if kind == "both":
            return f"{self.side_decay('K')} * {self.side_decay('V')}"
        return {"none": lambda: None, "log": lambda: f"exp({self.name('g', 'h')})",
                "sigmoid": lambda: f"sigmoid({self.name('f')})",
                "number": lambda: self.of("0.9", "-0.5", "0.5 ** 0.25"), "value": lambda: self.name("a", "b"),
                "param": lambda: f"exp({self.name('s')})" if self.chance(50) else self.name("e"),
                "reset": lambda: f"where({self.name('b')} > 0.9, 0, exp({self.name('g')}))",
                "twice": lambda: f"exp({self.name('g')}) * exp({self.name('h')})"}[kind]()

    def side_decay(self, dim: str) -> str:
        if dim == "K":
            return str(self.of(f"exp({self.name('gk')})", self.name("ak"), f"exp({self.name('ek')})")) \
                if self.chance(50) else f"exp({self.name('gk')})"
        return f"exp({self.name('gv')})" if self.chance(50) else self.name("av")

    # ------------------------------------------------ reads and writes
    def read(self, state: str, want: str | None = None) -> tuple[str, str]:
        """(dims, text) of something read from a state as it is now: dims "K", "V" or "" for a number."""
        dims = self.states[state]
        if dims == MATRIX:
            kind = want or self.of("V", "V", "K", "")
            if kind == "V":
                q = self.vector("K")
                return "V", self.of(f"({q} @ {state})", f"sum[K]({q} * {state})")
            if kind == "K":
                return "K", f"({state} @ {self.vector('V')})"
            return "", f"({self.vector('K')} @ {state} @ {self.vector('V')})"
        (dim,) = dims
        return (dim, state) if want == dim or (want is None and self.chance(30)) else \
            ("", f"({self.vector(dim)} @ {state})")

    def write(self, state: str) -> str:
        """What is added to a state: from the token, sometimes from what was read of an earlier state."""
        dims, earlier = self.states[state], list(self.states)[:list(self.states).index(state)]
        parts = []
        for d in dims:
            source = [s for s in earlier if self.states[s] in (MATRIX, (d,))] if self.chance(15) else []
            parts.append(self.read(self.of(*source), d)[1] if source else self.vector(d))
            earlier = [] if source else earlier
        return " * ".join([*([self.scalar()] if self.chance(40) else []), *parts])

    def update(self, state: str) -> str:
        dims = self.states[state]
        writes = [self.write(state) for _ in range(self.draw(st.integers(0 if dims == MATRIX else 1, 2)))]
        added, d = " + ".join(writes), self.decay(dims)
        if d is None:
            return f"{state} += {added}" if added else f"{state} = {state} + {self.write(state)}"
        shape = self.of("plain", "outside", "difference")
        if shape == "outside" and added:
            return f"{state} = {d} * ({state} + {added})"
        decayed = f"{state} - (1 - {d}) * {state}" if shape == "difference" and " " not in d else f"{d} * {state}"
        return f"{state} = {decayed} + {added}" if added else f"{state} = {decayed}"

    # ------------------------------------------------ corrections
    def correction(self, state: str, side: str) -> str:
        """A low-rank term that reads the state along `side`, and what it writes."""
        other, keys = ("V", ("k", "p")) if side == "K" else ("K", ("u",))
        erase, at = self.name(*keys), self.name(*keys)
        seen = f"({erase} @ {state})" if side == "K" else f"({state} @ {erase})"
        strength = self.of(self.name("b"), "0.5", self.name("bv" if side == "K" else "bk") if self.chance(30) else "1")
        if self.chance(60):
            return f"{strength} * {at} * ({self.vector(other, 0)} - {seen})"
        return f"{self.of('-', '-', '')}{strength} * {at} * {seen}"

    def corrected(self, state: str, side: str) -> list[str]:
        """Updates of a matrix state with corrections: read before or after the decay, or of the half-updated state."""
        d = self.decay(MATRIX)
        found = [f"{state} = {d} * {state}"] if d is not None and self.chance(60) else []
        left = state if found or d is None else f"{d} * {state}"
        terms = [self.correction(state, side) for _ in range(self.draw(st.integers(1, 2)))]
        found.append(f"{state} = {left} + {' + '.join(terms)}".replace("+ -", "- "))
        if self.chance(30):
            found.append(f"{state} += {self.correction(state, side)}".replace("+= -", "-= "))
        if side == "K" and self.chance(20):
            for n in ("kn", "vn", "bn"):
                self.used[n] = DECLARED[n]
            found.append(f"for n in N {{\n        {state} += bn[n] * kn[n] * (vn[n] - kn[n] @ {state})\n    }}")
        return found

    # ------------------------------------------------ the body
    def out(self) -> str:
        """An out: reads of states as they are here, and work around them."""
        dims, value = self.read(self.of(*self.states))
        for _ in range(self.draw(st.integers(0, 2))):
            kind = self.of("map", "product", "quotient", "gate", "skip")
            if kind == "map":
                value = f"tanh({value})"
            elif kind in ("product", "quotient"):
                more, other = self.read(self.of(*self.states))
                if more and dims and more != dims:
                    continue
                dims = dims or more
                value = f"{value} * {other}" if kind == "product" else f"{value} / (1 + square({other}))"
            elif dims:
                value = f"silu({self.vector(dims)}) * ({value})" if kind == "gate" else f"{value} + {self.vector(dims)}"
        self.outs += 1
        name = f"o{self.outs}" + (f"[{dims}]" if dims else "")
        return f"out {name} = {value}"

    def body(self) -> None:
        many = self.draw(st.integers(1, 3))
        shapes = [MATRIX if n == 0 else self.of(MATRIX, ("K",), ("V",)) for n in range(many)]
        self.states = dict(zip(("S", "M", "Z"), shapes, strict=False))
        order = [s for s in self.states for _ in range(2 if self.chance(25) else 1)]
        for state in order:
            if self.chance(25):
                self.lines.append(self.out())
            if self.wide and self.states[state] == MATRIX and self.chance(70):
                self.lines += self.corrected(state, self.side(state))
            else:
                self.lines.append(self.update(state))
        self.lines.append(self.out())

    # ------------------------------------------------ states that need each other
    def coupled(self) -> None:
        """Two or three matrices that take over from each other by numbers, corrected by what any of them holds."""
        names = ("S", "M", "Z")[:2 + self.chance(25)]
        self.states, side = dict.fromkeys(names, MATRIX), self.of("K", "K", "V")
        for state in names:
            if self.chance(25):
                self.lines.append(self.out())
            d = self.decay(MATRIX)
            terms = [state if d is None else f"{d} * {state}"]
            for other in names:
                if other != state and self.chance(60):
                    terms.append(f"{self.of('0.3', '-0.3', '0.2 * ' + self.name('a'))} * {other}")
            added = [f"0.5 * {self.correction(self.of(*names), side)}".replace("* -", "* ") if self.chance(60)
                     else f"{self.vector('K')} * {self.vector('V')}" for _ in range(self.draw(st.integers(1, 2)))]
            self.lines.append(f"{state} = {' + '.join([*terms, *added])}")
        self.lines.append(self.out())

    def side(self, state: str) -> str:
        """One side a state: corrections on both are no chunk."""
        return self.__dict__.setdefault("_sides", {}).setdefault(state, self.of("K", "K", "V"))


@st.composite
def specs(draw: Any, wide: bool = False, coupled: bool = False) -> Spec:
    """A spec of affine states. `wide`: decays along dims, low-rank corrections, micro-steps too; `coupled`: matrices
    that need each other."""
    w = _Writer(draw, wide)
    w.coupled() if coupled else w.body()
    loops = any("for n in N" in line for line in w.lines)
    for dim, name in (("K", "q"), ("V", "v")):  # some tensor must say how large a dim is
        if not any(f"[{dim}]" in text and "const" not in text for text in w.used.values()):
            w.used[name] = DECLARED[name]
    header = [f"    {w.used[n]}" for n in DECLARED if n in w.used and w.used[n].startswith("in")]
    header = header or ["    in q[K]"]
    header += [f"    {w.used[n]}" for n in DECLARED if n in w.used and not w.used[n].startswith("in")]
    header += [f"    state {s}[{', '.join(dims)}]" for s, dims in w.states.items()]
    lines = [f"    {line}" for line in w.lines]
    dims = "K, V, N" if loops else "K, V"
    return Spec("\n".join([f"mixer m({dims}) {{", *header, *lines, "}"]) + "\n", w.states, w.chunk)
