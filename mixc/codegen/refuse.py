"""What has no kernel, as an error that says what does run it."""

from __future__ import annotations

from collections.abc import Iterable

from mixc.errors import Diagnostic, SpecError
from mixc.ir.launch import ROWS
from mixc.ir.node import Node, flat


def refuse(what: str, node: Node | None = None) -> SpecError:
    return SpecError(Diagnostic("MX310", f"no kernel: {what}", node.span if node else None,
                                "backend=\"torch\" runs every spec"))


def entries(dims: Iterable[str]) -> str:
    """What a tile of these dims would hold, in words."""
    dims = flat(dims)
    rest = ", ".join(d for d in dims if d not in ROWS)
    many = sum(d in ROWS for d in dims) > 1
    return f"pairs of rows for every entry of {rest}" if many else f"every entry of {rest} at every row"
