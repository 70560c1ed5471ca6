"""From a step, a target and a shape to a Config: by the model alone (`default`), or by compiling the best (`tune`).

The chunks, the blocks and what the forward keeps for the backward (the segment) are chosen together: for every
segment the launches are searched apart, best first, and the segment whose launches take least wins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from mixc.autotune.compiling import Failed, compile_all
from mixc.autotune.cost import SPILL, Shape
from mixc.autotune.schedule import CHUNKS, SEGMENTS, Candidate, LaunchSpace, Variant
from mixc.codegen.config import Config, Tile, hands_on
from mixc.codegen.module import Module
from mixc.codegen.offline import Job, job_of, write_text
from mixc.errors import InputError
from mixc.ir.program import Program
from mixc.targets import Target

Say = Callable[[str], None]
FUSED, SPLIT = ("fwd", "bwd"), ("fwd_states", "fwd_outs", "bwd_states", "bwd_grads")
SHORT = 256  # rows in which a walk is too short for more launches to save time
SLOW = 3  # times its forward: a backward has two to three times the work
GAIN = 1.4  # by which others have to be faster: they read inputs again, and each more kernel is one more estimate
SPILLED = 1.15  # by which those that should spill by the estimate, the spill counted, have to be faster than what fits
CLOSE = 1.06  # times the best: nearer than that the model cannot tell them apart (its geometric deviation is 1.09)
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Way:
    """A candidate of every launch of a plan. `worth`: less is better, see `_worth`."""

    worth: tuple[float, float]
    segment: int
    chosen: dict[str, Candidate]

    @property
    def seconds(self) -> float:
        """Modelled."""
        return sum(c.seconds for c in self.chosen.values())


@dataclass(frozen=True)
class Tuning:
    """What a search found. `tried`: the candidates that were compiled, by launch; `ways`: the best of them for every
    plan and segment, best first."""

    config: Config
    chosen: dict[str, Candidate]
    default: dict[str, Candidate]
    tried: dict[str, list[Candidate]]
    ways: list[Way]
    seconds: float
    stopped: bool


class Schedule:
    """The launches of a step with their spaces, for a target and a shape."""

    def __init__(self, module: Module, target: Target, shape: Shape, dtype: str, cut: str = ""):
        """`cut`: "fused" or "split", and nothing else is searched."""
        self.module, self.target, self.shape, self.dtype, self.cut = module, target, shape, dtype, cut
        self._spaces: dict[str, LaunchSpace] = {}
        self.texts: dict[tuple[Any, ...], str] = {}
        self.paths: dict[str, Path] = {}

    def _space(self, launch: str) -> LaunchSpace:
        """A launch with its variants: one that has every segment for itself may carry nothing on."""
        if launch not in self._spaces:
            several = (False, True) if self.module.kernel(launch).launch.alone else (None,)
            kernels = [self.module.kernel(launch, single=bool(s)) for s in several]
            variants = [Variant(k, self.module, s) for k, s in zip(kernels, several, strict=True)]
            self._spaces[launch] = LaunchSpace(launch, variants, self.target, self.shape)
        return self._spaces[launch]

    def _text(self, launch: str, single: bool, turned: str) -> str:
        """A module that has the launch."""
        plan = FUSED if launch in FUSED else next(plan for plan in self._every_plan() if launch in plan)
        key = plan, launch if turned else "", single, turned
        if key not in self.texts:
            tiles = {n: Tile(64 if single else 16) for n in plan}
            if turned:
                tiles[launch] = replace(tiles[launch], turns=2, turned=turned)
            self.texts[key] = self.module.text(Config(tuple(tiles.items())))
        return self.texts[key]

    @cached_property
    def plans(self) -> list[tuple[str, ...]]:
        """Launches that do the whole. Both directions in one launch each; split, where these leave the GPU idle; by
        dims, where they leave partial sums or do not fit on chip; any that is clearly faster, where a backward in one
        takes far longer than its forward, as one does that finds room for short chunks only."""
        if self.cut:
            return [FUSED] if self.cut == "fused" else [p for p in self._every_plan() if {*p} <= {*SPLIT}] or [FUSED]
        fused = [self._space(name) for name in FUSED]
        few, sequences = self.target.sms // 2, self.shape.B * self.shape.H
        idle = self.shape.T > SHORT and sequences < few and any(s.first.programs < few for s in fused)
        summed = not fused[1].fits() or fused[1].leaves_parts
        slow = all(s.fits() for s in fused) and fused[1].first.seconds > SLOW * fused[0].first.seconds
        if not idle and not summed and not slow:
            return [FUSED]
        wanted = {*FUSED, *(SPLIT if idle else ())}
        limit = self._seconds(FUSED) if slow else 0.0

        def wants(plan: tuple[str, ...]) -> bool:
            split = bool({*plan} & {*SPLIT})
            if {*plan} <= wanted or (summed and not split):
                return True
            return slow and (idle or self._takes_less(plan, limit / GAIN, fits=True)
                             or (not split and self._takes_less(plan, limit / SPILLED)))
        found = [p for p in self._every_plan() if wants(p)]
        fit = [p for p in found if self._fits(p)] or found
        if idle or fit == found:
            return fit
        least = min(map(self._seconds, fit))
        return [p for p in found if p in fit or self._takes_less(p, least / SPILLED)]

    def _fits(self, plan: tuple[str, ...]) -> bool:
        """Each launch by itself, and is there a segment that all can have?"""
        fits = any(all(self._space(n).fits(c) for n in plan) for c in _common_chunks(plan))
        return fits and self._seconds(plan) < inf

    def _seconds(self, plan: tuple[str, ...]) -> float:
        return min(self._totals([plan], inf), default=(inf,))[0]

    def _takes_less(self, plan: tuple[str, ...], limit: float, fits: bool = False) -> bool:
        """`fits`: and keeps the estimates. Its launches are looked at until they take more; the last does most."""
        least = 0.0
        for n in sorted(plan, key=lambda n: (n not in self._spaces, -plan.index(n))):
            least += self._space(n).least
            if least >= limit or (fits and not self._space(n).fits()):
                return False
        return (not fits or self._fits(plan)) and self._seconds(plan) < limit

    def _every_plan(self) -> list[tuple[str, ...]]:
        return [fwd + bwd for fwd, bwd in self.module.plans]

    @property
    def spaces(self) -> dict[str, LaunchSpace]:
        return {name: self._space(name) for plan in self.plans for name in plan}

    def default(self) -> tuple[Config, dict[str, Candidate]]:
        """The model's best point of every launch, nothing compiled; of those that are nearly as good to it the one with
        the least product of time and bytes, of which it is surer.

        Raises:
            Infeasible: the limits of the target leave none."""
        totals = list[tuple[float, int, tuple[str, ...], int]]()
        for plan in sorted(self.plans, key=self._bound):
            least = min(totals)[0] if totals else inf
            if self._bound(plan) <= CLOSE * least:
                totals += self._totals([plan], least)
        totals.sort()
        found = [(seconds, segment, {name: self._space(name).by_segment(chunk)[segment][1]() for name in plan})
                 for seconds, segment, plan, chunk in totals if seconds <= CLOSE * totals[0][0]]
        _, segment, chosen = min(found, key=lambda f: f[0] * _sum(f[2], "bytes"))
        return config_of(chosen, segment), chosen

    def _bound(self, plan: tuple[str, ...]) -> float:
        """Seconds that a plan takes at least."""
        return sum(self._space(n).least for n in plan)

    def _totals(self, plans: list[tuple[str, ...]], least: float = 0.0
                ) -> Iterator[tuple[float, int, tuple[str, ...], int]]:
        """Seconds of every plan with every segment, and the one chunk that its launches have (0: each its own).
        `least`: what others take; what takes more than CLOSE times that, or times what was told, may be left out."""
        for plan in plans:
            spaces = [self._space(name) for name in plan]
            chunks = _common_chunks(plan)
            fits = [c for c in chunks if all(space.fits(c) for space in spaces)]
            for before, chunk in zip([0, *chunks], fits or chunks, strict=False):
                if before and least and not fits:
                    if sum(space.floor(before).more for space in spaces) > CLOSE * least:
                        break
                    if sum(space.floor(chunk).whole for space in spaces) > CLOSE * least:
                        continue
                each = [space.by_segment(chunk) for space in spaces]
                for segment in SEGMENTS:
                    if all(segment in found for found in each):
                        total = sum(found[segment][0] for found in each)
                        least = min(least, total)
                        yield total, segment, plan, chunk

    def _ranked(self, name: str) -> Iterator[Candidate]:
        """Candidates of a launch, by their time and that of the best launches beside it with the same segment; of those
        that differ only in how far ahead they load the best one."""
        others: dict[int, float] = {}
        for seconds, segment, plan, chunk in self._totals(self.plans):
            if name in plan:
                beside = seconds - self._space(name).by_segment(chunk)[segment][0]
                others[segment] = min(beside, others.get(segment, beside))
        joint = sorted(((seconds + others[segment], i, make)
                        for i, (seconds, segment, make) in enumerate(self.spaces[name].best())
                        if segment in others), key=lambda f: f[:2])
        seen = set()
        for _, _, make in joint:
            c = make()
            if (key := (c.tile.chunk, c.tile.blocks, c.tile.warps, c.tile.turns, c.segment)) not in seen:
                seen.add(key)
                yield c

    def tune(self, best: int = 6, workers: int = 2, limit: float = 20.0, budget: float = 50.0,
             advance: Say = lambda label: None, first: bool = False) -> Tuning:
        """Compile the best of every launch and choose among those that neither spill nor overflow nor fail; where a
        launch has none, among those that spill too.

        Two of each launch come first: what they really take corrects the estimates by which the next are picked.

        Args:
            best: candidates of each launch; where all of a launch's spill, as many again, up to three times.
            workers: processes. limit: seconds a kernel. budget: seconds in all; what was not compiled by then is not
            chosen, and `stopped` says so. first: one of each launch, then two at a time until none spills, all with
            the default's segment; where all spill the best of those, the spill counted.
        Raises:
            InputError: no candidate of some launch compiled."""
        start = time.monotonic()
        config, default = self.default()
        plans = [tuple(default)] if first else self.plans
        def candidates(names: Iterable[str]) -> dict[str, list[Candidate]]:
            return {n: [c for c in self._ranked(n) if not first or (c.segment == config.segment and (
                not config.hands_on or c.tile.chunk == config.tiles[0][1].chunk))] for n in names}
        left = candidates(dict.fromkeys(n for plan in plans for n in plan))
        done, stopped = list[tuple[Candidate, Candidate]](), False
        counts, all_at_first = ([1, 2, 2, 2], 1) if first else ([min(2, best), max(0, best - 2), best, best], 2)
        for turn, count in enumerate(counts):
            good = {n: {c.segment for _, c in done if c.launch == n and c.good} for n in left}
            wide = turn < all_at_first
            if not wide and any(set.intersection(*(good[n] for n in plan)) for plan in plans):
                break
            if turn == 2 and not all(good.values()) and (first or FUSED in plans) and not self.cut:  # some always spill
                plans = self.plans = [*plans, FUSED] if config.hands_on else self._every_plan()
                left |= candidates(dict.fromkeys(n for plan in plans for n in plan if n not in left))
                good |= {n: set() for n in left if n not in good}
            columns = []
            for n in left:
                rest = [good[o] for plan in plans if n in plan for o in plan if o != n]
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
        ways = self._ways(compiled, first)
        tried = {name: sorted((c for c in compiled if c.launch == name), key=lambda c: (not c.good, c.seconds))
                 for name in self.spaces}
        return Tuning(config_of(ways[0].chosen, ways[0].segment), ways[0].chosen, default, tried, ways,
                      time.monotonic() - start, stopped)

    def _path(self, c: Candidate) -> Path:
        """A file of a module that has the candidate's kernel."""
        alone = self.module.kernel(c.launch).launch.alone
        text = self._text(c.launch, alone and c.tile.chunk == c.segment, c.tile.turned)
        if text not in self.paths:
            self.paths[text] = write_text(text)
        return self.paths[text]

    def job(self, c: Candidate) -> Job:
        """A candidate's kernel, to be compiled."""
        kernel, path = self.module.kernel_of(c.launch, c.tile, c.segment), self._path(c)
        sizes = dict(self.shape.dims)
        blocks = {d: kernel.block(d, sizes[d], c.tile) for d in kernel.dims}
        return job_of(str(path), kernel, {d: sizes[d] for d in kernel.dims}, blocks, c.tile.chunk, c.tile.warps,
                      c.tile.stages, over=self.module.inverse_over(kernel), target=self.target.arch,
                      dtype=self.dtype, segment=c.segment, turns=c.tile.turns,
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

    def _ways(self, done: list[Candidate], least: bool = False) -> list[Way]:
        """Of every plan and segment the candidates that take least, among what compiled well, else among what compiled,
        the spill counted; `least`: among all.

        Raises:
            InputError: no candidate of some launch compiled."""
        found = self._ways_of([c for c in done if c.good or least]) or self._ways_of([c for c in done if not c.failed])
        if not found:
            told = [f"{c.launch} {label(c)}: {c.failed or f'spills {c.spill} bytes'}"
                    for c in done if not c.good]
            raise InputError("no candidate of some launch compiled\n" + "\n".join(f"  {t}" for t in told[:12]))
        return found

    def _ways_of(self, done: list[Candidate]) -> list[Way]:
        found = []
        plans = [(plan, chunk) for plan in self.plans for chunk in _common_chunks(plan)]
        for (plan, chunk), segment in itertools.product(plans, SEGMENTS):
            may = {name: [c for c in done if c.launch == name and c.segment == segment and chunk in (0, c.tile.chunk)]
                   for name in plan}
            if all(may.values()):
                chosen = {name: min(own, key=_worth) for name, own in may.items()}
                failed, seconds = (sum(x) for x in zip(*map(_worth, chosen.values()), strict=True))
                found.append(Way((failed, seconds), segment, chosen))
        return sorted(found, key=lambda way: way.worth)


def _sum(chosen: dict[str, Candidate], what: str) -> float:
    return sum(getattr(c, what) for c in chosen.values())


def _common_chunks(plan: tuple[str, ...]) -> list[int]:
    """The chunks that all launches of a plan may have: what is handed on goes by its chunk (0: each its own)."""
    return CHUNKS if hands_on(plan) else [0]


def _worth(c: Candidate) -> tuple[float, float]:
    """Less is better; of what compiled well the time alone counts, and SPILL bytes spilled count as much as it."""
    return bool(c.failed), c.seconds * (1 + c.spill / SPILL)


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


def config_of(chosen: Mapping[str, Candidate], segment: int) -> Config:
    return Config(tuple((name, c.tile) for name, c in sorted(chosen.items())), segment)


def label(c: Candidate) -> str:
    blocks = " ".join(f"B{d}={b}" + (f" x {c.tile.turns}" if d == c.tile.turned else "") for d, b in c.tile.blocks)
    return f"C={c.tile.chunk} {blocks} warps={c.tile.warps} stages={c.tile.stages}".replace("  ", " ")


def row(c: Candidate, result: Tuning) -> dict[str, Any]:
    """A candidate as the table shows it."""
    return {"launch": c.launch, "tile": c.tile.as_dict(), "segment": c.segment, "microseconds": c.seconds * 1e6,
            "binds": c.binds, "bytes": c.bytes, "times": c.times, "flops": c.flops, "programs": c.programs,
            "occupancy": c.occupancy, "registers": c.registers, "shared": c.shared,
            "spill": c.spill if c.report else None, "failed": c.failed, "chosen": result.chosen.get(c.launch) is c}


def schedule_of(step: Program, target: Target, sizes: Mapping[str, int], dtype: str, cut: str = "") -> Schedule:
    """The launches of a step.

    Args:
        sizes: B, T, H and every dim. cut: "fused" or "split" launches ("": what is faster).
    Raises:
        SpecError: a step without kernels, or whose kernels have their sizes by rule.
        InputError: no such dtype."""
    from mixc.codegen.triton_program import tuned_kernels
    from mixc.runtime.checks import kernel_dtype

    kernel_dtype(dtype)
    module = tuned_kernels(step, sizes)
    dims = tuple((module.own[d.name], d.size or sizes[step.root[d.name]]) for d in step.dims)
    shape = Shape(sizes["B"], sizes["T"], sizes["H"], dims, WIDTHS[dtype])
    return Schedule(module, target, shape, dtype, cut)


def schedules_of(step: Program, target: Target, sizes: Mapping[str, int], dtype: str) -> list[Schedule]:
    """Of every part of a step, but those whose sizes a rule gives, and of what kernels do behind products."""
    from mixc.codegen.apart import parts_at
    from mixc.codegen.triton_program import kernels, whole_shape

    found = []
    for p in parts_at(step, target, whole_shape(step, sizes), dtype):
        made = kernels(p)
        found += [] if made.by_rule else [schedule_of(p, target, sizes, dtype)]
        if made.behind:
            own = {made.own.get(n, n): size for n, size in sizes.items()}
            found.append(schedule_of(made.behind[0].program, target, own, dtype))
    return found


__all__: list[Any] = ["Schedule", "Tuning", "config_of", "label", "schedule_of", "schedules_of"]
