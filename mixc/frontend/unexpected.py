"""What the parser could not take, and why: brackets without partners, lines that end too early, characters."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lark import Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput

from mixc.errors import Diagnostic, Source, Span
from mixc.frontend import slips

_CLOSES = {")": "(", "]": "[", "}": "{"}


def token_span(source: Source, token: Token) -> Span:
    end = token.end_column if token.end_line == token.line else None
    return Span(source, token.line or 1, token.column or 1, end or (token.column or 1) + 1)


class Brackets(Exception):
    """A bracket without its partner."""

    def __init__(self, token: Token, message: str):
        self.token, self.message = token, message

    def diagnostic(self, source: Source) -> Diagnostic:
        closing = self.token in _CLOSES
        return Diagnostic("MX102", self.message, token_span(source, self.token),
                          "remove it, or open it before" if closing else
                          f"close it with `{({v: k for k, v in _CLOSES.items()})[str(self.token)]}`")


class Lines:
    """Between lexer and parser: a line's end inside ( ) and [ ] is no end; brackets must match."""

    always_accept = ("_NL",)

    def __init__(self) -> None:
        self.open: list[Token] = []
        self.ends = True  # do lines end?  In the text of one expression they do not

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        self.open = []
        for token in stream:
            if token.type == "_NL":
                if not self.ends or (self.open and self.open[-1] != "{"):
                    continue
            elif token in _CLOSES:
                self._close(token)
            elif token in ("(", "[", "{"):
                if token == "{" and self.open and self.open[-1] != "{":
                    raise Brackets(self.open[-1], f"this `{self.open[-1]}` is never closed")
                self.open.append(token)
            yield token

    def _close(self, token: Token) -> None:
        if not self.open:
            raise Brackets(token, f"this `{token}` closes nothing")
        if self.open[-1] != _CLOSES[token]:
            if token == "}":
                raise Brackets(self.open[-1], f"this `{self.open[-1]}` is never closed")
            raise Brackets(token, f"this `{token}` closes nothing: `{self.open[-1]}` is open")
        self.open.pop()


_CHARACTERS = {
    ";": "every statement has its own line", "&": "write `and`", "|": "write `or`", "!": "write `not`",
    "~": "write `not`", "^": "a power is written `x ** n`", "\\": "inside brackets a statement may span lines",
    '"': "there are no strings", "'": "there are no strings", "?": "write `where(cond, a, b)`",
}


def explain(e: UnexpectedInput, source: Source, still_open: list[Token]) -> Diagnostic:
    """One diagnostic for what the parser could not take."""
    if isinstance(e, UnexpectedCharacters):
        return _character(source, e.line, e.column)
    token: Token = getattr(e, "token", None) or Token("$END", "")
    if token.type == "$END":
        if still_open:
            return Brackets(still_open[-1], f"this `{still_open[-1]}` is never closed").diagnostic(source)
        end = len(source.lines)
        return Diagnostic("MX101", "the text ends too early", Span(source, end, 1, len(source.line(end)) + 1))
    span = token_span(source, token)
    opened = [t for t in still_open if t is not token]
    if opened and opened[-1] != "{" and (opened[-1].line or 0) < span.line:
        return Brackets(opened[-1], f"this `{opened[-1]}` is never closed").diagnostic(source)
    line = source.line(span.line)
    first = line.split()[0] if line.split() else ""
    word = first.split("(")[0].rstrip(":")
    if str(token) in slips.STATEMENTS and (opened or token not in ("def", "class")):
        return slips.statement(str(token), span)
    before = re.search(r"(\w+)\s+$", line[:span.column - 1])
    if before and before[1] in slips.STATEMENTS and before[1] not in ("for", word):  # `f = lambda x`
        return slips.statement(before[1], Span(source, span.line, before.start() + 1, before.end(1) + 1))
    if word in slips.STATEMENTS and word != "for" and opened:
        start = line.index(word) + 1
        return slips.statement(word, Span(source, span.line, start, start + len(word)))
    return _token(token, span, word, opened, source)


def _character(source: Source, line: int, column: int) -> Diagnostic:
    span = Span(source, line, column, column + 1)
    char = source.line(line)[column - 1:column] or "?"
    help_ = _CHARACTERS.get(char, None if char.isascii() else "names are ASCII: write `beta` for a Greek letter" if
                            char.isalpha() else "operators are ASCII: `*`, `@`, `/`, `-`, `<=`")
    called = re.search(r"(\w+)\s*\($", source.line(line)[:column - 1])  # einsum("k,v->kv", k, v)
    if char in "'\"" and called:
        help_ = slips.instead(called[1]) or help_
    if char.isdigit() or char == ".":
        return Diagnostic("MX111", "this number cannot be read", span, "numbers are written 1, 0.5, 1e-3 or 1j")
    if not char.isprintable():
        return Diagnostic("MX111", f"the language does not use U+{ord(char):04X}", span,
                          "nothing is seen of it: type a space, or the end of a line")
    return Diagnostic("MX111", f"the language does not use `{char}`", span, help_)


def _token(token: Token, span: Span, word: str, opened: list[Token], source: Source) -> Diagnostic:
    shown = "the end of the line" if token.type == "_NL" else f"`{token}`"
    if token.type == "_NL":
        end = len(source.line(span.line).split("#")[0].rstrip()) + 1
        span = Span(source, span.line, end, end + 1)
    if not opened:
        help_ = ("a mixer without dims has empty parentheses: `mixer NAME() {`" if word == "mixer" and token == "{" else
                 "its text is wanted here: a shipped spec or a file is found by `mixc.load`" if "\n" not in source.text
                 and "{" not in source.text else "a file holds mixers: `mixer NAME(K, V) { ... }`")
    elif word == "state" and "complex" in source.line(span.line):
        help_ = "a state is complex when what it is assigned is: only inputs and params are declared so"
    elif token == "in" and word in ("in", "param"):
        help_ = "a range is written `g where g <= 0`; `in` starts a line of its own"
    elif token.type == "COLON":
        line = source.line(span.line)
        help_ = ("an assignment is written `x = ...`" if line[span.column:].startswith("=") else
                 f"values have no types: {_FORMS[word]}" if word in _DECLARE.values() else
                 "values have no types: write `x = ...`" if re.match(r"\s*\w+\s*$", line[:span.column - 1]) else
                 "blocks stand in braces: `for n in N { ... }`")
    elif token == "=" and re.search(r"\[[^\]]*$", source.line(span.line)[:span.column - 1]):
        help_ = "the size of a dim is said once, in the header: `mixer NAME(D, E = D, N = 4) {`"
    elif token == "=":
        help_ = "one line assigns one name; equality is `==`"
    elif token.type == "_NL":
        help_ = "a statement ends with its line, except inside brackets: put the expression in ( )"
    elif token.type in ("IN", "PARAM", "CONST", "STATE", "FOR", "OUT", "MIXER"):
        help_ = f"`{token}` starts a line of its own"
    elif word in _DECLARE:
        help_ = _FORMS[_DECLARE[word]]
    elif token.type in ("NAME", "NUMBER", "LPAR") and word not in ("in", "param", "const", "state", "out", "for"):
        help_ = "an operator is missing before it; a product is written `a * b`"
    else:
        help_ = _FORMS.get(word, "a line is a declaration, `x = ...`, `out o[V] = ...` or `for n in N { ... }`")
    return Diagnostic("MX101", f"{shown} does not belong here", span, help_)


_DECLARE = {**dict.fromkeys(("in", "input", "inputs", "ins"), "in"), "out": "out", "outputs": "out", "output": "out",
            **dict.fromkeys(("param", "params", "parameter", "parameters", "weight"), "param"), "state": "state",
            "states": "state", **dict.fromkeys(("const", "consts", "constant", "let", "var"), "const")}
_FORMS = {
    "in": "inputs are declared `in q[K], g where g <= 0`", "param": "params are declared `param A[D, N]`",
    "const": "consts are declared `const scale = K ** -0.5`", "state": "states are declared `state S[K, V] = 0`",
    "out": "outs are written `out o[V] = q @ S`",
    "for": "loops are written `for n in N { ... }`, over a dim that the header names: `N`, or `N = 3`",
    "mixer": "a mixer starts with `mixer NAME(K, V = K, N = 4) {`",
}
