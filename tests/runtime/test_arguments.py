"""What a call refuses: the argument named, what was expected in the spec's dims, and what came."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import subprocess
import sys

import pytest
import torch

import mixc
from mixc import InputError

from . import specs
from .specs import delta_inputs

NAMES = ("q", "k", "v", "g", "beta")
ARGS = dict(zip(NAMES, delta_inputs(B=2, T=5, H=4, K=3, V=6, dtype=torch.float32), strict=True))
MIXER = specs.gated_delta()


def other(**changes):
    return {**ARGS, **changes}


BAD = {
    "missing": ({n: ARGS[n] for n in ("q", "k", "v", "g")}, "misses `beta`"),
    "extra": (other(gate=ARGS["g"]), "no argument `gate`"),
    "near name": (other(initial_states=None), "did you mean `initial_state`"),
    "no tensor": (other(k=3.0), r"`k`: expected a tensor \[B, T, H, K\], got float"),
    "rank": (other(k=ARGS["k"][..., None]), r"`k`: expected \[B, T, H, K\], got \[2, 5, 4, 3, 1\]"),
    "no head axis": (other(g=ARGS["g"][..., 0]), r"`g`: expected \[B, T, H\], got \[2, 5\].*head axis"),
    "sizes": (other(k=torch.randn(2, 5, 4, 7)),
              r"`k`: expected \[B, T, H, K\] with K = 3 \(from `q`\), got \[2, 5, 4, 7\]"),
    "T": (other(v=ARGS["v"][:, :4]), r"`v`: .* with T = 5 \(from `q`\), got \[2, 4, 4, 6\]"),
    "B": (other(v=ARGS["v"][:1]), r"`v`: .* with B = 2 \(from `q`\)"),
    "zero dim": (other(v=ARGS["v"][..., :0]), r"`v`: .* with V at least 1"),
    "zero heads": (other(v=ARGS["v"][:, :, :0]), r"`v`: .* with H at least 1"),
    "heads": (other(g=ARGS["g"][:, :, :3]), r"`g`: .* divides H = 4 \(from `q`\), got \[2, 5, 3\]"),
    "ints": (other(g=ARGS["g"].long()), r"`g`: .*float64, float32, bfloat16, float16, got int64"),
    "bools": (other(g=ARGS["g"] > 0), "`g`: .*got bool"),
    "complex": (other(v=ARGS["v"] + 0j), "`v`: .*got complex64"),
    "device": (other(v=ARGS["v"].to("meta")), "`v`: expected on cpu, as `q`, got meta"),
    "numpy": (other(v=ARGS["v"].numpy()), r"got ndarray array\(\[[^\n]*$"),
    "sparse": (other(v=ARGS["v"].to_sparse()), r"`v`: expected a dense tensor \[B, T, H, V\], got one of layout sp"),
    "cu batch": (other(cu_seqlens=torch.tensor([0, 5])), "`cu_seqlens`: .*B = 1, .*got B = 2"),
    "cu list": (other(cu_seqlens=[0, 5]), "`cu_seqlens`: .*got list"),
    "cu dtype": (other(cu_seqlens=torch.tensor([0.0, 5.0])), "`cu_seqlens`: .*got float32"),
    "mask shape": (other(mask=torch.ones(2, 4).bool()),
                   r"`mask`: expected bool \[B, T\] = \[2, 5\], got bool \[2, 4\]"),
    "mask dtype": (other(mask=torch.ones(2, 5)), "`mask`: .*got float32"),
    "mask list": (other(mask=[True]), "`mask`: .*got list"),
    "state shape": (other(initial_state=torch.zeros(2, 4, 6, 3)),
                    r"`initial_state\['S'\]`: expected \[B, H, K, V\] = \[2, 4, 3, 6\], got \[2, 4, 6, 3\]"),
    "state name": (other(initial_state={"R": torch.zeros(2, 4, 3, 6)}), "no state `R`; it has S"),
    "state dtype": (other(initial_state=torch.zeros(2, 4, 3, 6).int()), "`initial_state.*got int32"),
    "state kind": (other(initial_state=[torch.zeros(2, 4, 3, 6)]), "`initial_state`: expected a dict .*got list"),
    "state device": (other(initial_state=torch.zeros(2, 4, 3, 6, device="meta")), "`initial_state.*got meta"),
    "state layout": (other(initial_state=torch.zeros(2, 4, 3, 6).to_sparse()), "`initial_state.*dense.*layout sparse"),
    "reverse text": (other(reverse="no"), "`reverse`: expected True or False, got str 'no'"),
    "check tensor": (other(check=torch.ones(2)), "`check`: expected True or False, got Tensor"),
    "final list": (other(output_final_state=[0]), "`output_final_state`: expected True or False, got list"),
    "backend list": (other(backend=["torch"]), r"`backend`: expected one of .*, got \['torch'\]"),
    "const tensor": (other(scale=torch.ones(4)), "`scale` is a const: .*got a tensor float32"),
    "const grad": (other(scale=torch.ones((), requires_grad=True)), "`scale` is a const: .*with gradient"),
    "const int tensor": (other(scale=torch.ones((), dtype=torch.int64)), "`scale` is a const"),
    "const text": (other(scale="big"), "`scale` is a const: expected a number, got str"),
    "backend": (other(backend="cuda"), "`backend`: expected one of auto, reference, torch, torch.compile, triton, "
                                         "got 'cuda'"),
    "range": (other(g=-ARGS["g"], check=True), "`g`: expected g <= 0, got"),
    "two-sided": (other(beta=ARGS["beta"] + 1, check=True), "`beta`: expected beta <= 1, got"),
    "norm": (other(k=ARGS["k"] * 2, check=True), r"`k`: expected norm\[K\]\(k\) <= 1, got"),
    "nan": (other(g=ARGS["g"] * float("nan"), check=True), "`g`: expected g <= 0, got nan"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    """Such a strided one has no shape: torch failed, "internal error"."""
    nested = torch.nested.nested_tensor([torch.ones(2, 3)], layout=layout)
    with pytest.raises(InputError, match=r"`v`: expected a dense .* got a nested one; .*cu_seqlens"):
        MIXER(**other(v=nested))


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    args, message = BAD[case]
    with pytest.raises(InputError, match=message):
        MIXER(**args)


def test_sparse_tensors_are_refused_behind_dense_ones():
    """A call, and a step, of shapes seen before: the layout is one of them."""
    MIXER(**ARGS)
    with pytest.raises(InputError, match="dense tensor"):
        MIXER(**other(v=ARGS["v"].to_sparse()))
    one = {n: x[:, 0] for n, x in ARGS.items()}
    _, state = MIXER.step(None, **one)
    MIXER.step(state, **one)
    with pytest.raises(InputError, match="dense tensor"):
        MIXER.step(state, **one | {"v": one["v"].to_sparse()})


@pytest.mark.parametrize(("ends", "message"), [
    ([0, 3, 2, 5], "do not decrease"), ([1, 5], "from 0 to T = 5, got 1"), ([0, 4], "got 0 to 4"), ([], r"\[0\]")])
def test_cu_seqlens_values(ends, message):
    with pytest.raises(InputError, match="`cu_seqlens`: .*" + message):
        MIXER(*[x[:1] for x in ARGS.values()], cu_seqlens=torch.tensor(ends, dtype=torch.int64))


def test_states_are_named_as_the_caller_knows_them():
    rows = {n: x[:1] for n, x in ARGS.items()}
    with pytest.raises(InputError, match=r"`initial_state\['S'\]`: expected \[N, H, K, V\] = \[2, 4, 3, 6\], got"):
        MIXER(**rows, cu_seqlens=torch.tensor([0, 2, 5]), initial_state=torch.zeros(1, 4, 3, 6))
    with pytest.raises(InputError, match=r"`state\['S'\]`: expected \[B, H, K, V\] = \[2, 4, 3, 6\], got"):
        MIXER.step(torch.zeros(1, 4, 3, 6), *[x[:, 0] for x in ARGS.values()])


def test_meta_tensors_tell_shapes():
    o, state = MIXER(**{n: x.to("meta") for n, x in ARGS.items()}, output_final_state=True)
    assert (o.shape, state["S"].shape, o.device.type) == ((2, 5, 4, 6), (2, 4, 3, 6), "meta")


@pytest.mark.parametrize(("given", "message"), [
    (dict(dtype="int8"), "`dtype`: expected bf16, fp16 or fp32, got 'int8'"),
    (dict(shape="K=4"), "`shape`: expected a dict"),
    (dict(shape=dict(Q=4)), "has no dim `Q`; it has K, V"),
    (dict(shape=dict(K=-4)), "`K` must be .* from 1 on, got -4")])
def test_emit_refuses(given, message):
    with pytest.raises(InputError, match=message):
        MIXER.emit(**given)


def test_a_mixer_without_inputs_says_so():
    mixer = mixc.loads("mixer m(D) {\nparam p[D]\nstate s[D]\ns = s + p\nout o[D] = s\n}")
    for use in (lambda: mixer(torch.zeros(1, 3)), mixer.emit):
        with pytest.raises(InputError, match="no input, so a call has no length"):
            use()


def test_position_and_keyword():
    with pytest.raises(InputError, match=r"takes 5 tensors \(q, k, v, g, beta\), got 6"):
        MIXER(*ARGS.values(), ARGS["g"])
    with pytest.raises(InputError, match="`q` is given twice"):
        MIXER(*ARGS.values(), q=ARGS["q"])
    torch.testing.assert_close(MIXER(*ARGS.values())[0], MIXER(**ARGS)[0])
    assert isinstance(InputError(""), ValueError)


def test_no_heads():
    bare = {n: x[:, :, 0] for n, x in ARGS.items()}
    assert MIXER(**bare)[0].shape == (2, 5, 6)
    with pytest.raises(InputError, match=r"`initial_state\['S'\]`: expected \[B, K, V\] = \[2, 3, 6\]"):
        MIXER(**bare, initial_state=torch.zeros(2, 1, 3, 6))
    with pytest.raises(InputError, match=r"`R.`: expected \[E, D\], got \[2, 3, 3\] \(no input has a head axis\)"):
        specs.lstm()(*[torch.randn(2, 4, 3)] * 4, *[torch.randn(2, 3, 3)] * 4)


def test_aliases_fixed_sizes_and_unknown_ones():
    with pytest.raises(InputError, match=r"`Ri`: .*with E = 3 \(from `xi`\), got \[1, 4, 3\]"):
        specs.lstm()(*[torch.randn(2, 4, 1, 3)] * 4, *[torch.randn(1, 4, 3)] * 4)
    with pytest.raises(InputError, match=r"`k`: .*with N = 3 \(from the spec\)"):
        specs.householder()(torch.randn(1, 2, 1, 2), torch.randn(1, 2, 1, 2, 2), torch.randn(1, 2, 1, 2, 2))


def test_several_states():
    mixer, args = specs.normalised(), [ARGS["q"], ARGS["k"], ARGS["v"]]
    with pytest.raises(InputError, match=r"expected a dict by name \(S, n\)"):
        mixer(*args, initial_state=torch.zeros(2, 4, 3, 6))
    (_, z), state = mixer(*args, initial_state={"n": torch.ones(2, 4, 3)}, output_final_state=True)
    assert set(state) == {"S", "n"} and z.shape == (2, 5, 4)


def test_histories_are_checked():
    x, u, c = torch.randn(2, 4, 1, 3), torch.randn(2, 4, 1), torch.randn(1, 3, 4)
    for state, message in (({"x": torch.zeros(2, 2, 1, 3)}, r"\['x'\]`: expected \[B, 3, H, D\] = \[2, 3, 1, 3\]"),
                           ({"pos": torch.zeros(2)}, r"\['pos'\]`: expected int64 \[B\] = \[2\], got float32"),
                           ({"u": torch.zeros(2, 2, 1)}, "no state `u`; it has S, x, local, pos")):
        with pytest.raises(InputError, match=message):
            specs.counting()(x, u, c, initial_state=state)


def test_step_refuses_rows():
    with pytest.raises(InputError, match="step has no argument `mask`"):
        MIXER.step(None, *[x[:, 0] for x in ARGS.values()], mask=None)
    with pytest.raises(InputError, match=r"`q`: expected \[B, H, K\]"):
        MIXER.step(None, *ARGS.values())


def test_named_outs_are_a_pytree():
    from torch.utils import _pytree

    o, _ = specs.normalised()(ARGS["q"], ARGS["k"], ARGS["v"])
    assert o._fields == ("o", "z") and o.o is o[0]
    leaves, spec = _pytree.tree_flatten(o)
    assert len(leaves) == 2 and type(_pytree.tree_unflatten(leaves, spec)) is type(o)
    assert type(pickle.loads(pickle.dumps(o))) is type(o)


def test_a_mixer_says_what_it_takes():
    assert str(inspect.signature(MIXER)).startswith("(q, k, v, g, beta, *, scale=K ** -0.5, initial_state=None")
    assert repr(MIXER) == "<mixer gated_delta(q[K], k[K], v[V], g, beta, *, scale=K ** -0.5) -> o[V]; state S[K, V]>"
    text = pydoc.plain(pydoc.render_doc(MIXER))
    assert "The gated_delta." in text and "[B, T, H, K]" in text and "norm[K](k) <= 1" in text
    assert MIXER.form == {"S": MIXER.form["S"]} and MIXER.why["S"]


def test_copies():
    for again in (copy.deepcopy(MIXER), pickle.loads(pickle.dumps(MIXER))):
        torch.testing.assert_close(again(**ARGS)[0], MIXER(**ARGS)[0])


def test_notes_are_said_once():
    mixer = specs.lstm()
    args = [torch.randn(1, 2, 1, 3)] * 4 + [torch.randn(1, 3, 3)] * 4
    with pytest.warns(UserWarning, match="MX301"):
        mixer(*args)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixer(*args)


def test_import_is_light():
    code = "import torch, sys, mixc; print([m for m in ('sympy', 'lark', 'networkx', 'triton') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stdout
