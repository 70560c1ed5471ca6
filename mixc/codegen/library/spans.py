"""Products under vector decays, sums over what crosses a row, and triangular systems: what `triton_span` calls.

Blocks of 2h rows are cut in the middle, for h = 1, 2, 4, ...: what lies between a row of the later and one of the
earlier half is a product of two factors, each at most 1, that meet at the cut.  A level is one masked product.
"""

import triton
import triton.language as tl


@triton.jit
def exact(a, b, PRECISION: tl.constexpr):
    """a @ b to fp32, also where the inputs are halves: sums of gates, and inverses."""
    if PRECISION == "interpret":
        return tl.dot(a, b, input_precision="ieee")
    if PRECISION == "tf32":
        return tl.dot(a, b, input_precision="tf32x3")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def among(t, s, WHICH: tl.constexpr, level):
    """Whether the sum for row t takes row s. "to_cut": the rows between t and the cut of its block of 2 << level rows,
    t's own among them if it lies behind the cut ("to_cut_excl": not even then). "half": the rows of its half of the block
    that the cut is not between, the other way round."""
    if WHICH == "earlier":
        return t > s
    if WHICH == "earlier_and_own":
        return t >= s
    if WHICH == "later":
        return t < s
    if WHICH == "later_and_own":
        return t <= s
    # "again": the other way round, or a compiler keeps the ones in registers from one sum to the next
    if WHICH == "earlier_again":
        return s < t
    if WHICH == "earlier_and_own_again":
        return s <= t
    if WHICH == "later_again":
        return s > t
    if WHICH == "later_and_own_again":
        return s >= t
    if WHICH == "half" or WHICH == "half_excl":
        after = s > t if WHICH == "half_excl" else s >= t
        return ((t >> level) == (s >> level)) & tl.where(((t >> level) & 1) == 1, after, s < t)
    cut = ((t >> level) | 1) << level
    if WHICH == "to_cut":
        return ((s >= cut) & (s <= t)) | ((s > t) & (s < cut))
    return ((s >= cut) & (s < t)) | ((s > t) & (s < cut))


@triton.jit
def two_parts(x):
    """[2t, D]: x in bf16, and behind it what is left of x."""
    x = x.to(tl.float32)
    high = x.to(tl.bfloat16)
    return stack(high, x - high.to(tl.float32), tl.bfloat16)


@triton.jit
def sum_of_rows(x, rows, WHICH: tl.constexpr, PRECISION: tl.constexpr, level=0):
    """[t, D]: the sum over the rows `among` those that WHICH names, a product with ones: nothing is subtracted.
    For half inputs x is split into two bf16, that is 16 bits."""
    if PRECISION == "tf32":
        s = tl.arange(0, 2 * x.shape[0]) % x.shape[0]
        return tl.dot(among(rows[:, None], s[None, :], WHICH, level).to(tl.bfloat16), two_parts(x))
    return exact(among(rows[:, None], rows[None, :], WHICH, level).to(tl.float32), x.to(tl.float32), PRECISION)


@triton.jit
def product_of_rows(a, rows, WHICH: tl.constexpr, PRECISION: tl.constexpr):
    """The same of products: signs are counted, logarithms summed."""
    log, negative = log_and_sign(a)
    count = sum_of_rows(negative, rows, WHICH, PRECISION)
    return (1.0 - 2.0 * odd(count)) * tl.exp(sum_of_rows(log, rows, WHICH, PRECISION))


@triton.jit
def sums_between(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s, D]: g[s+1] + ... + g[t] (REACH "excl": to t-1): a product with ones, so that nothing is subtracted."""
    C: tl.constexpr = g.shape[0]
    D: tl.constexpr = g.shape[1]
    pair = tl.arange(0, C * C)[:, None]
    t, s, row = pair // C, pair % C, rows[None, :]
    if REACH == "excl":
        among = (row > s) & (row < t)
    else:
        among = (row > s) & (row <= t)
    return tl.reshape(exact(among.to(tl.float32), g, PRECISION), [C, C, D])


@triton.jit
def reaches(rows, REACH: tl.constexpr):
    if REACH == "incl":
        return (rows[:, None] >= rows[None, :])[:, :, None]
    return (rows[:, None] > rows[None, :])[:, :, None]


@triton.jit
def vector_span_sum(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s, D]: the sums, -inf where t does not reach s."""
    return tl.where(reaches(rows, REACH), sums_between(g, rows, REACH, PRECISION), float("-inf"))


@triton.jit
def vector_span_product(a, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s, D]: a[s+1] * ... * a[t] (REACH "excl": to t-1), 0 where t does not reach s."""
    log, negative = log_and_sign(a)
    sign = 1.0 - 2.0 * odd(sums_between(negative, rows, REACH, PRECISION))
    size = tl.exp(sums_between(log, rows, REACH, PRECISION))
    return tl.where(reaches(rows, REACH), sign * size, 0.0)


@triton.jit
def solve_columns(L, y, rows, TRANSPOSED: tl.constexpr):
    """(I + L)^-1 y (TRANSPOSED: (I + L)^-T y) with a strictly lower matrix for every column: by substitution."""
    C: tl.constexpr = y.shape[0]
    u = y
    for j in range(C):
        i = C - 1 - j if TRANSPOSED else j
        row = tl.sum(tl.where((rows == i)[:, None], u, 0.0), 0)
        if TRANSPOSED:
            onto = tl.sum(tl.where((rows == i)[:, None, None], L, 0.0), 0)
        else:
            onto = tl.sum(tl.where((rows == i)[None, :, None], L, 0.0), 1)
        u -= onto * row[None, :]
    return u


@triton.jit
def by_level(x):
    """The tiles of [4, t, D], every entry in one thread: a sum over levels would leave each in four."""
    C: tl.constexpr = x.shape[1]
    D: tl.constexpr = x.shape[2]
    low, high = tl.split(tl.permute(tl.reshape(x, [2, 2, C, D]), (2, 3, 1, 0)))
    x0, x1 = tl.split(low)
    x2, x3 = tl.split(high)
    return x0, x1, x2, x3


@triton.jit
def cut_factor(g, rows, level: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[t, D]: the decay between a row and the cut of its block of 2h rows (REACH "excl": without the row's own)."""
    return tl.exp(sum_of_rows(g, rows, "to_cut_excl" if REACH == "excl" else "to_cut", PRECISION, level))


@triton.jit
def low_factors(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """[4, t, D]: the same for blocks of 2, 4, 8 and 16 rows at once."""
    C: tl.constexpr = g.shape[0]
    D: tl.constexpr = g.shape[1]
    WHICH: tl.constexpr = "to_cut_excl" if REACH == "excl" else "to_cut"
    level, t = tl.arange(0, 4)[:, None, None], rows[None, :, None]
    if PRECISION == "tf32":
        ones = among(t, (tl.arange(0, 2 * C) % C)[None, None, :], WHICH, level).to(tl.bfloat16)
        return tl.exp(tl.dot(ones, tl.broadcast_to(two_parts(g)[None], [4, 2 * C, D])))
    ones = among(t, rows[None, None, :], WHICH, level).to(tl.float32)
    return tl.exp(exact(ones, tl.broadcast_to(g[None], [4, C, D]).to(tl.float32), PRECISION))


@triton.jit
def low_tiles(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """The same as tiles. g: logs of decays, or (REACH "given") the tuple of `cut_factors`."""
    if REACH == "given":
        tiles = g
    else:
        tiles = by_level(low_factors(g, rows, REACH, PRECISION))
    return tiles


@triton.jit
def cut_factors(g, rows, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """Those of low levels, and of every level above them: where several products need them."""
    MORE: tl.constexpr = (g.shape[0] > 16) + (g.shape[0] > 32) + (g.shape[0] > 64)
    factors = low_tiles(g, rows, REACH, PRECISION)
    for level in tl.static_range(4, 4 + MORE):
        factors = factors + (cut_factor(g, rows, level, REACH, PRECISION),)
    return factors


@triton.jit
def low_blocks(rows):
    """Of blocks of 2, 4, 8 and 16 rows: which rows lie in the later half, between which rows the cut lies."""
    level, t, s = tl.arange(0, 4)[:, None, None], rows[None, :, None], rows[None, None, :]
    return ((t >> level) & 1) == 1, ((t >> level) ^ (s >> level)) == 1


@triton.jit
def in_later(rows, level: tl.constexpr):
    return (((rows >> level) & 1) == 1)[:, None]


@triton.jit
def to_low_cuts(x, y, factors, rows, OPERAND: tl.constexpr):
    """[4, t, D]: x in the rows of later halves and y in those of earlier ones, times their factors."""
    z0 = (tl.where(in_later(rows, 0), x, y) * factors[0]).to(OPERAND)
    z1 = (tl.where(in_later(rows, 1), x, y) * factors[1]).to(OPERAND)
    z2 = (tl.where(in_later(rows, 2), x, y) * factors[2]).to(OPERAND)
    z3 = (tl.where(in_later(rows, 3), x, y) * factors[3]).to(OPERAND)
    z = tl.permute(tl.join(tl.join(z0, z1), tl.join(z2, z3)), (3, 2, 0, 1))
    return tl.reshape(z, [4, x.shape[0], x.shape[1]])


@triton.jit
def blocks(g, rows, level: tl.constexpr, REACH: tl.constexpr, PRECISION: tl.constexpr):
    """The same for blocks of 2 << level rows, and the decays to the cut."""
    if REACH == "given":
        factor = g[level]
    else:
        factor = cut_factor(g, rows, level, REACH, PRECISION)
    block = rows >> level
    return ((block & 1) == 1)[:, None], (block[:, None] ^ block[None, :]) == 1, factor


@triton.jit
def span_pair(x, y, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[t, s]: sum over D of x[t] y[s] exp(g[s+1] + ... + g[t]), 0 unless s < t (REACH "excl": to g[t-1])."""
    MORE: tl.constexpr = (x.shape[0] > 16) + (x.shape[0] > 32) + (x.shape[0] > 64)
    later, apart = low_blocks(rows)
    if REACH == "given":
        z = to_low_cuts(x, y, g, rows, OPERAND)
    else:
        z = (tl.where(later, x[None], y[None]) * low_factors(g, rows, REACH, PRECISION)).to(OPERAND)
    out = tl.sum(tl.where(later & apart, dot(z, tl.permute(z, (0, 2, 1)), OPERAND, PRECISION), 0.0), 0)
    for level in tl.static_range(4, 4 + MORE):
        later, apart, factor = blocks(g, rows, level, REACH, PRECISION)
        z = (tl.where(later, x, y) * factor).to(OPERAND)
        out += tl.where(later & apart, dot(z, tl.trans(z), OPERAND, PRECISION), 0.0)
    return out


@triton.jit
def span_apply(A, y, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[t, D]: sum over s < t of A[t, s] y[s] exp(g[s+1] + ... + g[t])."""
    MORE: tl.constexpr = (y.shape[0] > 16) + (y.shape[0] > 32) + (y.shape[0] > 64)
    later, apart = low_blocks(rows)
    factors = low_tiles(g, rows, REACH, PRECISION)
    z = to_low_cuts(y, y, factors, rows, OPERAND)
    found = by_level(dot(tl.where(later & apart, A[None], 0.0), z, OPERAND, PRECISION))
    out = factors[0] * found[0] + factors[1] * found[1] + factors[2] * found[2] + factors[3] * found[3]
    for level in tl.static_range(4, 4 + MORE):
        later, apart, factor = blocks(g, rows, level, REACH, PRECISION)
        out += factor * dot(tl.where(later & apart, A, 0.0), y * factor, OPERAND, PRECISION)
    return out


@triton.jit
def span_apply_back(A, x, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[s, D]: sum over t > s of A[t, s] x[t] exp(g[s+1] + ... + g[t])."""
    return span_apply_both(A, x, x, g, rows, REACH, OPERAND, PRECISION)[1]


@triton.jit
def span_apply_both(A, x, y, g, rows, REACH: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """span_apply(A, y) and span_apply_back(A, x): where one has rows of the later halves the other has the earlier.
    And x times the one less y times the other, of the rounded operands that the other met: its rows sum up to 0."""
    MORE: tl.constexpr = (y.shape[0] > 16) + (y.shape[0] > 32) + (y.shape[0] > 64)
    later, apart = low_blocks(rows)
    both = tl.where(apart, tl.where(later, A[None], tl.trans(A)[None]), 0.0)
    factors = low_tiles(g, rows, REACH, PRECISION)
    low = by_level(dot(both, to_low_cuts(x, y, factors, rows, OPERAND), OPERAND, PRECISION))
    out = tl.zeros([y.shape[0], y.shape[1]], tl.float32)
    back = tl.zeros([y.shape[0], y.shape[1]], tl.float32)
    gain = tl.zeros([y.shape[0], y.shape[1]], tl.float32)
    for level in tl.static_range(0, 4):
        signed = tl.where(in_later(rows, level), x.to(tl.float32), -y.to(tl.float32))
        z = (signed * factors[level]).to(OPERAND)  # formed again, with its sign: fewer registers
        gain += z.to(tl.float32) * low[level]
        found = factors[level] * low[level]
        ahead = tl.where(in_later(rows, level), found, 0.0)
        out, back = out + ahead, back + (found - ahead)
    for level in tl.static_range(4, 4 + MORE):
        later, apart, factor = blocks(g, rows, level, REACH, PRECISION)
        both = tl.where(apart, tl.where(later, A, tl.trans(A)), 0.0)
        z = (tl.where(later, x, y) * factor).to(OPERAND)
        met = dot(both, z, OPERAND, PRECISION)
        own, found = z.to(tl.float32) * met, factor * met
        out, back = out + tl.where(later, found, 0.0), back + tl.where(later, 0.0, found)
        gain += tl.where(later, own, -own)
    return out, back, gain


@triton.jit
def span_between(A, x, y, g, rows, REACH: tl.constexpr, EXCL: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """[j, D]: sum over t >= j > s (EXCL: t > j) of A[t, s] x[t] y[s] exp(g[s+1] + ... + g[t]) (EXCL: to g[t-1])."""
    C: tl.constexpr = y.shape[0]
    D: tl.constexpr = y.shape[1]
    MORE: tl.constexpr = (C > 16) + (C > 32) + (C > 64)
    WIDE: tl.constexpr = tl.float32 if OPERAND == tl.float16 else OPERAND  # decays down to 2^-60
    WHICH: tl.constexpr = "half_excl" if EXCL else "half"
    later, apart = low_blocks(rows)
    both = tl.where(apart, tl.where(later, A[None], tl.trans(A)[None]), 0.0)
    factors = low_tiles(g, rows, REACH, PRECISION)
    low = by_level(dot(both, to_low_cuts(x, y, factors, rows, WIDE), WIDE, PRECISION))
    between = tl.zeros([C, D], tl.float32)
    for level in tl.static_range(0, 4):
        own = tl.where(in_later(rows, level), x, y) * factors[level] * low[level]
        between += sum_of_rows(own, rows, WHICH, PRECISION, level)
    for level in tl.static_range(4, 4 + MORE):
        later, apart, factor = blocks(g, rows, level, REACH, PRECISION)
        z = tl.where(later, x, y) * factor
        both = tl.where(apart, tl.where(later, A, tl.trans(A)), 0.0)
        between += sum_of_rows(z * dot(both, z, WIDE, PRECISION), rows, WHICH, PRECISION, level)
    return between


@triton.jit
def below(L, rows, h: tl.constexpr):
    """L where a row of the later half of a block of 2h rows meets a column of its earlier half."""
    t, s = rows[:, None], rows[None, :]
    return tl.where((t // (2 * h) == s // (2 * h)) & (t // h > s // h), L, 0.0)


@triton.jit
def unit_inverse(L, rows, PRECISION: tl.constexpr, SMALL: tl.constexpr):
    """(I + L)^-1 of a strictly lower L: blocks of 2h rows from those of h, level by level (never by doubling).
    SMALL: no entry of L exceeds 1 (by the declared ranges), and one pass of TF32 serves half inputs."""
    C: tl.constexpr = L.shape[0]
    MORE: tl.constexpr = (C > 128) + (C > 256) + (C > 512) + (C > 1024)  # where tokens have more rows
    LEVELS: tl.constexpr = 4 + (C > 16) + (C > 32) + (C > 64) + MORE
    X = tl.where(rows[:, None] == rows[None, :], 1.0, 0.0) - below(L, rows, 1)
    for level in tl.static_range(1, LEVELS):
        if SMALL and PRECISION == "tf32":
            X -= tl.dot(tl.dot(X, below(L, rows, 1 << level), input_precision="tf32"), X, input_precision="tf32")
        else:
            X -= exact(exact(X, below(L, rows, 1 << level), PRECISION), X, PRECISION)
    return X


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
