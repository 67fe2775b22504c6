"""The order of an epoch: a permutation of files and of the examples in them that is computed, not stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.randomness import keys, permuted, stream_number
from ground.ragged import bounds_of

# Examples are shuffled within neighbouring files of the epoch that hold about this many together.
SHUFFLE_EXAMPLES = 1 << 20
_FILE_ORDER = stream_number("order of files")
_EXAMPLE_ORDER = stream_number("order of examples")


@dataclass(frozen=True)
class _Group:
    """Files whose examples are shuffled together in some epoch.

    Attributes:
        first: the position of its first example in the epoch.
        files: their numbers.
        ends: cumulative examples of the files.
    """

    first: int
    files: np.ndarray
    ends: np.ndarray

    @property
    def size(self) -> int:
        return int(self.ends[-1])


class EpochOrder:
    """Position in an epoch -> number of an example; a pure function of (seed, counts).

    Args:
        counts: examples of each file; int64 [F].
        seed: of the permutations.
    """

    def __init__(self, counts: np.ndarray, seed: int):
        self._counts, self._seed = counts, seed
        self._begins = bounds_of(counts)
        self._last: tuple[int, list[_Group]] = (-1, [])

    def _groups(self, epoch: int) -> list[_Group]:
        """Return the groups of an epoch, of which the last one asked for is kept."""
        if self._last[0] != epoch:
            order = np.random.Generator(np.random.PCG64([self._seed % 2**64, _FILE_ORDER, epoch]))
            groups, members, first, total = [], [], 0, 0
            for file in [*order.permutation(len(self._counts)), -1]:
                if members and (file < 0 or total + self._counts[file] > SHUFFLE_EXAMPLES):
                    ends = np.cumsum(self._counts[members])
                    groups.append(_Group(first, np.asarray(members), ends))
                    first, members, total = first + int(ends[-1]), [], 0
                if file >= 0 and self._counts[file]:
                    members.append(int(file))
                    total += int(self._counts[file])
            self._last = (epoch, groups)
        return self._last[1]

    def examples(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Return the numbers of the examples at `positions` of an epoch, counted through all files; int64 [N].

        Example:
            counts     [2, 3], the files' order of this epoch 1, 0, one group of 5 examples
            positions  [0, 3]
            within     [4, 1]       a permutation of 0 .. 4 by seed, epoch and group
            file       [0, 1]       the group's examples 0, 1, 2 are file 1's, 3 and 4 file 0's
            result     [1, 3]       example 1 of file 0; example 1 of file 1, behind the two of file 0
        """
        groups = self._groups(epoch)
        group_of = np.searchsorted([group.first for group in groups], positions, side="right") - 1
        examples = np.empty(len(positions), np.int64)
        for number in np.unique(group_of):
            group, chosen = groups[number], group_of == number
            key = int(keys(self._seed, _EXAMPLE_ORDER, epoch, int(number))[0])
            within = permuted(positions[chosen] - group.first, group.size, key)
            file = np.searchsorted(group.ends, within, side="right")
            before = np.concatenate([[0], group.ends])[file]
            examples[chosen] = self._begins[group.files[file]] + within - before
        return examples
