"""The functions of a module's text, each parsed once: modules share most of theirs."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

_FUNCTION = re.compile(r"^def (\w+)\(.*\n(?:[ \t)].*(?:\n|\Z)|\n)*", re.MULTILINE)  # to the next line at the margin


@lru_cache(maxsize=16)
def functions(text: str) -> dict[str, str]:
    """The text of each function of a module."""
    return {found[1]: found[0] for found in _FUNCTION.finditer(text)}


@lru_cache(maxsize=512)
def parsed(function: str) -> ast.FunctionDef:
    fn, = ast.parse(function).body
    assert isinstance(fn, ast.FunctionDef)
    return fn
