"""A vector with corrections: in chunks or token by token, whichever its programs say is faster."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.runtime import arguments, cells, chunked, token_loop
from tests.agree import assert_runs_agree, draw, normal, run

CORRECTED = mixc.loads("""mixer corrected(N, R = 2) {
    in u[N], p[R, N], q[R, N]
    in g where g <= 0
    param d[N]
    state x[N]
    x = exp(g) * sigmoid(d) * x - 0.3 * sum[R](p * sum[N](tanh(q) * x)) + u
    out o[N] = x
}""")


@pytest.fixture
def ran(monkeypatch):
    """What has run."""
    found = []
    for module in (cells, chunked):
        def spy(call, *args, run=module.run, name=module.__name__, **options):
            found.append(name.split(".")[-1])
            return run(call, *args, **options)
        monkeypatch.setattr(module, "run", spy)
    return found


def check(mixer, dtype=torch.float32, B=2, T=70, H=4, N=64, change=None, **options):
    x = draw(mixer.declared, B=B, T=T, H=H, sizes={"N": N, "K": N, "V": N}, dtype=dtype)
    start = {"x": normal([B, H, N], 1, "x", torch.promote_types(dtype, torch.float32))} if mixer is CORRECTED else None
    want = run(mixer, x, initial_state=start, wide=dtype != torch.bfloat16, **options)
    assert_runs_agree(mixer, run(mixer, x, initial_state=start, backend="torch", **options), want, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_heads_of_a_vector_run_token_by_token(dtype, ran):
    check(CORRECTED, dtype)
    check(CORRECTED, dtype, reverse=True)
    assert ran == ["cells", "cells"]


def test_what_runs_in_chunks(ran):
    """Of ragged and masked calls a chunk's rows are as full as a token's; a matrix would be kept for every token."""
    check(CORRECTED, T=70, mask=torch.arange(140).reshape(2, 70) % 3 > 0)
    check(mixc.load("gated_delta_rule"), N=32)
    check(mixc.load("hgrn2"), N=16)
    assert ran == ["chunked"] * 3


def test_the_choice_does_not_depend_on_gradients(ran):
    x = draw(CORRECTED.declared, B=2, T=40, H=4, sizes={"N": 64})
    with torch.no_grad():
        o = CORRECTED(**x)[0]
    again = CORRECTED(**{n: t.requires_grad_() for n, t in x.items()})[0]
    assert torch.equal(o, again) and ran == ["cells", "cells"]


def test_more_heads_are_dearer_in_chunks():
    """A token loop's calls are the same for one head as for many."""
    calls = []
    for B in (1, 16):
        x = draw(CORRECTED.declared, B=B, T=256, H=4, sizes={"N": 16})
        calls.append(arguments.bind(CORRECTED, (), x, {}))
    (few, many), code = calls, token_loop.compiled(calls[0].program)
    assert token_loop._of_chunks(many, code) > 10 * token_loop._of_chunks(few, code)
    assert token_loop._of_tokens(many) < 4 * token_loop._of_tokens(few)
