"""What has no kernel, as an error that says what does run it."""

from __future__ import annotations

from mixc.errors import Diagnostic, SpecError
from mixc.ir.node import Node


def refuse(what: str, node: Node | None = None) -> SpecError:
    return SpecError(Diagnostic("MX310", f"no kernel: {what}", node.span if node else None,
                                "backend=\"torch\" runs every spec"))
