"""Stage 1: the score of every sampled frame for every question of a benchmark.

The costly half, decoding a video and running the tower over it, is done once however many
questions there are about it. Videos are dealt to the processes; each writes its own shards, one
line a question as soon as it is scored (`itg_eval.shards`), so a run that is killed goes on where
it was. The process that finds nothing missing merges: no process waits for another. A video that
cannot be read is written aside with the reason and stops nothing.

In the output folder: `settings.json`, `shards/`, and once all is done `scores.jsonl`,
`failed.jsonl` and `results/TASK.jsonl`, the form that the reference's host models read.
"""

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from itg_data.errors import ItgError, RecordError, VideoError
from itg_data.files import replacing, write_atomic
from itg_data.jsonl import format_record, parse_record
from itg_data.progress import Advance, show_progress
from itg_data.sampling import SamplingConfig, SamplingRule

from itg_eval.documents import group_by_video
from itg_eval.records import Document, DocumentScores, Key
from itg_eval.reference import format_result
from itg_eval.scorers import Embedder, Scorer, ScorerKind
from itg_eval.shards import Line, ShardWriter, merging, read_shards

if TYPE_CHECKING:
    from itg_model.grounder import EncodedVideo

logger = logging.getLogger(__name__)

Asked = Literal["context", "question"]
"""What the scorer reads: the benchmark's whole prompt, as in the reference, or the question."""

MERGED = "scores.jsonl"
"""The scores of all documents, in their order; there once all are scored or have failed."""

EMBEDDINGS = "embeddings"
"""Folder of the frames' embeddings, beside the scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What decides the scores; a folder holds those of one setting."""

    scorer: ScorerKind
    model: str
    model_sha256: str | None
    """Fingerprint of the checkpoint's files; None for a hub id."""
    dtype: str
    asked: Asked
    rate_hz: float
    max_frames: int | None
    """None for what the scorer looks at by default."""
    sampling_rule: SamplingRule
    embeddings: bool
    """Whether the frames' embeddings are kept."""

    def to_sampling(self, max_frames: int) -> SamplingConfig:
        """The sampling rule; `max_frames` is the scorer's default."""
        return SamplingConfig(
            rate_hz=self.rate_hz,
            max_frames=max_frames if self.max_frames is None else self.max_frames,
            rule=self.sampling_rule,
        )

    def text_of(self, document: Document) -> str:
        """What the scorer is asked about a document."""
        return (document.context if self.asked == "context" else "") or document.question


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
    _claim(folder / "settings.json", settings)
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
    return _merge(documents, settings, folder, world_size)


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
        try:
            encoded = scorer.encode(video, sampling)
        except VideoError as error:
            # a path may hold newlines; a complaint may not
            said = " ".join(str(error).split())
            logger.warning("%s; its %d questions get no scores", said, len(documents))
            num_failed += len(documents)
            for document in documents:
                failed.append(_fail(document, error.reason))
            tell()
            continue
        if len(encoded.missing_source_idx):
            logger.warning("%s: %d frames are missing", video, len(encoded.missing_source_idx))
        embeddings = _save_embeddings(scorer, encoded, folder) if settings.embeddings else None
        for document in documents:
            scores.append(_score(scorer, encoded, document, settings, embeddings))
            num_done += 1
            tell()


def _score(
    scorer: Scorer,
    encoded: "EncodedVideo",
    document: Document,
    settings: Settings,
    embeddings: str | None,
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
    )


def _save_embeddings(scorer: Scorer, encoded: "EncodedVideo", folder: Path) -> str:
    assert isinstance(scorer, Embedder)  # checked before the first video
    name = hashlib.sha256(encoded.video.encode()).hexdigest() + ".npy"
    (folder / EMBEDDINGS).mkdir(exist_ok=True)
    with replacing(folder / EMBEDDINGS / name) as part:
        np.save(part, scorer.embed_frames(encoded), allow_pickle=False)
    return name


def _claim(path: Path, settings: Settings) -> None:
    """Makes the folder one of these settings, or checks that it is."""
    if not any(shard.stat().st_size for shard in path.parent.glob("shards/scores.*")):
        # no score yet, perhaps because the checkpoint was misspelt: nothing to mix with
        write_atomic(path, format_record(settings))
        return
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ItgError(f"{path}: is missing, but there are scores; remove the folder") from None
    except OSError as error:
        raise ItgError(f"{path}: {error.strerror or error}") from None
    try:
        there = parse_record(content, Settings)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    if settings.model_sha256 is not None and there.model_sha256 == settings.model_sha256:
        # the same checkpoint by another path
        there = dataclasses.replace(there, model=settings.model)
    for field in dataclasses.fields(settings):
        old, new = getattr(there, field.name), getattr(settings, field.name)
        if old != new:
            raise ItgError(
                f"{path.parent}: holds scores with {field.name} {old!r}, not {new!r}; name another "
                "output folder, or remove this one"
            )


def _find_scored(
    shards: Path, documents: Iterable[Document], settings: Settings
) -> dict[Key, Line[DocumentScores]]:
    """Finds the scores that there are of these documents; of two, the first."""
    wanted = {document.key: document for document in documents}
    found: dict[Key, Line[DocumentScores]] = {}
    for line in read_shards(shards, "scores", DocumentScores):
        document = wanted.get(line.record.key)
        if (
            document is not None
            and line.record.key not in found
            and line.record.answers(document)
            and line.record.scored.question == settings.text_of(document)
        ):
            found[line.record.key] = line
    return found


def _merge(
    documents: Sequence[Document], settings: Settings, folder: Path, world_size: int
) -> Outcome:
    shards = folder / "shards"
    with merging(shards):
        scored = _find_scored(shards, documents, settings)
        failures = {
            line.record.key: line.record
            for line in read_shards(shards, "failed", Failure, world_size)
        }
        without = [d.key for d in documents if d.key not in scored]
        is_merged = all(key in failures for key in without)
        if is_merged:
            lines = [scored[d.key] for d in documents if d.key in scored]
            _write_merged(lines, [failures[key] for key in without], folder)
    return Outcome(
        num_documents=len(documents),
        num_scored=len(scored),
        failures=tuple(failures[key] for key in without if key in failures),
        is_merged=is_merged,
    )


def _write_merged(
    lines: Sequence[Line[DocumentScores]], failures: Sequence[Failure], folder: Path
) -> None:
    results = folder / "results"
    results.mkdir(exist_ok=True)
    tasks = sorted({line.record.task for line in lines})
    with ExitStack() as stack:
        parts = {t: stack.enter_context(replacing(results / f"{t}.jsonl")) for t in tasks}
        files = {t: stack.enter_context(part.open("wb")) for t, part in parts.items()}
        for line in lines:
            files[line.record.task].write(format_result(line.record))
    write_atomic(folder / "failed.jsonl", b"".join(map(format_record, failures)))
    # last: where it is, all is
    with replacing(folder / MERGED) as part, part.open("wb") as file:
        for line in lines:
            file.write(line.read())


def _fail(document: Document, reason: str) -> Failure:
    return Failure(
        task=document.task,
        split=document.split,
        doc_id=document.doc_id,
        video=document.video,
        reason=reason,
    )


def read_ranks() -> tuple[int, int]:
    """Reads number and count of the processes as torchrun sets them; 0 and 1 without it.

    Raises:
        ItgError: They make no sense.
    """
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if all(text.isdecimal() for text in texts):
        rank, world_size = map(int, texts)
        if rank < world_size:
            return rank, world_size
    raise ItgError(f"RANK and WORLD_SIZE must be numbers, RANK the smaller, got {texts}")
