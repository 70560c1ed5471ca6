"""A program's values as mathematics that a browser shows: MathML, written from the node tree.

Dims have names as in the language: products go entry by entry and by name, a sum says over which dim. Rows of a chunk are
subscripts: t reads, s wrote. A cotangent has a bar. What is used more than once gets a name and a line of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partialmethod
from html import escape

from mixc.codegen.notation import is_held
from mixc.ir.brackets import leaf_text
from mixc.ir.build import is_number, number
from mixc.ir.node import COL, ROW, Node, postorder, source
from mixc.ir.program import Program

_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eta": "η", "theta": "θ", "lambda": "λ", "mu": "μ",
          "nu": "ν", "phi": "φ", "sigma": "σ", "tau": "τ", "omega": "ω"}
_RELATIONS = {"lt": "&lt;", "le": "≤", "eq": "=", "ne": "≠", "and": "∧", "or": "∨"}
_SILENT = ("expand", "live", "to_number")
_SIGNS = {"sigmoid": "σ", "real": "Re", "imag": "Im", "maximum": "max", "minimum": "min", "stop_gradient": "sg"}
_BEFORE = {"incl": "≤", "strict": "&lt;", "excl": "&lt;", "diag": "="}
WIDE = 900  # characters of MathML: a longer sum is broken into a line a term
SUM, PRODUCT, ATOM = 0, 1, 2
SPACE = "<mspace width='0.15em'/>"  # between factors
Letters = Mapping[str, str]


def name(text: str) -> str:
    return f"<mi>{escape(_GREEK.get(text, text))}</mi>"


def _o(sign: str) -> str:
    return f"<mo>{sign}</mo>"


def _sub(x: str, below: list[str]) -> str:
    return f"<msub>{x}<mrow>{_o(',').join(below)}</mrow></msub>" if below else x


def _brackets(x: str) -> str:
    return f"<mrow><mo>(</mo>{x}<mo>)</mo></mrow>"


def _over(sign: str, below: str, of: str) -> str:
    return f"<mrow><munder><mo>{sign}</mo><mrow>{below}</mrow></munder>{of}</mrow>"


class Mathematics:
    """Equations of the values `roots`, in the order of their need."""

    def __init__(self, results: Mapping[Node, str], taken: set[str]):
        """`results`: values and how their left sides are written."""
        self.results = results
        self.uses = Counter(a for n in postorder(list(results)) for a in n.args)
        self.letter = next(c for c in "uwxzyabcd" if c not in taken)
        self.names: dict[Node, str | int] = {}
        self.lines: list[str] = []
        self.long = {source(a, _SILENT) for r in results if r.op == "where" for a in r.args[1:]}  # what has a line beside its cases
        for root in results:
            for n in postorder([root]):
                if n.args and n not in self.names and (n in results or self._has_line(n)):
                    hat = f"<mover>{name(n.args[1].attr('name'))}<mo>^</mo></mover>" if is_held(n) else None
                    self._line(n, results.get(n) or hat or sum(isinstance(x, int) for x in self.names.values()) + 1)

    def _has_line(self, n: Node) -> bool:
        if n.op in ("scan", "scan_block") or is_held(n) or (n in self.long and n.op == "add"):
            return True
        return self.uses[n] > 1 and n.op not in ("rename", *_SILENT)

    def _line(self, n: Node, called: str | int) -> None:
        terms, right = [], ""
        if n.op in ("scan", "scan_block"):
            self.names[n] = called
            right = self._scan(n)
        else:
            terms, right = self._terms(n, {}, 1), self._value(n, {}, SUM)
            right = _brackets(right) if n.op in _RELATIONS else right
            self.names[n] = called
        left = self._named(n, self._rows(n, {}))
        if len(right) > WIDE and len(terms) > 1:
            right = "".join(f"<mtr><mtd style='text-align:left'>{self._signed(i, *t)}</mtd></mtr>"
                            for i, t in enumerate(terms))
            right = f"<mtable displaystyle='true'>{right}</mtable>"
        self.lines.append(f"<mrow>{left}{_o('=')}{right}</mrow>")

    def _named(self, n: Node, below: list[str]) -> str:
        called = self.names[n]
        if isinstance(called, str):
            return _sub(called, below)
        count = f"<mrow><mo>(</mo><mn>{called}</mn><mo>)</mo></mrow>"
        if not below:
            return f"<msup>{name(self.letter)}{count}</msup>"
        return f"<msubsup>{name(self.letter)}<mrow>{_o(',').join(below)}</mrow>{count}</msubsup>"

    # ------------------------------------------------------------ names of rows
    def _rows(self, n: Node, at: Letters) -> list[str]:
        """Subscripts of a value: its rows, and dims that stand under another name."""
        return [name(at.get(d, {ROW: "t", COL: "s", "_u": "u", "_i": "i"}.get(d, d))) for d in n.dims
                if d in (ROW, COL, "_u", "_i") or at.get(d, d) != d]

    @staticmethod
    def _bound(dim: str, at: Letters) -> str:
        """A letter for an index that a sum binds."""
        used = set(at.values()) | {c for d, c in ((ROW, "t"), (COL, "s")) if d not in at and d != dim}
        own = {ROW: "t", COL: "s"}.get(dim, dim.lstrip("_"))
        return next(c for c in (own, "r", "j", "l", "m", own + "′") if c not in used)

    # ------------------------------------------------------------ sums and products
    def _terms(self, n: Node, at: Letters, sign: int) -> list[tuple[int, Node, Letters]]:
        """The addends of a value, each with its sign."""
        if n not in self.names and n.op in ("add", "sub"):
            second = -sign if n.op == "sub" else sign
            return self._parts(n.args[0], at, sign) + self._parts(n.args[1], at, second)
        return [(sign, n, at)]

    def _parts(self, n: Node, at: Letters, sign: int) -> list[tuple[int, Node, Letters]]:
        while n not in self.names:
            if n.op == "neg":
                sign, n = -sign, n.args[0]
            elif n.op == "mul" and any(is_number(a, -1.0) for a in n.args):
                sign, n = -sign, n.args[is_number(n.args[0], -1.0)]
            elif _negative(n):
                sign, n = -sign, number(-n.attr("value"))
            elif n.op in _SILENT:
                n = n.args[0]
            else:
                break
        return self._terms(n, at, sign) if n not in self.names else [(sign, n, at)]

    def _signed(self, i: int, sign: int, n: Node, at: Letters) -> str:
        lead = _o("−") if sign < 0 else _o("+") if i else ""
        return lead + self._value(n, at, PRODUCT)

    def _value(self, n: Node, at: Letters, tight: int) -> str:
        """MathML of a value under the letters `at`; `tight`: what stands around it."""
        if n in self.names:
            return self._named(n, self._rows(n, at))
        if n.op in ("add", "sub", "neg") or (n.op == "mul" and any(is_number(a, -1.0) for a in n.args)):
            parts = self._terms(n, at, 1) if n.op in ("add", "sub") else self._parts_of(n, at)
            text = "".join(self._signed(i, *p) for i, p in enumerate(parts))
            return _brackets(text) if tight > SUM and (len(parts) > 1 or parts[0][0] < 0) else f"<mrow>{text}</mrow>"
        if n.op in ("mul", "guard"):
            text = SPACE.join(self._value(a, at, PRODUCT) for a in n.args)
            return _brackets(text) if tight > PRODUCT else f"<mrow>{text}</mrow>"
        if not n.args:
            return _brackets(self._leaf(n, at)) if _negative(n) and tight > SUM else self._leaf(n, at)
        rule = getattr(self, f"_{n.op}", None)
        text = rule(n, at) if rule else self._function(n, at)
        return _brackets(text) if tight > PRODUCT and n.op in ("contract", "sum", "cumsum") else text

    def _parts_of(self, n: Node, at: Letters) -> list[tuple[int, Node, Letters]]:
        if n.op == "neg":
            return self._parts(n.args[0], at, -1)
        return self._parts(n.args[is_number(n.args[0], -1.0)], at, -1)

    def _leaf(self, n: Node, at: Letters) -> str:
        text = leaf_text(n)
        if n.op == "number":
            shown = f"<mn>{text.removeprefix('-')}</mn>".replace("inf", "∞")
            return f"<mrow><mo>−</mo>{shown}</mrow>" if text[0] == "-" else shown  # one element, also as an exponent
        below = [name(at.get(d, d)) for d in n.dims] if n.op == "index" else self._rows(n, at)
        return _sub(bar(prime(text)) if n.op == "cot" else name(text), below)

    def _function(self, n: Node, at: Letters) -> str:
        over = n.attr("over")
        args = _o(",").join(self._value(a, at, SUM) for a in n.args)
        sign = name(_SIGNS.get(n.op, n.op))
        return f"<mrow>{_sub(sign, [name(d) for d in over]) if over else sign}{_brackets(args)}</mrow>"

    # ------------------------------------------------------------ a rule an op that has a notation
    def _expand(self, n: Node, at: Letters) -> str:
        return self._value(n.args[0], at, PRODUCT)

    _live = _to_number = _expand

    def _rename(self, n: Node, at: Letters) -> str:
        to = dict(n.attr("to"))
        inner: dict[str, str] = {}
        for d in n.args[0].dims:
            new = str(to.get(d, d))
            inner[d] = at.get(new, {ROW: "t", COL: "s"}.get(new, new))
        return self._value(n.args[0], {**at, **inner}, PRODUCT)

    def _pick(self, n: Node, at: Letters) -> str:
        return self._value(n.args[0], {**at, n.attr("dim"): _place_of(n)}, PRODUCT)

    def _place(self, n: Node, at: Letters) -> str:
        dim = n.attr("dim")
        where = name(at.get(dim, {ROW: "t"}.get(dim, dim))) + _o("=") + name(_place_of(n))
        return f"<mrow><msub><mn>𝟙</mn><mrow>{where}</mrow></msub>{SPACE}{self._value(n.args[0], at, PRODUCT)}</mrow>"

    def _floordiv(self, n: Node, at: Letters) -> str:
        return f"<mrow>{_o('⌊')}{self._div(n, at)}{_o('⌋')}</mrow>"

    def _previous(self, n: Node, at: Letters) -> str:
        t = at.get(ROW, "t")
        return self._value(n.args[0], {**at, ROW: f"{t}+1" if n.attr("reverse") else f"{t}−1"}, PRODUCT)

    def _sum(self, n: Node, at: Letters, sign: str = "∑") -> str:
        return self._summed(list(n.attr("over")), n.args, at, sign)

    _prod = partialmethod(_sum, sign="∏")

    def _contract(self, n: Node, at: Letters) -> str:
        return self._summed([d for d in n.args[0].dims if d in n.args[1].dims and d not in n.dims], n.args, at, "∑")

    def _summed(self, over: list[str], args: tuple[Node, ...], at: Letters, sign: str, more: str = "") -> str:
        inner = {d: c for d, c in at.items() if d not in over}
        for d in over:
            inner[d] = self._bound(d, inner)
        below = _o(",").join(name(inner[d]) for d in over)
        return _over(sign, below, SPACE.join(self._value(a, inner, PRODUCT) for a in args) + more)

    def _running(self, n: Node, at: Letters, sign: str) -> str:
        t = at.get(ROW, "t")
        r = self._bound(ROW, {**at, "own": t})
        relation = {(False, False): "≤", (False, True): "&lt;", (True, False): "≥", (True, True): "&gt;"}[
            bool(n.attr("reverse")), bool(n.attr("exclusive"))]
        return _over(sign, name(r) + _o(relation) + name(t), self._value(n.args[0], {**at, ROW: r}, PRODUCT))

    _cumsum, _cumprod = partialmethod(_running, sign="∑"), partialmethod(_running, sign="∏")

    def _segment(self, x: Node, reach: str, at: Letters, sign: str) -> str:
        t, s = at.get(ROW, "t"), at.get(COL, "s")
        r = self._bound(ROW, {**at, "own": t, "other": s})
        below = name(s) + _o("&lt;") + name(r) + _o("&lt;" if reach == "excl" else "≤") + name(t)
        return _over(sign, below, self._value(x, {**at, ROW: r}, PRODUCT))

    def _seen(self, reach: str, at: Letters) -> str:
        t, s = at.get(ROW, "t"), at.get(COL, "s")
        return f"<msub><mn>𝟙</mn><mrow>{name(s)}{_o(_BEFORE[reach])}{name(t)}</mrow></msub>"

    def _across(self, n: Node, at: Letters) -> tuple[Letters, str]:
        """The rows on both sides of a row: their letters, and what is said of them."""
        j = at.get(ROW, "t")
        t = self._bound(ROW, {**at, "own": j})
        s = self._bound(COL, {**at, "own": j, "other": t})
        below = name(s) + _o("&lt;") + name(j) + _o("&lt;" if n.attr("reach") == "excl" else "≤") + name(t)
        return {**at, ROW: t, COL: s}, below

    def _crossing(self, n: Node, at: Letters) -> str:
        inner, below = self._across(n, at)
        return _over("∑", below, self._value(n.args[0], inner, PRODUCT))

    def _segsum(self, n: Node, at: Letters) -> str:
        return self._segment(n.args[0], n.attr("reach"), at, "∑")

    def _segprod(self, n: Node, at: Letters) -> str:
        return f"<mrow>{self._seen(n.attr('reach'), at)}{self._segment(n.args[0], n.attr('reach'), at, '∏')}</mrow>"

    def _mask(self, n: Node, at: Letters) -> str:
        return f"<mrow>{self._seen(n.attr('keep'), at)}{self._value(n.args[0], at, PRODUCT)}</mrow>"

    def _exp(self, n: Node, at: Letters) -> str:
        x = n.args[0]
        power = f"<msup><mi>e</mi>{self._value(x, at, SUM)}</msup>"
        hidden = x.op == "segsum" and x not in self.names
        return f"<mrow>{self._seen(x.attr('reach'), at)}{power}</mrow>" if hidden else power

    def _span_contract(self, n: Node, at: Letters) -> str:
        x, y, _ = n.args
        over = [d for d in dict.fromkeys((*x.dims, *y.dims)) if d not in n.attr("out")]
        inner = {d: c for d, c in at.items() if d not in over}
        return self._seen("strict", at) + self._summed(over, (x, y), at, "∑", self._decay(n, inner))

    def _span_crossing(self, n: Node, at: Letters) -> str:
        *values, g = n.args
        inner, below = self._across(n, at)
        over = [d for d in dict.fromkeys(d for x in values for d in x.dims) if d not in (ROW, COL, *g.dims)]
        decay = self._decay(n, inner)
        of = self._summed(over, tuple(values), inner, "∑", decay) if over else "".join(
            self._value(a, inner, PRODUCT) for a in values) + decay
        return _over("∑", below, of)

    def _decay(self, n: Node, at: Letters) -> str:
        """Of a pair of rows: the exponential of its logarithms' sum."""
        return f"<msup><mi>e</mi>{self._segment(n.args[-1], n.attr('reach'), at, '∑')}</msup>"

    def _solve(self, n: Node, at: Letters) -> str:
        inner = _of_no_row(at)
        return self._solved(n, n.args[1], "".join(self._signed(1, *p) for p in self._parts(n.args[0], inner, 1)), at)

    def _span_solve(self, n: Node, at: Letters) -> str:
        A, b, y, _ = n.args
        factors = [self._value(x, _of_no_row(at), PRODUCT) for x in (b, A) if not is_number(x, 1.0)]
        return self._solved(n, y, "".join([_o("+"), *factors, self._decay(n, _of_no_row(at))]), at)

    def _solved(self, n: Node, y: Node, matrix: str, at: Letters) -> str:
        """The inverse of I and a matrix, or that of the transposed one, times y."""
        power = _o("−") + ("<mi>⊤</mi>" if n.attr("transposed") else "<mn>1</mn>")
        body = _brackets(f"<mi>I</mi>{matrix}")
        return f"<mrow><msup>{body}<mrow>{power}</mrow></msup>{self._value(y, at, ATOM)}</mrow>"

    def _div(self, n: Node, at: Letters) -> str:
        return f"<mfrac>{self._value(n.args[0], at, SUM)}{self._value(n.args[1], at, SUM)}</mfrac>"

    def _power(self, n: Node, at: Letters, exponent: str) -> str:
        return f"<msup>{self._value(n.args[0], at, ATOM)}{exponent}</msup>"

    _square = partialmethod(_power, exponent="<mn>2</mn>")

    def _ipow(self, n: Node, at: Letters) -> str:
        return self._power(n, at, f"<mn>{n.attr('n')}</mn>")

    def _pow(self, n: Node, at: Letters) -> str:
        return self._power(n, at, self._value(n.args[1], at, SUM))

    def _sqrt(self, n: Node, at: Letters) -> str:
        return f"<msqrt>{self._value(n.args[0], at, SUM)}</msqrt>"

    def _abs(self, n: Node, at: Letters, bar: str = "|") -> str:
        return f"<mrow>{_o(bar)}{self._value(n.args[0], at, SUM)}{_o(bar)}</mrow>"

    def _log_size(self, n: Node, at: Letters) -> str:
        least = "<msup><mn>2</mn><mn>−60</mn></msup>"
        return "<mi>log</mi><mi>max</mi>" + _brackets(self._abs(n, at) + _o(",") + least)

    def _norm(self, n: Node, at: Letters) -> str:
        return _sub(self._abs(n, at, "‖"), [name(d) for d in n.attr("over")])

    def _lag(self, n: Node, at: Letters) -> str:
        return _sub(self._value(n.args[0], at, ATOM), [f"{name('t')}{_o('−')}<mn>{n.attr('n')}</mn>"])

    def _window(self, n: Node, at: Letters) -> str:
        return _sub(self._value(n.args[0], at, ATOM), [f"{name('t')}{_o('−')}{name(n.attr('dim'))}"])

    def _where(self, n: Node, at: Letters) -> str:
        if is_held(n):
            return f"<mrow>{name('max')}{_brackets(_o(',').join(self._value(x, at, SUM) for x in n.args[1:]))}</mrow>"
        condition, a, b = (self._value(x, at, SUM) for x in n.args)
        rows = f"<mtr><mtd>{a}</mtd><mtd><mtext>where&#160;</mtext>{condition}</mtd></mtr><mtr><mtd>{b}</mtd><mtd><mtext>" \
               "else</mtext></mtd></mtr>"
        return f"<mrow><mo>{{</mo><mtable>{rows}</mtable></mrow>"

    def _relation(self, n: Node, at: Letters) -> str:
        a, b = (self._value(x, at, SUM if _negative(x) else PRODUCT) for x in n.args)
        return f"<mrow>{a}{_o(_RELATIONS[n.op])}{b}</mrow>"

    _lt = _le = _eq = _ne = _and = _or = _relation

    # ------------------------------------------------------------ scans: the recurrence itself
    def _scan(self, n: Node) -> str:
        """A step, and what it starts from; backward that comes whole to the last row, whatever stands beside it there."""
        back, combine = bool(n.attr("reverse")), n.attr("combine", "affine")
        before = [name(row) for row in (("t+1", "C+1") if back else ("t−1", "0"))]
        moved, start = self._moved(n, before[0], {}), self._named(n, before[1:])
        if n.op == "scan":
            b, s = (self._value(x, {}, PRODUCT) for x in n.args[1:])
        else:
            k = n.attr("n")
            b, s = (_matrix([[self._value(x, {}, SUM)] for x in n.args[i:i + k]]) for i in (k * k, k * k + k))
        joined = moved + _o("+") + b if combine == "affine" else name(
            {"log": "logaddexp"}.get(combine[:3], combine[:3])) + _brackets(moved + _o(",") + b)
        start = self._moved(n, before[1], {ROW: "C"}) if back else start
        return f"{joined}{_o(',')}<mspace width='1em'/>{start}{_o('=')}{s}"

    def _moved(self, n: Node, row: str, at: Letters) -> str:
        """What a scan makes of the value of that row."""
        h = self._named(n, [row])
        if n.op == "scan_block":
            k = n.attr("n")
            return _matrix([[self._value(x, at, SUM) for x in n.args[i * k:(i + 1) * k]] for i in range(k)]) + h
        if is_number(n.args[0], 0.0):
            return h
        return self._value(n.args[0], at, PRODUCT) + (_o("+") if n.attr("combine").endswith("+") else SPACE) + h


def _place_of(n: Node) -> str:
    """Of `pick` and `place`: rows from 1 to C, dims from 0 as in the language."""
    i, dim = n.attr("i"), n.attr("dim")
    return ("C" if i < 0 else "1") if dim == ROW else str(i + (dim == "_i"))


def _of_no_row(at: Letters) -> Letters:
    return {d: c for d, c in at.items() if d not in (ROW, COL)}


def _matrix(rows: list[list[str]]) -> str:
    cells = "".join("<mtr>" + "".join(f"<mtd>{c}</mtd>" for c in row) + "</mtr>" for row in rows)
    return _brackets(f"<mtable>{cells}</mtable>")


def prime(text: str) -> str:
    """A name; one that ends with ' is what follows."""
    return f"<mrow>{name(text[:-1])}<mo>′</mo></mrow>" if text.endswith("'") else name(text)


def _negative(n: Node) -> bool:
    return is_number(n) and n.kind == "real" and n.attr("value") < 0


def bar(x: str) -> str:
    """A border: where no font has bars that stretch, browsers draw an accent inside the letter."""
    return f'<mrow class="bar" style="border-top:.06em solid;padding-top:.1em">{x}</mrow>'


def equations(p: Program, adjoint: bool = False) -> list[str]:
    """A program's results as `<math>` elements; `adjoint`: they are cotangents."""
    return written(p, [(bar(name(r.name)) if adjoint else prime(r.name + "'" * (r.role == "next")), r.value) for r in p.results])


def written(p: Program, lines: list[tuple[str, Node]]) -> list[str]:
    """`left` = value for each, and before them what they need, as `<math>` elements; the names are those of `p`."""
    left: dict[Node, str] = {}
    for x, n in lines:
        left.setdefault(n, x)
    made = Mathematics(left, p.names | {"t", "s"})
    again = [f"<mrow>{x}{_o('=')}{made._value(n, {}, SUM)}</mrow>" for x, n in lines if not n.args or left[n] != x]
    return [f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{line}</math>'
            for line in [*made.lines, *again]]
