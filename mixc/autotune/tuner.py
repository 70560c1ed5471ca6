"""From a step, a target and a shape to a Config: by the model alone (`default`), or by compiling the best (`tune`).

The chunks, the blocks and what the forward keeps for the backward (the segment) are chosen together: for every
segment the launches are searched apart, best first, and the segment whose launches take least wins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mixc.autotune.compiling import Failed, compile_all
from mixc.autotune.cost import Shape
from mixc.autotune.schedule import SEGMENTS, Candidate, LaunchSpace
from mixc.codegen.config import Config, Tile
from mixc.codegen.module import Module
from mixc.codegen.offline import Job, job_of, write_text
from mixc.errors import InputError
from mixc.ir.program import Program
from mixc.targets import Target

Say = Callable[[str], None]
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Tuning:
    """What a search found. `tried` are the candidates that were compiled, by launch."""

    config: Config
    chosen: dict[str, Candidate]
    default: dict[str, Candidate]
    tried: dict[str, list[Candidate]]
    seconds: float
    stopped: bool

    @property
    def modelled(self) -> float:
        return sum(c.seconds for c in self.chosen.values())


class Schedule:
    """The launches of a step with their spaces, for a target and a shape."""

    def __init__(self, module: Module, target: Target, shape: Shape, dtype: str):
        self.module, self.target, self.shape, self.dtype = module, target, shape, dtype
        text = module.text(Config())
        self.spaces = {name: LaunchSpace(name, k, text, target, shape) for name, k in module.kernels.items()}
        self.paths: dict[str, Path] = {}

    def default(self) -> tuple[Config, dict[str, Candidate]]:
        """The model's best point of every launch, nothing compiled.

        Raises:
            Infeasible: the limits of the target leave none."""
        each = {name: _first_by_segment(space) for name, space in self.spaces.items()}
        segment = min((s for s in SEGMENTS if all(s in found for found in each.values())),
                      key=lambda s: sum(found[s][0] for found in each.values()))
        chosen = {name: found[segment][1]() for name, found in each.items()}
        return config_of(chosen, segment), chosen

    def _ranked(self, name: str) -> Iterator[Candidate]:
        """Candidates of a launch, by their time and that of the other launches' best with the same segment; of those
        that differ only in how far ahead they load the best one."""
        others = [_first_by_segment(space) for other, space in self.spaces.items() if other != name]
        joint = sorted(((seconds + sum(o[segment][0] for o in others), i, make)
                        for i, (seconds, segment, make) in enumerate(self.spaces[name].best())
                        if all(segment in o for o in others)), key=lambda f: f[:2])
        seen = set()
        for _, _, make in joint:
            c = make()
            if (key := (c.tile.chunk, c.tile.blocks, c.tile.warps, c.tile.turns, c.segment)) not in seen:
                seen.add(key)
                yield c

    def tune(self, best: int = 6, workers: int = 2, limit: float = 20.0, budget: float = 50.0,
             advance: Say = lambda label: None, first: bool = False) -> Tuning:
        """Compile the best of every launch and choose among those that neither spill nor overflow nor fail.

        Two of each launch come first: what they really take corrects the estimates by which the next are picked.

        Args:
            best: candidates of each launch; where all of a launch's spill, as many again, up to three times.
            workers: processes. limit: seconds a kernel. budget: seconds in all; what was not compiled by then is not
            chosen, and `stopped` says so. first: one of each launch, then two at a time until none spills, all with
            the default's segment; of those that all do the one that does least.
        Raises:
            InputError: no candidate of some launch compiled well."""
        start = time.monotonic()
        config, default = self.default()
        left = {name: [c for c in self._ranked(name) if not first or c.segment == config.segment]
                for name in self.spaces}
        done, stopped = list[tuple[Candidate, Candidate]](), False
        counts, all_at_first = ([1, 2, 2, 2], 1) if first else ([min(2, best), best - 2, best, best], 2)
        for turn, count in enumerate(counts):
            good = {n: {c.segment for _, c in done if c.launch == n and c.good} for n in left}
            wide = turn < all_at_first
            if not wide and set.intersection(*good.values()):
                break
            columns = []
            for n in left:
                rest = [segments for o, segments in good.items() if o != n]
                others = set.intersection(*rest) if not wide and rest else set()
                if wide or not good[n] or others:  # of segments for which the other launches have one
                    columns.append(_next(left[n], [d for d in done if d[0].launch == n], count, self.target, others))
            wanted = [c for row in itertools.zip_longest(*columns) for c in row if c is not None]
            if wanted:
                found, stopped = self._compiled(wanted, workers, limit, start + budget, advance)
                done += found
            if stopped:
                break
        compiled = [c for _, c in done]
        chosen, segment = self._choose(compiled, first)
        tried = {name: sorted((c for c in compiled if c.launch == name), key=lambda c: (not c.good, c.seconds))
                 for name in self.spaces}
        return Tuning(config_of(chosen, segment), chosen, default, tried, time.monotonic() - start, stopped)

    def _path(self, turned: str) -> Path:
        """A file of the module whose programs take blocks of that dim in turn."""
        if turned not in self.paths:
            tiles = (("bwd", Tile(16, turns=2, turned=turned)),) if turned else ()
            self.paths[turned] = write_text(self.module.text(Config(tiles)))
        return self.paths[turned]

    def job(self, c: Candidate) -> Job:
        """A candidate's kernel, to be compiled."""
        kernel, sizes, path = self.module.kernel(c.launch, c.tile), dict(self.shape.dims), self._path(c.tile.turned)
        blocks = {d: c.tile.block(d, sizes[d]) for d in kernel.dims}
        return job_of(str(path), kernel, {d: sizes[d] for d in kernel.dims}, blocks, c.tile.chunk, c.tile.warps,
                      c.tile.stages, target=self.target.arch, dtype=self.dtype, segment=c.segment, turns=c.tile.turns,
                      held=self.spaces[c.launch].point(c.tile, c.segment)[1].held, label=label(c))

    def _compiled(self, wanted: list[Candidate], workers: int, limit: float, until: float,
                  advance: Say) -> tuple[list[tuple[Candidate, Candidate]], bool]:
        """(as estimated, as compiled) of each, and whether time was up."""
        jobs = [self.job(c) for c in wanted]
        done = []
        for i, report in compile_all(jobs, workers, limit, advance, until):
            c = wanted[i]
            if isinstance(report, Failed):
                found = replace(c, failed=str(report))
            elif report.shared > self.target.shared_block:
                found = replace(c, report=report, failed=f"{report.shared} bytes of shared memory")
            else:
                found = self.spaces[c.launch].at(c.tile, c.segment, report)
            done.append((c, found))
        return done, any(c.failed == "no time was left" for _, c in done)

    def _choose(self, done: Iterable[Candidate], least: bool = False) -> tuple[dict[str, Candidate], int]:
        """The segment whose launches take least, among what compiled well; `least`: else what spills least."""
        done = list(done)
        found = []
        for segment in SEGMENTS:
            good = {name: min((c for c in done if c.launch == name and c.segment == segment and (c.good or least)),
                              key=_worth, default=None) for name in self.spaces}
            chosen = {name: c for name, c in good.items() if c is not None}
            if len(chosen) == len(good):
                found.append((tuple(map(sum, zip(*map(_worth, chosen.values()), strict=True))), segment, chosen))
        if not found:
            told = [f"{c.launch} {label(c)}: {c.failed or f'spills {c.spill} bytes'}"
                    for c in done if not c.good]
            raise InputError("no candidate compiled well\n" + "\n".join(f"  {t}" for t in told[:12]))
        _, segment, chosen = min(found, key=lambda f: f[:2])
        return chosen, segment


def _worth(c: Candidate) -> tuple[float, float, float]:
    """Less is better; of what compiled well the time alone counts."""
    return bool(c.failed), c.spill, c.seconds


def _next(left: list[Candidate], done: list[tuple[Candidate, Candidate]], count: int,
          target: Target, segments: set[int]) -> list[Candidate]:
    """Take the next candidates out of `left`: in order, but where all so far spilled, other tiles that should not by
    what the estimates were wrong by; if there are none, those with fewest registers."""
    spilled = {c.tile for _, c in done if c.spill}  # do so with other segments too
    pool = [c for c in left if c.segment in segments] or left
    pool = [c for c in pool if c.tile not in spilled] or pool
    if done and not any(c.good for _, c in done):
        needs = [c.report.registers + c.spill / 8 - was.registers for was, c in done if c.report]
        wrong = max(0.0, min(needs, default=64.0))
        fits = [c for c in pool if c.registers + wrong <= target.registers_thread]
        picked = (fits or sorted(pool, key=lambda c: c.registers))[:count]
    else:
        picked = pool[:count]
    for c in picked:
        left.remove(c)
    return picked


def _first_by_segment(space: LaunchSpace) -> dict[int, tuple[float, Callable[[], Candidate]]]:
    """The best of every segment.

    Raises:
        Infeasible: the limits of the target leave none."""
    found: dict[int, tuple[float, Callable[[], Candidate]]] = {}
    for seconds, segment, make in space.best():
        found.setdefault(segment, (seconds, make))
        if len(found) == len(space.segments()):
            break
    if not found:
        raise space.infeasible()
    return found


def config_of(chosen: Mapping[str, Candidate], segment: int) -> Config:
    return Config(tuple((name, c.tile) for name, c in sorted(chosen.items())), segment)


def label(c: Candidate) -> str:
    blocks = " ".join(f"B{d}={b}" + (f" x {c.tile.turns}" if d == c.tile.turned else "") for d, b in c.tile.blocks)
    return f"C={c.tile.chunk} {blocks} warps={c.tile.warps} stages={c.tile.stages}".replace("  ", " ")


def row(c: Candidate, result: Tuning) -> dict[str, Any]:
    """A candidate as the table shows it; bytes over what inputs and outputs take once."""
    return {"launch": c.launch, "tile": c.tile.as_dict(), "segment": c.segment, "microseconds": c.seconds * 1e6,
            "binds": c.binds, "bytes": c.bytes, "flops": c.flops, "programs": c.programs, "occupancy": c.occupancy,
            "registers": c.registers, "shared": c.shared, "spill": c.spill if c.report else None,
            "failed": c.failed, "chosen": result.chosen[c.launch] is c}


def schedule_of(step: Program, target: Target, sizes: Mapping[str, int], dtype: str) -> Schedule:
    """The launches of a step.

    Args:
        sizes: B, T, H and every dim.
    Raises:
        SpecError: a step without kernels, or whose kernels have their sizes by rule."""
    from mixc.codegen.triton_program import tuned_kernels

    module = tuned_kernels(step)
    dims = tuple((module.own[d.name], d.size or sizes[d.alias or d.name]) for d in step.dims)
    shape = Shape(sizes["B"], sizes["T"], sizes["H"], dims, WIDTHS[dtype])
    return Schedule(module, target, shape, dtype)


__all__: list[Any] = ["Schedule", "Tuning", "config_of", "label", "schedule_of"]
