"""Stage 1: the score of every sampled frame for every question of a benchmark.

The costly half, decoding a video and running the tower over it, is done once however many
questions there are about it. Videos are dealt to the processes; each writes its own shards, one
line a question as soon as it is scored (`itg_eval.shards`), so a run that is killed goes on where
it was. A line says of which file and with which settings it was made, and counts for no other. The
process that finds nothing missing merges: no process waits for another. A video that
cannot be read is written aside with the reason and stops nothing.

In the output folder: `settings.json`, `shards/`, and once all is done `scores.jsonl`,
`failed.jsonl` and `results/TASK.jsonl`, the form that the reference's host models read.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from itg_data.errors import ItgError, VideoError, to_one_line
from itg_data.files import replacing, write_atomic
from itg_data.jsonl import format_record, parse_record
from itg_data.progress import Advance, show_progress

from itg_eval.documents import group_by_video
from itg_eval.records import Document, DocumentScores, Key
from itg_eval.reference import format_result
from itg_eval.scorers import Embedder, Scorer
from itg_eval.settings import Settings, claiming
from itg_eval.shards import Line, ShardWriter, merging, read_shards

if TYPE_CHECKING:
    from itg_model.grounder import EncodedVideo

logger = logging.getLogger(__name__)

MERGED = "scores.jsonl"
"""The scores of all documents, in their order; there once all are scored or have failed."""

Stamp = tuple[int, int]
"""Size of a video's file in bytes and when it was last written, in nanoseconds."""

EMBEDDINGS = "embeddings"
"""Folder of the frames' embeddings, beside the scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A document whose video could not be scored."""

    task: str
    split: str
    doc_id: int
    video: str
    reason: str

    @property
    def key(self) -> Key:
        """Task, split and number of the document."""
        return self.task, self.split, self.doc_id


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How far a run has come, once a process is through with its share."""

    num_documents: int
    num_scored: int
    failures: tuple[Failure, ...]
    is_merged: bool
    """False while other processes are at work: the last of them merges."""


def score_documents(
    documents: Sequence[Document],
    settings: Settings,
    load: Callable[[], Scorer],
    folder: Path,
    rank: int = 0,
    world_size: int = 1,
) -> Outcome:
    """Scores this process's share of the documents, and merges if nothing is missing then.

    Args:
        documents: All of them, the same in every process.
        settings: What decides the scores.
        load: Loads the scorer; called only if there is something to score.
        folder: The run's folder; made if it is not there.
        rank: Number of this process.
        world_size: How many processes there are.

    Raises:
        ItgError: The folder holds scores of other settings, or another process writes the shard.
        CheckpointError: The scorer cannot be loaded, or fails on a sound video.
    """
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    with claiming(folder, settings):
        _score_share(documents, settings, load, folder, rank, world_size)
        return _merge(documents, settings, folder, world_size)


def _score_share(
    documents: Sequence[Document],
    settings: Settings,
    load: Callable[[], Scorer],
    folder: Path,
    rank: int,
    world_size: int,
) -> None:
    shards = folder / "shards"
    share = dict(list(group_by_video(documents).items())[rank::world_size])
    with ExitStack() as stack:
        scores = stack.enter_context(ShardWriter(shards, "scores", rank, world_size))
        failed = stack.enter_context(ShardWriter(shards, "failed", rank, world_size, fresh=True))
        done = set(_find_scored(shards, [d for group in share.values() for d in group], settings))
        todo = {
            video: left
            for video, group in share.items()
            if (left := [document for document in group if document.key not in done])
        }
        if todo:
            # where it is, all is: not that of fewer documents while more are being scored
            (folder / MERGED).unlink(missing_ok=True)
            task = "scoring" if world_size == 1 else f"scoring, process {rank} of {world_size}"
            total = sum(map(len, todo.values()))
            with show_progress(task, total, unit="questions", quiet=rank > 0) as advance:
                _score_videos(todo, load(), settings, folder, scores, failed, advance)


def _score_videos(
    todo: dict[str, list[Document]],
    scorer: Scorer,
    settings: Settings,
    folder: Path,
    scores: ShardWriter,
    failed: ShardWriter,
    advance: Advance,
) -> None:
    if settings.embeddings and not isinstance(scorer, Embedder):
        raise ItgError(f"{scorer.name}: embeds no questions; score without --save-embeddings")
    sampling = settings.to_sampling(scorer.max_frames)
    started_s, num_done, num_failed = time.monotonic(), 0, 0

    def tell() -> None:
        rate = num_done / max(time.monotonic() - started_s, 1e-9)
        note = f"{rate:.3g} a second" + (f", {num_failed} failed" if num_failed else "")
        advance(num_done + num_failed, note)

    for video, documents in todo.items():
        # before it is read: a file that is replaced meanwhile is scored again
        stamp = _stamp(video)
        try:
            encoded = scorer.encode(video, sampling)
        except VideoError as error:
            said = to_one_line(str(error))
            logger.warning("%s; its %d questions get no scores", said, len(documents))
            num_failed += len(documents)
            for document in documents:
                failed.append(fail(document, error.reason))
            tell()
            continue
        if len(encoded.missing_source_idx):
            num_missing = len(encoded.missing_source_idx)
            logger.warning("%s: %d frames are missing", to_one_line(video), num_missing)
        embeddings = _save_embeddings(scorer, encoded, folder) if settings.embeddings else None
        for document in documents:
            scores.append(_score(scorer, encoded, document, settings, embeddings, stamp))
            num_done += 1
            tell()


def _score(
    scorer: Scorer,
    encoded: "EncodedVideo",
    document: Document,
    settings: Settings,
    embeddings: str | None,
    stamp: Stamp | None,
) -> DocumentScores:
    text = settings.text_of(document)
    query = None
    if embeddings is not None and isinstance(scorer, Embedder):
        query = tuple(scorer.embed_question(text).astype(np.float64).tolist())
    return DocumentScores(
        task=document.task,
        split=document.split,
        doc_id=document.doc_id,
        question_sha256=document.question_sha256,
        fps=encoded.fps,
        scored=scorer.score(encoded, text),
        embeddings=embeddings,
        query_embedding=query,
        settings_sha256=settings.sha256,
        video_bytes=None if stamp is None else stamp[0],
        video_mtime_ns=None if stamp is None else stamp[1],
    )


def _stamp(video: str) -> Stamp | None:
    """Tells a file from another of the same path; None where there is none."""
    try:
        status = Path(video).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _save_embeddings(scorer: Scorer, encoded: "EncodedVideo", folder: Path) -> str:
    assert isinstance(scorer, Embedder)  # checked before the first video
    name = hashlib.sha256(encoded.video.encode()).hexdigest() + ".npy"
    (folder / EMBEDDINGS).mkdir(exist_ok=True)
    with replacing(folder / EMBEDDINGS / name) as part:
        np.save(part, scorer.embed_frames(encoded), allow_pickle=False)
    return name


def _find_scored(
    shards: Path, documents: Iterable[Document], settings: Settings
) -> dict[Key, Line]:
    """Finds the scores that there are of these documents; of two, the first."""
    wanted = {document.key: document for document in documents}
    stamp_of = {video: _stamp(video) for video in {d.video for d in wanted.values()}}
    found: dict[Key, Line] = {}
    num_unmarked = 0
    for scores, line in read_shards(shards, "scores", DocumentScores):
        document = wanted.get(scores.key)
        if document is None or scores.key in found:
            continue
        if scores.settings_sha256 is None:
            num_unmarked += 1
        elif _holds(scores, document, settings, stamp_of[document.video]):
            found[scores.key] = line
    if num_unmarked:
        logger.warning(
            "%s: %d scores do not say of which file they are and are made again; an older itg-eval "
            "wrote them",
            to_one_line(str(shards)),
            num_unmarked,
        )
    return found


def _holds(
    scores: DocumentScores, document: Document, settings: Settings, stamp: Stamp | None
) -> bool:
    """Whether scores are those of this question about this file, by these settings."""
    was = (scores.video_bytes, scores.video_mtime_ns)
    return (
        scores.answers(document)
        and scores.scored.question == settings.text_of(document)
        and scores.settings_sha256 == settings.sha256
        # of a file that is gone there is nothing better than what was found in it
        and stamp in (None, was)
    )


def _merge(
    documents: Sequence[Document], settings: Settings, folder: Path, world_size: int
) -> Outcome:
    shards = folder / "shards"
    with merging(shards):
        scored = _find_scored(shards, documents, settings)
        failures = {
            failure.key: failure
            for failure, _ in read_shards(shards, "failed", Failure, world_size)
        }
        without = [d.key for d in documents if d.key not in scored]
        is_merged = all(key in failures for key in without)
        if is_merged:
            lines = [(d.task, scored[d.key]) for d in documents if d.key in scored]
            _write_merged(lines, [failures[key] for key in without], folder)
    return Outcome(
        num_documents=len(documents),
        num_scored=len(scored),
        failures=tuple(failures[key] for key in without if key in failures),
        is_merged=is_merged,
    )


def _write_merged(
    lines: Sequence[tuple[str, Line]], failures: Sequence[Failure], folder: Path
) -> None:
    """Writes tasks and lines into one file, and as the reference's results into one a task."""
    results = folder / "results"
    results.mkdir(exist_ok=True)
    with ExitStack() as stack:
        parts = {
            task: stack.enter_context(replacing(results / f"{task}.jsonl"))
            for task in sorted({task for task, _ in lines})
        }
        files = {task: stack.enter_context(part.open("wb")) for task, part in parts.items()}
        for task, line in lines:
            files[task].write(format_result(parse_record(line.read(), DocumentScores)))
    write_atomic(folder / "failed.jsonl", b"".join(map(format_record, failures)))
    # last: where it is, all is
    with replacing(folder / MERGED) as part, part.open("wb") as file:
        for _, line in lines:
            file.write(line.read())


def fail(document: Document, reason: str) -> Failure:
    """Puts down why a document's video could not be used."""
    return Failure(
        task=document.task,
        split=document.split,
        doc_id=document.doc_id,
        video=document.video,
        reason=reason,
    )
