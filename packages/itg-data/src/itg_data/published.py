"""The published data set's format, `video_itg_data.json`: read as a stream, and written.

The file is one JSON list, a quarter of a gigabyte long, so it is read object by object. Of each:

| field | holds |
|---|---|
| `id` | a number of its own |
| `video` | path below the folder of videos |
| `question`, `answer` | text; `<image>` marks in the question are dropped |
| `frame_num` | the labels: places among the frames sampled at 1 Hz, so seconds of the video |
| `clip_num` | the clips of 5 seconds that hold them |
| `motion`, `existence` | `Yes` or `No`; together the type of the question |
| `itg_start_s` | ours: when the first frame is shown on the video's own clock; not there where 0 |

Second `s` is read as the stretch `[s, s + 1)` from the first frame on, and the format does not say
when that is shown. Most files begin at 0, but MPEG streams, for one, do not: what we write about
these says it in a field of its own, and records of others' files about them begin too early by so
much. The reference's training code reads `clip_num` as if
it were seconds, which with this file marks other frames than meant; `labels="clip_num_as_seconds"`
does the same, for comparison.

Source: the file's fields as third parties describe them, and how train_itg.py of NVlabs/VideoITG at
fab8b54 reads them. In the published file both flags are said to be `No` throughout.
"""

import json
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from itg_data.annotate.records import Annotation, require_whole_characters, spans_of_seconds
from itg_data.errors import RecordError
from itg_data.files import replacing
from itg_data.records import GroundingRecord, Provenance, QuestionType

Labels = Literal["frame_num", "clip_num_as_seconds"]

CLIP_S = 5
PUBLISHED_ANNOTATOR = "published"
"""Stands in the provenance of records that were read from the format: it names no annotator."""

_TYPE_OF_FLAGS: dict[tuple[str, str], QuestionType] = {
    ("No", "No"): "semantic",
    ("Yes", "Yes"): "motion",
    ("Yes", "No"): "semantic_motion",
    ("No", "Yes"): "no_clue",
}
_FLAGS_OF_TYPE = {question_type: flags for flags, question_type in _TYPE_OF_FLAGS.items()}
_START = "itg_start_s"
_MAX_SECOND = 10_000_000
_BLANKS = re.compile(r"[ \t\r\n]*+")
_CHUNK_CHARACTERS = 1 << 20
_MAX_OBJECT_CHARACTERS = 1 << 24


def read_published(
    path: str | os.PathLike[str],
    *,
    labels: Labels = "frame_num",
    split: str | None = None,
    on_bad: Callable[[RecordError], None] | None = None,
) -> Iterator[GroundingRecord]:
    """Reads records of the published format one by one, without holding the file in memory.

    Fields that are not in the table above are passed over: the format is not ours to close.

    Args:
        path: The file, a JSON list of objects.
        labels: Which field says what is relevant; `clip_num_as_seconds` repeats the reference's
            reading, wrong for this file.
        split: Goes into the records; the format has none.
        on_bad: Called with the complaint about a record that breaks the format, which is then left
            out. None stops at the first one.

    Raises:
        RecordError: A record breaks the format and `on_bad` is None, or the file is no JSON list,
            was cut off, or cannot be opened; the message names file, record and field. Records
            count from 0, as places in the list.
        ValueError: `labels` is none of the two.
    """
    if labels not in ("frame_num", "clip_num_as_seconds"):
        raise ValueError(f"labels must be frame_num or clip_num_as_seconds, got {labels!r}")
    name = os.fspath(path)
    try:
        with Path(name).open(encoding="utf-8") as file:
            pieces = iter(lambda: file.read(_CHUNK_CHARACTERS), "")
            for place, found in enumerate(_iterate_list(pieces, name)):
                try:
                    record = _to_record(found, labels, split)
                except RecordError as error:
                    complaint = RecordError(f"{name}: record {place}: {error}")
                    if on_bad is None:
                        raise complaint from None
                    on_bad(complaint)
                else:
                    yield record
    except OSError as error:
        raise RecordError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{name}: is not UTF-8: {error.reason}") from None


def write_published(path: str | os.PathLike[str], annotations: Iterable[Annotation]) -> int:
    """Writes annotations in the published format, replacing the file as a whole.

    The format numbers its records: `id` is the annotation's place in `annotations`, from 0.

    Args:
        path: The file; its folder must exist.
        annotations: What to write; drawn once, and none is kept in memory.

    Returns:
        How many were written.
    """
    with publishing(path) as publish:
        return sum(1 for _ in map(publish, annotations))


@contextmanager
def publishing(path: str | os.PathLike[str]) -> Generator[Callable[[Annotation], None]]:
    """As `write_published`, for annotations that come one by one: yields what writes the next."""
    number = 0
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write("[")

        def publish(annotation: Annotation) -> None:
            nonlocal number
            published = json.dumps(_to_published(number, annotation), ensure_ascii=False)
            file.write(f"{',' if number else ''}\n{published}")
            number += 1

        yield publish
        file.write("\n]\n")


def round_trip(number: int, annotation: Annotation) -> GroundingRecord:
    """Gives what an annotation becomes when it is written as number `number` and read again."""
    return _to_record(_to_published(number, annotation), "frame_num", None)


def _to_published(number: int, annotation: Annotation) -> dict[str, Any]:
    motion, existence = _FLAGS_OF_TYPE[annotation.question_type]
    published: dict[str, Any] = {
        "id": number,
        "video": annotation.video,
        "question": annotation.question,
        "answer": annotation.answer,
        "frame_num": list(annotation.label_s),
        "clip_num": sorted({second // CLIP_S for second in annotation.candidate_s}),
        "motion": motion,
        "existence": existence,
    }
    return published | ({_START: annotation.start_s} if annotation.start_s else {})


def _to_record(found: Any, labels: Labels, split: str | None) -> GroundingRecord:
    if not isinstance(found, dict):
        raise RecordError(f"must be an object, got {type(found).__name__}")
    fields = cast("dict[str, Any]", found)
    seconds = _numbers(fields, "frame_num" if labels == "frame_num" else "clip_num")
    return GroundingRecord(
        id=_identity(fields),
        video=_text(fields, "video"),
        question=_text(fields, "question").replace("<image>\n", "").replace("<image>", "").strip(),
        answer=_text(fields, "answer") if fields.get("answer") is not None else None,
        question_type=_question_type(fields),
        spans=spans_of_seconds(seconds, float("inf"), _start_s(fields)),
        split=split,
        provenance=Provenance(annotator=PUBLISHED_ANNOTATOR),
    )


def _start_s(fields: dict[str, Any]) -> float:
    value = fields.get(_START, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_SECOND:
        raise RecordError(f"{_START} must be a number of seconds, got {value!r:.80}")
    return float(value)


def _identity(fields: dict[str, Any]) -> str:
    value = fields.get("id")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise RecordError(f"id must be a number or a string, got {value!r:.80}")
    require_whole_characters("id", str(value))
    return str(value)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise RecordError(f"{name} must be a string, got {value!r:.80}")
    require_whole_characters(name, value)
    return value


def _numbers(fields: dict[str, Any], name: str) -> tuple[int, ...]:
    """Gives a field's numbers ascending, without repeats."""
    values = fields.get(name)
    if not isinstance(values, list) or not values:
        raise RecordError(f"{name} must be a list of at least one number, got {values!r:.80}")
    for value in cast("list[Any]", values):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise RecordError(f"{name} must hold whole numbers >= 0, got {value!r:.80}")
        if value > _MAX_SECOND:
            raise RecordError(
                f"{name} must hold whole numbers below {_MAX_SECOND}, got one above it"
            )
    return tuple(sorted(set(cast("list[int]", values))))


def _question_type(fields: dict[str, Any]) -> QuestionType | None:
    if "motion" not in fields and "existence" not in fields:
        return None
    for name in ("motion", "existence"):
        if fields.get(name) not in ("Yes", "No"):
            raise RecordError(f"{name} must be Yes or No, got {fields.get(name)!r:.80}")
    return _TYPE_OF_FLAGS[fields["motion"], fields["existence"]]


class _Window:
    """The part of the text that is in memory, and how far it is read."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self.text = ""
        self.at = 0
        self._pieces = pieces

    def grow(self) -> bool:
        """Reads on; False at the end of the text."""
        piece = next(self._pieces, "")
        self.text = self.text[self.at :] + piece
        self.at = 0
        return bool(piece)

    def next_mark(self) -> str:
        """Gives the next character that is no white space, without taking it; "" at the end."""
        while True:
            self.at = _BLANKS.match(self.text, self.at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""


def _iterate_list(pieces: Iterator[str], name: str) -> Iterator[Any]:
    """Yields the elements of a JSON list that comes in pieces."""
    window = _Window(pieces)
    if window.next_mark() != "[":
        raise RecordError(
            f"{name}: must be a JSON list of records, begins with {window.text[:20]!r}"
        )
    window.at += 1
    place = 0
    if window.next_mark() != "]":
        while True:
            yield _next_element(window, f"{name}: record {place}")
            place += 1
            if window.next_mark() != ",":
                break
            window.at += 1
            window.next_mark()
    if window.next_mark() != "]":
        raise RecordError(f"{name}: the list has no end after record {place - 1}: it was cut off")
    window.at += 1
    if trailing := window.next_mark():
        raise RecordError(f"{name}: something follows the list: {trailing!r}")


def _next_element(window: _Window, where: str) -> Any:
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    while True:
        try:
            found, end = decoder.raw_decode(window.text, window.at)
        except RecursionError:
            raise RecordError(f"{where}: is nested too deeply") from None
        except ValueError as error:
            too_long = len(window.text) - window.at > _MAX_OBJECT_CHARACTERS
            if too_long or not window.grow():
                raise RecordError(f"{where}: is not JSON, or was cut off: {error}") from None
            continue
        # a number may go on in the next piece; an object, list or string has its own end
        if end < len(window.text) or window.text[end - 1] in '}]"' or not window.grow():
            window.at = end
            return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
