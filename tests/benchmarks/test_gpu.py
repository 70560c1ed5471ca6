"""The GPU benchmark as far as a CPU allows: what it emits, checks in the interpreter, and finds wrong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpu_cases import write

    root = tmp_path_factory.mktemp("gpu")
    write(root, ["simple_gla", "max_plus"], True, lambda name: None)
    return root


def entry(root: Path, name: str) -> dict[str, Any]:
    found = json.loads((root / "manifest.json").read_text())["examples"]
    return next(e for e in found if e["name"] == name)


def test_every_check_of_an_example(emitted: Path) -> None:
    from gpu_check import check

    report = check(emitted, entry(emitted, "simple_gla"), "cpu", True)
    assert report["ok"], [r for r in report["rows"] if not r["ok"]]
    assert {(r["case"], r["dtype"]) for r in report["rows"]} == {("tiny", "fp32"), ("tiny", "bf16"),
                                                                 ("T=33 B=1 H=1", "fp32")}
    assert {"o", "final S", "dq", "dS0", "o by step"} <= {r["what"] for r in report["rows"]}


def test_a_wrong_kernel_is_found(emitted: Path) -> None:
    from gpu_check import check_case, load

    e = entry(emitted, "max_plus")
    module = load(emitted / e["folder"] / e["modules"]["fp32 64"])
    (case,) = torch.load(emitted / e["folder"] / "cases.pt")
    assert all(r["ok"] for r in check_case(module, e, case, "fp32", "cpu"))
    right = module.max_plus
    module.max_plus = lambda x, a, **options: right(x, a * 1.001, **options)
    assert not any(r["ok"] for r in check_case(module, e, case, "fp32", "cpu") if r["what"] in ("o", "da"))


@pytest.mark.parametrize("name", ["gpu", "gpu_check", "peers"])
def test_the_running_side_imports_no_mixc(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {i.split(".")[0] for i in imported - {"gpu_cases"}} <= {*sys.stdlib_module_names, "torch", "peers"}


@pytest.mark.slow
def test_the_command(emitted: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "gpu.py"), "--run", str(emitted), "--out", str(tmp_path),
                           "--dry-run", "--jobs", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 examples with kernels are right" in done.stdout
    assert json.loads((tmp_path / "gpu.json").read_text())["dry_run"]
