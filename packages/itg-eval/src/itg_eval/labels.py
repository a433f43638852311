"""Which stretches of a video answer a question, as data sets say it: our records, or CG-Bench's.

Labels and scores meet by the question's hash and the video's name: the numbers of a benchmark are
not those of a file of labels.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, cast

from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl
from itg_data.records import GroundingRecord, TimeSpan

from itg_eval.records import DocumentScores, format_key, hash_question


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The spans of one question about one video."""

    video: PurePath
    """Path of the file, or the last parts of it; with or without its suffix."""
    question_sha256: str
    spans: tuple[TimeSpan, ...]
    group: str
    """The kind of question; measures are averaged by it as well."""


class Labels:
    """Labels, found by question and video."""

    def __init__(self, labels: Iterable[Label]) -> None:
        self._by_name: dict[tuple[str, str], list[Label]] = {}
        for label in labels:
            self._by_name.setdefault((label.question_sha256, label.video.stem), []).append(label)

    def find(self, scores: DocumentScores) -> Label | None:
        """Gives the label of the question scored, if there is one.

        Raises:
            RecordError: There are several that fit.
        """
        video = PurePath(scores.scored.video)
        found = [
            label
            for label in self._by_name.get((scores.question_sha256, video.stem), [])
            if _ends_with(video, label.video)
        ]
        if len(found) > 1:
            raise RecordError(f"{format_key(scores.key)} has {len(found)} labels, must have one")
        return found[0] if found else None

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))


def _ends_with(video: PurePath, tail: PurePath) -> bool:
    """Whether a path ends in these folders; names of files are alike if they are without suffix."""
    folders = tail.parent.parts
    return video.stem == tail.stem and (
        not folders or video.parent.parts[-len(folders) :] == folders
    )


def read_labels(path: str | Path) -> Labels:
    """Reads labels: records, one a line, or CG-Bench's file, which is one JSON list.

    Raises:
        RecordError: The file is neither, or a row of it is wrong; the message names it.
    """
    if Path(path).suffix == ".json":
        return Labels(_read_cg_bench(path))
    return Labels(
        Label(
            video=PurePath(record.video),
            question_sha256=hash_question(record.question),
            spans=record.spans,
            group=record.question_type or "untyped",
        )
        for record in read_jsonl(path, GroundingRecord)
    )


def _read_cg_bench(path: str | Path) -> Iterator[Label]:
    try:
        rows: Any = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise RecordError(f"{path}: must be a list of questions, as cgbench_mini.json is")
    for number, row in enumerate(cast("list[Any]", rows)):
        try:
            yield _parse_cg_bench(row)
        except (RecordError, KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"{path}: question {number}: needs video_uid, question and clue_intervals of "
                f"[start, end] in seconds: {error!r}"
            ) from None


def _parse_cg_bench(row: Any) -> Label:
    # of no length: nothing can overlap it, and no frame lies in it
    spans = [
        TimeSpan(start_s=float(start), end_s=float(end))
        for start, end in row["clue_intervals"]
        if float(start) != float(end)
    ]
    if not spans:
        raise ValueError("no clue interval has a length")
    return Label(
        video=PurePath(str(row["video_uid"])),
        question_sha256=hash_question(str(row["question"])),
        spans=tuple(spans),
        group=str(row.get("sub_category") or "untyped"),
    )
