"""Which groups a step learns from: a pure function of the seed, the step and the number of groups.

Nothing of the order is saved, so a run that resumes at a step continues exactly where it left off,
and with any number of processes: a step's groups are those of all processes together. With one
group more or less the order is another, so a run folder remembers its data (`rundir.DataFacts`).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One endless sequence: a permutation of all groups per epoch, one epoch after the other."""

    num_groups: int
    groups_per_step: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise ValueError("there is nothing to train on: num_groups must be >= 1, got 0")

    def places(self, step: int) -> list[int]:
        """Places of the groups that step `step`, counted from 0, learns from."""
        first = step * self.groups_per_step
        return [self._place(i) for i in range(first, first + self.groups_per_step)]

    def _place(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_groups)
        return int(_permutation(self.seed, epoch, self.num_groups)[offset])


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(size)
