"""What a forward keeps so that its backward need not form it again."""

from __future__ import annotations

from mixc.ir.node import Node
from mixc.ir.program import Program


def worth_keeping(forward: Program, backward: Program) -> tuple[Node, ...]:
    return ()
