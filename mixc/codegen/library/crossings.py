"""Sums over what crosses a row, beside products under vector decays."""

import triton
import triton.language as tl


@triton.jit
def either(half, full, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """What is summed up where inputs are halves, or where they are not."""
    if OPERAND == tl.float32 and PRECISION != "tf32":
        return full
    return half


@triton.jit
def with_spans(running, A, x, y, gave, g, rows, REACH: tl.constexpr, EXCL: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Where inputs are no halves, what `either` has left out of a running sum from the end: x dx - y dy of the products
    dx, dy of A with y and with x. Behind a row the two are the same; the sum without its own lacks what the row `gave`."""
    if OPERAND == tl.float32 and PRECISION != "tf32":
        running += span_between(A, x, y, g, rows, REACH, EXCL, OPERAND, PRECISION) + gave
    return running
