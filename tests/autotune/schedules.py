"""Schedules of shipped mixers at a size, for the tests of what is chosen."""

from __future__ import annotations

import mixc
from mixc.autotune import tuner
from mixc.targets import Target, find

SIZES = {"B": 8, "T": 2048, "H": 16, "K": 64, "V": 64}


def schedules(name: str = "simple_gla", target: str | Target = "h100", **sizes: int) -> list[tuner.Schedule]:
    mixer = mixc.load(name)
    found = SIZES | {d.name: 64 for d in mixer.declared.dims} | sizes
    return tuner.schedules_of(mixer.declared, find(target), found, "bf16")


def schedule(name: str = "simple_gla", target: str | Target = "h100", **sizes: int) -> tuner.Schedule:
    found, = schedules(name, target, **sizes)
    return found
