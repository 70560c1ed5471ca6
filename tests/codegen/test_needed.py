"""An emitted file defines nothing that it does not read, and reads nothing that it does not define."""

from __future__ import annotations

import ast
import builtins

import pytest

import mixc
from mixc.codegen.lines import needed
from mixc.errors import SpecError
from mixc.runtime.load import shipped


def defined(tree: ast.Module) -> list[str]:
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return names + [t.id for n in tree.body if isinstance(n, ast.Assign) for t in ast.walk(n) if isinstance(t, ast.Name)
                    and isinstance(t.ctx, ast.Store)]


def bound(tree: ast.Module) -> set[str]:
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    names |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.name}
    names |= {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return names | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


SOME = {"simple_gla", "gla", "kda", "mamba1", "log_sum", "lstm", "memory_cell", "mlstm_stabilised", "short_conv",
        "rotary_linear_attention"}
NAMES = [pytest.param(n, marks=() if n in SOME else pytest.mark.slow) for n in sorted(shipped())]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_defines_is_read(name):
    try:
        text = mixc.load(name).emit(target="h100", dtype="bf16")
    except SpecError:
        pytest.skip("no kernels")
    tree = ast.parse(text)
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    tables = {"INS", "PARAMS", "STATES", "PAST", "ALIASES", "SIZES", "STEP", "INTERPRETED"}
    unread = {n for n in defined(tree) if n not in read | tables and not n.startswith(name)}
    assert not unread
    assert read - {"RuntimeError"} <= bound(tree) | set(dir(builtins))
    for kernel in (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith(name)):
        assigned = [t for n in ast.walk(kernel) if isinstance(n, ast.Assign) for t in n.targets]
        alone = {t.id for t in assigned if isinstance(t, ast.Name)}
        assert alone <= {n.id for n in ast.walk(kernel) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def test_what_is_needed():
    library = '''
import os
A = 1
# of b
@wrap
def b():
    return c


def c():
    return A


def d():
    return b()
'''
    whole = "\n\nimport os\n\n\nA = 1\n\n\n# of b\n@wrap\ndef b():\n    return c\n\n\ndef c():\n    return A\n"
    assert needed([library], "x = d") == f"{whole}\n\ndef d():\n    return b()\n"
    assert needed([library], "c()") == "\n\nimport os\n\n\nA = 1\n\n\ndef c():\n    return A\n"


def test_a_library_is_parsed_once(monkeypatch):
    """Whatever stands beside it."""
    parsed, parse = [], ast.parse
    monkeypatch.setattr(ast, "parse", lambda text: parsed.append(text) or parse(text))
    a, b, c = (f"\n\ndef {n}():\n    return {n * 2}  # in a file of this test's own\n" for n in "abc")
    assert needed([a, b], "a()") == a and needed([a, c], "c()") == c
    assert parsed == [a, b, c]
