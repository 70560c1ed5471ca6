from mixc.targets import TARGETS, find


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
