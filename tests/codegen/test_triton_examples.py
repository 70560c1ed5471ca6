"""Every chunk example through the Triton backend, interpreted, against the step in fp64."""

import warnings

import pytest
import torch

import mixc

EXAMPLES = ["linear_attention", "linear_attention_normalised", "retnet", "lightning_attention2", "mamba2",
            "norm_attention", "mlstm", "simple_gla"]


def drawn(mixer, B, T, H, size):
    """Inputs by name, in range; positive where a normaliser wants it."""
    from mixc.runtime.draw import draw

    sizes = {d.name: size + i for i, d in enumerate(mixer.declared.dims)}
    return draw(mixer.declared, B=B, T=T, H=H, sizes=sizes)


def rms(x):
    return x.double().square().mean().sqrt().item()


def agree(got, want, floor, bound=1e-5):
    assert torch.isfinite(got).all()
    assert rms(got.double() - want.double()) <= bound * max(rms(want), floor)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_interpreted(name):
    warnings.simplefilter("ignore")
    mixer = mixc.load(name)
    assert set(mixer.form.values()) == {"chunk"}
    inputs = {n: x.float().requires_grad_() for n, x in drawn(mixer, 2, 35, 2, 17).items()}
    runs = {}
    for backend in ("reference", "triton"):
        o, state = mixer(**inputs, backend=backend, output_final_state=True)
        torch.manual_seed(1)
        loss = (o * torch.randn(o.shape)).sum()
        for n in sorted(state):
            loss = loss + (state[n] * torch.randn(state[n].shape)).sum()
        runs[backend] = o, state, torch.autograd.grad(loss, list(inputs.values()))
    (o, state, grads), (want_o, want_state, want_grads) = runs["triton"], runs["reference"]
    agree(o, want_o, 1e-4)
    for n in state:
        agree(state[n], want_state[n], 1e-4)
    largest = max(map(rms, want_grads))
    for got, want in zip(grads, want_grads, strict=True):
        agree(got, want, 1e-4 * largest, 2e-5)


def test_masked_ragged_and_reversed():
    mixer = mixc.load("simple_gla")
    inputs = drawn(mixer, 2, 20, 2, 16)
    inputs = {n: x.float() for n, x in inputs.items()}
    torch.manual_seed(0)
    mask = torch.rand(2, 20) > 0.3
    for options in (dict(mask=mask), dict(mask=mask, reverse=True), dict(reverse=True)):
        got, state = mixer(**inputs, backend="triton", output_final_state=True, **options)
        want, want_state = mixer(**inputs, backend="reference", output_final_state=True, **options)
        agree(got, want, 1e-4)
        agree(state["S"], want_state["S"], 1e-4)
    flat = {n: x[:1] for n, x in inputs.items()}
    cu = torch.tensor([0, 0, 7, 20])
    got, state = mixer(**flat, backend="triton", output_final_state=True, cu_seqlens=cu)
    want, want_state = mixer(**flat, backend="reference", output_final_state=True, cu_seqlens=cu)
    agree(got, want, 1e-4)
    agree(state["S"], want_state["S"], 1e-4)
