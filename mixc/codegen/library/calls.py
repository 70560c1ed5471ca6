"""What a user's call of an emitted module goes through; the tables INS, PARAMS, STATES and PAST name the axes of its
tensors, RANGES what lies in them.
"""

import torch


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
    given = {} if given is None else given
    if torch.is_tensor(given) and len(STATES) == 1:
        given = {next(iter(STATES)): given}
    if not isinstance(given, dict) or not all(map(torch.is_tensor, given.values())):
        raise ValueError(f"`initial_state`: expected a dict of tensors, of {', '.join([*STATES, *PAST])}")
    found = {}
    for name, x in given.items():
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
        if not torch.is_tensor(cu_seqlens) or cu_seqlens.ndim != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64) or B != 1:
            raise ValueError("`cu_seqlens`: expected int32 or int64 [N+1], and B = 1")
        if check and (cu_seqlens[0] != 0 or cu_seqlens[-1] != T or (cu_seqlens.diff() < 0).any()):
            raise ValueError(f"`cu_seqlens`: expected from 0 to {T}, not decreasing, got {cu_seqlens.tolist()}")
        edges = cu_seqlens.to(torch.int64)
    if mask is None:
        return (None if cu_seqlens is None else (edges[:-1].contiguous(), edges.diff().to(torch.int32))), None
    if not torch.is_tensor(mask) or mask.dtype != torch.bool or tuple(mask.shape) != (B, T):
        raise ValueError(f"`mask`: expected bool {[B, T]}, got {getattr(mask, 'dtype', '')} {list(getattr(mask, 'shape', ()))}")
    live = mask.reshape(-1)
    if cu_seqlens is None:
        edges = torch.arange(B + 1, device=mask.device) * T
    lengths = torch.nn.functional.pad(live.cumsum(0), (1, 0))[edges].diff()
    row = torch.arange(B * T, device=mask.device)
    order = torch.argsort(torch.searchsorted(edges[1:].contiguous(), row, right=True) * 2 + ~live, stable=True)
    return (edges[:-1].contiguous(), lengths.to(torch.int32)), order


def _called(given, consts, initial_state, want_final, cu_seqlens, mask, reverse, check):
    """Outs as a tuple, and final states: what NAME does with its arguments."""
    headless = all(torch.is_tensor(x) and x.ndim == 2 + len(INS[n]) for n, x in given.items() if n in INS)
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
    try:
        outs, final = run(*tensors.values(), *consts.values(), initial_state=states, output_final_state=want_final,
                          sequences=sequences, reverse=reverse)
    except RuntimeError as error:  # not before: what records launches needs no GPU
        if "active drivers" not in str(error):
            raise
        raise ValueError(f"`{next(iter(given))}`: expected on a GPU; TRITON_INTERPRET=1, set before triton is imported, "
                         "interprets kernels") from None
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
