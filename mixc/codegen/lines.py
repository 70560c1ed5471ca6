"""Lines of emitted text: pieces that are there or not, and indentation."""

from __future__ import annotations

import ast
import cmath
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
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
    size = " * ".join(sizes(dims))
    return f" * {group(size)}" if dims else ""


def masks_below(line: str) -> str:
    """A long line of a load or store: its mask on a line of its own."""
    call, mask = re.search(r"tl\.(?:load|store)\(", line), line.rfind(", mask=")
    if len(line) <= WIDTH or call is None or mask < 0:
        return line
    return f"{line[:mask]},\n{' ' * call.end()}{line[mask + 2:]}"


_NAME, _REMARK = re.compile(r"(?<![\w.])[^\W\d]\w*"), re.compile(r'""".*?"""|#[^\n]*', re.DOTALL)
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


def at_once(names: list[str], form: str) -> str:
    """An assignment of several names, of a form each."""
    return f"{', '.join(names)} = {', '.join(map(form.format, names))}"


def broadcast(text: str, axes: tuple[str, ...], want: tuple[str, ...], lead: int = 0) -> str:
    """Code that broadcasts a tensor of `lead` axes and these against one of the axes `want`, which include them."""
    order = tuple(d for d in want if d in axes)
    assert len(order) == len(axes), (text, axes, want)
    if order != axes:
        places = [*range(lead), *(lead + axes.index(d) for d in order)]
        swaps_last = lead and order[:-2] == axes[:-2] and order[-1] == axes[-2]
        text += ".mT" if swaps_last else f".permute({', '.join(map(str, places))})"
    if len(order) == len(want) or not lead + len(axes):
        return text
    picks = ":, " * lead + ", ".join(":" if d in order else "None" for d in want)
    return f"{text}[{re.sub('(, :)+$', '', picks)}]"


def indent(lines: Iterable[str], depth: int = 1) -> list[str]:
    return ["    " * depth + x for line in lines for x in line.split("\n")]


def defined(text: str, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a text of our own defines, whose names were checked; `given`: what it reads."""
    scope = dict(given or {})
    exec(compile(text, f"<{name}>", "exec"), scope)
    return scope


# ---------------------------------------------------------------- what a text reads
def needed(libraries: Iterable[str], text: str) -> str:
    """The definitions of `libraries` that `text` reads, by way of each other too, and what is done there at once."""
    parts, wanted, found = [p for x in libraries for p in _parts(x)], names_read(text), set[int]()
    while more := {i for i, (defined, _, _) in enumerate(parts) if i not in found and (not defined or defined & wanted)}:
        found |= more
        wanted = wanted.union(*(parts[i][1] for i in more))
    return "".join(f"\n\n{parts[i][2]}\n" for i in sorted(found))


@lru_cache(64)
def _parts(library: str) -> list[tuple[set[str], set[str], str]]:
    """(names defined, names read, text with the comment above) of every statement at the top."""
    lines, found, end = library.splitlines(), list[tuple[set[str], set[str], str]](), 0
    for node in ast.parse(library).body:
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        first = next((i + 1 for i in range(start - 1, end - 1, -1) if not lines[i].startswith("#")), end)
        end = node.end_lineno or start
        targets = node.targets if isinstance(node, ast.Assign) else []
        defined = {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else {
            t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)}
        found.append((defined, _names(node), "\n".join(lines[first:end])))
    return found


def names_read(text: str) -> set[str]:
    """The names in a text, but for comments and docstrings: found without a parser, as the tuner asks for many texts."""
    return set(_NAME.findall(_REMARK.sub("", text)))


def _names(tree: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
