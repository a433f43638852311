"""What the packages tell one another: spans of time, annotated questions, scores, selections.

Records are frozen and validated on construction, so a record that exists is a record that holds.
Two clocks never mix: a frame's place in the video file is `source_idx`, its place among the
sampled frames `sample_idx`; seconds end in `_s`, rates in `_hz`, spans are half-open. Each JSON
object carries `schema_version`, and readers refuse fields they do not know: a typo in a data set
should stop the run that meets it, not shift its labels.
"""

import dataclasses
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from itg_data.errors import RecordError

SCHEMA_VERSION = 1

TIME_TOLERANCE_S = 1e-4
"""Times that differ by no more than this are the same: frames are shown at quotients, spans begin
at sums (0.512 + 4 is 4.5120000000000005), and what is equal on paper is not in floating point."""

QuestionType = Literal["semantic", "motion", "semantic_motion", "no_clue"]
"""What must be seen to answer: a state, a movement, both, or nothing in particular."""

RecordT = TypeVar("RecordT")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecordError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeSpan:
    """The half-open stretch `[start_s, end_s)` of a video."""

    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.start_s) and math.isfinite(self.end_s),
            f"a span needs finite times, got [{self.start_s}, {self.end_s})",
        )
        _require(
            0 <= self.start_s < self.end_s,
            f"a span needs 0 <= start_s < end_s, got [{self.start_s}, {self.end_s})",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Who made an annotation, so that it can be made again."""

    annotator: str
    """Model, program or person, with its version."""

    prompt_sha256: str | None = None
    """Hash of the prompt that asked for it; None where no prompt was used."""

    seed: int | None = None
    """Seed of whatever was drawn; None where nothing was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundingRecord:
    """One question about one video and the stretches of it that hold the answer."""

    id: str
    video: str
    """Path of the file relative to the data set's root, with forward slashes."""
    question: str
    answer: str | None = None
    question_type: QuestionType | None = None
    spans: tuple[TimeSpan, ...]
    """Relevant stretches, in time order, not overlapping; never empty."""
    split: str | None = None
    provenance: Provenance

    def __post_init__(self) -> None:
        for name in ("id", "video", "question"):
            _require(bool(getattr(self, name).strip()), f"{name} must not be blank")
        parts = self.video.split("/")
        _require(
            not self.video.startswith("/") and ".." not in parts and "\\" not in self.video,
            f"video must be a relative path inside the data set, got {self.video!r}",
        )
        _require(len(self.spans) > 0, "spans must not be empty")
        for left, right in zip(self.spans, self.spans[1:], strict=False):
            _require(
                left.end_s <= right.start_s,
                f"spans must be in time order and apart, got {left} before {right}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedFrame:
    """A chosen frame: where it lies, what it scored, and which place that score earned."""

    source_idx: int
    time_s: float
    score: float
    """Sigmoid of the frame's logit, in 0..1."""
    rank: int
    """0 for the best score among the chosen frames."""

    def __post_init__(self) -> None:
        _require(self.source_idx >= 0, f"source_idx must be >= 0, got {self.source_idx}")
        _require(self.rank >= 0, f"rank must be >= 0, got {self.rank}")
        _require(0 <= self.score <= 1, f"score must be in 0..1, got {self.score}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameScores:
    """The score of every sampled frame of a video for one question, in time order."""

    video: str
    question: str
    model: str
    """Name or path of the model that scored."""
    sampling: str
    """The sampling rule in one word, as `SamplingConfig.describe` writes it."""
    source_idx: tuple[int, ...]
    time_s: tuple[float, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = (len(self.source_idx), len(self.time_s), len(self.scores))
        _require(
            len(set(lengths)) == 1,
            f"source_idx, time_s and scores must be equally long, got lengths {lengths}",
        )
        _require(
            all(a < b for a, b in zip(self.source_idx, self.source_idx[1:], strict=False)),
            "source_idx must ascend without repeats",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSelection:
    """The frames chosen for a question, in time order, and the scores they were chosen by."""

    video: str
    question: str
    model: str
    sampling: str
    policy: str
    num_sampled: int
    selected: tuple[SelectedFrame, ...]
    scores: tuple[float, ...]
    """Score of every sampled frame, in time order; `num_sampled` of them."""
    times_s: tuple[float, ...]
    """Time of every sampled frame; as long as `scores`."""
    missing_source_idx: tuple[int, ...] = ()
    """Sampled frames that the file did not give; they were not scored."""

    def __post_init__(self) -> None:
        _require(
            self.num_sampled == len(self.scores) == len(self.times_s),
            f"num_sampled is {self.num_sampled}, but there are {len(self.scores)} scores "
            f"and {len(self.times_s)} times",
        )
        places = [frame.source_idx for frame in self.selected]
        _require(places == sorted(set(places)), "selected must be distinct and in time order")


def label_frames(time_s: npt.ArrayLike, spans: Sequence[TimeSpan]) -> npt.NDArray[np.bool_]:
    """Marks the frames that lie inside any span.

    Both ends of a span are compared as `TIME_TOLERANCE_S` earlier than they are said to be: a frame
    shown at a span's start lies in it and one shown at its end does not, however the times were
    rounded, and of two spans that adjoin exactly one holds it.

    Args:
        time_s: [T] frame times in seconds.
        spans: Relevant stretches, half-open.

    Returns:
        [T] bool, True where a span holds the frame's time.
    """
    times = np.asarray(time_s, dtype=np.float64) + TIME_TOLERANCE_S
    inside = np.zeros(times.shape, dtype=bool)
    for span in spans:
        inside |= (times >= span.start_s) & (times < span.end_s)
    return inside


def seconds_of(time_s: npt.ArrayLike, start_s: float) -> npt.NDArray[np.int64]:
    """Says in which second of a video each frame begins, as `label_frames` compares times.

    Args:
        time_s: [T] frame times in seconds.
        start_s: When second 0 begins on the same clock.

    Returns:
        [T] whole seconds.
    """
    since_start_s = np.asarray(time_s, dtype=np.float64) - start_s
    return np.floor(since_start_s + TIME_TOLERANCE_S).astype(np.int64)


def to_json(record: Any) -> dict[str, Any]:
    """Turns a record into a JSON object with its `schema_version` first."""
    return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(record)}


def from_json(record_type: type[RecordT], data: Any) -> RecordT:
    """Builds a record from a JSON object, strictly.

    Args:
        record_type: The record class to build.
        data: The decoded JSON object, `schema_version` included.

    Raises:
        RecordError: The object is of another schema version, has a field that the record does
            not know, lacks one, or holds a value of the wrong type; the message names the field.
    """
    fields = _object(data, record_type.__name__)
    version = fields.pop("schema_version", None)
    _require(
        version == SCHEMA_VERSION,
        f"schema_version must be {SCHEMA_VERSION}, got {version!r}",
    )
    return _build(record_type, fields, "")


def parse_fields(record_type: type[RecordT], data: Any) -> RecordT:
    """Builds a record from a JSON object as strictly as `from_json`, without `schema_version`.

    For objects that others write to our wish, such as the answer of a model.

    Raises:
        RecordError: As for `from_json`.
    """
    return _build(record_type, _object(data, record_type.__name__), "")


def _object(data: Any, where: str) -> dict[str, Any]:
    _require(isinstance(data, dict), f"{where}: expected an object, got {type(data).__name__}")
    return dict(cast("dict[str, Any]", data))


@cache
def _hints(record_type: type[Any]) -> dict[str, Any]:
    return get_type_hints(record_type)


def _build(record_type: type[RecordT], fields: dict[str, Any], prefix: str) -> RecordT:
    hints = _hints(record_type)
    known = {f.name: f for f in dataclasses.fields(cast(Any, record_type))}
    unknown = sorted(set(fields) - set(known))
    _require(not unknown, f"unknown field {prefix}{unknown[0] if unknown else ''}")
    for name, field in known.items():
        required = field.default is dataclasses.MISSING
        _require(name in fields or not required, f"missing field {prefix}{name}")
    values = {k: _convert(hints[k], v, f"{prefix}{k}") for k, v in fields.items()}
    try:
        return record_type(**values)
    except RecordError as error:
        raise RecordError(f"{prefix}{error}" if prefix else str(error)) from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Checks one JSON value against a field's annotation; lists become tuples."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        (inner,) = (a for a in get_args(hint) if a is not type(None))
        return _convert(inner, value, where)
    if origin is Literal:
        _require(value in get_args(hint), f"{where} must be one of {get_args(hint)}, got {value!r}")
        return value
    if origin is tuple:
        _require(isinstance(value, list), f"{where} must be a list, got {value!r:.80}")
        element = get_args(hint)[0]
        return tuple(_convert(element, v, f"{where}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _build(cast("type[Any]", hint), _object(value, where), f"{where}.")
    # JSON has one kind of number; bool is an int in Python and never meant here.
    accepted = (int, float) if hint is float else hint
    matches = isinstance(value, accepted) and not (isinstance(value, bool) and hint is not bool)
    _require(matches, f"{where} must be {hint.__name__}, got {value!r:.80}")
    if hint is not float:
        return value
    try:
        return float(value)
    except OverflowError:
        raise RecordError(f"{where} is too large for a number") from None
