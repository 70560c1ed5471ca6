"""A value in the language's own notation, for the comments of a kernel.

    o = scale * (prefix * (q @ S) + (D * (q @ k[s])) @ v[s])          [s]: of the row that wrote

A value is spelled out down to decays, or, where that fills more than a line, down to the products that have names.
"""

from __future__ import annotations

from collections.abc import Mapping

from mixc.ir.node import COL, ROW, Node, postorder

WIDTH = 108
_INFIX = {"add": (" + ", 1), "sub": (" - ", 1), "mul": (" * ", 2), "div": (" / ", 2),
          "lt": (" < ", 0), "le": (" <= ", 0), "eq": (" == ", 0), "ne": (" != ", 0)}
_SILENT = ("expand", "live", "mask", "to_number", "stop_gradient")


def is_decay(node: Node) -> bool:
    """A product of decays over a span of rows: a name of its own in every formula."""
    return (node.op == "exp" and node.args[0].op in ("segsum", "cumsum", "sum")) or node.op in ("segprod", "cumprod", "prod")


def formula(node: Node, names: Mapping[Node, str]) -> str | None:
    """The value's formula, or None where no spelling fits a line."""
    below = [n for n in postorder([node]) if n is not node and n in names and n.args]
    for stops in ([n for n in below if is_decay(n)], [n for n in below if n.op == "contract" or is_decay(n)]):
        text = _text(node, {n: names[n] for n in stops}, 0)
        if len(text) <= WIDTH:
            return text
    return None


def _text(n: Node, names: Mapping[Node, str], tight: int) -> str:
    if n in names:
        return names[n]
    if n.op in _SILENT:
        return _text(n.args[0], names, tight)
    if n.op == "rename":
        inner = _text(n.args[0], names, 9)
        to = dict(n.attr("to"))
        marks = ", ".join(_dim(new) for new in to.values())
        return f"{inner}[{marks}]"
    if not n.args:
        return _leaf(n)
    if n.op == "contract":  # never without brackets beside a product entry by entry
        a, b = (_text(x, names, 3) for x in n.args)
        return f"({a} @ {b})" if tight > 1 else f"{a} @ {b}"
    if n.op in _INFIX:
        sign, level = _INFIX[n.op]
        a, b = _text(n.args[0], names, level), _text(n.args[1], names, level + 1)
        return f"({a}{sign}{b})" if level < tight else f"{a}{sign}{b}"
    if n.op == "neg":
        return f"-{_text(n.args[0], names, 3)}"
    if n.op == "guard":
        return _text(n.args[0] * n.args[1], names, tight)
    args = ", ".join(_text(a, names, 0) for a in n.args)
    over: list[str] = [_dim(d) for d in n.attr("over") or ()]
    return f"{n.op}[{', '.join(over)}]({args})" if over else f"{n.op}({args})"


def span_formula(n: Node, name: str) -> str | None:
    """What a product of decays runs over, in words that a reader can check."""
    inner = n.args[0] if n.op == "exp" else n
    if inner.op in ("segsum", "segprod"):
        last = "t-1" if inner.attr("reach") == "excl" else "t"
        return f"{name}[t, s]: the decay of rows s+1 to {last}, 0 where row t does not see row s"
    if inner.op in ("cumsum", "cumprod"):
        if inner.attr("reverse"):
            return f"{name}[t]: the decay of the rows after t" + ("" if inner.attr("exclusive") else ", and its own")
        return f"{name}[t]: the decay of the rows " + ("before t" if inner.attr("exclusive") else "up to t")
    return f"{name}: the decay of the whole chunk" if ROW in (inner.attr("over") or ()) else None


def _leaf(n: Node) -> str:
    if n.op == "number":
        value = n.attr("value")
        return f"{value:g}" if isinstance(value, float) else str(value)
    if n.op == "cot":
        return "d" + str(n.attr("name")).rstrip("'")
    return str(n.attr("name") or n.attr("dim") or n.op)


def _dim(d: str) -> str:
    return {ROW: "t", COL: "s", "_u": "u"}.get(d, d)
