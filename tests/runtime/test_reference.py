"""backend="reference" and the sequential fallback against loops written by hand, and against themselves."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch

import mixc
from mixc.ir.build import contract, exp
from mixc.ir.node import make, number
from mixc.ir.program import Range
from mixc.ir.risk import guarded_nodes
from mixc.runtime import guarded
from mixc.runtime.plan import plan_of

from . import specs
from .specs import delta_inputs, gated_delta_loop

close = torch.testing.assert_close


def both(mixer, *args, **options):
    """The reference's results, after checking that the sequential fallback agrees."""
    o, s = mixer(*args, backend="reference", output_final_state=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        o2, s2 = mixer(*args, backend="torch", output_final_state=True, **options)
    close(o2, o)
    close(s2, s)
    return o, s


def test_gated_delta_equals_the_loop():
    args = delta_inputs(grad=True)
    mixer = specs.gated_delta()
    o, state = both(mixer, *args)
    want, S = gated_delta_loop(*args)
    close(o, want)
    close(state["S"], S)
    w, ws = torch.randn_like(o), torch.randn_like(S)
    got = torch.autograd.grad((o * w).sum() + (state["S"] * ws).sum(), args)
    for a, b in zip(got, torch.autograd.grad((want * w).sum() + (S * ws).sum(), args), strict=True):
        close(a, b)


def test_const_and_initial_state():
    args, mixer = delta_inputs(), specs.gated_delta()
    S0 = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    want, S = gated_delta_loop(*args, S=S0, scale=0.25)
    for given in (S0, {"S": S0}):
        o, state = mixer(*args, scale=0.25, initial_state=given, output_final_state=True, backend="reference")
        close(o, want)
        close(state["S"], S)
    close(torch.autograd.grad(o.sum(), S0), torch.autograd.grad(want.sum(), S0))
    o, state = mixer(*args, scale=torch.tensor(0.25), initial_state=S0, backend="reference")
    close(o, want)
    assert state is None


def test_lstm_equals_torch():
    D, B, T = 4, 2, 5
    cell = torch.nn.LSTM(D, D, batch_first=True, bias=False).double()
    with torch.no_grad():
        cell.weight_ih_l0.copy_(torch.eye(D, dtype=torch.float64).repeat(4, 1))
    x = torch.randn(B, T, D, dtype=torch.float64)
    i, f, z, o = [w.detach().T for w in cell.weight_hh_l0.split(D)]
    y, state = both(specs.lstm(), x, x, x, x, i, f, z, o)
    want, (h, c) = cell(x)
    close(y, want.detach())
    close(state["h"], h[0].detach())
    close(state["c"], c[0].detach())


def test_complex_state():
    torch.manual_seed(1)
    B, T, H, D, N = 2, 5, 2, 3, 4
    u = torch.randn(B, T, H, D, dtype=torch.float64)
    nu, theta = torch.randn(H, N, dtype=torch.float64), torch.randn(H, N, dtype=torch.float64)
    Bu, C = torch.randn(H, N, D, dtype=torch.complex128), torch.randn(H, D, N, dtype=torch.complex128)
    args = [x.requires_grad_() for x in (u, nu, theta, Bu, C)]
    (o, z), state = both(specs.lru(), *args)
    x, outs = torch.zeros(B, H, N, dtype=torch.complex128), []
    size = torch.exp(-torch.exp(nu))
    for t in range(T):
        x = size * torch.exp(1j * theta) * x + torch.sqrt(1 - size**2) * torch.einsum("hnd,bhd->bhn", Bu, u[:, t] + 0j)
        outs.append(torch.einsum("hdn,bhn->bhd", C, x).real)
    want = torch.stack(outs, 1)
    close(o, want)
    close(state["x"], x)
    assert z.dtype == torch.complex128 and o.dtype == torch.float64
    for a, b in zip(torch.autograd.grad(o.square().sum(), args), torch.autograd.grad(want.square().sum(), args),
                    strict=True):
        close(a, b)


def counting_inputs(B=2, T=6, H=2, D=3, W=4):
    torch.manual_seed(2)
    kind = {"dtype": torch.float64, "requires_grad": True}
    return torch.randn(B, T, H, D, **kind), torch.randn(B, T, H, **kind), torch.randn(H, D, W, **kind)


def test_lag_window_pos():
    x, u, c = counting_inputs()
    y, state = both(specs.counting(), x, u, c)
    for b in range(2):
        want, S = specs.counting_loop(x[b], u[b], c)
        close(y[b], want)
        close(state["S"][b], S)
    close(state["x"], x[:, -3:])
    close(state["local"], (x * u[..., None])[:, -2:])
    assert state["pos"].tolist() == [6, 6] and state["pos"].dtype == torch.int64


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 6])
def test_prefill_and_step_equal_the_whole(cut):
    x, u, c = counting_inputs()
    mixer = specs.counting()
    whole, want = mixer(x, u, c, output_final_state=True, backend="reference")
    first, state = mixer(x[:, :cut], u[:, :cut], c, output_final_state=True, backend="reference")
    outs = list(first.unbind(1))
    for t in range(cut, 6):
        o, state = mixer.step(state, x[:, t], u[:, t], c, backend="reference")
        outs.append(o)
    close(torch.stack(outs, 1), whole)
    close(state, want)
    close(torch.autograd.grad(torch.stack(outs, 1).square().sum() + state["x"].sum(), (x, u, c)),
          torch.autograd.grad(whole.square().sum() + want["x"].sum(), (x, u, c)))


def test_step_starts_afresh_and_without_heads():
    mixer, args = specs.gated_delta(), delta_inputs(H=1)
    bare = [x.squeeze(2) for x in args]
    whole, final = both(mixer, *bare)
    assert whole.shape == (2, 7, 4) and final["S"].shape == (2, 3, 4)
    close(whole, mixer(*args, backend="reference")[0].squeeze(2))
    state, outs = None, []
    for t in range(7):
        o, state = mixer.step(state, *[x[:, t] for x in bare])
        outs.append(o)
    close(torch.stack(outs, 1), whole)
    close(state, final)
    o, _ = mixer.step(final["S"], *[x[:, 0] for x in bare])  # the bare tensor
    assert o.shape == (2, 4)


CU = [0, 0, 3, 4, 4, 9]


def test_ragged_equals_separate_runs():
    x, u, c = counting_inputs(B=1, T=9)
    mixer = specs.counting()
    y, state = both(mixer, x, u, c, cu_seqlens=torch.tensor(CU, dtype=torch.int32))
    for n, (a, b) in enumerate(pairwise(CU)):
        want, final = mixer(x[:, a:b], u[:, a:b], c, output_final_state=True, backend="reference")
        close(y[:, a:b], want)
        for name in final:
            close(state[name][n], final[name][0])
    again, resumed = both(mixer, x, u, c, cu_seqlens=torch.tensor(CU), initial_state=state)
    assert resumed["pos"].tolist() == [0, 6, 2, 0, 10]
    assert not torch.allclose(again, y)


@pytest.mark.parametrize("reverse", [False, True])
def test_mask_is_removal(reverse):
    x, u, c = counting_inputs(B=3, T=6)
    mixer, mask = specs.counting(), torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]).bool()
    poisoned = torch.where(mask[..., None, None], x, math.nan)
    y, state = both(mixer, poisoned, u, c, mask=mask, reverse=reverse)
    assert (y[~mask] == 0).all()
    for b in range(3):
        keep = mask[b]
        want, final = mixer(x[b:b + 1, keep], u[b:b + 1, keep], c, output_final_state=True, reverse=reverse,
                            backend="reference")
        close(y[b, keep], want[0])
        for name in final:
            close(state[name][b], final[name][0])
    gx, gc = torch.autograd.grad(y.square().sum() + state["S"].sum(), (x, c))
    assert (gx[~mask] == 0).all() and gc.isfinite().all()


def test_mask_with_ragged():
    x, u, c = counting_inputs(B=1, T=9)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 1, 1]]).bool()
    for reverse in (False, True):
        y, state = both(specs.counting(), x, u, c, mask=mask, cu_seqlens=torch.tensor(CU), reverse=reverse)
        for n, (a, b) in enumerate(pairwise(CU)):
            want, final = both(specs.counting(), x[:, a:b], u[:, a:b], c, mask=mask[:, a:b], reverse=reverse)
            close(y[:, a:b], want)
            close(state["x"][n], final["x"][0])


def test_reverse_is_flips():
    x, u, c = counting_inputs(B=1, T=9)
    mixer = specs.counting()
    y, state = both(mixer, x, u, c, reverse=True)
    want, final = both(mixer, x.flip(1), u.flip(1), c)
    close(y, want.flip(1))
    close(state, final)
    y, state = both(mixer, x, u, c, reverse=True, cu_seqlens=torch.tensor(CU))
    for n, (a, b) in enumerate(pairwise(CU)):
        want, final = both(mixer, x[:, a:b], u[:, a:b], c, reverse=True)
        close(y[:, a:b], want)
        close(state["S"][n], final["S"][0])


def test_grouped_heads():
    q, k, v, g, beta = delta_inputs(H=4, grad=True)
    mixer = specs.gated_delta()
    few = [x[:, :, :2].detach().requires_grad_() for x in (q, k)]
    one = g[:, :, :1].detach().requires_grad_()
    wide = [few[0].repeat_interleave(2, 2), few[1].repeat_interleave(2, 2), v, one.expand(-1, -1, 4), beta]
    o, state = both(mixer, few[0], few[1], v, one, beta)
    want, final = both(mixer, *wide)
    close(o, want)
    close(state, final)
    leaves = [*few, one, v]
    close(torch.autograd.grad(o.square().sum(), leaves), torch.autograd.grad(want.square().sum(), leaves))


def test_for_loops_and_inner_gradients():
    torch.manual_seed(3)
    B, T, H, K, V, N = 2, 4, 2, 3, 4, 3
    q, k = torch.randn(B, T, H, K).double(), 0.5 * torch.randn(B, T, H, N, K).double()
    v = torch.randn(B, T, H, N, V).double()
    o, state = both(specs.householder(N), q, k, v)
    S = torch.zeros(B, H, K, V).double()
    for t in range(T):
        for n in range(N):
            kn = k[:, t, :, n]
            S = S + kn[..., None] * (v[:, t, :, n] - torch.einsum("bhk,bhkv->bhv", kn, S)).unsqueeze(-2)
    close(state["S"], S)
    close(o[:, -1], torch.einsum("bhk,bhkv->bhv", q[:, -1], S))
    q, k, v, _, beta = delta_inputs()
    o, _ = both(specs.learner(), q, k, v, beta)
    close(o, gated_delta_loop(q, k, v, torch.zeros_like(beta), beta, scale=1.0)[0])


def test_states_started_by_expressions():
    torch.manual_seed(4)
    x, f = torch.randn(2, 5, 2, 3).double(), -torch.rand(2, 5, 2, 3).double()
    s0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    f[:, 2] = -math.inf
    x.requires_grad_(), f.requires_grad_()
    y, state = both(specs.stabilised(), x, f, s0)
    m, a = torch.full((2, 2, 3), -math.inf).double(), (s0 * 2 + torch.arange(3)).expand(2, 2, 3)
    for t in range(5):
        m = x[:, t] if t in (0, 2) else torch.logaddexp(f[:, t] + m, x[:, t])
        a = torch.maximum(a * 0.5, x[:, t])
    close(state["m"], m)
    close(state["a"], a)
    gs, gx, gf = torch.autograd.grad(y.sum(), (s0, x, f))
    assert gs.abs().sum() > 0 and gx.isfinite().all() and gf.isfinite().all() and (gf[:, 2] == 0).all()
    with_state, _ = both(specs.stabilised(), x, f, s0, initial_state={"a": torch.zeros(2, 2, 3)})  # m as declared
    assert with_state.isfinite().all()


def test_empty_calls():
    mixer = specs.gated_delta()
    for B, T in ((2, 0), (0, 3), (0, 0)):
        args = delta_inputs(B=B, T=T, grad=True)
        S0 = torch.randn(B, 2, 3, 4, dtype=torch.float64)
        o, state = both(mixer, *args, initial_state=S0)
        assert o.shape == (B, T, 2, 4)
        close(state["S"], S0)
        assert state["S"].data_ptr() != S0.data_ptr() or B == 0
        o.sum().backward()
        assert args[0].grad.shape == args[0].shape
    x, u, c = counting_inputs(T=0)
    _, state = both(specs.counting(), x, u, c)
    assert (state["x"] == 0).all() and state["pos"].tolist() == [0, 0]
    one = delta_inputs(B=1, T=0)
    _, state = both(mixer, *one, cu_seqlens=torch.tensor([0, 0, 0]))
    assert state["S"].shape == (2, 2, 3, 4) and (state["S"] == 0).all()


def test_strides_and_inputs_untouched():
    args = delta_inputs()
    odd = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in args]
    odd[2] = torch.stack([args[2], args[2]], -1)[..., 0]
    odd[3] = args[3][:, :1].expand(-1, 7, -1)
    same = [x.contiguous() for x in odd]
    before = [x.clone() for x in odd]
    close(both(specs.gated_delta(), *odd), both(specs.gated_delta(), *same))
    close(odd, before, rtol=0, atol=0)


@pytest.mark.parametrize(("first", "rest", "out", "state"), [
    (torch.bfloat16, torch.float32, torch.bfloat16, torch.float32),
    (torch.float16, torch.float16, torch.float16, torch.float32),
    (torch.float32, torch.float64, torch.float32, torch.float64),
    (torch.float64, torch.float32, torch.float64, torch.float64),
])
def test_dtypes(first, rest, out, state):
    q, *others = delta_inputs()
    q, others = q.to(first).requires_grad_(), [x.to(rest) for x in others]
    for backend in ("reference", "torch"):
        o, final = specs.gated_delta()(q, *others, output_final_state=True, backend=backend)
        assert o.dtype == out and final["S"].dtype == state
        assert torch.autograd.grad(o.sum(), q)[0].dtype == first


def test_the_reference_rounds_once():
    args = delta_inputs(dtype=torch.float32)
    o, _ = specs.gated_delta()(*args, backend="reference")
    want, _ = gated_delta_loop(*[x.double() for x in args])
    assert (o == want.float()).float().mean() > 0.99


def test_autocast_changes_nothing():
    args = delta_inputs(dtype=torch.float32, grad=True)
    mixer = specs.gated_delta()
    o, _ = mixer(*args, backend="torch")
    grads = torch.autograd.grad(o.sum(), args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _ = mixer(*args, backend="torch")
        grads_again = torch.autograd.grad(again.sum(), args)
    close(again, o, rtol=0, atol=0)
    close(grads_again, grads, rtol=0, atol=0)


# ---------------------------------------------------------------- derivatives
def test_gradcheck_and_double_backward():
    args = delta_inputs(B=1, T=3, H=1, K=2, V=2, grad=True)
    S0 = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(S0, *args):
        o, state = specs.gated_delta()(*args, initial_state=S0, output_final_state=True, backend="reference")
        return o, state["S"]
    assert torch.autograd.gradcheck(run, (S0, *args))
    assert torch.autograd.gradgradcheck(run, (S0, *args))


def test_double_backward_is_refused_elsewhere():
    args = delta_inputs(grad=True)
    o, _ = specs.gated_delta()(*args, backend="torch")
    (g,) = torch.autograd.grad(o.square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        torch.autograd.grad(g.sum(), args[1])


def _cut(op):
    """where(x > 0, op(x), 0)"""
    return lambda x: make("where", make("lt", number(0), x), op(x), number(0))


OPS = {
    "log": lambda x: make("log", x), "sqrt": lambda x: make("sqrt", x), "rsqrt": lambda x: make("rsqrt", x),
    "div": lambda x: number(1) / x, "pow": lambda x: make("pow", x, number(0.3)),
    "ipow": lambda x: make("ipow", x, n=-2), "exp": lambda x: exp(number(-1) / x),
    "square": lambda x: make("square", number(1) / x), "mul": lambda x: x * make("log", x),
    "log1p": lambda x: make("log1p", x - 1.0),
    "logaddexp": lambda x: make("logaddexp", make("log", x), number(-math.inf)),
}


@pytest.mark.parametrize("op", OPS)
def test_a_cotangent_of_zero_stays_zero(op):
    mixer = specs.elementwise(_cut(OPS[op]), op)
    x = torch.tensor([0.0, -1.0, 2.0], dtype=torch.float64).reshape(1, 1, 1, 3).requires_grad_()
    o, _ = mixer(x, backend="reference")
    (g,) = torch.autograd.grad(o.sum(), x, create_graph=True)
    assert (g[..., :2] == 0).all() and g[..., 2].isfinite().all()
    (gg,) = torch.autograd.grad(g.sum(), x)
    assert (gg[..., :2] == 0).all() and gg.isfinite().all()
    o, _ = mixer(x, backend="torch")
    close(torch.autograd.grad(o.sum(), x)[0], g.detach())
    free = torch.tensor([0.7, 1.3], dtype=torch.float64).reshape(1, 1, 1, 2).requires_grad_()

    def run(x):
        return specs.elementwise(OPS[op], op)(x, backend="reference")[0]
    assert torch.autograd.gradcheck(run, (free,)) and torch.autograd.gradgradcheck(run, (free,))


@pytest.mark.parametrize("op", ["silu", "gelu", "sin", "cos", "expm1", "exp", "square", "tanh", "softplus",
                                "logsigmoid", "elu", "relu", "abs", "sigmoid"])
def test_derivatives_are_torchs(op):
    x = torch.tensor([-2.0, -0.3, 0.4, 3.0], dtype=torch.float64).reshape(1, 1, 1, 4).requires_grad_()

    def run(x):
        return specs.elementwise(lambda x: make(op, x), op)(x, backend="reference")[0]
    assert torch.autograd.gradcheck(run, (x,)) and torch.autograd.gradgradcheck(run, (x,))


def test_zero_cotangent_through_a_contraction():
    """The masked row's cotangent is 0 and its factor -inf: 0 for the row and for the weights shared by all rows."""
    d = [specs.In("x", "D"), specs.In("use"), specs.Param("w", "D")]
    x, use, w = [y.leaf() for y in d]
    score = contract(make("log", x), w, ())
    mixer = specs.build("masked", "D", d, {"o": ()}, o=make("where", make("lt", number(0), use), score, number(0)))
    x = torch.tensor([[0.0, 0.0], [2.0, 3.0]]).double().reshape(1, 2, 1, 2).requires_grad_()
    use, w = torch.tensor([[[0.0], [1.0]]]).double(), torch.tensor([[1.0, 2.0]]).double().requires_grad_()
    o, _ = mixer(x, use, w, backend="reference")
    gx, gw = torch.autograd.grad(o.sum(), (x, w), create_graph=True)
    close(gx.flatten(), torch.tensor([0, 0, 0.5, 2 / 3]).double())
    close(gw.flatten(), torch.tensor([2.0, 3.0]).double().log())
    assert all(g.isfinite().all() for g in torch.autograd.grad(gx.square().sum() + gw.sum(), (x, w)))


def test_logaddexp_at_minus_infinity():
    pair = specs.build("pair", "D", d := [specs.In("a", "D"), specs.In("b", "D")], {"o": ("D",)},
                       o=make("logaddexp", *[x.leaf() for x in d]))
    inf = math.inf
    a = torch.tensor([-inf, -inf, 1.0, 0.5]).double().reshape(1, 1, 1, 4).requires_grad_()
    b = torch.tensor([-inf, 2.0, -inf, 0.5]).double().reshape(1, 1, 1, 4).requires_grad_()
    o, _ = pair(a, b, backend="reference")
    assert o.flatten()[:3].tolist() == [-inf, 2.0, 1.0]
    ga, gb = torch.autograd.grad(o.sum(), (a, b))
    assert ga.flatten().tolist() == [0, 0, 1, 0.5] and gb.flatten().tolist() == [0, 1, 0, 0.5]


def test_ties_norms_and_forgetting():
    x = torch.tensor([2.0, 2.0, 1.0]).double().reshape(1, 1, 1, 3).requires_grad_()
    o, _ = specs.elementwise(lambda x: make("max", x, over=("D",)), "m")(x, backend="reference")
    assert torch.autograd.grad(o.sum(), x)[0].flatten().tolist() == [0.5, 0.5, 0]
    zero = torch.zeros(1, 1, 1, 3, dtype=torch.float64, requires_grad=True)
    o, _ = specs.elementwise(lambda x: make("norm", x, over=("D",)), "n")(zero, backend="reference")
    (g,) = torch.autograd.grad(o.sum(), zero, create_graph=True)
    assert (g == 0).all()
    g = torch.tensor([-math.inf, -1.0]).double().reshape(1, 1, 1, 2).requires_grad_()
    o, _ = specs.elementwise(lambda x: exp(x) + x * 0.5 - exp(x * 0.5), "f", (Range(high=number(0)),))(
        g, backend="reference")
    assert torch.autograd.grad(o.sum(), g)[0].flatten()[0] == 0


def test_the_fallback_guards_states_that_may_be_infinite():
    """A state that starts at -inf, read through a product whose cotangent is 0."""
    d = [specs.In("x", "D"), specs.In("use"), specs.State("m", "D", init=number(-math.inf))]
    x, use, m = [y.leaf() for y in d]
    read = make("where", make("lt", number(0), use), m * x, number(0))
    mixer = specs.build("late", "D", d, {"o": ("D",)}, o=read, m=make("maximum", m, x))
    x = torch.randn(1, 4, 1, 2).double().requires_grad_()
    use = torch.tensor([0.0, 1.0, 0.0, 1.0]).double().reshape(1, 4, 1)
    for backend in ("reference", "torch"):
        o, _ = mixer(x, use, backend=backend)
        assert torch.autograd.grad(o.sum(), x)[0].isfinite().all()
    plan = plan_of(specs.gated_delta().declared)
    decayed = [n for n in plan.loop if n.op == "mul"]
    assert decayed and not guarded_nodes(plan.program) & set(decayed), "exp(g) * S needs no guard for g <= 0"


def test_finite_cotangents_need_no_mask():
    """A sum tells that all products are finite; a mask is formed where 0 meets what is not."""
    x = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    with patch.object(guarded, "_zero_where", side_effect=AssertionError("a mask")):
        grad, = torch.autograd.grad(guarded.apply("log", x.dtype, x.exp()).sum(), x)
        close(grad, torch.ones_like(x))
        with pytest.raises(AssertionError, match="a mask"):
            torch.autograd.grad(guarded.apply("log", x.dtype, x), x, torch.tensor([0.0, 1.0], dtype=x.dtype))
    grad, = torch.autograd.grad(guarded.apply("log", x.dtype, x), x, torch.tensor([0.0, 1.0], dtype=x.dtype))
    close(grad, torch.tensor([0.0, 0.5], dtype=x.dtype))


def test_exact_angles():
    """pos and index are formed in fp64 and rounded once: no 1e-2 errors at large positions."""
    angle = make("pos") * make("pow", number(10000.0), make("index", dims=("D",)) / make("size", dim="D") * -1.0)
    mixer = specs.build("angles", "D", [specs.In("x", "D")], {"o": ("D",)},
                        o=specs.In("x", "D").leaf() * make("cos", angle))
    x = torch.ones(1, 2, 1, 8)
    o, state = mixer(x, initial_state={"pos": torch.tensor([1_000_003])}, output_final_state=True, backend="torch")
    want = torch.cos(1_000_004 * 10000.0 ** (-torch.arange(8).double() / 8))
    close(o[0, 1, 0], want.float(), rtol=1e-6, atol=1e-6)
    assert state == {"pos": torch.tensor([1_000_005])}


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_through_a_sign_may_be_written_into(backend):
    """torch.sgn of fp64 gave one of zeros that clipping and optimizers cannot change."""
    mixer = mixc.loads("mixer m(D) {\nin x[D], s\nstate h[D]\nh = tanh(sign(s) * h + x)\nout o[D] = h\n}")
    x = {"x": torch.randn(1, 3, 1, 4).double().requires_grad_(), "s": torch.randn(1, 3, 1).double().requires_grad_()}
    mixer(**x, backend=backend)[0].sum().backward()
    assert torch.equal(x["s"].grad.add_(1.0), torch.ones(1, 3, 1).double())
