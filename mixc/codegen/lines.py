"""Lines of emitted text: pieces that are there or not, and indentation."""

from __future__ import annotations

import cmath
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mixc.ir.node import COL, flat

WIDTH = 120


def literal(value: float | complex) -> str:
    """A number in emitted text."""
    return repr(value) if cmath.isfinite(value) else f"{type(value).__name__}('{value}')"


def plus(code: str) -> str:
    return f" + {code}" if code else ""


def group(code: str) -> str:
    return f"({code})" if " " in code else code


def times(dims: tuple[str, ...]) -> str:
    return f" * ({' * '.join(sizes(dims))})" if dims else ""


def masks_below(line: str) -> str:
    """A long line of a load or store: its mask on a line of its own."""
    call, mask = re.search(r"tl\.(?:load|store)\(", line), line.rfind(", mask=")
    if len(line) <= WIDTH or call is None or mask < 0:
        return line
    return f"{line[:mask]},\n{' ' * call.end()}{line[mask + 2:]}"


_WORD = re.compile(r"[^\W\d]\w*")
_BOUND = re.compile(r"\s+([^\W\d]\w*) = ")


def without_unread(lines: list[str]) -> list[str]:
    """Lines of a function without those that bind a name that none of the others has: what several statements read in
    their own words may have been named for one that then did not."""
    count = Counter(word for line in lines for word in _WORD.findall(line))
    kept = list(lines)
    for i in reversed(range(1, len(lines))):
        bound = _BOUND.match(lines[i])
        if bound and count[bound[1]] == 1 and not lines[i - 1].endswith(":"):
            count.subtract(_WORD.findall(lines[i]))
            del kept[i]
    return kept


def wrapped(names: list[str]) -> str:
    lines, line = [], "   "
    for name in names:
        if len(line) + len(name) > 110:
            lines.append(line)
            line = "   "
        line += f" {name},"
    return "".join(f"{x}\n" for x in [*lines, line]) if names else ""


def packed(items: list[str], width: int) -> list[str]:
    """Items after each other, separated by commas, in lines of at most so many characters."""
    out, line = list[str](), ""
    for item in items:
        if line and len(line) + len(item) + 2 > width:
            out.append(line.rstrip())
            line = ""
        line += item + ", "
    return [*out, line.rstrip()] if line else out


def camel(name: str) -> str:
    return "".join(w.capitalize() for w in name.split("_")) + ("_" if keyword.iskeyword(name) else "")


def join(names: list[str]) -> str:
    return "".join(f"{n}, " for n in names)


def tuple_text(names: list[str]) -> str:
    return f"({', '.join(names)}{',' * bool(names)})"


def shape(lead: str, dims: tuple[str, ...], chunk: str = "C") -> str:
    return ", ".join([lead, *sizes(dims, chunk)])


def sizes(dims: tuple[str, ...], chunk: str = "C") -> list[str]:
    """What the sizes of a tensor's dims are called: a row of a matrix of pairs of rows has one for each of its `chunk`."""
    return [chunk if d == COL else d for d in flat(dims)]


def indent(lines: Iterable[str], depth: int = 1) -> list[str]:
    return ["    " * depth + x for line in lines for x in line.split("\n")]


def defined(text: str, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a text of our own defines, whose names were checked; `given`: what it reads."""
    scope = dict(given or {})
    exec(compile(text, f"<{name}>", "exec"), scope)
    return scope
