"""What a user of an emitted module calls: NAME with the mixer's own signature, and NAME_step. Text.

The functions that do not depend on the spec stand in `library/calls.py`; they read the tables INS, PARAMS and STATES, which
name the axes of every tensor, and RANGES.
"""

from __future__ import annotations

from collections.abc import Iterable

from mixc.codegen.expressions import python_text
from mixc.codegen.host_values import depth_text
from mixc.ir.node import postorder
from mixc.ir.program import Decl, Program, Range
from mixc.passes.context import counts_tokens, looked_back
from mixc.passes.planes import history_parts, out_kind, part_names

PLANES = '''

def _planes(given, only=None):
    """Complex tensors by the names of their real and imaginary parts; `only`: the name of a tensor that comes without."""
    given = {only: given} if torch.is_tensor(given) and only else {} if given is None else given
    if not isinstance(given, dict):
        return given
    found = {}
    for name, x in given.items():
        if name in PLANES:
            if not torch.is_tensor(x) or x.dtype == torch.complex128:
                raise ValueError(f"`{name}`: expected complex64, got {getattr(x, 'dtype', type(x).__name__)}")
            found |= dict(zip(PLANES[name], (x.real, x.imag) if x.is_complex() else (x, torch.zeros_like(x))))
        else:
            found[name] = x
    return found


def _joined(names, found):
    """The same back, in the order of names."""
    return {n: torch.complex(*(found[part].float() for part in PLANES[n])) if n in PLANES else found[n] for n in names
            if PLANES.get(n, (n,))[0] in found}


def _outs_of(names, inner, found):
    """Outs as a tuple; `inner`: the names that they come by."""
    return tuple(_joined(names, dict(zip(inner, found))).values())
'''


def parts_of(p: Program) -> dict[str, tuple[str, str]]:
    """Of what is complex, the names of the real and imaginary parts."""
    complex_ = [d.name for d in p.decls if "complex" in (d.kind, out_kind(p, d) if d.role == "out" else "")]
    return {n: part_names(p, n) for n in complex_} | history_parts(p)


def past_of(p: Program) -> dict[str, str]:
    """Of the state dict's entries that are no states, how many values each holds of a sequence, and their dims: text."""
    found = {n: f"(lambda sizes: {depth_text(most, windows, lambda d: f'sizes[{p.root[d]!r}]')}, {x.dims!r})"
             for n, (x, most, windows) in looked_back(p).items()}
    return found | ({"pos": "None"} if counts_tokens(p) else {})


def tables(p: Program) -> list[str]:
    """INS, PARAMS and STATES: the axes of every tensor behind B, T, H; PAST: how many values are kept of what is looked
    back at, and their axes; names of one size; fixed sizes."""
    def table(name: str, decls: Iterable[Decl]) -> str:
        return f"{name} = {{" + ", ".join(f"{d.name!r}: {d.dims!r}" for d in decls) + "}"
    aliases = {d.name: d.alias for d in p.dims if d.alias}
    return [table("INS", p.ins), table("PARAMS", p.params), table("STATES", p.states),
            f"PAST = {{{', '.join(f'{n!r}: {text}' for n, text in past_of(p).items())}}}",
            f"ALIASES, SIZES = {aliases!r}, {({d.name: d.size for d in p.dims if d.size})!r}"]


def range_check(p: Program) -> list[str]:
    """in_ranges(tensors, consts): every `where` of the declarations."""
    lines = []
    for d in (*p.ins, *p.params):
        for r in d.ranges:
            words = f"{_bound(r.low, '<' if r.low_open else '<=', True)}{r.subject(d.name)}{_bound(r.high, '<' if r.high_open else '<=', False)}"
            lines.append(f"in_range({d.name!r}, {r.subject(d.name)!r}, {_values(d, r)}, {_limit(r.low, r, 1)}, {_limit(r.high, r, -1)}, "
                         f"{words!r})")
    names = {n.attr("name") for d in (*p.ins, *p.params) for r in d.ranges for b in (r.low, r.high) if b is not None
             for n in postorder([b]) if n.op == "const"}
    return ["def in_ranges(tensors, consts):", '    """Every declared range."""',
            *(f"    {c} = consts[{c!r}]" for c in sorted(names)), *(f"    {x}" for x in lines or ["pass"])]


def _values(d: Decl, r: Range) -> str:
    x = f"tensors[{d.name!r}].detach().float()" if d.kind != "complex" else \
        f"_joined([{d.name!r}], tensors)[{d.name!r}].detach()"
    if r.of == "norm":
        return f"torch.linalg.vector_norm({x}, dim={tuple(d.dims.index(n) - len(d.dims) for n in r.over)!r})"
    return x + (".abs()" if r.of == "abs" else "")


def _bound(bound: object, op: str, left: bool) -> str:
    if bound is None:
        return ""
    text = python_text(bound)  # type: ignore[arg-type]
    return f"{text} {op} " if left else f" {op} {text}"


def _limit(bound: object, r: Range, sign: int) -> str:
    """The bound; a norm may pass it by rounding."""
    if bound is None:
        return "None"
    text = python_text(bound)  # type: ignore[arg-type]
    return f"{text} * (1 {'-' if sign > 0 else '+'} 2 ** -6)" if r.of == "norm" else text


def call_lines(p: Program) -> list[str]:
    """NAME and NAME_step."""
    parts, states, kept = parts_of(p), [s.name for s in p.states], [*(s.name for s in p.states), *past_of(p)]
    tensors = [d.name for d in (*p.ins, *p.params)]
    consts = [c.name for c in p.consts]
    given, start, back = "{" + ", ".join(f"{n!r}: {n}" for n in tensors) + "}", "initial_state", list[str]()
    if parts:
        given, start = f"_planes({given})", f"_planes(initial_state, {states[0]!r})" if len(states) == 1 else "_planes(initial_state)"
        inner = [part for o in p.outs for part in parts.get(o.name, (o.name,))]
        back = [f"    _outs = _outs_of({[o.name for o in p.outs]!r}, {inner!r}, _outs)",
                f"    _final = _final and _joined({kept!r}, _final)"]
    passed = "{" + ", ".join(f"{c!r}: {c}" for c in consts) + "}"
    keywords = "".join(f"{c}=None, " for c in consts)
    single = len(p.outs) == 1
    pad = " " * (5 + len(p.name))
    several = [] if single else [f"_Outs = collections.namedtuple('{p.name}_outs', {[o.name for o in p.outs]!r})", "", ""]
    result = "_outs[0]" if single else "_Outs(*_outs)"
    split = [PLANES, f"PLANES = {parts!r}", "", ""] if parts else []
    return [*split, *several,
            f"def {p.name}({', '.join(tensors)}, *, {keywords}initial_state=None, output_final_state=False,",
            f"{pad}cu_seqlens=None, mask=None, reverse=False, check=False):",
            *_doc(p),
            f"    _outs, _final = _called({given}, {passed}, {start},",
            "                            output_final_state, cu_seqlens, mask, reverse, check)",
            *back,
            f"    return {result}, _final", "", "",
            f"def {p.name}_step(state, {', '.join(tensors)}{''.join(', ' + c + '=None' for c in consts)}):",
            '    """One token: tensors without the axis T; state None starts afresh. The out, and the next state."""',
            *(f"    {d.name} = {d.name}.unsqueeze(1)" for d in p.ins),
            f"    _outs, _next = _called({given}, {passed}, {start.replace('initial_state', 'state')}, True, None, None, False, False)",
            *(line.replace("_final", "_next") for line in back),
            "    _outs = [y.squeeze(1) for y in _outs]",
            f"    return {result}, _next"]


def _doc(p: Program) -> list[str]:
    rows = [f"{d.name} [{', '.join(['B, T, H' if d.role == 'in' else 'H', *d.dims])}]" for d in (*p.ins, *p.params)]
    outs = [f"{o.name} [{', '.join(['B, T, H', *o.dims])}]" for o in p.outs]
    states = [f"{s.name} [{', '.join(['B, H', *s.dims])}]" for s in p.states]
    states += [f"{n} [{', '.join(['B', depth_text(most, windows, str), 'H', *x.dims])}] (the last values)"
               for n, (x, most, windows) in looked_back(p).items()] + ["pos [B]"] * counts_tokens(p)
    return [f'    """{", ".join(outs)} from {", ".join(rows)}.', "",
            "    The head count of a tensor divides H; without any axis of heads H is 1.",
            f"    initial_state: a dict of {', '.join(states)}; final states come so too, else None.",
            "    cu_seqlens: [N+1], then B is 1 and states are [N, H, ...]. mask: bool [B, T], False: no token.",
            "    reverse: from the last token to the first. check: also ranges and cu_seqlens (waits for the device).",
            '    """']
