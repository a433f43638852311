"""One self-contained HTML page about the frames of a video: score curve, chosen frames, pictures.

The page brings its own style, script and pictures and asks no network for anything; a content
security policy that names the two by their hashes holds the browser to that. All text of others
(questions, names of files and models) enters at two places only: escaped as HTML, or inside one
JSON block that the script reads and shows as text, never as markup. The numbers stand there in
full, so the page is also the record: `record_in` reads it back.
"""

import base64
import hashlib
import html
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from itg_data.records import SelectedFrame, TimeSpan
from itg_data.timeline.thumbnails import Sheets, Thumbnails

MAX_PICTURE_BYTES = 2_100_000
"""All pictures of a page, before base64; leaves room for the rest of a page of 3 MB."""

_JSON_OPENING = '<script type="application/json" id="data">'


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """What a page calls what it shows; as of a selection, unless told otherwise."""

    over_time: str = "Score over time"
    chosen_frames: str = "Chosen frames"
    chosen: str = "chosen"
    dismissed: str = "dismissed"
    span: str = "holds the answer"
    passages: str = "What happens"
    passage: str = "picked out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A stretch of the video with what was said of it."""

    span: TimeSpan
    text: str
    is_picked: bool
    """Whether it stands out among the passages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """What a page shows."""

    heading: str
    """The question, or whatever the frames are looked at for."""
    facts: Sequence[tuple[str, str]]
    """Names and values to list beside the frame: the video, the model, the policy."""
    times_s: Sequence[float]
    """[T] times of the frames, ascending."""
    scores: Sequence[float] | None
    """[T] in 0..1; None where nothing was scored, and no curve is drawn."""
    selected: Sequence[SelectedFrame]
    """The chosen ones, in time order."""
    dismissed: Sequence[int] = ()
    """Source indices of frames that were considered and not chosen."""
    passages: Sequence[Passage] = ()
    """What was said of the video's parts, in time order."""
    notes: Sequence[tuple[str, str]] = ()
    """Headings and paragraphs to read between the curve and the passages."""
    wording: Wording = Wording()
    thumbnails: Thumbnails
    """Pictures of all T frames."""
    spans: Sequence[TimeSpan] = ()
    """Stretches known to hold the answer, where they are known."""
    links: Sequence[tuple[str, str]] = ()
    """Texts and addresses of the pages around this one."""
    record: Mapping[str, Any]
    """The JSON object of the record that is shown; the page carries it along unchanged."""
    made_by: str
    """Program and version."""

    def __post_init__(self) -> None:
        num_scores = len(self.times_s if self.scores is None else self.scores)
        if not len(self.times_s) == num_scores == len(self.thumbnails) > 0:
            raise ValueError(
                "times_s, scores and thumbnails must be equally long and not empty, got lengths "
                f"{len(self.times_s)}, {num_scores} and {len(self.thumbnails)}"
            )
        if list(self.times_s) != self.thumbnails.time_s:
            raise ValueError("thumbnails must show the frames at times_s, got those of other times")
        known = set(self.thumbnails.source_idx)
        for idx in (*(frame.source_idx for frame in self.selected), *self.dismissed):
            if idx not in known:
                raise ValueError(f"selected frame {idx} is not among the thumbnails")


def render_page(timeline: Timeline) -> str:
    """Writes the page: pure ASCII, some 2.9 MB at most for 512 frames, however large they were."""
    sheets = timeline.thumbnails.to_sheets(MAX_PICTURE_BYTES)
    style, script, wording = _asset("timeline.css"), _asset("timeline.js"), timeline.wording
    policy = content_policy(style, script)
    facts = "\n".join(
        f"<div><dt>{to_html(name)}</dt><dd><bdi>{_breakable(value)}</bdi></dd></div>"
        for name, value in timeline.facts
    )
    return Template(_asset("timeline.html")).substitute(
        policy=policy,
        title=to_html(timeline.heading),
        heading=to_html(timeline.heading),
        links=_links(timeline),
        facts=facts,
        over_time=to_html(wording.over_time),
        chosen=to_html(wording.chosen),
        dismissed=to_html(wording.dismissed),
        span=to_html(wording.span),
        passage=to_html(wording.passage),
        chosen_frames=to_html(wording.chosen_frames),
        notes=_notes(timeline),
        passages=_passages(timeline),
        made_by=to_html(timeline.made_by),
        style=style,
        script=script,
        data=f"{_JSON_OPENING}{_to_json(_data(timeline, sheets))}</script>",
    )


def content_policy(style: str, script: str = "") -> str:
    """Writes the policy that lets a page use its own style, script and pictures, and no more."""
    return "; ".join(
        (
            "default-src 'none'",
            "img-src blob: data:",
            f"style-src 'sha256-{_sha256(style)}'",
            f"script-src 'sha256-{_sha256(script)}'" if script else "script-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _links(timeline: Timeline) -> str:
    if not timeline.links:
        return ""
    ways = "".join(
        f'<a href="{to_html(address)}">{to_html(text)}</a>' for text, address in timeline.links
    )
    return f'<nav aria-label="pages">{ways}</nav>'


def _notes(timeline: Timeline) -> str:
    return "\n".join(
        f'<section class="note"><h2>{to_html(title)}</h2>'
        f'<p dir="auto">{to_html(text)}</p></section>'
        for title, text in timeline.notes
    )


def _passages(timeline: Timeline) -> str:
    """Writes the passages as a list of buttons; the script shows the frame that each begins at."""
    if not timeline.passages:
        return ""
    items = "\n".join(
        f'<li><button type="button" class="{"is-picked" if passage.is_picked else ""}">'
        f"<span>{_clock(passage.span.start_s)}</span>"
        f'<span dir="auto">{to_html(passage.text)}</span></button></li>'
        for passage in timeline.passages
    )
    heading = f'<h2 id="passages-heading">{to_html(timeline.wording.passages)}</h2>'
    return (
        f'<section aria-labelledby="passages-heading">{heading}'
        f'<ol class="passages" id="passages">\n{items}\n</ol></section>'
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


def record_in(page: str) -> dict[str, Any]:
    """Reads the JSON object of the record back out of a page.

    Raises:
        ValueError: The text is no page of `render_page`.
    """
    _, opening, rest = page.partition(_JSON_OPENING)
    if not opening:
        raise ValueError(f"page must hold {_JSON_OPENING}, got {page[:40]!r}...")
    return json.loads(rest.partition("</script>")[0])["record"]


def show_controls(text: str) -> str:
    """Spells out, as an escape, each character that is not seen but changes what is.

    Controls, bidirectional marks, separators of lines and halves of surrogate pairs; runs of
    ordinary white space become one blank. Joiners and tags stay, scripts and emoji need them.
    """
    return "".join(_spelled(char) if _is_control(char) else char for char in " ".join(text.split()))


def _spelled(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"


def _is_control(char: str) -> bool:
    if char in "\u200c\u200d" or "\U000e0020" <= char <= "\U000e007f":
        return False
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _data(timeline: Timeline, sheets: Sheets) -> dict[str, Any]:
    place_of = {idx: place for place, idx in enumerate(timeline.thumbnails.source_idx)}
    return {
        "record": timeline.record,
        "times_s": list(timeline.times_s),
        "scores": None if timeline.scores is None else list(timeline.scores),
        "source_idx": timeline.thumbnails.source_idx,
        "chosen": [
            {"sample_idx": place_of[frame.source_idx], "rank": frame.rank}
            for frame in timeline.selected
        ],
        "dismissed": [place_of[idx] for idx in timeline.dismissed],
        "passages": [[p.span.start_s, p.span.end_s, p.is_picked] for p in timeline.passages],
        "words": {"chosen": timeline.wording.chosen, "dismissed": timeline.wording.dismissed},
        "spans": [[span.start_s, span.end_s] for span in timeline.spans],
        "frame": {"width": sheets.width, "height": sheets.height},
        "columns": sheets.columns,
        "frames_per_sheet": sheets.frames_per_sheet,
        "sheets": [base64.b64encode(sheet).decode() for sheet in sheets.webp],
    }


def to_html(text: str) -> str:
    """Escapes text for an element or an attribute; ASCII, whatever it was."""
    return html.escape(show_controls(text)).encode("ascii", "xmlcharrefreplace").decode()


def _breakable(text: str) -> str:
    """As `to_html`, and a long path may go on in the next line after a slash."""
    return to_html(text).replace("/", "/<wbr>")


def _to_json(data: object) -> str:
    """Writes JSON that cannot end the element it stands in, nor reorder the page's source."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _asset(name: str) -> str:
    return files("itg_data.timeline").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
