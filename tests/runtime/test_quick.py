"""Calls of a shape seen before, and the straight-line program of a decode step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mixc
from mixc.runtime import quick
from mixc.runtime.agree import Plain
from mixc.runtime.draw import draw, normal
from mixc.runtime.load import shipped

Tensor = torch.Tensor
pytestmark = pytest.mark.filterwarnings("ignore:note")


def leaves(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.detach().clone().requires_grad_() for n, t in x.items()}


def token(m: mixc.Mixer, dtype: torch.dtype = torch.float32, H: int = 2, **more: Any) -> tuple[dict, dict]:
    """Inputs of one token, and the states after three."""
    x = draw(m.declared, T=4, H=H, dtype=dtype, **more)
    ins = [d.name for d in m.declared.ins]
    start = {n: (t[:, :3] if n in ins else t) for n, t in x.items()}
    _, state = m(**start, output_final_state=True, backend="reference")
    state = {n: s if not s.is_floating_point() else s + 0.01 * normal(list(s.shape), 0, n).to(s.dtype)
             for n, s in state.items()}
    return {n: t[:, 3] if n in ins else t for n, t in x.items()}, state


def run(step: Any, x: dict[str, Tensor], s: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    x, s = leaves(x), {n: t.detach().clone().requires_grad_(t.dtype != torch.int64) for n, t in s.items()}
    o, after = step(s, **x)
    values = [*([o] if isinstance(o, Tensor) else o), *after.values()]
    roots = [v for v in values if v.requires_grad]
    wanted = [t for t in [*x.values(), *s.values()] if t.requires_grad]
    total = sum((v * normal(list(v.shape), i, "c").to(v.dtype)).real.float().sum() for i, v in enumerate(roots))
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    return values, [torch.zeros_like(t) if g is None else g for g, t in zip(grads, wanted, strict=True)]


def plain(m: mixc.Mixer) -> Any:
    """The step by the interpreter of the sequential run."""
    ins = [d.name for d in m.declared.ins]

    def step(state: dict[str, Tensor], **x: Tensor) -> Any:
        given = {n: t.unsqueeze(1) if n in ins else t for n, t in x.items()}
        o, s = Plain(m)(**given, initial_state=state, output_final_state=True)
        return (o.squeeze(1) if isinstance(o, Tensor) else [v.squeeze(1) for v in o]), s
    return step


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_program_of_a_step(name: str) -> None:
    m = mixc.load(name)
    x, s = token(m)
    want, wg = run(plain(m), x, s)
    m.step(s, **x)  # the first call is checked, the next ones run the program
    got, gg = run(m.step, x, s)
    for a, b in zip([*got, *gg], [*want, *wg], strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    looks_back = any(n.startswith("lag") or n == "pos" for n in s) or set(s) != {d.name for d in m.declared.states}
    assert bool([1 for seen in m._seen.values() if seen.step]) == (bool(s) and not looks_back)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("groups", [{}, {"q": 1, "k": 2}])
def test_dtypes_and_groups_of_heads(dtype: torch.dtype, groups: dict[str, int]) -> None:
    m = mixc.load("gated_delta_rule")
    x, s = token(m, dtype, H=4, groups=groups)
    m.step(s, **x)
    got, gg = run(m.step, x, s)
    want, wg = run(plain(m), x, s)
    for a, b in zip([*got, *gg], [*want, *wg], strict=True):
        torch.testing.assert_close(a, b)


def test_without_heads_and_several_outs() -> None:
    m = mixc.loads("mixer m(K) {\n in q[K], g where g <= 0\n param a[K]\n state S[K] = -inf, n\n"
                   " S = maximum(S, exp(g) * q)\n n = n + 1\n out o[K] = S * a\n out c = n\n}")
    x = {n: t.squeeze(-1 - len(m.declared.decl(n).dims)) for n, t in token(m, H=1)[0].items()}
    s = {"S": torch.full((2, 5), -torch.inf), "n": torch.ones(2)}
    m.step(s, **x)
    o, after = m.step(s, **x)
    assert o.o.shape == (2, 5) and o.c.shape == (2,) and after["S"].shape == (2, 5) and after["n"].eq(2).all()
    assert o._fields == ("o", "c")


def test_infinite_gates_have_no_gradient() -> None:
    m = mixc.load("gated_delta_rule")
    x, s = token(m)
    x["g"] = torch.full_like(x["g"], -torch.inf)
    m.step(s, **x)
    _, grads = run(m.step, x, s)
    assert all(g.isfinite().all() for g in grads) and not grads[list(x).index("g")].any()


def test_twice_is_refused() -> None:
    m = mixc.load("gated_delta_rule")
    x, s = token(m)
    m.step(s, **x)
    x = leaves(x)
    o, _ = m.step(s, **x)
    (g,) = torch.autograd.grad(o.square().sum(), [x["q"]], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice only on"):
        g.sum().backward()


# ---------------------------------------------------------------- calls seen before
def test_a_seen_call_is_the_call() -> None:
    m = mixc.load("simple_gla")
    for T in (3, 3, 5):
        for scale in (0.5, 0.25, True):
            x = draw(m.declared, T=T, seed=T)
            if scale is True:  # equal to 1.0, and no number
                with pytest.raises(mixc.InputError, match="expected a number"):
                    m(**x, scale=scale)
                continue
            torch.testing.assert_close(m(**x, scale=scale)[0], mixc.load("simple_gla")(**x, scale=scale)[0])
    assert len(m._seen) == 4


def test_what_must_be_looked_at_is() -> None:
    x = torch.ones(1, 3)
    for name, value in [("mask", x.bool()), ("cu_seqlens", torch.tensor([0, 3])), ("check", True),
                        ("scale", torch.tensor(1.0)), ("initial_state", x)]:
        assert quick.key((x,), {name: value}) is None
    assert quick.key((1.0,), {}) is None and quick.key((x,), {"check": False}) is not None
    m = mixc.load("simple_gla")
    given = draw(m.declared, T=3)
    m(**given)
    with pytest.raises(mixc.InputError, match="`g`: expected g <= 0"):
        m(**{**given, "g": given["g"] + 100}, check=True)
    with pytest.raises(mixc.InputError, match="`k`: expected"):
        m(**{**given, "k": given["k"][..., 1:]})
    with pytest.raises(mixc.InputError, match="no argument `kk`"):
        m(**given, kk=1)


def test_states_and_positions_of_a_seen_call() -> None:
    m = mixc.loads("mixer m(K) {\n in q[K]\n state n\n n = 2 * pos * sign(abs(n) + 1)\n out o[K] = lag(q, 1) + n\n}")
    q = torch.ones(2, 3, 1, 4)
    for start in (0, 5):
        s = {"n": torch.zeros(2, 1), "q": torch.full((2, 1, 1, 4), float(start)), "pos": torch.full((2,), start)}
        o, after = m(q, initial_state=s, output_final_state=True)
        assert o[0, 0, 0, 0] == 3 * start and after["pos"].eq(start + 3).all()


@pytest.mark.parametrize("headless", [False, True])
def test_a_token_that_looks_back_is_checked_once(monkeypatch: pytest.MonkeyPatch, headless: bool) -> None:
    m = mixc.loads("mixer m(K) {\n in q[K]\n state n[K]\n n = 0.5 * n + pos * q\n out o[K] = lag(q, 2) + n\n}")
    q = torch.randn(2, 5, 4) if headless else torch.randn(2, 5, 3, 4)
    want, _ = m(q, backend="reference")
    outs, state = [], None
    for t in range(5):
        if t == 2:  # the first has no state, the second one of this shape
            monkeypatch.setattr("mixc.runtime.arguments.bind", None)
        o, state = m.step(state, q[:, t])
        outs.append(o)
    torch.testing.assert_close(torch.stack(outs, 1), want)
    assert state is not None and state["pos"].eq(5).all()
