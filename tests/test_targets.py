import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mixc.targets import MB, TARGETS, find, form, reported


def test_limits_are_consistent() -> None:
    for t in TARGETS.values():
        assert t.shared_block <= t.shared_sm
        assert t.registers_thread * t.warp <= t.registers_sm
        assert t.peaks["fp32"] <= t.peaks["tf32"] <= t.peaks["bf16"]
        assert t.sources


def test_find_by_name_and_architecture() -> None:
    assert find("H100").arch == "sm_90"
    assert find("RTX 4090").name == "rtx4090"
    assert find("gfx942").name == "mi300x"


def test_a_form_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(form(find("a100")) | {"name": "mine", "sms": 98}))
    assert find(str(path)).sms == 98
    path.write_text(json.dumps({"name": "mine", "cores": 3}))
    with pytest.raises(KeyError, match=r"missing arch, .*unknown cores"):
        find(str(path))
    path.write_text("{")
    with pytest.raises(KeyError, match=r"mine\.json"):
        find(str(path))


def test_auto_takes_what_the_device_reports() -> None:
    device = SimpleNamespace(name="NVIDIA H100 PCIe", multi_processor_count=114, L2_cache_size=50 * MB,
                             shared_memory_per_block_optin=227 * 1024, regs_per_multiprocessor=65536)
    found = reported(device, "sm_90")
    assert found.sms == 114 and found.bandwidth == find("h100").bandwidth and "sms" in found.sources[-1]
    device.multi_processor_count = 132
    assert reported(device, "sm_90") is find("h100")
    with pytest.raises(KeyError, match="no table of limits"):
        reported(device, "sm_75")


def test_auto_without_a_gpu_names_those_of_the_table() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(KeyError, match="there is none; name one: a100"):
            find("auto")


@pytest.mark.parametrize("field, value, words", [
    ("sms", 0, "whole number from 1 on, got 0"), ("l2", 1.5, "whole number"), ("shared_sm", "much", "whole number"),
    ("bandwidth", -1, "a number above 0"), ("bandwidth", True, "a number above 0"), ("peaks", {"fp32": 1}, "at least"),
    ("peaks", {"fp32": 1, "tf32": 1, "bf16": 0, "fp16": 1}, "above 0"), ("sources", "a letter", "a list of words"),
    ("arch", "hopper", "sm_ or gfx"), ("warp", 48, "32 or 64"), ("name", "", "expected words")])
def test_a_form_that_nothing_could_be_planned_with(field: str, value: object, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(form(find("a100")) | {field: value}))
    with pytest.raises(KeyError, match=rf"mine\.json: `{field}`: .*{words}"):
        find(str(path))
