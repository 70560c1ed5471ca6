"""Arrays of many digits against mpmath, and the step on them against the reference backend."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import mixc
from mixc.hashing.tokens import Tokens
from mixc.hashing.values import OPS, doubles, numbers, precision
from mixc.runtime.draw import dim_sizes, draw
from mixc.runtime.load import shipped

UNARY = {"exp": (-30, 30), "expm1": (-2, 2), "log": (0.01, 30), "log1p": (-0.9, 9), "sqrt": (0.01, 9),
         "rsqrt": (0.01, 9), "sin": (-9, 9), "cos": (-9, 9), "tanh": (-9, 9), "sigmoid": (-30, 30), "erf": (-5, 5),
         "softplus": (-30, 30), "logsigmoid": (-30, 30), "abs": (-2, 2), "square": (-2, 2)}
EXACT = {"rsqrt": lambda x: 1 / mpmath.sqrt(x), "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)), "abs": abs,
         "softplus": lambda x: mpmath.log(1 + mpmath.exp(x)), "square": lambda x: x * x,
         "logsigmoid": lambda x: -mpmath.log(1 + mpmath.exp(-x))}


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("op", UNARY)
def test_functions(op: str, far: bool) -> None:
    u = np.random.default_rng(0).uniform(*UNARY[op], 50)
    with precision(far):
        x = numbers(u) * numbers(np.full(50, 0.7)) / numbers(np.full(50, 0.7))
        y = OPS[op](x)
    with mpmath.workdps(600):
        f = EXACT.get(op) or getattr(mpmath, op)
        for i in range(50):
            want = f(mpmath.mpf(x[i]))
            assert abs(mpmath.mpf(y[i]) - want) <= mpmath.mpf(10) ** (-460 if far else -30) * max(1, abs(want))


def test_infinities() -> None:
    x = numbers(np.array([np.inf, -np.inf, 0.0, 1.0]))
    for op in ("exp", "log", "sigmoid", "softplus", "tanh", "sqrt", "log1p"):
        want = getattr(torch.nn.functional, op, None) or getattr(torch, op)
        np.testing.assert_allclose(doubles(OPS[op](x)), want(torch.tensor([np.inf, -np.inf, 0.0, 1.0]).double()))
    for op in ("add", "mul", "div", "sub", "maximum", "logaddexp"):
        for other in (0.0, np.inf, -np.inf):
            got = doubles(OPS[op](x, numbers(np.full(4, other))))
            want = getattr(torch, op)(torch.tensor([np.inf, -np.inf, 0.0, 1.0]).double(),
                                      torch.full((4,), other).double())
            np.testing.assert_array_equal(got, want if op != "logaddexp" else np.asarray(want))


def _value(x: torch.Tensor) -> Any:
    return numbers(x.real, x.imag) if x.is_complex() else numbers(x)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", [*shipped(), "lagged"])
def test_step_is_the_reference(name: str, fresh: bool) -> None:
    """Outs, final states and all gradients, from a declared and from a given start."""
    lagged = ("mixer lagged(D, W = 3) {\n in x[D]\n param c[D, W], s[D]\n state h[D] = s\n y = tanh(x + lag(x, 2))\n"
              " h = h * sigmoid(y) + sum[W](c * lag[W](y))\n out o[D] = h * (pos + 1)\n}")
    m = mixc.loads(lagged) if name == "lagged" else mixc.load(name)
    sizes = dim_sizes(m.declared, None, (2, 3, 4, 5))
    program, consts = m.specialise(sizes, {})
    T, gen = 5, torch.Generator().manual_seed(1)
    x = draw(program, B=1, T=T, H=1, sizes=sizes, dtype=torch.float64, ends=0)

    def normal(d: Any, rows: int) -> torch.Tensor:
        kind = torch.complex128 if d.kind == "complex" else torch.float64
        return torch.randn(1, rows, *(sizes[n] for n in d.dims), generator=gen, dtype=kind)

    start, end = ({d.name: normal(d, 1) for d in program.states} for _ in "ab")
    cots = {d.name: normal(d, T) for d in program.outs}
    ports = {(d.role, d.name): _value(x[d.name].reshape(1, T if d.role == "in" else 1, *x[d.name].shape[-len(d.dims):]
                                                        if d.dims else ())) for d in (*program.ins, *program.params)}
    ports |= {("const", n): numbers(np.full((1, 1), c)) for n, c in consts.items()}
    ports |= {(role, n): _value(v) for role, vs in (("state", start), ("next", end), ("out", cots))
              for n, v in vs.items()}
    ports["pos", ""] = numbers(np.arange(T, dtype=float)[None])
    got = Tokens(program, sizes).run(ports, T, [fresh])

    leaves = {n: v.requires_grad_() for n, v in (x | start).items()}
    given = {n: leaves[n] for n in start} or None
    o, states = m(**{n: leaves[n] for n in x}, initial_state=None if fresh else given, output_final_state=True,
                  backend="reference")
    outs = {program.outs[0].name: o} if len(program.outs) == 1 else o._asdict()
    want = {("out", n): v for n, v in outs.items()} | {("next", n): states[n] for n in start}
    loss = sum((v.reshape(c.shape) * c.conj()).real.sum() for v, c in
               [*((outs[n], c) for n, c in cots.items()), *((states[n], c) for n, c in end.items())])
    loss.backward()  # type: ignore[union-attr]
    want |= {(program.decl(n).role, n): v.grad for n, v in leaves.items() if v.grad is not None}
    assert len(want) > len(cots)
    for port, w in want.items():
        if port[0] == "state" and fresh:
            continue
        g = doubles(got[port]) + (1j * doubles(got[port], "imag") if np.iscomplexobj(w.detach().numpy()) else 0)
        np.testing.assert_allclose(g.reshape(w.shape), w.detach().numpy(), rtol=1e-9, atol=1e-12, err_msg=str(port))
