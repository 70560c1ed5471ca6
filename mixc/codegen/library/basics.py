"""What every kernel may call: products, sums over rows, and functions that Triton lacks."""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr, x=None):
    """a @ b (+ x), the operands rounded to the dtype of the inputs, summed in fp32."""
    if PRECISION == "interpret":  # the interpreter cannot multiply bf16: round, then multiply in fp32
        return tl.dot(a.to(OPERAND).to(tl.float32), b.to(OPERAND).to(tl.float32), x, input_precision="ieee")
    return tl.dot(a.to(OPERAND), b.to(OPERAND), x, input_precision=PRECISION)


@triton.jit
def fine_dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr, x=None):
    """The same of operands that are not rounded to halves, but to TF32. One on the left that is in bf16 as it was loaded
    stays so, and b is split into two `halves`: as many steps, more digits, and half the registers for what all warps hold.
    A caller gives a b that it forms of loads `formed`; a state, or what a product made, is where it is halved already."""
    if PRECISION == "interpret":
        return tl.dot(a.to(OPERAND), b.to(OPERAND), x, input_precision="ieee")
    HALF: tl.constexpr = PRECISION == "tf32" and a.dtype == tl.bfloat16
    if HALF and b.dtype == tl.bfloat16:
        return tl.dot(a, b, x)
    if HALF:
        high, low = halves(b)
        return tl.dot(a, low, tl.dot(a, high, x))
    return tl.dot(a.to(OPERAND), b.to(OPERAND), x, input_precision=PRECISION)


@triton.jit
def halves(x):
    """x in bf16, and what is left of it: 16 bits in all."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def formed(x):
    """x itself. A side of a product Triton forms, from what is loaded on, where the product wants it: in every warp that
    has its rows (columns), that is in all. What stands in a sum, here of one term, is formed once."""
    return tl.sum(x[None, :, :], 0)


@triton.jit
def stack(x, y, DTYPE: tl.constexpr):
    """[2t, D]: the rows of x, and below them those of y; of what is in bf16 they stay so."""
    HALF: tl.constexpr = x.dtype == tl.bfloat16 and y.dtype == tl.bfloat16
    KIND: tl.constexpr = tl.bfloat16 if HALF else DTYPE
    rows = tl.permute(tl.join(x.to(KIND), y.to(KIND)), (2, 0, 1))
    return tl.reshape(rows, [2 * x.shape[0], x.shape[1]])


@triton.jit
def sequence_of(seq, starts, lengths, T, SIGN: tl.constexpr, RAGGED: tl.constexpr):
    """The first row of a sequence among all, its length, its batch and its first token there. (Where it is reversed its
    first row is its last token.)"""
    if RAGGED:
        first, length = tl.load(starts + seq).to(tl.int64), tl.load(lengths + seq).to(tl.int32)
        batch, token = 0, first
    else:
        first, length, batch, token = seq * T, T, seq, 0
    if SIGN < 0:
        first, token = first + length - 1, token + length - 1
    return first, length, batch, token


@triton.jit
def sequences_of_lanes(lane, count, starts, lengths, T, SIGN: tl.constexpr, RAGGED: tl.constexpr):
    """The sequences of several lanes and the same of each; behind the last of `count` the last one again, without tokens."""
    seq = tl.minimum(lane, count - 1).to(tl.int64)
    if RAGGED:
        first, length = tl.load(starts + seq).to(tl.int64), tl.load(lengths + seq).to(tl.int32)
        batch, token = tl.zeros(lane.shape, tl.int64), first
    else:
        first, length = seq * T, tl.zeros(lane.shape, tl.int32) + T
        batch, token = seq, tl.zeros(lane.shape, tl.int64)
    length = tl.where(lane < count, length, 0)
    if SIGN < 0:
        first, token = first + length - 1, token + length - 1
    return seq, first, length, batch, token


@triton.jit
def first_segment_of(seq, length, segment_at, SEGMENT: tl.constexpr):
    """The number of a sequence's first segment among those of all (no `segment_at`: all are of one length)."""
    if segment_at is None:
        number = seq * tl.cdiv(length, SEGMENT)
    else:
        number = tl.load(segment_at + seq)
    return number


@triton.jit
def rows_at(ptr, row, rows, stride, columns, SIGN: tl.constexpr):
    """Addresses of a tile: the rows of a chunk that begins at `row`, as far apart as `stride`, and columns."""
    return ptr + row * stride + rows[:, None] * SIGN * stride + columns[None, :]


@triton.jit
def state_at(ptr, number, rows, columns, R: tl.constexpr, N: tl.constexpr):
    """Addresses of a tile of matrix [R, N] `number` of those that lie one after the other."""
    return ptr + number * (R * N) + rows[:, None] * N + columns[None, :]


@triton.jit
def state_of(ptr, number, rows, has_rows, columns, has_columns, R: tl.constexpr, N: tl.constexpr):
    """A tile of such a matrix, 0 beyond its size."""
    mask = has_rows[:, None] & has_columns[None, :]
    return tl.load(state_at(ptr, number, rows, columns, R, N), mask=mask, other=0.0)


@triton.jit
def initial_state(ptr, number, rows, has_rows, columns, has_columns, R: tl.constexpr, N: tl.constexpr, GIVEN: tl.constexpr):
    """The same in fp32; 0 where none is given."""
    if GIVEN:
        return state_of(ptr, number, rows, has_rows, columns, has_columns, R, N).to(tl.float32)
    return tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)


@triton.jit
def add_to(at, value, mask, more):
    """Stores the value: where there is `more`, added to what stands there."""
    tl.store(at, value + tl.load(at, mask=mask & more, other=0.0), mask=mask)


@triton.jit
def guarded(x, y):
    """x * y of a cotangent and a derivative: where a cotangent is 0 it stays 0."""
    return tl.where(x == 0, 0.0, x * y)


@triton.jit
def repeated(x, N: tl.constexpr):
    """[t * N + n]: x[t]."""
    return tl.reshape(tl.broadcast_to(x[:, None], [x.shape[0], N]), [x.shape[0] * N])


@triton.jit
def repeated_both(x, N: tl.constexpr):
    """[t * N + n, s * N + m]: x[t, s]."""
    T: tl.constexpr = x.shape[0]
    return tl.reshape(tl.broadcast_to(x[:, None, :, None], [T, N, T, N]), [T * N, T * N])


@triton.jit
def inside(index, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Which entries of a block lie in their dim: all, where blocks divide it."""
    if SIZE % BLOCK == 0:
        return tl.full(index.shape, True, tl.int1)
    return index < SIZE


@triton.jit
def span_sum(g, rows, REACH: tl.constexpr):
    """[t, s]: g[s+1] + ... + g[t] (REACH "excl": to t-1), -inf where t does not reach s.

    The running sum is formed in fp64 and split in two fp32 parts: their differences keep every digit."""
    total = tl.cumsum(g.to(tl.float64), 0)
    high = total.to(tl.float32)
    low = (total - high.to(tl.float64)).to(tl.float32)
    if REACH == "excl":
        before = total - g.to(tl.float64)
        high_t = before.to(tl.float32)
        low_t = (before - high_t.to(tl.float64)).to(tl.float32)
    else:
        high_t, low_t = high, low
    span = (high_t[:, None] - high[None, :]) + (low_t[:, None] - low[None, :])
    if REACH == "incl":
        seen = rows[:, None] >= rows[None, :]
    else:
        seen = rows[:, None] > rows[None, :]
    return tl.where(seen, span, float("-inf"))


@triton.jit
def running_sum(x, REVERSE: tl.constexpr, EXCLUSIVE: tl.constexpr):
    """The sum of the rows up to each (REVERSE: from each on; EXCLUSIVE: without its own)."""
    x = x.to(tl.float64)
    total = tl.cumsum(x, 0, reverse=REVERSE)
    if EXCLUSIVE:
        total = total - x
    return total.to(tl.float32)


@triton.jit
def sum_crossing(x, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[j]: the sum of x[t, s] over t >= j > s (REACH "excl": t > j > s). What cancels does so in fp64, or is no more
    exact than half inputs."""
    x = tl.where(rows[:, None] > rows[None, :], x, 0.0)
    if PRECISION != "tf32":
        x = x.to(tl.float64)
    row = tl.sum(x, 1)
    total = tl.cumsum((row - tl.sum(x, 0)).to(tl.float64), 0, reverse=True)
    if REACH == "excl":
        total = total - row
    return total.to(tl.float32)


@triton.jit
def log_and_sign(a):
    """log|a| (a finite stand-in where a is 0) and 1 where a < 0: products become sums."""
    size = tl.abs(a)
    return tl.where(size > 0, tl.log(tl.where(size > 0, size, 1.0)), -1.0e4), tl.where(a < 0, 1.0, 0.0)


@triton.jit
def odd(count):
    return count - 2.0 * tl.floor(count * 0.5)


@triton.jit
def span_product(a, rows, REACH: tl.constexpr):
    """[t, s]: a[s+1] * ... * a[t] (REACH "excl": to t-1), 0 where t does not reach s."""
    log, negative = log_and_sign(a)
    count = tl.cumsum(negative, 0)
    if REACH == "excl":
        count_t = count - negative
    else:
        count_t = count
    sign = 1.0 - 2.0 * odd(tl.abs(count_t[:, None] - count[None, :]))
    return sign * tl.exp(span_sum(log, rows, REACH))


@triton.jit
def running_product(a, REVERSE: tl.constexpr, EXCLUSIVE: tl.constexpr):
    """The product of the rows up to each (REVERSE: from each on; EXCLUSIVE: without its own)."""
    log, negative = log_and_sign(a)
    count = running_sum(negative, REVERSE, EXCLUSIVE)
    return (1.0 - 2.0 * odd(count)) * tl.exp(running_sum(log, REVERSE, EXCLUSIVE))


@triton.jit
def whole_product(a):
    log, negative = log_and_sign(a)
    return (1.0 - 2.0 * odd(tl.sum(negative, 0))) * tl.exp(tl.sum(log, 0))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), accurate for small exp(x), and x itself for large x."""
    e = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + log1p(e)


@triton.jit
def logsigmoid(x):
    return -softplus(-x)


@triton.jit
def log1p(x):
    """log(1 + x) without losing small x: log(u) x / (u - 1), u = 1 + x rounded (Goldberg 1991)."""
    u = 1.0 + x
    d = u - 1.0
    return tl.where(d == 0.0, x, tl.log(u) * (x / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def expm1(x):
    """exp(x) - 1; a series where the difference would cancel."""
    series = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666668 + x * (0.008333334 + x * 0.0013888889)))))
    return tl.where(tl.abs(x) < 0.35, series, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1; a series where the difference would cancel."""
    s = x * x
    series = x * (1.0 - s * (0.33333333 - s * (0.13333333 - s * (0.053968254 - s * 0.021869489))))
    return tl.where(tl.abs(x) < 0.25, series, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


@triton.jit
def logaddexp(a, b):
    top = tl.maximum(a, b)
    low = tl.minimum(a, b)
    return tl.where(top == float("-inf"), top, top + log1p(tl.exp(low - tl.where(top == float("-inf"), 0.0, top))))


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def mod(a, b):
    return a - b * tl.floor(a / b)


@triton.jit
def atan2(y, x):
    """The angle of x + i y, to 2 units in the last place (Cephes' polynomial on [0, tan(pi/8)])."""
    large, small = tl.maximum(tl.abs(x), tl.abs(y)), tl.minimum(tl.abs(x), tl.abs(y))
    a = small / tl.where(large > 0, large, 1.0)
    upper = a > 0.41421356
    b = tl.where(upper, (a - 1.0) / (a + 1.0), a)
    z = b * b
    p = ((0.0805374450 * z - 0.138776856) * z + 0.199777106) * z - 0.333329492
    angle = tl.where(upper, 0.785398163, 0.0) + (p * z * b + b)
    angle = tl.where(tl.abs(y) > tl.abs(x), 1.57079633 - angle, angle)
    angle = tl.where(x < 0, 3.14159265 - angle, angle)
    return tl.where(y < 0, -angle, angle)
