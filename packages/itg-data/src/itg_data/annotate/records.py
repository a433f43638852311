"""What the annotation pipeline reads and writes: QA pairs, annotations, and what was dropped.

An annotation keeps every step between a question and its labels, so that a label can be disputed:
which captions were read, what the retrieval argued, which seconds were candidates, what the check
said about each. `Annotation.to_grounding` is the short form that training reads.

Times are whole seconds of the video, because the method works at one frame a second: second `s`
stands for the stretch `[s, s + 1)`, and clip `c` for the seconds `c * clip_s` to
`(c + 1) * clip_s - 1`.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from itg_data.errors import RecordError
from itg_data.records import GroundingRecord, Provenance, QuestionType, TimeSpan

VIDEO_FOLDER = "videos"
"""Where a set's videos lie, or a link to where they do, in the folder of its records."""

DropReason = Literal[
    "unreadable_video",
    "duplicate_question",
    "question_too_long",
    "no_clip",
    "no_frame_confirmed",
    "malformed_answer",
    "refused",
    "rejected_by_server",
    "server_error",
    "truncated_answer",
]
"""Why a QA pair did not become a record: its video gives no frames, the same question was asked of
the same video before, the text is too long to send, retrieval found no clip, the check confirmed
no frame, the annotator's answer broke the schema twice, it would not answer, the server found
fault with the request, the server failed at it although it serves others, or the answer was cut off
before it began."""

PASSING_REASONS: frozenset[DropReason] = frozenset({"server_error", "truncated_answer"})
"""What another start may mend, so it asks again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QaPair:
    """One question about one video with its answer: what the pipeline starts from."""

    id: str
    """Unique within the file."""
    video: str
    """Path of the file relative to the folder of videos, with forward slashes."""
    question: str
    answer: str
    options: tuple[str, ...] = ()
    """The choices of a multiple-choice question, in order."""
    split: str | None = None
    """Passed on to the record."""

    def __post_init__(self) -> None:
        for name in ("id", "video", "question", "answer"):
            if not getattr(self, name).strip():
                raise RecordError(f"{name} must not be blank")
        texts = (self.id, self.video, self.question, self.answer, self.split or "")
        for text in (*texts, *self.options):
            require_whole_characters("a text", text)
        if self.video.startswith("/") or ".." in self.video.split("/") or "\\" in self.video:
            raise RecordError(
                f"video must be a relative path inside the folder of videos, got {self.video!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledFrame:
    """A second that localisation kept, the frame that stood for it, and the check's verdict."""

    second: int
    source_idx: int
    relevant: bool | None
    """What the check said of the frame; None where it was not asked, in no-clue questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptHash:
    """Which version of a stage's prompt was used."""

    stage: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCount:
    """What the answers behind an annotation cost, shared captions included in full."""

    num_calls: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """A QA pair with its labels and every step that led to them."""

    id: str
    video: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    split: str | None = None

    start_s: float = 0.0
    """When the video's first frame is shown, on the file's own clock; seconds count from here."""
    duration_s: float
    """From there to the end of its last frame."""
    clip_s: int
    """Length of a clip in whole seconds; the last one may be shorter."""
    cues: tuple[str, ...]
    """What to look for, drawn from question and answer."""
    captions: tuple[str, ...]
    """Description of every clip in view of the cues, clip 0 first; empty where no frame could be
    read."""
    explanation: str
    """Retrieval's reasoning."""
    clips: tuple[int, ...]
    """What retrieval chose, ascending; empty where nothing in particular must be seen."""
    question_type: QuestionType
    candidate_s: tuple[int, ...]
    """Seconds that localisation looked at, ascending."""
    frames: tuple[LabelledFrame, ...]
    """Seconds that it kept, ascending."""

    model: str
    """The annotator."""
    seed: int
    temperature: float
    features: str
    """What the diversity rule compared frames by."""
    prompts: tuple[PromptHash, ...]
    """One for each stage that asked something."""
    tokens: TokenCount

    def __post_init__(self) -> None:
        for name, places in (
            ("clips", self.clips),
            ("candidate_s", self.candidate_s),
            ("frames", tuple(frame.second for frame in self.frames)),
        ):
            if list(places) != sorted(set(places)) or (places and places[0] < 0):
                raise RecordError(f"{name} must be >= 0 and ascend without repeats, got {places}")
        if self.clips and self.clips[-1] >= len(self.captions):
            raise RecordError(f"clips must be in 0..{len(self.captions) - 1}, got {self.clips[-1]}")
        if unknown := {frame.second for frame in self.frames} - set(self.candidate_s):
            raise RecordError(f"frames must be among candidate_s, got second {min(unknown)}")

    @property
    def label_s(self) -> tuple[int, ...]:
        """The seconds that are labels: kept, and not refused by the check."""
        return tuple(frame.second for frame in self.frames if frame.relevant is not False)

    def to_grounding(self) -> GroundingRecord:
        """Gives the record that training reads; its video path begins with `VIDEO_FOLDER`.

        Raises:
            RecordError: There is no label; such a QA pair should have been dropped.
        """
        prompts = "".join(f"{prompt.stage} {prompt.sha256}\n" for prompt in self.prompts)
        return GroundingRecord(
            id=self.id,
            video=f"{VIDEO_FOLDER}/{self.video}",
            question=self.question,
            answer=self.answer,
            question_type=self.question_type,
            spans=spans_of_seconds(self.label_s, self.duration_s, self.start_s),
            split=self.split,
            provenance=Provenance(
                annotator=self.model,
                prompt_sha256=hashlib.sha256(prompts.encode()).hexdigest(),
                seed=self.seed,
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedSample:
    """A QA pair that did not become a record, and why."""

    id: str
    video: str
    question: str
    reason: DropReason
    detail: str
    """One line for whoever wants to know more; empty where the reason says all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoStamp:
    """What tells cheaply whether a video's file is still the one that it was."""

    video: str
    """Path relative to the folder of videos."""
    size: int | None
    """In bytes; None where there is no such file."""
    mtime_ns: int | None
    readable: bool
    """Whether we may read it: that changes nothing else."""

    @classmethod
    def of(cls, folder: Path, video: str) -> Self:
        """Looks at a file."""
        path = folder / video
        try:
            seen, readable = path.stat(), os.access(path, os.R_OK)
        except (OSError, ValueError):  # a name that holds a zero byte is none
            return cls(video=video, size=None, mtime_ns=None, readable=False)
        return cls(video=video, size=seen.st_size, mtime_ns=seen.st_mtime_ns, readable=readable)


def spans_of_seconds(
    seconds: Sequence[int], duration_s: float, start_s: float = 0.0
) -> tuple[TimeSpan, ...]:
    """Joins whole seconds into stretches, none longer than the video.

    Args:
        seconds: Ascending, distinct; each stands for `[s, s + 1)`, counted from `start_s`.
        duration_s: Seconds at or after it are left out.
        start_s: When the video begins on the file's own clock, which spans are told in. Where that
            is below zero, so much of a stretch is left out: a span begins at zero at the earliest.
    """
    runs: list[tuple[int, int]] = []
    for second in seconds:
        if second >= duration_s:
            break
        first = runs.pop()[0] if runs and runs[-1][1] == second else second
        runs.append((first, second + 1))
    on_clock = ((start_s + first, start_s + min(end, duration_s)) for first, end in runs)
    return tuple(
        TimeSpan(start_s=max(0.0, first_s), end_s=end_s) for first_s, end_s in on_clock if end_s > 0
    )


def require_whole_characters(name: str, text: str) -> None:
    """Refuses half a character (a lone surrogate), which JSON can name and UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"{name} holds half a character at place {error.start}") from None
