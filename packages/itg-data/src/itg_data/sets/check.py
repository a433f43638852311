"""Whether a set is sound: schema, ranges against the real videos, duplicates, leaks, labels.

A fault makes training wrong or impossible: a label after the end of its video, a question that is
there twice, a video in two splits. An oddity is worth a look: every question of one type, labels
that cover whole videos. Both name file, record and field.
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from itg_data.annotate.frames import count_clips
from itg_data.annotate.records import Annotation
from itg_data.errors import RecordError, VideoError
from itg_data.jsonl import read_jsonl
from itg_data.published import read_published, round_trip
from itg_data.records import TIME_TOLERANCE_S, GroundingRecord
from itg_data.sets.folder import Sample, SetFolder
from itg_data.sets.statistics import SetStatistics
from itg_data.video import open_video

_COMMON_SHARE = 0.98
"""Above it, a type is nearly all there is; the published set's flags are like that."""
_REFUSED_SHARE = 0.8
"""Of the frames in chosen clips: a clip of 5 seconds around a moment of 2 has 0.6 to refuse."""
_WIDE_SHARE = 0.9
"""Of a video: labels that cover more say little, unless nothing in particular is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something wrong with a set."""

    where: str
    """File, with the record's line or id and the field as far as they apply."""
    message: str
    is_fault: bool = True
    """Whether it makes the set unsound; if not, it is an oddity."""

    def __str__(self) -> str:
        return f"{'fault' if self.is_fault else 'oddity'}: {self.where}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """All that was found, and what was counted on the way."""

    findings: tuple[Finding, ...]
    statistics: SetStatistics

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not any(finding.is_fault for finding in self.findings)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFacts:
    """What a check needs to know of a video file, while it looks at the video's samples."""

    times_s: npt.NDArray[np.float64]
    duration_s: float
    frame_s: float
    """Time between frames, on average: labels may be off by so much."""
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Looked:
    """What is kept of a video that was read: the times of all frames of all would be gigabytes."""

    sha256: str
    complaints: dict[int, list[tuple[str, str]]]
    """Fields and complaints of the samples that have any, by the sample's place."""


def check_set(
    folder: SetFolder,
    videos: Path,
    *,
    num_workers: int = 2,
    on_video: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Checks a set against itself and against its videos.

    Args:
        folder: The set.
        videos: Folder that the records' paths are relative to.
        num_workers: Videos that are read at once.
        on_video: Called with (videos read, videos in all).

    Raises:
        RecordError: The folder holds no set.
    """
    findings: list[Finding] = []
    statistics = SetStatistics()

    def add(where: str, message: str, is_fault: bool = True) -> None:
        findings.append(Finding(where=where, message=message, is_fault=is_fault))

    def on_bad(error: RecordError) -> None:
        where, _, message = str(error).removeprefix(f"{folder.root}/").partition(": ")
        add(where, message)

    places_of: dict[str, array[int]] = {}
    for sample in folder.iterate_samples(lambda _: None):
        places_of.setdefault(sample.record.video, array("q")).append(sample.place)
    sha256_of: dict[str, str] = {}
    complaints: dict[int, list[tuple[str, str]]] = {}
    looked = _look_at_all(folder, videos, places_of, num_workers)
    for number, (path, found) in enumerate(looked, start=1):
        if isinstance(found, _Looked):
            sha256_of[path] = found.sha256
            complaints |= found.complaints
        else:
            add(f"video {path}", found)
        if on_video:
            on_video(number, len(places_of))
    repeats = _Repeats()
    for sample in folder.iterate_samples(on_bad):
        statistics.add(sample)
        name = f"{folder.source.name}: {sample.record.id}"
        for field, message in repeats.check(sample):
            add(f"{name}: {field}", message)
        for field, message in complaints.get(sample.place, ()):
            add(f"{name}: {field}", message)
    findings += repeats.check_splits(sha256_of)
    findings += _check_derived(folder, on_bad)
    findings += _check_labels(statistics)
    return CheckReport(findings=tuple(findings), statistics=statistics)


def _look_at_all(
    folder: SetFolder, videos: Path, places_of: "Mapping[str, array[int]]", num_workers: int
) -> Iterator[tuple[str, _Looked | str]]:
    """Reads every video, holds its samples against it, and keeps what came of that."""

    def look(path: str) -> _Looked | str:
        facts = look_at_video(videos / path)
        if isinstance(facts, str):
            return facts
        samples = folder.read_samples_at(places_of[path])
        found = {sample.place: list(check_ranges(sample, facts)) for sample in samples}
        complaints = {place: said for place, said in found.items() if said}
        return _Looked(sha256=facts.sha256, complaints=complaints)

    paths = sorted(places_of)
    with ThreadPoolExecutor(num_workers) as pool:
        yield from zip(paths, pool.map(look, paths), strict=True)


def look_at_video(path: Path) -> VideoFacts | str:
    """Reads what a check needs to know of a video; the complaint if it cannot be read."""
    try:
        with open_video(path) as video, path.open("rb") as file:
            return VideoFacts(
                times_s=video.probe.times_s,
                duration_s=video.duration_s,
                frame_s=1 / video.fps,
                sha256=hashlib.file_digest(file, "sha256").hexdigest(),
            )
    except VideoError as error:
        return error.reason
    except OSError as error:
        return error.strerror or str(error)


def check_ranges(sample: Sample, video: VideoFacts) -> Iterator[tuple[str, str]]:
    """Holds a sample's times against its video; yields fields and complaints."""
    end_s = float(video.times_s[0]) + video.duration_s
    spans = sample.record.spans
    # a span where a frame only stays on screen holds none, which does no harm beside one that does
    in_vain = not any(_holds_frame(video.times_s, span.start_s, span.end_s) for span in spans)
    for place, span in enumerate(spans):
        if span.end_s > end_s + video.frame_s:
            yield f"spans[{place}]", f"ends at {span.end_s:.6g} s, the video at {end_s:.6g} s"
        elif in_vain:
            yield f"spans[{place}]", f"holds no frame: [{span.start_s}, {span.end_s}) s"
    if sample.annotation is not None:
        yield from _check_annotation(sample.annotation, video)


def _check_annotation(annotation: Annotation, video: VideoFacts) -> Iterator[tuple[str, str]]:
    for name, value in (("start_s", float(video.times_s[0])), ("duration_s", video.duration_s)):
        if abs(getattr(annotation, name) - value) > video.frame_s:
            yield name, f"is {getattr(annotation, name):.6g}, the video's is {value:.6g}"
    num_clips = count_clips(annotation.duration_s, annotation.clip_s)
    if len(annotation.captions) != num_clips:
        yield (
            "captions",
            f"must be one for each of {num_clips} clips, got {len(annotation.captions)}",
        )
    for place, frame in enumerate(annotation.frames):
        if not 0 <= frame.source_idx < len(video.times_s):
            last = len(video.times_s) - 1
            yield f"frames[{place}].source_idx", f"must be in 0..{last}, got {frame.source_idx}"
            continue
        time_s = float(video.times_s[frame.source_idx]) - annotation.start_s
        if not _is_shown_in(video, frame.source_idx, annotation.start_s + frame.second):
            time_s = round(time_s, 3)
            yield (
                f"frames[{place}].source_idx",
                f"frame {frame.source_idx} is shown at {time_s} s, not in second {frame.second}",
            )


def _is_shown_in(video: VideoFacts, source_idx: int, second_s: float) -> bool:
    """Whether a frame is first shown in the second that begins then, or still on screen in it."""
    time_s, later_s = float(video.times_s[source_idx]), video.times_s[source_idx + 1 :]
    gone_s = float(later_s[0]) if len(later_s) else math.inf
    first_shown = abs(time_s - second_s - 0.5) <= 0.5 + video.frame_s
    return first_shown or time_s <= second_s < gone_s


def _holds_frame(times_s: npt.NDArray[np.float64], start_s: float, end_s: float) -> bool:
    first, after = np.searchsorted(times_s + TIME_TOLERANCE_S, (start_s, end_s))
    return bool(first < after)


class _Repeats:
    """What must not be there twice, remembered as hashes: a million questions take some 200 MB."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._questions: dict[int, str] = {}
        self._split_of: dict[str, tuple[str | None, str]] = {}

    def check(self, sample: Sample) -> Iterator[tuple[str, str]]:
        """Holds a record against those before it; yields fields and complaints."""
        record = sample.record
        if hash(record.id) in self._ids:
            yield "id", "is there twice"
        self._ids.add(hash(record.id))
        # "Which is true?" is another question with other options
        options = sample.annotation.options if sample.annotation else ()
        question = " ".join(record.question.split()).casefold()
        asked = hash((record.video, question, record.answer, tuple(options)))
        first = self._questions.setdefault(asked, record.id)
        if first != record.id:
            yield "question", f"was asked of {record.video} before, by {first}"
        split, first = self._split_of.setdefault(record.video, (record.split, record.id))
        if split != record.split:
            yield (
                "split",
                f"is {record.split}, but {first}, of the same video, is in {split}: a leak",
            )

    def check_splits(self, sha256_of: Mapping[str, str]) -> Iterator[Finding]:
        """Finds files with the same content under several names."""
        first_of: dict[str, str] = {}
        for path, sha256 in sha256_of.items():
            first = first_of.setdefault(sha256, path)
            if first == path:
                continue
            here, there = self._split_of[path][0], self._split_of[first][0]
            leaks = here != there
            note = f" in another split: {here} and {there}, a leak" if leaks else ""
            yield Finding(
                where=f"video {path}",
                message=f"has the content of {first}{note}",
                is_fault=leaks,
            )


def _check_derived(folder: SetFolder, on_bad: Callable[[RecordError], None]) -> Iterator[Finding]:
    """Compares what was made from the annotations with what would be made from them now."""
    if folder.source != folder.annotations:
        return
    records = read_jsonl(folder.records, GroundingRecord)
    yield from _compare(folder, folder.records, records, lambda _, sample: sample.record, on_bad)
    yield from _compare(
        folder,
        folder.published,
        read_published(folder.published),
        lambda place, sample: sample.annotation and round_trip(place, sample.annotation),
        on_bad,
    )


def _compare(
    folder: SetFolder,
    path: Path,
    made: Iterator[GroundingRecord],
    expect: Callable[[int, Sample], GroundingRecord | None],
    on_bad: Callable[[RecordError], None],
) -> Iterator[Finding]:
    """Finds the first record of a file that is not what the annotations say."""
    if not path.is_file():
        yield Finding(where=path.name, message="is missing")
        return
    samples = folder.iterate_samples(lambda _: None)
    try:
        for place, (sample, record) in enumerate(zip_longest(samples, made)):
            if sample is None or expect(place, sample) != record:
                message = f"differs from {folder.annotations.name} from record {place} on"
                yield Finding(where=path.name, message=message)
                return
    except RecordError as error:
        on_bad(error)


def _check_labels(statistics: SetStatistics) -> Iterator[Finding]:
    """Looks at all labels together, for what no single one shows."""
    if statistics.num_samples == 0:
        yield Finding(where="the set", message="holds no record that can be read")
        return
    for name, share in statistics.type_shares.items():
        if share > _COMMON_SHARE and statistics.num_samples > 1:
            message = f"{share:.0%} of the questions are of type {name}"
            yield Finding(where="question_type", message=message, is_fault=False)
    for name, shares in statistics.labelled_share.items():
        if name != "no_clue" and shares.quantile(0.5) > _WIDE_SHARE:
            message = (
                f"half of the {name} questions have labels on over {_WIDE_SHARE:.0%} of the video"
            )
            yield Finding(where="spans", message=message, is_fault=False)
    if (refused := statistics.num_refused) > _REFUSED_SHARE * statistics.num_checked:
        message = f"the check refused {refused} of {statistics.num_checked} frames that it saw"
        yield Finding(where="frames", message=message, is_fault=False)
