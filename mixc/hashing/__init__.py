"""Specs as functions: a hash that renaming, reordering and rewriting do not change, and what matches what."""

from mixc.hashing.identity import canonical_of, hash_of

__all__ = ["canonical_of", "hash_of"]
