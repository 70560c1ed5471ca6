"""What an emitted module forms around its kernels: products of all tokens with params. Text.

before: x = a * x + B @ u;  out y[D] = C @ x + skip * u
after:  B_u = projected(u, B, u.dtype)
        x_read, x_final = Scan.apply(seqs, B_u, a, ...)
        _x1 = projected(x_read, C, u.dtype)
        ...
"""

from __future__ import annotations

from mixc.codegen.host_values import HostValues
from mixc.codegen.names import safe
from mixc.ir.node import Node, postorder
from mixc.ir.program import Decl
from mixc.passes.around import Around, bare, projection
from mixc.runtime.risk import guarded_nodes

PRODUCTS = '''

def wide(x, H):
    """x as what is computed with: in fp32, of all heads or of one."""
    x = x.float()
    return x if x.shape[2] in (1, H) else x.repeat_interleave(H // x.shape[2], 2)


def fresh(*shape, dtype, seqs, device):
    """Room for rows that a product over all tokens reads: 0 where none is of a sequence."""
    return (torch.zeros if seqs.ragged else torch.empty)(shape, dtype=dtype, device=device)


def in_fp32(a, b):
    """a @ b of matrices, or of as many of them, accumulated and kept in fp32."""
    if a.dtype == torch.float32 or not a.is_cuda or torch.version.hip:
        return a.float() @ b.float()
    return (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out_dtype=torch.float32)


def by_heads(x, H):
    """x [B, T, G, ..., D] as matrices, one a head."""
    return heads_of(x.movedim(2, 0).reshape(x.shape[2], -1, x.shape[-1]), H)


def for_all_heads(x, H, *counts):
    """x [B, T, G, ...] of a kernel whose tensors have these head counts: of H heads, if none of them has."""
    return x if H in counts else x.repeat_interleave(H // x.shape[2], 2)


class Projected(torch.autograd.Function):
    """y [B, T, H, ..., N] in fp32: rows x [B, T, G, ..., D] times a matrix w [F, N, D] of their head, the operands rounded
    to dtype; H is the larger of G and F, which it is a multiple of."""

    @staticmethod
    def forward(ctx, x, w, dtype):
        ctx.save_for_backward(x, w)
        ctx.dtype = dtype
        (B, T, G, *rows, D), (F, N, _) = x.shape, w.shape
        with torch.autocast(x.device.type, enabled=False):
            x, w = x.to(dtype), w.to(dtype)
            if F == 1:
                return in_fp32(x.reshape(-1, D), w[0].mT).view(B, T, G, *rows, N)
            if G == 1 and not rows:
                return in_fp32(x.reshape(-1, D), w.reshape(-1, D).mT).view(B, T, F, N)
            H = max(G, F)
            return in_fp32(by_heads(x, H), heads_of(w, H).mT).view(H, B, T, *rows, N).movedim(0, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        (*lead, D), (F, N, _), dtype = x.shape, w.shape, ctx.dtype
        with torch.autocast(x.device.type, enabled=False):
            dy, rows, matrix = dy.to(dtype), x.to(dtype), w.to(dtype)
            if F == 1 or (lead[2] == 1 and len(lead) == 3):
                dy, rows, matrix = dy.reshape(-1, F * N), rows.reshape(-1, D), matrix.reshape(-1, D)
                dx, dw = (in_fp32(dy, matrix) if ctx.needs_input_grad[0] else None), in_fp32(dy.mT, rows)
                return None if dx is None else dx.view(x.shape).to(x.dtype), dw.view(w.shape).to(w.dtype), None
            H = max(lead[2], F)
            dy, rows, matrix = by_heads(dy, H), by_heads(rows, H), heads_of(matrix, H)
            dx = in_fp32(dy, matrix).view(H, *lead[:2], *lead[3:], D).movedim(0, 2)
            return over_group(dx, x, 2), over_group(in_fp32(dy.mT, rows), w, 0), None


def projected(x, w, dtype):
    """`Projected`, where neither head count need be a multiple of the other."""
    G, F = x.shape[2], w.shape[0]
    if max(G, F) % min(G, F):
        x, w = x.repeat_interleave(F, 2), heads_of(w, G * F)
    return Projected.apply(x, w, dtype)
'''


class Products(HostValues):
    """The lines in front of the kernels, and those behind them.  They read B, T, H, `device`, sizes and the tensors."""

    lead = 3

    def __init__(self, found: Around, dtype: str):
        """`dtype`: to which products round their operands, as text."""
        self.found, self.operand, self.begun = found, dtype, 0
        roots = [*found.front.values(), *found.behind.values()]
        super().__init__(roots, safe)
        self.guarded = guarded_nodes(found.step)
        tensors = {*found.read.values()}
        operands = [a for n in postorder(roots) for a in projection(n) or ()]
        self.raw = {a for a in operands if bare(a).op in ("in", "param") or bare(a) in tensors}

    def front(self) -> list[str]:
        for name, node in self.found.front.items():
            self._form(node)
            self.lines[-1] = f"{safe(name)} = {self.lines[-1].split(' = ', 1)[1]}"
            self.names[node] = safe(name)
        return self._taken()

    def behind(self, outs: dict[str, Decl]) -> list[str]:
        """Lines that form the outs; `outs`: how they are declared."""
        self.names |= {n: safe(name) for name, n in self.found.read.items()}
        for name, node in self.found.behind.items():
            self._form(node)
            dtype = "" if outs[name].exact else f".to({self.operand})"
            self.lines.append(f"{safe(name)} = {self.over(node, outs[name].dims)}{dtype}")
        return self._taken()

    def leaf(self, node: Node) -> str:
        """In fp32, of all heads or of one."""
        return f"wide({self.called(node.attr('name'))}{'[None, None]' if node.op == 'param' else ''}, H)"

    def _form(self, root: Node) -> None:
        """A line for every value below it, but for what products take as it is given."""
        for n in postorder([root], {*self.names, *self.raw}):
            if n.args and n not in self.raw and self.number(n) is None:
                self._own(n)

    def _taken(self) -> list[str]:
        lines, self.begun = self.lines[self.begun:], len(self.lines)
        return lines

    def _product(self, node: Node) -> str:
        found = projection(node)
        if found is None or any({d} <= {*found[0].dims} & {*found[1].dims} & {*node.dims} for d in node.dims):
            return super()._product(node)
        x, w = found
        summed = tuple(d for d in w.dims if d in x.dims)
        rows, cols = (tuple(d for d in a.dims if d not in summed) for a in (x, w))
        left, right = self._operand(x, (*rows, *summed), 3), self._operand(w, (*cols, *summed), 1)
        if len(summed) > 1:
            left, right = (f"{a}.flatten(-{len(summed)})" for a in (left, right))
        if len(cols) > 1:
            right = f"{right}.flatten(1, {len(cols)})"
        text = f"projected({left}, {right}, {self.operand})"
        if len(cols) > 1:
            text += f".unflatten(-1, ({', '.join(map(self.size, cols))}))"
        return _permuted(text, (*rows, *cols), node.dims, 3)

    def _operand(self, n: Node, want: tuple[str, ...], lead: int) -> str:
        """A tensor as it is given, or a value that was formed: of `lead` axes and these dims."""
        if n not in self.raw:
            return _permuted(self.name(n) + "[0, 0]" * (lead == 1), n.dims, want, lead)
        return _permuted(self.names.get(bare(n)) or self.called(bare(n).attr("name")), n.dims, want, lead)


def _permuted(text: str, have: tuple[str, ...], want: tuple[str, ...], lead: int) -> str:
    order = [*range(lead), *(lead + have.index(d) for d in want)]
    return text if have == want else f"{text}.permute({', '.join(map(str, order))})"


def around_lines(found: Around, dtype: str, tensors: list[Decl]) -> tuple[list[str], list[str]]:
    """The lines in front of the kernels, and those behind them.

    Args:
        dtype: of the inputs, as text. tensors: what the kernels read."""
    products = Products(found, dtype)
    front = products.front()
    names = {d.name for d in tensors}
    if any(d.name not in names for d in (*found.step.ins, *found.step.params)):
        first, *_ = (safe(d.name) for d in tensors)  # an in
        have = ", ".join(f"{safe(d.name)}.shape[{2 if d.role == 'in' else 0}]" for d in tensors)
        front.append(f"{first} = for_all_heads({first}, H, {have})")
    front += [f"{name} = float({dim})" for name, dim in found.sizes.items()]
    behind = products.behind({d.name: d for d in found.step.outs})
    whole = "with torch.autocast(device.type, enabled=False):"
    return [f"seqs.dtype = {dtype}", *([whole, *(f"    {line}" for line in front)] if front else [])], \
        [whole, *(f"    {line}" for line in behind)] if behind else []
