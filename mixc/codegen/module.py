"""The emitted file: kernels, launches, an autograd function, and the functions a user calls.

The text needs torch and triton only.  It has one shape for every spec; what differs are the kernels,
which come from the launches, and the names, which are the spec's own.
"""

from __future__ import annotations

from mixc.codegen.calls import call_lines, range_check
from mixc.codegen.config import Config
from mixc.codegen.file_text import file_text
from mixc.codegen.function import Function
from mixc.codegen.host_products import around_lines
from mixc.codegen.host_values import past_lines, start_lines
from mixc.codegen.kernel import safe
from mixc.codegen.lines import join
from mixc.codegen.sizes import const_lines, function_lines, only_needed, size_lines, typed_by
from mixc.ir.program import Program
from mixc.passes.behind import Behind
from mixc.passes.context import Context


class Module(Function):
    """The module of a spec: the kernels, their launches, and what a user calls."""

    behind: tuple[Behind, Module] | None = None  # what stands behind the last products, and its kernels

    def text(self, config: Config, public: Program | None = None, seen: Context | None = None,
             fixed: frozenset[str] = frozenset(), last: Config | None = None, said: str = "") -> str:
        """The file, its launches with the sizes of `config`.

        Args:
            public: what the user calls: complex, perhaps. seen: the step of its parts, and how what it reads of earlier
                tokens and of positions became inputs of this one. fixed: consts that are as they are declared.
            last: sizes of the kernels behind products (None: torch does what they do). said: the spec, for readers."""
        self.sized(config, seen, fixed, last=last)
        calls = "\n".join([*self.run_lines(), "", "", *range_check(public or self.spec), "", "", *call_lines(public or self.spec)])
        return file_text(self.name, said or self.p.doc, self.all(), self.seen.step, calls)

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

    def prelude(self) -> str:
        """What its kernels call beside what all may."""
        return ""

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
        told = [d for d in given if safe(d.name) not in self.backs]  # what kernels look back at is not there
        body = [*only_needed(size_lines(told, inner.dims), body), *body]
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
        return past_lines(self.seen, names.__getitem__, self.backs)
