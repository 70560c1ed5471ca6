"""Step programs built node by node, so that the runtime is tested without the front end."""

from __future__ import annotations

import math

import torch

from mixc.ir.build import contract, exp
from mixc.ir.derivatives import gradient
from mixc.ir.node import Node, make, number
from mixc.ir.program import Decl, Dim, Program, Range, Result
from mixc.runtime.mixer import Mixer

ZERO, ONE = number(0), number(1)
NEGATIVE = (Range(high=ZERO),)
UNIT = (Range(low=ZERO, high=ONE),)


def In(name: str, *dims: str, kind: str = "real", ranges: tuple[Range, ...] = ()) -> Decl:
    return Decl("in", name, dims, kind, ranges)


def Param(name: str, *dims: str, kind: str = "real", ranges: tuple[Range, ...] = ()) -> Decl:
    return Decl("param", name, dims, kind, ranges)


def State(name: str, *dims: str, kind: str = "real", init: Node | None = None) -> Decl:
    return Decl("state", name, dims, kind, init=init)


def build(name: str, dims: str, decls: list[Decl], outs: dict[str, tuple[str, ...]], **values: Node) -> Mixer:
    """A mixer from its declarations and the values of outs and states by name."""
    found = []
    for text in dims.split():
        dim, _, of = text.partition("=")
        found.append(Dim(dim, size=int(of)) if of.isdigit() else Dim(dim, alias=of or None))
    decls = [*decls, *(Decl("out", n, d, values[n].kind) for n, d in outs.items())]
    results = [Result("out" if n in outs else "next", n, v) for n, v in values.items()]
    return Mixer(Program("step", name, tuple(found), tuple(decls), tuple(results), doc=f"The {name}."))


def gated_delta() -> Mixer:
    d = [In("q", "K"), In("k", "K", ranges=(Range("norm", ("K",), None, ONE),)), In("v", "V"),
         In("g", ranges=NEGATIVE), In("beta", ranges=UNIT), State("S", "K", "V"),
         Decl("const", "scale", init=make("pow", make("size", dim="K"), number(-0.5)))]
    q, k, v, g, beta, S, scale = [x.leaf() for x in d]
    decayed = exp(g) * S
    S1 = decayed + beta * k * (v - contract(k, decayed, ("V",)))
    return build("gated_delta", "K V", d, {"o": ("V",)}, o=scale * contract(q, S1, ("V",)), S=S1)


def gated_delta_loop(q, k, v, g, beta, S=None, scale=None):  # type: ignore[no-untyped-def]
    """The same by hand, [B, T, H, ...]."""
    S = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]) if S is None else S
    outs = []
    for q_t, k_t, v_t, g_t, b_t in zip(*[x.unbind(1) for x in (q, k, v, g, beta)], strict=True):
        S = g_t.exp()[..., None, None] * S
        S = S + (b_t[..., None] * k_t)[..., None] * (v_t - torch.einsum("bhk,bhkv->bhv", k_t, S)).unsqueeze(-2)
        outs.append((q.shape[-1] ** -0.5 if scale is None else scale) * torch.einsum("bhk,bhkv->bhv", q_t, S))
    return torch.stack(outs, 1), S


def normalised() -> Mixer:
    """Linear attention with a normaliser: two outs, two states."""
    d = [In("q", "K"), In("k", "K"), In("v", "V"), State("S", "K", "V"), State("n", "K")]
    q, k, v, S, n = [x.leaf() for x in d]
    S1, n1 = S + k * v, n + k
    return build("normalised", "K V", d, {"o": ("V",), "z": ()},
                 o=contract(q, S1, ("V",)) / make("maximum", make("abs", contract(q, n1, ())), ONE),
                 z=contract(q, n1, ()), S=S1, n=n1)


def lstm() -> Mixer:
    names = "ifzo"
    d = [*(In("x" + n, "D") for n in names), *(Param("R" + n, "E", "D") for n in names),
         State("c", "D"), State("h", "D")]
    by = {x.name: x.leaf() for x in d}
    h = make("rename", by["h"], to=(("D", "E"),))
    pre = {n: by["x" + n] + contract(by["R" + n], h, ("D",)) for n in names}
    i, f, o = [make("sigmoid", pre[n]) for n in "ifo"]
    c1 = f * by["c"] + i * make("tanh", pre["z"])
    h1 = o * make("tanh", c1)
    return build("lstm", "D E=D", d, {"y": ("D",)}, y=h1, c=c1, h=h1)


def lru() -> Mixer:
    """Complex diagonal state; complex param; real out."""
    d = [In("u", "D"), Param("nu", "N"), Param("theta", "N"), Param("Bu", "N", "D", kind="complex"),
         Param("C", "D", "N", kind="complex"), State("x", "N", kind="complex")]
    u, nu, theta, Bu, C, x = [y.leaf() for y in d]
    size = exp(-exp(nu))
    x1 = size * exp(number(1j) * theta) * x + make("sqrt", 1.0 - size * size) * contract(Bu, u, ("N",))
    return build("lru", "D N", d, {"y": ("D",), "z": ("N",)}, y=make("real", contract(C, x1, ("D",))), z=x1, x=x1)


def counting() -> Mixer:
    """lag of an input and of a local, a window, pos."""
    d = [In("x", "D"), In("u"), Param("c", "D", "W"), State("S", "D")]
    x, u, c, S = [y.leaf() for y in d]
    local = x * u
    conv = contract(c, make("window", x, dim="W", name="x"), ("D",))
    angle = make("pos") * make("pow", number(100.0), make("index", dims=("D",)) * -0.1)
    S1 = S * 0.9 + conv + make("lag", local, n=2, name="local")
    return build("counting", "D W", d, {"y": ("D",)}, y=S1 * make("cos", angle) + make("lag", x, n=1, name="x"), S=S1)


def counting_loop(x, u, c):  # type: ignore[no-untyped-def]
    """The same by hand for one sequence [T, H, D]."""
    S, outs = torch.zeros_like(x[0]), []

    def back(z, t, n):  # type: ignore[no-untyped-def]
        return z[t - n] if t >= n else torch.zeros_like(z[0])
    for t in range(len(x)):
        conv = sum(c[..., w] * back(x, t, w) for w in range(c.shape[-1]))
        S = S * 0.9 + conv + back(x * u[..., None], t, 2)
        angle = t * 100.0 ** (torch.arange(x.shape[-1], dtype=x.dtype) * -0.1)
        outs.append(S * angle.cos() + back(x, t, 1))
    return torch.stack(outs) if outs else x, S


def householder(N: int = 3) -> Mixer:
    """`for n in N` unrolled."""
    d = [In("q", "K"), In("k", "N", "K"), In("v", "N", "V"), State("S", "K", "V")]
    q, k, v, S = [x.leaf() for x in d]
    S1 = S
    for n in range(N):
        k_n, v_n = make("pick", k, dim="N", i=n), make("pick", v, dim="N", i=n)
        S1 = S1 + k_n * (v_n - contract(k_n, S1, ("V",)))
    return build("householder", f"K V N={N}", d, {"o": ("V",)}, o=contract(q, S1, ("V",)), S=S1)


def learner() -> Mixer:
    """S - beta * grad[S](0.5 * sum(square(k @ S - v))): the delta rule."""
    d = [In("q", "K"), In("k", "K"), In("v", "V"), In("beta"), State("S", "K", "V")]
    q, k, v, beta, S = [x.leaf() for x in d]
    loss = 0.5 * make("sum", make("square", contract(k, S, ("V",)) - v), over=("V",))
    (step,) = gradient([(loss, ONE)], [S])
    assert step is not None
    S1 = S - beta * step
    return build("learner", "K V", d, {"o": ("V",)}, o=contract(q, S1, ("V",)), S=S1)


def stabilised() -> Mixer:
    """logaddexp from -inf, a maximum, and a state started by a param."""
    d = [In("x", "D"), In("f", "D", ranges=NEGATIVE), Param("s0", "D"),
         State("m", "D", init=number(-math.inf)), State("a", "D", init=None)]
    x, f, s0, m, a = [y.leaf() for y in d]
    d[4] = State("a", "D", init=s0 * 2.0 + make("index", dims=("D",)))
    m1 = make("logaddexp", f + m, x)
    a1 = make("maximum", a * 0.5, x)
    return build("stabilised", "D", d, {"y": ("D",)}, y=m1 + a1, m=m1, a=a1)


def elementwise(value, name: str = "probe", ranges: tuple[Range, ...] = ()) -> Mixer:  # type: ignore[no-untyped-def]
    """No state: o = value(x) over D."""
    d = [In("x", "D", ranges=ranges)]
    y = value(d[0].leaf())
    return build(name, "D", d, {"o": y.dims}, o=y)


def delta_inputs(B: int = 2, T: int = 7, H: int = 2, K: int = 3, V: int = 4, dtype: torch.dtype = torch.float64,
                 seed: int = 0, grad: bool = False) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(B, T, *shape, generator=gen, dtype=torch.float64)
    k = torch.nn.functional.normalize(draw(H, K), dim=-1)
    found = [draw(H, K), k * 0.99, draw(H, V), -draw(H).abs(), torch.sigmoid(draw(H))]
    return [x.to(dtype).requires_grad_(grad) for x in found]
