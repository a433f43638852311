"""The batches of a run, in order, read ahead of their turn."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from itg_data.errors import VideoError
from itg_model.config import FrameGroundingConfig

from itg_train.dataset import Group, VideoDataset, VideoSample
from itg_train.flops import ForwardFlops
from itg_train.order import Order
from itg_train.packing import Item, pack

STEPS_AHEAD = 2
"""Steps that are read while one is computed."""
MANY_GROUPS = 32
"""Groups of a process's step from which on one step ahead is enough, and memory is the matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What one process takes through the network at once; may be empty."""

    samples: tuple[VideoSample, ...]

    @property
    def num_questions(self) -> int:
        """Questions in the pass."""
        return sum(len(sample.records) for sample in self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """What one process learns from in one step."""

    step: int
    passes: tuple[Pass, ...]
    """As many for every process."""
    skipped: tuple[str, ...]
    """Videos that could not be decoded after all, each with its reason."""

    @property
    def num_questions(self) -> int:
        """Questions that are learnt."""
        return sum(each.num_questions for each in self.passes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planner:
    """Says what each process does in a step, as every process finds out by itself."""

    dataset: VideoDataset
    order: Order
    model: FrameGroundingConfig
    num_processes: int
    tokens_per_pass: int
    side_seed: int | None = None
    """Draws the sides of pooled grids from this seed; None keeps the largest."""
    causal: bool = False

    def plan(self, step: int) -> list[list[list[Item]]]:
        """Process -> pass -> items of a step."""
        items: list[Item] = []
        for turn, place in enumerate(self.order.places(step)):
            items += self._items(step, turn, place)
        return pack(items, self.num_processes, self.tokens_per_pass)

    def _items(self, step: int, turn: int, place: int) -> Iterator[Item]:
        """One group, in as many parts as the token budget demands."""
        group = self.dataset.groups[place]
        questions: list[tuple[int, int, int]] = []
        num_tokens = 0
        for question in range(len(group.records)):
            side = self._side(step, turn, question, group)
            length = self._count_tokens(group, question, side)
            if questions and num_tokens + length > self.tokens_per_pass:
                yield self._item(group, place, questions)
                questions, num_tokens = [], 0
            questions.append((question, side, length))
            num_tokens += length
        yield self._item(group, place, questions)

    def _item(self, group: Group, place: int, questions: list[tuple[int, int, int]]) -> Item:
        flops = ForwardFlops(self.model, self.causal)
        trunk = 3 * sum(flops.trunk(length) for _, _, length in questions)
        seen = 0.0 if self.dataset.store else flops.tower(group.num_frames)
        return Item(
            place=place,
            questions=tuple(question for question, _, _ in questions),
            sides=tuple(side for _, side, _ in questions),
            num_tokens=sum(length for _, _, length in questions),
            cost=trunk + seen,
        )

    def _side(self, step: int, turn: int, question: int, group: Group) -> int:
        if group.num_frames == 0:
            return 0
        if self.side_seed is None:
            return self.model.pooled_side(group.num_frames)
        # from the step, not from a running generator: a resumed run draws what it would have
        rng = random.Random(f"{self.side_seed} {step} {turn} {question} {group.video}")
        return self.model.draw_pooled_side(group.num_frames, rng)

    def _count_tokens(self, group: Group, question: int, side: int) -> int:
        num_ids = len(self.dataset.task.encode(group.records[question]))
        whole = group.num_frames * side**2 + num_ids - (1 if group.num_frames else 0)
        return min(whole, self.model.tokenizer_model_max_length)


def iterate_steps(
    planner: Planner,
    rank: int,
    first_step: int,
    num_steps: int,
    num_workers: int,
    *,
    pin: bool = False,
) -> Iterator[StepBatch]:
    """Yields this process's batches of steps `first_step` to `num_steps - 1`, reading ahead.

    A step goes without a video that cannot be decoded, and names it; no other takes its place.

    Args:
        planner: Says what each step holds.
        rank: This process.
        first_step: Where to begin.
        num_steps: Where to end.
        num_workers: Videos read at once.
        pin: Puts frames where a GPU fetches them fastest.
    """
    dataset = planner.dataset
    many = planner.order.groups_per_step >= MANY_GROUPS * planner.num_processes
    ahead = 1 if many else STEPS_AHEAD

    def load(item: Item) -> VideoSample | VideoError:
        try:
            sample = dataset.load(item.place, item.questions)
        except VideoError as error:
            return error
        frames = sample.frames.pin_memory() if pin else sample.frames
        return replace(sample, sides=item.sides, frames=frames)

    pool, planning = ThreadPoolExecutor(num_workers), ThreadPoolExecutor(1)
    try:
        submit = _submitter(planner, rank, pool, load)
        pending = deque(
            planning.submit(submit, step)
            for step in range(first_step, min(first_step + ahead, num_steps))
        )
        for step in range(first_step, num_steps):
            if step + ahead < num_steps:
                pending.append(planning.submit(submit, step + ahead))
            yield _gather(step, pending.popleft().result())
    finally:
        # who stops early does not want what is read ahead: waiting for it would take half a minute
        planning.shutdown(cancel_futures=True)
        pool.shutdown(wait=False, cancel_futures=True)


_Loaded = list[list[Future[VideoSample | VideoError]]]


def _submitter(
    planner: Planner,
    rank: int,
    pool: ThreadPoolExecutor,
    load: Callable[[Item], VideoSample | VideoError],
) -> Callable[[int], _Loaded]:
    def submit(step: int) -> _Loaded:
        return [
            [pool.submit(load, item) for item in of_pass] for of_pass in planner.plan(step)[rank]
        ]

    return submit


def _gather(step: int, loaded: _Loaded) -> StepBatch:
    passes: list[Pass] = []
    skipped: list[str] = []
    for of_pass in loaded:
        samples: list[VideoSample] = []
        for future in of_pass:
            found = future.result()
            if isinstance(found, VideoError):
                skipped.append(str(found))
            else:
                samples.append(found)
        passes.append(Pass(samples=tuple(samples)))
    # its questions may be in several items
    return StepBatch(step=step, passes=tuple(passes), skipped=tuple(dict.fromkeys(skipped)))
