"""Updates that read their state where no gradient goes: parallel over time, forward and backward."""

import pytest
import torch

import mixc
from mixc.passes.detached import detached
from tests.agree import assert_runs_agree, draw, run

MATRIX = "in q[K], k[K] where norm[K](k) <= 1\nin v[V], b where 0 <= b <= 1\nstate S[K, V]\n"
VECTOR = "in x[K], y[V], a[K] where 0 <= a <= 1\nstate s[K]\n"
PARALLEL = {
    "a delta rule": MATRIX + "S = exp(-b) * S\nS = S + b * k * (v - stop_gradient(k @ S))\nout o[V] = q @ S",
    "the other side": MATRIX + "S = S - b * stop_gradient(S @ v) * v + k * v\nout o[V] = q @ S",
    "one in another": MATRIX + "r = stop_gradient(k @ S)\n"
                      "S = S + b * k * (v - stop_gradient((k - q) @ S + 0.1 * r))\nout o[V] = q @ S + r",
    "several updates": "in y[N, K] where norm[K](y) <= 1\n" + MATRIX
                       + "for n in N { S = S + b * y[n] * (v - stop_gradient(y[n] @ S)) }\nout o[V] = (q + k) @ S",
    "two states": MATRIX + "state h[V]\nh = 0.9 * h + (v - stop_gradient(k @ S))\nS = S + b * k * h\nout o[V] = q @ S",
    "complex": "in lam[K] complex where abs(lam) <= 1\n" + MATRIX
               + "S = lam * S + b * k * (v - stop_gradient(real(k @ S)))\nout o[V] = real(q @ S)",
    "one that takes over another": MATRIX + "state M[K, V]\nS = S - 0.3 * M + b * (q - stop_gradient(S @ v)) * v\n"
                                   "M = 0.5 * M + k * v\nout o[V] = q @ S",
    "one that another takes over": MATRIX + "state M[K, V]\nM = M + b * k * (v - stop_gradient(k @ M))\n"
                                   "S = exp(-b) * S + 0.3 * M\nout o[V] = q @ S",
    "the rows of a param's decay": "param w[K]\n" + MATRIX + "S = exp(-abs(w * b)) * S + k * v\n"
                                   "S = S - b * v * stop_gradient(S @ v)\nout o[V] = q @ S",
    "a vector": VECTOR + "s = a * stop_gradient(s) + x\nout o[K] = s * sum(y)",
    "two vectors": VECTOR + "state z[K]\nz = a * z - stop_gradient(s) + x\ns = s + 0.1 * z\nout o[K] = s * sum(y)",
}
CELL = MATRIX + "state h[V]\nh = tanh(h + v)\nS = S + b * k * (h - stop_gradient(k @ S))\nout o[V] = q @ S"


def made(body: str) -> mixc.Mixer:
    return mixc.loads("mixer m(K, V, N = 2) {\n" + body.replace("}", "}\n") + "\n}")


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", [*PARALLEL, "beside a cell"])
@pytest.mark.filterwarnings("ignore:.*MX301")
def test_values_and_gradients_are_the_steps(name: str, backend: str) -> None:
    mixer = made(PARALLEL.get(name, CELL))
    forms = {"chunk" if MATRIX in PARALLEL[name] else "scan"} if name in PARALLEL else {"chunk", "sequential"}
    assert {*mixer.form.values()} == forms
    x = draw(mixer.declared, B=2, T=37, H=2, sizes={"K": 6, "V": 5})
    states = {n: s.to(torch.float32) if not s.is_complex() else s.to(torch.complex64)
              for n, s in run(mixer, x, grads=False).states.items()}
    want = run(mixer, x, wide=True, initial_state=states)
    assert_runs_agree(mixer, run(mixer, x, backend=backend, initial_state=states), want)


def test_no_gradient_goes_where_the_step_has_none() -> None:
    """The values are the delta rule's, the gradients those of linear attention that is given what is written."""
    mixer, plain = made(PARALLEL["a delta rule"]), made(PARALLEL["a delta rule"].replace("stop_gradient", ""))
    x = draw(mixer.declared, B=1, T=20, H=1, sizes={"K": 6, "V": 5})
    cut, whole = run(mixer, x, backend="torch"), run(plain, x, backend="torch")
    torch.testing.assert_close(cut.outs["o"], whole.outs["o"])
    assert (cut.grads["k"] - whole.grads["k"]).abs().max() > 0.01
    assert "solve" in mixer.explain() and "transposed=True" in plain.explain()
    assert "transposed=True" not in mixer.explain()  # its adjoint solves nothing


def test_every_entry_of_a_matrix_is_too_much_to_find_first() -> None:
    mixer = made(MATRIX + "S = b * stop_gradient(S) + k * v\nout o[V] = q @ S")
    assert mixer.form == {"S": "sequential"} and "`stop_gradient(S)`" in mixer.why["S"]


def test_what_is_not_in_the_way_stays() -> None:
    """M reads S, which does not read it again: both are chunks as they stand."""
    mixer = made(MATRIX + "state M[K, V]\nS = b * S + k * v\nM = M + k * stop_gradient(q @ S)\nout o[V] = q @ M")
    assert detached(mixer.declared) is None and mixer.form == {"S": "chunk", "M": "chunk"}


def test_the_reason_names_what_is_found_first() -> None:
    mixer = made(PARALLEL["a delta rule"])
    assert mixer.why["S"].startswith("with `stop_gradient(k @ S)` (line 6) found first, where no gradient goes: affine")
    assert "stop_gradient(k @ x1)" in mixer.explain().split("## Form")[0]
