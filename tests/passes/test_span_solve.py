"""Corrections under decays along the side that they keep: a triangular system for every entry, none of them formed."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.module import Module
from mixc.codegen.torch_span_prelude import span_solve
from mixc.codegen.triton_program import kernels
from mixc.ir.derivatives import gradient
from mixc.ir.evaluate import Env, evaluate
from mixc.ir.node import COL, LEVEL, ROW, Node, make, number, postorder
from mixc.passes.chunk import chunk
from mixc.passes.lower import RULES, with_crossings
from mixc.passes.simplify import rewrite
from tests.agree import assert_runs_agree, draw, run

RANKS = (("R", "R_s", "R_u"),)


def leaf(name: str, *dims: str) -> Node:
    return make("in", name=name, dims=dims, kind="real")


A, G, C = leaf("A", ROW, COL), leaf("g", ROW, "D"), leaf("c", ROW, "D")
B, Y = leaf("b", ROW, "D"), leaf("y", ROW, "D")
MANY = leaf("A", ROW, "R", COL, "R_s"), leaf("b", ROW, "R", "D"), leaf("y", ROW, "R", "D"), G


def values(roots: list[Node], grads: bool = False) -> list[torch.Tensor]:
    """On 8 rows; `grads`: of the first root, with PyTorch's derivatives, with the cotangent C."""
    torch.manual_seed(0)
    known: dict[str, torch.Tensor] = {}
    sizes = {ROW: 8, COL: 8, "_u": 8, LEVEL: 3, "D": 3, "R": 2, "R_s": 2, "R_u": 2}
    for n in sorted({n for n in postorder(roots) if n.op == "in"} | {C}, key=lambda n: str(n.attr("name"))):
        x = torch.randn(2, *(sizes[d] for d in n.dims), dtype=torch.float64)
        known[n.attr("name")] = (-x.abs() if n is G else 0.5 * x).requires_grad_(grads and n is not C)
    found = evaluate(roots, Env(lambda n: known[n.attr("name")], sizes, dtype=torch.float64, batch=1))
    if not grads:
        return found
    wanted = [known[n] for n in ("A", "b", "y", "g")]
    return list(torch.autograd.grad(found[0], wanted, known["c"]))


def solve(reach: str, transposed: bool, b: Node = B) -> Node:
    return make("span_solve", A, b, Y, G, reach=reach, transposed=transposed)


CASES = [(reach, back) for reach in ("strict", "excl") for back in (False, True)]


@pytest.mark.parametrize("reach,transposed", CASES)
def test_gradients(reach: str, transposed: bool) -> None:
    u = solve(reach, transposed)
    found = [g for g in gradient([(u, C)], [A, B, Y, G]) if g is not None]
    lowered = rewrite(with_crossings(found), RULES)
    assert not any(n.op == "span_solve" for n in postorder(lowered))
    for roots in (found, lowered):
        for got, want in zip(values(roots), values([u], True), strict=True):
            torch.testing.assert_close(got, want.expand_as(got), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reach,transposed", CASES)
@pytest.mark.parametrize("strength", [True, False])
def test_row_by_row(reach: str, transposed: bool, strength: bool) -> None:
    """What torch runs where tokens have more rows, with one."""
    *given, want = values([A, B, Y, G, solve(reach, transposed, B if strength else number(1))])
    if not strength:
        given[1] = None  # type: ignore[call-overload]
    torch.testing.assert_close(span_solve(*given, reach, transposed, torch.empty_like(want)), want)


@pytest.mark.parametrize("reach,transposed", CASES)
def test_more_rows_of_a_token(reach: str, transposed: bool) -> None:
    *given, want = values([*MANY, make("span_solve", *MANY, reach=reach, transposed=transposed, rows=RANKS)])
    torch.testing.assert_close(span_solve(*given, reach, transposed, torch.empty_like(want)), want)


HEADER = """mixer m(K, V, R = 2) {{
    in q[K], v[V], y[V], u[R, V]
    in k[K] where norm[K](k) <= 1, x[V] where norm[V](x) <= 1, l[R, K] where norm[K](l) <= 0.7
    in g[K] where g <= 0, h[V] where h <= 0, a[V] where 0 <= a <= 1, s[V] where -1 <= s <= 1
    in b where 0 <= b <= 1, c[V] where 0 <= c <= 1
    state S[K, V]
    {}
    out o[V] = q @ S
}}
"""
BODIES = {
    "a decay of each value": "S = exp(h) * S\n    S = S + b * k * (v - k @ S)",
    "given as a number": "S = a * S\n    S = S + b * k * (v - k @ S)",
    "of any sign": "S = s * S\n    S = S + b * k * (v - k @ S)",
    "decays of both sides": "S = exp(g) * exp(h) * S\n    S = S + b * k * (v - k @ S)",
    "read before the decay": "S = exp(h) * S - b * k * (k @ S) + k * v",
    "a strength of each value": "S = exp(h) * S\n    S = S + c * k * (v - k @ S)",
    "the other side": "S = exp(g) * S\n    S = S + b * x * (k - S @ x)",
    "two errors a token": "S = exp(h) * S\n    S = S + b * (l @ (u - l @ S))",
    "read along the values": "S = exp(h) * S\n    S = S + b * k * (v - k @ S)\n    out r[K] = S @ y",
}


def load(name: str) -> mixc.Mixer:
    return mixc.loads(HEADER.format(BODIES[name]))


@pytest.mark.parametrize("name", BODIES)
def test_no_matrix_of_an_entry_is_formed(name: str) -> None:
    mixer = load(name)
    nodes = list(postorder(chunk(mixer._staged).values()))
    assert any(n.op == "span_solve" for n in nodes)
    assert not any({ROW, COL} <= {*n.dims} and {"K", "V"} & {*n.dims} for n in nodes)


@pytest.mark.parametrize("name", BODIES)
def test_kernels(name: str) -> None:
    mixer = load(name)
    assert type(kernels(mixer.declared)) is Module
    tensors = draw(mixer.declared, B=2, T=21, H=1, sizes=dict(K=5, V=4, R=2), dtype=torch.float32, seed=1)
    want = run(mixer, tensors, wide=True)
    for backend in ("torch", "triton"):
        assert_runs_agree(mixer, run(mixer, tensors, backend=backend), want)


REFUSED = {
    "triangular systems that feed each other for every entry of V":
        "S = exp(h) * S\n    S = S + b * k * (v - k @ S)\n    S = S + b * g * (y - g @ S)",
    "a product over pairs of rows for every entry of K, V": "S = 0.9 * S + k * v\n    out n = norm(S)",
}


@pytest.mark.parametrize("what", REFUSED)
def test_why_kernels_run_token_by_token(what: str) -> None:
    assert f"token by token (no kernel of chunks holds {what})" in mixc.loads(HEADER.format(REFUSED[what])).explain()
