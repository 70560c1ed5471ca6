"""Configs that are run, checked and timed. A clock of the test's own stands in for the GPU's, Triton's interpreter for
the GPU, and the compiler finds everything good."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mixc
from mixc.autotune import timing, tuned, tuner
from mixc.autotune.timing import Bench, Timed, fastest
from mixc.cli import app
from mixc.codegen.config import Config
from mixc.codegen.offline import Job, Report
from mixc.targets import find
from tests.autotune.schedules import schedule

SMALL = {"B": 1, "T": 40, "H": 1, "K": 64, "V": 64}


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(jobs: Sequence[Job], *_: object) -> Iterator[tuple[int, Report]]:
        return ((i, Report(job.kernel, job.arch, 200, 0, 40_000, "wgmma")) for i, job in enumerate(jobs))
    monkeypatch.setenv("MIXC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuner, "compile_all", compiled)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A GPU is here, on which every config takes a little less than the one before."""
    took = list[float]()

    def clock(run: Callable[[], None]) -> float:
        run()
        took.append(1.0 / (1 + len(took)))
        return took[-1]
    monkeypatch.setattr(timing, "device_of", lambda target: torch.device("cpu"))
    monkeypatch.setattr(timing, "between_events", clock)
    return took


def test_the_fastest_that_is_right_is_chosen_and_kept(ran: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A config whose kernels are wrong is as fast as it likes."""
    mixer, emitted, seen = mixc.load("simple_gla"), Bench._emitted, list[Config]()

    def spoiled(self: Bench, config: Config) -> Callable[..., Any]:
        run = emitted(self, config)
        seen.append(config)

        def wrong(*given: Any, **options: Any) -> Any:
            o, state = run(*given, **options)
            return o * 1.01, state
        return wrong if len(seen) == 2 else run
    monkeypatch.setattr(Bench, "_emitted", spoiled)
    made, _, kept = tuned.tuned(mixer, find("h100"), SMALL, "fp32", best=4)
    assert not kept and len(made.timed) == len(seen) == 1 + len(ran) >= 3
    wrong = made.timed[1]
    assert wrong["failed"].startswith("wrong: ") and wrong["microseconds"] is None
    right = [r for r in made.timed if not r["failed"]]
    assert made.config.as_dict() == min(right, key=lambda r: r["microseconds"])["config"] == made.timed[-1]["config"]
    chosen = {r["launch"]: r["tile"] for r in made.launches if r["chosen"]}
    assert chosen == made.config.as_dict()["tiles"]
    again, _, kept = tuned.tuned(mixer, find("h100"), SMALL, "fp32", best=4)
    assert kept and again == made
    assert tuned.first(mixer, mixer.declared, find("h100"), SMALL, "fp32") == made.config


def test_where_none_is_right_the_model_chooses_and_says_so(ran: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Bench, config: Config) -> Callable[..., Any]:
        raise RuntimeError("CUDA error: out of resources\nand more")
    monkeypatch.setattr(Bench, "_emitted", refused)
    shape = ",".join(f"{n}={size}" for n, size in SMALL.items())
    done = CliRunner().invoke(app, ["tune", "simple_gla", "--shape", shape, "--best", "1", "--dtype", "fp32"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "none gave what it should here: the model chose" in text and "RuntimeError: CUDA error" in text
    assert not ran


def test_what_was_tuned_without_a_gpu_is_timed_where_there_is_one(ran: list[float], monkeypatch: pytest.MonkeyPatch
                                                                 ) -> None:
    here = timing.device_of
    monkeypatch.setattr(timing, "device_of", lambda target: None)
    mixer = mixc.load("simple_gla")
    made, _, _ = tuned.tuned(mixer, find("h100"), SMALL, "fp32", best=1)
    assert not made.timed and not ran
    monkeypatch.setattr(timing, "device_of", here)
    made, _, kept = tuned.tuned(mixer, find("h100"), SMALL, "fp32", best=1)
    assert not kept and len(made.timed) == len(ran) > 0
    shape = ",".join(f"{n}={size}" for n, size in SMALL.items())
    done = CliRunner().invoke(app, ["tune", "simple_gla", "--shape", shape, "--best", "1", "--dtype", "fp32"])
    assert done.exit_code == 0 and "timed here" in done.stdout and "no GPU" not in done.stdout, done.output


def test_dims_that_kernels_name_otherwise_and_states_that_are_read(ran: list[float]) -> None:
    """`C` are a kernel's rows; a gate in front, an input some tokens ago and two outs are the emitted module's own."""
    mixer = mixc.loads("""mixer odd(C, V) {
        in k[C], v[V]
        in w where w <= 0
        param u[V]
        state S[C, V]
        S = exp(w) * S + k * (v + lag(v, 1))
        out o[V] = u * (k @ S)
        out last[C] = S @ u
    }""")
    shape = {"B": 2, "T": 37, "H": 2, "C": 16, "V": 16}
    made, _, _ = tuned.tuned(mixer, find("h100"), shape, "fp32", best=1)
    assert made.timed and not any(r["failed"] for r in made.timed)


def tuning(name: str, **sizes: int) -> tuner.Tuning:
    return schedule(name, **sizes).tune(best=4)


@pytest.mark.parametrize(("name", "sizes"), [("simple_gla", {}), ("gated_delta_rule", {"K": 128, "V": 128})])
def test_a_launch_after_the_other_takes_its_best(name: str, sizes: dict[str, int]) -> None:
    """Where rows are handed on all have one chunk: a Config refuses others."""
    made, calls = tuning(name, **sizes), list[Config]()

    def run(config: Config) -> Timed:
        calls.append(config)
        return Timed(config, sum(t.warps + 1 / t.stages for _, t in config.tiles))
    way, done = fastest(made.ways, made.tried, run, math.inf)
    assert len(calls) == len(set(calls)) == len(done)
    assert min(t.seconds for t in done) == run(tuner.config_of(way.chosen, way.segment)).seconds
    for launch, own in way.chosen.items():
        others = timing._instead(way, launch, made.tried[launch])
        assert all(own.tile.warps + 1 / own.tile.stages <= c.tile.warps + 1 / c.tile.stages for c in others)


def test_time_that_is_up_ends_it_after_the_first() -> None:
    made = tuning("simple_gla")
    way, done = fastest(made.ways, made.tried, lambda config: Timed(config, 1.0), time.monotonic() - 1)
    assert way == made.ways[0] and len(done) == 1


def test_only_the_gpu_that_is_tuned_for_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "here", lambda: find("h100"))
    assert timing.device_of(find("h100")) == torch.device("cuda", 0) and timing.device_of(find("a100")) is None

    def none() -> None:
        raise KeyError("there is none")
    monkeypatch.setattr(timing, "here", none)
    assert timing.device_of(find("h100")) is None
