"""Specs as functions: a hash that renaming, reordering and rewriting do not change, and what matches what."""

from mixc.hashing.canonical import hash_of
from mixc.hashing.confirm import Matching, same_function, shipped_twin

__all__ = ["Matching", "hash_of", "same_function", "shipped_twin"]
