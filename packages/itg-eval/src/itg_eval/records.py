"""What the stages of an evaluation hand on: documents, their scores, the frames chosen for them.

A document is one question of a benchmark, known by `(task, split, doc_id)`, the way lmms-eval
counts. That key alone is not enough: a benchmark that is revised gives an old number to another
question. So scores and selections carry the question's hash and the video as well, and whoever
uses them compares. One JSON object a line, read as strictly as all records
(`itg_data.records`, `itg_data.jsonl`); nothing here needs torch or lmms-eval.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, Protocol, TypeVar

from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl
from itg_data.records import FrameScores, to_json

Key = tuple[str, str, int]
"""Task, split and number of a document."""


class Keyed(Protocol):
    """What knows its document."""

    @property
    def key(self) -> Key:
        """Task, split and number of the document."""
        ...


KeyedT = TypeVar("KeyedT", bound=Keyed)


def hash_question(question: str) -> str:
    """The SHA-256 of a question, in hex."""
    return hashlib.sha256(question.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One question of a benchmark about one video."""

    task: str
    split: str
    doc_id: int
    """Number of the row in the benchmark's split."""
    video: str
    """Path of the file."""
    question: str
    """The question alone, without options and instructions."""
    context: str = ""
    """The whole prompt as the benchmark words it; may be empty."""
    duration_group: str | None = None
    """The benchmark's own word for how long the video is, such as `short`."""

    def __post_init__(self) -> None:
        _check_key(self.task, self.split, self.doc_id)
        _check_text("video", self.video)
        _check_text("question", self.question)
        if self.context:
            _check_text("context", self.context)

    @property
    def key(self) -> Key:
        """Task, split and number."""
        return self.task, self.split, self.doc_id

    @property
    def question_sha256(self) -> str:
        """Hash of the question, which scores and selections of it carry."""
        return hash_question(self.question)


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentScores:
    """The score of every sampled frame of a document's video."""

    task: str
    split: str
    doc_id: int
    question_sha256: str
    """Of `Document.question`, whatever the scorer was asked."""
    fps: float
    """Average frame rate of the file, in Hz."""
    scored: FrameScores
    """Video, text that the scorer was asked, scorer, sampling rule, frames in time order."""
    embeddings: str | None = None
    """File with the frames' embeddings, [T, D] as `.npy`, in the folder `embeddings` beside."""
    query_embedding: tuple[float, ...] | None = None
    """[D] embedding of the text asked; goes with `embeddings`."""
    settings_sha256: str | None = None
    """Hash of what the scorer was and how it looked; None where others made the scores."""
    video_bytes: int | None = None
    """Size of the video's file when it was scored."""
    video_mtime_ns: int | None = None
    """When that file was last written, in nanoseconds."""

    def __post_init__(self) -> None:
        _check_key(self.task, self.split, self.doc_id)
        _check_sha256("question_sha256", self.question_sha256)
        _check_frames(self.fps, self.scored.source_idx, self.scored.time_s)
        _check_text("scored.video", self.scored.video)
        if self.embeddings is not None and not re.fullmatch(r"[0-9a-f]{64}\.npy", self.embeddings):
            raise RecordError(
                f"embeddings must be 64 hex digits and .npy, got {self.embeddings!r:.80}"
            )
        if (self.embeddings is None) != (self.query_embedding is None):
            raise RecordError("embeddings and query_embedding must be there both or neither")
        if self.settings_sha256 is not None:
            _check_sha256("settings_sha256", self.settings_sha256)

    @property
    def key(self) -> Key:
        """Task, split and number of the document."""
        return self.task, self.split, self.doc_id

    def answers(self, document: Document) -> bool:
        """Whether these are the scores of that very question about that very video."""
        return (self.key, self.question_sha256, self.scored.video) == (
            document.key,
            document.question_sha256,
            document.video,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentSelection:
    """The frames chosen for a document, in time order."""

    task: str
    split: str
    doc_id: int
    video: str
    question_sha256: str
    scorer: str
    """Name or path of the model whose scores these are."""
    sampling: str
    """The sampling rule in one word, as `SamplingConfig.describe` writes it."""
    policy: str
    """How frames were chosen by their scores, parameters included."""
    top_k: int
    """Frames asked for; there are fewer only where fewer were sampled."""
    fps: float
    """Average frame rate of the file, in Hz."""
    source_idx: tuple[int, ...]
    """Places of the chosen frames in the file, ascending."""
    time_s: tuple[float, ...]
    """When each is shown, counted from the first frame of the file."""
    scores: tuple[float | None, ...]
    """None for a frame that has no score."""
    seed: int | None = None
    """Seed of this document's draw, made of the policy's and the document's key; None where nothing
    is drawn."""

    def __post_init__(self) -> None:
        _check_key(self.task, self.split, self.doc_id)
        _check_text("video", self.video)
        _check_sha256("question_sha256", self.question_sha256)
        _check_frames(self.fps, self.source_idx, self.time_s)
        if len(self.scores) != len(self.source_idx):
            raise RecordError(
                f"scores must be as many as source_idx, {len(self.source_idx)}, "
                f"got {len(self.scores)}"
            )
        if not 1 <= len(self.source_idx) <= self.top_k:
            raise RecordError(
                f"source_idx must hold 1..top_k ({self.top_k}) frames, got {len(self.source_idx)}"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise RecordError(f"seed must be in 0..2**63 - 1, got {self.seed!r:.80}")

    @property
    def key(self) -> Key:
        """Task, split and number of the document."""
        return self.task, self.split, self.doc_id


class Selections(Mapping[Key, DocumentSelection]):
    """The frames chosen for many documents, by task, split and number.

    Attributes:
        sha256: Hash of what the selections say, whatever their order and the file's formatting.
            Whatever is computed from a selection should carry it, so that no cache answers for
            another one.
    """

    def __init__(self, selections: Iterable[DocumentSelection]) -> None:
        self._by_key = by_key(selections)
        lines = [
            json.dumps(_to_hashed(self._by_key[key]), sort_keys=True)
            for key in sorted(self._by_key)
        ]
        self.sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "Selections":
        """Reads a file of selections.

        Raises:
            RecordError: A line is no selection, or a document is there twice; the message names
                the file.
        """
        try:
            return cls(read_jsonl(path, DocumentSelection))
        except RecordError as error:
            raise name_file(path, error) from None

    def find(self, document: Document) -> DocumentSelection | None:
        """Gives the frames chosen for a document; None if there are none.

        Raises:
            RecordError: There is a selection of that number, but for another question or video:
                the file was made from another version of the benchmark.
        """
        found = self.get(document.key)
        if found is None:
            return None
        where = f"the selection for {format_key(document.key)}"
        if found.question_sha256 != document.question_sha256:
            raise RecordError(
                f"{where} was made for another question: score and select this task again"
            )
        # folders differ between machines, file names do not
        if PurePath(found.video).name != PurePath(document.video).name:
            raise RecordError(
                f"{where} was made for {found.video!r}, not for {document.video!r}: score and "
                "select this task again"
            )
        return found

    def __getitem__(self, key: Key) -> DocumentSelection:
        return self._by_key[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_key)

    def __len__(self) -> int:
        return len(self._by_key)


def _to_hashed(selection: DocumentSelection) -> dict[str, Any]:
    """What counts of a selection; a seed that there is not does not, for it came later."""
    fields = to_json(selection)
    return (
        fields if selection.seed is not None else {k: v for k, v in fields.items() if k != "seed"}
    )


def by_key(records: Iterable[KeyedT]) -> dict[Key, KeyedT]:
    """Gathers records by document.

    Raises:
        RecordError: A document is there twice.
    """
    gathered: dict[Key, KeyedT] = {}
    for record in records:
        if record.key in gathered:
            raise RecordError(f"{format_key(record.key)} is there twice")
        gathered[record.key] = record
    return gathered


def format_key(key: Key) -> str:
    """Names a document in a message, such as `videomme/test/17`."""
    return "/".join(map(str, key))


def name_file(path: str | Path, error: RecordError) -> RecordError:
    """Puts a file's name before a complaint that lacks it."""
    return error if str(error).startswith(str(path)) else RecordError(f"{path}: {error}")


def _check_key(task: str, split: str, doc_id: int) -> None:
    # a task's name becomes a file's
    if not re.fullmatch(r"\w[\w.+-]*", task) or len(task) > 200:
        raise RecordError(f"task must be a name of letters, digits, ._+-, got {task!r:.80}")
    _check_text("split", split)
    if not 0 <= doc_id < 2**63:
        raise RecordError(f"doc_id must be in 0..2**63 - 1, got {doc_id!r:.80}")


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise RecordError(f"{name} must not be blank")
    # JSON can spell half a character, which no file, file name or tokenizer takes
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RecordError(f"{name} must be valid Unicode, got {text!r:.80}")


def _check_sha256(name: str, text: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise RecordError(f"{name} must be 64 hex digits, got {text!r:.80}")


def _check_frames(fps: float, source_idx: tuple[int, ...], time_s: tuple[float, ...]) -> None:
    if not (math.isfinite(fps) and fps > 0):
        raise RecordError(f"fps must be finite and > 0, got {fps}")
    if len(time_s) != len(source_idx):
        raise RecordError(
            f"time_s must be as many as source_idx, {len(source_idx)}, got {len(time_s)}"
        )
    if any(a >= b for a, b in pairwise((-1, *source_idx))):
        raise RecordError("source_idx must be >= 0 and ascend without repeats")
    if source_idx and source_idx[-1] >= 2**63:
        raise RecordError(f"source_idx must be below 2**63, got {source_idx[-1]!r:.80}")
    if any(not math.isfinite(t) for t in time_s):
        raise RecordError("time_s must be finite")
    if any(a > b for a, b in pairwise(time_s)):
        raise RecordError("time_s must not descend")
