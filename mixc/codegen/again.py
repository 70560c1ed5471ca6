"""The function of a kernel that takes the forward's states one chunk on: where a backward forms them again.

before: S at the start of a segment
after:  for past in …: S = NAME_bwd_chunk_on(S, past_row, …)     S at the start of the chunk that the program works on
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from mixc.codegen.lines import indent, masks_below, names_read, packed, without_unread, wrapped

CALL = "<one chunk on>"  # stands in a kernel's lines until its arguments are known
_BINDS = re.compile(r"^ *(?:for )?([^\W\d]\w*(?:, [^\W\d]\w*)*)(?: in| =) ", re.MULTILINE)


@dataclass
class Again:
    """`states`: their names; `lines`: what forms their next values, `given`; `row`: the first row of a chunk that was passed,
    as the kernel has it."""

    states: list[str]
    lines: list[str]
    given: list[str]
    row: str
    what: str = "chunk"

    def in_place(self, kernel: str, text: str, arguments: list[str], constexprs: Collection[str]) -> tuple[str, str]:
        """The function's text, and the kernel's with calls of it in place."""
        own, bound = "\n".join(self.lines), _bound(text.split(CALL)[0])
        read = names_read("\n".join([own, *self.given])) - {*_bound(own)}
        args = [n for n in dict.fromkeys([*arguments, *bound, *constexprs]) if n in read and n not in (*self.states, "row")]
        name = f"{kernel}_{self.what}_on"
        states, typed = ", ".join(self.states), [f"{a}: tl.constexpr" if a in constexprs else a for a in args]
        said = f'"""{states} behind a {self.what} that begins at `row`, from {"that" if len(self.states) == 1 else "those"} in front of it."""'
        function = without_unread(["", *indent([said, *self.lines, f"return {', '.join(self.given)}"])])[1:]
        head = f"@triton.jit\ndef {name}(\n" + wrapped([*self.states, "row", *typed]) + "):\n"
        return head + "\n".join(map(masks_below, function)) + "\n", self._called(text, f"{states} = {name}(", args)

    def _called(self, text: str, begin: str, args: list[str]) -> str:
        lines = []
        for line in text.split("\n"):
            if CALL in line:
                lead = line[:-len(CALL)]
                lines += [lead + begin, *(f"{lead}    {x}" for x in packed([*self.states, self.row, *args], 110)), lead + ")"]
            else:
                lines.append(line)
        return "\n".join(lines)


def _bound(text: str) -> list[str]:
    """The names that lines bind, in order."""
    return [name for found in _BINDS.findall(text) for name in found.split(", ")]
