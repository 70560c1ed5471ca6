"""The emitted file: kernels, launches, an autograd function, and the functions a user calls.

The text needs torch and triton only.  It has one shape for every spec; what differs are the kernels,
which come from the launches, and the names, which are the spec's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from mixc.codegen.calls import call_lines, range_check
from mixc.codegen.config import Config, Tile
from mixc.codegen.file_text import file_text
from mixc.codegen.host_products import around_lines
from mixc.codegen.host_values import past_lines
from mixc.codegen.kernel import Kernel, KernelWriter, safe
from mixc.codegen.lines import indent, join, packed, shape
from mixc.codegen.names import class_name
from mixc.codegen.segment_kernel import SegmentWriter
from mixc.codegen.sizes import const_lines, function_lines, only_needed, size_lines, typed_by
from mixc.codegen.starts import start_lines
from mixc.codegen.tiles import refuse
from mixc.errors import SpecError
from mixc.ir.launch import Launch, Store
from mixc.ir.node import JOINT
from mixc.ir.program import Decl, Program
from mixc.passes.around import Around
from mixc.passes.behind import Behind
from mixc.passes.beside import of_one
from mixc.passes.context import Context
from mixc.passes.partition import fused_backward, fused_forward, of_a_chunk, plans, token_loop


class Module:
    """The module of a spec, from its chunk program and that program's backward: the kernels, then the text."""

    by_rule = False  # has it `sizes`, by a rule, and none that are tuned?
    backward: Program | None = None  # None: each direction is one launch, and not to be cut
    kept_later = False  # are the buffers that are kept made after the initial states are known?

    each: tuple[str, ...] = ()
    around: Around | None = None  # the step of which this is what stands between products over all tokens
    behind: tuple[Behind, Module] | None = None  # what stands behind the last of them, and its kernels
    typed_by_call = False  # have the products' operands the dtype that `seqs` tells?

    def __init__(self, forward: Program, backward: Program, step: Program | None = None, spec: Program | None = None,
                 each: tuple[str, ...] = ()):
        """
        Args:
            step: what happens to one token, for a kernel that decodes (None: the chunk's kernel does).
            spec: the step under its user's names, of as many dims and values in the same order (None: these are they).
            each: dims of which a program has one entry.
        """
        self.each = each
        self.p, self.backward, self.spec = forward, backward, spec or forward
        self.token = _token_kernel(step) if step is not None and step.decls == forward.decls else None
        bwd = fused_backward(forward, backward)
        self.starts = bwd.starts
        self.launches = {"fwd": fused_forward(forward, self.starts), "bwd": bwd}
        self.name = forward.name
        self.states, self.outs = forward.states, forward.outs
        self._written: dict[tuple[str, str, bool], Kernel] = {}

    @property
    def inner(self) -> Program:
        """What `spec` is under the names of the kernels."""
        return self.around.step if self.around else self.p

    @cached_property
    def own(self) -> dict[str, str]:
        """What kernels call the dims of the spec."""
        inner = (d.name for d in self.inner.dims if JOINT not in d.name)
        return dict(zip((d.name for d in self.spec.dims), inner, strict=False))

    @cached_property
    def plans(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """The launches that the forward and the backward may be cut into, by names."""
        if self.backward is None:
            return [(("fwd",), ("bwd",))]
        def named(cut: tuple[Launch, ...]) -> tuple[str, ...]:
            names = tuple(launch.name.removeprefix(self.name + "_") for launch in cut)
            self.launches |= {n: launch for n, launch in zip(names, cut, strict=True) if n not in self.launches}
            return names
        return [(named(fwd), named(bwd)) for fwd, bwd in plans(self.p, self.backward, self.starts)
                if all({*self.each} <= {*launch.split} for launch in (*fwd, *bwd))]

    def sizes(self, sizes: Mapping[str, int], operand: int) -> Config:
        """Those of `by_rule`.

        Args:
            sizes: of every dim. operand: bytes of an input's value."""
        raise NotImplementedError

    @property
    def kernels(self) -> dict[str, Kernel]:
        """Those of the fused schedule."""
        return {n: self.kernel(n) for n in ("fwd", "bwd")}

    def kernel(self, launch: str, turned: str = "", single: bool = False) -> Kernel:
        """Of the launch so named; `turned`: whose programs take blocks of that dim in turn; `single`: where a segment is
        one chunk, if that makes a difference."""
        if launch not in self.launches:
            assert self.plans  # which adds what it finds
        found = self.launches[launch]
        key = launch, turned, single and found.alone
        if key not in self._written:
            writer = SegmentWriter if found.alone else KernelWriter
            found = of_a_chunk(found) if key[2] else found
            if not {*self.each} <= {*found.split}:
                raise refuse(f"programs do not divide {', '.join(self.each)}")
            self._written[key] = writer(of_one(found, self.each) if self.each else found, turned).write()
        return self._written[key]

    def kernel_of(self, launch: str, tile: Tile, segment: int) -> Kernel:
        """The one that runs with this tile."""
        return self.kernel(launch, tile.turned if tile.turns > 1 else "", tile.chunk == segment)

    def parts(self, config: Config) -> list[list[tuple[str, Kernel]]]:
        """The launches of the forward and of the backward with this config, in order."""
        given = {n for n, _ in config.tiles}
        whole = next((p for p in self.plans if {*p[0], *p[1]} <= given), None) if given - {"fwd", "bwd"} else None
        return [[(n, self.kernel_of(n, config.tile(n), config.segment)) for n in cut] for cut in whole or (("fwd",), ("bwd",))]

    # ------------------------------------------------------------ text
    def text(self, config: Config, public: Program | None = None, seen: Context | None = None,
             fixed: frozenset[str] = frozenset(), last: Config | None = None) -> str:
        """The file, its launches with the sizes of `config`.

        Args:
            public: what the user calls: complex, perhaps. seen: the step of its parts, and how what it reads of earlier
                tokens and of positions became inputs of this one. fixed: consts that are as they are declared.
            last: sizes of the kernels behind products (None: torch does what they do)."""
        self.sized(config, seen, fixed, last=last)
        calls = "\n".join([*self.run_lines(), "", "", *range_check(public or self.spec), "", "", *call_lines(public or self.spec)])
        return file_text(self.name, self.p.doc, self.all(), self.seen.step, calls)

    def sized(self, config: Config, seen: Context | None = None, fixed: frozenset[str] = frozenset(), prefix: str = "",
              last: Config | None = None) -> None:
        """Sets what the text is written for; `prefix`: of what its sizes are called, in a file of several parts."""
        self.prefix, self.has_last = prefix, last is not None
        if self.behind and last:
            self.behind[1].sized(last, prefix=prefix + "BEHIND_")
        self.config, self.seen, self.fixed = config.named(self.own), seen or Context(self.spec, self.spec, {}), fixed
        self.fwd, self.bwd = self.parts(self.config)

    def all(self) -> list[Module]:
        """With the one behind products."""
        return [self, *([self.behind[1]] if self.behind and self.has_last else [])]

    def kernel_texts(self) -> list[str]:
        return [k.text for k in (*(k for _, k in self.fwd), *([self.token] if self.token else []), *(k for _, k in self.bwd))]

    def prelude(self) -> str:
        """What its kernels call beside what all may."""
        return ""

    @property
    def _splits(self) -> bool:
        return any(k.launch.alone for _, k in (*self.fwd, *self.bwd))

    def size_lines(self) -> list[str]:
        kernels = (*self.fwd, *self.bwd)
        kept = any("SEGMENT" in k.constexprs for _, k in kernels)
        return [*(f"{self._called(n)} = {self._tile(k, n)}" for n, k in kernels),
                *([f"{self.prefix}STEP = {self._tile(self.token, 'step')}  # one token"] if self.token else []),
                *([f"{self._segment} = {self.config.segment}  # rows from one kept state to the next"] if kept else [])]

    @property
    def _segment(self) -> str:
        return self.prefix + "SEGMENT"

    def _called(self, launch: str) -> str:
        """What the sizes of a launch are called."""
        direction, _, rest = launch.partition("_")
        words, _, dim = rest.rpartition("_")  # the dim keeps its letters: FORWARD_FOR_K
        name = {"fwd": "FORWARD", "bwd": "BACKWARD"}[direction]
        return self.prefix + "_".join(filter(None, (name, words.upper(), dim if words else dim.upper())))

    def _tile(self, kernel: Kernel, launch: str) -> str:
        tile = self.config.tile(launch)
        split = [d for d in kernel.launch.split if d in kernel.dims and d not in kernel.launch.each]
        blocks = "".join(f"B{d}={dict(tile.blocks).get(d, 1 << 30)}, " for d in split)
        turns = f"turns={tile.turns}, " if kernel.turned else ""
        return f"dict(C={tile.chunk}, {blocks}{turns}warps={tile.warps}, stages={tile.stages})"

    # ------------------------------------------------------------ the autograd function
    def _tensors(self) -> list[Decl]:
        return [*self.p.ins, *self.p.params]

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
        return size_lines(self._tensors(), [d for d in self.p.dims if d.name not in self.p.inner])

    def _blocks(self, kernel: Kernel, tile: str) -> list[str]:
        split = kernel.launch.split
        limit = {d: f", {tile}['B{d}']" for d in split}
        own = {d: f"triton.next_power_of_2({d})" for d in kernel.narrow} | dict.fromkeys(kernel.launch.each, "1")
        own = {d: f"block({d}{limit.get(d, '')})" for d in kernel.dims} | own
        return [f"B{d} = {own[d]}" for d in kernel.dims]

    def _forward_body(self, names: list[str], initial: list[str], consts: list[str]) -> list[str]:
        lines = [*self._sizes(), "device, count = " + f"{names[0]}.device, seqs.count",
                 *(["keep = any(ctx.needs_input_grad)"] if self.starts or self._handed else [])]
        lines += [f"{n} = features_packed({n}, {3 if d.role == 'in' else 1})" if d.role == "in" else f"{n} = {n}.contiguous()"
                  for n, d in zip(names, self._tensors(), strict=True)]
        for o in self.outs:
            lines.append(f"{o.name} = {self._fresh('B, T, H', o, self._out_dtype(o))}")
        for s in self.states:
            lines.append(f"{s.name}_final = torch.empty({shape('count, H', s.dims)}, dtype=torch.float32, device=device)")
        if (self.starts or self._splits) and not self.kept_later:
            lines += self._kept_lines()
        lines += [f"{self._room(s)} if keep else None" for s in self._handed]
        if initial:
            lines.append(f"has_initial = {' or '.join(f'{n} is not None' for n in initial)}")
            lines += [f"if has_initial:\n    {s.name}_initial = {s.name}_final.new_zeros({s.name}_final.shape) "
                      f"if {s.name}_initial is None else {s.name}_initial.contiguous()" for s in self.states]
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
        saved = [*names, *self._saved()]
        lines += [f"ctx.save_for_backward({', '.join(saved)})",
                  f"ctx.seqs{''.join(', ctx.' + c for c in consts)} = seqs{''.join(', ' + c for c in consts)}"]
        if initial:
            lines += ["ctx.has_initial = (" + "".join(f"{n} is not None and ctx.needs_input_grad[{1 + len(consts) + len(names) + i}], "
                                                       for i, n in enumerate(initial)) + ")"]
        lines += ["ctx.set_materialize_grads(False)", f"return {', '.join(outs)}"]
        return lines

    def _forward_launches(self) -> list[str]:
        if len(self.fwd) > 1:
            return [x for n, k in self.fwd for x in (*self._blocks(k, self._called(n)), *self._launch(k, self._called(n)))]
        (_, kernel), = self.fwd
        return [self._forward_tile(), *self._blocks(kernel, "tile"), *self._launch(kernel, "tile")]

    def _held(self, kernel: Kernel) -> list[str]:
        return []

    def _forward_tile(self) -> str:
        sizes = self._called(self.fwd[0][0])
        if self.config.tile(self.fwd[0][0]).chunk < 16:
            return f"tile = {sizes}"
        return f"tile = dict({sizes}, C=16) if seqs.T <= 16 else {sizes}"

    def _saved(self) -> list[str]:
        """What the forward keeps for the backward, besides what it was given."""
        at = self.starts or any(k.launch.alone for _, k in self.bwd)
        return [*(f"{s}_starts" for s in self.starts), *(["segment_at"] if at else []), *(s.name for s in self._handed)]

    def _room(self, s: Store) -> str:
        """Room for rows that are handed on: never in fp16, whose range they may leave."""
        if any(s.name in launch.in_fp32() for launch in self.launches.values()):
            return f"{s.name} = torch.empty({shape('B, T, H', s.dims)}, dtype=torch.float32, device=device)"
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

    def _programs(self, kernel: Kernel, tile: str) -> list[str]:
        """Factors of the number of programs, but for split dims."""
        return ["bound" if kernel.launch.alone else "count", "H"]

    def _fresh(self, lead: str, d: Decl, dtype: str) -> str:
        """Room for an out, or for the gradient of an in; `fresh` for what products over all tokens, or parts, may read."""
        read = d.exact or (self.around and d.name in {*self.around.front, *self.around.read})
        return (f"fresh({shape(lead, d.dims)}, dtype={dtype}, seqs=seqs, device=device)" if read else
                f"torch.empty({shape(lead, d.dims)}, dtype={dtype}, device=device)")

    def _out_dtype(self, out: Decl | None = None) -> str:
        """That of what is kept and of operands; of an out what it is allocated in."""
        if out is not None and out.exact:
            return "torch.float32"
        return "seqs.dtype" if self.around or self.typed_by_call else self._typed()

    def _typed(self) -> str:
        """The dtype of the inputs."""
        given = [d for d in self.inner.ins if not d.exact] or [*self.inner.params, *self.inner.ins]
        first = next((d for d in given if d.dims), given[0])
        return f"{safe(first.name)}.dtype"

    def _grid(self, kernel: Kernel, tile: str) -> str:
        """How many programs there are."""
        return " * ".join([*self._programs(kernel, tile), *(_count(kernel, d, tile) for d in kernel.launch.split if d in kernel.dims)])

    def _launch(self, kernel: Kernel, tile: str) -> list[str]:
        """The call of a kernel, its arguments by name."""
        grid = self._grid(kernel, tile)
        given: list[str] = []
        for a in kernel.arguments:
            given.append(self._argument(a, kernel))
        reverse = kernel.launch.reverse
        pairs = [*(f"{d}={d}" for d in kernel.dims), f"C={tile}['C']", *(f"B{d}=B{d}" for d in kernel.dims), *([f"TURNS={tile}['turns']"] if kernel.turned else []), "SIGN=seqs.sign",
                 "RAGGED=seqs.ragged"]
        pairs += [f"SEGMENT={self._segment}"] * ("SEGMENT" in kernel.constexprs) + ["KEEP=keep"] * ("KEEP" in kernel.constexprs)
        pairs += self._held(kernel)
        if "HAS_INITIAL" in kernel.constexprs:
            pairs.append(f"HAS_INITIAL={'has_final' if reverse else 'has_initial'}")
            wanted = any(self._maker(c.name + "_initial") is kernel for c in kernel.launch.carries) if reverse else True
            pairs.append(f"STORE_FINAL={('any(ctx.has_initial)' if wanted else False) if reverse else 'seqs.want_final'}")
        over = "".join(f", {d}" for d in self.inverse_over(kernel))
        pairs += [f"OPERAND=operand({self._out_dtype()}{over})", f"PRECISION=precision({self._out_dtype()})",
                  f"STAGES={tile}['stages']", f"num_warps={tile}['warps']", f"**registers({tile}['warps'])"]
        call = [f"if {grid} > 0:", f"    {kernel.launch.name}[({grid},)]("]
        call += [f"        {line}" for line in packed([*given, *pairs], 100)]
        return [*call, "    )"]

    def inverse_over(self, kernel: Kernel | None = None) -> list[str]:
        """The dims that the products inside inverses sum over: a kernel's own, or where it loads rows all, as whoever
        formed them (None: all)."""
        launches = [kernel.launch] if kernel is not None and not kernel.given else self.launches.values()
        return sorted({d for launch in launches for d in launch.inverse_over()})

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
                 *self._sizes(), f"device, count = {names[0]}.device, seqs.count"]
        for o in self.outs:
            lines.append(f"d{o.name} = torch.zeros({shape('B, T, H', o.dims)}, dtype={self._out_dtype(o)}, device=device) "
                         f"if d{o.name} is None else d{o.name}.contiguous()")
        if self.states:
            lines.append(f"has_final = {' or '.join(f'd{s.name}_final is not None' for s in self.states)}")
        if any(k.launch.alone for _, k in self.bwd):
            lines += [f"bound = seqs.pieces({self._segment})[0]", "piece_of = pieces_of(segment_at, bound)"]
        for name, kernel in self.bwd:
            lines += self._blocks(kernel, self._called(name))
            lines += [f"parts_{d} = {_count(kernel, d, self._called(name))}" for d in kernel.launch.summed]
            lines += [*self._state_buffers(kernel), *self._gradient_buffers(kernel), *self._launch(kernel, self._called(name))]
        grads = [f"over_group({self._summed('d' + d.name, d.dims, safe(d.name))}, {safe(d.name)}, 2)" for d in self.p.ins]
        grads += [f"over_group({self._param_gradient(d)}, {safe(d.name)}, 0)" for d in self.p.params]
        grads += [f"{self._summed(f'd{s.name}_initial', s.dims)} if ctx.has_initial[{i}] else None"
                  for i, s in enumerate(self.states)]
        lines.append(f"return (None, {'None, ' * len(consts)}\n" + ",\n".join(f"        {g}" for g in grads) + ")")
        return lines

    def _maker(self, name: str) -> Kernel:
        """The kernel of the backward that forms a gradient, or the first that carries one to where a sequence begins."""
        def forms(launch: Launch) -> bool:
            carried = not launch.alone and name.removesuffix("_initial") in {c.name for c in launch.carries}
            return carried if name.endswith("_initial") else name in {s.name for s in launch.stores}
        return next((k for _, k in self.bwd if forms(k.launch)), self.bwd[-1][1])

    def _state_buffers(self, kernel: Kernel) -> list[str]:
        """Cotangents of states where a sequence begins, and where a segment ends."""
        launch, lines = kernel.launch, list[str]()
        for s in self.states:
            if self._maker(f"d{s.name}_initial") is kernel:
                lines += [f"d{s.name}_initial = torch.empty({shape(self._parts(kernel, s.dims) + 'count, H', s.dims)}, "
                          "dtype=torch.float32, device=device)",
                          f"if has_final:\n    d{s.name}_final = torch.zeros_like(d{s.name}_initial) if d{s.name}_final is None "
                          f"else d{s.name}_final.contiguous()"]
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
        ins, params = ([d for d in of if self._maker(f"d{d.name}") is kernel] for of in (self.p.ins, self.p.params))
        for d in ins:
            n, parts = safe(d.name), self._parts(kernel, d.dims)
            lead = f"{parts}B, T, H"
            whole = f"{n}.shape[2] == H" + (f" and {parts[:-2]} == 1" if parts else "")
            added = kernel.turned and kernel.turned not in d.dims
            dtype = "torch.float32" if added else f"{n}.dtype if {whole} else torch.float32"
            lines.append(f"d{d.name} = {self._fresh(lead, d, dtype)}")
        for d in params:
            lead = f"{self._parts(kernel, d.dims)}{'bound' if kernel.launch.alone else 'count'}, H"
            lines.append(f"d{d.name} = torch.empty({shape(lead, d.dims)}, dtype=torch.float32, device=device)")
        return lines

    # ------------------------------------------------------------ what a user calls
    def run_lines(self, name: str = "run") -> list[str]:
        inner, states = self.inner, [s.name for s in self.states]
        tensors = [*inner.ins, *inner.params]
        given = [d for o, d in zip((*self.spec.ins, *self.spec.params), tensors, strict=True) if o.name not in self.seen.given]
        first = safe(given[0].name)
        taken = [*(safe(d.name) for d in given), *(f"{c.name}=None" for c in inner.consts)]
        starts = start_lines(dict(zip((s.name for s in self.spec.states), self.states, strict=True)))
        past, (front, behind) = self._past_lines(), self._around_lines()
        needs_device = starts or past or front or behind
        body = [*const_lines(inner.consts, self.spec.consts, self.fixed),
                "seqs = Sequences(B, T, *(sequences or (None, None)), reverse, output_final_state)",
                "initial = dict(initial_state or {})", *([f"device = {first}.device"] if needs_device else []), *starts, *past, *front]
        values = [*(safe(d.name) for d in self._tensors()), *(f"initial.get('{s.name}')" for s in self.spec.states)]
        result = [*(safe(o.name) for o in self.outs), *(f"{s}_final" for s in states)]
        body.append(f"{', '.join(result)} = {self._class}.apply(seqs, {join([c.name for c in self.p.consts])}{', '.join(values)})")
        body += behind
        body = [*only_needed(size_lines(given, inner.dims), body), *body]
        final = [(s.name, f"{kernel}_final") for s, kernel in zip(self.spec.states, states, strict=True)]
        typed = f"{safe(typed_by(given).name)}.dtype"
        outs = [f"{safe(d.name)}.to({typed})" if not d.exact and typed != self._typed() else safe(d.name) for d in inner.outs]
        return function_lines(name, taken, "Outs as a tuple", body, outs, final, self.seen.step)

    def _around_lines(self) -> tuple[list[str], list[str]]:
        """What is formed of all tokens in front of the kernels, and behind them."""
        if self.around is None:
            return [], []
        last = self.behind if self.has_last else None
        return around_lines(self.around, self._typed(), self._tensors(), last and (last[0], last[1]._class))

    def _past_lines(self) -> list[str]:
        """What the kernels read of earlier tokens and of positions."""
        names = self.own | {o.name: safe(d.name) for o, d in zip((*self.spec.ins, *self.spec.params, *self.spec.consts),
                                                                 (*self.inner.ins, *self.inner.params, *self.inner.consts), strict=True)}
        return past_lines(self.seen, names.__getitem__)


def _count(kernel: Kernel, d: str, tile: str) -> str:
    """Programs along a dim."""
    turns = f" * {tile}['turns']" if d == kernel.turned else ""
    return f"triton.cdiv({d}, B{d}{turns})"


def _token_kernel(step: Program) -> Kernel | None:
    try:
        return KernelWriter(token_loop(step)).write()
    except SpecError:  # an op without tiles: the chunk's kernel runs single tokens too
        return None
