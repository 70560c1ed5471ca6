"""What the values of a kernel are called: by what they are made of, in the field's words.

    prefix_k   a decay times k                 q_beta_k    the products of q and beta_k
    A, X, u    scores under decays, the inverse of a triangular system, its solution
    dA         the cotangent of A: a product of one and what A was multiplied with (`cotangents`)

A name is made of few words, or is one word for the operation: nobody reads `q_S_plus_A_u_less_v`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mixc.ir.launch import Launch
from mixc.ir.node import COL, ROW, Node, fold, make, source, substitute
from mixc.ir.ops import OPS
from mixc.ir.program import Program, free
from mixc.passes.cotangents import cotangents

LONGEST = 16
_HANDED = "_handed"
# what a value is called where the names of its parts are too long, or it has none
_GENERAL = {"contract": "product", "mul": "scaled", "add": "total", "sub": "rest", "neg": "negative", "where": "chosen", "sum": "sum",
            "span_contract": "product", "mask": "masked", "live": "masked"}
_BETWEEN = {"contract": "_", "span_contract": "_", "mul": "_", "guard": "_", "sub": "_less_", "div": "_over_"}
_BEHIND = {"cumsum": "cumsum", "cumprod": "cumprod", "segsum": "span", "segprod": "decay", "previous": "before", "square": "squared",
           "max": "max", "min": "min", "prod": "prod", "norm": "norm", "softmax": "softmax", "neg": "negated", "crossing": "crossing",
           "lt": "bound", "le": "bound"}
# letters that papers have for a value, and words for where the spec has these letters for others
_LETTERS = {"A": "scores", "D": "decay", "L": "lower", "X": "inverse", "u": "solved"}
# what changes nothing of a value but where it is none, or how far it goes: told apart from the value by a word behind
CHANGED = {"live": "live", "mask": "masked", "where": "bounded", "maximum": "bounded", "minimum": "bounded", "clamp": "bounded"}
_VIEWS = ("rename", "expand", "stop_gradient", "to_number", "once", "mask")


class ValueNames:
    """Called with a value, gives its name, which others may have too.

    Args:
        nodes: all values of the kernel.
        wanted: names of values that have one: what is stored, what is carried on.
        program: what the kernel is of, whose spec may have names for values.
        forward: the program of which the kernel forms cotangents."""

    def __init__(self, nodes: list[Node], wanted: Mapping[Node, str], program: Program, forward: Program | None = None):
        self.wanted, self.known, self.known_forward = dict(wanted), dict[Node, str](), dict[Node, str]()
        self.looks, self.numbers = dict[Node, int](), dict[tuple[Any, ...], int]()
        self.locals = {self._look(x): name for name, x in program.locals if x.args}
        for name, x in program.locals:  # what an activation takes
            if len(x.args) == 1 and x.args[0].args and OPS[x.op].elementwise:
                self.locals.setdefault(self._look(x.args[0]), f"{name}_in")
        used = {*program.names, *(name for name, _ in program.locals)}
        self.letters = {a: word if a in used else a for a, word in _LETTERS.items()}
        D = self.letters["D"]
        self.spans = {"incl": D, "strict": f"{D}_strict", "excl": f"{D}_excl"}
        self.inverted = {source(n.args[0], _VIEWS) for n in nodes if n.op == "unit_inverse"}
        self.of = cotangents(nodes, forward) if forward is not None else {}
        self.right = {source(y, _VIEWS) for n in nodes if (y := _right_side(n)) is not None}
        self.many = len({self._look(n) for n in nodes if n not in self.of and n not in self.inverted and self._scores(n)}) > 1
        ends = [] if forward is None else [(r.name, source(r.value)) for r in forward.results]
        self.ends = {x: name for name, x in reversed(ends) if x.args}

    def __call__(self, node: Node) -> str:
        name = fold([node], self._named, self.known)[0]
        return name or _GENERAL.get(node.op, node.op)

    def _named(self, n: Node, parts: list[str]) -> str:
        """From the names of its arguments; "" where that is much."""
        if n in self.wanted:
            return self.wanted[n]
        made = self._made(n, parts)
        if n not in self.of or (made and not any(a.args for a in n.args)):
            return made
        of = (self.ends.get(b) or fold([b], self._made, self.known_forward)[0] for b in self.of[n])
        none = "" if made in self.letters.values() else made  # it is no `A` itself
        return next((f"d_{name}" if "_" in name else "d" + name for name in of if name), none)

    def _look(self, n: Node) -> int:
        """A number for what a value is of one token, whatever is done for all of a chunk."""
        def look(n: Node, parts: list[int]) -> int:
            if n.op in (*_VIEWS, "live"):
                return parts[0]
            attrs = tuple((k, v) for k, v in n.attrs if k not in ("dims", "over", "out"))
            found = n.op, attrs, tuple(sorted(parts) if n.op in ("add", "mul", "contract") else parts)
            return self.numbers.setdefault(found, len(self.numbers))
        return fold([n], look, self.looks)[0]

    def _made(self, n: Node, parts: list[str]) -> str:
        if self.locals and n.op not in _VIEWS and (name := self.locals.get(self._look(n))):
            return name
        if n in self.inverted:
            return self.letters["L"]
        name = self._word(n, parts)
        return name if name and len(name) <= LONGEST else "rhs" if n in self.right else ""

    def _word(self, n: Node, parts: list[str]) -> str:
        if not n.args:
            return _leaf(n)
        if n.op in (*_VIEWS, "live"):
            return parts[0]
        if n.op == "unit_inverse":
            return self.letters["X"]
        if n.op == "exp":
            return self._decay(n.args[0]) or (f"exp_{parts[0]}" if parts[0] else "")
        if n.op == "flatten":
            return f"{parts[0] or 'features'}_{''.join(n.attr('of'))}"
        if _right_side(n) is not None:
            return self.letters["u"]
        if self._scores(n):
            named = [p for p in parts[:2] if p not in self.spans.values()]
            return "_".join([self.letters["A"], *(named if self.many and all(named) else [])])
        if n.op == "sum":
            return f"{parts[0]}_total" if parts[0] and n.args[0].op not in ("mul", "guard") else parts[0]
        if n.op in ("where", "maximum", "minimum", "clamp"):
            return next((p for a, p in zip(n.args, parts, strict=True) if p and a.kind != "bool" and a.op != "number"), "")
        if n.op == "sub" and (of := _grain(n)) is not None:
            return f"{parts[0]}_{of}" if parts[0] else ""
        if n.op in ("contract", "sub"):  # a read, whatever its decay is
            parts = [p.removeprefix("prefix_").removeprefix("suffix_") for p in parts]
        if n.op in _BETWEEN:
            named = [p for a, p in zip(n.args[:2], parts, strict=False) if a.op != "number"]
            return _BETWEEN[n.op].join(dict.fromkeys(named) if n.op == "mul" else named) if all(named) else ""
        if n.op in _BEHIND:
            named = [p for p in parts if p]
            after = "_after" if n.attr("reverse") else ""
            return f"{named[0]}_{_BEHIND[n.op]}{after}" if named else ""
        return f"{n.op}_{parts[0]}" if len(n.args) == 1 and OPS[n.op].elementwise and parts[0] else ""

    def _scores(self, n: Node) -> bool:
        """Are they of pairs of rows, under the decay between them?"""
        decayed = n.op == "span_contract" or (n.op == "mul" and any(a.op == "exp" and a.args[0].op == "segsum" for a in n.args))
        return decayed and {ROW, COL} <= {*n.dims}

    def _decay(self, log: Node) -> str:
        """A product of decays, by which rows it is of."""
        if log.op == "segsum":
            return self.spans[log.attr("reach")]
        if log.op == "cumsum":
            return "suffix" if log.attr("reverse") else "prefix"
        return "whole" if log.op == "sum" else ""


def handed_by_name(launches: tuple[Launch, ...], forward: Program) -> tuple[Launch, ...]:
    """The launches with the rows that one hands to another called what the value is where it is formed.

    before: u = X @ rhs, stored as `handed`            after: stored as `u_handed`"""
    taken, to = {*forward.names, *(s.name for launch in launches for s in launch.stores)}, dict[str, str]()
    for launch in launches:
        rows = [s for s in launch.stores if s.result == "save"]
        names = ValueNames(launch.body(), {}, launch.program, forward if launch.reverse else None) if rows else None
        to |= {s.name: free(f"{names(source(s.value))}{_HANDED}", taken, "") for s in rows if names is not None}

    def renamed(launch: Launch) -> Launch:
        read = [n for n in launch.nodes() if n.op == "saved" and n.attr("name") in to]
        leaves = {n: make("saved", **dict(n.attrs) | {"name": to[n.attr("name")]}) for n in read}
        found = launch.with_nodes(lambda values: substitute(values, leaves)) if leaves else launch
        return replace(found, stores=tuple(replace(s, name=to.get(s.name, s.name)) for s in found.stores))
    return tuple(map(renamed, launches)) if to else launches


def _grain(n: Node) -> str | None:
    """Of a phase that is taken apart (`decay.Turn`): is it the multiple of the grain, or what is left?"""
    x, y = n.args[0], source(n.args[1], _VIEWS)
    if y.op == "mod" and y.args[0] is x:
        return "coarse"
    return "fine" if y.op == "sub" and y.args[0] is x and _grain(y) == "coarse" else None


def _right_side(n: Node) -> Node | None:
    """y, if it is (I + L)^-1 y; with the system transposed it is not."""
    for a, y in (n.args, n.args[::-1]) if n.op == "contract" else ():
        x = source(a)
        if x.op == "unit_inverse" and a.dims[x.dims.index(COL)] not in n.dims:
            return y
    return None


def _leaf(n: Node) -> str:
    if n.op == "cot":
        return "d" + n.attr("name").rstrip("'")
    return str(n.attr("name", "")).removesuffix(_HANDED) if n.op in ("in", "param", "state", "const", "saved") else ""


_LEGEND = (
    ("prefix", "prefix[t]", "the decay of the rows of a chunk up to row t"),
    ("suffix", "suffix[t]", "that of the rows after t"),
    ("whole", "whole", "that of all its rows"),
    ("D", "{}[t, s]", "that from row s to row t, 0 where t does not see s"),
    ("A", "{}[t, s]", "what row t reads of what row s wrote, decayed"),
    ("L", "{}[t, s]", "what row t corrects of what row s wrote"),
    ("X", "{}", "(I + {L})^-1"),
    ("u", "{}", "what the rows write, corrected"))


def legend(kernels: str) -> list[str]:
    """What the names in the text of kernels mean, those that are there."""
    words = set(re.findall(r"\n +(\w+) = (?!tl\.load)", kernels))
    called = {a: word if word in words else a for a, word in _LETTERS.items()}
    meant = [(name.format(called.get(a)), text.format(**called)) for a, name, text in _LEGEND
             if any(w == called.get(a, a) or w.startswith(f"{called.get(a, a)}_") for w in words)]
    if any(w.endswith("_later") for w in words):
        meant.append(("dx_later", "what x gets at its token and later, but for the weights"))
    if any(w.startswith("d_") for w in words):
        meant.append(("dx, d_x", "the gradient of the loss in x, or a part of it"))
    return ["In the kernels:", *(f"    {name:<14}{text}" for name, text in meant), ""] if meant else []
