"""What the trace counts in a kernel's text, against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest

import mixc
from mixc.autotune.shapes import NeedsSize, Tile
from mixc.autotune.trace import Trace, counts_of
from mixc.autotune.tuner import schedule_of
from mixc.targets import find

KERNEL = '''
@triton.jit
def twice(x):
    return x * 2.0

@triton.jit
def kernel(q_ptr, v_ptr, o_ptr, S_starts, T, K: tl.constexpr, C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
           SEGMENT: tl.constexpr, KEEP: tl.constexpr, OPERAND: tl.constexpr, STAGES: tl.constexpr):
    rows = tl.arange(0, C)
    in_K = tl.arange(0, BK)
    S = tl.zeros([BK, BV], tl.float32)
    chunks = tl.cdiv(T, C)
    for i in tl.range(0, chunks, num_stages=STAGES):
        if KEEP and i % (SEGMENT // C) == 0:
            tl.store(S_starts + in_K[:, None] * BV, S)
        q = tl.load(q_ptr + rows[:, None] * K + in_K[None, :], mask=rows[:, None] < 3, other=0.0)
        v = tl.load(v_ptr + rows[:, None] + tl.arange(0, BV)[None, :])
        A = tl.exp(tl.dot(q, tl.trans(q)))
        P = twice(A).to(OPERAND)
        tl.store(o_ptr + rows[:, None], tl.dot(P, v))
        S = S + tl.dot(tl.trans(q), v)
'''


def counts(text: str = KERNEL, C: int | tuple[int, ...] = (32, 64)) -> Trace:
    return Trace(text, "kernel", C, 2, ["K", "V"])


def test_products_loads_and_special_functions() -> None:
    c = counts().counts
    C, K, V, loop = (1, ("C",)), (1, ("BK",)), (1, ("BV",)), (1, ("chunks",))
    assert c.products == [(C, C, K, loop, "half"), (C, V, C, loop, "half"), (K, V, C, loop, "half")]
    assert c.poly["special"] == {("C", "C", "chunks"): 1}
    # twice, its rounding; S + product
    assert c.poly["alu"] == {("C", "C", "chunks"): 2, ("BK", "BV", "chunks"): 1}
    assert c.memory == [("store", "S_starts", (1, ("BK",)), (1, ("chunks", "keeps"))),
                        ("load", "q_ptr", (1, ("BK", "C")), loop), ("load", "v_ptr", (1, ("BV", "C")), loop),
                        ("store", "o_ptr", (1, ("C",)), loop)]


def test_a_text_that_depends_on_the_rows_is_traced_for_each() -> None:
    loop = "        for b in tl.static_range(0, C // 16):\n            A = A + tl.dot(A, A)\n"
    text = KERNEL.replace("        P =", loop + "        P =")
    with pytest.raises(NeedsSize):
        counts(text)
    assert len(counts(text, 64).counts.products) == 3 + 4


def test_functions_that_need_the_rows_are_counted_for_each() -> None:
    """One gives a tile, one as many as there are levels, which another takes: as a trace of each number of rows."""
    rows, body = (16, 32, 64), "        A = folded(A, levels(A, C), C)\n"
    functions = """
@triton.jit
def levels(x, C: tl.constexpr):
    out = (x,)
    for i in tl.static_range(0, C // 32):
        out = out + (x * 2.0,)
    return out

@triton.jit
def folded(x, factors, C: tl.constexpr):
    for i in tl.static_range(0, C // 32):
        x = tl.dot(x, factors[i + 1])
    return x
"""
    text = functions + KERNEL.replace("        P =", body + "        P =")
    found = counts_of(text, "kernel", rows, 2, ("K", "V"))
    assert [*found] == [(C,) for C in rows]
    for C in rows:
        one, many = counts(text, C).counts.grouped(), found[C,]()
        assert sum(t[0] for *_, t, _ in many.products) == 3 + C // 32
        assert one.poly == many.poly and {*one.products} == {*many.products} and {*one.memory} == {*many.memory}
        assert (one.direct, one.nested) == (many.direct, many.nested)


def test_conditions_on_sizes_need_them() -> None:
    text = KERNEL.replace("        P =", "        if C > 16:\n            A = A * A\n        P =")
    with pytest.raises(NeedsSize):
        counts(text)
    at = {C: sum(counts(text, C).counts.poly["alu"].values()) for C in (16, 32)}
    assert at[16] == 16 * 16 * 2 + 1 and at[32] == 32 * 32 * 3 + 1


def test_what_is_done_now_and_then_is_not_done_where_nothing_is_kept() -> None:
    found = Trace(KERNEL, "kernel", (32, 64), 2, ["K", "V"], (("KEEP", False),)).counts
    assert [pointer for _, pointer, *_ in found.memory] == ["q_ptr", "v_ptr", "o_ptr"]


def test_a_trace_within_a_trace_counts_for_itself() -> None:
    """As a thread's own: `==` and `+` of tiles know whose text runs."""
    one = counts()
    with one.running():
        before = len(one.counts.products)
        assert counts().counts.poly == one.counts.poly
        Tile(((1, ("C",)),)) + 1.0
    assert len(one.counts.products) == before
    assert one.counts.poly["alu"][("C",)] == 1


def test_the_text_of_a_kernel_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sizes of heads, and however many kernels were counted since."""
    counted, count = list[str](), counts_of
    def counting(text: str, kernel: str, *asked: Any) -> Any:
        counted.append(text)
        return count(text, kernel, *asked)
    monkeypatch.setattr("mixc.autotune.schedule.counts_of", counting)
    spec = mixc.loads("mixer once(K, V) { in q[K], k[K], v[V]\nstate S[K, V]\nS = 0.75 * S + k * v\nout o[V] = q @ S }")
    for size in (64, 32, 64):
        schedule_of(spec.declared, find("h100"), {"B": 8, "T": 2048, "H": 16, "K": size, "V": size}, "bf16").default()
    assert counted and len(counted) == len({*counted})
