"""A run: from a folder of videos and a file of QA pairs to a set on disk, however often killed.

    out/
        annotations.jsonl   the pairs with their labels and every step that led to them
        dropped.jsonl       the pairs that did not make it, with reasons
        records.jsonl       what training reads, and more that follows: see `itg_data.sets.derive`
        videos              link to the folder of videos
        config.json         what was run
        ledger.sqlite       every answer of the annotator: the cassette of the run
        shards-0123abcd/    while the run lasts: finished stretches of the file of QA pairs

A shard appears whole or not at all, and holds the same stretch of pairs whoever finished first, so
the set does not depend on timing. A run that is started again skips finished shards, and what it
does anew it answers from the ledger. Once the set is whole the shards are gone.
"""

import asyncio
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from itg_data.annotate.config import RunConfig
from itg_data.annotate.desk import Tally
from itg_data.annotate.ledger import Ledger
from itg_data.annotate.local_engine import RunEngine, run_here
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.pipeline import Outcome, VideoJob
from itg_data.annotate.qa import QaFile
from itg_data.annotate.records import VIDEO_FOLDER, Annotation, DroppedSample
from itg_data.errors import ItgError
from itg_data.files import write_atomic
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.sets.derive import write_derived

VIDEOS_PER_SHARD = 32

RecordT = TypeVar("RecordT")


class RunError(ItgError):
    """A run cannot begin or go on; the message says why and what to do."""


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


def run(config: RunConfig, watch: Watch | None = None) -> RunState:
    """Makes the set, or what is still missing of it.

    Args:
        config: What is run.
        watch: Called every half a second, and at the end.

    Raises:
        ItgError: Something outside is wrong: a file, the annotator, the disk. Started again, the
            run goes on where it stopped.
    """
    qa = config.open_qa()
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        with _locked(config.out):
            return _run(config, qa, watch or (lambda _: None))
    except OSError as error:
        raise RunError(
            f"{error.filename or config.out}: {error.strerror or error}; nothing that was answered "
            "is lost: mend it and start again"
        ) from None


def _run(config: RunConfig, qa: QaFile, watch: Watch) -> RunState:
    fingerprint = config.fingerprint(qa.sha256)
    shards = _Shards(config.out / f"shards-{fingerprint[:8]}", qa)
    _link_videos(config)
    write_atomic(config.out / "config.json", _describe(config, fingerprint))
    state = RunState(num_pairs=qa.num_pairs)
    ledger = Ledger(config.out / "ledger.sqlite")
    try:
        asyncio.run(_annotate(config, shards, ledger, state, watch))
    finally:
        ledger.close()
    shards.assemble(config.out)
    return state


async def _annotate(
    config: RunConfig, shards: "_Shards", ledger: Ledger, state: RunState, watch: Watch
) -> None:
    for number in shards.finished():
        state.count(shards.read(number))
    watching = asyncio.create_task(_keep_watching(state, watch))
    results = _choose_engine(config)(config, ledger, shards.read_jobs(), state.tally)
    try:
        async for result in results:
            state.count(result.outcomes)
            shards.put(result.number, result.outcomes)
    finally:
        # closed here and now: left to the collector, its cleaning up would come after the loop
        await results.aclose()
        watching.cancel()
        watch(state)


def _choose_engine(config: RunConfig) -> RunEngine:
    if config.engine == "local":
        return run_here
    from itg_data.annotate.ray_engine import run_on_ray

    return run_on_ray


async def _keep_watching(state: RunState, watch: Watch) -> None:
    while True:
        watch(state)
        await asyncio.sleep(0.5)


class _Shards:
    """Finished stretches of the file of QA pairs; stretch `n` is of 32 videos.

    Each is two files; the second one to be written, `.jsonl`, says that both are whole.
    """

    def __init__(self, folder: Path, qa: QaFile) -> None:
        self._folder = folder
        self._qa = qa
        self._gathered: dict[int, dict[int, tuple[Outcome, ...]]] = {}
        folder.mkdir(exist_ok=True)

    def __len__(self) -> int:
        return -(-self._qa.num_videos // VIDEOS_PER_SHARD)

    def finished(self) -> list[int]:
        return [n for n in range(len(self)) if self._path(n, ".jsonl").exists()]

    def read(self, number: int) -> Iterator[Outcome]:
        yield from read_jsonl(self._path(number, ".jsonl"), Annotation)
        yield from read_jsonl(self._path(number, ".dropped.jsonl"), DroppedSample)

    def read_jobs(self) -> Iterator[tuple[int, VideoJob]]:
        """Yields the videos of unfinished shards, numbered as the file names them."""
        finished = set(self.finished())
        for shard in range(len(self)):
            if shard not in finished:
                first = shard * VIDEOS_PER_SHARD
                jobs = self._qa.read_jobs(first, first + VIDEOS_PER_SHARD)
                yield from enumerate(jobs, start=first)

    def put(self, number: int, outcomes: tuple[Outcome, ...]) -> None:
        """Takes a video's result; writes the shard that it was the last one of."""
        shard = number // VIDEOS_PER_SHARD
        gathered = self._gathered.setdefault(shard, {})
        gathered[number] = outcomes
        first = shard * VIDEOS_PER_SHARD
        if len(gathered) < min(VIDEOS_PER_SHARD, self._qa.num_videos - first):
            return
        of_shard = [outcome for number in sorted(gathered) for outcome in gathered[number]]
        dropped = [outcome for outcome in of_shard if isinstance(outcome, DroppedSample)]
        made = [outcome for outcome in of_shard if isinstance(outcome, Annotation)]
        write_jsonl(self._path(shard, ".dropped.jsonl"), dropped)
        write_jsonl(self._path(shard, ".jsonl"), made)
        del self._gathered[shard]

    def assemble(self, out: Path) -> None:
        """Joins the shards and writes what follows from them; only then they may go."""
        write_jsonl(out / "dropped.jsonl", self._read_all(".dropped.jsonl", DroppedSample))
        write_jsonl(out / "annotations.jsonl", self._read_all(".jsonl", Annotation))
        write_derived(out)
        for folder in out.glob("shards-*"):
            shutil.rmtree(folder)

    def _read_all(self, suffix: str, record_type: type[RecordT]) -> Iterator[RecordT]:
        for number in range(len(self)):
            yield from read_jsonl(self._path(number, suffix), record_type)

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"{number:06d}{suffix}"


@contextmanager
def _locked(out: Path) -> Generator[None]:
    """Keeps a second run out; the system lets go of the lock if this one is killed."""
    fd = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: another run is writing here; wait for it or stop it") from None
        yield
    finally:
        os.close(fd)


def _link_videos(config: RunConfig) -> None:
    """Makes the videos' paths in the records hold, seen from the set."""
    link, videos = config.out / VIDEO_FOLDER, config.videos.resolve()
    if link.is_symlink() and link.resolve() != videos:
        link.unlink()
    if not link.exists():
        link.symlink_to(videos, target_is_directory=True)
    if link.resolve() != videos:
        raise RunError(f"{link} is in the way: it is not {videos}; name another --out")


def _describe(config: RunConfig, fingerprint: str) -> str:
    described: dict[str, Any] = dataclasses.asdict(config)
    if isinstance(config.annotator, ServerConfig):
        del described["annotator"]["api_key"]
    described["fingerprint"] = fingerprint
    return json.dumps(described, indent=2, default=str) + "\n"
