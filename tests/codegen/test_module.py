"""Emitted modules, interpreted: outs, final states and all gradients against the chunk program in fp64."""

import itertools
import math

import pytest
import torch

import mixc
from mixc.codegen.config import Config, Tile
from mixc.codegen.module import Module
from mixc.codegen.offline import load_text
from mixc.codegen.triton_program import kernels
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from tests.build import KINDS, scalar_decay
from tests.chunks import run_chunks
from tests.passes.test_chunk import draw

SMALL = Config((('fwd', Tile(32, (('V', 16),))), ('bwd', Tile(16, (('V', 16),)))), segment=32)
_modules = {}


def module(kind):
    """The module of a kind and its chunk program, built once."""
    if kind not in _modules:
        program = chunk(classify(scalar_decay(kind)))
        _modules[kind] = program, load_text(Module(program, differentiate(program)).text(SMALL))
    return _modules[kind]


def close(got, want, bound=1e-5):
    error = (got.double() - want).square().mean().sqrt() if want.numel() else 0.0
    assert torch.isfinite(got).all()
    assert error <= bound * max(want.square().mean().sqrt().item() if want.numel() else 1.0, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T,K,V,q_heads", [(35, 20, 33, 1), (16, 16, 16, None)])
def test_module_against_the_chunk_program(kind, T, K, V, q_heads):
    program, emitted = module(kind)
    tensors, states = draw(T, 2, 2, K, V, torch.float32, q_heads)
    exact = {n: x.detach().double().requires_grad_() for n, x in tensors.items()}
    exact_states = {n: x.detach().double().requires_grad_() for n, x in states.items()}
    o, final = getattr(emitted, program.name)(*tensors.values(), initial_state=states, output_final_state=True)
    want = run_chunks(program, exact, exact_states, dict(K=K, V=V), 16)
    close(o, want.outs["o"])
    cot = torch.randn_like(o)
    finals = {n: torch.randn_like(x) for n, x in final.items()}
    ((o * cot).sum() + sum((final[n] * finals[n]).sum() for n in final)).backward()
    ((want.outs["o"] * cot).sum() + sum((want.states[n] * finals[n]).sum() for n in finals)).backward()
    for n, x in final.items():
        close(x, want.states[n])
        close(states[n].grad, exact_states[n].grad)
    for n, x in tensors.items():
        if exact[n].grad is not None:
            close(x.grad, exact[n].grad)


def test_ragged_and_reversed_equal_separate_runs():
    program, emitted = module("log")
    run = getattr(emitted, program.name)
    tensors, _ = draw(50, 1, 2, 16, 16, torch.float32)
    tensors = {n: x.detach() for n, x in tensors.items()}
    tensors["g"] = -torch.rand(1, 50, 2)
    cu = torch.tensor([0, 17, 17, 18, 50])
    o, final = run(*tensors.values(), cu_seqlens=cu, output_final_state=True)
    for n, (a, b) in enumerate(itertools.pairwise(cu)):
        part = {k: x if k == "D" else x[:, a:b] for k, x in tensors.items()}
        if b > a:
            alone, last = run(*part.values(), output_final_state=True)
            torch.testing.assert_close(o[:, a:b], alone)
            torch.testing.assert_close(final["S"][n], last["S"][0])
        else:
            assert (final["S"][n] == 0).all()
    flipped = {k: x if k == "D" else x.flip(1) for k, x in tensors.items()}
    back, _ = run(*tensors.values(), reverse=True)
    torch.testing.assert_close(back, run(*flipped.values())[0].flip(1))


def test_prefill_and_step_equal_the_whole_sequence():
    program, emitted = module("log")
    run, step = getattr(emitted, program.name), getattr(emitted, program.name + "_step")
    tensors, _ = draw(20, 1, 2, 16, 16, torch.float32)
    tensors = {n: x.detach() for n, x in tensors.items()}
    whole, _ = run(*tensors.values())
    _, state = run(*(x if n == "D" else x[:, :18] for n, x in tensors.items()), output_final_state=True)
    for t in (18, 19):
        o, state = step(state, *(x if n == "D" else x[:, t] for n, x in tensors.items()))
        torch.testing.assert_close(o, whole[:, t], rtol=1e-4, atol=1e-5)


def test_infinite_gates_give_no_nan():
    program, emitted = module("log")
    tensors, _ = draw(40, 2, 2, 16, 16, torch.float32)
    with torch.no_grad():
        tensors["g"][:, ::3] = -math.inf
    o, _ = getattr(emitted, program.name)(*tensors.values())
    o.sum().backward()
    assert torch.isfinite(o).all()
    assert (tensors["g"].grad[:, ::3] == 0).all()


SHARES = {  # outs without the dim that programs divide; in the second the gradient to n goes back into that to S
    "added": ("S = exp(g) * S + k * v\nn = exp(g) * n + k", ("V",)),
    "needed whole": ("n = exp(g) * n + sum[V](S)\nS = exp(g) * S + k * v", ()),
}


@pytest.mark.parametrize("kind", SHARES)
def test_what_programs_share_is_counted_once(kind):
    body, summed = SHARES[kind]
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], g where g <= 0\nstate S[K, V], n[K]\n"
                       f"{body}\nout o[V] = q @ S\nout z[K] = n\n}}")
    made = kernels(mixer.declared)
    assert made.kernel("bwd").launch.summed == summed
    emitted, outs = load_text(made.text(SMALL)), []
    for fn in (lambda **x: mixer(**x, backend="reference"), emitted.m):
        torch.manual_seed(0)
        x = {n: torch.randn(1, 5, 1, size) for n, size in dict(q=16, k=16, v=40).items()} | {"g": -torch.rand(1, 5, 1)}
        x = {n: y.requires_grad_() for n, y in x.items()}
        o, z = fn(**x)[0]
        ((o * torch.randn_like(o)).sum() + (z * torch.randn_like(z)).sum()).backward()
        outs.append([y.grad for y in x.values()])
    for want, got in zip(*outs, strict=True):
        close(got, want.double())


def test_tf32_is_what_either_setting_of_torch_allows():
    """torch refuses to read `allow_tf32` once `fp32_precision` was set."""
    text = mixc.load("simple_gla").emit()
    names = {"torch": torch, "INTERPRETED": False}
    exec(text[text.index("def precision("):text.index("def operand(")], names)
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, want in (("tf32", "tf32"), ("ieee", "tf32x3")):
            matmul.fp32_precision = setting
            assert names["precision"](torch.float32) == want
        matmul.allow_tf32 = True
        assert names["precision"](torch.float32) == "tf32"
        matmul.allow_tf32 = False
        assert names["precision"](torch.bfloat16) == "tf32"
    finally:
        matmul.fp32_precision = before


def test_two_products_that_a_state_is_added_to_are_one() -> None:
    """A chain of products would be laid out along the rows of the state alone, of which 8 warps hold each twice."""
    config = Config(tuple((n, Tile(16)) for n in ("fwd_for_K", "bwd_for_K", "bwd_along_K")))
    body = mixc.load("kda").emit(config=config).split("def kda_bwd_along_K(")[1].split("\nclass ")[0]
    assert body.count("dot(tl.trans(stack(prefix_k, prefix_q, OPERAND)), stack(") == 1
