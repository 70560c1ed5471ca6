"""Triangular systems of a matrix for every entry along a dim, which differ by decays and by factors of rows, as Triton.

    u = span_solve(A, b, y, g, rows, "strict", ...)        u[t] + b[t] * sum over s of A[t, s] exp(g[s+1] + ... + g[t]) u[s] = y[t]

No matrix of an entry is formed.  From row to row, as tokens go: `gave` holds what each row behind the own one gave, decayed
on the way to it, and A says how much of it the own one finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixc.codegen.refuse import refuse
from mixc.codegen.triton_rows import logs_code
from mixc.ir.launch import feature_dims
from mixc.ir.node import Node, flat

if TYPE_CHECKING:
    from mixc.codegen.tiles import Tiles


def span_solve_code(tiles: Tiles, node: Node) -> str:
    A, b, y, g = node.args
    own, axes, pairs = feature_dims(g), tiles.order(y), tiles.order(A)
    if len(own) != 1 or len(axes) != 2 or len(pairs) != 2 or axes[1] != own[0] or pairs[0] != axes[0]:
        raise refuse(f"a triangular system for every entry of {', '.join(feature_dims(y))}", node)
    given = [tiles.whole(A, pairs), tiles.whole(b, axes), tiles.cleaned(y, axes, flat(axes)), logs_code(tiles, g, own[0])]
    return f"span_solve({', '.join(given)}, rows, {node.attr('reach')!r}, {bool(node.attr('transposed'))}, PRECISION)"
