"""The pipeline: what a spec passes on its way to a program, in order."""

from __future__ import annotations

from collections.abc import Callable

from mixc.ir.program import Program


def _classify(p: Program) -> Program:
    from mixc.passes.classify import classify

    return classify(p)


def _chunk(p: Program) -> Program:
    from mixc.passes.chunk import chunk

    return chunk(p)


def _differentiate(p: Program) -> Program:
    from mixc.passes.differentiate import differentiate

    return differentiate(p)


# step -> stages -> chunk -> chunk (backward); each a function from Program to Program
PIPELINE: tuple[tuple[str, Callable[[Program], Program]], ...] = (
    ("classify", _classify),
    ("chunk", _chunk),
    ("differentiate", _differentiate),
)
