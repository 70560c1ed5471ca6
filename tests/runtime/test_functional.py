"""Mixers inside transforms of torch.func: they give what a loop over torch.autograd.grad gives, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import mixc
from mixc.runtime.draw import draw
from tests.runtime.test_library import STATEFUL, outs

Tensor = torch.Tensor
NAMES = ["simple_gla", "mamba1", "lstm", "short_conv", "lru", "several"]
pytestmark = pytest.mark.filterwarnings("ignore:note")


def mixer(name: str) -> mixc.Mixer:
    return mixc.loads(STATEFUL) if name == "several" else mixc.load(name)


def inputs(m: mixc.Mixer, n: int = 0, **how: Any) -> tuple[Tensor, ...]:
    """Of one call, or of n along a first axis."""
    each = [draw(m.declared, T=6, dtype=torch.float64, seed=i, **how) for i in range(max(n, 1))]
    return tuple(torch.stack([x[name] for x in each]) for name in each[0]) if n else tuple(each[0].values())


def loss(m: mixc.Mixer, **options: Any) -> Callable[..., Tensor]:
    def f(*x: Tensor) -> Tensor:
        o, state = m(*x, output_final_state=True, **options)
        total = torch.zeros((), dtype=torch.float64)
        for y in [*outs(o), *(s for n, s in state.items() if n != "pos")]:  # type: ignore[union-attr]
            total = total + (y.abs() if y.is_complex() else y).square().sum()
        return total
    return f


def pulled(f: Callable[..., Tensor], x: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in x]
    return list(torch.autograd.grad(f(*leaves), leaves))


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients(name: str, backend: str) -> None:
    m = mixer(name)
    x, f = inputs(m), loss(m, backend=backend)
    want = pulled(f, x)
    close(grad(f, tuple(range(len(x))))(*x), tuple(want))
    value, pull = vjp(f, *x)
    close((value, pull(torch.ones_like(value))), (f(*x), tuple(want)))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_calls(name: str) -> None:
    """Inputs, and so sequences, fold into the first axis; params are a call each."""
    m = mixer(name)
    many, f = inputs(m, 3), loss(m)
    each = [[x[i] for x in many] for i in range(3)]
    close(vmap(f)(*many), torch.stack([f(*x) for x in each]))
    close(vmap(grad(f, tuple(range(len(many)))))(*many), tuple(map(torch.stack, zip(*(pulled(f, x) for x in each),
                                                                                     strict=True))))
    first = inputs(m)[1:]
    got = vmap(lambda x: outs(m(x, *first)[0])[0], in_dims=1, out_dims=2)(many[0].movedim(0, 1))
    close(got.movedim(2, 0), torch.stack([outs(m(x, *first)[0])[0] for x in many[0]]))
    per_call = vmap(lambda x: grad(f, 1)(x, *first))(many[0])  # of what all calls share
    close(per_call, torch.stack([pulled(f, (x, *first))[1] for x in many[0]]))


def test_options_in_a_batch() -> None:
    m = mixer("several")
    many, one = inputs(m, 3, B=1), inputs(m, B=1)
    ends = torch.tensor([[0, 2, 6], [0, 0, 6], [0, 5, 6]])
    mask = torch.rand(3, 1, 6) > 0.3
    start = {"n": torch.rand(3, 1, 2, dtype=torch.float64), "pos": torch.tensor([[1], [0], [4]])}
    for batched, call in [
        (ends, lambda e, *x: m(*x, cu_seqlens=e)[0].o), (mask, lambda e, *x: m(*x, mask=e)[0].o),
        (torch.tensor([0.1, 0.2, 0.3]), lambda e, *x: m(*x, scale=e)[0].o),
        (start, lambda e, *x: m(*x, initial_state=e, output_final_state=True)[1]["pos"]),
        (ends[:1].expand(3, -1), lambda e, *x: m(*x, cu_seqlens=ends[0], reverse=True)[0].m),
    ]:
        rows = [{n: t[i] for n, t in batched.items()} if isinstance(batched, dict) else batched[i] for i in range(3)]
        close(vmap(call)(batched, *many), torch.stack([call(e, *(x[i] for x in many)) for i, e in enumerate(rows)]))
        close(vmap(call, in_dims=(0, *[None] * len(one)))(batched, *one), torch.stack([call(e, *one) for e in rows]))


@pytest.mark.parametrize("name", ["simple_gla", "several"])
def test_one_token(name: str) -> None:
    m = mixer(name)
    ins = len(m.declared.ins)
    many = tuple(x[:, :, 0] if i < ins else x[0] for i, x in enumerate(inputs(m, 3)))
    dims = tuple(0 if i < ins else None for i in range(len(many)))

    def last(*x: Tensor) -> Tensor:
        _, state = m.step(None, *x)
        return outs(m.step(state, *x)[0])[0]
    each = [[x[i] if d == 0 else x for x, d in zip(many, dims, strict=True)] for i in range(3)]
    close(vmap(last, dims)(*many), torch.stack([last(*x) for x in each]))
    close(grad(lambda q: last(q, *each[0][1:]).sum())(each[0][0]), pulled(lambda q: last(q, *each[0][1:]).sum(),
                                                                         (each[0][0],))[0])


def test_a_matrix_of_derivatives_and_of_a_module() -> None:
    m = mixer("simple_gla")
    q, *rest = inputs(m, B=1, H=1)
    J = jacrev(lambda x: m(x, *rest)[0])(q)
    close(J, torch.autograd.functional.jacobian(lambda x: m(x, *rest, backend="reference")[0], q))
    net = mixc.nn.Mixer("mamba1", heads=1, D=4, N=3).double()
    of_a_call = inputs(mixer("mamba1"), H=1, sizes={"D": 4, "N": 3})
    x = {d.name: t for d, t in zip(mixer("mamba1").declared.ins, of_a_call, strict=False)}

    def of(params: dict[str, Tensor], part: dict[str, Tensor]) -> Tensor:
        return functional_call(net, params, kwargs=part)[0].square().sum()
    params = {n: p.detach() for n, p in net.named_parameters()}
    a_row = {n: t.unsqueeze(1) for n, t in x.items()}
    got = vmap(grad(of), (None, 0))(params, a_row)  # gradients of every sequence
    for n, p in net.named_parameters():
        want = [torch.autograd.grad(of(dict(net.named_parameters()), {k: t[i] for k, t in a_row.items()}), p)[0]
                for i in range(2)]
        close(got[n], torch.stack(want))


def test_what_is_refused_says_so() -> None:
    m = mixer("simple_gla")
    x, f = inputs(m), loss(m)
    for transform in (lambda q: jvp(lambda y: f(y, *x[1:]), (q,), (q,)), jacfwd(lambda q: f(q, *x[1:]))):
        with pytest.raises(mixc.InputError, match="simple_gla: forward derivatives"):
            transform(x[0])
    with pytest.raises(mixc.InputError, match="differentiated twice"):
        grad(lambda q: grad(f)(q, *x[1:]).sum())(x[0])
    with pytest.raises(mixc.InputError, match="`k`: expected"):
        grad(f)(x[0], x[1][..., 1:], *x[2:])


def test_a_trace_is_refused() -> None:
    m = mixer("simple_gla")
    with pytest.raises(mixc.InputError, match=r"torch\.export and torch\.compile do"):
        torch.jit.trace(lambda *x: m(*x)[0], inputs(m))


def test_compiled() -> None:
    """Derivatives around a mixer have no place in a graph, and run outside of one; inside they have, and in a batch."""
    m = mixer("simple_gla")
    x = inputs(m)

    def f(q: Tensor) -> Tensor:
        return loss(m)(q, *x[1:])
    want = pulled(f, x[:1])[0]
    close(torch.compile(grad(f), backend="aot_eager")(x[0]), want)
    close(grad(torch.compile(f, backend="aot_eager"))(x[0]), want)
    close(torch.compile(vmap(f), backend="aot_eager", fullgraph=True)(x[0][None]), f(x[0])[None])
    with pytest.raises(Exception, match="simple_gla: a compiled graph has no derivatives"):
        torch._dynamo.reset()
        torch.compile(grad(f), backend="aot_eager", fullgraph=True)(x[0])
