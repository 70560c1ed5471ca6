"""What compiled well, run on the GPU that is here: checked against the torch program, timed, the fastest taken.

The model orders candidates, the compiler proves that they neither spill nor overflow; how long they take, only the GPU
says. A config is run as users run it: its emitted module, called forward and backward.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from mixc.autotune.schedule import Candidate
from mixc.autotune.tuner import Say, Tuning, Way, config_of
from mixc.codegen.config import Config
from mixc.codegen.names import named
from mixc.runtime import agree
from mixc.runtime.draw import draw
from mixc.targets import Target, here

if TYPE_CHECKING:
    from mixc.runtime.mixer import Mixer

Tensor = torch.Tensor
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NEAR = 1.5   # times the modelled time of the best: other segments and plans that are tried
ROWS = 549   # two segments of the longest kind and a part: sequences that configs are checked with
ROUNDS, WARM = 20, 3
FLUSHED = 256 * 2**20  # bytes written before each run: more than any L2 holds


@dataclass(frozen=True)
class Timed:
    """A config that ran. `seconds`: forward and backward, inf where it is wrong, which `failed` says."""

    config: Config
    seconds: float
    failed: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {"config": self.config.as_dict(), "microseconds": None if self.failed else self.seconds * 1e6,
                "failed": self.failed}


def device_of(target: Target) -> torch.device | None:
    """The GPU of this machine, if it is what is tuned for."""
    try:
        return torch.device("cuda", 0) if here() == target else None
    except KeyError:
        return None


def between_events(run: Callable[[], None]) -> float:
    """Seconds that a run takes on the GPU: the median of runs between two events, each with an empty L2."""
    flush, took = torch.empty(FLUSHED, dtype=torch.int8, device="cuda"), []
    for i in range(WARM + ROUNDS):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        run()
        end.record()
        end.synchronize()
        took += [begin.elapsed_time(end) * 1e-3] if i >= WARM else []
    return statistics.median(took)


class Bench:
    """A mixer with tensors to run it on.

    Args:
        shape: B, T, H and every dim. names: of dims that configs name otherwise."""

    def __init__(self, mixer: Mixer, target: Target, shape: Mapping[str, int], dtype: str, device: torch.device,
                 names: Mapping[str, str] = MappingProxyType({})):
        self.mixer, self.target, self.shape, self.dtype = mixer, target, dict(shape), dtype
        self.device, self.names = device, names

    def __call__(self, config: Config) -> Timed:
        """Checked, then timed."""
        try:
            run = self._emitted(config.named(self.names))
            wrong = [f for f in self._judged(run) if not f.ok]
            if wrong:
                worst = max(wrong, key=lambda f: f.error / f.bound)
                return Timed(config, math.inf, f"wrong: {worst}")
            return Timed(config, between_events(self._both_ways(run)))
        except Exception as error:  # out of memory, a refused launch, what the compiler raises: others may run
            told = str(error).strip().splitlines() or [""]
            return Timed(config, math.inf, f"{type(error).__name__}: {told[0]}"[:200])

    def _emitted(self, config: Config) -> Callable[..., Any]:
        from mixc.codegen.offline import load_text

        text = self.mixer.emit(self.target, self.shape, self.dtype, config)
        run: Callable[..., Any] = getattr(load_text(text), named(self.mixer.declared).name)
        return run

    # ------------------------------------------------------------ is it right?
    @cached_property
    def _few(self) -> dict[str, Tensor]:
        """Inputs of two sequences with a rest of a chunk."""
        return self._drawn(min(2, self.shape["B"]), min(self.shape["T"], ROWS), min(2, self.shape["H"]))

    @cached_property
    def _truth(self) -> agree.Run:
        return agree.run(self.mixer, self._few, backend="torch", wide=True)

    def _judged(self, run: Callable[..., Any]) -> list[agree.Finding]:
        got = agree.run(_Called(self.mixer, run), self._few)
        plain = agree.Plain(self.mixer)
        return agree.judge(self.mixer.declared, got, self._truth, DTYPES[self.dtype],
                           lambda: agree.run(plain, self._few))

    # ------------------------------------------------------------ how long does it take?
    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        """Of the whole shape: a few rows again and again, as times do not depend on values."""
        B, T, H = (self.shape[n] for n in "BTH")
        few = self._drawn(1, min(T, 128), H)
        ins = {d.name for d in self.mixer.declared.ins}
        return {n: (x.repeat(B, -(-T // x.shape[1]), *[1] * (x.dim() - 2))[:, :T].contiguous() if n in ins else x)
                .requires_grad_(x.is_floating_point() or x.is_complex()) for n, x in few.items()}

    def _drawn(self, B: int, T: int, H: int) -> dict[str, Tensor]:
        sizes = {n: size for n, size in self.shape.items() if n not in ("B", "T", "H")}
        return draw(self.mixer.declared, B=B, T=T, H=H, sizes=sizes, dtype=DTYPES[self.dtype], device=self.device)

    def _both_ways(self, run: Callable[..., Any]) -> Callable[[], None]:
        inputs, ends = self._inputs, list[Tensor]()
        leaves = [x for x in inputs.values() if x.requires_grad]

        def both() -> None:
            o, _ = run(*inputs.values())
            outs = [x for x in ([o] if isinstance(o, Tensor) else o) if x.requires_grad]
            if outs:
                ends[:] = ends or [torch.randn_like(x) for x in outs]
                torch.autograd.grad(outs, leaves, ends, allow_unused=True)
        return both


class _Called:
    """An emitted function, called as a mixer is: by names."""

    def __init__(self, mixer: Mixer, run: Callable[..., Any]):
        self.declared, self.run = mixer.declared, run

    def __call__(self, *, initial_state: Any, output_final_state: bool, backend: str, **tensors: Any) -> Any:
        return self.run(*tensors.values(), initial_state=initial_state, output_final_state=output_final_state)


# ---------------------------------------------------------------- which configs
def fastest(ways: list[Way], tried: Mapping[str, list[Candidate]], run: Callable[[Config], Timed], until: float,
            say: Say = lambda label: None) -> tuple[Way, list[Timed]]:
    """The fastest complete choice of candidates, and all that ran.

    First what the model thinks best of every plan and segment, as far as it is near the best of all; then the fastest
    of these with one launch's candidate after the other in place of its own, the longest launch first.

    Args:
        ways: best first by the model. tried: what compiled, by launch. until: when it ends, by time.monotonic; the
            first always runs."""
    done = dict[Config, Timed]()

    def seconds(way: Way) -> float:
        config = config_of(way.chosen, way.segment)
        if config not in done:
            if done and time.monotonic() > until:
                return math.inf
            say(f"timing {len(done) + 1}")
            done[config] = run(config)
        return done[config].seconds
    best = min((w for w in ways if w.seconds <= NEAR * ways[0].seconds), key=seconds)
    for name in sorted(best.chosen, key=lambda n: -best.chosen[n].seconds):
        best = min([best, *(replace(best, chosen={**best.chosen, name: c}) for c in _instead(best, name, tried[name]))],
                   key=seconds)
    return best, list(done.values())


def _instead(way: Way, name: str, tried: Iterable[Candidate]) -> list[Candidate]:
    """Candidates of a launch that may take the place of its own; where rows are handed on all have one chunk."""
    own, fixed = way.chosen[name], config_of(way.chosen, way.segment).hands_on
    return [c for c in tried if c.good and c.segment == way.segment and c is not own
            and (not fixed or c.tile.chunk == own.tile.chunk)]


def timed(result: Tuning, bench: Bench, budget: float, say: Say) -> tuple[Tuning, list[Timed]]:
    """The same result with the fastest config of those that compiled; as it was where none of them is right."""
    start = time.monotonic()
    way, done = fastest(result.ways, result.tried, bench, start + budget, say)
    if all(t.failed for t in done):
        return result, done
    return replace(result, config=config_of(way.chosen, way.segment), chosen=way.chosen,
                   seconds=result.seconds + time.monotonic() - start), done
