"""Specs as functions: a hash that renaming, reordering and rewriting do not change, and what matches what."""

from mixc.hashing.confirm import Matching, same_function, shipped_twin
from mixc.hashing.identity import hash_of

__all__ = ["Matching", "hash_of", "same_function", "shipped_twin"]
