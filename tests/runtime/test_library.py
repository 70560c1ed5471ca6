"""Mixers inside torch's own machinery: operators, compile, export, autocast, checkpointing, hooks, DDP."""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch._dynamo.testing import CompileCounterWithBackend

import mixc
from mixc.runtime import library, memory
from mixc.runtime.draw import draw
from mixc.runtime.load import shipped

Tensor = torch.Tensor
SHIPPED = sorted(shipped())
FEW = ["simple_gla", "gated_delta_rule", "lstm", "min_gru", "rwkv7", "short_conv", "lru", "mlstm_stabilised"]
STATEFUL = """\
mixer m(K, V, W = 3) {
    in q[K], k[K], v[V]
    param A[K]
    const scale = K ** -0.5
    state S[K, V] = A * index[V], n
    c = sum[W](lag[W](v))
    n = n + 1 / (1 + pos)
    S = tanh(S) + scale * k * c
    out o[V] = q @ S
    out m = n
}
"""


def inputs(m: mixc.Mixer, T: int = 5, grad: bool = True, **more: Any) -> dict[str, Tensor]:
    return {n: x.requires_grad_(grad) for n, x in draw(m.declared, T=T, **more).items()}


def outs(o: Any) -> list[Tensor]:
    return [o] if isinstance(o, Tensor) else list(o)


def pulled(o: Any, state: dict[str, Tensor] | None, leaves: list[Tensor]) -> list[Tensor]:
    roots = [x.abs() if x.is_complex() else x for x in [*outs(o), *(state or {}).values()] if x.requires_grad]
    found = torch.autograd.grad(sum(x.float().square().sum() for x in roots), leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def agree(m: mixc.Mixer, compiled: Any, given: dict[str, Tensor], **options: Any) -> None:
    """Outs, states and gradients of a compiled call are those of the eager one, bit for bit."""
    o, s = compiled(given, options)
    want, w = m(**given, output_final_state=True, **options)
    assert type(o) is type(want) and list(s) == list(w)
    for a, b in zip([*outs(o), *s.values()], [*outs(want), *w.values()], strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    leaves = [x for x in given.values() if x.requires_grad]
    for a, b in zip(pulled(o, s, leaves), pulled(want, w, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def compiled(m: mixc.Mixer, **how: Any) -> Any:
    return torch.compile(lambda x, options: m(**x, output_final_state=True, **options), fullgraph=True,
                         **{"backend": "aot_eager", **how})


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in SHIPPED])
@pytest.mark.filterwarnings("ignore:note")
def test_every_example(name: str) -> None:
    m = mixc.load(name)
    given = inputs(m)
    torch.library.opcheck(m.operator, m.operator_args(*given.values()))
    agree(m, compiled(m), given)


@pytest.mark.filterwarnings("ignore:note")
@pytest.mark.parametrize("options", [
    {"reverse": True}, {"mask": torch.arange(10).view(2, 5) % 3 > 0}, {"scale": 0.3}, {"backend": "reference"},
    {"scale": torch.tensor(0.25)}, {"initial_state": {"n": torch.ones(2, 2), "pos": torch.tensor([3, 1])}}])
def test_every_option(options: dict[str, Any]) -> None:
    m = mixc.loads(STATEFUL)
    agree(m, compiled(m), inputs(m), **options)


@pytest.mark.filterwarnings("ignore:note")
def test_ragged_and_step() -> None:
    m = mixc.loads(STATEFUL)
    agree(m, compiled(m), inputs(m, B=1, T=7), cu_seqlens=torch.tensor([0, 3, 3, 7]))
    step = torch.compile(lambda s, q, k, v, A: m.step(s, q, k, v, A), fullgraph=True, backend="aot_eager")
    x = inputs(m, T=3, grad=False)
    A, s, found = x.pop("A"), None, []
    for t in range(3):
        o, s = step(s, *(y[:, t] for y in x.values()), A)
        found.append(o.o)
    torch.testing.assert_close(torch.stack(found, 1), m(**x, A=A)[0].o)


def test_inductor() -> None:
    m = mixc.load("simple_gla")
    agree(m, compiled(m, backend="inductor"), inputs(m))


# ---------------------------------------------------------------- how often it compiles
def count(lengths: list[int], dynamic: bool | None, call: Any = None) -> int:
    m, counter = mixc.load("simple_gla"), CompileCounterWithBackend("eager")
    f = torch.compile(lambda x: m(**x)[0], fullgraph=True, backend=counter, dynamic=dynamic)
    for T in lengths:
        x = inputs(m, T=T, sizes={"K": 5, "V": 7})
        assert torch.equal(f(x), m(**x)[0])
    return counter.frame_count


def test_lengths_recompile_at_most_once() -> None:
    assert count([6, 9, 11, 30, 64, 65, 130], None) <= 2
    assert count([6, 9, 11, 30, 64, 65, 130], True) == 1


def test_consts_as_tensors_never_recompile() -> None:
    m, counter = mixc.load("simple_gla"), CompileCounterWithBackend("eager")
    f = torch.compile(lambda x, c: m(**x, scale=c)[0], fullgraph=True, backend=counter)
    x = inputs(m)
    for c in (0.1, 0.2, 7.0):
        assert torch.equal(f(x, torch.tensor(c)), m(**x, scale=c)[0])
    assert counter.frame_count == 1


def test_a_const_that_shapes_the_step_is_a_number_there() -> None:
    m = mixc.loads("mixer m(D) {\n in x[D]\n const n = 2\n out y[D] = x ** n\n}")
    f = torch.compile(lambda x, c: m(x, n=c)[0], fullgraph=True, backend="eager")
    x = torch.rand(1, 3, 2)
    torch.testing.assert_close(f(x, 3.0), x ** 3)
    with pytest.raises(Exception, match="shapes the step"):
        f(x, torch.tensor(3.0))


def test_bad_calls_say_what_is_wrong() -> None:
    m = mixc.load("simple_gla")
    x = inputs(m)
    for change, words in [({"k": x["k"][..., :-1]}, "`k`: expected"), ({"k": None}, "expected a tensor|misses `k`"),
                          ({"kk": x["k"]}, "no argument")]:
        with pytest.raises(Exception, match=words):
            torch.compile(lambda y: m(**y)[0], fullgraph=True, backend="eager")({**x, **change})


@pytest.mark.parametrize("call, words", [
    (lambda m, y, q: m(*y, 1.0), "takes 4 tensors .* got 5 by position"),
    (lambda m, y, q: m(*y, q=q), "`q` is given twice"),
    (lambda m, y, q: m(*y, reverse="no"), "`reverse`: expected True or False"),
    (lambda m, y, q: m(*y, output_final_state="no"), "`output_final_state`: expected True or False"),
    (lambda m, y, q: m(*y, scale="1"), "`scale` is a const: expected a number, got str"),
    (lambda m, y, q: m(*y, cu_seqlens=[0, 5]), "`cu_seqlens`: expected a tensor, got list"),
    (lambda m, y, q: m(*y, initial_state=[q]), "`initial_state`: expected a dict by name"),
    (lambda m, y, q: m.step(None, *(x[:, 0] for x in y), mask=q), "step has no argument `mask`"),
    (lambda m, y, q: m.step(None, *(x[:, 0] for x in y), reverse=True), "step has no argument `reverse`")])
def test_what_an_eager_call_refuses_no_graph_takes(call: Any, words: str) -> None:
    """An operator saw no sixth tensor and no second one of a name, took "no" for on, and left a mask of a step out."""
    m = mixc.load("simple_gla")
    y = tuple(inputs(m, grad=False).values())
    with pytest.raises(Exception, match=words):
        torch.compile(lambda *x: call(m, x, x[0])[0], fullgraph=True, backend="eager")(*y)
    with pytest.raises(mixc.InputError, match=words):
        torch.func.vmap(lambda *x: call(m, x, x[0])[0])(*(x[None] for x in y))


def test_one_tensor_for_several_states_is_refused_in_a_graph() -> None:
    m = mixc.load("momentum_delta_rule")
    x = inputs(m, grad=False)
    with pytest.raises(Exception, match=r"expected a dict by name \(S, M\), got one tensor"):
        torch.compile(lambda y: m(**y, initial_state=y["q"])[0], fullgraph=True, backend="eager")(x)


# ---------------------------------------------------------------- the rest of torch
def test_export() -> None:
    m = mixc.load("simple_gla")

    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            o, state = m(q, k, v, g, output_final_state=True)
            return o, state["S"]
    x = tuple(t.detach() for t in inputs(m).values())
    T = torch.export.Dim("T", min=2)
    program = torch.export.export(Layer(), x, dynamic_shapes=tuple({1: T} for _ in x))
    assert any(m.operator is n.target for n in program.graph.nodes)
    longer = tuple(t.detach() for t in inputs(m, T=9).values())
    for y in (x, longer):
        o, state = m(*y, output_final_state=True)
        a, b = program.module()(*y)
        assert torch.equal(a, o) and torch.equal(b, state["S"])


@pytest.mark.filterwarnings("ignore:note")
@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_rule", "lstm", "min_gru"])
def test_autocast_changes_nothing(name: str) -> None:
    m = mixc.load(name)
    given = inputs(m)
    want = m(**given)[0]
    grads = pulled(want, None, list(given.values()))
    for f in (lambda x: m(**x)[0], torch.compile(lambda x: m(**x)[0], fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            o = f(given)
            again = pulled(o, None, list(given.values()))
        assert o.dtype == want.dtype and torch.equal(o, want)
        assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@pytest.mark.filterwarnings("ignore:note")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["simple_gla", "lstm"])
def test_activation_checkpointing(name: str, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint
    m = mixc.load(name)
    given = inputs(m)
    o = checkpoint(lambda *x: m(*x)[0], *given.values(), use_reentrant=reentrant)
    o.square().sum().backward()
    for x, g in zip(given.values(), pulled(m(**given)[0], None, list(given.values())), strict=True):
        assert torch.equal(x.grad if x.grad is not None else torch.zeros_like(x), g)


@pytest.mark.parametrize("name", ["simple_gla", "min_gru", "gla", "elman"])
def test_saved_tensors_are_seen_by_hooks(name: str) -> None:
    """What a call keeps for its backward can be moved away and brought back; nothing else is kept."""
    m = mixc.load(name)
    given = inputs(m, T=40)
    want = pulled(m(**given)[0], None, list(given.values()))
    packed: list[Tensor] = []

    def pack(x: Tensor) -> int:
        packed.append(x.clone())
        return len(packed) - 1

    def unpack(i: int) -> Tensor:
        return packed[i].clone()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        o = m(**given)[0]
        before = len(packed)
        for x in given.values():  # what was kept is no longer what the graph holds
            assert x.grad is None
    assert before > len(given)  # the inputs, and what the chunks left
    got = torch.autograd.grad(o.float().square().sum(), list(given.values()), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.filterwarnings("ignore:note")
@pytest.mark.parametrize("name", ["simple_gla", "gated_delta_rule", "hgrn", "lstm"])
def test_forward_derivatives_go_through_the_reference_alone(name: str) -> None:
    """Some programs lost the tangent, so that nothing seemed to depend on the input; others failed inside torch."""
    from torch.autograd import forward_ad
    m = mixc.load(name)
    x = inputs(m, grad=False, dtype=torch.float64, ends=0.0)
    first, value = next(iter(x.items()))
    change = torch.randn_like(value)
    with forward_ad.dual_level():
        dual = {**x, first: forward_ad.make_dual(value, change)}
        with pytest.raises(mixc.InputError, match="forward derivatives"):
            m(**dual)
        ins = {d.name for d in m.declared.ins}
        with pytest.raises(mixc.InputError, match="forward derivatives"):
            m.step(None, **{n: y[:, 0] if n in ins else y for n, y in dual.items()})
        m(**x)  # nothing of this call has a tangent
        tangent = forward_ad.unpack_dual(outs(m(**dual, backend="reference")[0])[0]).tangent
    a, b = (outs(m(**{**x, first: value + e * change}, backend="reference")[0])[0] for e in (1e-6, -1e-6))
    torch.testing.assert_close(tangent, (a - b) / 2e-6, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- two processes
SECONDS = 90  # for one that takes six


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = mixc.nn.Mixer("mamba1", heads=1, D=4, N=3)
        self.last = torch.nn.Linear(4, 4)

    def forward(self, **x: Tensor) -> Tensor:
        return self.last(self.mix(**x)[0])


def _data() -> dict[str, Tensor]:
    m = mixc.load("mamba1")
    x = draw(m.declared, B=4, T=6, H=1, sizes={"D": 4, "N": 3})
    return {d.name: x[d.name] for d in m.declared.ins}


def _train(net: torch.nn.Module, x: dict[str, Tensor]) -> dict[str, Tensor]:
    step = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        step.zero_grad()
        net(**x).square().mean().backward()
        step.step()
    return {n.removeprefix("module."): p.detach().clone() for n, p in net.named_parameters()}


def _worker(rank: int, folder: str) -> None:
    import torch.distributed as dist
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # where it waits, if it does
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # no name of this machine is looked up
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=SECONDS))
    torch.manual_seed(0)
    net = torch.nn.parallel.DistributedDataParallel(Net())
    found = _train(net, {n: t[2 * rank:2 * rank + 2] for n, t in _data().items()})
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # not by way of a destructor: that of torch 2.13's group may join a thread that waits for the GIL


def _meet(folder: str) -> bool:
    """Whether both processes came to their end in time; one that fails raises here."""
    both = mp.spawn(_worker, (folder,), nprocs=2, join=False)
    until = time.monotonic() + 2 * SECONDS
    try:
        while time.monotonic() < until:
            if both.join(5):
                return True
        return False
    finally:
        for p in both.processes:
            p.kill()


def test_two_processes_train_as_one() -> None:
    torch.manual_seed(0)
    want = _train(Net(), _data())
    with tempfile.TemporaryDirectory() as folder:
        assert _meet(folder), f"not done in {2 * SECONDS} s"
        for rank in (0, 1):
            got = torch.load(f"{folder}/{rank}.pt")
            assert got.keys() == want.keys()
            for n in want:
                torch.testing.assert_close(got[n], want[n])


def test_no_work_on_import() -> None:
    """Nothing is compiled, registered or read, and no heavy package is imported, before a mixer is asked for."""
    code = ("import sys, torch; before = set(sys.modules); import mixc; new = set(sys.modules) - before; "
            "heavy = ('triton', 'sympy', 'networkx', 'lark', 'typer', 'rich');"
            "print(sorted(m for m in new if m.split('.')[0] in heavy));"
            "from mixc.runtime import library; print(library._operators)")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONPATH": str(Path(mixc.__file__).parents[1])})
    assert found.stdout.split("\n")[:2] == ["[]", "{}"], found.stdout


def test_the_operator_has_a_name_of_its_own() -> None:
    a, b = mixc.load("simple_gla"), mixc.load("simple_gla")
    assert a.operator is b.operator and str(a.operator).startswith("mixc.simple_gla_")
    assert a.operator is not mixc.load("gla").operator
    assert library.key(a) == library.key(b)


@pytest.mark.parametrize("name", ["gla", "lstm", "mamba1", "min_gru", "memory_cell"])
def test_what_a_call_in_inference_mode_leaves_serves_one_with_gradients(name: str) -> None:
    """Where chunks lie is kept from call to call, and the memory of what they form."""
    memory.forget()
    memory._local.__dict__.clear()
    m = mixc.load(name)
    given = inputs(m, T=37)
    with torch.inference_mode():
        first, _ = m(**given)
    o, _ = m(**given)
    got = pulled(o, None, list(given.values()))
    exact = pulled(m(**given, backend="reference")[0], None, list(given.values()))
    torch.testing.assert_close(o, first, rtol=1e-5, atol=1e-6)  # chunks may have fewer rows where a backward follows
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
