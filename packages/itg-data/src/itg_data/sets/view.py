"""A set as pages to look at: one of each sample, on the shared timeline, and an index of them.

Pages are named by number, never by what a record says.
"""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template

from PIL import Image

from itg_data.annotate.records import Annotation
from itg_data.errors import ItgError, VideoError
from itg_data.files import write_atomic
from itg_data.records import (
    QuestionType,
    SelectedFrame,
    TimeSpan,
    label_frames,
    to_json,
)
from itg_data.sets.folder import Sample
from itg_data.sets.pictures import PagePictures, take_pictures
from itg_data.timeline import Passage, Thumbnails, Timeline, Wording, render_page
from itg_data.timeline.page import content_policy, to_html

_INDEX_WIDTH = 224
_TYPE_NAMES: dict[QuestionType | None, str] = {
    "semantic": "semantic",
    "motion": "motion",
    "semantic_motion": "semantic and motion",
    "no_clue": "no clue",
}
_WORDING = Wording(
    over_time="Labels over time",
    chosen_frames="Labelled frames",
    chosen="labelled",
    dismissed="refused by the check",
    span="holds the answer",
    passages="Captions",
    passage="clip that retrieval chose",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """A line of the index."""

    sample: Sample
    page: str
    picture: bytes | None
    """WebP of the first labelled frame."""
    fault: str = ""
    """Why there is no page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    """A page that knows all but the page after it."""

    name: str
    timeline: Timeline
    before: str | None
    """Name of the page before it, if there is one."""

    def write(self, out: Path, *, after: str | None) -> None:
        links = [("previous", self.before), ("all questions", "index.html"), ("next", after)]
        ways = [(text, address) for text, address in links if address is not None]
        write_atomic(out / self.name, render_page(replace(self.timeline, links=ways)))


def write_pages(
    samples: Sequence[Sample],
    videos: Path,
    out: Path,
    on_page: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Writes a page of each sample, and `index.html`.

    Args:
        samples: What to show; those of one video next to each other are decoded once.
        videos: Folder that the records' paths are relative to.
        out: Made if it is not there.
        on_page: Called with (pages written, pages in all).

    Returns:
        Complaints about videos that cannot be read; the index holds them as well.
    """
    out.mkdir(parents=True, exist_ok=True)
    entries: list[_Entry] = []
    complaints: list[str] = []
    waiting: _Page | None = None  # for the name of the page after it
    for number, (sample, found) in enumerate(_with_pictures(samples, videos), start=1):
        name, record = f"{number:05d}.html", sample.record
        if isinstance(found, str):
            complaints.append(f"{record.id}: {record.video}: {found}")
            entries.append(_Entry(sample=sample, page="", picture=None, fault=found))
        else:
            timeline = to_timeline(sample, found)
            if waiting is not None:
                waiting.write(out, after=name)
            waiting = _Page(name=name, timeline=timeline, before=waiting and waiting.name)
            entries.append(_Entry(sample=sample, page=name, picture=_first_label(timeline)))
        if on_page:
            on_page(number, len(samples))
    if waiting is not None:
        waiting.write(out, after=None)
    write_atomic(out / "index.html", _render_index(entries))
    return complaints


def _with_pictures(
    samples: Sequence[Sample], videos: Path
) -> Iterator[tuple[Sample, PagePictures | str]]:
    """Yields each sample with its pictures, or with the reason why there are none."""
    for video, group in groupby(samples, key=lambda sample: sample.record.video):
        about_video = list(group)
        try:
            yield from zip(about_video, take_pictures(videos / video, about_video), strict=True)
        except ItgError as error:
            reason = error.reason if isinstance(error, VideoError) else str(error)
            yield from ((sample, reason) for sample in about_video)


def to_timeline(sample: Sample, found: PagePictures) -> Timeline:
    """Says what a page shows of a sample."""
    record, annotation, pictures = sample.record, sample.annotation, found.thumbnails
    labelled: list[int] = label_frames(pictures.time_s, record.spans).nonzero()[0].tolist()
    selected = [
        SelectedFrame(source_idx=source_idx, time_s=time_s, score=1.0, rank=rank)
        for rank, (source_idx, time_s) in enumerate(
            (pictures.source_idx[i], pictures.time_s[i]) for i in labelled
        )
    ]
    facts = {
        "Answer": record.answer or "",
        "Type": _TYPE_NAMES.get(record.question_type, ""),
        "Video": record.video,
        "Split": record.split or "",
        "Record": record.id,
        "Annotator": record.provenance.annotator,
    }
    notes: list[tuple[str, str]] = []
    if annotation is not None:
        facts["Cues"] = ", ".join(annotation.cues)
        facts["Options"] = " / ".join(annotation.options)
        notes = [("Why these clips", annotation.explanation)] if annotation.explanation else []
    if found.note:
        notes.append(("Seconds that are not shown", found.note))
    return Timeline(
        heading=record.question,
        facts=[(name, value) for name, value in facts.items() if value],
        times_s=pictures.time_s,
        scores=None,
        selected=selected,
        dismissed=_dismissed(annotation, pictures) if annotation else (),
        spans=record.spans,
        passages=tuple(_passages(annotation)) if annotation else (),
        notes=notes,
        wording=_WORDING,
        thumbnails=pictures,
        record=to_json(annotation or record),
        made_by=f"itg-data {version('itg-data')}",
    )


def _dismissed(annotation: Annotation, pictures: Thumbnails) -> list[int]:
    """Finds the frames that the check refused, as far as the file gave them."""
    refused = {frame.source_idx for frame in annotation.frames if frame.relevant is False}
    return [source_idx for source_idx in pictures.source_idx if source_idx in refused]


def _passages(annotation: Annotation) -> Iterable[Passage]:
    """Takes clips and captions; where nothing in particular is asked for, none stands out."""
    end_s = annotation.start_s + annotation.duration_s
    starts_s = [annotation.start_s + c * annotation.clip_s for c in range(len(annotation.captions))]
    return [
        Passage(
            span=TimeSpan(start_s=start_s, end_s=min(start_s + annotation.clip_s, end_s)),
            text=caption or "(could not be read)",
            is_picked=clip in annotation.clips,
        )
        for clip, (start_s, caption) in enumerate(zip(starts_s, annotation.captions, strict=True))
        if start_s < end_s
    ]


def _first_label(timeline: Timeline) -> bytes | None:
    source_idx = [frame.source_idx for frame in timeline.selected][:1]
    if not source_idx:
        return None
    picture = Image.fromarray(timeline.thumbnails.pick(source_idx)[0])
    picture.thumbnail((_INDEX_WIDTH, _INDEX_WIDTH))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=70)
    return file.getvalue()


def _render_index(entries: Sequence[_Entry]) -> str:
    style = _asset("index.css")
    num_videos = len({entry.sample.record.video for entry in entries})
    return Template(_asset("index.html")).substitute(
        policy=content_policy(style),
        style=style,
        summary=f"{_count(len(entries), 'question')} about {_count(num_videos, 'video')}",
        items="\n".join(map(_item, entries)),
        made_by=to_html(f"itg-data {version('itg-data')}"),
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _item(entry: _Entry) -> str:
    record = entry.sample.record
    labelled_s = sum(span.end_s - span.start_s for span in record.spans)
    type_name = _TYPE_NAMES.get(record.question_type, "")
    facts = [type_name, record.split or "", f"{labelled_s:.0f} s labelled"]
    picture = (
        f'<img alt="" src="data:image/webp;base64,{base64.b64encode(entry.picture).decode()}">'
        if entry.picture
        else '<div class="no-picture"></div>'
    )
    question = f'<span class="question" dir="auto">{to_html(record.question)}</span>'
    about = " &middot; ".join(to_html(fact) for fact in facts if fact)
    body = f'{picture}<span class="words">{question}<span class="about">{about}</span>'
    if entry.fault:
        return (
            f'<li class="entry">{body}<span class="fault">{to_html(entry.fault)}</span></span></li>'
        )
    return f'<li><a class="entry" href="{entry.page}">{body}</span></a></li>'


def _asset(name: str) -> str:
    return files("itg_data.sets").joinpath(name).read_text(encoding="utf-8")
