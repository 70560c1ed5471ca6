"""The benchmark of kernels where there is no meter, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_it_says_that_the_meter_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                             tmp_path: Path) -> None:
    import kernels

    monkeypatch.setattr("sys.argv", ["kernels.py", "--meter", str(tmp_path)])
    kernels.main()
    assert capsys.readouterr().out == f"no meter at {tmp_path}: nothing was measured\n"


def test_rows_of_the_table() -> None:
    import kernels

    total = dict(io_ratio_with_torch=1.25, model_lat_us=45.35, launches_triton=2, launches_torch=1, max_regs=99,
                 spill=8, max_smem=1024, check={"o0": 1e-3, "dq": 2e-3})
    found = {"name": "simple_gla", "size": 64, "forward": total, "forward+backward": {"failed": "why"}}
    one, two = kernels.rows(found, kernels.CASES["simple_gla"])
    assert one.split() == ["simple_gla", "64", "forward", "1.25", "1.10", "2.02", "45.4", "0.50", "0.6", "2+1", "99",
                           "8", "1024", "2.0e-03"]
    assert "FAILED: why" in two
    (left,) = kernels.rows({"name": "x", "size": 64, "left_out": "no"}, kernels.Case({}, {}, {}))
    assert "no kernels yet: no" in left
