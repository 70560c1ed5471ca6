"""The tuner's figures: solver, defaults, model against the meter's counts, tuning time, tuned against default.

    python benchmarks/tuner.py solver defaults            seconds, needs nothing
    python benchmarks/tuner.py spills --sizes 64 128      the defaults compiled: registers, spills (hours; kept in the
                                                          cache's folder, so that a second run is quick)
    python benchmarks/tuner.py counts                     bytes and FLOPs of the model over the meter's (a minute)
    python benchmarks/tuner.py tune --names gated_delta_rule
    python benchmarks/tuner.py rank                       model and meter over candidates of five specs (slow)

Times are CPU seconds of this process (other work on the machine counts less); tuning time is wall time and says so.
The meter is looked for as in benchmarks/kernels.py; what needs it is left out where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import kernels as cases
from gpu_cases import target_shape

import mixc
from mixc.autotune import cache, narrow
from mixc.autotune.compiling import Failed, compile_all
from mixc.autotune.schedule import Candidate
from mixc.autotune.tuner import Schedule, label, schedule_of
from mixc.codegen.apart import parts_at
from mixc.codegen.config import Config
from mixc.codegen.offline import Report
from mixc.codegen.triton_program import whole_shape
from mixc.errors import SpecError
from mixc.runtime.load import shipped
from mixc.targets import find

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
SHAPE = {"B": 8, "T": 2048, "H": 16}
SIZES = (32, 64, 96, 128, 256)
FLASHRNN: tuple[dict[str, int], ...] = ({}, {"heads": 1, "D": 768}, {"heads": 4, "D": 192, "batch": 64},
                                        {"heads": 16, "D": 128, "batch": 256})
# candidates of these differ widely in time; those of min_gru do not
RANKED = ("simple_gla", "mlstm", "gla", "gated_delta_rule", "linear_attention_normalised")


def cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def schedules(names: list[str], sizes: tuple[int, ...]) -> dict[tuple[str, int], Schedule]:
    """Those of the shipped specs that have kernels, and of their parts."""
    found = {}
    for name in names or sorted(shipped()):
        mixer = mixc.load(name)
        for size in sizes:
            with contextlib.suppress(SpecError, KeyError):
                mixer.emit()
                shape = target_shape(mixer, size)
                for p in parts_at(mixer.declared, "h100", whole_shape(mixer.declared, shape | SHAPE), "bf16"):
                    found[p.name, size] = schedule_of(p, find("h100"), shape | SHAPE, "bf16")
    return found


# ------------------------------------------------------------ solver and defaults
def solver(names: list[str]) -> dict[str, Any]:
    """FlashRNN's model cold (nothing remembered), and every launch's space of the shipped specs."""
    from flashrnn_tiles import model

    flashrnn = {}
    for shape in FLASHRNN:
        def solve(shape: dict[str, int] = shape) -> int:
            narrow.narrow.cache_clear()
            narrow._pairs.cache_clear()
            space, order = model(find("h100"), **shape)
            found = space.lexicographic(order)
            space.first(found)
            return found.work
        seconds, nodes = min(cpu(solve) for _ in range(3))
        flashrnn[str(shape)] = seconds
        print(f"FlashRNN {shape or 'heads=12 D=64 batch=16'!s:45} {seconds * 1e3:6.0f} ms  {nodes} nodes")
    whole, searched = [], []
    for s in schedules(names, (64, 128)).values():
        for launch in s.spaces.values():
            for space, terms in launch.spaces:
                cost = terms.estimated.time
                whole.append(cpu(lambda space=space, cost=cost: next(space.best(cost), None))[0])
                searched.append(cpu(lambda space=space, cost=cost: next(space.searched(cost), None))[0])
    print(f"spaces of launches: {len(whole)}, median {statistics.median(whole) * 1e3:.1f} ms tried out whole, "
          f"{statistics.median(searched) * 1e3:.1f} ms by search, slowest {max(whole) * 1e3:.1f} and "
          f"{max(searched) * 1e3:.1f} ms")
    return {"flashrnn": flashrnn, "whole": whole, "searched": searched}


def defaults(names: list[str]) -> dict[str, Any]:
    """The first choice without a compile: time, and what it chooses."""
    times = {}
    for (name, size), s in schedules(names, SIZES).items():
        seconds, (_, chosen) = cpu(s.default)
        times[f"{name} {size}"] = seconds
        told = ", ".join(f"{k} {label(c)} {c.seconds * 1e6:.0f} us" for k, c in chosen.items())
        print(f"{name:30} {size:4} {seconds * 1e3:6.1f} ms  {told}", flush=True)
    print(f"median {statistics.median(times.values()) * 1e3:.1f} ms, slowest {max(times.values()) * 1e3:.1f} ms")
    return times


# ------------------------------------------------------------ what the compiler makes of them
def reports(s: Schedule, chosen: list[Candidate], workers: int, limit: float) -> list[Report | Failed]:
    """Each compiled for the target; by kernel text and sizes each is compiled once on a machine."""
    jobs = [s.job(c) for c in chosen]
    triton = cache.versions()["triton"]
    keys = [asdict(job) | {"path": cache.digest(Path(job.path).read_text()), "label": "", "triton": triton}
            for job in jobs]
    kept = [cache.get(k) for k in keys]
    found: list[Report | Failed] = [
        Failed("not compiled") if k is None else Failed(k["failed"]) if "failed" in k else Report(**k) for k in kept]
    left = [i for i, k in enumerate(kept) if k is None]
    for i, report in compile_all([jobs[i] for i in left], workers, limit):
        found[left[i]] = report
        cache.put(keys[left[i]], {"failed": str(report)} if isinstance(report, Failed) else asdict(report))
    return found


def spills(names: list[str], sizes: tuple[int, ...], workers: int, limit: float) -> dict[str, Any]:
    """Registers that the model says and that the compiler takes, and what it spills, of every default's launches."""
    found = {}
    for name, size in itertools.product(names or sorted(shipped()), sizes):
        for s in schedules([name], (size,)).values():
            _, chosen = s.default()
            for c, report in zip(chosen.values(), reports(s, [*chosen.values()], workers, limit), strict=True):
                good = isinstance(report, Report)
                found[f"{name} {size} {c.launch}"] = asdict(report) if good else {"failed": str(report)}
                told = f"{report.registers:4} registers, {report.spill:6} B spilled" if good else report
                print(f"{name:28} {size:4} {c.launch:11} {label(c):34} {c.registers:5.0f} estimated, {told}",
                      flush=True)
    spilled = [n for n, r in found.items() if r.get("spill", 1)]
    print(f"{len(spilled)} of {len(found)} spill or failed: {', '.join(spilled)}")
    return found


# ------------------------------------------------------------ against the meter
def metered(name: str, size: int, text: str, meter: Path, compiled: bool) -> dict[str, Any] | None:
    """The meter's launches of forward+backward at the target shape."""
    mixer = mixc.load(name)
    shape = target_shape(mixer, size)
    case = (cases.CASES | cases.MORE).get(name, cases.Case({}, {}, {}))
    dims = {n: s for n, s in shape.items() if n not in ("B", "T", "H")}
    with tempfile.TemporaryDirectory() as tmp:
        folder, out = Path(tmp), Path(tmp) / "out.json"
        (folder / "emitted.py").write_text(text)
        head = f"PATHS = {[str(folder), str(meter / 'cases')]!r}\n"
        head += f"NAME, INPUTS, DIMS = {name!r}, {case.inputs!r}, {dims!r}\n"
        (folder / "case.py").write_text(head + cases.TEMPLATE)
        small = cases._text(case.small or dict(B=1, T=256, H=2))
        options = [] if compiled else ["--no-compile"]
        command = [sys.executable, str(meter / "meter.py"), "run", str(folder / "case.py"), "--variant", "fwdbwd",
                   "--small", small, "--target", cases._text(SHAPE), "--out", str(out), *options]
        done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True,
                              env=cases._environment())
        if not out.exists():
            print(f"{name}: the meter gave nothing: {done.stderr.strip().splitlines()[-1:]}")
            return None
        return json.loads(out.read_text())["variants"]["fwdbwd"]


def counts(names: list[str], meter: Path) -> dict[str, Any]:
    """Distinct bytes and FLOPs of each launch: the model's over the meter's."""
    found = {}
    for (name, size), s in schedules(names, (64,)).items():
        config, chosen = s.default()
        got = metered(name, size, mixc.load(name).emit(config=config), meter, False)
        if got is None:
            continue
        scale = SHAPE["B"] * SHAPE["T"] * SHAPE["H"] / (256 * 2)
        for launch, c in chosen.items():
            count = next((x["count"] for x in got["launches"] if x["name"].endswith("_" + launch)), None)
            if count is None:
                print(f"{name:30} {launch}: not launched?")
                continue
            _, terms = next(x for x in s.spaces[launch].spaces if c.tile.chunk in (x[0].domains["C"].values or ()))
            point = point_of(c)
            ours = float(terms.bytes().evaluate(point)), float(terms.flops().evaluate(point))
            theirs = ((count["load_unique"] + count["store_unique"]) * scale, sum(count["dot_flops"].values()) * scale)
            ratio = [a / b if b else 1.0 if not a else float("inf") for a, b in zip(ours, theirs, strict=True)]
            found[f"{name} {launch}"] = ratio
            wrong = "" if all(abs(r - 1) < 0.02 for r in ratio) else "  <--"
            print(f"{name:30} {launch:4} bytes {ours[0] / 1e6:8.1f} MB  x {ratio[0]:.3f}   "
                  f"FLOPs {ours[1] / 1e9:8.2f} G  x {ratio[1]:.3f}{wrong}", flush=True)
    return found


def point_of(c: Candidate) -> dict[str, int]:
    return {"C": c.tile.chunk, "segment": c.segment, "warps": c.tile.warps, "stages": c.tile.stages,
            "turns": c.tile.turns, **{f"B{d}": b for d, b in c.tile.blocks}}


def rank(names: list[str], meter: Path, many: int = 8) -> dict[str, Any]:
    """Spearman's correlation of modelled and metered time over candidates that spread widely."""
    import torch

    found = {}
    for (name, size), s in schedules(names or list(RANKED), (64,)).items():
        pairs = []
        for config, ours in spread(s, many):
            got = metered(name, size, mixc.load(name).emit(config=config), meter, True)
            if got is not None and "model_lat_us" in got.get("total", {}):
                pairs.append((ours * 1e6, got["total"]["model_lat_us"]))
                told = config.as_dict()["tiles"]
                print(f"  {name} {told} model {pairs[-1][0]:.0f} meter {pairs[-1][1]:.0f} us", flush=True)
        a, b = zip(*pairs, strict=True)
        places = torch.stack([torch.tensor(x).argsort().argsort().double() for x in (a, b)])
        found[name] = float(torch.corrcoef(places)[0, 1])
        print(f"{name:30} Spearman {found[name]:.3f} over {len(pairs)}, meter's times spread {max(b) / min(b):.1f}x")
    return found


def spread(s: Schedule, many: int) -> list[tuple[Config, float]]:
    """Pairs of candidates of one segment, evenly over the range of modelled times."""
    from mixc.autotune.tuner import config_of

    by_segment: dict[str, list[Candidate]] = {
        name: [make() for _, segment, make in space.best() if segment == 64] for name, space in s.spaces.items()}
    out = []
    for i in range(many):
        at = {n: c[min(len(c) - 1, i * len(c) // many)] for n, c in by_segment.items()}
        out.append((config_of(at, 64), sum(c.seconds for c in at.values())))
    return out


# ------------------------------------------------------------ tuning
def tune(names: list[str], budget: float) -> dict[str, Any]:
    """Cold tuning in wall seconds, warm in CPU seconds; tuned against default, best against worst, by the model."""
    import os

    from mixc.autotune.tuned import tuned

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIXC_CACHE_DIR"] = folder
        for name in names or ["gated_delta_rule"]:
            mixer = mixc.load(name)
            shape = target_shape(mixer, 64) | SHAPE
            s = schedule_of(mixer.declared, find("h100"), shape, "bf16")
            _, default = s.default()
            start = time.monotonic()
            made, _, _ = tuned(mixer, find("h100"), shape, "bf16", workers=2, budget=budget, limit=30)
            cold = time.monotonic() - start
            warm, _ = cpu(lambda mixer=mixer, shape=shape: tuned(mixer, find("h100"), shape, "bf16"))
            chosen = sum(r["microseconds"] for r in made.launches if r["chosen"])
            first = sum(min((r["microseconds"] for r in made.launches  # a row a segment
                             if r["launch"] == launch and r["tile"] == c.tile.as_dict()), default=float("nan"))
                        for launch, c in default.items())
            worst = sum(max(c for c, _, _ in space.best()) for space in s.spaces.values())
            found[name] = {"cold_s": cold, "warm_s": warm, "tuned_us": chosen, "default_us": first,
                           "worst_us": worst * 1e6}
            stopped = " (stopped)" if made.stopped else ""
            print(f"{name:30} cold {cold:.1f} s wall{stopped}, warm {warm * 1e3:.0f} ms CPU; "
                  f"tuned {chosen:.0f} us, default {first:.0f} us, worst feasible {worst * 1e6:.0f} us", flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", nargs="+", choices=["solver", "defaults", "spills", "counts", "tune", "rank"])
    options.add_argument("--names", nargs="*", default=[], help="shipped specs; all with kernels")
    options.add_argument("--meter", type=Path, default=cases.METER)
    options.add_argument("--budget", type=float, default=55.0, help="seconds of one tuning")
    options.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="of heads, for spills")
    options.add_argument("--workers", type=int, default=1, help="processes that compile, for spills")
    options.add_argument("--limit", type=float, default=120.0, help="seconds of one compile, for spills")
    options.add_argument("--out", type=Path, metavar="FILE", help="figures as JSON")
    given = options.parse_args()
    found: dict[str, Any] = {}
    for what in given.what:
        if what in ("counts", "rank") and not (given.meter / "meter.py").exists():
            print(f"no meter at {given.meter}: {what} was left out")
        elif what in ("counts", "rank"):
            found[what] = (counts if what == "counts" else rank)(given.names, given.meter)
        elif what == "spills":
            found[what] = spills(given.names, given.sizes, given.workers, given.limit)
        elif what == "tune":
            found[what] = tune(given.names, given.budget)
        else:
            found[what] = {"solver": solver, "defaults": defaults}[what](given.names)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
