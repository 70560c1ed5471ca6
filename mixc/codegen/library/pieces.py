"""Which sequence each piece of a call is of."""

import torch


def pieces_of(first, bound):
    """The sequence that each of `bound` pieces is of; pieces behind the last one count as of the last sequence.

    first: the number of each sequence's first piece (None: dense)."""
    if first is None:
        return None
    return torch.searchsorted(first, torch.arange(bound, device=first.device), right=True) - 1
