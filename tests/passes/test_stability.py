"""Numbers that break careless chunk forms: decays that forget, keys that are all alike, decays of 0 and of any sign.

Every out, final state and gradient against the step in fp64, within the one criterion (`mixc.runtime.agree`).
"""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import mixc
from mixc.runtime import agree, backends
from mixc.runtime.draw import draw, normal
from tests import cells

BACKENDS = ("torch", pytest.param("triton", marks=pytest.mark.slow))  # interpreted
HALF = torch.bfloat16
PARAMS = ("u",)  # of rwkv6: summed over the batch, so no sequence has one


def judged(mixer, tensors, backend, labels, dtype=torch.float32, start=False, bound=None):
    """Fails with the names of all that is out of bounds; every sequence of the batch, `labels` by name, by itself."""
    if backend == "triton" and not backends.has_chunk_program(mixer):
        pytest.skip("no kernels")
    tensors = {n: x.to(dtype) for n, x in tensors.items()}
    sizes = {n: s for d in mixer.declared.ins for n, s in zip(d.dims, tensors[d.name].shape[3:], strict=True)}
    B, _, H = next(iter(tensors.values())).shape[:3]
    states = {d.name: normal([B, H, *(sizes[n] for n in d.dims)], 3, d.name) for d in mixer.declared.states}
    given = dict(initial_state=states if start else None)
    want = agree.run(mixer, tensors, wide=True, **given)
    got = agree.run(mixer, tensors, backend=backend, **given)
    loop = cache(lambda: agree.run(agree.Plain(mixer), tensors, **given))
    bad = []
    for i, label in enumerate(labels):
        findings = agree.judge(mixer.declared, row(got, i), row(want, i), dtype, lambda i=i: row(loop(), i))
        bad += [f"{label}: {f}" for f in findings if not (f.ok if bound is None else f.error <= bound)]
    assert not bad, "; ".join(bad)


def row(run, i):
    parts = (run.outs, run.states, run.grads)
    return agree.Run(*({n: x[i] for n, x in part.items() if n not in PARAMS} for part in parts))


def tensors_of(mixer, B, T=96, H=1, **sizes):
    """Drawn from the ranges, without their ends; gates near 0."""
    full = {d.name: 3 if d.name == "N" else 12 + i for i, d in enumerate(mixer.declared.dims)} | sizes
    return draw(mixer.declared, B=B, T=T, H=H, sizes=full, gates=0.1, ends=0.0, seed=4)


# ---------------------------------------------------------------- decays that forget
FORGETTING = {"simple_gla": "g", "gla": "g", "rwkv6": "w", "gsa": "g", "gated_delta_rule": "g", "kda": "g",
              "rwkv7": "w", "gated_oja_rule": "g", "gated_deltaproduct": "g", "comba": "g"}


def forget(g):
    """In place, a kind a sequence: the middle of chunks, -inf and -100; all down to -100; a share of all at -100."""
    g[0, 37], g[0, 50], g[0, 71:74, 0] = -math.inf, -100.0, -math.inf
    g[1].mul_(1000).clamp_(min=-100.0)
    for i, share in ((2, 0.1), (3, 0.5)):
        g[i][torch.rand(g[i].shape, generator=torch.Generator().manual_seed(7)) < share] = -100.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FORGETTING)
def test_log_decays(name, dtype, backend):
    mixer = mixc.load(name)
    x = tensors_of(mixer, 4)
    forget(x[FORGETTING[name]])
    judged(mixer, x, backend, ("-inf", "to -100", "a tenth at -100", "half at -100"), dtype, start=True)


# ---------------------------------------------------------------- keys that are all alike
ALIKE = """mixer alike(K, V) {{
    in q[K], v[V]
    in k[K] where norm[K](k) <= 1
    in g{of} where g <= 0
    in b where 0 <= b <= 2
    state S[K, V]
    S = exp(g) * S
    S = S + b * k * (v - k @ S)
    out o[V] = q @ S
}}"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("of", ["", "[K]"], ids=["scalar", "vector"])
def test_keys_alike(of, backend):
    mixer, cases = mixc.loads(ALIKE.format(of=of)), [(n, b) for n in (0.01, 0.03, 0.1, 0.3) for b in (1.0, 2.0)]
    x = tensors_of(mixer, len(cases), K=32, V=16)
    one = normal([32], 8, "key")
    noise, strength = (torch.tensor(c).view(-1, 1, 1) for c in zip(*cases, strict=True))
    k = one / one.norm() + noise[..., None] * normal(list(x["k"].shape), 9, "noise") / 32 ** 0.5
    x["k"], x["b"], x["g"] = k / k.norm(dim=-1, keepdim=True), strength.expand(x["b"].shape), 0.01 * x["g"]
    judged(mixer, x, backend, [f"noise {n}, b {b}" for n, b in cases], bound=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_a_little_above_one(backend):
    mixer = mixc.loads(ALIKE.format(of=""))
    x = tensors_of(mixer, 1, K=32, V=16)
    x["k"] = x["k"] / x["k"].norm(dim=-1, keepdim=True) * (1 + 1e-7)
    x["b"] = torch.full_like(x["b"], 2.0)
    judged(mixer, x, backend, ["norm"])
    mixer(**x, check=True)  # is no error either


# ---------------------------------------------------------------- decays given as numbers
NUMBERS = {
    "scalar": "S = d * S + k * v",
    "keys": "S = dk * S + k * v",
    "values": "S = dv * S + k * v",
    "both": "S = dk * dv * S + k * v",
    "scalar, delta": "S = d * S\n S = S + b * k * (v - k @ S)",
    "keys, delta": "S = dk * S\n S = S + b * k * (v - k @ S)",
    "values, delta": "S = dv * S\n S = S + b * k * (v - k @ S)",
    "keys, delta of what was": "e = v - k @ S\n S = dk * S + b * k * e",
}
HEADER = """mixer numbers(K, V) {{
    in q[K], v[V]
    in k[K] where norm[K](k) <= 1
    in d where -1 <= d <= 1
    in dk[K] where -1 <= dk <= 1
    in dv[V] where -1 <= dv <= 1
    in b where 0 <= b <= 2
    state S[K, V]
    {}
    out o[V] = q @ S
}}"""


@pytest.mark.parametrize("backend", ("torch", "triton"))
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NUMBERS)
def test_number_decays(name, dtype, backend):
    mixer = mixc.loads(HEADER.format(NUMBERS[name]))
    assert mixer.form == {"S": "chunk"}
    x = tensors_of(mixer, 1)
    for n in ("d", "dk", "dv"):
        g = torch.Generator().manual_seed(11)
        kind, u = (torch.rand(x[n].shape, generator=g) for _ in range(2))
        x[n] = torch.where(kind < 0.1, 0.0, torch.where(kind < 0.2, 1e-6, torch.where(kind < 0.6, u, 2 * u - 1)))
    judged(mixer, x, backend, [name], dtype, start=True)


@pytest.mark.parametrize("backend", ("torch", "triton"))
def test_a_number_of_zero_forgets_all(backend):
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], d[K] where -1 <= d <= 1\nstate S[K, V]\n"
                       "S = d * S + k * v\nout o[V] = q @ S\n}")
    x = tensors_of(mixer, 1)
    x["d"][:, -3], x["k"][:, -3:] = 0.0, 0.0
    _, state = mixer(**x, backend=backend, output_final_state=True)
    assert not state["S"].any()


# ---------------------------------------------------------------- long
@pytest.mark.parametrize("name", ["gated_delta_rule", pytest.param("kda", marks=pytest.mark.slow)])
def test_gates_near_zero_for_long(name):
    mixer = mixc.load(name)
    x = tensors_of(mixer, 1, T=10_000, K=4, V=4)
    x["g"] = 1e-4 * x["g"]
    judged(mixer, x, "torch", ["long"])


# ---------------------------------------------------------------- what every token's decay has a part in
STEPS = {  # what else comes in, and the body
    "a number": "in a\nS = exp(-exp(A) * softplus(a)) * S + k * v\nout o[V] = q @ S",
    "complex": "in a, th[K]\nS = exp(-exp(A) * softplus(a) + 1j * th) * S + k * v\nout o[V] = real(q @ S)",
    "keys": "in a[K]\nS = exp(-exp(A) * softplus(a)) * S + k * v\nout o[V] = q @ S",
    "keys, read before": "in a[K]\nout o[V] = q @ S\nS = exp(-exp(A) * softplus(a)) * S + k * v",
    "values": "in a[V]\nS = exp(-exp(A) * softplus(a)) * S + k * v\nout o[V] = q @ S",
    "keys, delta": "in a[K], b where 0 <= b <= 1\nS = exp(-exp(A) * softplus(a)) * S\nS = S + b * k * (v - k @ S)\n"
                   "out o[V] = q @ S",
}


SEVERAL = """mixer m(K, V, N) {
    in q[K], k[K], v[V], w[N], a[N]
    param A
    state S[N, K, V]
    S = exp(-exp(A) * softplus(a)) * S + w * k * v
    out o[V] = softmax[N](w) @ (q @ S)
}"""


def with_a_param(step):
    if step == "several memories":
        return mixc.loads(SEVERAL)
    ins, body = STEPS[step].split("\n", 1)
    return mixc.loads(f"mixer m(K, V) {{\n{ins}\nin q[K], v[V]\nin k[K] where norm[K](k) <= 1\nparam A\n"
                      f"state S[K, V]\n{body}\n}}")


@pytest.mark.parametrize("step,backend", [*((s, b) for s in STEPS for b in ("torch", "triton")),
                                          ("several memories", "torch")])
def test_a_param_of_the_decay(step, backend):
    """One rounding in the gradient of a decay reached all earlier rows of its chunk, and the param's added them up."""
    mixer = with_a_param(step)
    cell = dict(length=130, size=7, heads="1", gates=1.0, dtype=torch.float32, rows="plain", start=True)
    seeds = range(20 if backend == "torch" else 10)
    found = [f for seed in seeds for f in cells.compare(mixer, cell, backend, seed) if f.name == "dA"]
    *most, _ = sorted(f.error / f.bound for f in found)  # without one whose terms may nearly cancel
    assert most[len(most) // 2] < 0.05 and most[-1] < 0.7


@pytest.mark.parametrize("step", ["keys", "values"])
def test_a_param_of_the_decay_in_half_precision(step):
    """The products of a pair of rows met operands of different roundings, and what did not cancel reached all earlier
    rows: 8e-3 and 4e-2."""
    mixer = with_a_param(step)
    cell = dict(length=64, size=16, heads="1", gates=1.0, dtype=HALF, rows="plain", start=True)
    found = [f.error for seed in range(5) for f in cells.compare(mixer, cell, "triton", seed) if f.name == "dA"]
    assert sorted(found)[2] < 4e-3 and max(found) < 0.02


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_exact_reflections_in_a_small_space(K):
    """Directions come again and again, and a system of 64 rows magnified what was rounded: 2e-5 to 4e-5."""
    mixer = mixc.loads("mixer m(K, V) {\nin q[K], k[K], v[V], a[K], b[K]\nstate S[K, V]\n"
                       "x = a / norm(a)\ny = b / norm(b)\n"
                       "S = S - 2 * x * (x @ S)\nS = S - 2 * y * (y @ S)\nS = S + k * v\nout o[V] = q @ S\n}")
    cell = dict(length=300, size=K, heads="none", gates=1.0, dtype=torch.float32, rows="plain", start=True)
    bad = [str(f) for f in cells.compare(mixer, cell, "torch") if not f.ok]
    assert not bad, "; ".join(bad)
