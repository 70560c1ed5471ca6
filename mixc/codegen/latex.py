"""The same mathematics as LaTeX source, for a paper: written from the MathML, so that there is one way to set a formula."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

_SIGNS = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "η": r"\eta", "θ": r"\theta", "λ": r"\lambda",
    "μ": r"\mu", "ν": r"\nu", "φ": r"\phi", "σ": r"\sigma", "τ": r"\tau", "ω": r"\omega", "⊤": r"\top", "∞": r"\infty",
    "𝟙": r"\mathbb{1}", "≤": r"\leq", "≥": r"\geq", "<": "<", ">": ">", "≠": r"\neq", "∧": r"\wedge", "∨": r"\vee",
    "⌊": r"\lfloor", "⌋": r"\rfloor", "∑": r"\sum", "∏": r"\prod", "−": "-", "‖": r"\Vert", "′": "'", "max": r"\max", "min": r"\min"}
_TIGHT = ((" ,", ","), (" '", "'"), ("{- ", "{-"))
_SPACES = {"0.15em": r"\,", "1em": r"\quad"}


def latex(mathml: str) -> str:
    """One formula, without the dollars; `cases`, `pmatrix` and `aligned` are amsmath's."""
    text = _of(ElementTree.fromstring(mathml)).strip()
    for loose, tight in _TIGHT:
        text = text.replace(loose, tight)
    return text


def aligned(formulas: Iterable[str]) -> str:
    """MathML formulas as one `align*`, at their first equals signs."""
    lines = (" &= ".join(latex(f).split(" = ", 1)) for f in formulas)
    return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}"


def _of(e: ElementTree.Element) -> str:
    tag = e.tag.rpartition("}")[2]
    parts, text = list(e), (e.text or "")
    if tag in ("mi", "mn", "mo"):
        return _leaf(tag, text.strip())
    if tag == "mtext":
        return rf"\text{{{_escaped(text)}}}".replace("\u00a0", " ")
    if tag == "mspace":
        return _SPACES[e.attrib["width"]]
    if tag == "mtable":
        return _table(e, "aligned")
    if tag == "munder":
        return f"{_of(parts[0])}_{{{_of(parts[1])}}}"
    if tag == "mover":
        return rf"\hat{{{_of(parts[0])}}}"
    if e.attrib.get("class") == "bar":
        return rf"\overline{{{_row(parts)}}}"
    if tag == "mfrac":
        return rf"\frac{{{_of(parts[0])}}}{{{_of(parts[1])}}}"
    if tag == "msqrt":
        return rf"\sqrt{{{_row(parts)}}}"
    if tag in ("msub", "msup", "msubsup"):
        base, *more = map(_of, parts)
        marks = {"msub": "_", "msup": "^", "msubsup": "_^"}[tag]
        base = base if len(base) == 1 or (base.lstrip("\\").isalpha() and base[0] == "\\") else f"{{{base}}}"
        return base + "".join(f"{mark}{{{x}}}" for mark, x in zip(marks, more, strict=True))
    return _row(parts)


def _leaf(tag: str, text: str) -> str:
    if text in _SIGNS:
        return _SIGNS[text]
    if tag == "mi" and text[1:] in ("−1", "+1"):  # a row beside another
        return text.replace("−", "-")
    if tag == "mi" and len(text) > 1:
        stem = text.rstrip("′")
        return rf"\mathrm{{{_escaped(stem)}}}" + "'" * (len(text) - len(stem))
    return _escaped(text).replace("−", "-")


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("#", r"\#").replace("&", r"\&")


def _row(parts: list[ElementTree.Element]) -> str:
    """Side by side; a pair of brackets grows with what it holds."""
    if parts and (parts[0].text or "") == "{":
        return _table(parts[1], "cases")
    if len(parts) > 1 and (parts[0].text, parts[-1].text) == ("(", ")"):
        inner = parts[1:-1]
        if len(inner) == 1 and inner[0].tag.endswith("mtable"):
            return _table(inner[0], "pmatrix")
        text = _row(inner)
        return f"({text})" if text.isalnum() else rf"\left({text}\right)"
    return " ".join(x for x in map(_of, parts) if x)


def _table(e: ElementTree.Element, kind: str) -> str:
    lines = (" & ".join(_row(list(cell)) for cell in row) for row in e)
    lead = "&" if kind == "aligned" else ""
    return rf"\begin{{{kind}}}" + r" \\ ".join(lead + line for line in lines) + rf"\end{{{kind}}}"
