"""Programs as text, and back: the same declarations, and the very same (interned) nodes.

    step example
    dims K, V
    in k[K] where norm[K] [none, 1.0]
    state S[K, V]
    out o[V]
    %1 = state.S[K, V] + (in.k[K] * in.v[V])               : [K, V]
    out o = contract[V](in.q[K], %1)                       : [V]
    next S = %1                                            : [K, V]

A value that is used twice, or is long, has a line of its own.  `op{n=2}(args)` gives the
attributes of an op as Python literals; `sum[K](x)`, `contract[V](a, b)` and their like are
short forms.  Arithmetic is infix, with brackets around every inner operation.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from mixc.errors import Diagnostic
from mixc.ir.node import Node, make, number, postorder
from mixc.ir.program import Decl, Dim, Group, Program, Range, Result

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_OPS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_LISTED = dict.fromkeys(("sum", "prod", "max", "min", "norm", "softmax"), "over") | {
    "contract": "out", "expand": "dims", "index": "dims"}  # the attribute that stands in [ ]
_TENSOR, _LOOSE = frozenset(("name", "dims", "kind")), frozenset(("name", "dims"))
_NAMED = {"in": _TENSOR, "param": _TENSOR, "state": _TENSOR, "cot": _LOOSE, "saved": _LOOSE,
          "const": frozenset(("name",))}  # leaves that are written `in.q[K]`
_LONG = 72


# ---------------------------------------------------------------- print
def print_program(p: Program) -> str:
    """The text of a program of any level; `read_program` gives it back, without spans and source."""
    return "\n".join(_Printer(p).lines()) + "\n"


class _Printer:
    def __init__(self, p: Program):
        self.p, self.count = p, 0
        self.uses: dict[Node, int] = {}
        self.text: dict[Node, str] = {}
        for root in self._roots():
            self.uses[root] = self.uses.get(root, 0) + 1
        for n in postorder(self._roots()):
            for a in n.args:
                self.uses[a] = self.uses.get(a, 0) + 1

    def _roots(self) -> list[Node]:
        bounds = [b for d in self.p.decls for r in d.ranges for b in (r.low, r.high)]
        found = [*bounds, *(d.init for d in self.p.decls), *(r.value for r in self.p.results)]
        return [n for n in found if n is not None]

    def lines(self) -> Iterator[str]:
        p = self.p
        yield f"{p.level} {p.name}{' reverse' if p.reverse else ''}"
        if p.doc:
            yield f"doc {json.dumps(p.doc, ensure_ascii=False)}"
        if p.dims:
            yield "dims " + ", ".join(d.name + (f" = {d.alias or d.size}" if d.alias or d.size else "") for d in p.dims)
        for d in p.decls:
            yield from self.defined(n for r in d.ranges for n in (r.low, r.high))
            yield from self.defined([d.init])
            yield self.decl(d)
        for g in p.groups:
            yield f"group {g.form} {', '.join(g.states)} : {json.dumps(g.why, ensure_ascii=False)}"
        for note in p.notes:
            yield f"note {json.dumps([note.code, note.message, note.help, note.level], ensure_ascii=False)}"
        for r in p.results:
            yield from self.defined([r.value])
            yield self.typed(f"{r.role} {r.name} = {_bare(self.text[r.value])}", r.value)

    def defined(self, roots: Any) -> Iterator[str]:
        """Lines for what `roots` need and has none yet."""
        for n in postorder([r for r in roots if r is not None]):
            if n in self.text:
                continue
            text = _node(n, [self.text[a] for a in n.args])
            if n.args and (self.uses[n] > 1 or len(text) > _LONG):
                self.count += 1
                name = f"%{self.count}"
                yield self.typed(f"{name} = {_bare(text)}", n)
                text = name
            self.text[n] = text

    def typed(self, text: str, n: Node) -> str:
        kind = "" if n.kind == "real" else f" {n.kind}"
        return f"{text:<60} : [{', '.join(n.dims)}]{kind}"

    def decl(self, d: Decl) -> str:
        text = f"{d.role} {d.name}" + (f"[{', '.join(d.dims)}]" if d.dims else "")
        text += f" {d.kind}" if d.kind != "real" else ""
        text += f" ago {d.ago[0]} {d.ago[1]}" if d.ago else ""
        text += " table" if d.table else ""
        text += f" = {_bare(self.text[d.init])}" if d.init is not None else ""
        return text + (" where " + "; ".join(map(self.range, d.ranges)) if d.ranges else "")

    def range(self, r: Range) -> str:
        low, high = ("none" if b is None else self.text[b] for b in (r.low, r.high))
        over = f"[{', '.join(r.over)}]" if r.over else ""
        return f"{r.of}{over} {'(' if r.low_open else '['}{low}, {high}{')' if r.high_open else ']'}"


def _bare(text: str) -> str:
    """An expression without the brackets around the whole of it."""
    if not text.startswith("("):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 else text
    return text


def _node(n: Node, args: list[str]) -> str:
    attrs = dict(n.attrs)
    if n.op in _INFIX:
        return f"({args[0]} {_INFIX[n.op]} {args[1]})"
    if n.op == "number" and isinstance(attrs["value"], float) and math.isfinite(attrs["value"]):
        return repr(attrs["value"])
    if set(attrs) == _NAMED.get(n.op) and re.fullmatch(r"[\w'@]+", attrs["name"]):
        dims = f"[{', '.join(n.dims)}]" if n.dims else ""
        return f"{n.op}.{attrs['name']}{dims}{'' if n.kind == 'real' else ':' + n.kind}"
    if n.op == "size":
        return f"size[{attrs['dim']}]"
    if n.op in _LISTED and list(attrs) == [_LISTED[n.op]]:
        head = f"{n.op}[{', '.join(attrs[_LISTED[n.op]])}]"
    elif n.op == "rename":
        head = f"rename[{', '.join(a + ' = ' + b for a, b in attrs['to'])}]"
    else:
        head = n.op + ("{" + ", ".join(f"{k}={_literal(v)}" for k, v in attrs.items()) + "}" if attrs else "")
    return f"{head}({', '.join(map(_bare, args))})" if args else head


def _literal(v: Any) -> str:
    """A Python literal; a list stands for a complex number, 1e999 for infinity."""
    if isinstance(v, complex):
        return f"[{_literal(v.real)}, {_literal(v.imag)}]"
    if isinstance(v, float) and not math.isfinite(v):
        return "['nan']" if math.isnan(v) else "1e999" if v > 0 else "-1e999"
    if isinstance(v, tuple):
        return f"({', '.join(map(_literal, v))}{',' if len(v) == 1 else ''})"
    return repr(v)


# ---------------------------------------------------------------- read
def read_program(text: str) -> Program:
    """The program that a text says.

    Raises:
        ValueError: naming the line that cannot be read, or whose dims are not what it says."""
    values: dict[str, Node] = {}
    parts: dict[str, list[Any]] = {"dims": [], "decls": [], "groups": [], "notes": [], "results": []}
    level, name, reverse, doc = "", "", False, ""
    for at, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            word, _, rest = line.partition(" ")
            if not level:
                level, (name, *flags) = word, rest.split()
                reverse = flags == ["reverse"]
            elif word == "doc":
                doc = json.loads(rest)
            elif word == "dims":
                parts["dims"] = [_read_dim(d) for d in rest.split(", ")]
            elif word == "group":
                head, _, why = rest.partition(" : ")
                form, _, states = head.partition(" ")
                parts["groups"].append(Group(tuple(states.split(", ")), form, json.loads(why)))
            elif word == "note":
                code, message, help_, severity = json.loads(rest)
                parts["notes"].append(Diagnostic(code, message, None, help_, severity))
            elif word.startswith("%"):
                values[word] = _read_value(rest.partition("= ")[2], values)
            elif typed := re.fullmatch(r"([\w'.@]+) = (.* : \[[\w, ]*\](?: \w+)?)", rest):
                parts["results"].append(Result(word, typed[1], _read_value(typed[2], values)))
            else:
                parts["decls"].append(_read_decl(word, rest, values))
        except (ValueError, KeyError, TypeError, SyntaxError, IndexError) as e:
            raise ValueError(f"line {at}: {line.strip()!r}: {e}") from e
    return Program(level, name, tuple(parts["dims"]), tuple(parts["decls"]), tuple(parts["results"]),
                   tuple(parts["groups"]), reverse, doc, tuple(parts["notes"]))


def _read_dim(text: str) -> Dim:
    name, _, value = text.partition(" = ")
    return Dim(name, size=int(value)) if value.isdigit() else Dim(name, alias=value or None)


def _read_value(text: str, values: dict[str, Node]) -> Node:
    body, _, kind = text.rpartition(" : ")
    node = _read(_parsed(body), values)
    said = kind.partition("]")[0].strip("[").split(", ") if kind[1] != "]" else []
    if list(node.dims) != said:
        raise ValueError(f"its dims are {list(node.dims)}")
    return node


def _read_decl(role: str, text: str, values: dict[str, Node]) -> Decl:
    text, _, ranges = text.partition(" where ")
    head, _, init = text.partition(" = ")
    found = re.fullmatch(r"([\w'@]+)(?:\[([\w, ]+)\])?(?: (?!ago |table\b)(\w+))?(?: ago (\w+) (\d+))?( table)?", head)
    if not found:
        raise ValueError("no declaration")
    return Decl(role, found[1], _listed(found[2]), found[3] or "real",
                tuple(_read_range(r, values) for r in ranges.split("; ")) if ranges else (),
                _read(_parsed(init), values) if init else None,
                ago=(found[4], int(found[5])) if found[4] else None, table=bool(found[6]))


def _read_range(text: str, values: dict[str, Node]) -> Range:
    found = re.fullmatch(r"(\w+)(?:\[([\w, ]+)\])? ([\[(])(.*)([\])])", text)
    if not found:
        raise ValueError("no range")
    bounds = _parsed(found[4])
    low, high = (None if isinstance(b, ast.Name) and b.id == "none" else _read(b, values)
                 for b in (bounds.elts if isinstance(bounds, ast.Tuple) else ()))
    return Range(found[1], _listed(found[2]), low, high, found[3] == "(", found[5] == ")")


_PIECE = re.compile(rf"""\b({'|'.join(_NAMED)})\.([\w'@]+)(?:\[([^\]]*)\])?(?::(\w+))?  # in.q[K]:complex
    |('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?<=\w)\[([^\]]*)\] |%(\d+) |\b(and|or|not)(?=\() |([{{}}])""", re.VERBOSE)


def _parsed(text: str) -> ast.expr:
    """An expression as Python's: `in.q[K]` is leaf('in', 'q', 'K', 'real'), `sum[K](x)` and `pow{n=2}(x)` have what
    stands in their brackets as an index, `%1` is the name _1."""
    def piece(m: re.Match[str]) -> str:
        leaf, name, dims, kind, string, inside, value, word, brace = m.groups()
        if leaf:
            return f"leaf{(leaf, name, dims or '', kind or 'real')!r}"
        if inside is not None:
            return f"[{inside!r}]"
        return string or (f"_{value}" if value else f"{word}_" if word else "[dict(" if brace == "{" else ")]")
    return ast.parse(_PIECE.sub(piece, text).strip(), mode="eval").body


def _read(e: ast.expr, values: dict[str, Node]) -> Node:
    match e:
        case ast.BinOp():
            return make(_OPS[type(e.op)], _read(e.left, values), _read(e.right, values))
        case ast.Constant() | ast.UnaryOp():
            return number(float(ast.literal_eval(e)))
        case ast.Name() if e.id[0] == "_":
            return values["%" + e.id[1:]]
        case ast.Call(func=ast.Name(id="leaf")):
            op, name, dims, kind = (ast.literal_eval(a) for a in e.args)
            attrs = {"name": name, "dims": _listed(dims), "kind": kind}
            return make(op, **{k: v for k, v in attrs.items() if k in _NAMED[op]})
    op, attrs = _head(e.func if isinstance(e, ast.Call) else e)
    return make(op, *(_read(a, values) for a in (e.args if isinstance(e, ast.Call) else ())), **attrs)


def _head(e: ast.expr) -> tuple[str, dict[str, Any]]:
    """An op and its attributes."""
    if isinstance(e, ast.Name):
        return e.id.rstrip("_"), {}
    if not isinstance(e, ast.Subscript) or not isinstance(e.value, ast.Name):
        raise ValueError(f"`{ast.unparse(e)}` is no operation")
    op, inside = e.value.id, e.slice
    if isinstance(inside, ast.Call):
        return op, {k.arg or "": _value(ast.literal_eval(k.value)) for k in inside.keywords}
    names = _listed(ast.literal_eval(inside))
    if op == "rename":
        return op, {"to": tuple(tuple(n.split(" = ")) for n in names)}
    return op, {"dim": names[0]} if op == "size" else {_LISTED[op]: names}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", ")) if text else ()


def _value(v: Any) -> Any:
    if isinstance(v, list):
        return complex(*map(_value, v)) if len(v) == 2 else math.nan
    return tuple(map(_value, v)) if isinstance(v, tuple) else v
