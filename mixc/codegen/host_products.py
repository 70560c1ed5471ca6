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
from mixc.ir.risk import guarded_nodes
from mixc.passes.around import Around, bare, projection
from mixc.passes.behind import Behind


class Products(HostValues):
    """The lines in front of the kernels, and those behind them.  They read B, T, H, `device`, sizes and the tensors."""

    lead = 3

    def __init__(self, found: Around, dtype: str):
        """`dtype`: to which products round their operands, as text."""
        self.found, self.operand, self.begun = found, dtype, 0
        roots = [*found.front.values(), *found.behind.values()]
        super().__init__(roots, safe)
        self.guarded = guarded_nodes(found.step)
        read = {a for n in postorder(roots, {*found.read.values()}) for a in n.args}
        self.narrow = {n for name, n in found.front.items() if not found.program.decl(name).exact}  # in the inputs' dtype
        self.narrow |= {n for name, n in found.behind.items() if not found.step.decl(name).exact} - read
        tensors = {*found.read.values()}
        operands = [a for n in postorder(roots) for a in projection(n) or ()]
        self.raw = {a for a in operands if bare(a).op in ("in", "param") or bare(a) in tensors}

    def front(self) -> list[str]:
        self._named(self.found.front)
        return self._taken()

    def _named(self, values: dict[str, Node]) -> None:
        for name, node in values.items():
            if node in self.names:  # formed on the way to another
                self.lines.append(f"{safe(name)} = {self.names[node]}")
            else:
                self._form(node)
                self.lines[-1] = f"{safe(name)} = {self.lines[-1].split(' = ', 1)[1]}"
            self.names[node] = safe(name)

    def behind(self, outs: dict[str, Decl], last: tuple[Behind, str] | None) -> list[str]:
        """Lines that form the outs; `outs`: how they are declared."""
        self.names |= {n: safe(name) for name, n in self.found.read.items()}
        rest = {d.name for d in last[0].program.outs} if last else set()
        self._named(last[0].products if last else {})
        for name, node in self.found.behind.items():
            if name in rest:
                continue
            self._form(node)
            dtype = "" if outs[name].exact else f".to({self.operand})"
            self.lines.append(f"{safe(name)} = {self.over(node, outs[name].dims)}{dtype}")
        return self._taken()

    def leaf(self, node: Node) -> str:
        """In fp32, of all heads or of one."""
        return f"widened({self.called(node.attr('name'))}{'[None, None]' if node.op == 'param' else ''}, H)"

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
        kept = f", {self.operand}" if node in self.narrow else ""
        text = f"projected({left}, {right}, {self.operand}{kept})"
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


def around_lines(found: Around, dtype: str, tensors: list[Decl],
                 last: tuple[Behind, str] | None) -> tuple[list[str], list[str]]:
    """The lines in front of the kernels, and those behind them.

    Args:
        dtype: of the inputs, as text. tensors: what the kernels read. last: what other kernels form behind products, and
        what their autograd function is called."""
    products = Products(found, dtype)
    front = products.front()
    names = {d.name for d in tensors}
    if any(d.name not in names for d in (*found.step.ins, *found.step.params)):
        first, *_ = (safe(d.name) for d in tensors)  # an in
        have = ", ".join(f"{safe(d.name)}.shape[{2 if d.role == 'in' else 0}]" for d in tensors)
        front.append(f"{first} = for_all_heads({first}, H, {have})")
    front += [f"{name} = float({dim})" for name, dim in found.sizes.items()]
    behind = products.behind({d.name: d for d in found.step.outs}, last)
    whole = "with torch.autocast(device.type, enabled=False):"
    before, after = ([whole, *(f"    {line}" for line in x)] if x else [] for x in (front, behind))
    if last:
        p = last[0].program
        given = ["seqs", *(c.name for c in p.consts), *(safe(d.name) for d in (*p.ins, *p.params))]
        after.append(f"{', '.join(safe(o.name) for o in p.outs)} = {last[1]}.apply({', '.join(given)})")
    return [f"seqs.dtype = {dtype}", *before], after
