"""The autograd function of an emitted file: it makes room for what the kernels leave, and calls them. Text."""

from __future__ import annotations

from collections import defaultdict

from mixc.codegen.kernel import Kernel, safe
from mixc.codegen.launches import Launches, count
from mixc.codegen.lines import indent, join, shape, tuple_text
from mixc.codegen.names import class_name
from mixc.codegen.sizes import size_lines
from mixc.ir.launch import Store
from mixc.ir.node import COL
from mixc.ir.program import Decl


class Function(Launches):
    """Its text; what kinds of modules do otherwise, they override."""

    kept_later = False  # are the buffers that are kept made after the initial states are known?

    @property
    def _class(self) -> str:
        return class_name(self.inner, self.name)

    def function(self) -> str:
        names = [safe(d.name) for d in self._tensors()]
        finals = [f"{s.name}_initial" for s in self.states]
        consts = [c.name for c in self.p.consts]
        body = [f"class {self._class}(torch.autograd.Function):",
                f'    """{", ".join(o.name for o in self.outs)} and final states of {self.name}; derivatives by its own kernels."""', "",
                "    @staticmethod",
                f"    def forward(ctx, seqs, {join(consts)}{', '.join([*names, *finals])}):"]
        body += indent(self._forward_body(names, finals, consts), 2)
        body += ["", "    @staticmethod", "    @torch.autograd.function.once_differentiable",
                 f"    def backward(ctx, {', '.join(['d' + o.name for o in self.outs] + ['d' + s.name + '_final' for s in self.states])}):"]
        body += indent(self._backward_body(names, consts), 2)
        return "\n".join(body)

    def _sizes(self) -> list[str]:
        given = [d for d in self._tensors() if safe(d.name) not in self.backs]
        return size_lines(given, [d for d in self.p.dims if d.name not in self.p.inner])

    def _forward_body(self, names: list[str], initial: list[str], consts: list[str]) -> list[str]:
        lines = [*self._sizes(), "device, count = " + f"{names[0]}.device, seqs.count",
                 *(["keep = any(ctx.needs_input_grad)"] if self.starts or self._handed else [])]
        lines += [f"{n} = features_packed({n}, {3 if d.role == 'in' else 1})" if d.role == "in" else f"{n} = {n}.contiguous()"
                  for n, d in zip(names, self._tensors(), strict=True) if n not in self.backs]
        lines += [f"{n}, {n}_back = ({safe(x)}, {back}) if {n} is None else (features_packed({n}, 3), 0)"
                  for n, (x, back) in self.backs.items()]
        for o in self.outs:
            lines.append(f"{o.name} = {self._fresh('B, T, H', o, self._out_dtype(o))}")
        for s in self.states:
            lines.append(f"{s.name}_final = torch.empty({shape('count, H', s.dims)}, dtype=torch.float32, device=device)")
        if (self.starts or self._splits) and not self.kept_later:
            lines += self._kept_lines()
        lines += [f"{self._room(s)} if keep else None" for s in self._handed]
        if initial:
            lines.append(f"has_initial = {' or '.join(f'{n} is not None' for n in initial)}")
            lines.append("if has_initial:")
            lines += [self._given(f"{s.name}_initial", f"{s.name}_final.new_zeros({s.name}_final.shape)")
                      for s in self.states]
        if self.kept_later:
            lines += self._kept_lines()
        whole = self._forward_launches()
        if self.token:
            step = self.prefix + "STEP"
            one = [*self._blocks(self.token, step), *self._launch(self.token, step)]
            lines += ["if seqs.T == 1 and not seqs.ragged and not any(ctx.needs_input_grad):", *indent(one, 1), "else:",
                      *indent(whole, 1)]
        else:
            lines += whole
        outs = [o.name for o in self.outs] + [f"{s.name}_final" for s in self.states]
        saved = [*(f"None if {n}_back else {n}" if n in self.backs else n for n in names), *self._saved()]
        lines += [f"ctx.save_for_backward({', '.join(saved)})",
                  f"ctx.seqs{''.join(', ctx.' + c for c in consts)} = seqs{''.join(', ' + c for c in consts)}"]
        if self.backs:
            lines.append(f"ctx.backs = {tuple_text([f'{n}_back' for n in self.backs])}")
        if initial:
            first = 1 + len(consts) + len(names)
            asked = [f"{n} is not None and ctx.needs_input_grad[{first + i}]" for i, n in enumerate(initial)]
            lines.append(f"ctx.has_initial = {tuple_text(asked)}")
        lines += ["ctx.set_materialize_grads(False)", f"return {', '.join(outs)}"]
        return lines

    def _given(self, name: str, zeros: str) -> str:
        """What is given of a state where that of some is, as kernels read it."""
        none = f"{zeros} if {name} is None else " * (len(self.states) > 1)
        return f"    {name} = {none}{name}.contiguous()"

    def _forward_launches(self) -> list[str]:
        if len(self.fwd) > 1:
            return [x for n, k in self.fwd for x in (*self._blocks(k, self._called(n)), *self._launch(k, self._called(n)))]
        (_, kernel), = self.fwd
        return [self._forward_tile(), *self._blocks(kernel, "tile"), *self._launch(kernel, "tile")]

    def _forward_tile(self) -> str:
        sizes = self._called(self.fwd[0][0])
        paired = any(COL in s.dims for s in self._handed)  # the backward has chunks of as many rows
        if self.backward is None or paired or self.config.tile(self.fwd[0][0]).chunk < 16:  # rows are no tokens, or few
            return f"tile = {sizes}"
        return f"tile = dict({sizes}, C=16) if seqs.T <= 16 else {sizes}"

    def _saved(self) -> list[str]:
        """What the forward keeps for the backward, besides what it was given."""
        at = self.starts or any(k.launch.alone for _, k in self.bwd)
        return [*(f"{s}_starts" for s in self.starts), *(["segment_at"] if at else []), *(s.name for s in self._handed)]

    def _room(self, s: Store) -> str:
        """Room for rows that are handed on: never in fp16, whose range they may leave."""
        if any(s.name in launch.in_fp32 for launch in self.launches.values()):
            room = shape("B, T, H", s.dims, f"{self._called(self.fwd[0][0])}['C']")
            return f"{s.name} = torch.empty({room}, dtype=torch.float32, device=device)"
        over = "".join(f", {d}" for d in self.inverse_over())
        dtype = f"handed_in({self._out_dtype()}{over})" if s.dims else "torch.float32"
        return f"{s.name} = torch.empty({shape('B, T, H', s.dims)}, dtype={dtype}, device=device)"

    @property
    def _handed(self) -> list[Store]:
        """Rows that the forward stores for the backward."""
        return [s for _, k in self.fwd for s in k.launch.stores if s.result == "save"]

    def _kept_lines(self) -> list[str]:
        """Room for the state at the start of every segment."""
        kept = self.fwd[0][1].launch.keeps
        always = len(self.fwd) > 1 or not self.starts or "KEEP" not in self.fwd[0][1].constexprs
        lines = [f"bound, segment_at = seqs.pieces({self._segment})" + ("" if always else " if keep else (0, None)")]
        lines += ["piece_of = pieces_of(segment_at, bound)"] if len(self.fwd) > 1 else []
        def dtype(s: str) -> str:
            return "torch.float32" if s in self.launches["fwd"].exact else self._out_dtype()
        return [*lines, *(f"{s}_starts = torch.empty({shape('bound, H', self.p.decl(s).dims)}, dtype={dtype(s)}, "
                          "device=device)" for s in kept)]

    def _fresh(self, lead: str, d: Decl, dtype: str) -> str:
        """Room for an out, or for the gradient of an in; `fresh` for what products over all tokens, or parts, may read."""
        read = d.exact or (self.around and d.name in {*self.around.front, *self.around.read})
        return (f"fresh({shape(lead, d.dims)}, dtype={dtype}, seqs=seqs, device=device)" if read else
                f"torch.empty({shape(lead, d.dims)}, dtype={dtype}, device=device)")

    # ------------------------------------------------------------ backward
    def _backward_body(self, names: list[str], consts: list[str]) -> list[str]:
        saved = [*names, *self._saved()]
        lines = [f"{', '.join(saved)}{',' if len(saved) == 1 else ''} = ctx.saved_tensors",
                 f"seqs{''.join(', ' + c for c in consts)} = ctx.seqs{''.join(', ctx.' + c for c in consts)}",
                 *self._sizes(), f"device, count = {names[0]}.device, seqs.count"]
        if self.backs:
            lines.append(f"{tuple_text([f'{n}_back' for n in self.backs])} = ctx.backs")
            lines += [f"{n} = {safe(x)} if {n}_back else {n}" for n, (x, _) in self.backs.items()]
        for o in self.outs:
            lines.append(f"d{o.name} = torch.zeros({shape('B, T, H', o.dims)}, dtype={self._out_dtype(o)}, device=device) "
                         f"if d{o.name} is None else d{o.name}.contiguous()")
        if self.states:
            lines.append(f"has_final = {' or '.join(f'd{s.name}_final is not None' for s in self.states)}")
        if any(k.launch.alone for _, k in self.bwd):
            lines += [f"bound = seqs.pieces({self._segment})[0]", "piece_of = pieces_of(segment_at, bound)"]
        for name, kernel in self.bwd:
            lines += self._blocks(kernel, self._called(name))
            lines += [f"parts_{d} = {count(kernel, d, self._called(name))}" for d in kernel.launch.summed]
            lines += [*self._state_buffers(kernel), *self._gradient_buffers(kernel), *self._launch(kernel, self._called(name))]
        formed = {d.name: f"over_group({self._summed('d' + d.name, d.dims, safe(d.name))}, {safe(d.name)}, 2)" if not d.table else "None"
                  for d in self.p.ins}
        lines += self._earlier(formed)
        grads = list(formed.values())
        grads += [f"over_group({self._param_gradient(d)}, {safe(d.name)}, 0)" for d in self.p.params]
        grads += [f"{self._summed(f'd{s.name}_initial', s.dims)} if ctx.has_initial[{i}] else None"
                  for i, s in enumerate(self.states)]
        lines.append(f"return ({', '.join(['None'] * (1 + len(consts)))},\n" + ",\n".join(f"        {g}" for g in grads) + ")")
        return lines

    def _earlier(self, formed: dict[str, str]) -> list[str]:
        """The gradients of inputs that kernels have read at earlier rows too: all that came to a row."""
        by_input = defaultdict[str, list[str]](list)
        for n, (x, _) in self.backs.items():
            by_input[x].append(n)
        lines = list[str]()
        for x, taps in self.taps.items():
            w, rows, G = safe(taps.param), f"d{x}_later", safe(x)
            own = "None" if taps.own is not None else self._summed(f"d{x}", self.p.decl(x).dims, G)
            summed = self._summed(rows, self.p.decl(x).dims, G)
            lines += [f"{rows} = {summed}"] if summed != rows else []
            lines.append(f"d{x} = with_taps({own}, seqs, {rows}, {w}, {taps.axis}, {taps.own}, "
                         f"{', '.join(f'({i}, {n}_back)' for n, i in taps.entries.items())})")
            formed[x] = f"over_group(d{x}, {G}, 2)"
            formed |= {n: f"None if {n}_back else over_group({rows} * tap_of({w}, {taps.axis}, {i}, H), {G}, 2)"
                       for n, i in taps.entries.items()}
            del by_input[x]
        for x, names in by_input.items():
            lines += [f"d{n} = {formed[n]}" for n in names]
            lines.append(f"d{x} = with_later({formed[x]}, seqs, {', '.join(f'(d{n}, {n}_back)' for n in names)})")
            formed |= {x: f"d{x}"} | {n: f"None if {n}_back else d{n}" for n in names}
        return lines

    def _state_buffers(self, kernel: Kernel) -> list[str]:
        """Cotangents of states where a sequence begins, and where a segment ends."""
        launch, lines = kernel.launch, list[str]()
        for s in self.states:
            if self._maker(f"d{s.name}_initial") is kernel:
                lines += [f"d{s.name}_initial = torch.empty({shape(self._parts(kernel, s.dims) + 'count, H', s.dims)}, "
                          "dtype=torch.float32, device=device)",
                          "if has_final:", self._given(f"d{s.name}_final", f"torch.zeros_like(d{s.name}_initial)")]
        kept = [c for c in launch.carries if c.name in launch.keeps]
        return lines + [f"{launch.kept(c.name)} = torch.empty({shape('bound, H', c.dims)}, dtype={self._out_dtype()}, "
                        "device=device)" for c in kept]

    def _param_gradient(self, d: Decl) -> str:
        return f"{self._summed('d' + d.name, d.dims)}.sum(0)"

    def _parts(self, kernel: Kernel, dims: tuple[str, ...]) -> str:
        """How many partial sums a kernel leaves of what has these dims, as the first axis of its shape."""
        found = [f"parts_{d}" for d in kernel.launch.partial_over(dims)]
        return f"{' * '.join(found)}, " if found else ""

    def _summed(self, name: str, dims: tuple[str, ...], like: str = "") -> str:
        dtype = f", {like}.dtype if {like}.shape[2] == H else torch.float32" if like else ""
        return f"merged({name}{dtype})" if self._parts(self._maker(name), dims) else name

    def _gradient_buffers(self, kernel: Kernel) -> list[str]:
        """What a kernel forms: gradients of the ins a row a token and head, of the params one a sequence and head."""
        lines = [self._room(s) for s in kernel.launch.stores if s.result == "save"]
        ins, params = ([d for d in of if not d.table and self._maker(f"d{d.name}") is kernel] for of in (self.p.ins, self.p.params))
        unstored = {n for x, t in self.taps.items() for n in (*t.entries, *([x] if t.own is not None else []))}
        ins = [d for d in ins if d.name not in unstored]
        later = [(d, f"{d.name}_later") for d in self.p.ins if d.name in kernel.taps]
        for d, name in [*((d, d.name) for d in ins), *later]:
            n, parts = safe(d.name), self._parts(kernel, d.dims)
            lead = f"{parts}B, T, H"
            whole = f"{n}.shape[2] == H" + (f" and {parts[:-2]} == 1" if parts else "")
            added = kernel.turned and kernel.turned not in d.dims
            dtype = "torch.float32" if added else f"{n}.dtype if {whole} else torch.float32"
            lines.append(f"d{name} = {self._fresh(lead, d, dtype)}")
        for d in params:
            lead = f"{self._parts(kernel, d.dims)}{'bound' if kernel.launch.alone else 'count'}, H"
            lines.append(f"d{d.name} = torch.empty({shape(lead, d.dims)}, dtype=torch.float32, device=device)")
        return lines
