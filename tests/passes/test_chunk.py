"""The chunk form and its backward mean what the step means, for every length and chunk."""

import math

import pytest
import torch

import mixc
from mixc.ir.node import ROW, postorder
from mixc.passes.chunk import chunk
from mixc.passes.classify import classify
from mixc.passes.differentiate import differentiate
from tests import cells
from tests.agree import assert_agree
from tests.build import KINDS, scalar_decay
from tests.chunks import run_chunks

SIZES = dict(K=4, V=5)


def draw(T, B=2, H=3, K=4, V=5, dtype=torch.float64, q_heads=None):
    torch.manual_seed(T)
    t = dict(q=torch.randn(B, T, q_heads or H, K), k=torch.randn(B, T, H, K), v=torch.randn(B, T, H, V),
             g=-torch.rand(B, T, H) * 3, a=torch.rand(B, T, H) * 2 - 1, D=torch.randn(H, V))
    if T > 5:
        t["g"][0, 5], t["a"][0, 3], t["g"][-1, 2] = -math.inf, 0.0, -100.0
    states = dict(S=torch.randn(B, H, K, V), n=torch.randn(B, H, K))
    return ({n: x.to(dtype).requires_grad_() for n, x in t.items()},
            {n: x.to(dtype).requires_grad_() for n, x in states.items()})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T,C", [(1, 4), (13, 8), (16, 4)])
def test_chunks_equal_tokens_forward_and_backward(kind, T, C):
    program = chunk(classify(scalar_decay(kind)))
    tensors, states = draw(T)
    tokens = run_chunks(program, tensors, states, SIZES, 1)  # a chunk of one token is the step
    chunks = run_chunks(program, tensors, states, SIZES, C)
    assert_agree(chunks.outs["o"], tokens.outs["o"], torch.float64)
    cot = torch.randn_like(tokens.outs["o"])
    finals = {n: torch.randn_like(x) for n, x in tokens.states.items()}
    loss = (tokens.outs["o"] * cot).sum() + sum((tokens.states[n] * finals[n]).sum() for n in finals)
    loss.backward()
    detached = {n: x.detach() for n, x in tensors.items()}
    starts = [{n: x.detach() for n, x in s.items()} for s in chunks.starts]
    back = run_chunks(differentiate(program), {**detached, "cot:o": cot}, finals, SIZES, C, starts=starts)
    for name, x in tensors.items():
        want = torch.zeros_like(x) if x.grad is None else x.grad
        got = back.sums[name].sum(0) if name == "D" else back.outs[name]
        assert_agree(got, want, torch.float64, name=f"d{name}")
    for name, x in states.items():
        assert_agree(back.states[name], x.grad, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_causality_bit_for_bit(kind):
    program = chunk(classify(scalar_decay(kind)))
    tensors, states = draw(16)
    before = run_chunks(program, tensors, states, SIZES, 8).outs["o"]
    changed = {n: x.detach().clone() for n, x in tensors.items()}
    for n in "qkvga":
        changed[n][:, 11] = -0.7
    after = run_chunks(program, changed, states, SIZES, 8).outs["o"]
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11:], after[:, 11:])


def test_what_is_not_affine_is_refused_with_the_term():
    from mixc.ir.node import make
    from mixc.ir.program import Decl, Dim, Program, Result

    S, o = Decl("state", "S", ("K", "V")), Decl("out", "o", ("K", "V"))
    tanh = Program("step", "m", (Dim("K"), Dim("V")), (S, o),
                   (Result("out", "o", S.leaf()), Result("next", "S", make("tanh", S.leaf()))))
    (group,) = classify(tanh).groups
    assert group.form == "sequential" and "not affine" in group.why


@pytest.mark.parametrize("body", [
    "S = exp(g) * S + k * v\nout o[V] = q @ tanh(S)",
    "out r[V] = q @ tanh(S)\nS = exp(g) * S\nout m = sum(square(S))\nS = exp(h) * S + 0.5 * k * v\nout o[K, V] = S",
    "S = exp(g) * S\nS = S + b * k * (v - k @ S)\nout o[V] = q @ S / (1 + norm(S))",
    "out r = real(sum(S * S))\nS = exp(g + 1j * b) * S + k * v\nout o[V] = q @ abs(S)"])
def test_a_matrix_read_entry_by_entry_under_a_decay_with_dims_is_a_scan(body):
    """A product for every entry along the decay took a hundred times as long."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], v[V], k[K] where norm[K](k) <= 1\nin g[K] where g <= 0\n"
                       "in h[V] where h <= 0\nin b where 0 <= b <= 1\nstate S[K, V]\n" + body + "\n}")
    ops = [n.op for n in postorder(chunk(mixer._staged).values())]
    assert mixer.form == {"S": "chunk"} and ops.count("scan") + ops.count("scan_block") == 1
    cell = dict(length=40, size=5, heads="2", gates="forget", dtype=torch.float64, rows="mask, reverse", start=True)
    assert all(f.ok for f in cells.compare(mixer, cell, "torch"))


def test_a_sum_of_products_is_a_product_of_matrices_where_it_would_be_larger_than_both():
    """W * y has M, N and V for every token; forward and backward form nothing of these dims."""
    mixer = mixc.loads("mixer m(N, K, V, M) {\n in q[N, K], k[N, K], v[N, V]\n param W[M, N, V]\n state S[N, K, V]\n"
                       " S = 0.9 * S + k * v\n out o[M] = sum[N, V](W * sum[K](q * S))\n}")
    forward = chunk(mixer._staged)
    for program in (forward, differentiate(forward)):
        assert not any({ROW, "M", "N"} <= {*n.dims} for n in postorder(program.values()))


CENTRED = """mixer centred(K, V) {
in q[K], v[V]
in k[K] where norm[K](k) <= 1
in b where 0 <= b <= 1
param tau where 0 <= tau <= 1
state m[K], S[K, V]
m = tau * m + (1 - tau) * k
c = k - m
S = S + b * c * (v - c @ S)
out o[V] = q @ S
}"""


def test_rows_of_a_vector_that_are_read_in_many_ways_are_formed_once():
    """Each of `c`, `b * c` and `q @ c` was a read of m by itself: another product of pairs of rows, another query."""
    program = chunk(classify(mixc.loads(CENTRED).declared))
    (m,) = [d for d in program.states if d.name == "m"]
    readers = [n for n in postorder(r.value for r in program.results if r.role == "out") if m.leaf() in n.args]
    assert len(readers) == 1


def test_a_normaliser_that_is_summed_shares_the_pairs_of_rows():
    """Where no row of the vector is wanted as it is, none is formed."""
    program = chunk(classify(mixc.load("linear_attention_normalised").declared))
    assert not any(n.dims == (ROW, "K") and n.op == "contract" for n in postorder(program.values()))
