"""What a user of an emitted module calls: NAME with the mixer's own signature, and NAME_step. Text.

The functions that do not depend on the spec stand in `HOST`; they read the tables INS, PARAMS and STATES, which
name the axes of every tensor, and RANGES.
"""

from __future__ import annotations

from collections.abc import Iterable

from mixc.codegen.host_values import depth_text
from mixc.codegen.scalars import python_text
from mixc.ir.node import postorder
from mixc.ir.program import Decl, Program, Range
from mixc.passes.context import counts_tokens, looked_back
from mixc.passes.planes import history_parts, out_kind, part_names

HOST = '''

def accepted(given, headless):
    """The tensors of a call, each with an axis of heads."""
    known, found = dict(SIZES), {}
    first = next(iter(given))
    for name, x in given.items():
        lead = ("B", "T") if name in INS else ()
        dims = (*lead, *(() if headless else ("H",)), *{**INS, **PARAMS}[name])
        want = f"`{name}`: expected [{', '.join(dims)}]"
        if not torch.is_tensor(x) or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"{want} of bf16, fp16 or fp32, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.ndim != len(dims):
            raise ValueError(f"{want}, got {list(x.shape)}")
        if x.device != given[first].device:
            raise ValueError(f"`{name}`: expected on {given[first].device}, as `{first}`, got {x.device}")
        for d, n in zip(dims, x.shape):
            d = ALIASES.get(d, d)
            if d != "H" and known.setdefault(d, n) != n:
                raise ValueError(f"{want} with {d} = {known[d]}, got {list(x.shape)}")
            if n == 0 and d not in ("B", "T"):
                raise ValueError(f"{want} with {d} at least 1, got {list(x.shape)}")
        found[name] = x.unsqueeze(len(lead)) if headless else x
    H = max(x.shape[2 if name in INS else 0] for name, x in found.items())
    for name, x in found.items():
        G = x.shape[2 if name in INS else 0]
        if H % G:
            raise ValueError(f"`{name}`: expected a head count that divides {H}, got {G}")
    return found, {"H": H, **known}


def accepted_states(given, sizes, count, headless):
    """Initial states and earlier values by name, each with an axis of heads, and how many tokens came before."""
    if torch.is_tensor(given) and len(STATES) == 1:
        given = {next(iter(STATES)): given}
    found = {}
    for name, x in (given or {}).items():
        if name not in STATES and name not in PAST:
            raise ValueError(f"`initial_state`: no state `{name}`; there are {', '.join([*STATES, *PAST])}")
        depth, axes = PAST.get(name) or (None, STATES.get(name, ()))
        lead = (count,) if depth is None else (count, depth(sizes))
        dims = (*lead, *(() if headless else (sizes["H"],)), *(sizes[ALIASES.get(d, d)] for d in axes)) if name != "pos" else lead
        if tuple(x.shape) != dims or x.is_floating_point() == (name == "pos"):
            raise ValueError(f"`initial_state`: expected {name} {list(dims)}, got {x.dtype} {list(x.shape)}")
        found[name] = x.to(torch.int64) if name == "pos" else (x.unsqueeze(len(lead)) if headless else x).float()
    return found


def sequences_of(B, T, cu_seqlens, mask, check):
    """First row and length of every sequence (None: dense), and the order of rows that puts live tokens first."""
    if cu_seqlens is not None:
        if cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or B != 1:
            raise ValueError("`cu_seqlens`: expected int32 or int64 [N+1], and B = 1")
        if check and (cu_seqlens[0] != 0 or cu_seqlens[-1] != T or (cu_seqlens.diff() < 0).any()):
            raise ValueError(f"`cu_seqlens`: expected from 0 to {T}, not decreasing, got {cu_seqlens.tolist()}")
        edges = cu_seqlens.to(torch.int64)
    if mask is None:
        return (None if cu_seqlens is None else (edges[:-1].contiguous(), edges.diff().to(torch.int32))), None
    if mask.dtype != torch.bool or tuple(mask.shape) != (B, T):
        raise ValueError(f"`mask`: expected bool {[B, T]}, got {mask.dtype} {list(mask.shape)}")
    live = mask.reshape(-1)
    if cu_seqlens is None:
        edges = torch.arange(B + 1, device=mask.device) * T
    lengths = torch.nn.functional.pad(live.cumsum(0), (1, 0))[edges].diff()
    row = torch.arange(B * T, device=mask.device)
    order = torch.argsort(torch.searchsorted(edges[1:].contiguous(), row, right=True) * 2 + ~live, stable=True)
    return (edges[:-1].contiguous(), lengths.to(torch.int32)), order


def _called(given, consts, initial_state, want_final, cu_seqlens, mask, reverse, check):
    """Outs as a tuple, and final states: what NAME does with its arguments."""
    headless = all(x.ndim == 2 + len(INS[n]) for n, x in given.items() if n in INS)
    tensors, sizes = accepted(given, headless)
    B, T = sizes["B"], sizes["T"]
    sequences, order = sequences_of(B, T, cu_seqlens, mask, check)
    if check:
        in_ranges(tensors, consts)
    count = B if sequences is None else sequences[0].shape[0]
    states = accepted_states(initial_state, sizes, count, headless)
    if order is not None:  # packed: the live tokens of every sequence, in their order, at its first rows
        live = mask.reshape(-1)[order]
        for n in INS:
            x = tensors[n].reshape(1, B * T, *tensors[n].shape[2:])[:, order]
            tensors[n] = torch.where(live.view(1, -1, *[1] * (x.ndim - 2)), x, 0.0)
    outs, final = run(*tensors.values(), *consts.values(), initial_state=states, output_final_state=want_final,
                      sequences=sequences, reverse=reverse)
    if order is not None:
        wide = [torch.where(live.view(1, -1, *[1] * (y.ndim - 2)), y, 0.0) for y in outs]
        outs = [torch.empty_like(y).index_copy(1, order, y).view(B, T, *y.shape[2:]) for y in wide]
    if headless:
        outs = [y.squeeze(2) for y in outs]
        final = final and {n: s if n == "pos" else s.squeeze(2 if n in PAST else 1) for n, s in final.items()}
    return tuple(outs), final


def in_range(name, of, values, low, high, words):
    """Raises if a value is not in its declared range; waits for the device."""
    for bound, beyond in ((low, lambda y: y < low), (high, lambda y: y > high)):
        if bound is not None and bool((beyond(values) | values.isnan()).any()):
            raise ValueError(f"`{name}`: expected {words}, got {of} outside")
'''

PLANES = '''

def _planes(given, only=None):
    """Complex tensors by the names of their real and imaginary parts; `only`: the name of a tensor that comes without."""
    found = {}
    for name, x in ({only: given} if torch.is_tensor(given) else given or {}).items():
        if name in PLANES:
            found |= dict(zip(PLANES[name], (x.real, x.imag) if x.is_complex() else (x, torch.zeros_like(x))))
        else:
            found[name] = x
    return found


def _joined(names, found):
    """The same back, in the order of names."""
    return {n: torch.complex(*(found[part].float() for part in PLANES[n])) if n in PLANES else found[n] for n in names
            if PLANES.get(n, (n,))[0] in found}
'''


def parts_of(p: Program) -> dict[str, tuple[str, str]]:
    """Of what is complex, the names of the real and imaginary parts."""
    complex_ = [d.name for d in p.decls if "complex" in (d.kind, out_kind(p, d) if d.role == "out" else "")]
    return {n: part_names(p, n) for n in complex_} | history_parts(p)


def past_of(p: Program) -> dict[str, str]:
    """Of the state dict's entries that are no states, how many values each holds of a sequence, and their dims: text."""
    root = {d.name: d.alias or d.name for d in p.dims}
    found = {n: f"(lambda sizes: {depth_text(most, windows, lambda d: f'sizes[{root[d]!r}]')}, {x.dims!r})"
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
        back = [f"    _outs = tuple(_joined({[o.name for o in p.outs]!r}, dict(zip({inner!r}, _outs))).values())",
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
