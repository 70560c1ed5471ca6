"""The intermediate representation: one node type, one table of ops, one program type."""
