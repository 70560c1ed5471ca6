"""Expressions put into each other as text: brackets where they are needed, and nowhere else.

before: "{0} * {1}" of `a + b` and `tl.exp(c)`;  "tl.where({0}, {1}, 0.0)" of `a < b` and `c + d`
after:  (a + b) * tl.exp(c);  tl.where(a < b, c + d, 0.0)

Nothing is regrouped: what was formed first is formed first.
"""

from __future__ import annotations

import re

from mixc.ir.node import Node

_BINDS = {**dict.fromkeys("&|<>=!", 0), **dict.fromkeys("+-", 1), **dict.fromkeys("*/%@", 2)}
ATOM = 3
_OPERATOR = re.compile(r" [&|<>=!+\-*/%@]")


def binds(code: str) -> int:
    """How tightly the loosest operator of an expression binds: 0 comparisons, 1 sums, 2 products, 3 it has none."""
    depth, found = 0, 2 if code[:1] in "-~" else ATOM
    if not _OPERATOR.search(code):
        return found
    for i, ch in enumerate(code):
        depth += (ch in "([") - (ch in ")]")
        if depth == 0 and ch in _BINDS and i > 0 and code[i - 1] == " ":
            found = min(found, _BINDS[ch])
    return found


def filled(template: str, operands: list[str]) -> str:
    """A template of {0}, {1}, ... with operands in brackets where they would be read otherwise."""
    def operand(m: re.Match[str]) -> str:
        code, before, after = operands[int(m[1])], template[:m.start()].rstrip(), template[m.end():].lstrip()
        left, right = _BINDS.get(after[:1], -1), _BINDS.get(before[-1:], -1)  # of the operators beside it
        if left == right == -1 and before[-1:] != "~" and after[:1] not in (".", "["):
            return code
        if after[:1] in (".", "[") or before in ("-", "~") or "&" in template or "|" in template:
            return atom(code)
        tight = binds(code) >= max(left, 1) and binds(code) > right and not (right >= 0 and code[:1] in "-~")
        return code if tight else f"({code})"
    return re.sub(r"\{(\d)\}", operand, template)


def atom(code: str) -> str:
    """The code in brackets, unless it is a name, a number or a call."""
    whole = binds(code) == ATOM and not re.search(r" (and|or|if) ", code)
    return code if whole else f"({code})"


def leaf_text(n: Node) -> str:
    """A number as it is written, or the name of what is declared."""
    if n.op == "number":
        value = n.attr("value")
        return str(value) if isinstance(value, complex) else f"{value:g}"
    return str(n.attr("name") or n.attr("dim") or n.op)
