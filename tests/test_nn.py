"""`mixc.nn.Mixer`: a module that owns the params of a spec."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import mixc

TEXT = """\
mixer m(K, V, E = V) {
    in q[K], k[K], v[V]
    param a where 0 < a < 1
    param W[V, E]
    param z complex
    const scale = K ** -0.5
    const twice = 2 * scale
    state S[K, V] = 0.5

    S = a * S + twice * k * v
    out o[E] = sum[V](W * (q @ S)) * real(z)
}
"""


def made(**more: object) -> mixc.nn.Mixer:
    return mixc.nn.Mixer(mixc.loads(TEXT), **{"heads": 2, "K": 3, "V": 4, **more})


def tensors(T: int = 5, H: int = 2, K: int = 3, V: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, T, H, n) for n in (K, K, V)]


def test_it_is_the_call_with_its_params() -> None:
    m = made()
    assert {n: tuple(p.shape) for n, p in m.named_parameters()} == {"a": (2,), "W": (2, 4, 4), "z": (2,)}
    assert m.z.is_complex() and bool(((m.a > 0) & (m.a < 1)).all())
    o, state = m(*tensors(), output_final_state=True)
    want, _ = m.mixer(*tensors(), a=m.a, W=m.W, z=m.z)
    assert torch.equal(o, want) and state["S"].shape == (2, 2, 3, 4)
    o.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
    q, k, v = tensors(1)
    assert m.step(None, q[:, 0], k[:, 0], v[:, 0])[0].shape == (2, 2, 4)


def test_consts_are_attributes() -> None:
    m = made()
    assert m.scale == pytest.approx(3 ** -0.5) and m.twice == pytest.approx(2 * 3 ** -0.5)
    before, _ = m(*tensors(), initial_state=torch.zeros(2, 2, 3, 4))
    m.scale = 1.0
    assert m.twice == 2.0
    after, _ = m(*tensors(), initial_state=torch.zeros(2, 2, 3, 4))
    torch.testing.assert_close(after, before * 3 ** 0.5)
    assert torch.equal(made(scale=0.0)(*tensors(), initial_state=torch.zeros(2, 2, 3, 4))[0], torch.zeros(2, 5, 2, 4))
    torch.testing.assert_close(m(*tensors(), scale=0.5)[0], made_like(m, scale=0.5)(*tensors())[0])
    with pytest.raises(AttributeError, match="nothing"):
        _ = m.nothing


def made_like(m: mixc.nn.Mixer, **more: object) -> mixc.nn.Mixer:
    other = made(**more)
    other.load_state_dict(m.state_dict())
    return other


def test_state_dict_pickle_and_copy() -> None:
    m = made(scale=0.3)
    assert list(m.state_dict()) == ["a", "W", "z"]
    want = m(*tensors())[0]
    for again in (made_like(m, scale=0.3), copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(again(*tensors())[0], want) and again.scale == 0.3
    with pytest.raises(RuntimeError, match="size mismatch for W"):
        made(V=5).load_state_dict(m.state_dict())


def test_moves() -> None:
    m = made().double()
    assert m.a.dtype == torch.float64 and m.z.dtype == torch.complex64  # as torch does it
    assert m(*[x.double() for x in tensors()])[0].dtype == torch.float64
    assert made(dtype=torch.float64).W.dtype == torch.float64
    meta = made(device="meta")
    assert meta.W.is_meta and meta.to_empty(device="cpu").reset_parameters() is None


def test_initialisers() -> None:
    m = made(init={"a": 0.25, "W": torch.nn.init.ones_, "z": lambda z: torch.full_like(z, 2j)})
    assert m.a.eq(0.25).all() and m.W.eq(1).all() and m.z.eq(2j).all()
    torch.manual_seed(3)
    a = made()
    torch.manual_seed(3)
    b = made()
    assert torch.equal(a.W, b.W)
    b.reset_parameters()
    assert not torch.equal(a.W, b.W)


def test_it_shows_itself() -> None:
    assert repr(made(scale=0.5)) == "Mixer(m, heads=2, K=3, V=4, E=4, scale=0.5)"


def test_without_heads() -> None:
    m = made(heads=None)
    assert m.W.shape == (4, 4) and m.a.shape == ()
    assert m(*[x[:, :, 0] for x in tensors()])[0].shape == (2, 5, 4)


@pytest.mark.parametrize(("more", "words"), [
    ({"X": 3}, "no dim and no const `X`"), ({"V": 0}, "at least 1"), ({"E": 3}, "expected 4"),
    ({"init": {"b": 0}}, "no param `b`"), ({"heads": "2"}, "heads: expected a whole number .* got '2'"),
    ({"init": {"W": torch.zeros(4)}}, r"expected for W.V, E. a number, a tensor .2, 4, 4., .* got .4."),
    ({"init": {"W": lambda W: W[0]}}, r"got .4, 4."), ({"init": {"W": "orthogonal"}}, "got str")])
def test_refused(more: dict, words: str) -> None:
    with pytest.raises(mixc.InputError, match=words):
        made(**more)


def test_sizes_are_held_against_inputs() -> None:
    with pytest.raises(mixc.InputError, match="needs the size of `V`"):
        mixc.nn.Mixer(mixc.loads(TEXT), K=3)
    with pytest.raises(mixc.InputError, match=r"`q`: expected q.K. with K = 3, as the module was made"):
        made()(*tensors(K=4))
