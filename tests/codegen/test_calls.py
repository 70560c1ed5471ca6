"""The functions of an emitted module, as a user calls them, against the mixer itself."""

import os
import subprocess
import sys

import pytest
import torch

import mixc
from mixc.codegen.config import Config, Tile
from mixc.codegen.offline import load_text

CONFIG = Config((("fwd", Tile(16)), ("bwd", Tile(16))), segment=16)
_modules = {}


def emitted(name):
    if name not in _modules:
        _modules[name] = load_text(mixc.load(name).emit(config=CONFIG), name)
    return getattr(_modules[name], name), getattr(_modules[name], name + "_step")


def inputs(name, T=20, B=2, H=2, size=16):
    from mixc.runtime.draw import draw

    mixer = mixc.load(name)
    drawn = draw(mixer.declared, B=B, T=T, H=H, sizes={d.name: size for d in mixer.declared.dims})
    return {n: x.float() for n, x in drawn.items()}


def same(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", ["mask", "mask reverse", "mask cu", "cu reverse", "reverse"])
def test_which_tokens_there_are(options):
    run, _ = emitted("simple_gla")
    B = 1 if "cu" in options else 2
    x = inputs("simple_gla", B=B)
    torch.manual_seed(0)
    given = {"reverse": "reverse" in options}
    if "mask" in options:
        given["mask"] = torch.rand(B, 20) > 0.4
    if "cu" in options:
        given["cu_seqlens"] = torch.tensor([0, 0, 7, 20])
    leaves = {n: t.clone().requires_grad_() for n, t in x.items()}
    exact = {n: t.clone().requires_grad_() for n, t in x.items()}
    o, state = run(**leaves, output_final_state=True, check=True, **given)
    want, want_state = mixc.load("simple_gla")(**exact, output_final_state=True, backend="reference", **given)
    same(o, want)
    same(state["S"], want_state["S"])
    cot = torch.randn(o.shape)
    (o * cot).sum().backward()
    (want * cot).sum().backward()
    for n in x:
        same(leaves[n].grad, exact[n].grad)


def test_no_axis_of_heads_and_a_step():
    run, step = emitted("simple_gla")
    x = {n: t[:, :, 0] for n, t in inputs("simple_gla", H=1).items()}
    whole, last = run(**x, output_final_state=True)
    want, want_state = mixc.load("simple_gla")(**x, backend="reference", output_final_state=True)
    same(whole, want)
    same(last["S"], want_state["S"])
    _, state = run(**{n: t[:, :19] for n, t in x.items()}, output_final_state=True)
    o, state = step(state, **{n: t[:, 19] for n, t in x.items()})
    same(o, want[:, 19])
    same(state["S"], want_state["S"])


@pytest.mark.parametrize("name", ["simple_gla", "mlstm", "mamba2", "gated_delta_rule", "hgrn"])
def test_steps_without_gradients_are_a_kernel_of_their_own(name):
    _, step = emitted(name)
    assert f"{name}_token[" in _modules[name].__loader__.get_source(_modules[name].__name__)
    x, mixer, state, want_state = inputs(name, T=3), mixc.load(name), None, None
    for t in range(3):
        token = {n: v[:, t] if mixer.declared.decl(n).role == "in" else v for n, v in x.items()}
        o, state = step(state, **token)
        want, want_state = mixer.step(want_state, **token, backend="reference")
        same(o, want)
        for n in state:
            same(state[n], want_state[n])


@pytest.mark.parametrize(("change", "words"), [
    ({"q": torch.zeros(2, 20, 2)}, r"`q`: expected \[B, T, H, K\], got"),
    ({"k": torch.zeros(2, 20, 2, 17)}, "`k`: expected .* with K = 16"),
    ({"v": torch.zeros(2, 20, 2, 16, dtype=torch.float64)}, "`v`: expected .* of bf16, fp16 or fp32, got"),
    ({"initial_state": torch.zeros(2, 2, 16, 5)}, "`initial_state`: expected S"),
    ({"initial_state": {"Z": torch.zeros(1)}}, "no state `Z`"),
    ({"mask": torch.zeros(2, 20)}, "`mask`: expected bool"),
    ({"cu_seqlens": torch.tensor([0, 20])}, "`cu_seqlens`"),
    ({"g": torch.ones(2, 20, 2), "check": True}, "`g`: expected g <= 0"),
    ({"q": None}, r"`q`: expected \[B, T, H, K\] .*, got NoneType"),
    ({"cu_seqlens": [0, 20]}, "`cu_seqlens`: expected int32"),
    ({"mask": [True]}, "`mask`: expected bool"),
    ({"initial_state": {"S": None}}, "`initial_state`: expected a dict of tensors, of S"),
    ({"initial_state": [torch.zeros(2, 2, 16, 16)]}, "`initial_state`: expected a dict of tensors, of S"),
])
def test_bad_input_is_named(change, words):
    run, _ = emitted("simple_gla")
    with pytest.raises(ValueError, match=words):
        run(**{**inputs("simple_gla"), **change})


@pytest.mark.parametrize(("change", "words"), [
    ({"A": None}, "`A`: expected complex64, got NoneType"),
    ({"B": torch.zeros(2, 16, dtype=torch.complex128)}, "`B`: expected complex64, got torch.complex128"),
    ({"initial_state": []}, "`initial_state`: expected a dict of tensors, of "),
    ({"initial_state": {"h": None}}, "`h`: expected complex64, got NoneType"),
])
def test_bad_input_of_complex_values_is_named(change, words):
    mixer = mixc.loads("mixer m(D) {\nin x[D]\nparam A[D] complex where abs(A) < 1\nparam B[D] complex\n"
                       "state h[D], n\nh = A * h + B * x\nn = n + 1\nout y[D] = real(h) / n\n}")
    run = load_text(mixer.emit(config=CONFIG)).m
    given = {"x": torch.zeros(2, 3, 2, 16), "A": torch.zeros(2, 16) + 0j, "B": torch.zeros(2, 16) + 0j}
    run(**given)
    with pytest.raises(ValueError, match=words):
        run(**{**given, **change})


def test_the_file_needs_torch_and_triton_only(tmp_path):
    (tmp_path / "kernels.py").write_text(mixc.load("retnet").emit(config=CONFIG))
    program = ("import sys, torch\nsys.modules['mixc'] = None\nimport kernels\n"
               "x = torch.randn(1, 5, 2, 16)\no, _ = kernels.retnet(x, x, x, -torch.rand(2))\n"
               "assert o.isfinite().all()\n")
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-1500:]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
                         env={**env, "TRITON_INTERPRET": "0"})
    assert "ValueError: `q`: expected on a GPU; TRITON_INTERPRET=1" in run.stderr
    recorded = ("from triton.runtime.jit import JITFunction\nran = []\n"
                "JITFunction.run = lambda self, *args, **options: ran.append(self.__name__)\n")
    program = recorded + program.replace("assert o.isfinite().all()", "assert ran == ['retnet_fwd'], ran")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
                         env={**env, "TRITON_INTERPRET": "0"})
    assert run.returncode == 0, run.stderr[-1500:]  # tools that count launches without a GPU


@pytest.mark.parametrize("doc", ['with """ quotes', r"the \underline{step} \N{x} \x", 'ends with a "'])
def test_a_comment_may_say_anything(doc):
    """It stands in the docstring of the module, which it ended, or where a backslash was an escape: SyntaxError."""
    mixer = mixc.loads(f"# {doc}\nmixer m(D) {{\nin x[D]\nstate h[D]\nh = 0.5 * h + x\nout y[D] = h\n}}")
    assert doc in load_text(mixer.emit(config=CONFIG)).__doc__
    x = torch.randn(1, 5, 2, 16)
    same(mixer(x, backend="triton")[0], mixer(x, backend="reference")[0])


def test_text_is_deterministic():
    program = "import mixc, hashlib; print(hashlib.sha256(mixc.load('mlstm').emit().encode()).hexdigest())"
    found = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                            env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in "12"}
    assert len(found) == 1 and len(found.pop()) == 65


@pytest.mark.parametrize("given", [{}, {"mask": torch.arange(40).view(2, 20) % 3 > 0}, {"reverse": True}], ids=str)
def test_complex_values_go_as_two_real_ones(given):
    """By their own names all the same, states and gradients too; `check` looks at their modulus."""
    from mixc.runtime.draw import draw

    mixer, (run, step) = mixc.load("lru"), emitted("lru")
    x = draw(mixer.declared, B=2, T=20, H=2, sizes={"D": 5, "N": 3})
    start = {"x": torch.randn(2, 2, 3, dtype=torch.complex64)}
    found = []
    for f, more in ((mixer, {"backend": "reference"}), (run, {})):
        leaves = {n: t.clone().requires_grad_() for n, t in (*x.items(), *start.items())}
        state = {"x": leaves.pop("x")}
        o, final = f(**leaves, initial_state=state, output_final_state=True, check=True, **given, **more)
        (o.sum() + final["x"].abs().square().sum()).backward()
        found.append([o, final["x"], *(t.grad for t in leaves.values()), state["x"].grad])
    for want, got in zip(*found, strict=True):
        assert want.is_complex() == got.is_complex()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    params = {d.name: x[d.name] for d in mixer.declared.params}
    first, _ = step(start["x"], x["u"][:, 0], **params)
    torch.testing.assert_close(first, mixer.step(start, x["u"][:, 0], **params)[0], rtol=1e-4, atol=1e-4)


def test_a_loop_has_the_length_it_was_unrolled_for():
    from mixc.runtime.draw import draw

    mixer = mixc.load("deltaproduct")
    x = draw(mixer.declared, B=1, T=9, H=1, sizes=dict(K=3, V=4, N=3))
    same(load_text(mixer.emit(shape=dict(N=3))).deltaproduct(**x)[0], mixer(**x, backend="reference")[0])
    with pytest.raises(ValueError, match=r"`k`: expected .* with N = 2"):
        load_text(mixer.emit()).deltaproduct(**x)


def test_a_const_that_shapes_the_step_keeps_its_value():
    mixer = mixc.loads("mixer m(D) {\nin x[D]\nconst n = 2\nout o[D] = x ** n + lag(x, n)\n}")
    run, x = load_text(mixer.emit()).m, torch.randn(1, 5, 1, 3)
    same(run(x, n=2.0)[0], mixer(x, backend="reference")[0])
    with pytest.raises(ValueError, match="`n`: this module was written for 2"):
        run(x, n=3)
