"""Complex values as two real ones: the same meaning, the same gradients, and a scan where there was none."""

from __future__ import annotations

import pytest
import torch

import mixc
from mixc.passes.planes import is_complex, planes
from tests.agree import assert_agree, assert_runs_agree, draw, run
from tests.scans import body

COMPLEX = {
    "products": "in u[D] complex\nin a[D] complex\nstate h[D]\nh = a * h + u\n"
                "out o[D] = h\nout p[D] = real(conj(h) * u)",
    "real_decay": "in u[D] complex\nin f[D]\nstate h[D]\nh = sigmoid(f) * h + u\nout o[D] = h",
    "quotient": "in u[D] complex\nparam w[D]\nstate h[D]\n"
                "h = u / (2 + 1j * w) + exp(1j * w - 1) * h\nout o[D] = imag(h)",
    "reset": "in u[D] complex\nin r\nparam w[D]\nstate h[D]\n"
             "h = where(r > 0.5, u, exp(1j * w) * h)\nout o[D] = square(h)",
}


def check(mixer, T, **options):
    x = draw(mixer.declared, B=1, T=T, H=2, dtype=torch.float64, seed=T)
    assert_runs_agree(mixer, run(mixer, x, backend="torch", **options), run(mixer, x, **options), torch.float64)


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("T", [1, 17, 70])
def test_runs_as_a_scan(name, T):
    mixer = body(COMPLEX[name], name)
    assert set(mixer.form.values()) == {"scan"} and "planes" in mixer.why["h"]
    check(mixer, T)


@pytest.mark.parametrize("name", ["lru", "s5"])
def test_examples(name):
    mixer = mixc.load(name)
    assert mixer.form == {"x": "scan"}
    check(mixer, 70)
    check(mixer, 40, cu_seqlens=torch.tensor([0, 0, 7, 40]), reverse=True)


def test_prefill_then_step():
    mixer = mixc.load("lru")
    x = draw(mixer.declared, B=2, T=9, H=1, dtype=torch.float64)
    whole, end = mixer(**x, output_final_state=True, backend="torch")
    params = {d.name: x[d.name] for d in mixer.declared.params}
    _, state = mixer(u=x["u"][:, :8], **params, output_final_state=True, backend="torch")
    o, state = mixer.step(state, u=x["u"][:, 8], **params)
    assert_agree(o, whole[:, 8], torch.float64)
    assert_agree(state["x"], end["x"], torch.float64)


def test_no_complex_value_is_left():
    for text in COMPLEX.values():
        step = body(text).declared
        made = planes(step)
        assert is_complex(step) and made is not None and not is_complex(made)


def test_what_has_no_planes_stays_sequential():
    mixer = body("in u[D] complex\nstate h[D]\nh = 0.5 * h + tanh(u)\nout o[D] = h")
    assert planes(mixer.declared) is None and set(mixer.form.values()) == {"sequential"}
