"""Launches recorded and compiled without a GPU, as the version matrix and the compile benchmark do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_kernel_of_a_module(tmp_path: Path) -> None:
    from gpu_cases import emitted

    import mixc

    files = emitted(mixc.load("hgrn"), tmp_path, ["sm_90", "gfx942"])
    assert files is not None
    done = subprocess.run([sys.executable, str(FOLDER / "offline.py"), *map(str, files)], text=True,
                          capture_output=True, check=True, env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": ""})
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(k["kernel"], k["target"]) for k in found} == {(f"hgrn_{p}", t) for p in ("fwd", "bwd")
                                                           for t in ("sm_90", "gfx942")}
    assert all("error" not in k and k["shared"] >= 0 for k in found)
    assert all(k["registers"] > 0 for k in found if k["target"] == "sm_90")


def test_text_to_source() -> None:
    import compile as benchmark

    rows = {r["name"]: r for r in benchmark.text_to_source(1, ["simple_gla", "lstm"])}
    assert {*rows} == {"simple_gla", "lstm"} and not rows["lstm"]["left_out"]
    assert rows["simple_gla"]["lines"] > 100 and rows["simple_gla"]["ms"] > 0
