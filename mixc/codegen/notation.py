"""A value in the language's own notation, for the comments of a kernel and for `explain`.

    o = scale * (prefix * (q @ S) + (D * (q @ k[s])) @ v[s])          [s]: of the row that wrote

A value is spelled out down to decays, or, where that fills more than a line, as far as it fits.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from mixc.ir.brackets import leaf_text
from mixc.ir.node import COL, ROW, Node, is_number, postorder
from mixc.ir.ops import OPS

WIDTH = 108
_INFIX = {"add": (" + ", 1), "sub": (" - ", 1), "mul": (" * ", 2), "div": (" / ", 2),
          "mod": (" % ", 2), "floordiv": (" // ", 2),
          "lt": (" < ", 0), "le": (" <= ", 0), "eq": (" == ", 0), "ne": (" != ", 0)}
_SILENT = ("expand", "live", "once", "to_number")
_WORDS = ("cumsum", "cumprod", "segsum", "segprod", "crossing", "span_contract", "span_crossing", "solve", "span_solve",
          "scan", "scan_block", "previous", "place")
_TRIANGLE = {"incl": "tril({})", "strict": "tril({}, -1)", "excl": "tril({}, -1)", "diag": "diag({})"}


def is_decay(node: Node) -> bool:
    """A product of decays over a span of rows: a name of its own in every formula."""
    return (node.op == "exp" and node.args[0].op in ("segsum", "cumsum", "sum")) or node.op in ("segprod", "cumprod", "prod")


def is_held(n: Node) -> bool:
    """An input held above the number where everything is forgotten."""
    return n.op == "where" and n.args[0].op == "lt" and n.args[0].args == (n.args[2], n.args[1]) and not n.args[1].args


def formula(node: Node, names: Mapping[Node, str]) -> str | None:
    """The value's formula, or None where no spelling fits a line."""
    made = {n: name for n, name in names.items() if n.args and n is not node}
    named = {n: name for n, name in made.items() if is_decay(n) or n.op == "unit_inverse"}
    for stops in (named, named | {n: name for n, name in made.items() if n.op == "contract"}):
        if (text := _fitting(node, stops)) is not None:
            return text
    return _filled(node, made, named)


def _filled(node: Node, stops: dict[Node, str], kept: Container[Node]) -> str | None:
    """A line with all names of `stops`, and then with fewer, those first that are read first, as long as it fits."""
    text, left = _fitting(node, stops), [node]
    while text is not None and left:
        n = left.pop(0)
        if n in stops and n not in kept:
            fewer = {x: name for x, name in stops.items() if x is not n}
            if (longer := _fitting(node, fewer)) is not None:
                text, stops = longer, fewer
        left += [] if n in stops else n.args
    return text


def _fitting(node: Node, stops: Mapping[Node, str]) -> str | None:
    text = Spelling(stops).text(node) if _few(node, stops) else ""
    return text if 0 < len(text) <= WIDTH else None


def _few(node: Node, stops: Container[Node]) -> bool:
    """Has a spelling so few names that it may fit a line? At least every other is written, and something between two."""
    left, stack = WIDTH + 1, [node]
    while stack and left >= 0:
        n = stack.pop()
        if n.args and n not in stops:
            stack += n.args
        else:
            left -= 1
    return left >= 0


@dataclass(frozen=True)
class Spelling:
    """How values are written.

    Attributes:
        names: of values that have one. whole: masks and attributes too, and not only what is multiplied with what."""

    names: Mapping[Node, str]
    whole: bool = False

    def text(self, n: Node, tight: int = 0, top: bool = False) -> str:
        """`tight`: how strongly what stands around it binds. `top`: spelled out though it has a name."""
        if n in self.names and not top:
            return self.names[n]
        if n.op in _SILENT:
            return self.text(n.args[0], tight)
        if not n.args:
            return _leaf(n)
        if n.op == "contract":  # never without brackets beside a product entry by entry
            a, b = (self.text(x, 3) for x in n.args)
            return f"({a} @ {b})" if tight > 1 else f"{a} @ {b}"
        if n.op in _INFIX:
            sign, level = _INFIX[n.op]
            a, b = self.text(n.args[0], level), self.text(n.args[1], level + 1)
            return f"({a}{sign}{b})" if level < tight else f"{a}{sign}{b}"
        if n.op == "neg":
            text = f"-{self.text(n.args[0], 2)}"
            return f"({text})" if tight > (2 if n.args[0].op in ("mul", "div") else 3) else text
        if n.op in ("pow", "ipow"):
            text = f"{self.text(n.args[0], 4)} ** {self.text(n.args[1], 3) if n.op == 'pow' else n.attr('n')}"
            return f"({text})" if tight > 3 else text
        if n.op == "guard":
            return self.text(n.args[0] * n.args[1], tight)
        return self._function(n, tight)

    def _function(self, n: Node, tight: int) -> str:
        if n.op == "rename":
            return f"{self.text(n.args[0], 9)}[{', '.join(dim_name(new) for new in dict(n.attr('to')).values())}]"
        if n.op == "lag":
            return f"lag({self.text(n.args[0])}, {n.attr('n')})"
        if n.op == "window":
            return f"lag[{n.attr('dim')}]({self.text(n.args[0])})"
        if n.op == "pick":
            return f"{self.text(n.args[0], 9)}[{dim_name(n.attr('dim'))}={n.attr('i')}]"
        if n.op == "mask":
            x = self.text(n.args[0], 0 if self.whole else tight)
            return _TRIANGLE[n.attr("keep")].format(x) if self.whole else x
        if is_held(n):
            return f"maximum({self.text(n.args[1])}, {self.text(n.args[2])})"
        args = ", ".join(self.text(a) for a in n.args)
        if n.op == "log_size":
            return f"log(maximum(abs({args}), 2 ** -60))"
        if n.op == "span_solve":
            A, b, y, g = n.args
            L = " * ".join(self.text(x, 3) for x in (b, A) if not is_number(x, 1.0))
            args = f"I + {L} * exp(segsum({self.text(g)})), {self.text(y)}"
        if n.op == "solve":
            args = f"I - {args[1:]}" if args[0] == "-" else f"I + {args}"
        if "over" in dict(n.attrs):
            return f"{n.op}[{', '.join(map(dim_name, n.attr('over')))}]({args})"
        more = "".join(f", {k}={_attribute(v)}" for k, v in n.attrs if v is not False and k not in ("rows", "dims"))
        return f"{n.op}({args}{more if self.whole else ''})"


def bare_code(line: str) -> str:
    """A line of a kernel without what a formula has not: axes, dtypes."""
    return re.sub(r"\[[:, None]+\]|\.to\([\w.]+\)|tl\.", "", line)


def span_formula(n: Node, name: str) -> str | None:
    """What a product of decays runs over, in words that a reader can check."""
    inner = n.args[0] if n.op == "exp" else n
    if inner.op in ("segsum", "segprod"):
        last = "t-1" if inner.attr("reach") == "excl" else "t"
        return f"{name}[t, s]: the decay of rows s+1 to {last}"
    if inner.op in ("cumsum", "cumprod"):
        if inner.attr("reverse"):
            return f"{name}[t]: the decay of the rows after t" + ("" if inner.attr("exclusive") else ", and its own")
        return f"{name}[t]: the decay of the rows " + ("before t" if inner.attr("exclusive") else "up to t")
    return f"{name}: the decay of the whole chunk" if ROW in (inner.attr("over") or ()) else None


def _leaf(n: Node) -> str:
    text = "d" + leaf_text(n).rstrip("'") if n.op == "cot" else leaf_text(n)
    text = f"index[{', '.join(n.dims)}]" if n.op == "index" else text
    return text + "".join(f"[{i}]" for _, i in n.attr("at", ()))


def _attribute(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_attribute, value))}]"
    return dim_name(value) if isinstance(value, str) else str(value)


def meanings(roots: Iterable[Node]) -> list[str]:
    """What the words in formulas of a chunk mean that the language has not: one line each, as the table of ops says."""
    used = {n.op for n in postorder(list(roots))}
    found = [f"{op}: {doc}" for op, doc in ((op, OPS[op].doc) for op in _WORDS if op in used)]
    return [re.sub(r"_([tsi])\b", r"\1", line) for line in found]


def dim_name(d: str) -> str:
    """Of rows: t reads, s wrote."""
    return {ROW: "t", COL: "s", "_u": "u", "_i": "i"}.get(d, d)
