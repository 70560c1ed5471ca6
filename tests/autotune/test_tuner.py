"""Choosing tiles by compiling (a stand-in for the compiler says what comes out), from files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mixc
from mixc.autotune import cache, tuned, tuner
from mixc.autotune.compiling import Failed, compile_all
from mixc.autotune.tuned import Tuned
from mixc.cli import app
from mixc.codegen import triton_program
from mixc.codegen.config import Config, Tile
from mixc.codegen.offline import Job, Report
from mixc.errors import InputError
from mixc.targets import find
from tests.autotune.schedules import SIZES, schedule


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Stands in for the workers: 8 warps spill (bf16, sm_90), 64 rows take too long, the rest has 200 registers."""
    seen: list[Job] = []

    def compiled(jobs: Sequence[Job], workers: int, limit: float, advance: Callable[[str], None] = lambda label: None,
                 until: float = 0.0) -> Iterator[tuple[int, Report | Failed]]:
        for i, job in enumerate(jobs):
            seen.append(job)
            advance(job.label)
            spill = 96 if job.warps == 8 and (job.arch, job.constants["OPERAND"]) == ("sm_90", "bf16") else 0
            yield i, Failed("took longer than 20 s") if job.constants["C"] == 64 else \
                Report(job.kernel, job.arch, 200, spill, 40_000, "wgmma")
    monkeypatch.setattr(tuner, "compile_all", compiled)
    return seen


def test_what_spills_or_fails_is_not_chosen(compiler: list[Job]) -> None:
    result = schedule().tune(best=6)
    assert {c.tile.warps for c in result.chosen.values()} <= {1, 2, 4}
    assert all(c.report and c.report.registers == 200 for c in result.chosen.values())
    assert any(c.report and c.report.spill for c in result.tried["fwd"])
    assert result.config.segment == result.chosen["fwd"].segment == result.chosen["bwd"].segment
    assert not result.stopped and all(c.seconds > 0 for c in result.chosen.values())


def test_one_candidate_of_each_launch_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first all but one were compiled."""
    def compiled(jobs: Sequence[Job], *_: object) -> Iterator[tuple[int, Report]]:
        return ((i, Report(job.kernel, job.arch, 200, 0, 40_000, "wgmma")) for i, job in enumerate(jobs))
    monkeypatch.setattr(tuner, "compile_all", compiled)
    assert {n: len(c) for n, c in schedule().tune(best=1).tried.items()} == {"fwd": 1, "bwd": 1}


@pytest.mark.parametrize("spill", [True, False])
def test_where_nothing_compiles_well_the_least_that_compiles_is_chosen_and_told(
        spill: bool, monkeypatch: pytest.MonkeyPatch, compiler: list[Job]) -> None:
    real = tuner.compile_all

    def spilling(jobs: Sequence[Job], *rest: Any) -> Iterator[tuple[int, Report | Failed]]:
        for i, _ in real(jobs, *rest):
            bytes_ = 16 if jobs[i].warps == 4 else 6400
            yield i, Report(jobs[i].kernel, "sm_90", 255, bytes_, 1000) if spill else Failed("took longer than 20 s")
    monkeypatch.setattr(tuner, "compile_all", spilling)
    if spill:
        chosen = schedule().tune(best=2).chosen
        assert {c.tile.warps for c in chosen.values()} == {4} and all(c.spill == 16 for c in chosen.values())
        said = CliRunner().invoke(app, ["tune", "simple_gla", "--shape", "B=8,T=2048,H=16,K=64,V=64", "--best", "2"])
        assert said.exit_code == 0 and "chosen, spills 16 B" in said.stdout, said.output
        assert "fwd: all candidates spill" in " ".join(said.output.split())
    else:
        with pytest.raises(InputError, match=r"fwd C=.*took longer than 20 s"):
            schedule().tune(best=2)
    assert len(compiler) > 4  # it went on to the next candidates


def test_fifty_lengths_are_at_most_three_tunings(compiler: list[Job]) -> None:
    mixer, target = mixc.load("simple_gla"), find("h100")
    made = [tuned.tuned(mixer, target, SIZES | {"T": T}, "bf16", best=2)[2] for T in range(1, 20_000, 400)]
    few = [tuned.tuned(mixer, target, SIZES | {"B": 1, "H": 4, "T": T}, "bf16", best=2)[2] for T in (8000, 16000)]
    assert len(made) == 50 and made.count(False) + few.count(False) <= 3


def test_a_result_is_found_again_and_again_after_a_change(compiler: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, target = mixc.load("simple_gla"), find("h100")
    first, path, found = tuned.tuned(mixer, target, SIZES, "bf16", best=2)
    assert not found and path.is_file()
    again, _, found = tuned.tuned(mixer, target, SIZES, "bf16", best=2)
    assert found and again == first
    assert not tuned.tuned(mixer, find("a100"), SIZES, "bf16", best=2)[2]
    assert not tuned.tuned(mixer, target, SIZES, "fp32", best=2)[2]
    path.write_text(path.read_text()[:100])
    assert not tuned.tuned(mixer, target, SIZES, "bf16", best=2)[2]
    cache.versions.cache_clear()
    monkeypatch.setattr(cache, "_version", lambda package: "9")
    assert not tuned.tuned(mixer, target, SIZES, "bf16", best=2)[2]
    cache.versions.cache_clear()


def test_the_first_build_looks_at_its_own_report(compiler: list[Job]) -> None:
    """The default's forward has 8 warps, which spill here; what is found is kept, and told again by no compile."""
    mixer, target = mixc.load("simple_gla"), find("h100")
    default = schedule().default()[0]
    assert {t.warps for _, t in default.tiles} == {8}
    found = tuned.first(mixer, mixer.declared, target, SIZES, "bf16")
    assert {t.warps for _, t in found.tiles} <= {1, 2, 4} and found != default
    compiled = [j.kernel + j.label for j in compiler]
    assert len(compiled) == len(set(compiled)) <= 8
    assert tuned.first(mixer, mixer.declared, target, SIZES | {"T": 9000}, "bf16") == found
    assert len(compiler) == len(compiled)
    tuned.first(mixer, mixer.declared, target, SIZES, "fp32")  # nothing spills: one look at each kernel
    assert len(compiler) == len(compiled) + 2


def test_a_first_build_takes_what_was_tuned(compiler: list[Job]) -> None:
    mixer = mixc.load("simple_gla")
    made, _, _ = tuned.tuned(mixer, find("h100"), SIZES, "bf16", best=6)
    compiled = len(compiler)
    assert tuned.first(mixer, mixer.declared, find("h100"), SIZES, "bf16") == made.config
    assert len(compiler) == compiled


@pytest.mark.parametrize("spill", [True, False])
def test_where_nothing_compiles_well_the_first_build_takes_the_least(
        spill: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def compiled(jobs: Sequence[Job], *rest: Any) -> Iterator[tuple[int, Report | Failed]]:
        for i, job in enumerate(jobs):
            bytes_ = 16 if job.warps == 4 else 6400
            yield i, Report(job.kernel, job.arch, 255, bytes_, 1000) if spill else Failed("no ptxas here")
    monkeypatch.setattr(tuner, "compile_all", compiled)
    mixer = mixc.load("simple_gla")
    found = tuned.first(mixer, mixer.declared, find("h100"), SIZES, "bf16")
    if spill:
        assert {t.warps for _, t in found.tiles} == {4}
    else:
        assert found == schedule().default()[0]
    assert ("all spill, one with 16 bytes" if spill else "no ptxas here") in caplog.text


def test_a_first_build_that_takes_longer_than_a_second_says_so_once(
        compiler: list[Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def slow(*given: Any) -> Iterator[Any]:
        time.sleep(1.2)
        yield from fast(*given)
    fast = tuner.compile_all
    monkeypatch.setattr(tuner, "compile_all", slow)
    mixer = mixc.load("simple_gla")
    for _ in range(2):
        tuned.first(mixer, mixer.declared, find("h100"), SIZES, "fp32")
    assert caplog.text.count("compiling tile sizes for h100") == 1


def test_on_a_gpu_a_module_has_the_config_of_its_first_build(compiler: list[Job],
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    step = mixc.load("simple_gla")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_program, "_target", lambda device: find("h100"))
    made = triton_program._config(step, step.declared, torch.device("cuda"), SIZES, "bf16")
    assert len(compiler) > 2 and {t.warps for _, t in made.tiles} <= {1, 2, 4}
    default = schedule().default()[0]
    assert triton_program._config(step, step.declared, torch.device("cpu"), SIZES, "bf16") == default
    monkeypatch.setenv("MIXC_FIRST_BUILD", "0")
    assert triton_program._config(step, step.declared, torch.device("cuda"), SIZES, "bf16") == default


def test_on_a_gpu_a_module_is_of_the_device_as_tuning_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mixc tune --target auto` kept is found: an H200 is no H100, and one with fewer SMs is of its own."""
    def device(**limits: object) -> None:
        triton_program._target.cache_clear()
        h200 = {"name": "NVIDIA H200", "major": 9, "minor": 0, "multi_processor_count": 132}
        found = SimpleNamespace(**h200 | limits)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (found.major, found.minor))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = torch.device("cuda", 0)
    device()
    assert triton_program._target(gpu) == find("auto") == find("h200")
    device(multi_processor_count=60)
    assert triton_program._target(gpu) == find("auto") != find("h200")
    device(name="NVIDIA T4", major=7, minor=5)
    assert triton_program._target(gpu) == find("a100")
    device(name="NVIDIA Thor", major=11)
    assert triton_program._target(gpu) == find("b200")
    assert triton_program._target(torch.device("cpu")) == find("h100")
    triton_program._target.cache_clear()  # of devices that are not there


def test_a_file_is_used_where_it_was_made_for_and_refused_elsewhere(compiler: list[Job], tmp_path: Path) -> None:
    mixer = mixc.load("simple_gla")
    made, _, _ = tuned.tuned(mixer, find("h100"), SIZES, "bf16", best=2)
    path = tmp_path / "gla.json"
    tuned.write(path, made)
    assert tuned.read(path) == made
    text = mixer.emit(config=str(path))
    assert text == mixer.emit(config=made.config) and f"SEGMENT = {made.config.segment}" in text
    assert mixer.emit(config=path, shape={"T": 4096}) == text  # another length of the bucket
    elsewhere: dict[str, dict[str, Any]] = {
        "target: h100, and not a100": {"target": "a100"}, "dtype: bf16": {"dtype": "fp32"},
        "dim K: 64, and not 128": {"shape": {"K": 128}}, "shape: long, and not short": {"shape": {"T": 16}}}
    for what, options in elsewhere.items():
        with pytest.raises(InputError, match=f"made for another {what}"):
            mixer.emit(config=path, **options)
    with pytest.raises(InputError, match="another mixer: simple_gla, and not retnet"):
        mixc.load("retnet").emit(config=path)
    path.write_text("{}")
    with pytest.raises(InputError, match="no config of mixc"):
        mixer.emit(config=path)


def test_specs_that_are_one_function_share_a_result(compiler: list[Job], tmp_path: Path) -> None:
    """Under other names and in another order: the blocks have the names of the spec that asks."""
    renamed = mixc.loads("""mixer other(E, D) {
        in value[E], key[D], query[D]
        in decay where decay <= 0
        const c = D ** -0.5
        state M[E, D]
        M = value * key + M * exp(decay)
        out y[E] = (M @ query) * c
    }""")
    first, path, _ = tuned.tuned(mixc.load("simple_gla"), find("h100"), SIZES, "bf16", best=2)
    compiled = len(compiler)
    made, same, found = tuned.tuned(renamed, find("h100"), {"B": 8, "T": 2048, "H": 16, "D": 64, "E": 64}, "bf16")
    assert found and same == path and len(compiler) == compiled
    named = {"K": "D", "V": "E"}
    assert made.dims == {named[d]: n for d, n in first.dims.items()} and made.mixer == "other"
    for (_, a), (_, b) in zip(first.config.tiles, made.config.tiles, strict=True):
        assert {named[d]: n for d, n in a.blocks} == dict(b.blocks) and a.blocks
    turned = replace(first, config=Config((("bwd", Tile(16, (("V", 16),), turns=2, turned="V")),)))
    assert turned.named_for(renamed).config.tile("bwd") == Tile(16, (("E", 16),), turns=2, turned="E")
    assert Tuned.of(json.loads(json.dumps(turned.as_dict()))).config == turned.config
    tuned.write(tmp_path / "gla.json", first)
    assert renamed.emit(config=tmp_path / "gla.json") == renamed.emit(config=made.config)


def test_nothing_is_shared_on_a_hash_alone(compiler: list[Job], tmp_path: Path) -> None:
    """Probes fall on the same sides of both; each has a place of its own in the cache."""
    text = """mixer m(K, V) {
        in q[K], k[K], v[V], f
        state S[K, V]
        S = where(f > 0.5, 0.9, 0.1) * S + k * v
        out o[V] = q @ S
    }"""
    one, other = mixc.loads(text), mixc.loads(text.replace("0.5", "0.5003"))
    assert one.hash == other.hash
    found = [tuned.tuned(m, find("h100"), SIZES, "bf16", best=2) for m in (one, other, other, one)]
    assert [f[2] for f in found] == [False, False, True, True]
    assert found[0][1] == found[3][1] != found[1][1] == found[2][1]
    tuned.write(tmp_path / "one.json", found[0][0])
    with pytest.raises(mixc.InputError, match="another mixer"):
        other.emit(config=tmp_path / "one.json")


def test_command(compiler: list[Job], tmp_path: Path) -> None:
    out, run = tmp_path / "o.json", CliRunner()
    command = ["tune", "simple_gla", "--shape", "B=8,T=2048,H=16,K=64,V=64", "--best", "2", "-o", str(out)]
    done = run.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "chosen" in done.stdout and "spills 96 B" in done.stdout and "no GPU was here" in done.stdout
    assert f'config="{out}"' in done.stdout and tuned.read(out).target == "h100"
    found = json.loads(run.invoke(app, [*command, "--json"]).stdout)
    forward = next(r for r in found["launches"] if r["launch"] == "fwd")
    rows, segments = 8 * 2048 * 16 * 2, -(-2048 // forward["segment"])
    kept = 8 * 16 * segments * 64 * 64 * 2  # beside rows of q, k, v, g and o
    assert forward["times"] == pytest.approx(1 + kept / (rows * (4 * 64 + 1)), rel=1e-3)
    assert found["from_cache"] and found["form"] == tuned.FORM
    assert run.invoke(app, ["tune", "simple_gla", "--target", "h1000"]).exit_code == 2
    cell = run.invoke(app, ["tune", "lstm", "--best", "2"])
    assert cell.exit_code == 0 and "chosen" in cell.stdout, cell.output
    assert all(j.constants["HELD"] for j in compiler if j.kernel.startswith("lstm"))


def test_no_file_is_named_that_was_not_written(
        compiler: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stopped by its budget is not kept, and its path was told all the same, in a line to copy."""
    make = tuned._make
    monkeypatch.setattr(tuned, "_make", lambda *a, **k: replace(make(*a, **k), stopped=True))
    command = ["tune", "simple_gla", "--shape", "B=8,T=2048,H=16,K=64,V=64", "--best", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "not kept" in done.stdout and ".json" not in done.stdout, done.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["kept"] is None and found["line"] == ""
    out = tmp_path / "new" / "o.json"
    assert f'config="{out}"' in CliRunner().invoke(app, [*command, "-o", str(out)]).stdout
    assert tuned.read(out).stopped
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path)])
    assert done.exit_code == 1 and "error: [Errno 21] Is a directory" in done.output, done.output


@pytest.mark.slow
def test_workers_compile_report_errors_and_are_ended_when_late() -> None:
    s = schedule("min_gru", D=64)
    c = next(iter(s.spaces["fwd"].best()))[2]()
    job = s.job(c)
    missing = Job(**{**job.__dict__, "kernel": "nothing"})
    found = dict(compile_all([job, missing, job], 2, 60.0))
    assert isinstance(found[0], Report) and found[0].registers > 16 and found[0] == found[2]
    assert isinstance(found[1], Failed) and "nothing" in str(found[1])
    late = dict(compile_all([job], 1, 0.001))
    assert isinstance(late[0], Failed) and "longer" in str(late[0])


@pytest.mark.slow
def test_tuning_for_real() -> None:
    result = schedule("min_gru", D=64).tune(best=2, budget=300, limit=100)
    assert all(c.report and c.report.spill == 0 for c in result.chosen.values())


@pytest.mark.slow
def test_a_default_that_spills_gives_way_for_real() -> None:
    """GLA's backward at heads of 128: the model says that its tile fits, ptxas spills it."""
    mixer, sizes = mixc.load("gla"), SIZES | {"K": 128, "V": 128}
    s = schedule("gla", **sizes)
    default = s.default()[1]["bwd"]
    ((_, report),) = compile_all([s.job(default)], 1, 200.0)
    assert isinstance(report, Report)
    found = tuned.first(mixer, mixer.declared, find("h100"), sizes, "bf16", limit=200.0, budget=500.0)
    key = tuned.key_of(mixer, find("h100"), sizes, "bf16")
    (kept,) = [e.value for e in cache.entries() if e.key.items() >= key.items()]
    (row,) = [r for r in kept["launches"] if r["launch"] == "bwd" and r["chosen"]]
    assert row["spill"] < report.spill and found.tile("bwd") != default.tile
