"""The reference's `results.jsonl`: written for its host models, read from its runs.

A line holds the frames of a video best first, as numbers of the file (`index`), their scores to
two decimals (`logits`), and the document's number (`doc_id`). Its host models read `doc_id` and
`index` alone, take the first line of a number, skip lines they cannot read, and cut the list to
the frames they want. The file names neither task nor split nor frame rate, so one holds one task
only, and reading needs the documents.

Source: behaviour of NVlabs/VideoITG at fab8b54 (lmms_eval/models/videoitg.py and its
`frame_indices_jsonl` loaders), reimplemented. `num_frames`, always 1 there, counts the frames.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import numpy as np
from itg_data.errors import RecordError, VideoError
from itg_data.records import FrameScores
from itg_data.video import open_video
from itg_model.policies import order_by_score

from itg_eval.records import Document, DocumentScores

UNKNOWN_SAMPLING = "unknown"


def format_result(scores: DocumentScores) -> bytes:
    """Puts scores into a line of that form."""
    scored = scores.scored
    order: list[int] = order_by_score(np.array(scored.scores)).tolist()
    row = {
        "index": [scored.source_idx[i] for i in order],
        "logits": [round(scored.scores[i], 2) for i in order],
        "num_frames": len(order),
        "contexts": scored.question,
        "video_path": scored.video,
        "doc_id": scores.doc_id,
    }
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A line of the file."""

    doc_id: int
    ranking: tuple[int, ...]
    """Numbers of the frames in the file, the best first, each once."""
    scores: tuple[float, ...]
    """As many, descending without ties."""
    context: str
    video: str


@dataclass(slots=True)
class Tally:
    """What was left out, and why."""

    unreadable: list[str] = field(default_factory=lambda: list[str]())
    """Line and reason."""
    repeated: int = 0
    """Lines of a number that came before; the first counts."""
    unknown: int = 0
    """Numbers that no document has."""
    other_video: list[str] = field(default_factory=lambda: list[str]())
    """Documents whose line names another video."""
    bad_videos: list[str] = field(default_factory=lambda: list[str]())
    """Documents whose video cannot be read."""
    out_of_range: int = 0
    """Frames that the video does not have."""

    def complaints(self) -> Iterator[tuple[int, str, str]]:
        """Yields how many, an example or nothing, and of what, for all that there is any of."""
        for found, what in (
            (self.unreadable, "lines cannot be read"),
            (self.other_video, "lines name another video than the question"),
            (self.bad_videos, "videos cannot be read"),
            ([""] * self.repeated, "lines repeat a number and were passed over"),
            ([""] * self.unknown, "numbers are of no question here"),
            ([""] * self.out_of_range, "frames are beyond the end of their video"),
        ):
            if found:
                yield len(found), found[0], what


def read_results(path: str | Path, tally: Tally) -> dict[int, Result]:
    """Reads the file as the reference's loaders do: first line wins, bad lines are skipped.

    Raises:
        RecordError: The file cannot be opened.
    """
    results: dict[int, Result] = {}
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    result = _parse(line)
                except (ValueError, RecursionError) as error:
                    tally.unreadable.append(f"line {number}: {error}")
                    continue
                tally.repeated += result.doc_id in results
                results.setdefault(result.doc_id, result)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    return results


def join_documents(
    results: Mapping[int, Result], documents: Sequence[Document], model: str, tally: Tally
) -> Iterator[DocumentScores]:
    """Turns results into scores, with the frame rate and times of the videos.

    Args:
        results: By number.
        documents: Of one task and split, for the results name none.
        model: What the scores' model is called.
        tally: Counts what is left out.

    Raises:
        RecordError: The documents are of several tasks or splits.
    """
    tasks = {(document.task, document.split) for document in documents}
    if len(tasks) > 1:
        raise RecordError(
            f"the file numbers the documents of one task, but here are {len(tasks)}: "
            + ", ".join("/".join(task) for task in sorted(tasks))
        )
    tally.unknown += len(results.keys() - {document.doc_id for document in documents})
    for document in documents:
        result = results.get(document.doc_id)
        if result is None:
            continue
        # folders differ between machines, file names do not; a line need not name its video
        named = PureWindowsPath(result.video).name
        if named and named != PureWindowsPath(document.video).name:
            tally.other_video.append(f"{document.doc_id}: {result.video}")
            continue
        try:
            yield _join(result, document, model, tally)
        except VideoError as error:
            tally.bad_videos.append(f"{document.doc_id}: {error}")


def _join(result: Result, document: Document, model: str, tally: Tally) -> DocumentScores:
    with open_video(document.video) as reader:
        place = dict(zip(result.ranking, result.scores, strict=True))
        source_idx = sorted(i for i in place if i < reader.num_frames)
        tally.out_of_range += len(place) - len(source_idx)
        if not source_idx:
            raise VideoError(document.video, "has none of the frames listed")
        times_s, fps = reader.times_s(source_idx), reader.fps
    return DocumentScores(
        task=document.task,
        split=document.split,
        doc_id=document.doc_id,
        question_sha256=document.question_sha256,
        fps=fps,
        scored=FrameScores(
            video=document.video,
            question=result.context or document.question,
            model=model,
            sampling=UNKNOWN_SAMPLING,
            source_idx=tuple(source_idx),
            time_s=tuple(times_s.tolist()),
            scores=tuple(place[i] for i in source_idx),
        ),
    )


def _parse(line: bytes) -> Result:
    row: Any = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("is no object")
    fields = cast("dict[str, Any]", row)
    ranking = [_whole(i, "index") for i in _list(fields.get("index"), "index")]
    if not ranking:
        raise ValueError("index is empty")
    scores = _rank_scores(len(ranking), fields.get("logits"))
    first = {place: i for i, place in reversed(list(enumerate(ranking)))}
    kept = sorted(first.values())
    return Result(
        doc_id=_whole(fields.get("doc_id"), "doc_id"),
        ranking=tuple(ranking[i] for i in kept),
        scores=tuple(scores[i] for i in kept),
        context=_text(fields.get("contexts")),
        video=_text(fields.get("video_path")),
    )


def _rank_scores(length: int, logits: Any) -> list[float]:
    """Scores that keep the order of the list, which is what the loaders go by.

    Rounding to two decimals made ties; a millionth less for every place breaks them as the
    unrounded scores did. Where there are no scores, or they contradict the order, the order alone
    counts, from 1 downwards.
    """
    values = cast("list[Any]", logits) if isinstance(logits, list) else []
    sound = len(values) == length and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not sound or any(a < b for a, b in pairwise(values)):
        values = [1.0] * length
    return [float(value) - 1e-6 * place for place, value in enumerate(values)]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {value!r:.80}")
    return cast("list[Any]", value)


def _whole(value: Any, name: str) -> int:
    """A number >= 0 as the loaders' `int()` reads it, text included."""
    try:
        number = int(value) if not isinstance(value, bool) else -1
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"{name} must be a whole number >= 0, got {value!r:.80}")
    return number


def _text(value: Any) -> str:
    """Text without half characters, which no file could take."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""
