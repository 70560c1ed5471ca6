"""Initial states that a spec declares, as host text of an emitted module.

before: state h[D] = p * index[D]
after:  initial['h'] = (heads_of(p, H)[None] * torch.arange(D, device=device)).expand(seqs.count, H, D)
"""

from __future__ import annotations

from collections.abc import Mapping

from mixc.codegen.kernel import safe
from mixc.codegen.scalars import python_text
from mixc.ir.node import Node, postorder
from mixc.ir.ops import OPS
from mixc.ir.program import Decl

_MIXED = {"add", "sub", "mul", "div", "neg"}  # Python numbers may stand beside tensors


def start_lines(states: Mapping[str, Decl]) -> list[str]:
    """Lines that put every declared state which is not given, and does not start at 0, into `initial`.

    `states`: by their keys in `initial`.  The lines read B, T, H, sizes of dims, params, consts and `seqs`.

    Raises:
        NotImplementedError: an initial state that is not formed entry by entry."""
    lines = []
    for key, s in states.items():
        if s.init is not None:
            shape = ", ".join(["seqs.count", "H", *s.dims])
            value = _tensor(s.init, s.dims)
            lines += [f"if initial.get('{key}') is None:",
                      f"    initial['{key}'] = ({value}).to(device, torch.float32).expand({shape})"]
    return lines


def _tensor(node: Node, dims: tuple[str, ...]) -> str:
    """A tensor of shape [1, H, dims...], of size 1 where the value lacks a dim."""
    while node.op == "expand":
        node = node.args[0]
    text = _text(node, dims)
    return f"torch.tensor({text})" if _number(node) else text


def _text(node: Node, dims: tuple[str, ...]) -> str:
    if _number(node):
        return python_text(node)
    picks = ", ".join(":" if d in node.dims else "None" for d in dims)
    if node.op == "param":
        have = [d for d in dims if d in node.dims]
        order = ", ".join(str(1 + node.dims.index(d)) for d in have)
        name = f"heads_of({safe(node.attr('name'))}.float(), H)"
        name = name if tuple(have) == node.dims else f"{name}.permute(0, {order})"
        return f"{name}[{', '.join(filter(None, ['None, :', picks]))}]"
    if node.op == "index":
        return f"torch.arange({node.dims[0]}, device=device)[{', '.join(filter(None, ['None, None', picks]))}]"
    row = OPS[node.op]
    if row.torch is None:
        raise NotImplementedError(f"`{node.op}` in an initial state")
    inner = _text if node.op in _MIXED else _tensor
    return "(" + row.torch.format(*(inner(a, dims) for a in node.args), n=node.attr("n")) + ")"


def _number(node: Node) -> bool:
    return not any(n.op in ("param", "index") for n in postorder([node]))
