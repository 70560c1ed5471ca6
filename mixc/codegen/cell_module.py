"""The emitted file of a step that runs token by token: as `Module`, with cells for kernels."""

from __future__ import annotations

from mixc.codegen.kernel import Kernel, safe
from mixc.codegen.lines import shape
from mixc.codegen.module import Module
from mixc.codegen.triton_cell import CellWriter, product_text
from mixc.ir.launch import Store
from mixc.ir.program import Decl, Program
from mixc.passes.cell_launches import cell_launches


class CellModule(Module):
    """Raises SpecError (MX310) for what no tile holds."""

    kept_later = True

    def __init__(self, step: Program, spec: Program):
        self.made = made = cell_launches(step)
        self._of_loops(step, spec, made.forward, made.backward, CellWriter)
        self.weights = [d for d in step.params if len(d.dims) > 1]
        self.partial = {s.name for s in made.backward.stores if s.kind == "partial"}

    # ------------------------------------------------------------ text
    def prelude(self) -> str:
        return "".join(product_text(n) for n in sorted({len(lefts) for lefts in self._groups().values()}))

    def _programs(self, kernel: Kernel, tile: str) -> list[str]:
        return [f"triton.cdiv(count, {tile}['C'])", "H"]

    def _rows(self) -> list[str]:
        """Tensors in which states are kept that are no out."""
        return [k for k in dict.fromkeys(self.made.kept.values()) if k not in {o.name for o in self.outs}]

    @property
    def _handed(self) -> list[Store]:
        return []  # rows of states, see `_kept_lines`

    def _room(self, s: Store) -> str:
        return f"{s.name} = torch.empty({shape('B, T, H', s.dims)}, dtype={self._out_dtype()}, device=device)"

    def _saved(self) -> list[str]:
        return [*dict.fromkeys(self.made.kept.values()), *(f"{s}_first" for s in self.starts)]

    def _kept_lines(self) -> list[str]:
        """Rows of states, and the initial ones."""
        state = {k: s for s, k in self.made.kept.items()}
        lines = []
        for k in self._rows():
            s = state[k]
            dtype = "torch.float32" if s in self.made.exact else self._out_dtype()
            lines.append(f"{k} = torch.empty({shape('B, T, H', self.p.decl(s).dims)}, dtype={dtype}, device=device) if keep else None")
        return [*lines, *(f"{s}_first = {s}_initial if has_initial and keep else None" for s in self.starts)]

    def _argument(self, a: str, kernel: Kernel) -> str:
        if a.endswith("_kept") and a[:-5] in self.starts:
            return self.made.kept[a[:-5]]
        return super()._argument(a, kernel)

    def _launch(self, kernel: Kernel, tile: str) -> list[str]:
        return [*super()._launch(kernel, tile), *(self._product_lines() if kernel.launch.reverse else [])]

    def _gradient_buffers(self, kernel: Kernel) -> list[str]:
        lines = [x for x in super()._gradient_buffers(kernel) if x.split(" = ")[0] not in {f"d{d.name}" for d in self.p.params}]
        for s in self.made.backward.stores:
            if s.kind == "partial":
                lead = ", ".join(self._programs(self.kernel("bwd"), self._called("bwd")))
                lines.append(f"{s.name} = torch.empty({shape(lead, s.dims)}, dtype=torch.float32, device=device)")
        return lines

    def _groups(self) -> dict[tuple[str, bool, tuple[str, ...]], list[str]]:
        """Left sides of the products with one right side: one launch."""
        dims = {s.name: s.dims for s in self.made.backward.stores}
        found: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
        for p in self.made.products:
            lefts = found.setdefault((p.right, p.before, dims[p.left]), [])
            lefts += [p.left] * (p.left not in lefts)
        return found

    def _held(self, kernel: Kernel) -> list[str]:
        """Do a head's weights fit?  The backward has two copies of them, laid out for both of its products."""
        read = [d for d in self.weights if safe(d.name) in kernel.loads]
        each = " + ".join(f"on_chip({safe(d.name)}, {', '.join('B' + n for n in d.dims)})" for d in read)
        each = f"({each}) * 2" if kernel.launch.reverse else each
        started = [f"STARTED={self.starts[0]}_first is not None"] if "STARTED" in kernel.constexprs else []
        return [*started, *([f"HELD={each} <= room(device)"] if read else [])]

    def _product_lines(self) -> list[str]:
        state = {k: s for s, k in self.made.kept.items()}
        lines = []
        for i, ((right, before, _), lefts) in enumerate(self._groups().items()):
            first = f"{state[right]}_first" if before else "None"
            lines.append(f"products{i} = summed_rows{len(lefts)}(({', '.join(lefts)},), {right}, {first}, seqs, {before}, "
                         f"{self._dtype_of_products(right, before)})")
        return lines

    def _dtype_of_products(self, right: str, before: bool) -> str:
        """That of the gradients, where each is one of the products, of all heads."""
        mine = {p.param for p in self.made.products if (p.right, p.before) == (right, before)}
        if any(f"d{m}" in self.partial or sum(p.param == m for p in self.made.products) > 1 for m in mine):
            return "torch.float32"
        names = [safe(d.name) for d in self.p.params if d.name in mine]
        alone = " and ".join([*(f"{n}.shape[0] == H" for n in names), *(f"{n}.dtype == {names[0]}.dtype" for n in names[1:])])
        return f"{names[0]}.dtype if {alone} else torch.float32"

    def _param_gradient(self, d: Decl) -> str:
        terms = [f"d{d.name}.sum(0)"] if f"d{d.name}" in self.partial else []
        for i, (key, lefts) in enumerate(self._groups().items()):
            for p in self.made.products:
                if p.param == d.name and key[:2] == (p.right, p.before) and p.left in lefts:
                    terms.append(f"products{i}[{lefts.index(p.left)}]{'.mT' if p.transposed else ''}")
        return " + ".join(terms)
