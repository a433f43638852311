"""A step's questions divided into passes of the trunk: few, full, and alike for all processes.

Samples are laid end to end without padding (`Trunk.forward`), so a pass is bounded by its tokens.
Processes wait for one another at every step, so it is their time that must be alike, which is
a * S + b * S^2 for a sample of S tokens, plus the tower's share for a video that must be seen. The
costliest item goes first, always to where least has gathered.

Every process comes to the same division by itself, and all make the same number of passes, because
DeepSpeed's collectives need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Questions about one video that stay together: they share what the tower makes of it."""

    place: int
    """Of the group in the data set."""
    questions: tuple[int, ...]
    """Places of the questions in the group."""
    sides: tuple[int, ...]
    """Side of the pooled grid for each of them."""
    num_tokens: int
    """Of all questions together, their video's tokens included."""
    cost: float
    """Operations, in any unit."""


@dataclass(slots=True)
class _Pass:
    items: list[Item] = field(default_factory=list)
    num_tokens: int = 0
    cost: float = 0.0

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.num_tokens += item.num_tokens
        self.cost += item.cost


def pack(items: Sequence[Item], num_processes: int, tokens_per_pass: int) -> list[list[list[Item]]]:
    """Divides a step's items among processes and passes.

    Args:
        items: In any order, which does not matter but for ties.
        num_processes: At least 1.
        tokens_per_pass: Most tokens of a pass; an item that has more passes alone.

    Returns:
        Process -> pass -> items. All processes have the same number of passes; where there are
        fewer items than that, some passes are empty.
    """
    by_cost = sorted(items, key=lambda item: (-item.cost, item.place, item.questions))
    total = sum(min(item.num_tokens, tokens_per_pass) for item in items)
    num_passes = max(1, -(-total // (tokens_per_pass * num_processes)))
    while (filled := _fill(by_cost, num_passes * num_processes, tokens_per_pass)) is None:
        num_passes += 1
    # passes that run side by side should cost alike: neighbours by cost do
    filled.sort(key=lambda each: -each.cost)
    return _deal(filled, num_processes, num_passes)


def _fill(by_cost: Sequence[Item], num_passes: int, tokens_per_pass: int) -> list[_Pass] | None:
    passes = [_Pass() for _ in range(num_passes)]
    for item in by_cost:
        fitting = [
            each
            for each in passes
            if not each.items or each.num_tokens + item.num_tokens <= tokens_per_pass
        ]
        if not fitting:
            return None
        min(fitting, key=lambda each: each.cost).add(item)
    return passes


def _deal(filled: Sequence[_Pass], num_processes: int, num_passes: int) -> list[list[list[Item]]]:
    """Gives each process one pass of every row, the costliest to the one with least so far."""
    dealt: list[list[list[Item]]] = [[] for _ in range(num_processes)]
    sums = [0.0] * num_processes
    for row in range(num_passes):
        of_row = filled[row * num_processes : (row + 1) * num_processes]
        neediest = sorted(range(num_processes), key=lambda process: sums[process])
        for process, each in zip(neediest, of_row, strict=True):
            dealt[process].append(each.items)
            sums[process] += each.cost
    return dealt
