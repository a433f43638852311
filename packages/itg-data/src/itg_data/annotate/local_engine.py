"""Annotates videos side by side on this machine; `ray_engine` does the same on a cluster."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from itg_data.annotate.config import RunConfig, open_workshop
from itg_data.annotate.desk import AnswerStore, Tally
from itg_data.annotate.pipeline import Outcome, VideoJob, annotate_video


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """What became of a video's QA pairs."""

    number: int
    """The job's number."""
    outcomes: tuple[Outcome, ...]


class RunEngine(Protocol):
    """Annotates videos, in any order, a bounded number of them at a time."""

    def __call__(
        self,
        config: RunConfig,
        store: AnswerStore,
        jobs: Iterable[tuple[int, VideoJob]],
        tally: Tally,
    ) -> AsyncGenerator[VideoResult]:
        """Yields each numbered job's result when it is there; `tally` is kept up to date.

        Raises:
            ItgError: The run can't go on; what was answered is kept.
        """
        ...


async def run_here(
    config: RunConfig,
    store: AnswerStore,
    jobs: Iterable[tuple[int, VideoJob]],
    tally: Tally,
) -> AsyncGenerator[VideoResult]:
    """Annotates videos in this process; see `RunEngine`."""
    async with open_workshop(config, store, config.out) as shop:
        shop.desk.tally = tally

        async def annotate(job: VideoJob) -> tuple[Outcome, ...]:
            return await annotate_video(job, shop)

        async with aclosing(side_by_side(jobs, annotate, config.videos_at_once)) as results:
            async for result in results:
                yield result


async def side_by_side(
    jobs: Iterable[tuple[int, VideoJob]],
    annotate: Callable[[VideoJob], Awaitable[tuple[Outcome, ...]]],
    limit: int,
) -> AsyncGenerator[VideoResult]:
    """Does up to `limit` jobs at a time, drawn as there is room; ends them all when it is closed.

    Raises:
        Exception: What a job raised, as it raised it; those done by then are yielded before.
    """

    async def number_and_annotate(number: int, job: VideoJob) -> VideoResult:
        return VideoResult(number=number, outcomes=await annotate(job))

    waiting = iter(jobs)
    under_way: set[asyncio.Task[VideoResult]] = set()
    try:
        while True:
            while len(under_way) < limit and (job := next(waiting, None)) is not None:
                under_way.add(asyncio.create_task(number_and_annotate(*job)))
            if not under_way:
                return
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            # all are looked at before any is handed on: who takes them may not come back for more,
            # and an error that nobody looks at is told on stderr at the end
            failures = [failure for task in done if (failure := task.exception()) is not None]
            for task in done:
                if task.exception() is None:
                    yield task.result()
            if failures:
                raise failures[0]
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
