"""Specs that are one function run on one set of kernels."""

from __future__ import annotations

from random import Random

import pytest
import torch

import mixc
from mixc.codegen import offline
from mixc.hashing import same_function
from mixc.runtime import shared
from mixc.runtime.load import shipped
from tests.agree import assert_agree
from tests.hashing.rewrite import read, rewritten, text

KINKED = """mixer kinked(K, V) {{
    in q[K], k[K], v[V]
    state S[K, V] = 0
    S = S + k * {}
    out o[V] = q @ S
}}"""


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The emitted modules that are loaded; what other tests have is not there."""
    texts: list[str] = []
    shared._owners.clear()
    shared._found.clear()

    def load(text: str, name: str, load=offline.load_text):
        texts.append(text)
        return load(text, name)
    monkeypatch.setattr(offline, "load_text", load)
    return texts


def gradients(mixer: mixc.Mixer, given: dict[str, torch.Tensor], state: dict[str, torch.Tensor], **options):
    """The out ("o"), and by name the gradients, of an initial state too."""
    leaves = {n: x.clone().requires_grad_() for n, x in (given | state).items()}
    o, states = mixer(**{n: leaves[n] for n in given}, initial_state={n: leaves[n] for n in state},
                      output_final_state=True, **options)
    loss = o.square().sum() + sum((s * s.new_tensor(0.3)).sin().sum() for s in states.values())
    return {"o": o} | dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("seed", [3, 8])
def test_a_rewritten_spec_runs_on_the_kernels_of_the_first(seed: int, loaded: list[str]) -> None:
    own = mixc.load("gated_delta_rule")
    same = mixc.loads(text(rewritten(read(shipped()["gated_delta_rule"].read_text()), Random(seed))))
    matching = same_function(own, same)
    assert matching is not None and own.text != same.text
    torch.manual_seed(0)
    ins = {d.name: torch.randn(2, 20, 3, *({"K": 16, "V": 32}[n] for n in d.dims)) * 0.3 for d in own.declared.ins}
    ins |= {"g": -ins["g"].abs(), "beta": ins["beta"].sigmoid(),
            "k": 0.99 * torch.nn.functional.normalize(ins["k"], dim=-1)}
    S0, (state,) = torch.randn(2, 3, 16, 32), same.declared.states
    turned = [matching.dims[d] for d in own.declared.states[0].dims] != list(state.dims)
    want = gradients(own, ins, {"S": S0}, backend="triton")
    got = gradients(same, {matching.names[n]: x for n, x in ins.items()}, {state.name: S0.mT if turned else S0},
                    backend="triton")
    assert len(loaded) == 1, "both have kernels of their own"
    for n, y in want.items():
        z = got["o" if n == "o" else matching.names[n]]
        assert_agree(z.mT if n == "S" and turned else z, y)


def test_where_there_are_kinks_nothing_is_shared(loaded: list[str]) -> None:
    """relu(v) and maximum(v, 0) are one function with two derivatives at 0."""
    a, b = mixc.loads(KINKED.format("relu(v)")), mixc.loads(KINKED.format("maximum(v, 0)"))
    q, v = torch.ones(1, 3, 1, 16), torch.zeros(1, 3, 1, 16)

    def gradient(mixer: mixc.Mixer, backend: str) -> torch.Tensor:
        leaf = v.clone().requires_grad_()
        return torch.autograd.grad(mixer(q, q, leaf, backend=backend)[0].sum(), leaf)[0]
    got = [gradient(mixer, "triton") for mixer in (a, b)]
    assert len(loaded) == 2
    assert not torch.equal(*got)
    for mixer, g in zip((a, b), got, strict=True):
        torch.testing.assert_close(g, gradient(mixer, "reference").float(), check_dtype=False)
