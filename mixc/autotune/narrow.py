"""What `x op y = z` says about the domains of x, y and z: a row an operation.

Small sets are tried out pair by pair, which is exact for every operation.  Long intervals go by bounds and
congruences; a rule only ever removes values that no solution has.  (ConstrINT, of FlashRNN, Pöppel et al. 2024,
arXiv 2412.07752, propagates the same kinds of domains; roots and quotients here round to the sound side.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import gcd, isqrt

from mixc.autotune.domain import INF, Domain, chosen, divisors, interval, meet, within
from mixc.autotune.terms import APPLY

Bounds = tuple[int, int]
Three = tuple[Domain, Domain, Domain]
PAIRS = 4096  # so many pairs are tried one by one
EVERYTHING = (-INF, INF)


def _clamp(x: int) -> int:
    return max(-INF, min(INF, x))


def _times(a: int, b: int) -> int:
    return _clamp(a * b)


def _corners(f: Callable[[int, int], int], x: Bounds, y: Bounds) -> Bounds:
    found = [f(a, b) for a in x for b in y]
    return min(found), max(found)


def _quotient(a: int, b: int, up: bool, low: bool) -> int:
    """a / b rounded up or down, for use as a lower or an upper bound; beyond INF is somewhere beyond it."""
    sign = (a > 0) - (a < 0) if b > 0 else (a < 0) - (a > 0)
    if abs(a) >= INF:
        least = 0 if abs(b) >= INF else INF // abs(b)
        return (-INF if sign < 0 else least) if low else (INF if sign > 0 else -least)
    if abs(b) >= INF:
        return int(sign > 0) if up else -int(sign < 0)
    return -(-a // b) if up else a // b


def _quotients(x: Bounds, y: Bounds, up: bool) -> Bounds:
    return (min(_quotient(a, b, up, True) for a in x for b in y), max(_quotient(a, b, up, False) for a in x for b in y))


# ------------------------------------------------------------ forward: where z can be
def _mul_bounds(x: Bounds, y: Bounds) -> Bounds:
    return _corners(_times, x, y)


def _floordiv_bounds(x: Bounds, y: Bounds) -> Bounds:
    if y[0] <= 0 <= y[1]:
        m = max(abs(x[0]), abs(x[1]))
        return (-m if m < INF else -INF, m)
    return _quotients(x, y, False)


def _cdiv_bounds(x: Bounds, y: Bounds) -> Bounds:
    if y[0] <= 0 <= y[1]:
        return _floordiv_bounds(x, y)
    return _quotients(x, y, True)


def _mod_bounds(x: Bounds, y: Bounds) -> Bounds:
    low, high = min(0, _sum(y[0], 1, -INF)), max(0, _sum(y[1], -1, INF))
    if x[0] >= 0 and y[0] > 0:
        high = min(high, x[1])
        if x[1] < y[0]:
            return x
    return low, high


def _pow_bounds(x: Bounds, y: Bounds) -> Bounds:
    if y[0] < 0 or (x[0] < 0 and y[0] != y[1]):
        return EVERYTHING
    if x[0] >= 0:
        low = _raise(x[0], y[0])
        if x[0] == 0 < y[1]:
            low = 0
        return low, max(_raise(x[1], y[1]), 1 if y[0] == 0 else 0)
    n = y[0]
    a, b = _raise(x[0], n), _raise(x[1], n)
    return (0 if x[1] >= 0 else b, max(a, b)) if n % 2 == 0 else (a, b)


def _raise(a: int, n: int) -> int:
    if abs(a) <= 1:
        return int(a ** (n if n < INF else 2 + n % 2)) if n else 1
    if abs(a) >= INF or n * (abs(a).bit_length() - 1) > 220:
        return (1 if not n else INF if a > 0 or n % 2 == 0 else -INF)
    return _clamp(a ** n)


FORWARD: dict[str, Callable[[Bounds, Bounds], Bounds]] = {
    "add": lambda x, y: (_sum(x[0], y[0], -INF), _sum(x[1], y[1], INF)),
    "mul": _mul_bounds, "floordiv": _floordiv_bounds, "cdiv": _cdiv_bounds, "mod": _mod_bounds, "pow": _pow_bounds,
    "min": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])), "max": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
}


def _sum(a: int, b: int, unbounded: int) -> int:
    return unbounded if abs(a) >= INF or abs(b) >= INF else a + b


def _congruence(op: str, x: Domain, y: Domain) -> Bounds:
    """Step and base of z; step 1 says nothing."""
    sx, sy = (0 if d.fixed else d.step for d in (x, y))
    if op == "add":
        return gcd(sx, sy), x.base + y.base
    if op == "mul":
        return gcd(x.base * sy, y.base * sx, sx * sy), x.base * y.base
    if op == "pow" and y.fixed and y.lo > 0 and x.base % x.step == 0:
        return x.step ** y.lo if y.lo < 8 else x.step, 0
    if op == "mod" and y.fixed and y.lo > 0:
        return gcd(sx, y.lo), x.base
    if op in ("min", "max"):
        return gcd(sx, sy, x.base - y.base), x.base
    return 1, 0


def image(op: str, x: Domain, y: Domain) -> Domain | None:
    """Where `x op y` can be; everything where nothing is known. None: it has no value at all."""
    if x.values is not None and y.values is not None and len(x.values) * len(y.values) <= PAIRS:
        return chosen(_pairs(op, x, y).keys())
    lo, hi = FORWARD[op]((x.lo, x.hi), (y.lo, y.hi))
    step, base = _congruence(op, x, y)
    return interval(lo, hi, max(step, 1), base)


@lru_cache(maxsize=2_000)
def _pairs(op: str, x: Domain, y: Domain) -> dict[int, list[tuple[int, int]]]:
    """By value of `x op y`, the operands that give it."""
    found: dict[int, list[tuple[int, int]]] = {}
    f = APPLY[op]
    assert x.values is not None and y.values is not None
    for a in x.values:
        for b in y.values:
            try:
                found.setdefault(int(f(a, b)), []).append((a, b))
            except ZeroDivisionError:
                continue
    return found


# ------------------------------------------------------------ backward: where an operand can be
def _operand_of_mul(y: Domain, z: Domain) -> Domain | Bounds | None:
    if z.fixed and z.lo == 0:
        return EVERYTHING if 0 in y else (0, 0)
    if y.fixed and y.lo == 0:
        return EVERYTHING if 0 in z else None
    lo, hi = EVERYTHING
    if 0 not in z and (z.lo > 0 or z.hi < 0):
        size = max(abs(z.lo), abs(z.hi))
        lo, hi = -size, size
        if y.lo >= 0:
            lo, hi = (1, hi) if z.lo > 0 else (lo, -1)
    if not y.lo <= 0 <= y.hi or (0 not in z and y.lo >= 0):
        ylo = max(y.lo, 1) if y.hi > 0 else y.lo
        z_, y_ = (z.lo, z.hi), (ylo, y.hi)
        lo, hi = max(lo, _quotients(z_, y_, True)[0]), min(hi, _quotients(z_, y_, False)[1])
    if lo > hi:
        return None
    return lo, hi


def _operand_of_pow(x: Domain, n: int, z: Domain) -> Bounds:
    """Bounds of x with x ** n in z, n > 0; no float is used, so nothing rounds."""
    reach = max(abs(z.lo), abs(z.hi))
    if reach >= INF:
        return EVERYTHING
    root = _root(reach, n)
    return (-root if x.lo < 0 else _root(max(z.lo - 1, 0), n) + 1 if z.lo > 0 else 0), root


def _root(x: int, n: int) -> int:
    """The largest r with r ** n <= x."""
    if n == 1:
        return x
    if n == 2:
        return isqrt(x)
    lo, hi = 0, 1 << (x.bit_length() // n + 1)
    while lo < hi:
        middle = (lo + hi + 1) // 2
        if middle ** n <= x:
            lo = middle
        else:
            hi = middle - 1
    return lo


def _back_x(op: str, x: Domain, y: Domain, z: Domain) -> Domain | Bounds | None:
    if op == "add":
        return _sum(z.lo, -y.hi, -INF), _sum(z.hi, -y.lo, INF)
    if op == "mul":
        return _operand_of_mul(y, z)
    if op in ("min", "max"):
        return _back_extreme(op, y, z)
    if op == "pow":
        return _operand_of_pow(x, y.lo, z) if y.fixed and y.lo > 0 else EVERYTHING
    if y.lo <= 0 or (z.lo <= -INF and z.hi >= INF):
        return EVERYTHING
    if op == "floordiv":  # z y <= x <= z y + y - 1
        last = _sum(y.hi, -1, INF)
        return _mul_bounds((z.lo, z.hi), (y.lo, y.hi))[0], _sum(_mul_bounds((z.lo, z.hi), (y.lo, y.hi))[1], last, INF)
    if op == "cdiv":  # (z - 1) y < x <= z y
        before = _sum(z.lo, -1, -INF), _sum(z.hi, -1, INF)
        low = _mul_bounds(before, (y.lo, y.hi))[0]
        return _sum(low, 1, -INF), _mul_bounds((z.lo, z.hi), (y.lo, y.hi))[1]
    if op == "mod" and z.fixed and (y.fixed or z.lo == 0):
        return interval(-INF, INF, y.lo if y.fixed else gcd(y.base, y.step), z.lo)
    return EVERYTHING


def _back_y(op: str, x: Domain, y: Domain, z: Domain) -> Domain | Bounds | None:
    if op in ("add", "mul", "min", "max"):
        return _back_x(op, y, x, z)
    if op == "pow" and x.lo >= 2 and abs(z.hi) < INF:
        if z.hi < 1:
            return None
        return 0, z.hi.bit_length()
    if x.lo < 0 or y.lo <= 0:
        return EVERYTHING
    if op == "floordiv" and x.hi < INF and z.hi < INF:  # y <= x // z; y > x / (z + 1)
        return x.lo // (z.hi + 1) + 1 if z.hi >= 0 else 1, x.hi // z.lo if z.lo >= 1 else INF
    if op == "cdiv" and x.hi < INF:
        low = -(-x.lo // z.hi) if 1 <= z.hi < INF else 1
        return low, (x.hi - 1) // (z.lo - 1) if z.lo >= 2 else INF
    if op == "mod":  # what leaves z is more than z; what divides x > 0 is at most x
        return max(1, z.lo + 1), x.hi if z.fixed and z.lo == 0 and x.lo > 0 else INF
    return EVERYTHING


def _back_extreme(op: str, y: Domain, z: Domain) -> Bounds:
    """x of min(x, y) = z: at least z, and z itself where y is above it."""
    if op == "min":
        return z.lo, z.hi if y.lo > z.hi else INF
    return (z.lo if y.hi < z.lo else -INF), z.hi


def _cut(d: Domain, by: Domain | Bounds | None) -> Domain | None:
    if by is None:
        return None
    return within(d, *by) if isinstance(by, tuple) else meet(d, by)


@lru_cache(maxsize=200_000)
def narrow(op: str, x: Domain, y: Domain, z: Domain) -> Three | None:
    """The domains after one look at `x op y = z`; None if it cannot hold."""
    if x.values is not None and y.values is not None and len(x.values) * len(y.values) <= PAIRS:
        return _by_pairs(op, x, y, z)
    got = image(op, x, y)
    result = None if got is None else meet(z, got)
    if result is None:
        return None
    left = _cut(x, _back_x(op, x, y, result))
    if left is not None and op == "mul":
        left = _only_divisors(left, result)
    if left is None:
        return None
    right = _cut(y, _back_y(op, left, y, result))
    if right is not None and (op == "mul" or (op == "mod" and result.fixed and result.lo == 0)):
        right = _only_divisors(right, result if op == "mul" else left)
    return None if right is None else (left, right, result)


def _by_pairs(op: str, x: Domain, y: Domain, z: Domain) -> Three | None:
    pairs = _pairs(op, x, y)
    zs = [v for v in pairs if v in z]
    if not zs:
        return None
    if len(zs) == len(pairs):
        kept = meet(z, chosen(pairs) or z)
        full = kept is not None and op in ("add", "mul", "min", "max")
        if full and kept is not None:
            return x, y, kept
    xs = {a for v in zs for a, _ in pairs[v]}
    ys = {b for v in zs for _, b in pairs[v]}
    found = chosen(xs), chosen(ys), chosen(zs)
    return found if None not in found else None  # type: ignore[return-value]


def _only_divisors(d: Domain, z: Domain) -> Domain | None:
    """d without what divides no value of z, where z is a few numbers other than 0."""
    if z.values is None or len(z.values) > 16 or 0 in z:
        return d
    if d.values is not None:
        return d if all(v and any(n % v == 0 for n in z.values) for v in d.values) else \
            chosen(v for v in d.values if v and any(n % v == 0 for n in z.values))
    found: set[int] = set()
    for n in z.values:
        each = divisors(abs(n))
        if each is None:
            return d
        found.update(each)
        if d.lo < 0:
            found.update(-q for q in each)
    return chosen(v for v in found if v in d)
