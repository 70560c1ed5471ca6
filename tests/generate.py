"""Specs that nobody wrote, drawn by hypothesis: affine states of the scalar-decay class or the whole one, scans, cells.

What is drawn is the text, so that parsing, classification, derivation and emission are all met; a failing spec
shrinks to a short text.  Everything stays bounded: keys have norm at most 1, decays at most 1.
"""

from __future__ import annotations

import re
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
    "kp": "in kp[K, P] where norm[K, P](kp) <= 1", "vp": "in vp[P, V]", "qp": "in qp[P, K]",
    "gp": "in gp[P] where gp <= 0", "wp": "in wp[P] where -1 <= wp <= 1",
    "w": "param w[K]", "D": "param D[V]", "s": "param s where s <= 0", "e": "param e where -1 <= e <= 1",
    "ek": "param ek[K] where ek <= 0", "c": "const c = 0.5", "scale": "const scale = K ** -0.5",
    "one": "const one = 1", "zero": "const zero = 0", "R": "param R[K, J]",
    "cw": "param cw[W, K]",
}
CONSTS = ("c", "one", "zero")  # with values in [0, 1], and so are the calls' own
VECTORS = {"K": ("q", "k", "p", "w"), "V": ("v", "u", "D")}
MAPS = (  # also such that are not 0 at 0: what a kernel holds behind the end of a dim is 0 there
    "silu({x})", "tanh({x})", "sigmoid({x})", "square({x})", "sin({x})", "cos({x})", "(elu({x}) + 1)",
    "exp(-square({x}))", "softplus({x})", "gelu({x})", "exp(minimum({x}, 0.5))", "clamp({x}, -0.4, 0.3)",
    "where({x} > 0, {x}, 0.2)", "(1 - {x})", "abs({x})", "(1 / (1 + square({x})))", "logsigmoid({x})",
)
UNITS = (  # of norm 1 at most
    "({x} * rsqrt(sum[{d}](square({x})) + 0.5))", "softmax[{d}]({x})", "({x} / (norm[{d}]({x}) + 0.1))",
    "({x} / (0.5 + sum[{d}](abs({x}))))",
)
OVER = {  # what is summed, normed or shared out over a dim that no state has: of a loop, of a window, another name of K
    "K": ("sum[N](softmax[N](bn) * kn)", "(norm[N](kn) * {x})", "max[N](kn)", "(softmax[N](bn) @ (kn + {x}))",
          "sum[W](softmax[W](cw) * lag[W](k))", "(norm[W](cw * lag[W](k)) * {x})", "(softmax[W](lag[W](k) @ {x}) @ cw)",
          "(R @ ({x})[J])", "(R[J, K] @ ({x})[J])", "(softmax[J](R) @ ({x})[J])"),
    "V": ("sum[N](softmax[N](bn) * vn)", "(norm[N](vn) * {x})", "(softmax[N](kn @ k) @ vn)", "mean[N](vn + {x})",
          "(softmax[W](sum[K](cw * lag[W](k))) @ lag[W](v))", "(norm[W](lag[W](v)) * {x} * mean(cw))"),
}
DECAYS = (  # from 0 to 1, of one number a token
    "{c}", "(1 - {c})", "(1 - {c} * {b})", "exp((0.1 + {c}) * {g})", "exp(-softplus({f}))",
    "exp(-exp({s}) * softplus({f}))",
    "exp(logsigmoid({f}) / 16)", "where({f} > 0, {c}, exp({g}))", "where({f} > 0 and {i} < 0.5, 0, 1)",
    "where({q} @ {k} > 0, 1, exp({g}))", "(1 / (1 + exp({f})))", "exp(-abs({f} - {i}))", "minimum({b}, {c})",
    "max[K](softmax[K]({k}))", "(1 - 1 / (pos + 2))",
)
SIDES = (  # the same of one number an entry of K
    "(1 - {c} * bk)", "exp(-softplus({k}))", "sigmoid({k} + {f})", "exp((0.1 + {c}) * gk)",
    "exp(-exp(ek) * sigmoid({f}))",
    "where({k} > 0, 0.5, exp(gk))", "where({f} > 0.5, 0, exp(gk))", "softmax[K]({k})", "exp(gk - softplus({i}))",
)
NUMBERS = ("{o}", "({K} @ {x})", "max[K]({x})", "mean[K]({x} * {y})")  # read in cells, of a number a token
NUMBERS_OF_N, NUMBERS_OF_M = ("{n}",), ("norm[K, V]({M})", "({K} @ {M} @ {V})", "max[V]({x} @ {M})")
ENTRIES = (  # the same, a number an entry of K
    "{K}", "{x}", "(R @ {x}[J])", "(w * {x})", "({o} * {x})", "(R @ ({K})[J])", "sum[W](cw * lag[W](k))",
    "(sigmoid({K}) * {x})", "softmax[K]({x} + {K})", "where({x} > 0.1, {K}, {c})", "(index[K] / (pos + 1))",
    "exp(-square({x}))", "(R @ ({x} * {y})[J])",
)
ENTRIES_OF_N, ENTRIES_OF_M = ("({n} * {K})",), ("({M} @ {V})", "(silu({x} @ {M}) @ {M})")
RANKS = (  # sums of outer products
    "(kp @ vp)", "(tanh(kp) @ vp)", "sum[P](wp * kp * vp)", "(kp @ (silu(vp) - {u} * wp))", "sum[P](kp * (wp * {u}))",
    "(kp @ (vp * {b}) - {k} * {u})", "sum[P](kp * vp * (kp @ {k}))", "where({f} > 0, kp @ vp, {k} * {u})",
)
RANK_CORRECTIONS = ("0.5 * (kp @ (square(wp) * (vp - kp @ {S})))", "{b} * kp @ (vp - kp @ {S})",
                    "0.3 * (kp @ (vp - {k} @ {S}))", "{b} * sum[P](kp * (0.5 * {u} - kp @ {S}))")
RANK_READS = ("(wp @ (qp @ {S}))", "sum[P](wp * tanh(qp @ {S}))", "sum[P](qp @ {S})", "max[P]((qp * kp) @ {S})")
BESIDE = (  # what becomes of a state [P, K, V], matrices beside each other
    "{d} * X + kp * vp", "exp(gp) * X + kp * {u}", "{d} * X + kp * vp + {k} * {u} * wp", "exp(gp) * X + {k} * vp",
)
BESIDE_CORRECTED = ("exp(gp) * X + {b} * kp * (vp - sum[K](kp * X))", "exp(gk) * exp(gp) * X + kp * vp",
                    "exp(gv) * X + wp * {k} * ({u} - {k} @ X)")
BESIDE_READS = ("[P, V] = sum[K](qp * X)", "[V] = qp @ X", "[P, V] = {k} @ X", "[V] = wp @ tanh({k} @ X)")
CELLS = (  # what a state s becomes; d: a decay, z: a gate, v: a value of the token
    "tanh({x} + {y})", "{z} * {s} + (1 - {z}) * tanh({x})", "{d} * {s} + tanh({x})", "{d} * tanh({s} + {x})",
    "maximum({d} * {s}, tanh({x}))", "clamp({s} + {x}, -1, 1)", "where({f} > 0, {s}, tanh({x} - {y}))",
    "{s} + {z} * (tanh({x}) - {s})", "tanh({x}) * {s} + {v}", "{d} * {s} + {v}", "minimum({s} + 0.1, {v})",
    "logaddexp({s} - 1, {v})", "maximum({s} - 0.1, {v})", "{z} * {s} + {v}",
)
CELLS_OF_K = ("{s} / (1 + norm[DIMS]({s})) + 0.5 * tanh({x})", "softmax[K]({s} + {x})")
CELLS_OF_M = ("{s} - 0.5 * {b} * grad[{s}](sum(sqrt(1 + square({k} @ {s} - {u}))))",
              "tanh({s} + {b} * {k} * ({u} - {k} @ {s}))")


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
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)  # locals: their dims, the state that they read
    made: dict[str, list[str]] = field(default_factory=dict)  # values of one token, to be met again
    ranks: bool = False  # whether writes, reads and corrections of a rank are drawn, and states of three dims
    beside: bool = False  # whether there is a state X[P, K, V]
    largest: bool = False  # whether a running maximum m is there, as exponents are held below
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

    def filled(self, text: str, **more: Any) -> str:
        """A template: letters in braces are drawn, each once, and what is named is declared."""
        names = {"c": CONSTS, "b": ("b",), "g": ("g", "h"), "f": ("f", "i"), "i": ("i",), "s": ("s",), "q": ("q", "w"),
                 "k": ("k", "p"), "u": ("u", "v", "D")}
        letters = dict.fromkeys(re.findall(r"\{(\w)\}", text))
        drawn = {n: more[n]() if n in more else self.name(*names[n]) for n in letters}
        for n in re.findall(r"\w+", text):
            self.used |= {n: DECLARED[n]} if n in DECLARED else {}
        return text.format(**drawn)

    def vector(self, dim: str, depth: int = 1) -> str:
        """[dim] from inputs and params alone."""
        kind = self.of("leaf", "leaf", "map", "map", "scaled", "sum", "unit", "bigger") if depth else "leaf"
        if depth and self.chance(6):
            return self.filled(self.of(*OVER[dim]), x=lambda: self.vector(dim, 0))
        if kind == "leaf":
            found = self.name(*VECTORS[dim])
            return f"lag({found}, {self.of(1, 2)})" if self.used[found].startswith("in") and self.chance(5) else found
        made = self.made.setdefault(dim, [])
        if made and self.chance(30):
            return str(self.of(*made))
        x = self.vector(dim, depth - 1)
        shapes = {"map": MAPS, "unit": UNITS, "scaled": ("({y} * {x})",), "bigger": ("maximum({x}, {y})",),
                  "sum": ("({x} + {y})", "({x} - {y})")}[kind]
        y = self.scalar() if kind == "scaled" else self.vector(dim, 0) if kind in ("sum", "bigger") else ""
        made.append(str(self.of(*shapes)).format(x=x, y=y, d=dim))
        return made[-1]

    def scalar(self) -> str:
        return self.filled(self.of(
            "{b}", "0.5", "-1", "{c}", "(1 - {c})", "sigmoid({f})", "({q} @ {k})", "scale", "exp(-abs({i}))",
            "cos({i})", "exp(-square({f}))", "({b} > 0.3)", "where({f} > 0, {c}, -1)", "(elu({q} @ {k}) + 1)",
            "(1 / (pos + 1))", "sum[K](abs({k}))",
            *(["exp(i - m)"] if self.largest else [])))

    # ------------------------------------------------ decays
    def earlier(self, state: str) -> list[str]:
        """States that this one may read and that never read it, wherever their lines stand."""
        return list(self.states)[:list(self.states).index(state)]

    def decay(self, state: str, coupled: bool = False) -> str | None:
        """A factor of a state; None is 1.  In the scalar class the same for the whole state."""
        sides = self.states[state] if self.wide else ()
        earlier = [] if coupled else self.earlier(state)
        kind = self.of("none", "log", "sigmoid", "number", "value", "param", "reset", "twice", "filled", "filled",
                       *sides, *sides, *(["both"] if len(sides) == 2 else []), *(["read"] if earlier else []),
                       *(["largest", "largest"] if self.largest else []))
        if kind == "read":
            seen, x = self.read(self.of(*earlier))
            x = f"sum[{seen}]({x})" if seen else x
            return str(self.of("sigmoid({x})", "exp(-abs({x}))", "where({x} > 0, 0.5, 1)")).format(x=x)
        if kind in ("K", "V"):
            return self.side_decay(kind)
        if kind == "both":
            return f"{self.side_decay('K')} * {self.side_decay('V')}"
        return {"none": lambda: None, "largest": lambda: "exp(a_m - m)",
                "filled": lambda: self.filled(self.of(*DECAYS)),
                "log": lambda: f"exp({self.name('g', 'h')})",
                "sigmoid": lambda: f"sigmoid({self.name('f')})",
                "number": lambda: self.of("0.9", "-0.5", "0.5 ** 0.25"), "value": lambda: self.name("a", "b"),
                "param": lambda: f"exp({self.name('s')})" if self.chance(50) else self.name("e"),
                "reset": lambda: f"where({self.name('b')} > 0.9, 0, exp({self.name('g')}))",
                "twice": lambda: f"exp({self.name('g')}) * exp({self.name('h')})"}[kind]()

    def side_decay(self, dim: str) -> str:
        if dim == "K" and self.chance(40):
            return self.filled(self.of(*SIDES))
        if dim == "K":
            return str(self.of(f"exp({self.name('gk')})", self.name("ak"), f"exp({self.name('ek')})")) \
                if self.chance(50) else f"exp({self.name('gk')})"
        return f"exp({self.name('gv')})" if self.chance(50) else self.name("av")

    # ------------------------------------------------ reads and writes
    def read(self, state: str, want: str | None = None) -> tuple[str, str]:
        """(dims, text) of something read from a state as it is now: dims "K", "V" or "" for a number."""
        dims = self.states[state]
        kept = [(d, n) for n, (d, s) in self.seen.items() if s == state and want in (None, d)]
        if kept and self.chance(50):
            return self.of(*kept)  # as it was where the local stands
        if dims == MATRIX:
            kind = want or self.of("V", "V", "K", "")
            if self.wide and self.chance(8):  # corrected for this read alone
                state = self.of("({S} - {b} * {k} * ({p} @ {S}))", "({S} - ({S} @ {u}) * {u})").format(
                    S=state, b=self.name("b"), k=self.name("k"), p=self.name("k", "p"), u=self.name("u"))
            if kind == "V":
                if self.ranks and self.chance(25):
                    return "V", self.filled(self.of(*RANK_READS), S=lambda: state)
                q = self.vector("K")
                shapes = [f"({q} @ {state})", f"sum[K]({q} * {state})"]
                if state in self.states and self.chance(8):  # under another name of K
                    shapes = [self.filled(f"((R @ ({q})[J]) @ {state})"), self.filled(f"((R @ {state}[J, V]) @ ({q}))"),
                              self.filled(f"({state}[J, V] @ (({q}) @ R))")]
                return "V", self.of(*shapes)
            if kind == "K":
                return "K", f"({state} @ {self.vector('V')})"
            return "", f"({self.vector('K')} @ {state} @ {self.vector('V')})"
        (dim,) = dims
        return (dim, state) if want == dim or (want is None and self.chance(30)) else \
            ("", f"({self.vector(dim)} @ {state})")

    def write(self, state: str) -> str:
        """What is added to a state: from the token, sometimes from what was read of an earlier state."""
        dims, earlier = self.states[state], self.earlier(state)
        if dims == MATRIX and self.ranks and self.chance(40):
            return " * ".join([*([self.scalar()] if self.chance(40) else []), self.filled(self.of(*RANKS))])
        parts = []
        for d in dims:
            source = [s for s in earlier if self.states[s] in (MATRIX, (d,))] if self.chance(20) else []
            x = self.read(self.of(*source), d)[1] if source else self.vector(d)
            parts.append(str(self.of("{x}", "{x}", "tanh({x})", *UNITS)).format(x=x, d=d) if source else x)
        if self.chance(10):  # the same for every entry of a dim
            parts.pop()
        return " * ".join([*([self.scalar()] if self.chance(40) or not parts else []), *parts])

    def update(self, state: str) -> str:
        dims = self.states[state]
        writes = [self.write(state) for _ in range(self.draw(st.integers(0 if dims == MATRIX else 1, 2)))]
        added, d = " + ".join(writes), self.decay(state)
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
        erase, at = (str(self.of(*UNITS)).format(x=self.name(*keys), d=side) if self.chance(30) else self.name(*keys)
                     for _ in range(2))
        seen = f"({erase} @ {state})" if side == "K" else f"({state} @ {erase})"
        if side == "K" and self.ranks and self.chance(40):
            return self.filled(self.of(*RANK_CORRECTIONS), S=lambda: state)
        seen = f"stop_gradient{seen}" if self.chance(12) else seen
        strength = self.of(self.name("b"), "0.5", self.name(*CONSTS),
                           self.name("bv" if side == "K" else "bk") if self.chance(30) else "0.9")
        if self.chance(60):
            source = [s for s in self.earlier(state) if self.states[s] == (other,)] if self.chance(30) else []
            wanted = self.read(self.of(*source), other)[1] if source else self.vector(other, 0)
            return f"{strength} * {at} * ({wanted} - {seen})"
        return f"{self.of('-', '-', '')}{strength} * {at} * {seen}"

    def corrected(self, state: str, side: str) -> list[str]:
        """Updates of a matrix state with corrections: read before or after the decay, or of the half-updated state."""
        d = self.decay(state)
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
        sides = {d: [n for n, have in self.states.items() if have == d] for d in (MATRIX, ("K",), ("V",))}
        if sides[MATRIX] and (vectors := sides["K",] + sides["V",]) and self.chance(25):  # two states multiplied
            z, S = self.of(*vectors), self.of(*sides[MATRIX])
            dims, value = "V" if z in sides["K",] else "K", self.of(f"({z} @ {S})", f"({S} @ {z})")
        for _ in range(self.draw(st.integers(0, 2))):
            kind = self.of("map", "product", "quotient", "gate", "skip", "mix", "unit")
            if kind == "map":
                value = str(self.of("tanh({x})", *MAPS)).format(x=f"({value})")
            elif kind in ("product", "quotient", "mix"):
                more, other = self.read(self.of(*self.states))
                if more and dims and more != dims:
                    continue
                dims = dims or more
                shape = {"product": ("{x} * {y}",),
                         "mix": ("{c} * ({x}) + (1 - {c}) * {y}", "where({y} > 0, {x}, {c})"),
                         "quotient": ("({x}) / (1 + square({y}))", "({x}) / maximum(abs({y}), 0.7)",
                                      "({x}) / (abs({y}) + 0.5)")}[kind]
                value = str(self.of(*shape)).format(x=value, y=other, c=self.name(*CONSTS) if kind == "mix" else "")
            elif kind == "unit" and dims:
                value = str(self.of(*UNITS)).format(x=f"({value})", d=dims)
            elif dims and kind in ("gate", "skip"):
                value = f"silu({self.vector(dims)}) * ({value})" if kind == "gate" else f"{value} + {self.vector(dims)}"
        self.outs += 1
        name = f"o{self.outs}" + (f"[{dims}]" if dims else "")
        return f"out {name} = {value}"

    def body(self) -> None:
        many = self.draw(st.integers(1, 3))
        shapes = [MATRIX if n == 0 else self.of(MATRIX, ("K",), ("V",)) for n in range(many)]
        self.states = dict(zip(("S", "M", "Z"), shapes, strict=False))
        if self.wide and self.chance(15):
            self.largest = True
            self.lines += [self.filled(self.of("a_m = m + g", "a_m = m + logsigmoid(f)")),
                           self.filled("m = maximum(a_m, i)")]
        order = [s for s in self.states for _ in range(2 if self.chance(25) else 1)]
        order = self.draw(st.permutations(order))  # who reads whom stays: as it was, then, or as it becomes
        for state in order:
            if self.chance(25):
                self.lines.append(self.out())
            if self.chance(25):
                self.keep()
            if self.wide and self.states[state] == MATRIX and self.chance(70):
                self.lines += self.corrected(state, self.side(state))
            else:
                self.lines.append(self.update(state))
        self.lines.append(self.out())
        if self.ranks and self.chance(25):
            self.beside = True
            update = self.filled(self.of(*BESIDE, *(BESIDE_CORRECTED if self.wide else ())),
                                 d=lambda: self.filled(self.of("{c}", "exp({g})", "{b}")))
            lines = [f"X = {update}", "out oX" + self.filled(self.of(*BESIDE_READS))]
            self.lines += self.draw(st.permutations(lines))

    def keep(self) -> None:
        """A read by a name, for lines below that change its state."""
        state = self.of(*self.states)
        dims, value = self.read(state)
        if value not in self.seen:
            self.lines.append(f"r{len(self.seen)} = {value}")
            self.seen[f"r{len(self.seen)}"] = dims, state

    def start(self, state: str) -> str:
        """What a state is before the first token."""
        if not self.chance(15):
            return ""
        options = {MATRIX: ("w * D", "0.5 * e"), ("K",): ("w", "0.1 * index[K]"), ("V",): ("D",),
                   (): ("e", "s")}[self.states[state]]
        return f" = {self.filled(self.of(*options, '0.5', '{c}', '1 - {c}'))}"

    # ------------------------------------------------ states that need each other
    def coupled(self) -> None:
        """Two or three matrices that take over from each other by numbers, corrected by what any of them holds."""
        names = ("S", "M", "Z")[:2 + self.chance(25)]
        self.states, side = dict.fromkeys(names, MATRIX), self.of("K", "K", "V")
        for state in names:
            if self.chance(25):
                self.lines.append(self.out())
            d = self.decay(state, coupled=True)
            terms = [state if d is None else f"{d} * {state}"]
            for other in names:
                if other != state and self.chance(60):
                    terms.append(f"{self.of('0.3', '-0.3', '0.2 * ' + self.name('a'))} * {other}")
            added = [f"0.5 * {self.correction(self.of(*names), side)}".replace("* -", "* ") if self.chance(60)
                     else self.filled(self.of(*RANKS)) if self.ranks and self.chance(40)
                     else f"{self.vector('K')} * {self.vector('V')}" for _ in range(self.draw(st.integers(1, 2)))]
            self.lines.append(f"{state} = {' + '.join([*terms, *added])}")
        self.lines.append(self.out())

    # ------------------------------------------------ states that are no chunk
    def cells(self) -> None:
        """Vectors, numbers and matrices that squash what they read of each other: scans, and token by token."""
        shapes = [("K",), *(self.of(("K",), ("K",), (), MATRIX) for _ in range(self.draw(st.integers(0, 2))))]
        self.states = dict(zip(("S", "M", "Z"), shapes, strict=False))
        for state in self.draw(st.permutations(list(self.states))):
            if self.chance(25):
                self.lines.append(self.cell_out())
            if self.chance(30):  # as it is here, for lines below
                self.lines.append(f"r{len(self.seen)} = {self.entry(('K',))}")
                self.seen[f"r{len(self.seen)}"] = "K", ""
            self.lines.append(f"{state} = {self.cell(state)}")
        self.lines.append(self.cell_out())

    def mixed(self) -> None:
        """A cell that matrices read, and one that reads them."""
        names = ("Y", *("S", "M")[:self.of(1, 2)], *(["Z"] if self.chance(70) else []))
        self.states = {n: MATRIX if n in "SM" else (self.of("K", "V"),) for n in names}
        for state in names if self.chance(70) else names[::-1]:  # by what was there before the token, then
            if self.chance(25):
                self.lines.append(self.out())
            if state in "SM":
                self.lines += self.corrected(state, self.side(state)) if self.chance(50) else [self.update(state)]
                continue
            (dim,), source = self.states[state], [s for s in names if s in "SM" and state == "Z"]
            x = self.read(self.of(*source), dim)[1] if source else self.vector(dim)
            self.lines.append(f"{state} = " + str(self.of(
                "tanh(0.5 * {s} + {x})", "{s} + 0.5 * (tanh({x}) - sin({s}))", "maximum(0.5 * {s}, tanh({x} - {s}))"
            )).format(s=state, x=x))
        self.lines.append(self.out())

    def entry(self, dims: tuple[str, ...]) -> str:
        """A value of the token and the states, bounded by what they are bounded by."""
        of = {want: [s for s, d in self.states.items() if d == want] for want in (("K",), (), MATRIX)}
        more = {"K": lambda: self.vector("K"), "V": lambda: self.vector("V"), "x": lambda: self.of(*of["K",]),
                "y": lambda: self.of(*of["K",]), "n": lambda: self.of(*of[()]), "M": lambda: self.of(*of[MATRIX]),
                "r": lambda: self.of(*self.seen), "o": self.scalar, "e": lambda: self.entry(("K",))}
        shapes = {(): [*NUMBERS, *(NUMBERS_OF_N if of[()] else ()), *(NUMBERS_OF_M if of[MATRIX] else ())],
                  ("K",): [*ENTRIES, *(ENTRIES_OF_N if of[()] else ()), *(ENTRIES_OF_M if of[MATRIX] else ()),
                           *(["{r}"] if self.seen else [])],
                  MATRIX: ["{e} * {V}"]}[dims]
        return self.filled(self.of(*shapes), **more)

    def cell(self, state: str) -> str:
        """What a state becomes."""
        dims = self.states[state]
        shapes = [*CELLS, *([t.replace("DIMS", ", ".join(dims)) for t in CELLS_OF_K] if dims else []),
                  *(CELLS_OF_M if dims == MATRIX else [])]
        return self.filled(
            self.of(*shapes), x=lambda: self.entry(dims), y=lambda: self.entry(dims), s=lambda: state,
            z=lambda: f"sigmoid({self.entry(dims)})",
            v=lambda: " * ".join(self.vector(n) for n in dims) or self.scalar(),
            d=lambda: self.filled(self.of("0.9", "exp({g})", "{b}", "{c}", *(SIDES if "K" in dims else DECAYS))))

    def cell_out(self) -> str:
        dims = self.of(("K",), ("K",), ())
        self.outs += 1
        value = self.filled(self.of("{x}", "tanh({x})", "({x}) * ({y})", "({x}) / (1 + abs({y}))"),
                            x=lambda: self.entry(dims), y=lambda: self.entry(dims))
        return f"out o{self.outs}{'[K]' if dims else ''} = {value}"

    def side(self, state: str) -> str:
        """One side a state: corrections on both are no chunk."""
        return self.__dict__.setdefault("_sides", {}).setdefault(state, self.of("K", "K", "V"))


@st.composite
def specs(draw: Any, kind: str = "scalar") -> Spec:
    """A spec of affine states whose decay is a number. "wide": decays along dims, low-rank corrections, micro-steps
    too; "ranks": those with sums of outer products and states of three dims; "coupled": matrices that need each other;
    "cells": states that are no chunk; "mixed": matrices and cells."""
    w = _Writer(draw, kind in ("wide", "mixed", "ranks"), ranks=kind == "ranks")
    {"coupled": w.coupled, "cells": w.cells, "mixed": w.mixed}.get(kind, w.body)()
    starts = {s: w.start(s) for s in w.states}
    for dim, name in (("K", "q"), ("V", "v")):  # some tensor must say how large a dim is
        if not any(f"[{dim}]" in text and "const" not in text for text in w.used.values()):
            w.used[name] = DECLARED[name]
    header = [f"    {w.used[n]}" for n in DECLARED if n in w.used and w.used[n].startswith("in")]
    header = header or ["    in q[K]"]
    header += [f"    {w.used[n]}" for n in DECLARED if n in w.used and not w.used[n].startswith("in")]
    header += [f"    state {s}[{', '.join(dims)}]{starts[s]}".replace("[]", "") for s, dims in w.states.items()]
    header += ["    state m = -inf"] if w.largest else []
    header += ["    state X[P, K, V]"] if w.beside else []
    with_dims = {"N": ("kn", "vn", "bn"), "W": ("cw",), "J = K": ("R",), "P = 2": ("kp", "vp", "qp", "wp", "gp")}
    dims = [d for d, names in with_dims.items() if set(names) & set(w.used)]
    lines = [f"    {line}" for line in w.lines]
    text = "\n".join([f"mixer m({', '.join(['K', 'V', *dims])}) {{", *header, *lines, "}"])
    return Spec(text + "\n", w.states, w.chunk)
