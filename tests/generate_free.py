"""Specs that nobody wrote, over the whole language: what `generate` holds together by class is drawn freely here.

Complex values, inputs that are matrices, square states, transposes, loops with picks, lags of locals, positions and
indices in decays and conditions, semirings over matrices, outs that are whole states, consts, losses' gradients.
Everything stays bounded: decays at most 1, what is corrected by keys of norm at most 1, all else squashed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.generate import Spec

Dims = tuple[str, ...]
DECLARED = {
    "q": "in q[K]", "k": "in k[K] where norm[K](k) <= 1", "p": "in p[K] where norm[K](p) <= 1", "v": "in v[V]",
    "u": "in u[V] where norm[V](u) <= 1", "x": "in x[K, V]", "y": "in y[E]", "l": "in l[K, E]",
    "g": "in g where g <= 0", "gk": "in gk[K] where gk <= 0", "gv": "in gv[V] where gv <= 0",
    "gx": "in gx[K, V] where gx <= 0", "a": "in a where -1 <= a <= 1", "ak": "in ak[K] where -1 <= ak <= 1",
    "b": "in b where 0 <= b <= 1", "bk": "in bk[K] where 0 <= bk <= 1", "bv": "in bv[V] where 0 <= bv <= 1",
    "f": "in f", "i": "in i", "kn": "in kn[N, K] where norm[K](kn) <= 1", "vn": "in vn[N, V]",
    "bn": "in bn[N] where 0 <= bn <= 1", "z": "in z[K] complex", "zk": "in zk[K] complex where norm[K](zk) <= 1",
    "zv": "in zv[V] complex", "lam": "in lam complex where abs(lam) <= 1",
    "kp": "in kp[P, K] where norm[P, K](kp) <= 1", "vp": "in vp[P, V]", "wp": "in wp[P]",
    "lk": "in lk[K] complex where abs(lk) <= 1", "w": "param w[K]", "D": "param D[V]",
    "A": "param A[K, V] where A <= 0", "s": "param s where s <= 0", "e": "param e where -1 <= e <= 1",
    "R": "param R[K, E]", "cw": "param cw[W]", "wz": "param wz[K] complex", "wn": "param wn[N]", "th": "param th[K]",
    "lp": "param lp[K] complex where abs(lp) < 1",
    "c": "const c = 0.5", "scale": "const scale = K ** -0.5", "far": "const far = 2",
}
OF: dict[Dims, tuple[str, ...]] = {
    (): ("f", "i", "b", "a", "e", "c", "scale"), ("K",): ("q", "k", "p", "w", "bk", "th"),
    ("V",): ("v", "u", "D", "bv"), ("E",): ("y",), ("K", "V"): ("x", "A"), ("K", "E"): ("l", "R"),
    ("N", "K"): ("kn",), ("P",): ("wp",), ("P", "K"): ("kp",), ("P", "V"): ("vp",),
    ("N", "V"): ("vn",), ("N",): ("bn", "wn"),
}
COMPLEX: dict[Dims, tuple[str, ...]] = {(): ("lam",), ("K",): ("z", "zk", "wz", "lk"), ("V",): ("zv",)}
MAPS = (
    "silu({x})", "tanh({x})", "sigmoid({x})", "sin({x})", "cos({x} + 0.3)", "(elu({x}) + 1)", "exp(-square({x}))",
    "softplus({x})", "gelu({x})", "exp(minimum({x}, 0.5))", "clamp({x}, -0.4, 0.3)", "relu({x} - 0.1)",
    "sign({x} + 0.01)",
    "where({x} > 0.1, {x}, 0.2)", "(1 - {x})", "abs({x} + 0.2)", "(1 / (1 + square({x})))", "logsigmoid({x})", "-({x})",
    "log1p(square({x}))", "expm1(-abs({x}))", "sqrt(1 + square({x}))", "rsqrt(0.5 + square({x}))",
    "log(1.5 + sin({x}))",
    "(1 + square({x})) ** -0.5", "tanh({x}) ** 3", "(0.5 + abs({x})) ** c", "logaddexp({x}, 0.3)", "maximum({x}, -0.2)",
    "stop_gradient({x})", "({x} > 0.05)",
)
UNITS = ("({x} * rsqrt(sum[{d}](square({x})) + 0.5))", "softmax[{d}]({x})", "({x} / (norm[{d}]({x}) + 0.1))")
TWO = ("({x} + {y})", "({x} - {y})", "({x} * {y})", "({x} * {y})", "({x} / (1 + square({y})))", "maximum({x}, {y})",
       "minimum({x}, {y})", "where({y} < {x}, {x}, sin({y}))", "logaddexp({x}, {y})", "where({t}, {x}, {y})",
       "({x} / (0.5 + abs({y})))")
TESTS = (  # conditions of a token
    "f > 0", "f > i", "pos % 3 == 0", "pos % 4 < 2", "pos > 5", "b > 0.3 and f < 0.5", "not a > 0", "0.2 < b <= 0.8",
    "index[K] % 2 == 0", "index[V] < 2", "index[K] < pos", "lag(f, 1) > 0", "b > 0.9 or pos == 0", "c > 0.4",
    "(pos // 2) % 2 == 0", "max[K](q) > 0.3",
)
PLACES = ("cos(0.3 * pos)", "(1 / (pos + 1))", "(pos % 3)", "((pos // 2) % 2)", "log1p(pos)", "lag(f, 2)",
          "lag(b, far)", "sum[W](cw * lag[W](f))", "mean[W](lag[W](i))")
PLACES_OF = {"K": ("index[K] / K", "(index[K] % 2)", "cos(pos * 10 ** (-index[K] / K))", "lag(q, 1)", "lag(k, far)",
                   "sum[W](cw * lag[W](q))", "max[W](lag[W](p))", "(softmax[W](cw) @ lag[W](k))"),
             "V": ("exp(-index[V])", "lag(v, 1)", "sum[W](cw * lag[W](v))", "(index[V] == 1)")}


TURNS: dict[Dims, tuple[str, ...]] = {  # complex decays
    (): ("lam", "exp(g + 1j * f)", "exp(1j * i)", "(b * 1j)", "lag(lam, 1)"),
    ("K",): ("lk", "lp", "exp(gk + 1j * q)", "exp(1j * th)", "exp(g + 1j * th * pos)", "exp(-exp(th) + 1j * index[K])",
             "(bk * exp(1j * f))"),
}
NAMED: dict[Dims, tuple[str, ...]] = {  # decays
    (): ("exp(g)", "a", "b", "e", "exp(s)", "c", "0.9", "-0.7"), ("K",): ("exp(gk)", "ak", "bk", "(1 - bk)"),
    ("V",): ("exp(gv)", "bv"), ("K", "V"): ("exp(gx)", "exp(b * A)", "exp(A)"),
}
FADING = ("exp(-abs({x}))", "tanh({x})", "exp(minimum({x}, 0))", "(1 / (1 + exp({x})))", "clamp({x}, 0, 1)",
          "exp(-softplus({x}))", "cos({x})", "(1 - sigmoid({x}))")
SEMIRINGS = ("maximum({s} - abs({d}), {x})", "minimum({s} + abs({d}), {x})", "logaddexp({s} - abs({d}) - 0.2, {x})",
             "maximum(sigmoid({d}) * {s}, {x})", "maximum({s} - 0.3, {x})", "where({x} > {s}, {x}, 0.5 * {s})")
CELLS = ("tanh({x})", "tanh({s} + {x})", "0.5 * {s} + tanh({x})", "clamp({s} + {x}, -1, 1)",
         "{s} + 0.3 * (tanh({x}) - {s})")
LOOPS: dict[Dims, str] = {
    ("K", "V"): "{s} = {d}{s} + bn[n] * kn[n] * (vn[n] - kn[n] @ {s})", ("K",): "{s} = {d}{s} + wn[n] * kn[n]",
    ("V",): "{s} = {d}{s} + bn[n] * vn[n] * (n + 1)", (): "{s} = {d}{s} + 0.3 * wn[n] * sum[K](kn[n])",
}
LOSSES = ("0.5 * sum(square(k @ {s} - v))", "0.5 * b * sum(square({s} @ u - q))", "sum(sqrt(1 + square(k @ {s} - v)))",
          "-(k @ {s} @ u)", "0.5 * sum(square(k @ {s} - v)) + 0.05 * sum(square({s}))")


@dataclass
class _Free:
    draw: Any
    used: dict[str, str] = field(default_factory=dict)
    states: dict[str, Dims] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    locals: dict[str, Dims] = field(default_factory=dict)  # of the token alone
    kept: dict[str, Dims] = field(default_factory=dict)  # what was read of states
    complex: set[str] = field(default_factory=set)  # states
    outs: int = 0

    # ------------------------------------------------ choosing
    def of(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(0, 99)) >= 100 - percent)  # shrinks to no

    def text(self, text: str, **parts: str) -> str:
        """Names that the text itself has are declared."""
        for n in re.findall(r"[A-Za-z_]\w*", text):
            if n in DECLARED and not re.search(rf"\b{n}\(", text):
                self.used[n] = DECLARED[n]
        return text.format(**parts) if parts else text

    # ------------------------------------------------ values
    def leaf(self, dims: Dims, read: bool) -> str:
        """A value of these dims, as it is declared, or a product of some."""
        have: list[str] = [n for n, d in self.locals.items() if d == dims]
        if read:
            have += [n for n, d in self.kept.items() if d == dims]
            have += [n for n, d in self.states.items() if d == dims and n not in self.complex] * 3
        if have and self.chance(50):
            return str(self.of(*have))
        if dims == () and self.chance(20):
            return self.text(self.of(*PLACES))
        if len(dims) == 1 and dims[0] in PLACES_OF and self.chance(15):
            return self.text(self.of(*PLACES_OF[dims[0]]))
        if dims in COMPLEX and self.chance(8):
            return f"{self.of('real', 'imag', 'abs')}({self.turned(dims)})"
        if dims in OF and (len(dims) < 2 or self.chance(60)):
            return self.text(self.of(*OF[dims]))
        if len(dims) > 1:
            return f"({self.leaf(dims[:1], read)} * {self.leaf(dims[1:], read)})"
        return "0.5"

    def turned(self, dims: Dims, depth: int = 1) -> str:
        """A complex value of the token."""
        if dims not in COMPLEX:
            return f"({self.turned(dims[:1], 0)} * {self.turned(dims[1:], 0)})" if dims else "0.3j"
        x = self.text(self.of(*COMPLEX[dims]))
        kind = self.of("plain", "plain", "conj", "product", "phase", "lag", "real") if depth else "plain"
        return {"plain": lambda: x, "conj": lambda: f"conj({x})", "lag": lambda: f"lag({x}, 1)" if "in " in DECLARED[x]
                else x, "product": lambda: f"({x} * {self.value(dims, 0)})",
                "phase": lambda: f"exp(1j * {self.value(dims, 0)})",
                "real": lambda: f"({self.value(dims, 0)} + 1j * {self.value(dims, 0)})"}[kind]()

    def value(self, dims: Dims, depth: int = 2, read: bool = False) -> str:
        """A real value of these dims; `read`: states may be read in it."""
        kinds = ["leaf", "map", "two", "sum", "unit", "contract", "reduce", "part"] if depth > 0 else ["leaf"]
        kind = self.of(*kinds)
        if read and kind in ("leaf", "map") and self.chance(60):
            found = self.read(dims, depth - 1)
            return found if kind == "leaf" else str(self.of(*MAPS)).format(x=found)
        if kind == "map":
            return self.text(self.of(*MAPS), x=self.value(dims, depth - 1, read))
        if kind in ("two", "sum"):
            less = tuple(d for d in dims if self.chance(50))
            x, y = self.value(dims, depth - 1, read), self.value(less, depth - 1, read)
            shape = self.of(*TWO[:4]) if kind == "sum" else self.of(*TWO)
            return str(shape).format(x=x, y=y, t=self.test(dims))
        if kind == "unit" and dims:
            return str(self.of(*UNITS)).format(x=self.value(dims, depth - 1, read), d=self.of(*dims))
        if kind in ("contract", "reduce"):
            free = [d for d in ("K", "V", "E", "N", "P") if d not in dims and {(*dims, d), (d, *dims)} & {*OF}]
            if free:
                d = self.of(*free)
                wide = (*dims, d) if (*dims, d) in OF else (d, *dims)
                x = self.value(wide, depth - 1, read)
                if kind == "reduce":
                    return f"{self.of('max', 'mean', 'sum', 'norm', 'min')}[{d}]({x})"
                return f"({x} @ {self.value((d,), depth - 1)})"
        return self.leaf(dims, read)

    def test(self, dims: Dims) -> str:
        fit = [t for t in TESTS if all(d in dims for d in re.findall(r"index\[(\w)\]", t))]
        return self.text(self.of(*fit))

    def read(self, dims: Dims, depth: int = 1) -> str:
        """Something real with these dims, read of a state as it is here; a token's value where there is none such."""
        options = []
        for s, own in self.states.items():
            name = s if s not in self.complex else self.of(
                f"real({s})", f"imag({s})", f"real(conj({s}) * 1j)", f"abs({s})")
            if own == dims:
                options.append(name)
                if own == ("K", "E") and name == s and self.chance(40):
                    options += [f"{s}[E, K]", f"({s} + {s}[E, K])"]
                if self.chance(40):
                    options += [f"softmax[{own[0]}]({name})"] if own else []
            elif set(dims) < set(own):
                over = tuple(d for d in own if d not in dims)
                if over in OF:
                    options += [f"({self.value(over, min(depth, 1))} @ {name})"] * 2
                else:
                    x = name
                    for d in over:
                        x = f"({self.value((d,), min(depth, 1))} @ {x})"
                    options += [x, x]
                if s in self.complex and over == ("K",):
                    options.append(f"real({self.turned(over)} @ {s})")
                if self.chance(25) and len(over) == 1:
                    options.append(f"{self.of('max', 'mean', 'norm', 'sum')}[{over[0]}]({name})")
        if not options:
            return self.leaf(dims, True)
        return str(self.of(*options))

    # ------------------------------------------------ updates
    def decay(self, dims: Dims, turned: bool) -> str | None:
        """At most 1 in modulus, of some of the dims."""
        some = tuple(d for d in dims if self.chance(45))
        if turned and self.chance(70):
            mine = self.of(*[d for d in ((), ("K",)) if set(d) <= set(dims)])
            return self.text(self.of(*TURNS[mine]))
        kind = self.of("none", "log", "sigmoid", "plain", "places", "test", "any", "any", "product")
        if kind == "product" and len(dims) > 1:
            return " * ".join(filter(None, (self.decay((d,), False) for d in dims))) or None
        if kind in ("log", "plain") and some in NAMED:
            return self.text(self.of(*NAMED[some]))
        if kind == "sigmoid":
            return f"sigmoid({self.value(some, 1)})"
        if kind == "places":
            more = ("exp(-index[K] / 2)", "exp(-lag(bk, 2))") if "K" in dims else ()
            return self.text(self.of("exp(-1 / (pos + 1))", "(1 - 1 / (pos + 2))", "where(pos % 4 == 3, 0, 0.9)",
                                     "exp(-lag(b, 1))", *more))
        if kind == "test":
            test, yes = self.test(some), self.of("0", "1", "-1", "0.5")
            return f"where({test}, {yes}, {self.text(self.of('1', 'exp(-b)', '0.8'))})"
        if kind == "any":
            return str(self.of(*FADING)).format(x=self.value(some, 1))
        return None

    def added(self, dims: Dims, state: str, turned: bool) -> str:
        if turned and self.chance(60):
            parts = [self.turned((d,)) if (d,) in COMPLEX else self.value((d,), 1) for d in dims]
            return " * ".join(parts) or self.turned(())
        read = self.chance(25)
        if len(dims) < 2 and self.chance(6) and dims in ((), ("K",), ("V",)):  # a running sum of logarithms
            return self.text({(): "g", ("K",): "gk", ("V",): "gv"}[dims])
        if len(dims) > 1 and self.chance(65):
            parts = [self.value((d,), 1, read and n == 0) for n, d in enumerate(dims)]
            more = [self.value((), 1, read)] if self.chance(30) else []
            return self.squashed(" * ".join([*more, *parts]), read)
        return self.squashed(self.value(dims, 2, read), read)

    def squashed(self, x: str, read: bool) -> str:
        return f"tanh({x})" if read else x

    def correction(self, state: str, dims: Dims) -> str:
        side = self.of(*dims)
        names = {"K": ("k", "p", "(k * bk)", "(k * softmax[K](q))", "lag(k, 1)"), "V": ("u", "(u * bv)"),
                 "E": ("(y / (1 + norm[E](y)))",)}
        if side not in names:
            return self.text("0.1 * a * ") + state
        key, at = (self.text(self.of(*names[side])) for _ in range(2))
        at = key if self.chance(50) else at
        rest = tuple(d for d in dims if d != side)
        own = [n for d, n in (("V", "bv"), ("K", "bk")) if d in rest]
        strength = self.text(self.of("b", "0.5", "c", *own))
        seen = f"({key} @ {state})"
        seen = f"stop_gradient{seen}" if self.chance(7) else seen
        wanted = f"{self.value(rest, 1)} - " if self.chance(60) else ""
        return f"{strength} * {at} * ({wanted}{seen})" if wanted else f"-{strength} * {at} * {seen}"

    def update(self, state: str) -> list[str]:
        dims, turned = self.states[state], state in self.complex
        if turned:
            kind = self.of("affine", "affine", "test")
        else:
            kind = self.of(*["affine"] * 4, *(["corrected"] * 3 if dims else []), "semiring", "cell", "gated", "test",
                           "loop", "loss" if dims == ("K", "V") else "affine")
        if kind == "corrected":
            d, found = self.decay(tuple(x for x in dims if self.chance(60)), False), []
            if d and self.chance(60):
                found, d = [f"{state} = {d} * {state}"], None
            terms = [self.correction(state, dims)] + ([self.added(dims, state, False)] if self.chance(40) else [])
            left = f"{d} * {state}" if d else state
            return [*found, f"{state} = {left} + {' + '.join(terms)}".replace("+ -", "- ")]
        if kind == "semiring":
            d = self.value(tuple(x for x in dims if self.chance(50)), 1)
            x = self.value(dims, 1, self.chance(20))
            return [f"{state} = " + str(self.of(*SEMIRINGS)).format(s=state, d=d, x=x)]
        if kind == "cell":
            x = self.value(dims, 2, True)
            return [f"{state} = " + str(self.of(*CELLS)).format(s=state, x=x)]
        if kind == "gated":
            z = f"sigmoid({self.value(dims if self.chance(50) else (), 1, self.chance(40))})"
            n = f"z{len(self.lines)}"
            return [f"{n} = {z}", f"{state} = {n} * {state} + (1 - {n}) * {self.added(dims, state, False)}"]
        if kind == "test":
            d = self.decay(dims, turned)
            new = f"{d} * {state} + {self.added(dims, state, turned)}" if d else self.added(dims, state, turned)
            return [f"{state} = where({self.test(dims)}, {state}, {new})" if self.chance(60)
                    else f"{state} = where({self.test(dims)}, {self.of('0', '0.5')}, {new})"]
        if kind == "loop" and dims in LOOPS:
            d = self.of("", "exp(-bn[n]) * ", "where(n == 0, 0.5, 1) * ", "sigmoid(wn[n]) * ")
            return ["for n in N {\n        " + self.text(LOOPS[dims].replace("{d}", d)).format(s=state) + "\n    }"]
        if kind == "loss":
            loss, n = self.text(self.of(*LOSSES)).format(s=state), f"l{len(self.lines)}"
            return [f"{n} = {loss}", f"{state} = {state} - 0.5 * {self.text('b')} * grad[{state}]({n})"]
        d = self.decay(dims, turned)
        parts = [self.added(dims, state, turned) for _ in range(self.of(1, 1, 2))]
        shape = self.of("plain", "plain", "plus", "outside")
        if d is None or shape == "plus":
            d = d or "0.9"
            parts = [f"0.1 * {x}" for x in parts]
            return [f"{state} = {d} * {state}", f"{state} += {' + '.join(parts)}"]
        if shape == "outside":
            return [f"{state} = {d} * ({state} + {' + '.join(parts)})"]
        return [f"{state} = {d} * {state} + {' + '.join(parts)}"]

    # ------------------------------------------------ the body
    def out(self) -> None:
        dims = self.of((), ("K",), ("V",), ("V",), ("K", "V"), *self.states.values())
        if any(n in self.complex for n in self.states) and self.chance(20):
            name = self.of(*[n for n in self.states if n in self.complex])
            dims, x = self.states[name], f"{name} * {self.turned(())}"
        else:
            x = self.value(dims, self.of(1, 2), True) if self.chance(60) else self.read(dims)
            if self.chance(30):
                x = f"({self.read(dims)}) * ({x})" if self.chance(50) else f"{self.read(dims)} + {x}"
        self.outs += 1
        self.lines.append(f"out o{self.outs}" + (f"[{', '.join(dims)}]" if dims else "") + f" = {x}")

    def body(self) -> None:
        every = ("K", "V"), ("K", "V"), ("K",), ("V",), (), ("K", "E"), ("P", "K", "V")
        shapes = [self.of(*every) for _ in range(self.of(1, 1, 2, 2, 3))]
        self.states = dict(zip(("S", "M", "Z"), shapes, strict=False))
        self.complex = {n for n, d in self.states.items() if "E" not in d and "P" not in d and self.chance(18)}
        for n in range(self.of(0, 0, 1, 2)):
            dims = self.of((), ("K",), ("V",), ("K", "V"))
            x = self.value(dims, 2)
            self.lines.append(f"t{n} = {x}")
            self.locals[f"t{n}"] = dims
            if self.chance(30):
                self.lines.append(f"t{n}x = lag(t{n}, {self.of(1, 2)})")
                self.locals[f"t{n}x"] = dims
        order = [s for s in self.states for _ in range(2 if self.chance(15) else 1)]
        for state in self.draw(st.permutations(order)):
            if self.chance(25):
                self.out()
            if self.chance(15):
                dims = self.of((), ("K",), ("V",))
                self.lines.append(f"r{len(self.lines)} = {self.read(dims)}")
                self.kept[f"r{len(self.lines) - 1}"] = dims
            self.lines += self.update(state)
        self.out()

    def start(self, state: str) -> str:
        if not self.chance(20):
            return ""
        dims = self.states[state]
        options = {("K", "V"): ("w * D", "exp(A)"), ("K",): ("w", "0.1 * index[K]", "th + 1"), ("V",): ("D",),
                   (): ("e",)}
        return " = " + self.text(self.of(*options.get(dims, ()), "0.5", "c"))


@st.composite
def free_specs(draw: Any) -> Spec:
    w = _Free(draw)
    w.body()
    starts = {s: w.start(s) for s in w.states}
    body = "\n".join([*w.lines, *starts.values(), *map(str, w.states.values())])
    if re.search(r"\bc\b", body):
        w.used["c"] = DECLARED["c"]
    for dim, name in (("K", "q"), ("V", "v")):
        told = any(re.search(rf"\b{dim}\b", t.split(" where")[0]) and "const" not in t for t in w.used.values())
        if not told and (re.search(rf"\b{dim}\b", body) or any(dim in t for t in w.used.values())):
            w.used[name] = DECLARED[name]
    if not any(t.startswith("in") for t in w.used.values()):
        w.used["q"] = DECLARED["q"]
    declared = [w.used[n] for n in DECLARED if n in w.used]
    header = [t for kind in ("in", "param", "const") for t in declared if t.startswith(kind + " ")]
    header += [f"state {s}[{', '.join(d)}]{starts[s]}".replace("[]", "") for s, d in w.states.items()]
    every = "\n".join([*header, body])
    dims = [d for d in ("K", "V", "E", "N", "W", "P") if re.search(rf"\b{d}\b", every)]
    if "E" in dims and "K" not in dims:
        dims.insert(0, "K")
    names = ", ".join({"E": "E = K", "W": "W = 3", "P": "P = 2"}.get(d, d) for d in dims)
    lines = [f"    {t}" for t in (*header, *w.lines)]
    return Spec("\n".join([f"mixer m({names}) {{", *lines, "}"]) + "\n", w.states, False)
