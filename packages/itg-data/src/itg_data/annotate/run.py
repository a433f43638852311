"""A run: from a folder of videos and a file of QA pairs to a set on disk, however often killed.

    out/
        annotations.jsonl   the pairs with their labels and every step that led to them
        dropped.jsonl       the pairs that did not make it, with reasons
        records.jsonl       what training reads, and more that follows: see `itg_data.sets.derive`
        videos              link to the folder of videos
        config.json         what was run
        ledger.sqlite       every answer of the annotator: the cassette of the run
        shards-0123abcd/    while the run lasts: finished stretches of the file of QA pairs

The set does not depend on timing. A run that is started again skips finished shards, and what it
does anew it answers from the ledger. Once the set is whole the shards are gone.
"""

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from itg_data.annotate.config import RunConfig
from itg_data.annotate.desk import Tally
from itg_data.annotate.ledger import Ledger
from itg_data.annotate.local_engine import RunEngine, run_here
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.out_folder import (
    CONFIG,
    RunError,
    link_videos,
    locked,
    remove_leftovers,
    require_own,
)
from itg_data.annotate.pipeline import Outcome
from itg_data.annotate.qa import QaFile
from itg_data.annotate.records import DroppedSample
from itg_data.annotate.shards import Shards, remove_shards
from itg_data.files import write_atomic
from itg_data.sets.derive import write_derived


@dataclass(kw_only=True, slots=True)
class RunState:
    """How far a run is; what a progress bar shows."""

    num_pairs: int
    num_done: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    """Pairs that were dropped, by reason."""
    tally: Tally = field(default_factory=Tally)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started_s

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Counts finished pairs."""
        for outcome in outcomes:
            self.num_done += 1
            if isinstance(outcome, DroppedSample):
                self.dropped[outcome.reason] += 1


Watch = Callable[[RunState], None]


def run(
    config: RunConfig,
    watch: Watch | None = None,
    interrupted: Callable[[], None] | None = None,
) -> RunState:
    """Makes the set, or what is still missing of it.

    Args:
        config: What is run.
        watch: Called every half a second, and at the end.
        interrupted: Called at Ctrl-C, before the answers under way are waited for.

    Raises:
        ItgError: Something outside is wrong: a file, the annotator, the disk. Started again, the
            run goes on where it stopped.
    """
    qa = config.open_qa()
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        require_own(config.out)
        with locked(config.out):
            remove_leftovers(config.out)
            return _run(config, qa, watch or (lambda _: None), interrupted or (lambda: None))
    except OSError as error:
        raise RunError(
            f"{error.filename or config.out}: {error.strerror or error}; nothing that was answered "
            "is lost: mend it and start again"
        ) from None


def _run(config: RunConfig, qa: QaFile, watch: Watch, interrupted: Callable[[], None]) -> RunState:
    fingerprint = config.fingerprint(qa.sha256)
    link_videos(config.out, config.videos)
    write_atomic(config.out / CONFIG, _describe(config, fingerprint))
    shards = Shards(config.out, fingerprint, qa, config.videos, config.retried)
    state = RunState(num_pairs=qa.num_pairs)
    ledger = Ledger(config.out / "ledger.sqlite", retried=config.retried)
    try:
        asyncio.run(_annotate(config, shards, ledger, state, watch, interrupted))
    finally:
        ledger.close()
    shards.join(config.out)
    write_derived(config.out)
    remove_shards(config.out)  # only now: until here they are what a killed run goes on from
    return state


async def _annotate(
    config: RunConfig,
    shards: Shards,
    ledger: Ledger,
    state: RunState,
    watch: Watch,
    interrupted: Callable[[], None],
) -> None:
    state.count(shards.read_finished())
    watching = asyncio.create_task(_keep_watching(state, watch))
    noticing = asyncio.create_task(_notice_the_end(asyncio.current_task(), interrupted))
    results = _choose_engine(config)(config, ledger, shards.read_jobs(), state.tally)
    try:
        async for result in results:
            state.count(result.outcomes)
            shards.put(result.number, result.outcomes)
    finally:
        # closed here and now: left to the collector, its cleaning up would come after the loop
        await results.aclose()
        watching.cancel()
        noticing.cancel()
        watch(state)


def _choose_engine(config: RunConfig) -> RunEngine:
    if config.engine == "local":
        return run_here
    from itg_data.annotate.ray_engine import run_on_ray

    return run_on_ray


async def _notice_the_end(run: asyncio.Task[Any] | None, interrupted: Callable[[], None]) -> None:
    """Says when a run is cancelled: it learns of that itself only after it has waited."""
    while run is None or not run.cancelling():
        await asyncio.sleep(0.05)
    interrupted()


async def _keep_watching(state: RunState, watch: Watch) -> None:
    while True:
        watch(state)
        await asyncio.sleep(0.5)


def _describe(config: RunConfig, fingerprint: str) -> str:
    described: dict[str, Any] = dataclasses.asdict(config)
    if isinstance(config.annotator, ServerConfig):
        del described["annotator"]["api_key"]
        described["annotator"]["base_url"] = config.annotator.address
    described["fingerprint"] = fingerprint
    return json.dumps(described, indent=2, default=str) + "\n"
