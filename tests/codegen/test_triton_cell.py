"""Cells as Triton kernels, interpreted, against the step in fp64: outs, final states, all gradients."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.offline import load_text
from tests.agree import assert_runs_agree, draw, normal, run
from tests.cell_specs import NAMES, spec

EXAMPLES = ("lstm", "gru", "slstm", "elman", "peephole_lstm", "highway_rnn", "sru_full")
SPECS = ("elman", "peephole", "highway", "scan_and_cell", "dense", "odd_products", "two_starts")
pytestmark = pytest.mark.filterwarnings("ignore:.*MX301")


def load(name):
    return spec(name) if name in NAMES else mixc.load(name)


def check(mixer, T=5, B=2, H=2, dtype=torch.float32, change=lambda x: x, size=5, start=True, **options):
    sizes = {d.name: d.size or size for d in mixer.declared.dims}
    x = change(draw(mixer.declared, B=B, T=T, H=H, sizes=sizes, dtype=dtype, ends=1 / 16, seed=T))
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    given = {d.name: normal([N, H, *(sizes[n] for n in d.dims)], 5, d.name, dtype) for d in mixer.declared.states}
    want = run(mixer, x, initial_state=given if start else None, wide=False, **options)
    got = run(mixer, x, initial_state=given if start else None, backend="triton", **options)
    assert_runs_agree(mixer, got, want, dtype)


@pytest.mark.parametrize("name", [*(n for n in EXAMPLES if n != "elman"), *SPECS])
def test_cells(name):
    mixer = load(name)
    check(mixer)
    check(mixer, 1, start=False)
    check(mixer, 9, B=1, cu_seqlens=torch.tensor([0, 0, 1, 4, 9, 9]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_and_blocks(dtype):
    check(mixc.load("lstm"), 6, B=3, dtype=dtype, size=33)


@pytest.mark.parametrize("body", ["param A[E, D]\nstate h[D]\nh = max[E](h[E] + A) + x",
                                  "state h[D]\nh = clamp(h + h * (1 - h) + 0.1 * x, 0.01, 0.99)"])
def test_states_that_are_chosen_from_in_half_precision(body):
    """Kept in bf16, h had another entry for its maximum, and a gradient 0.1 off."""
    mixer = mixc.loads(f"mixer m(D, E = D) {{\nin x[D]\n{body}\nout o[D] = h\n}}")
    check(mixer, 19, H=1, dtype=torch.bfloat16, size=20)


def test_more_sequences_than_a_program_has():
    check(mixc.load("slstm"), 3, B=19, start=False)
    check(mixc.load("sru_full"), 3, B=18, size=70)  # and more features than a block


def test_rows():
    mixer = mixc.load("lstm")
    check(mixer, 6, reverse=True)
    mask = torch.arange(14).reshape(2, 7) % 3 > 0
    check(mixer, 7, mask=mask)
    check(mixer, 7, mask=mask, reverse=True)
    check(mixer, 9, B=1, cu_seqlens=torch.tensor([0, 2, 2, 9]), reverse=True)


def test_groups_of_heads():
    def fewer(x):
        return x | dict(xi=x["xi"][:, :, :2], xf=x["xf"][:, :, :1], Rf=x["Rf"][:2])
    check(mixc.load("lstm"), H=4, change=fewer)


def test_no_token_and_no_sequence():
    mixer = mixc.load("lstm")
    for B, T in ((2, 0), (0, 3)):
        x = draw(mixer.declared, B=B, T=T, H=2, sizes=dict(D=3, E=3), dtype=torch.float32, seed=0)
        x = {n: t.requires_grad_() for n, t in x.items()}
        h0 = torch.randn(B, 2, 3)
        o, state = mixer(**x, initial_state={"h": h0}, output_final_state=True, backend="triton")
        assert o.shape == (B, T, 2, 3) and torch.equal(state["h"], h0)
        o.sum().backward()
        assert not x["Ri"].grad.any()


def test_prefill_then_step():
    mixer = mixc.load("gru")
    x = draw(mixer.declared, B=2, T=6, H=2, sizes=dict(D=5, E=5), dtype=torch.float32, seed=0)
    ins = {d.name for d in mixer.declared.ins}
    want, _ = mixer(**x, backend="triton")
    five = {n: t[:, :5] if n in ins else t for n, t in x.items()}
    o, state = mixer(**five, output_final_state=True, backend="triton")
    last, _ = mixer.step(state, **{n: t[:, 5] if n in ins else t for n, t in x.items()}, backend="triton")
    torch.testing.assert_close(torch.cat([o, last.unsqueeze(1)], 1), want, rtol=1e-5, atol=1e-6)


def test_emitted():
    mixer = mixc.load("lstm")
    module = load_text(mixer.emit(shape=dict(B=16, T=1024, H=16, D=64)), "lstm")
    x = draw(mixer.declared, B=2, T=5, H=2, sizes=dict(D=5, E=5), dtype=torch.float32, seed=0)
    mask = torch.arange(10).reshape(2, 5) % 3 > 0
    want, state = mixer(**x, mask=mask, reverse=True, output_final_state=True, backend="reference")
    got, final = module.lstm(**x, mask=mask, reverse=True, output_final_state=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(final, state, rtol=1e-5, atol=1e-6)


def test_weights_that_do_not_fit_are_read_at_every_token():
    mixer = mixc.load("lstm")
    module = load_text(mixer.emit(), "lstm")
    x = draw(mixer.declared, B=2, T=4, H=2, sizes=dict(D=5, E=5), dtype=torch.float32, seed=0)
    found = []
    for room in (module.room, lambda device: 0):
        module.room = room
        ts = {n: t.clone().requires_grad_() for n, t in x.items()}
        y = module.lstm(**ts)[0]
        y.square().sum().backward()
        found.append([y, *(t.grad for t in ts.values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_come_a_part_at_a_time_where_a_matrix_of_them_fills_the_registers():
    check(mixc.load("gru"), 2, B=1, H=1, size=130)  # of 130 rows of 130, 16 at a time
