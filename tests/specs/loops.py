"""The specs of this folder, token by token as a person would write them in torch.

A step takes the tensors of one token [B, H, dims...] (params [H, dims...]) and the states, which it may assign to;
it returns the outs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

Tensor = torch.Tensor
Tensors = dict[str, Tensor]


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k[..., :, None] * v[..., None, :]


def rows(q: Tensor, S: Tensor) -> Tensor:
    """q @ S"""
    return torch.einsum("...k,...kv->...v", q, S)


def columns(S: Tensor, x: Tensor) -> Tensor:
    """S @ x"""
    return torch.einsum("...kv,...v->...k", S, x)


def number(x: Tensor) -> Tensor:
    return x[..., None, None]


def two_sided_decay(x: Tensors, s: Tensors) -> Tensors:
    s["S"] = outer((x["g"] + x["p"]).exp(), x["h"].exp()) * s["S"] + outer(x["k"], x["v"])
    return {"o": rows(x["q"], s["S"]), "r": columns(s["S"], x["x"])}


def several_memories(x: Tensors, s: Tensors) -> Tensors:
    s["S"] = number(x["g"].exp()) * s["S"] + number(x["w"]) * outer(x["k"], x["v"])[..., None, :, :]
    read = torch.einsum("...k,...nkv->...nv", x["q"], s["S"])
    return {"o": rows(x["w"].softmax(-1), read)}


def learner_with_bias(x: Tensors, s: Tensors) -> Tensors:
    error = rows(x["k"], s["W"]) + s["c"] - x["v"]
    s["W"] = number(x["g"].exp()) * s["W"] - number(x["b"]) * outer(x["k"], error)
    s["c"] = x["g"].exp()[..., None] * s["c"] - x["b"][..., None] * error
    return {"o": rows(x["q"], s["W"]) + s["c"]}


def two_erasers(x: Tensors, s: Tensors) -> Tensors:
    S = s["S"]
    s["S"] = (number(x["g"].exp()) * S - number(x["a"]) * outer(x["x"], rows(x["x"], S))
              - number(x["b"]) * outer(x["y"], rows(x["y"], S)) + outer(x["k"], x["v"]))
    return {"o": rows(x["q"], s["S"])}


def write_then_forget(x: Tensors, s: Tensors) -> Tensors:
    old = rows(x["q"], s["S"])
    S = s["S"] + outer(x["k"], x["v"])
    between = rows(x["q"], S)
    S = S - number(x["b"]) * outer(x["y"], rows(x["y"], S))
    s["S"] = x["g"].exp()[..., None] * S
    return {"old": old, "between": between, "o": rows(x["q"], s["S"])}


def crossed(x: Tensors, s: Tensors) -> Tensors:
    S = x["g"].exp()[..., None] * s["S"]
    s["S"] = S + number(x["b"]) * outer(x["k"] - columns(S, x["x"]), x["x"])
    return {"o": rows(x["q"], s["S"])}


def column_strength(x: Tensors, s: Tensors) -> Tensors:
    S = number(x["g"].exp()) * s["S"]
    s["S"] = S + outer(x["k"], x["b"] * (x["v"] - rows(x["a"] * x["k"], S)))
    return {"o": rows(x["q"], s["S"])}


def signed_delta(x: Tensors, s: Tensors) -> Tensors:
    S = x["d"][..., None] * s["S"]
    s["S"] = S + number(x["b"]) * outer(x["k"], x["v"] - rows(x["k"], S))
    return {"o": rows(x["q"], s["S"])}


def reflections(x: Tensors, s: Tensors) -> Tensors:
    S = s["S"]
    for n in range(3):
        k = x["k"][..., n, :]
        S = S - number(x["b"][..., n]) * outer(k, rows(k, S))
        S = S + (1 + n) * outer(x["w"], x["v"])
    s["S"] = number(x["g"].exp()) * S
    return {"o": rows(x["q"], s["S"])}


def shared_keys(x: Tensors, s: Tensors) -> Tensors:
    decay = x["g"].exp()
    S = decay[..., None] * s["S"]
    e = x["v"] - rows(x["k"], S)
    s["S"] = S + number(x["b"]) * outer(x["k"], e)
    s["R"] = decay[..., None] * s["R"] + outer(x["k"], x["u"]) * number(e.mean(-1))
    s["n"] = decay * s["n"] + x["k"]
    size = 1 + (x["q"] * s["n"]).sum(-1, keepdim=True).abs()
    return {"o": rows(x["q"], s["S"]) / size, "r": rows(x["q"], s["R"]).tanh()}


def addressed(x: Tensors, s: Tensors) -> Tensors:
    s["A"] = s["A"] + number(x["b"]) * outer(x["k"], x["s"] - rows(x["k"], s["A"]))
    p = rows(x["q"], s["A"]).softmax(-1)
    S = number(x["g"].exp()) * s["S"]
    s["S"] = S + outer(p, x["v"] - rows(p, S))
    return {"o": rows(x["s"].softmax(-1), s["S"])}


def scalar_learner(x: Tensors, s: Tensors) -> Tensors:
    n = x["g"].exp() * s["n"]
    e = x["y"] - (x["k"] * n).sum(-1)
    s["n"] = n + (x["b"] * e)[..., None] * x["k"]
    kept = torch.where(x["b"] < 0.1, 0.0, x["y"].sigmoid())
    s["S"] = number(kept) * s["S"] + number(e) * outer(x["k"], x["v"])
    return {"o": rows(x["q"], s["S"]), "error": e}


STEPS: dict[str, Callable[[Tensors, Tensors], Tensors]] = {f.__name__: f for f in (
    two_sided_decay, two_erasers, write_then_forget, crossed, column_strength, signed_delta, reflections, shared_keys,
    addressed, scalar_learner, several_memories, learner_with_bias)}


class Loop:
    """A step behind the interface of a mixer."""

    def __init__(self, mixer: object, step: Callable[[Tensors, Tensors], Tensors]):
        self.declared, self.step = mixer.declared, step

    def _tokens(self, tensors: Tensors) -> Iterator[Tensors]:
        ins, params = ([d.name for d in kind] for kind in (self.declared.ins, self.declared.params))
        for token in zip(*(tensors[n].unbind(1) for n in ins), strict=True):
            yield dict(zip(ins, token, strict=True)) | {n: tensors[n] for n in params}

    def __call__(self, *, initial_state: Tensors, output_final_state: bool, backend: str, **tensors: Tensor) -> object:
        states = dict(initial_state)
        found = [self.step(x, states) for x in self._tokens(tensors)]
        outs = tuple(torch.stack([f[d.name] for f in found], 1) for d in self.declared.outs)
        return outs if len(outs) > 1 else outs[0], states
