"""The emitted file of a step that runs in parts: their kernels after each other, and one function that calls them in order.

before: modules of `step_1`, which hands S_read on, and of `step_2`
after:  def run(q, k, v, R, ...):
            (S_read,), first = step_1(q, k, v, ...)
            (o,), second = step_2(S_read, R, ...)
"""

from __future__ import annotations

from mixc.codegen.calls import call_lines, range_check
from mixc.codegen.config import Config
from mixc.codegen.file_text import file_text
from mixc.codegen.host_values import past_lines
from mixc.codegen.lines import tuple_text
from mixc.codegen.module import Module
from mixc.codegen.names import own_names, renamed
from mixc.codegen.sizes import const_lines, function_lines, only_needed, size_lines, typed_by
from mixc.ir.program import Decl, Program
from mixc.passes.context import Context


class StagedModule:
    """Of the step under its user's names, and the modules of its parts, in order."""

    def __init__(self, step: Program, parts: tuple[Program, ...], modules: list[Module]):
        self.step, self.parts, self.modules, self.name = step, parts, modules, step.name
        self.own = own_names(step)
        self.inner = renamed(step, self.own)

    def text(self, configs: list[Config], public: Program, seen: Context, fixed: frozenset[str],
             last: list[Config | None], said: str = "") -> str:
        """The file.  Args: as of `Module.text`, a config a part."""
        for module, config, behind in zip(self.modules, configs, last, strict=True):
            module.sized(config, fixed=fixed, prefix=module.name.upper() + "_", last=behind)
        runs = [line for m in self.modules for line in (*m.run_lines(m.name), "", "")]
        calls = [*runs, *self._run(seen, fixed), "", "", *range_check(public), "", "", *call_lines(public)]
        return file_text(self.name, said or self.step.doc, [x for m in self.modules for x in m.all()], seen.step, "\n".join(calls))

    def called(self, name: str) -> str:
        """What a value of the step, or of a part, is called in `run`."""
        return self.own.get(name, name)

    # ------------------------------------------------------------ all parts
    def _run(self, seen: Context, fixed: frozenset[str]) -> list[str]:
        given = {self.called(n) for n in seen.given}
        tensors = [d for d in (*self.inner.ins, *self.inner.params) if d.name not in given]
        taken = [*(d.name for d in tensors), *(f"{c.name}=None" for c in self.inner.consts)]
        body = self._head(seen, tensors, fixed)
        body += [line for i, p in enumerate(self.parts) for line in self._call(i, p)]
        place = {s.name: f"final_{i + 1}" for i, p in enumerate(self.parts) for s in p.states}
        final = [(s.name, f"{place[s.name]}['{s.name}']") for s in self.step.states]
        first = typed_by(tensors).name
        same = {o.name for p in self.parts for o in p.outs if self.called(typed_by([*p.ins, *p.params]).name) == first}
        outs = [self.called(o.name) + f".to({first}.dtype)" * (o.name not in same) for o in self.step.outs]
        return function_lines("run", taken, "All parts in order: outs as a tuple", body, outs, final, seen.step)

    def _head(self, seen: Context, tensors: list[Decl], fixed: frozenset[str]) -> list[str]:
        """Sizes, consts, and what parts read of earlier tokens and of positions."""
        past, sizes = past_lines(seen, self.called), size_lines(tensors, self.inner.dims)
        lines = const_lines(self.inner.consts, self.step.consts, fixed)
        if past:
            lines += [f"device = {tensors[0].name}.device", "initial = dict(initial_state or {})", *past]
        return [*only_needed(sizes, [*lines, "H"]), *lines]

    def _call(self, i: int, part: Program) -> list[str]:
        own = [self.called(d.name) for d in part.ins if not d.exact]
        lines = []
        if len(own) == len(part.ins):  # what other parts hand on has all heads
            heads = ", ".join(f"{n}.shape[2]" for n in own)
            lines.append(f"{own[0]}_all = {own[0]} if H in ({heads},) else {own[0]}.repeat_interleave(H // {own[0]}.shape[2], 2)")
        given = [self.called(d.name) for d in (*part.ins, *part.params, *part.consts)]
        given[0] += "_all" * bool(lines)
        head = f"{tuple_text([self.called(o.name) for o in part.outs])}, final_{i + 1} = {self.modules[i].name}("
        return [*lines, f"{head}{', '.join(given)}, initial_state=initial_state, output_final_state=output_final_state,",
                f"{' ' * len(head)}sequences=sequences, reverse=reverse)"]
