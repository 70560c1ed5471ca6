"""The command line: what it prints, and 0, 1 or 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixc.cli import app
from mixc.runtime import backends

BROKEN = "mixer m(K, V) {\n    in q[K], v[V]\n    state S[K, V]\n    S = S + q * v\n    out o[V] = p @ S\n}\n"
SMALL = "B=2,T=9,H=2,K=3,V=2"


def mixc(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == code, done.output
    return done.output


def parsed(*args: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_as_a_module_of_python() -> None:
    done = subprocess.run([sys.executable, "-m", "mixc", "targets"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "h100" in done.stdout, done.stderr


def test_targets() -> None:
    assert "h100" in mixc("targets")
    assert parsed("targets")["mi300x"]["arch"] == "gfx942"


def test_version() -> None:
    assert mixc("--version").startswith("mixc 0.")


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    """Its name was looked for among those of the table."""
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(json.loads(mixc("targets", "--form", "h100")) | {"name": "mine", "title": "My GPU"}))
    (made,) = parsed("compile", "simple_gla", "--target", str(mine), "-o", str(tmp_path))
    assert made["target"] == "mine"
    assert "on My GPU at B = 2" in mixc("explain", "simple_gla", "--target", str(mine), "--shape", "B=2")
    mixc("explain", "simple_gla", "--target", str(mine), "--html", str(tmp_path / "page.html"))
    assert "My GPU" in (tmp_path / "page.html").read_text()


def test_doctor() -> None:
    assert "torch" in mixc("doctor")
    assert parsed("doctor")["ok"]


@pytest.mark.parametrize("args", [
    ("check", "nowhere.mix"), ("check",), ("show", "simple_gla", "--after", "nonsense"), ("bench", "gla", "--no"),
    ("check", "simple_gla", "--shape", "K=five"), ("check", "simple_gla", "--shape", "Q=5"),
    ("bench", "simple_gla", "--shape", "Q=5"), ("compile", "simple_gla", "--shape", "Q=5"),
    ("bench", "simple_gla", "--shape", "K=0"), ("bench", "simple_gla", "--repeat", "0"), ("nonsense",),
    ("bench", "simple_gla", "--picture", "over_T.nosuch"), ("check", "simple_gla", "--shape", "K=4,K=5"),
    ("bench", "elman", "--shape", "D=4,E=5"),
    ("check", "simple_gla", "--dtype", "int8"), ("compile", "simple_gla", "--target", "h1000"),
    ("compile", "simple_gla", "--dtype", "fp64"), ("tune", "simple_gla", "--dtype", "fp64"),
    ("explain", "simple_gla", "--target", "h1000"), ("explain", "simple_gla", "--shape", "Q=5"),
])
def test_wrong_usage(args: tuple[str, ...]) -> None:
    mixc(*args, code=2)


def test_a_size_by_the_second_name_of_a_dim() -> None:
    """It was left out without a word."""
    report = parsed("bench", "elman", "--shape", "B=1,T=4,H=1,E=5", "--repeat", "1")
    assert report["shape"]["D"] == report["shape"]["E"] == 5


def test_tune_with_nothing_to_tune(tmp_path: Path) -> None:
    """Parts whose sizes a rule gives were an IndexError, a dtype of no kernel a KeyError."""
    spec = tmp_path / "m.mix"
    spec.write_text("mixer m(K, V, M, E = V) {\nin q[K], k[K], v[V], w[M]\nparam R[V, E]\nstate S[K, V, M], W[K, V]\n"
                    "S = maximum(0.9 * S, k * v * w)\nW = tanh(W + k * (R @ ((q @ S) @ w)[E]))\nout o[V] = q @ W\n}\n")
    assert "m_1: a rule gives its sizes" in mixc("tune", str(spec))
    assert parsed("tune", str(spec)) == []
    assert "expected one of fp32, bf16, fp16" in mixc("tune", "gla", "--dtype", "fp64", code=2)


def test_usage_errors_are_plain_in_a_pipe() -> None:
    text = mixc("bench", "simple_gla", "--shape", "Q=5", code=2)
    assert "simple_gla has no dim `Q`; it has K, V" in " ".join(text.split()) and "╭" not in text + mixc("--help")


def test_a_spec_with_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.mix"
    path.write_text(BROKEN)
    text = mixc("check", str(path), code=1)
    assert "error[MX" in text and "^" in text and "broken.mix:5:" in text
    report = parsed("check", str(path), "simple_gla", "--shape", "T=5", code=1)
    assert [m["ok"] for m in report["mixers"]] == [False, True]
    assert report["mixers"][0]["diagnostics"][0]["where"]["line"] == 5
    mixc("show", str(path), code=1)


def test_an_unknown_spec() -> None:
    assert "simple_gla" in mixc("check", "simple_glaa", code=1)


def test_check_compares_backends() -> None:
    report = parsed("check", "simple_gla", "--shape", SMALL)
    (m,) = report["mixers"]
    assert m["form"] == {"S": "chunk"}
    torch_cases = [c for c in m["cases"] if c["backend"] == "torch"]
    assert [c["case"] for c in torch_cases] == ["dense", "from a state", "ragged"]
    names = {f["name"] for f in torch_cases[1]["findings"]}
    assert names == {"o", "final S", "dq", "dk", "dv", "dg", "dS0"}


def test_check_runs_kernels_by_the_interpreter_as_it_comes() -> None:
    """Which tests amend: a mask that it made of a number was refused where a convolution's gradient is added up."""
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-m", "mixc", "check", "short_conv", "--shape", "B=1,T=5,H=1,D=3,W=3",
                           "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (m,) = json.loads(done.stdout)["mixers"]
    assert m["ok"] and "triton" in {c["backend"] for c in m["cases"]}


def test_check_leaves_out_a_backend_that_does_not_take_the_dtype() -> None:
    pytest.importorskip("triton")
    (m,) = parsed("check", "simple_gla", "--shape", SMALL, "--dtype", "fp64")["mixers"]
    assert m["ok"] and "fp64" in m["left_out"]["triton"] and {c["backend"] for c in m["cases"]} == {"torch"}


def test_check_finds_a_backend_that_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(mixer: object, call: object) -> object:
        outs, states = backends.reference(mixer, call)  # type: ignore[arg-type]
        return {n: x * 1.001 for n, x in outs.items()}, states

    monkeypatch.setitem(backends.BACKENDS, "torch", off)
    text = mixc("check", "simple_gla", "--shape", SMALL, code=1)
    assert "disagree" in text and "too far" in text


def test_a_note_is_no_error() -> None:
    assert "note[MX" in mixc("check", "gru", "--shape", "B=1,T=5,H=1,D=3")


def test_show() -> None:
    everything = mixc("show", "simple_gla", "--all")
    for name in ("step", "classify", "chunk", "differentiate"):
        assert f"---- {name}" in everything
    assert mixc("show", "simple_gla", "--diff").count("@@") >= 2
    assert set(parsed("show", "lstm", "--all")) == {"step", "classify"}


def test_compile_writes_a_module(tmp_path: Path) -> None:
    mixc("compile", "simple_gla", "--target", "h100", "-o", str(tmp_path))
    text = (tmp_path / "simple_gla.py").read_text()
    assert "@triton.jit" in text and "import mixc" not in text
    compile(text, "simple_gla.py", "exec")
    assert "python check_simple_gla.py" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["simple_gla", pytest.param("max_plus", marks=pytest.mark.slow)])  # it starts at -inf
def test_the_script_beside_a_module_checks_it(name: str, tmp_path: Path) -> None:
    (made,) = parsed("compile", name, "-o", str(tmp_path))
    assert made["kernels"] == 3 and made["check"] == str(tmp_path / f"check_{name}.py")  # fwd, step, bwd
    assert "import mixc" not in Path(made["check"]).read_text()

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, made["check"]], capture_output=True, text=True, check=False,
                              cwd=tmp_path, env={"TRITON_INTERPRET": "1", "PATH": ""})
    if name == "max_plus":
        done = checked()
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{name}: agrees with its step" in done.stdout
        return
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text().replace("tl.exp(", "0.999 * tl.exp("))
    done = checked()
    assert done.returncode == 1 and "TOO FAR" in done.stdout, done.stdout + done.stderr


def interpreted(script: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=folder,
                          env={"TRITON_INTERPRET": "1", "PATH": ""})
    assert done.returncode == 0 and "agrees with its step" in done.stdout, done.stdout + done.stderr


def test_a_module_of_a_mixer_called_as_one_of_python(tmp_path: Path) -> None:
    """`queue.py` would be imported in the place of Python's, by torch itself."""
    path = tmp_path / "q.mix"
    path.write_text("mixer queue(D) {\n in x[D]\n state S[D]\n S = 0.5 * S + x\n out o[D] = S\n}\n")
    (made,) = parsed("compile", str(path), "-o", str(tmp_path / "out"))
    assert made["path"] == str(tmp_path / "out" / "queue_.py")
    assert "from queue_ import queue, queue_step" in (tmp_path / "out" / "README.md").read_text()
    interpreted(made["check"], tmp_path / "out")


def test_the_script_draws_complex_params_as_tests_do(tmp_path: Path) -> None:
    """With entries of modulus up to 1 a matrix that goes from state to state drove rounding errors apart."""
    path = tmp_path / "c.mix"
    path.write_text("mixer c(D, E = D) {\n in x[D]\n param A[D, E] complex\n state h[D]\n h = A @ h[E] + x\n"
                    " h = h / (1 + abs(h))\n out y[D] = real(h) + imag(h)\n}\n")
    (made,) = parsed("compile", str(path), "-o", str(tmp_path))
    interpreted(made["check"], tmp_path)


def test_an_out_that_is_a_condition_has_no_derivative(tmp_path: Path) -> None:
    """Autograd refused to pull its cotangent back: in the script beside a module, and in the loop of a bench."""
    path = tmp_path / "fires.mix"
    path.write_text("mixer fires(D) {\n in x[D]\n state u[D]\n u = 0.5 * u + x\n out spike[D] = u > 0.3\n"
                    " u = where(u > 0.3, 0, u)\n}\n")
    (made,) = parsed("compile", str(path), "-o", str(tmp_path / "out"))
    interpreted(made["check"], tmp_path / "out")
    assert "times faster" in mixc("bench", str(path), "--shape", "B=1,T=4,H=1,D=2", "--repeat", "1")


def test_explain() -> None:
    assert parsed("explain", "simple_gla")["simple_gla"].startswith("# simple_gla")
    assert "simple_gla" in mixc("explain", "simple_gla")


def test_bench() -> None:
    report = parsed("bench", "simple_gla", "--shape", "B=1,T=8,H=1,K=4,V=4", "--repeat", "1")
    assert [r["what"] for r in report["rows"]] == ["forward", "forward + backward"]
    assert "times faster" in mixc("bench", "simple_gla", "--shape", "B=1,T=8,H=1,K=4,V=4", "--repeat", "1")


def test_bench_draws(tmp_path: Path) -> None:
    shape = ("--shape", "B=1,T=8,H=1,D=4,W=2", "--repeat", "1")
    report = parsed("bench", "short_conv", *shape, "--picture", str(tmp_path / "over" / "T.svg"))
    assert [r["shape"]["T"] for r in report["over_T"]] == [1, 2, 4, 8]
    assert (tmp_path / "over" / "T.svg").read_text().startswith("<?xml")


def test_bench_of_a_state_that_starts_at_a_param(tmp_path: Path) -> None:
    path = tmp_path / "start.mix"
    path.write_text("mixer m(K) {\n in x[K]\n param p[K]\n state S[K] = p\n S = S + x\n out o[K] = S\n}\n")
    assert "times faster" in mixc("bench", str(path), "--shape", "T=4,K=2")


def test_every_command_explains_itself() -> None:
    for name in ("check", "show", "compile", "explain", "bench", "targets", "doctor", "cache"):
        assert "Usage" in mixc(name, "--help")
