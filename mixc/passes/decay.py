"""The decay of a state over the rows of a chunk: products over spans, in the log where there is one.

With d_j the decay of row j, a chunk needs four things: the product over rows s+1..t for every
pair (t, s), over all rows up to t, over all rows after s, and over the whole chunk.  In the log
they are sums and every exponent is formed as a sum over its own span, so nothing cancels; a
decay given as a number is multiplied out, so that 0, signs and growth are exact, and its gradient is
formed without dividing by it (`derivatives._segprod`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixc.ir.build import cumprod, cumsum, exp, expand, make, maybe_mul, number, total, where
from mixc.ir.node import COL, ROW, Node, is_number
from mixc.ir.ranges import bounds

# exp(FORGET) is exactly 0 in fp32 and fp64, and sums of it stay finite: -inf as a log decay
FORGET = -1.0e4


def log_of(d: Node) -> Node | None:
    """log(d) where d was written as an exponential (then no digits are lost), else None."""
    if d.op == "exp":
        return d.args[0]
    if d.op == "sigmoid":
        return make("logsigmoid", d.args[0])
    if d.op == "sub" and is_number(d.args[0], 1.0) and d.args[1].op == "sigmoid":
        return make("logsigmoid", -d.args[1].args[0])
    if d.op == "number" and not isinstance(d.attr("value"), complex) and d.attr("value") >= 0:
        return number(math.log(d.attr("value")) if d.attr("value") else FORGET)
    if d.op == "mul":
        a, b = log_of(d.args[0]), log_of(d.args[1])
        return None if a is None or b is None else a + b
    if d.op == "ipow":
        a = log_of(d.args[0])
        return None if a is None else a * float(d.attr("n"))
    if d.op == "where":
        a, b = log_of(d.args[1]), log_of(d.args[2])
        return None if a is None or b is None else where(d.args[0], a, b)
    return None


@dataclass(frozen=True)
class Decay:
    """A scalar decay over a chunk. `log` or `value` is [_t]; both None: no decay."""

    log: Node | None = None
    value: Node | None = None

    @staticmethod
    def of(d: Node | None) -> Decay:
        """From the (lifted) decay of one row; None is 1."""
        if d is None:
            return Decay()
        g = log_of(d)
        if g is None:
            return Decay(value=make("live", expand(d, (ROW,)), fill=1.0))
        if bounds(g).infinite:
            g = where(make("lt", number(FORGET), g), g, FORGET)
        return Decay(log=make("live", expand(g, (ROW,)), fill=0.0))

    def over(self, scores: Node | None, reach: str) -> Node:
        """scores[t, s] times the decay from s to t, 0 where t does not reach s; None stands for ones.

        reach: "incl" (rows s+1..t, s <= t), "strict" (the same, s < t), "excl" (s+1..t-1, s < t)."""
        if self.log is not None:
            factor = exp(make("segsum", self.log, reach=reach))
        elif self.value is not None:
            factor = make("segprod", self.value, reach=reach)
        else:
            ones = expand(number(1), (ROW, COL)) if scores is None else scores
            return make("mask", ones, keep="strict" if reach == "excl" else reach)
        return factor if scores is None else scores * factor

    def up_to(self, exclusive: bool) -> Node | None:
        """[_t]: the decay of rows up to t (exclusive: before t)."""
        if self.log is not None:
            return exp(cumsum(self.log, exclusive=exclusive))
        return None if self.value is None else cumprod(self.value, exclusive=exclusive)

    def after(self) -> Node | None:
        """[_t]: the decay of the rows after t."""
        if self.log is not None:
            return exp(cumsum(self.log, reverse=True, exclusive=True))
        return None if self.value is None else cumprod(self.value, reverse=True, exclusive=True)

    def whole(self) -> Node | None:
        """[]: the decay of all rows."""
        if self.log is not None:
            return exp(total(self.log, (ROW,)))
        return None if self.value is None else make("prod", self.value, over=(ROW,))


__all__ = ["FORGET", "Decay", "log_of", "maybe_mul"]
