"""Expressions of Python to those of the language; what has no meaning there is noted with what to write instead."""

from __future__ import annotations

import ast

from mixc.errors import Diagnostic, Span
from mixc.frontend import slips
from mixc.frontend.python_source import Definition
from mixc.frontend.syntax import Binary, Call, Compare, Expr, Index, Name, Number, Unary

BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@", ast.Mod: "%",
           ast.FloorDiv: "//", ast.Pow: "**"}
_COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_UNARY = {ast.USub: "-", ast.UAdd: "+", ast.Not: "not"}
_BITWISE = {ast.BitAnd: ("&", "write `and`"), ast.BitOr: ("|", "write `or`"),
            ast.BitXor: ("^", "a power is written `x ** n`"), ast.Invert: ("~", "write `not`"),
            ast.LShift: ("<<", "multiply by `2 ** n`"), ast.RShift: (">>", "divide by `2 ** n`")}
_LISTS = "values have named dims: give every part its own name"
_REFUSED: dict[type[ast.expr], tuple[str, str]] = {
    ast.Lambda: ("a lambda", "give the value a name, `y = ...`"),
    ast.JoinedStr: ("a string", "there are no strings in a body"),
    ast.NamedExpr: ("`:=`", "write the assignment on a line of its own, `y = ...`"),
    ast.Starred: ("`*`", "write every argument by itself"),
    ast.Await: ("`await`", slips.STATEMENTS["await"]), ast.Yield: ("`yield`", "what comes out is returned: `return y`"),
    ast.YieldFrom: ("`yield`", "what comes out is returned: `return y`"),
    **dict.fromkeys((ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
                    ("a comprehension", "write a loop over a dim, `for n in N:`")),
    **dict.fromkeys((ast.List, ast.Set, ast.Dict, ast.Tuple), ("a collection", _LISTS)),
}


class Expressions:
    """Makes expressions, and keeps what it had to refuse in `slips`."""

    def __init__(self, d: Definition, renamed: dict[str, str]):
        self.d, self.renamed, self.slips = d, renamed, list[Diagnostic]()

    def slip(self, diagnostic: Diagnostic) -> Number:
        self.slips.append(diagnostic)
        assert diagnostic.span is not None
        return Number(0.0, diagnostic.span)

    def refuse(self, code: str, message: str, node: ast.expr | ast.stmt | ast.arg, help_: str) -> Number:
        return self.slip(Diagnostic(code, message, self.d.span(node), help_))

    def name(self, node: ast.Name) -> Name:
        if not node.id.isascii():
            self.refuse("MX111", f"the language does not use `{node.id}`", node,
                        "names are ASCII: write `beta` for a Greek letter")
        return Name(self.renamed.get(node.id, node.id), self.d.span(node))

    def make(self, e: ast.expr) -> Expr:
        span = self.d.span(e)
        match e:
            case ast.Name():
                return self.name(e)
            case ast.Constant():
                return self._constant(e, span)
            case ast.UnaryOp() if type(e.op) in _UNARY:
                return Unary(_UNARY[type(e.op)], self.make(e.operand), span)
            case ast.BinOp() if type(e.op) in BINARY:
                return Binary(BINARY[type(e.op)], self.make(e.left), self.make(e.right), span)
            case ast.UnaryOp() | ast.BinOp():
                sign, help_ = _BITWISE[type(e.op)]
                return self.refuse("MX111", f"the language does not use `{sign}`", e, help_)
            case ast.BoolOp():
                return self._bool(e)
            case ast.Compare():
                return self._compare(e, span)
            case ast.Subscript():
                return self._subscript(e, span)
            case ast.Attribute():
                return self.slip(slips.attribute(self.d.text(e.value), e.attr, span))
            case ast.Call():
                return self._call(e, span)
            case ast.IfExp():
                parts = [self.d.text(x) for x in (e.test, e.body, e.orelse)]
                return self.refuse("MX103", "`if` is no expression of the language", e,
                                   f"write `where({', '.join(parts)})`")
        what, help_ = _REFUSED.get(type(e), (type(e).__name__, "write it with the functions of the language"))
        return self.refuse("MX117", f"{what} is nothing of the language", e, help_)

    def _constant(self, e: ast.Constant, span: Span) -> Expr:
        if isinstance(e.value, bool) or not isinstance(e.value, int | float | complex):
            help_ = {bool: "write 1 or 0, or compare", str: "there are no strings in a body"}
            return self.refuse("MX117", f"`{self.d.text(e)}` is no number", e,
                               help_.get(type(e.value), "write a number"))
        return Number(e.value if isinstance(e.value, complex) else float(e.value), span)

    def _bool(self, e: ast.BoolOp) -> Expr:
        op = "and" if isinstance(e.op, ast.And) else "or"
        made = self.make(e.values[0])
        for value in e.values[1:]:
            made = Binary(op, made, self.make(value), self.d.span(e.values[0], value))
        return made

    def _compare(self, e: ast.Compare, span: Span) -> Expr:
        bad = next((op for op in e.ops if type(op) not in _COMPARE), None)
        if bad is not None:
            word = {ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}[type(bad)]
            return self.refuse("MX117", f"`{word}` compares no numbers", e, "write `==`, `!=`, `<`, `<=`, `>` or `>=`")
        return Compare(tuple(_COMPARE[type(op)] for op in e.ops), tuple(map(self.make, (e.left, *e.comparators))), span)

    def _entries(self, e: ast.Subscript) -> tuple[Name, ...] | None:
        """The names in brackets; None if they are something else."""
        parts = e.slice.elts if isinstance(e.slice, ast.Tuple) else [e.slice]
        return tuple(self.name(p) for p in parts if isinstance(p, ast.Name)) \
            if all(isinstance(p, ast.Name) for p in parts) else None

    def _subscript(self, e: ast.Subscript, span: Span) -> Expr:
        entries = self._entries(e)
        if entries is None:
            return self.slip(slips.position(self.d.text(e), span))
        return Index(self.make(e.value), entries, span)

    def _call(self, e: ast.Call, span: Span) -> Expr:
        fn, dims = e.func, None
        if isinstance(fn, ast.Attribute):
            return self.slip(slips.attribute(self.d.text(fn.value), fn.attr, span, called=True))
        if isinstance(fn, ast.Subscript) and isinstance(fn.value, ast.Name):
            dims = self._entries(fn)
            if dims is None:
                return self.slip(slips.position(self.d.text(fn), self.d.span(fn)))
            fn = fn.value
        if not isinstance(fn, ast.Name):
            return self.refuse("MX101", f"`{self.d.text(fn)}` is no function", e, "products are written with `*`")
        for k in e.keywords:
            self.slip(slips.keyword(fn.id, k.arg or "**", self.d.span(k)))
        return Call(self.name(fn), dims, tuple(map(self.make, e.args)), span)
