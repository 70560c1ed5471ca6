"""Functions of a kernel, a chunk each: the one that takes the forward's states a chunk on, where a backward forms them
again, and, of a kernel that would be too long to read at once, what it does with a chunk.

before: S at the start of a segment
after:  for past in …: S = NAME_bwd_chunk_on(S, past_row, …)     S at the start of the chunk that the program works on
        for i in …: dS = NAME_bwd_chunk(dS, chunk, …)
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from textwrap import dedent

from mixc.codegen.lines import indent, masks_below, names_read, packed, without_unread, wrapped

LONGEST = 200  # lines of a kernel
CALL = "<one chunk on>"  # stands in a kernel's lines until its arguments are known
CHUNK, END = "<a chunk>", "<its end>"  # stand around what is done with a chunk
_BINDS = re.compile(r"^ *(?:for )?([^\W\d]\w*(?:, [^\W\d]\w*)*)(?: in| [-+*/]?=) ", re.MULTILINE)


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
        said = f"{', '.join(self.states)} behind a {self.what} that begins at `row`, from {_that(self.states)} in front of it."
        bound = [*arguments, *_bound(text.split(CALL)[0])]
        made = _Function(f"{kernel}_{self.what}_on", [*self.states, "row"], said, self.lines, self.given, bound, constexprs)
        lines = [made.called(line[:-len(CALL)], self.states, [*self.states, self.row]) if line.endswith(CALL) else line
                 for line in text.split("\n")]
        return made.text, "\n".join(lines)


def chunk_apart(kernel: str, text: str, arguments: list[str], constexprs: Collection[str]) -> tuple[str, str]:
    """The text of a function of what a kernel does with a chunk, and the kernel's with a call of it; "" and the kernel's as
    it is, where it is not too long or does nothing by chunks."""
    before, marked, behind = text.partition(CHUNK + "\n")
    body, _, after = behind.partition(END)
    lead = before[before.rindex("\n") + 1:] if marked else ""
    whole = [line for line in text.split("\n") if line.strip() not in (CHUNK, END)]
    head = wrapped(arguments) + wrapped([f"{c}: tl.constexpr" for c in constexprs])
    if not marked or "\n".join([head, *map(masks_below, whole)]).count("\n") + 2 < LONGEST:
        return "", "\n".join(whole)
    lines, bound = dedent(body.rstrip(" ")).rstrip("\n").split("\n"), _bound(before)
    carried = [n for n in dict.fromkeys(_bound("\n".join(lines))) if n in bound]
    from_to = ("in front of", "behind") if "chunks - 1 - i" in before else ("behind", "in front of")
    way = f"{', '.join(carried)} {from_to[0]} a chunk, from {_that(carried)} {from_to[1]} it; what"
    said = f"{way if carried else 'What'} is formed of its rows is stored."
    first = [*carried, "chunk"]
    made = _Function(f"{kernel}_chunk", first, said, lines, carried, [*arguments, *bound], constexprs)
    return made.text, before[:len(before) - len(lead)] + made.called(lead, carried, first) + after


class _Function:
    """The text of a function of these lines, and of calls of it.

    Args:
        first: the arguments that a call gives in its own words. given: what it returns. bound: what there is for further
            arguments where it is called."""

    def __init__(self, name: str, first: list[str], said: str, lines: list[str], given: list[str], bound: list[str],
                 constexprs: Collection[str]):
        own = "\n".join(lines)
        read = names_read("\n".join([own, *given])) - ({*_bound(own)} - {*first})
        self.name, self.args = name, [n for n in dict.fromkeys([*bound, *constexprs]) if n in read and n not in first]
        typed = [f"{a}: tl.constexpr" if a in constexprs else a for a in self.args]
        returned = [f"return {', '.join(given)}"] if given else []
        body = without_unread(["", *indent([f'"""{said}"""', *lines, *returned])])[1:]
        self.text = f"@triton.jit\ndef {name}(\n" + wrapped([*first, *typed]) + "):\n" + "\n".join(map(masks_below, body)) + "\n"

    def called(self, lead: str, made: list[str], given: list[str]) -> str:
        begin = f"{', '.join(made)} = {self.name}(" if made else f"{self.name}("
        return "\n".join([lead + begin, *(f"{lead}    {x}" for x in packed([*given, *self.args], 110)), lead + ")"])


def _that(names: list[str]) -> str:
    return "that" if len(names) == 1 else "those"


def _bound(text: str) -> list[str]:
    """The names that lines bind, in order."""
    return [name for found in _BINDS.findall(text) for name in found.split(", ")]
