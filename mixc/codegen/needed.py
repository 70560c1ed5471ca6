"""What an emitted file needs of the functions that kernels and calls may share: no reader should ask what the rest is for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import lru_cache

_NAME, _WORDS = re.compile(r"(?<![\w.])[^\W\d]\w*"), re.compile(r'""".*?"""|#[^\n]*', re.DOTALL)


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
    return set(_NAME.findall(_WORDS.sub("", text)))


def _names(tree: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
