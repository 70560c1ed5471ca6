"""The emitted file: kernels, launches, an autograd function, and the functions a user calls.

The text needs torch and triton only.  It has one shape for every spec; what differs are the kernels,
which come from the launches, and the names, which are the spec's own.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from functools import cached_property

from mixc.codegen.calls import HOST as CALLS
from mixc.codegen.calls import call_lines, range_check, tables
from mixc.codegen.config import Config, Tile
from mixc.codegen.host import HOST
from mixc.codegen.kernel import Kernel, KernelWriter, safe
from mixc.codegen.prelude import ATAN2, PRELUDE
from mixc.codegen.starts import start_lines
from mixc.codegen.triton_scan import scan_prelude
from mixc.codegen.triton_span import span_prelude
from mixc.errors import SpecError
from mixc.ir.program import Decl, Program
from mixc.passes.partition import fused_backward, fused_forward, token_loop

LICENSE = "SPDX-License-Identifier: Apache-2.0"


class Module:
    """The module of a spec, from its chunk program and that program's backward: the kernels, then the text."""

    by_rule = False  # has it `sizes`, by a rule, and none that are tuned?
    kept_later = False  # are the buffers that are kept made after the initial states are known?

    def __init__(self, forward: Program, backward: Program, step: Program | None = None, spec: Program | None = None):
        """
        Args:
            step: what happens to one token, for a kernel that decodes (None: the chunk's kernel does).
            spec: the step under its user's names, of as many dims and values in the same order (None: these are they).
        """
        self.p, self.spec = forward, spec or forward
        self.token = _token_kernel(step) if step is not None and step.decls == forward.decls else None
        self.bwd = KernelWriter(fused_backward(forward, backward)).write()
        self.starts = self.bwd.launch.starts
        self.fwd = KernelWriter(fused_forward(forward, self.starts)).write()
        self.name = forward.name
        self.states, self.outs = forward.states, forward.outs
        self._in_turns: dict[str, Kernel] = {}

    @cached_property
    def own(self) -> dict[str, str]:
        """What kernels call the dims of the spec."""
        return {outer.name: inner.name for outer, inner in zip(self.spec.dims, self.p.dims, strict=True)}

    @property
    def kernels(self) -> dict[str, Kernel]:
        return {"fwd": self.fwd, "bwd": self.bwd}

    def sizes(self, sizes: Mapping[str, int], operand: int) -> Config:
        """Those of `by_rule`.

        Args:
            sizes: of every dim. operand: bytes of an input's value."""
        raise NotImplementedError

    def kernel(self, launch: str, tile: Tile) -> Kernel:
        """The one that runs with this tile."""
        if launch != "bwd" or tile.turns == 1:
            return self.kernels[launch]
        if tile.turned not in self._in_turns:
            self._in_turns[tile.turned] = KernelWriter(self.bwd.launch, tile.turned).write()
        return self._in_turns[tile.turned]

    # ------------------------------------------------------------ text
    def text(self, config: Config, public: Program | None = None) -> str:
        """The file, its launches with the sizes of `config`; `public`: the step of complex values whose parts these are."""
        self.config, self.public = config.named(self.own), public or self.spec
        token = [self.token.text, "\n\n"] if self.token else []
        kernels = [self.fwd.text, "\n\n", *token, self._backward.text, "\n\n"]
        angles = ATAN2 if any("atan2(" in k for k in kernels) else ""
        parts = [self._head(), HOST, CALLS, PRELUDE + angles, scan_prelude("".join(kernels)),
                 span_prelude("".join(kernels)) + self._prelude(), "\n", *kernels, self._function(),
                 "\n\n", self._calls()]
        return "".join(p if p.endswith("\n") else p + "\n" for p in parts)

    @property
    def _backward(self) -> Kernel:
        return self.kernel("bwd", self.config.tile("bwd"))

    def _prelude(self) -> str:
        return ""

    def _head(self) -> str:
        doc = self.p.doc.strip()
        lines = [f'"""{self.name}: kernels emitted by mixc from a one-token step.', ""]
        if doc:
            lines += [*doc.splitlines(), ""]
        lines += [LICENSE, '"""', "import collections", "import math", "import os", "", "import torch", "import triton", "import triton.language as tl", "",
                  f"FORWARD = {self._tile(self.fwd, 'fwd')}", f"BACKWARD = {self._tile(self._backward, 'bwd')}",
                  *([f"STEP = {self._tile(self.token, 'step')}  # one token"] if self.token else []),
                  *([f"SEGMENT = {self.config.segment}  # rows from one kept state to the next"] if "SEGMENT" in self.fwd.constexprs else []),
                  *tables(self.spec)]
        return "\n".join(lines) + "\n"

    def _tile(self, kernel: Kernel, launch: str) -> str:
        tile = self.config.tile(launch)
        blocks = "".join(f"B{d}={dict(tile.blocks).get(d, 1 << 30)}, " for d in kernel.launch.split if d in kernel.dims)
        turns = f"turns={tile.turns}, " if kernel.turned else ""
        return f"dict(C={tile.chunk}, {blocks}{turns}warps={tile.warps}, stages={tile.stages})"

    # ------------------------------------------------------------ the autograd function
    def _tensors(self) -> list[Decl]:
        return [*self.p.ins, *self.p.params]

    @property
    def _class(self) -> str:
        """What the autograd function is called: the mixer's name in capitals, and no name of the spec."""
        name = _camel(self.name)
        return name + "_" if name in {*(d.name for d in self.p.dims), *(d.name for d in self.p.decls)} else name

    def _function(self) -> str:
        names = [safe(d.name) for d in self._tensors()]
        finals = [f"{s.name}_initial" for s in self.states]
        consts = [c.name for c in self.p.consts]
        body = [f"class {self._class}(torch.autograd.Function):",
                f'    """{", ".join(o.name for o in self.outs)} and final states of {self.name}; derivatives by its own kernels."""', "",
                "    @staticmethod",
                f"    def forward(ctx, seqs, {_join(consts)}{', '.join([*names, *finals])}):"]
        body += _indent(self._forward_body(names, finals, consts), 2)
        body += ["", "    @staticmethod", "    @torch.autograd.function.once_differentiable",
                 f"    def backward(ctx, {', '.join(['d' + o.name for o in self.outs] + ['d' + s.name + '_final' for s in self.states])}):"]
        body += _indent(self._backward_body(names, consts), 2)
        return "\n".join(body)

    def _sizes(self) -> list[str]:
        """B, T, H and the size of every dim, read off the tensors."""
        first = self.p.ins[0]
        lines = [f"B, T = {safe(first.name)}.shape[:2]",
                 "H = max(" + ", ".join(f"{safe(d.name)}.shape[{2 if d.role == 'in' else 0}]" for d in self._tensors()) + ", 1)"]
        known: set[str] = set()
        for d in self.p.dims:
            if d.size is not None:
                lines.append(f"{d.name} = {d.size}")
                known.add(d.name)
        for decl in self._tensors():
            for i, dim in enumerate(decl.dims):
                if dim not in known:
                    lines.append(f"{dim} = {safe(decl.name)}.shape[{(3 if decl.role == 'in' else 1) + i}]")
                    known.add(dim)
        for d in self.p.dims:
            if d.name not in known:
                if d.alias is None:
                    raise ValueError(f"no tensor has dim {d.name}")
                lines.append(f"{d.name} = {d.alias}")
            elif d.alias and d.alias not in known:
                lines.append(f"{d.alias} = {d.name}")
                known.add(d.alias)
        return lines

    def _blocks(self, kernel: Kernel, tile: str) -> list[str]:
        split = kernel.launch.split
        return [f"B{d} = block({d}, {tile}['B{d}'])" if d in split else f"B{d} = block({d})" for d in kernel.dims]

    def _forward_body(self, names: list[str], initial: list[str], consts: list[str]) -> list[str]:
        lines = [*self._sizes(), "device, count = " + f"{names[0]}.device, seqs.count",
                 *(["keep = any(ctx.needs_input_grad)"] if self.starts else []), self._forward_tile()]
        lines += [f"{n} = features_packed({n}, {3 if d.role == 'in' else 1})" if d.role == "in" else f"{n} = {n}.contiguous()"
                  for n, d in zip(names, self._tensors(), strict=True)]
        lines += self._blocks(self.fwd, "tile")
        for o in self.outs:
            lines.append(f"{o.name} = torch.empty({_shape('B, T, H', o.dims)}, dtype={self._out_dtype()}, device=device)")
        for s in self.states:
            lines.append(f"{s.name}_final = torch.empty({_shape('count, H', s.dims)}, dtype=torch.float32, device=device)")
        if self.starts and not self.kept_later:
            lines += self._kept_lines()
        if initial:
            lines.append(f"has_initial = {' or '.join(f'{n} is not None' for n in initial)}")
            lines += [f"if has_initial:\n    {s.name}_initial = {s.name}_final.new_zeros({s.name}_final.shape) "
                      f"if {s.name}_initial is None else {s.name}_initial.contiguous()" for s in self.states]
        if self.kept_later:
            lines += self._kept_lines()
        whole = self._launch(self.fwd, "tile")
        if self.token:
            one = [*self._blocks(self.token, "STEP"), *self._launch(self.token, "STEP")]
            lines += ["if seqs.T == 1 and not seqs.ragged and not any(ctx.needs_input_grad):", *_indent(one, 1), "else:",
                      *_indent(whole, 1)]
        else:
            lines += whole
        outs = [o.name for o in self.outs] + [f"{s.name}_final" for s in self.states]
        saved = [*names, *self._saved()]
        lines += [f"ctx.save_for_backward({', '.join(saved)})",
                  f"ctx.seqs{''.join(', ctx.' + c for c in consts)} = seqs{''.join(', ' + c for c in consts)}"]
        if initial:
            lines += ["ctx.has_initial = (" + "".join(f"{n} is not None and ctx.needs_input_grad[{1 + len(consts) + len(names) + i}], "
                                                       for i, n in enumerate(initial)) + ")"]
        lines += ["ctx.set_materialize_grads(False)", f"return {', '.join(outs)}"]
        return lines

    def _held(self, kernel: Kernel) -> list[str]:
        return []

    def _forward_tile(self) -> str:
        return "tile = dict(FORWARD, C=16) if seqs.T <= 16 else FORWARD"

    def _saved(self) -> list[str]:
        """What the forward keeps for the backward, besides what it was given."""
        return [*(f"{s}_starts" for s in self.starts), *(["segment_at"] if self.starts else [])]

    def _kept_lines(self) -> list[str]:
        lines = ["bound, segment_at = seqs.pieces(SEGMENT) if keep else (0, None)"]
        def dtype(s: str) -> str:
            return "torch.float32" if s in self.fwd.launch.exact else self._out_dtype()
        return [*lines, *(f"{s}_starts = torch.empty({_shape('bound, H', self.p.decl(s).dims)}, dtype={dtype(s)}, "
                          "device=device)" for s in self.starts)]

    def _programs(self, tile: str) -> list[str]:
        """Factors of the number of programs, but for split dims."""
        return ["count", "H"]

    def _out_dtype(self) -> str:
        first = next((d for d in self.p.ins if d.dims), self.p.ins[0])
        return f"{safe(first.name)}.dtype"

    def _grid(self, kernel: Kernel, tile: str) -> str:
        """How many programs there are."""
        return " * ".join([*self._programs(tile), *(_count(kernel, d) for d in kernel.launch.split if d in kernel.dims)])

    def _launch(self, kernel: Kernel, tile: str) -> list[str]:
        """The call of a kernel, its arguments by name."""
        grid = self._grid(kernel, tile)
        given: list[str] = []
        for a in kernel.arguments:
            given.append(self._argument(a, kernel))
        reverse = kernel.launch.reverse
        pairs = [*(f"{d}={d}" for d in kernel.dims), f"C={tile}['C']", *(f"B{d}=B{d}" for d in kernel.dims), *([f"TURNS={tile}['turns']"] if kernel.turned else []), "SIGN=seqs.sign",
                 "RAGGED=seqs.ragged"]
        pairs += ["SEGMENT=SEGMENT"] * ("SEGMENT" in kernel.constexprs) + ["KEEP=keep"] * ("KEEP" in kernel.constexprs)
        pairs += self._held(kernel)
        if "HAS_INITIAL" in kernel.constexprs:
            pairs.append(f"HAS_INITIAL={'has_final' if reverse else 'has_initial'}")
            pairs.append(f"STORE_FINAL={'any(ctx.has_initial)' if reverse else 'seqs.want_final'}")
        pairs += [f"OPERAND=operand({self._out_dtype()})", f"PRECISION=precision({self._out_dtype()})",
                  f"STAGES={tile}['stages']", f"num_warps={tile}['warps']", f"**registers({tile}['warps'])"]
        call = [f"if {grid} > 0:", f"    {kernel.launch.name}[({grid},)]("]
        call += [f"        {line}" for line in _lines([*given, *pairs], 100)]
        return [*call, "    )"]

    def _argument(self, a: str, kernel: Kernel) -> str:
        for decl in self._tensors():
            n = safe(decl.name)
            if a == f"{n}_ptr" and n in kernel.loads:
                return n
            if a == f"{n}_rep":
                return f"H // {n}.shape[{2 if decl.role == 'in' else 0}]"
            if decl.role == "in" and a in (f"{n}_sb", f"{n}_st", f"{n}_sh"):
                return f"{n}.stride({('b', 't', 'h').index(a[-1])})"
        if a in ("starts", "lengths"):
            return f"seqs.{a}"
        if a.endswith("_part"):
            state = any(c.name == a[:-5] for c in kernel.launch.carries)
            return f"{a[:-5]}{'_initial' if state else ''}.stride(0)"
        if kernel.launch.reverse and a.endswith(("_initial", "_final")):  # its loop begins at the end
            return a.removesuffix("_initial") + "_final" if a.endswith("_initial") else a.removesuffix("_final") + "_initial"
        if a.endswith("_ptr"):
            return a[:-4]
        return a

    def _backward_body(self, names: list[str], consts: list[str]) -> list[str]:
        saved = [*names, *self._saved()]
        lines = [f"{', '.join(saved)}{',' if len(saved) == 1 else ''} = ctx.saved_tensors",
                 f"seqs{''.join(', ' + c for c in consts)} = ctx.seqs{''.join(', ctx.' + c for c in consts)}",
                 *self._sizes(), f"device, count = {names[0]}.device, seqs.count", *self._blocks(self.bwd, "BACKWARD")]
        lines += [f"parts_{d} = {_count(self._backward, d)}" for d in self.bwd.launch.summed]
        for o in self.outs:
            lines.append(f"d{o.name} = torch.zeros({_shape('B, T, H', o.dims)}, dtype={self._out_dtype()}, device=device) "
                         f"if d{o.name} is None else d{o.name}.contiguous()")
        if self.states:
            lines.append(f"has_final = {' or '.join(f'd{s.name}_final is not None' for s in self.states)}")
        for s in self.states:
            lead = f"{self._parts(s.dims)}count, H"
            lines += [f"d{s.name}_initial = torch.empty({_shape(lead, s.dims)}, dtype=torch.float32, device=device)",
                      f"if has_final:\n    d{s.name}_final = torch.zeros_like(d{s.name}_initial) if d{s.name}_final is None "
                      f"else d{s.name}_final.contiguous()"]
        lines += self._gradient_buffers()
        lines += self._launch(self._backward, "BACKWARD")
        grads = [f"over_group({self._summed('d' + d.name, d.dims, safe(d.name))}, {safe(d.name)}, 2)" for d in self.p.ins]
        grads += [f"over_group({self._param_gradient(d)}, {safe(d.name)}, 0)" for d in self.p.params]
        grads += [f"{self._summed(f'd{s.name}_initial', s.dims)} if ctx.has_initial[{i}] else None"
                  for i, s in enumerate(self.states)]
        lines.append(f"return (None, {'None, ' * len(consts)}\n" + ",\n".join(f"        {g}" for g in grads) + ")")
        return lines

    def _param_gradient(self, d: Decl) -> str:
        return f"{self._summed('d' + d.name, d.dims)}.sum(0)"

    def _parts(self, dims: tuple[str, ...]) -> str:
        """How many partial sums there are of what has these dims, as the first axis of its shape."""
        found = [f"parts_{d}" for d in self.bwd.launch.partial_over(dims)]
        return f"{' * '.join(found)}, " if found else ""

    def _summed(self, name: str, dims: tuple[str, ...], like: str = "") -> str:
        dtype = f", {like}.dtype if {like}.shape[2] == H else torch.float32" if like else ""
        return f"merged({name}{dtype})" if self._parts(dims) else name

    def _gradient_buffers(self) -> list[str]:
        """Gradients of the ins a row a token and head, of the params one a sequence and head."""
        lines = []
        for d in self.p.ins:
            n, parts = safe(d.name), self._parts(d.dims)
            lead = f"{parts}B, T, H"
            whole = f"{n}.shape[2] == H" + (f" and {parts[:-2]} == 1" if parts else "")
            added = self._backward.turned and self._backward.turned not in d.dims
            dtype = "torch.float32" if added else f"{n}.dtype if {whole} else torch.float32"
            lines.append(f"d{d.name} = torch.empty({_shape(lead, d.dims)}, dtype={dtype}, device=device)")
        for d in self.p.params:
            lead = f"{self._parts(d.dims)}count, H"
            lines.append(f"d{d.name} = torch.empty({_shape(lead, d.dims)}, dtype=torch.float32, device=device)")
        return lines

    # ------------------------------------------------------------ what a user calls
    def _calls(self) -> str:
        own = [safe(d.name) for d in self._tensors()]
        return "\n".join([*self._run(own), "", "", *range_check(self.public), "", "", *call_lines(self.public)])

    def _run(self, names: list[str]) -> list[str]:
        """The same for programs: outs always a tuple, sequences as (first row, length)."""
        consts, states = [c.name for c in self.p.consts], [s.name for s in self.states]
        keywords = "".join(f"{c.name}=None, " for c in self.spec.consts)
        lines = [f"def run({', '.join(names)}, *, {keywords}initial_state=None, output_final_state=False, sequences=None,",
                 "        reverse=False):", '    """Outs as a tuple; sequences: the first row and the length of each."""']
        body = [*self._const_lines(), f"B, T = {names[0]}.shape[:2]",
                "seqs = Sequences(B, T, *(sequences or (None, None)), reverse, output_final_state)",
                "initial = dict(initial_state or {})", *self._start_lines(names[0])]
        given = [*names, *(f"initial.get('{s.name}')" for s in self.spec.states)]
        result = [safe(o.name) for o in self.outs] + [f"{s}_final" for s in states]
        body.append(f"{', '.join(result)} = "
                    f"{self._class}.apply(seqs, {_join(consts)}{', '.join(given)})")
        pairs = zip(self.spec.states, states, strict=True)
        final = "{" + ", ".join(f"'{s.name}': {inner}_final" for s, inner in pairs) + "} if output_final_state else None"
        outs = ", ".join(safe(o.name) for o in self.outs)
        body.append(f"return ({outs},), {final}")
        return [*lines, *_indent(body, 1)]

    def _start_lines(self, first: str) -> list[str]:
        """Declared initial states; what their sizes and heads need stands before them."""
        lines = start_lines(dict(zip((s.name for s in self.spec.states), self.states, strict=True)))
        sizes = [s for s in self._sizes() if not s.startswith("B,")] + [f"device = {first}.device"]
        return [*sizes, *lines] if lines else []

    def _const_lines(self) -> list[str]:
        from mixc.codegen.scalars import python_text

        if not self.p.consts:
            return []
        sizes = [s for s in self._sizes() if not s.startswith(("B,", "H ="))]
        needed = {n for c in self.p.consts if c.init is not None for n in _sizes_in(c)}
        lines = [s for s in sizes if s.split(" =")[0] in needed]
        for c, outer in zip(self.p.consts, self.spec.consts, strict=True):
            assert c.init is not None
            lines.append(f"{c.name} = {python_text(c.init)} if {outer.name} is None else float({outer.name})")
        return lines


def _count(kernel: Kernel, d: str) -> str:
    """Programs along a dim."""
    turns = " * BACKWARD['turns']" if d == kernel.turned else ""
    return f"triton.cdiv({d}, B{d}{turns})"


def _sizes_in(c: Decl) -> Iterable[str]:
    from mixc.ir.node import postorder

    assert c.init is not None
    return (n.attr("dim") for n in postorder([c.init]) if n.op == "size")


def _token_kernel(step: Program) -> Kernel | None:
    try:
        return KernelWriter(token_loop(step)).write()
    except SpecError:  # an op without tiles: the chunk's kernel runs single tokens too
        return None


def _camel(name: str) -> str:
    return "".join(w.capitalize() for w in name.split("_")) + ("_" if keyword.iskeyword(name) else "")


def _join(names: list[str]) -> str:
    return "".join(f"{n}, " for n in names)


def _shape(lead: str, dims: tuple[str, ...]) -> str:
    return ", ".join([lead, *dims])


def _indent(lines: list[str], depth: int) -> list[str]:
    return ["    " * depth + x for line in lines for x in line.split("\n")]


def _lines(items: list[str], width: int) -> list[str]:
    out, line = [], ""
    for item in items:
        if line and len(line) + len(item) + 2 > width:
            out.append(line.rstrip())
            line = ""
        line += item + ", "
    return [*out, line.rstrip()] if line else out
