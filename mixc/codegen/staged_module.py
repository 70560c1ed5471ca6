"""The emitted file of a step that runs in parts: their kernels after each other, and one function that calls them in order.

before: modules of `step_1`, which hands S_read on, and of `step_2`
after:  def run(q, k, v, R, ...):
            (S_read,), first = step_1(q, k, v, ...)
            (o,), second = step_2(S_read, R, ...)
"""

from __future__ import annotations

from collections.abc import Callable

from mixc.codegen.calls import call_lines, range_check
from mixc.codegen.config import Config
from mixc.codegen.host_values import past_lines
from mixc.codegen.lines import indent, tuple_text
from mixc.codegen.module import Module, file_text
from mixc.codegen.names import own_names
from mixc.ir.program import Decl, Program
from mixc.passes.context import Context, counts_tokens, looked_back


class StagedModule:
    """Of the step under its user's names, and the modules of its parts, in order."""

    def __init__(self, step: Program, parts: tuple[Program, ...], modules: list[Module]):
        self.step, self.parts, self.modules, self.name = step, parts, modules, step.name

    def text(self, configs: list[Config], public: Program, seen: Context, fixed: frozenset[str]) -> str:
        """The file.  Args: as of `Module.text`, a config a part."""
        for module, config in zip(self.modules, configs, strict=True):
            module.sized(config, fixed=fixed, prefix=module.name.upper() + "_")
        runs = [line for m in self.modules for line in (*m.run_lines(m.name), "", "")]
        calls = [*runs, *self._run(seen), "", "", *range_check(public), "", "", *call_lines(public)]
        return file_text(self.name, self.step.doc, self.modules, seen.step, "\n".join(calls))

    # ------------------------------------------------------------ all parts
    def _run(self, seen: Context) -> list[str]:
        names = own_names(self.step)

        def called(name: str) -> str:
            return names.get(name, name)
        tensors = [d for d in (*self.step.ins, *self.step.params) if d.name not in seen.given]
        keywords = "".join(f"{c.name}=None, " for c in self.step.consts)
        lines = [f"def run({', '.join(called(d.name) for d in tensors)}, *, {keywords}initial_state=None, output_final_state=False, "
                 "sequences=None,", "        reverse=False):", '    """All parts in order: outs as a tuple; sequences: the first row and the length of each."""']
        every = ", ".join(f"{called(d.name)}.shape[{2 if d.role == 'in' else 0}]" for d in tensors)
        body = [f"H = max({every})", *self._past(seen, tensors, called)]
        body += [line for i, p in enumerate(self.parts) for line in self._call(i, p, called)]
        place = {s.name: f"final_{i + 1}" for i, p in enumerate(self.parts) for s in p.states}
        final = [*(f"'{s.name}': {place[s.name]}['{s.name}']" for s in self.step.states), *(["**past.kept()"] if looked_back(seen.step) else []),
                 *(["'pos': past.counted()"] if counts_tokens(seen.step) else [])]
        first = _first(tensors)
        assert first is not None
        same = {o.name for p in self.parts for o in p.outs if _first([d for d in p.ins if not d.exact]) == first}
        outs = [called(o.name) + f".to({called(first.name)}.dtype)" * (o.name not in same) for o in self.step.outs]
        body.append(f"return {tuple_text(outs)}, {{{', '.join(final)}}} if output_final_state else None")
        return [*lines, *indent(body, 1)]

    def _past(self, seen: Context, tensors: list[Decl], called: Callable[[str], str]) -> list[str]:
        """What parts read of earlier tokens and of positions."""
        found = past_lines(seen, called)
        if not found:
            return []
        first = called(next(d for d in tensors if d.role == "in").name)
        sizes = {n: f"{called(d.name)}.shape[{(3 if d.role == 'in' else 1) + i}]" for d in tensors for i, n in enumerate(d.dims)}
        known = {d.name: str(d.size) if d.size else sizes.get(d.name) or sizes.get(d.alias or "", "") for d in self.step.dims}
        used = " ".join(found)
        return [f"B, T, device = *{first}.shape[:2], {first}.device",
                *(f"{called(n)} = {text}" for n, text in known.items() if text and called(n) in used),
                "initial = dict(initial_state or {})", *found]

    def _call(self, i: int, part: Program, called: Callable[[str], str]) -> list[str]:
        own = [d for d in part.ins if not d.exact]
        lines = []
        if len(own) == len(part.ins):  # what other parts hand on has all heads
            heads = ", ".join(f"{called(d.name)}.shape[2]" for d in own)
            first = called(own[0].name)
            lines.append(f"{first}_all = {first} if H in ({heads},) else {first}.repeat_interleave(H // {first}.shape[2], 2)")
        given = [called(d.name) for d in (*part.ins, *part.params)]
        given[0] += "_all" * bool(lines)
        keywords = "".join(f"{c.name}={c.name}, " for c in part.consts)
        head = f"{tuple_text([called(o.name) for o in part.outs])}, final_{i + 1} = {self.modules[i].name}("
        return [*lines, f"{head}{', '.join(given)}, {keywords}initial_state=initial_state, output_final_state=output_final_state,",
                f"{' ' * len(head)}sequences=sequences, reverse=reverse)"]


def _first(tensors: list[Decl]) -> Decl | None:
    """The input whose dtype outs have."""
    ins = [d for d in tensors if d.role == "in"]
    return next((d for d in ins if d.dims), ins[0] if ins else None)
