"""The sizes that a module is emitted with: a value that a tuner makes, a file holds, a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tile:
    """Sizes of one launch.

    Attributes:
        chunk: rows that a program works on at once, a power of two, at least 16 but where tokens have more rows.
        blocks: the block of every dim that programs divide among them (a dim not named: whole).
            Every other dim is whole: padded to a power of two.
        warps: of 32 (64) threads each. stages: how far ahead the loop over chunks loads.
        turns: blocks of the dim `turned`, one of `Launch.summed`, that a program takes one after the other, so that
            it adds up what they have in common.
    """

    chunk: int = 64
    blocks: tuple[tuple[str, int], ...] = ()
    warps: int = 4
    stages: int = 1
    turns: int = 1
    turned: str = ""

    def block(self, dim: str, size: int, least: int = 16) -> int:
        """The block of a dim of this size."""
        return min(dict(self.blocks).get(dim, 1 << 30), padded(size, least))

    def named(self, to: Mapping[str, str]) -> Tile:
        """The same where these dims have other names."""
        return replace(self, blocks=tuple((to.get(d, d), n) for d, n in self.blocks), turned=to.get(self.turned, self.turned))

    @staticmethod
    def of(found: Mapping[str, Any]) -> Tile:
        return Tile(**{**found, "blocks": tuple(found["blocks"].items())})

    def as_dict(self) -> dict[str, Any]:
        return {"chunk": self.chunk, "blocks": dict(self.blocks), "warps": self.warps, "stages": self.stages,
                **({"turns": self.turns, "turned": self.turned} if self.turns > 1 else {})}


@dataclass(frozen=True)
class Config:
    """Sizes of all launches of a module.

    Attributes:
        segment: rows from one state that is kept in memory to the next, a multiple of every chunk; a fused
            backward forms the states between them again, a split launch has a program for each.
        tiles: by launch: "fwd", "bwd" where a launch walks over the chunks of a sequence with the state on chip (fused);
            "fwd_states", "fwd_outs", "bwd_states", "bwd_grads" where the states of all segments come first and then every
            segment by a program of its own (split); "bwd_of_K", "bwd_of_V", … where each forms the gradients of a dim (by dims);
            "fwd_for_K", "bwd_for_K", "bwd_along_K" where rows are handed on to programs that divide a dim (along K).
    """

    tiles: tuple[tuple[str, Tile], ...] = ()
    segment: int = 64

    def __post_init__(self) -> None:
        for name, tile in self.tiles:
            if tile.chunk < 1 or tile.chunk & (tile.chunk - 1) or self.segment % tile.chunk:
                raise ValueError(f"{name}: a chunk of {tile.chunk} rows in segments of {self.segment}")
        if self.hands_on and len({tile.chunk for _, tile in self.tiles}) > 1:
            raise ValueError("launches that hand rows on have chunks of one size: what a row holds goes by its chunk")

    @property
    def hands_on(self) -> bool:
        """Do its launches hand rows on?"""
        return hands_on(name for name, _ in self.tiles)

    @property
    def schedule(self) -> str:
        """In words."""
        names = [name for name, _ in self.tiles]
        along = [n.removeprefix("bwd_") for n in names if n.startswith("bwd_along_")]
        if along:
            return along[0].replace("_", " ")
        cuts = ["split" if f"{d}_states" in names else "by dims" if any(n.startswith(d + "_") for n in names) else "fused"
                for d in ("fwd", "bwd")]
        return cuts[0] if cuts[0] == cuts[1] else f"{cuts[0]} forward, backward {cuts[1]}"

    def tile(self, launch: str) -> Tile:
        return dict(self.tiles).get(launch, Tile(min(self.segment, 32)))

    def named(self, to: Mapping[str, str]) -> Config:
        return replace(self, tiles=tuple((name, tile.named(to)) for name, tile in self.tiles))

    def as_dict(self) -> dict[str, Any]:
        """For a file; `of` reads it back."""
        return {"schedule": self.schedule, "segment": self.segment,
                "tiles": {name: tile.as_dict() for name, tile in self.tiles}}

    @staticmethod
    def of(found: Mapping[str, Any]) -> Config:
        return Config(tuple((name, Tile.of(t)) for name, t in found["tiles"].items()), found["segment"])


def hands_on(launches: Iterable[str]) -> bool:
    """Do launches of these names hand rows on?"""
    return any("_along_" in name for name in launches)


def padded(size: int, least: int = 16) -> int:
    """The block that holds a whole dim: a power of two, at least 16 as tensor cores want it."""
    return max(least, 1 << (size - 1).bit_length())
