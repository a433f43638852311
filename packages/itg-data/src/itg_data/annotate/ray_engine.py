"""The same stages on a Ray cluster: the only file of itg-data that imports ray.

Each worker takes one core and annotates whole videos with a decoder and connections of its own, so
pictures never travel between machines; all of them must see the folder of videos under the same
path. The ledger stays on the machine where the run was started, behind an actor that workers claim
each request from, so no two of them ask the same. If a worker dies the run ends, and goes on from
the ledger when it is started again.
"""

import asyncio
import dataclasses
import itertools
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from itg_data.annotate.config import RunConfig, open_workshop
from itg_data.annotate.desk import GRACE_S, AnswerStore, Tally
from itg_data.annotate.ledger import Ledger
from itg_data.annotate.local_engine import VideoResult, side_by_side
from itg_data.annotate.pipeline import Outcome, VideoJob, Workshop, annotate_video
from itg_data.annotate.records import DropReason
from itg_data.annotate.requests import (
    AnnotatorError,
    Answer,
    Failure,
    MissingExtraError,
    Stage,
)

# under `uv run` Ray would have its workers build the environment anew, from a packed folder
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
try:
    import ray as untyped_ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtraError(
        "--engine ray needs Ray: pip install 'itg-data[ray]'", name=error.name
    ) from None

# its decorators hide what they decorate from type checkers
ray: Any = untyped_ray


async def run_on_ray(
    config: RunConfig,
    store: AnswerStore,
    jobs: Iterable[tuple[int, VideoJob]],
    tally: Tally,
) -> AsyncGenerator[VideoResult]:
    """Annotates videos on a cluster; see `RunEngine`. The ledger in `config.out` is the store."""
    try:
        ray.init(
            address=config.ray_address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # Ray raises nothing more precise
        raise AnnotatorError(f"Ray does not start, or its cluster is not there: {error}") from None
    try:
        workers = _start_workers(config)
        of_worker: dict[int, Tally] = {}
        turns = itertools.cycle(range(len(workers)))

        async def annotate(job: VideoJob) -> tuple[Outcome, ...]:
            turn = next(turns)
            outcomes, of_worker[turn] = await _wait_for(workers[turn].annotate.remote(job))
            tally.set_to_sum(of_worker.values())
            return outcomes

        limit = len(workers) * _of_one_worker(config, len(workers)).videos_at_once
        async with aclosing(side_by_side(jobs, annotate, limit)) as results:
            async for result in results:
                yield result
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise AnnotatorError(f"a worker died ({error}); start again to go on from here") from None
    finally:
        ray.shutdown()


async def _wait_for(reference: Any) -> Any:
    try:
        return await reference
    except asyncio.CancelledError:
        # a worker that is stopped keeps the answers to what it has asked: see `desk.to_the_end`
        ray.cancel(reference)
        await asyncio.to_thread(ray.wait, [reference], timeout=GRACE_S)
        raise


def _start_workers(config: RunConfig) -> list[Any]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote_ledger = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)
    ledger = remote_ledger(_LedgerActor).remote(config.out.resolve(), config.retried)
    count = max(1, int(ray.cluster_resources().get("CPU", 1)))
    own = _of_one_worker(config, count)
    remote_worker = ray.remote(num_cpus=1, max_concurrency=own.videos_at_once)(_Worker)
    return [remote_worker.remote(own, ledger) for _ in range(count)]


def _of_one_worker(config: RunConfig, num_workers: int) -> RunConfig:
    return dataclasses.replace(
        config,
        videos=config.videos.resolve(),
        num_decoders=1,
        concurrency=max(1, config.concurrency // num_workers),
    )


class _LedgerActor:
    """The ledger, for workers elsewhere."""

    def __init__(self, out: Path, retried: frozenset[DropReason]) -> None:
        self._ledger = Ledger(out / "ledger.sqlite", retried=retried)

    async def claim(self, key: str) -> Answer | Failure | None:
        return await self._ledger.claim(key)

    async def store(self, key: str, stage: Stage, model: str, outcome: Answer | Failure) -> None:
        await self._ledger.store(key, stage, model, outcome)

    async def release(self, key: str) -> None:
        await self._ledger.release(key)


class _RemoteLedger:
    """The way to it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def claim(self, key: str) -> Answer | Failure | None:
        return await self._actor.claim.remote(key)

    async def store(self, key: str, stage: Stage, model: str, outcome: Answer | Failure) -> None:
        await self._actor.store.remote(key, stage, model, outcome)

    async def release(self, key: str) -> None:
        await self._actor.release.remote(key)


class _Worker:
    """Annotates videos, several side by side."""

    def __init__(self, config: RunConfig, ledger: Any) -> None:
        self._config = config
        self._store = _RemoteLedger(ledger)
        self._shop: Workshop | None = None
        self._open = AsyncExitStack()

    async def annotate(self, job: VideoJob) -> tuple[tuple[Outcome, ...], Tally]:
        if self._shop is None:
            spool = Path(tempfile.gettempdir())
            shop = open_workshop(self._config, self._store, spool)
            self._shop = await self._open.enter_async_context(shop)
        outcomes = await annotate_video(job, self._shop)
        return outcomes, self._shop.desk.tally
