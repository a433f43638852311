"""Annotates videos side by side on this machine; `ray_engine` does the same on a cluster."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
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
        waiting = iter(jobs)
        under_way: dict[asyncio.Task[tuple[Outcome, ...]], int] = {}
        try:
            while True:
                while len(under_way) < config.videos_at_once and (job := next(waiting, None)):
                    under_way[asyncio.create_task(annotate_video(job[1], shop))] = job[0]
                if not under_way:
                    return
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield VideoResult(number=under_way.pop(task), outcomes=task.result())
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
