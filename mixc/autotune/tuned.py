"""A tuning result as a value: found in the cache or made, written to a file that people share, refused elsewhere."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixc.autotune import cache
from mixc.codegen.config import Config, Tile
from mixc.errors import InputError, SpecError
from mixc.hashing.canonical import canonical_of
from mixc.hashing.confirm import same_function
from mixc.ir.program import Program
from mixc.ir.text import print_program
from mixc.targets import Target

if TYPE_CHECKING:
    import torch

    from mixc.runtime.mixer import Mixer

FORM = "mixc config 4"
LOG = logging.getLogger("mixc")
SHORT = 64  # tokens: up to here a sequence is a chunk or two


@dataclass(frozen=True)
class Tuned:
    """A config and what it was made for. `launches`: a row a compiled candidate, the chosen one of a launch marked;
    `timed`: a row a config that ran on the GPU (none: no such GPU was there, the model chose)."""

    mixer: str
    hash: str
    spec: str  # its text: what a hash proposes is confirmed
    target: str
    dtype: str
    dims: dict[str, int]
    bucket: str
    shape: dict[str, int]
    config: Config
    launches: list[dict[str, Any]]
    timed: list[dict[str, Any]]
    seconds: float
    stopped: bool
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"form": FORM, **asdict(self), "config": self.config.as_dict()}

    @staticmethod
    def of(found: Mapping[str, Any]) -> Tuned:
        """Reads `as_dict` back.

        Raises:
            InputError: it is something else."""
        try:
            if found["form"] != FORM:
                raise KeyError(FORM)
            given = {k: found[k] for k in Tuned.__dataclass_fields__}
            return Tuned(**{**given, "config": Config.of(found["config"])})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"this is no config of mixc: {error!r}") from None

    def config_for(self, mixer: Mixer, target: Target, shape: Mapping[str, int] | None, dtype: str) -> Config:
        """The config, if it was made for this; sizes that `shape` does not name are as it was made for.

        Raises:
            InputError: it was made for something else."""
        made = self.named_for(mixer)
        if made is None:
            raise _made_for("mixer", self.mixer, mixer.__name__)
        made.refuse(target, {**made.shape, **(shape or {})}, dtype)
        return made.config

    def named_for(self, mixer: Mixer) -> Tuned | None:
        """The same for a mixer that is the same function, whose dims may have other names; else None."""
        own = self._dims_of(mixer)
        if own is None:
            return None
        dims, shape = ({own.get(d, d): size for d, size in of.items()} for of in (self.dims, self.shape))
        return replace(self._tiles_named(own), mixer=mixer.__name__, dims=dims, shape=shape)

    def _dims_of(self, mixer: Mixer) -> Mapping[str, str] | None:
        from mixc.runtime.load import from_text

        if self.hash != mixer.hash:
            return None
        if self.spec == _spec(mixer):
            return {d: d for d in self.dims}
        try:
            other = from_text(self.spec, "<cache>", self.mixer)
        except SpecError:  # a part of a step has no text
            return None
        found = same_function(other, mixer)
        return found.dims if found is not None else None

    def _tiles_named(self, to: Mapping[str, str]) -> Tuned:
        launches = [{**r, "tile": Tile.of(r["tile"]).named(to).as_dict()} for r in self.launches]
        timed = [{**r, "config": Config.of(r["config"]).named(to).as_dict()} for r in self.timed]
        return replace(self, launches=launches, timed=timed, config=self.config.named(to))

    def refuse(self, target: Target, sizes: Mapping[str, int], dtype: str) -> None:
        """Raises:
            InputError: it was made for something else; the message says for what."""
        own: dict[str, tuple[Any, Any]] = {"target": (self.target, target.name), "dtype": (self.dtype, dtype)}
        own |= {f"dim {d}": (n, sizes.get(d, n)) for d, n in self.dims.items()}
        own["shape"] = (self.bucket, bucket(sizes, target))
        for what, (made, asked) in own.items():
            if made != asked:
                raise _made_for(what, made, asked)


def _made_for(what: str, made: object, asked: object) -> InputError:
    return InputError(f"this config was made for another {what}: {made}, and not {asked}; tune again")


def _spec(mixer: Mixer) -> str:
    """Its text; of a part of a step, which has none, its program."""
    return print_program(mixer.declared) if mixer.made_from_program else mixer.text


def bucket(sizes: Mapping[str, int], target: Target) -> str:
    """What of a shape decides its schedule: short sequences, or long ones with few or many programs."""
    if sizes["T"] <= SHORT:
        return "short"
    return "long" if sizes["B"] * sizes["H"] >= target.sms // 2 else "long, few sequences and heads"


def key_of(mixer: Mixer, target: Target, sizes: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """What a result belongs to: the function, its dims in their canonical order, so that specs under other names share
    it, and the rest. No length is in it, only the bucket."""
    from mixc.targets import form

    return {"form": FORM, "mixer": mixer.hash, "dims": list(_sizes(mixer, sizes).values()), "target": target.name,
            "limits": cache.digest(form(target))[:16], "dtype": dtype, "bucket": bucket(sizes, target),
            "versions": cache.versions()}


def _sizes(mixer: Mixer, sizes: Mapping[str, int]) -> dict[str, int]:
    """Of every dim, in the canonical order."""
    return {d: sizes[d] if d in sizes else sizes[mixer.declared.root[d]] for d in canonical_of(mixer).dims}


def tuned(mixer: Mixer, target: Target, sizes: Mapping[str, int], dtype: str, *, cut: str = "", fresh: bool = False,
          advance: Callable[[str], None] = lambda label: None, **options: Any) -> tuple[Tuned, Path, bool]:
    """(result, where it is kept, was it there). `cut`: "fused" or "split" launches and no others; `fresh`: tune even
    so; options: of `tuner.Schedule.tune`.

    Raises:
        SpecError: the mixer has no kernels.
        InputError: no candidate compiled well, or none is feasible."""
    from mixc.autotune.timing import device_of

    key, found = _kept(mixer, key_of(mixer, target, sizes, dtype) | ({"cut": cut} if cut else {}))
    device = device_of(target)
    if found is not None and not fresh and (found.timed or device is None):
        return found, cache.path_of(key), True
    made = _make(mixer, mixer.as_emitted(dict(sizes)), key, target, sizes, device, advance=advance, **options)
    if not made.stopped:
        cache.put(key, made.as_dict())
    return made, cache.path_of(key), False


def _kept(mixer: Mixer, key: dict[str, Any]) -> tuple[dict[str, Any], Tuned | None]:
    """Where a result is kept, and the result.

    One of the same hash that is not certain to be of the same function stays where it is: this one has a place of its
    own."""
    for own in (key, key | {"spec": cache.digest(_spec(mixer))}):
        found = cache.get(own)
        named = Tuned.of(found).named_for(mixer) if found is not None else None
        if found is None or named is not None:
            break
    return own, named


def _make(mixer: Mixer, step: Program, key: Mapping[str, Any], target: Target, sizes: Mapping[str, int],
          device: torch.device | None = None, budget: float = 50.0, advance: Callable[[str], None] = lambda label: None,
          **options: Any) -> Tuned:
    """`device`: where what compiles well is checked and timed, as long again (`budget`; None: nowhere)."""
    from mixc.autotune.timing import Bench, Timed, timed
    from mixc.autotune.tuner import row, schedule_of

    schedule = schedule_of(step, target, sizes, key["dtype"], key.get("cut", ""))
    result, ran = schedule.tune(budget=budget, advance=advance, **options), list[Timed]()
    names = {inner: outer for outer, inner in schedule.module.own.items()}
    if device is not None:
        bench = Bench(mixer, target, {**sizes, **_sizes(mixer, sizes)}, key["dtype"], device, names)
        result, ran = timed(result, bench, budget, advance)
    launches = [row(c, result) for tried in result.tried.values() for c in tried]
    made = Tuned(mixer.__name__, key["mixer"], _spec(mixer), target.name, key["dtype"], _sizes(mixer, sizes),
                 key["bucket"], dict(sizes), result.config, launches, [t.as_dict() for t in ran], result.seconds,
                 result.stopped, cache.versions())
    return made._tiles_named(names)


def first(mixer: Mixer, step: Program, target: Target, sizes: Mapping[str, int], dtype: str, limit: float = 40.0,
          budget: float = 60.0) -> Config:
    """The config of a first build: what `mixc tune` found for it, else the model's best that compiles without a spill.

    It is kept, so that it is made once on a machine; other processes wait for it. Said (logger "mixc"): that it takes
    its time, and that every candidate spills, of which then the fastest is taken, the spill counted.

    Args:
        step: of the mixer, as it is for these sizes and consts."""
    key = key_of(mixer, target, sizes, dtype)
    named = _kept(mixer, key)[1] if step == mixer.declared else None
    if named is not None:
        return named.config
    key |= {"search": "first", "step": cache.digest(print_program(step))}
    found = cache.get(key)
    if found is None:
        with _said_later(f"{step.name}: compiling tile sizes for {target.name}, kept in {cache.path_of(key)}"), \
                cache.alone(key, budget + limit):
            found = cache.get(key)
            if found is None:
                found = _make(mixer, step, key, target, sizes, first=True, workers=min(4, os.cpu_count() or 1),
                              limit=limit, budget=budget).as_dict()
                cache.put(key, found)
                _say_wrong(step.name, found["launches"])
    return Tuned.of(found).config


def _say_wrong(name: str, launches: list[dict[str, Any]]) -> None:
    for r in launches:
        if r["chosen"] and (r["failed"] or r["spill"]):
            wrong = r["failed"] or f"all spill, one with {r['spill']} bytes is taken"
            LOG.warning("%s: no tile sizes for %s compile well: %s; `mixc tune` looks further", name, r["launch"],
                        wrong)


@contextmanager
def _said_later(text: str, seconds: float = 1.0) -> Iterator[None]:
    """Says it if what is inside takes longer."""
    timer = threading.Timer(seconds, LOG.warning, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read(path: Path) -> Tuned:
    """The config of a file.

    Raises:
        InputError: no such file, or no config."""
    try:
        return Tuned.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None


def write(path: Path, made: Tuned) -> None:
    path.write_text(json.dumps(made.as_dict(), indent=2) + "\n", encoding="utf-8")
