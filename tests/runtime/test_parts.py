"""Steps of which some states are sequential: programs that run one after another, against the step in fp64."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.codegen.offline import load_text
from mixc.errors import InputError
from mixc.passes.classify import classify
from tests.agree import assert_runs_agree, draw, normal, run

pytestmark = pytest.mark.filterwarnings("ignore:.*MX301")
CELL = "param R[D, E]\nstate h[D]\n"
READS = "in q[K], k[K], v[D]\nin g where g <= 0\nstate S[K, D]\nS = exp(g) * S + k * v\n"
# body, the states of every part, what every part hands on
SPECS = {
    "memory_feeds_cell": (CELL + READS + "h = tanh(R @ h[E] + q @ S)\nout o[D] = h", ["S", "h"], ["S_read", ""]),
    "cell_feeds_memory": (CELL + "in x[D], k[K], q[K]\nparam w[D]\nstate S[K, D], y[D]\nh = tanh(R @ h[E] + x)\n"
                          "S = exp(-softplus(w @ h)) * S + k * (x - h)\ny = sigmoid(x) * y + q @ S\n"
                          "out o[D] = q @ S + y",
                          ["h", "S y"], ["h_read", ""]),
    "between_two": (CELL + "in q[K], v[D], u\nin k[K] where norm[K](k) <= 1\nin b where 0 <= b <= 1\n"
                    "state S[K, D], A[F, D]\nconst scale = K ** -0.5\nS = S + b * (k * (v - k @ S))\n"
                    "h = tanh(R @ h[E] + scale * (q @ S) + u)\n"
                    "A = exp(-softplus(h)) * A + q[F] * h\nout o[D] = k[F] @ A + q @ S\nout n = sum(h)",
                    ["S", "h", "A"], ["S_read S_read_2", "h_read", ""]),
    "scan_feeds_cell": (CELL + "in x[D]\nparam w[D]\nstate m[D]\na = sigmoid(w)\nm = a * m + (1 - a) * x\n"
                        "h = tanh(R @ h[E] + x * sigmoid(m))\nout o[D] = h + m", ["m", "h"], ["m_read", ""]),
    "maximum_feeds_cell": (CELL + "in x[D]\nin g[D] where g <= 0\nstate m[D] = -inf\nm = maximum(g + m, x)\n"
                           "h = tanh(R @ h[E] + exp(-abs(m)))\nout o[D] = h", ["m", "h"], ["m_read", ""]),
    "turning_feeds_cell": (CELL + "in x[D]\nparam t[D]\nstate s[D]\ns = 0.9 * exp(1j * t) * s + x\n"
                           "h = tanh(R @ h[E] + real(s))\nout o[D] = h", ["s", "h"], ["s_read", ""]),
    "looks_back": (CELL + "in x[D], q[K], k[K]\nparam c[D]\nstate S[K, D]\ny = x + c * lag(x, 1)\n"
                   "S = exp(-0.01 * pos) * S + k * y\nh = tanh(R @ h[E] + q @ S + lag(y, 2))\nout o[D] = h",
                   ["S", "h"], ["S_read", ""]),
    "a_const_of_positions": ("const base = 0.5\n" + CELL + "in q[K], k[K], v[D]\nstate S[K, D]\n"
                             "S = exp(-base * pos / 100) * S + k * v\nh = tanh(R @ h[E] + q @ S)\n"
                             "out o[D] = h", ["S", "h"], ["S_read", ""]),
    "nothing_read_of_the_last": (CELL + "in x[D]\nstate S[D, E]\nh = tanh(R @ h[E] + x)\nS = 0.9 * S + h * x[E]\n"
                                 "out o[D] = h", ["h", "S"], ["h_read", ""]),
    "no_input_before_the_last": ("param R[D, E]\nin x[D], z[D]\nstate h[D] = tanh(0.3), s[D]\nh = tanh(R @ h[E])\n"
                                 "s = 0.5 * s + x * h\nout o[D] = s * z", ["h", "s"], ["h_read", ""]),
    "read_with_what_a_cell_holds": ("in z[K]\nstate P[K]\n" + READS + "P = P / (1 + P) + square(z)\n"
                                    "out o[D] = (q / (P + 1)) @ S", ["P", "S"], ["P_read", ""]),
    "a_matrix_stays": (CELL + "state n[K]\n" + READS + "n = exp(g) * n + k\n"
                       "h = tanh(R @ h[E] + (q + n) @ S * (n @ (S @ h)))\nout o[D] = h", ["n", "h S"], ["n_read", ""]),
}
INTERPRETED = ("memory_feeds_cell", "cell_feeds_memory", "between_two", "turning_feeds_cell", "looks_back",
               "a_const_of_positions", "nothing_read_of_the_last", "no_input_before_the_last",
               "read_with_what_a_cell_holds")


def load(name):
    body = SPECS[name][0]
    dims = "D, E = D" + ", K" * ("[K" in body) + ", F = K" * ("[F" in body)
    return mixc.loads(f"mixer {name}({dims}) {{\n{body}\n}}")


def given(mixer, T, B, H, dtype, N=None, size=5):
    sizes = {d.name: d.size or size + 3 * (d.name in "KF") for d in mixer.declared.dims}
    x = draw(mixer.declared, B=B, T=T, H=H, sizes=sizes, dtype=dtype, ends=1 / 16, seed=T)
    wide = torch.promote_types(dtype, torch.float32)
    states = {d.name: normal([N or B, H, *(sizes[n] for n in d.dims)], 5, d.name, wide)
              for d in mixer.declared.states if d.kind != "complex"}
    return x, states


def check(mixer, T, backend, B=2, H=2, dtype=torch.float32, **options):
    N = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else B
    x, states = given(mixer, T, B, H, dtype, N)
    want = run(mixer, x, initial_state=states, wide=dtype == torch.float64, **options)
    got = run(mixer, x, initial_state=states, backend=backend, **options)
    assert_runs_agree(mixer, got, want, dtype)


@pytest.mark.parametrize("name", SPECS)
def test_parts_and_what_they_hand_on(name):
    _, states, handed = SPECS[name]
    parts = classify(load(name).declared).parts
    assert [" ".join(s.name for s in p.states) for p in parts] == states
    assert [" ".join(o.name for o in p.outs if o.exact) for p in parts] == handed
    assert all(len(o.dims) <= 1 for p in parts for o in p.outs if o.exact)


def test_no_state_waits_for_what_waits_for_it():
    mixer = mixc.loads("mixer m(K, D) {\nstate h[D]\n" + READS + "h = tanh(0.5 * h + q @ S)\nout o[K] = S @ h\n}")
    assert not classify(mixer.declared).parts and set(mixer.form.values()) == {"sequential"}


@pytest.mark.parametrize("name", SPECS)
def test_on_a_cpu(name):
    mixer = load(name)
    check(mixer, 70, "torch", dtype=torch.float64)
    check(mixer, 1, "torch")
    check(mixer, 0, "torch")
    check(mixer, 40, "torch", B=1, cu_seqlens=torch.tensor([0, 0, 2, 5, 21, 40]))
    check(mixer, 33, "torch", reverse=True, mask=torch.arange(66).reshape(2, 33) % 3 > 0)


@pytest.mark.parametrize("name", INTERPRETED)
def test_kernels(name):
    mixer = load(name)
    check(mixer, 21, "triton")
    check(mixer, 19, "triton", B=1, cu_seqlens=torch.tensor([0, 2, 2, 19]))


@pytest.mark.parametrize("name", INTERPRETED)
def test_the_emitted_file(name):
    mixer = load(name)
    module = load_text(mixer.emit(), name)
    x, states = given(mixer, 18, 1, 4, torch.float32, 2)
    first = mixer.declared.ins[0].name
    x[first] = x[first][:, :, :2]
    rows = dict(cu_seqlens=torch.tensor([0, 7, 18]), initial_state=states, output_final_state=True)
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    found = []
    for call in (getattr(module, name), lambda *a, **kw: mixer(*a, backend="torch", **kw)):
        out, final = call(*leaves.values(), **rows)
        ends = [torch.view_as_real(s) if s.is_complex() else s for n, s in final.items() if n != "pos"]
        outs = [*(out if isinstance(out, tuple) else [out]), *ends]
        grads = torch.autograd.grad(sum((o * o).sum() for o in outs), list(leaves.values()))
        found.append([*outs, *grads])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_half_precision(backend):
    check(load("memory_feeds_cell"), 37, backend, dtype=torch.bfloat16)


def test_outs_have_the_dtype_of_the_first_input():
    mixer = load("between_two")
    x, _ = given(mixer, 3, 1, 1, torch.bfloat16)
    for backend in ("torch", "triton"):
        out, final = mixer(**x, backend=backend, output_final_state=True)
        assert {o.dtype for o in out} == {torch.bfloat16}
        assert {s.dtype for s in final.values()} == {torch.float32}


def test_decode_goes_on_where_a_call_ended():
    mixer = load("looks_back")
    x, _ = given(mixer, 12, 2, 2, torch.float64)
    whole, end = mixer(**x, output_final_state=True)
    tokens = {d.name for d in mixer.declared.ins}
    _, state = mixer(**{n: t[:, :8] if n in tokens else t for n, t in x.items()}, output_final_state=True)
    for t in range(8, 12):
        out, state = mixer.step(state, **{n: v[:, t] if n in tokens else v for n, v in x.items()})
        torch.testing.assert_close(out, whole[:, t])
    for n in end:
        torch.testing.assert_close(state[n], end[n])


def test_explained_and_refused():
    mixer = load("memory_feeds_cell")
    text = mixer.explain()
    assert "`memory_feeds_cell_1`: `S`; hands on `S_read[D]`" in text and "## Part `memory_feeds_cell_2`" in text
    assert "S" in mixer.why and mixer.form == {"S": "chunk", "h": "sequential"}
    assert "shares a matrix of every token" in load("a_matrix_stays").why["S"]
    from mixc.codegen.config import Config
    with pytest.raises(InputError, match="runs in 2 parts"):
        mixer.emit(config=Config())


def test_tiles_are_tuned_part_by_part(tmp_path, monkeypatch):
    from mixc.autotune.tuned import first, tuned
    from mixc.runtime.parts import mixer_of
    from mixc.targets import find
    monkeypatch.setenv("MIXC_CACHE_DIR", str(tmp_path))
    part, sizes = classify(load("memory_feeds_cell").declared).parts[0], dict(B=1, T=64, H=1, D=16, K=16)
    made, _, _ = tuned(mixer_of(part), find("h100"), sizes, "bf16", best=1, workers=1)
    assert made.mixer == part.name and first(mixer_of(part), part, find("h100"), sizes, "bf16") == made.config
