"""Initial states that a spec declares, as host text of an emitted module.

before: state h[D] = p * index[D]
after:  _x1 = heads_of(p.float(), H)[None]
        ...
        initial['h'] = _x4.expand(seqs.count, H, D)
"""

from __future__ import annotations

from collections.abc import Mapping

from mixc.codegen.host_values import HostValues
from mixc.codegen.kernel import safe
from mixc.ir.node import Node, flat
from mixc.ir.program import Decl


def start_lines(states: Mapping[str, Decl]) -> list[str]:
    """Lines that put every declared state which is not given, and does not start at 0, into `initial`.

    `states`: by their keys in `initial`.  The lines read B, T, H, sizes of dims, params, consts, `device` and `seqs`."""
    lines = []
    for key, s in states.items():
        if s.init is not None:
            dims = flat(s.dims)
            shape = ", ".join(["seqs.count", "H", *dims])
            values = _Start([s.init], safe)
            values.value(s.init)
            last = f"initial['{key}'] = {values.over(s.init, dims)}.expand({shape})"
            lines += [f"if initial.get('{key}') is None:", *(f"    {line}" for line in (*values.lines, last))]
    return lines


class _Start(HostValues):
    def leaf(self, node: Node) -> str:
        return f"heads_of({self.called(node.attr('name'))}.float(), H)[None]"
