"""An order of statements with few tiles alive at a time, by a beam search: of every length the best orders go on.

The orders of a length are rows of arrays, so that all that may follow any of them is weighed at once.  They stand by
the numbers of their statements, and of equals the first is taken.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
DONE = 1 << 14  # more than a statement can wait for


class Beam:
    """The orders of some statements.

    Args:
        taken: the tiles that each takes; the first tiles are what the statements make, the others are loaded or there.
        size: of each tile. within: what a statement needs while it runs, beside what it takes and makes.
        forever: tiles that stay to the end. there: tiles that are there from the beginning."""

    def __init__(self, taken: list[list[int]], size: list[float], within: list[float], forever: list[int], there: list[int]):
        self.count = n = len(taken)
        uses = np.zeros((n, len(size) + 1), np.int16)  # behind the tiles none, so that all take equally many
        for i, tiles in enumerate(taken):
            uses[i, tiles] = 1
        most = max(map(len, taken), default=0)
        self.taken = np.array([[*t, *[len(size)] * (most - len(t))] for t in taken], int).reshape(n, most).T
        self.users, self.uses = uses.sum(0, dtype=np.int16), uses
        self.waits, self.missing = uses[:, :n].T + DONE * np.eye(n, dtype=np.int16), uses[:, :n].sum(1, dtype=np.int16)
        freed, loaded = np.array([*size, 0.0]), np.array([*size, 0.0])
        freed[forever], loaded[[*range(n), *there]] = 0, 0
        self.freed, self.loaded, self.unread = freed[self.taken], loaded[self.taken], self.users[self.taken]
        self.made, self.within, self.live = np.array(size[:n]), np.array(within), float(sum(size[j] for j in there))
        stays = self.users[:n] > 0
        stays[[j for j in forever if j < n]] = True
        self.gone = np.where(stays, 0.0, self.made)
        self.marks = np.random.default_rng(0).integers(1, 1 << 62, n)  # sums of these tell sets of statements apart

    def best(self, width: int) -> tuple[int, ...]:
        """The best order; as many as `width` of each length go on."""
        peak, area, now, done = np.full(1, self.live), np.zeros(1), np.full(1, self.live), np.zeros(1, int)
        left, missing, ways = self.users[None], self.missing[None], list[tuple[Array, Array]]()
        for _ in range(self.count):
            at, i, more, most = self._next(left, missing)
            most = np.maximum(now.take(at) + most, peak.take(at))
            size = now.take(at) + more
            sums, sets = area.take(at) + size, done.take(at) + self.marks.take(i)
            order = np.lexsort((sums, most))
            kept = np.sort(order.take(_firsts(sets.take(order))[:width]))
            at, i = at.take(kept), i.take(kept)
            ways.append((i, at))
            peak, area, now, done = most.take(kept), sums.take(kept), size.take(kept), sets.take(kept)
            left, missing = left.take(at, 0) - self.uses.take(i, 0), missing.take(at, 0) - self.waits.take(i, 0)
        path, place = [], 0
        for each, at in reversed(ways):
            path.append(int(each[place]))
            place = int(at[place])
        return tuple(reversed(path))

    def _next(self, left: Array, missing: Array) -> tuple[Array, Array, Array, Array]:
        """What may follow each order: the order, the statement, what that adds to the size of live tiles, and the most
        that it adds meanwhile. Where a statement frees what it takes, nothing is gained by waiting.

        Args:
            left: users of every tile that are left. missing: of every statement what it waits for."""
        at, i = np.divmod((missing.ravel() == 0).nonzero()[0], self.count)
        users = left.ravel().take(self.taken.take(i, 1) + at * left.shape[1])
        loads = (self.loaded.take(i, 1) * (users == self.unread.take(i, 1))).sum(0)
        more = loads + self.made.take(i) - (self.freed.take(i, 1) * (users == 1)).sum(0)
        most = np.maximum(more, loads + self.within.take(i))
        more -= self.gone.take(i)
        frees = (np.maximum(more, most) <= 0).nonzero()[0]
        if not frees.size:
            return at, i, more, most
        others = np.ones(len(left), bool)
        others[at.take(frees)] = False
        kept = others.take(at)
        kept[frees[_changes(at.take(frees))]] = True
        return at[kept], i[kept], more[kept], most[kept]


def _changes(values: Array) -> Array:
    """Is a value another than the one before?"""
    return np.concatenate(([True], values[1:] != values[:-1]))


def _firsts(values: Array) -> Array:
    """Where each value stands first."""
    by_value = values.argsort(kind="stable")
    return np.sort(by_value[_changes(values.take(by_value))])
