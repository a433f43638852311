import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from itg_data.records import FrameSelection, SelectedFrame, TimeSpan, from_json, to_json
from itg_data.timeline import Thumbnails, Timeline, render_page
from itg_data.timeline.page import MAX_PICTURE_BYTES, record_in, show_controls
from itg_data.video import FrameBatch
from PIL import Image

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</script x",
    "<!-- <script ",
    "]]></style></title><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "&lt;b&gt; $heading ${data} {{x}} %s \\u003c \\",
    "cat\u202egnp.exe \u2066\u200f\u2028\u2029",
    "\x00\x1b[31m \udcff \U0001f1ff",
    "http://example.com/x.js",
)


def frames(num_frames: int, height: int = 36, width: int = 64) -> np.ndarray:
    """Plain colours, each frame's own."""
    places = np.arange(num_frames)
    colours = np.stack([places * 37 % 256, places * 91 % 256, places * 151 % 256], axis=1)
    return np.broadcast_to(
        colours[:, None, None].astype(np.uint8), (num_frames, height, width, 3)
    ).copy()


def batch(images: np.ndarray, first: int = 0) -> FrameBatch:
    places = np.arange(first, first + len(images))
    return FrameBatch(
        frames=images,
        source_idx=places * 4,
        time_s=places.astype(float),
        missing_source_idx=np.empty(0, dtype=np.int64),
        source_height=images.shape[1],
        source_width=images.shape[2],
    )


def timeline(num_frames: int = 20, text: str = "where", images: np.ndarray | None = None, **other):
    thumbnails = Thumbnails()
    thumbnails.add(batch(frames(num_frames) if images is None else images))
    scores = np.random.default_rng(0).random(num_frames)
    chosen = sorted(np.argsort(-scores)[:8].tolist())
    selection = FrameSelection(
        video=f"{text}.mp4",
        question=text,
        model=text,
        sampling="train-1hz-max512",
        policy="top-k",
        num_sampled=num_frames,
        selected=tuple(
            SelectedFrame(source_idx=4 * i, time_s=float(i), score=scores[i], rank=rank)
            for rank, i in enumerate(chosen)
        ),
        scores=tuple(scores.tolist()),
        times_s=tuple(map(float, range(num_frames))),
    )
    fields = {
        "heading": text,
        "facts": [("Video", selection.video), (text, text)],
        "times_s": selection.times_s,
        "scores": selection.scores,
        "selected": selection.selected,
        "thumbnails": thumbnails,
        "record": to_json(selection),
        "made_by": text,
    }
    return selection, Timeline(**(fields | other))


class Outline(HTMLParser):
    """The elements of a page, their attributes, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        self.text[tag] = self.text.get(tag, "") + data


def embedded_json(page: str) -> str:
    """All between the block's opening and the script that follows it."""
    (block,) = re.findall(r'id="data">(.*)</script>\n<script>"use strict"', page, re.DOTALL)
    return block


def test_frames_keep_their_times_and_places_in_the_order_they_came():
    thumbnails = Thumbnails()
    thumbnails.add(batch(frames(3)))
    thumbnails.add(batch(np.empty((0, 1, 1, 3), dtype=np.uint8)))
    thumbnails.add(batch(frames(5)[3:], first=3))
    assert (len(thumbnails), thumbnails.size) == (5, (64, 36))
    assert thumbnails.source_idx == [0, 4, 8, 12, 16]
    assert thumbnails.time_s == [0, 1, 2, 3, 4]
    assert np.array_equal(thumbnails.pick([16, 4]), frames(5)[[4, 1]])
    with pytest.raises(ValueError, match="got 5"):
        thumbnails.pick([4, 5])


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1080, 1920, (480, 270)), (1920, 1080, (270, 480)), (48, 64, (64, 48)), (1, 9000, (2047, 1))],
)
def test_large_frames_become_small_and_small_ones_stay(height, width, size):
    thumbnails = Thumbnails()
    thumbnails.add(batch(frames(2, height, width)))
    assert thumbnails.size == size
    assert thumbnails.to_sheets(10_000).width == size[0]


def test_memory_is_bounded_however_many_frames_come():
    thumbnails = Thumbnails(max_pixels=50_000)
    for first in range(0, 400, 10):
        thumbnails.add(batch(frames(400)[first : first + 10], first))
        width, height = thumbnails.size
        assert len(thumbnails) * width * height <= 50_000
    assert thumbnails.size == (13, 7)
    assert np.array_equal(thumbnails.pick([4 * 399])[0, 0, 0], frames(400)[399, 0, 0])


def test_every_picture_lies_where_the_page_looks_for_it():
    thumbnails = Thumbnails()
    thumbnails.add(batch(frames(150)))
    sheets = thumbnails.to_sheets(500_000)
    assert len(sheets.webp) == 3
    decoded = [np.asarray(Image.open(io.BytesIO(webp))) for webp in sheets.webp]
    for place, frame in enumerate(frames(150)):
        sheet, cell = divmod(place, sheets.frames_per_sheet)
        row, column = divmod(cell, sheets.columns)
        y, x = (row + 0.5) * sheets.height, (column + 0.5) * sheets.width
        assert decoded[sheet][int(y), int(x)] == pytest.approx(frame[0, 0], abs=12)


def test_sheets_keep_to_their_budget_by_quality_first_and_by_size_then():
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 160, 3), dtype=np.uint8)
    thumbnails = Thumbnails()
    thumbnails.add(batch(noise))
    rich, lean, poor = (thumbnails.to_sheets(n) for n in (2_000_000, 400_000, 20_000))
    sizes = [sum(map(len, sheets.webp)) for sheets in (rich, lean, poor)]
    assert sizes[1] < 400_000 < sizes[0]
    assert sizes[2] <= 20_000
    assert (rich.width, lean.width) == (160, 160)
    assert poor.width < 60
    with pytest.raises(ValueError, match="max_bytes is too small for 40 pictures: 10"):
        thumbnails.to_sheets(10)
    with pytest.raises(ValueError, match="at least one picture"):
        Thumbnails().to_sheets(1000)


def test_the_page_holds_the_record_unchanged():
    selection, shown = timeline(spans=[TimeSpan(start_s=3, end_s=7.5)])
    page = render_page(shown)
    assert from_json(FrameSelection, record_in(page)) == selection
    with pytest.raises(ValueError, match="page must hold"):
        record_in("<p>something else</p>")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(text):
    wanted = [tag for tag, _ in Outline(render_page(timeline()[1])).elements]
    selection, shown = timeline(text=text)
    page = render_page(shown)
    outline = Outline(page)
    # `http://` may go on in the next line after each of its slashes
    assert [tag for tag, _ in outline.elements if tag != "wbr"] == wanted
    assert not any(name.startswith("on") for _, attrs in outline.elements for name in attrs)
    assert outline.text["title"].strip() == outline.text["h1"].strip() == show_controls(text)
    assert record_in(page)["question"] == selection.question
    # without these no text can end the block of data, nor open a comment in it
    assert not set("<>&") & set(embedded_json(page))
    assert page.isascii()
    assert all(char >= " " or char == "\n" for char in page)


def test_characters_that_are_not_seen_are_spelled_out():
    assert show_controls("cat\u202egnp.exe\x1b\udcff\u200b") == (
        "cat\\u202egnp.exe\\u001b\\udcff\\u200b"
    )
    assert show_controls("\U0001d173") == "\\U0001d173"
    assert show_controls("two\n lines\u2028 ") == "two lines"
    family, wales = "\U0001f469\u200d\U0001f467", "\U0001f3f4\U000e0067\U000e007f"
    assert show_controls(f"Was ist {family} \u0645\u06cc\u200c\u062e {wales}?") == (
        f"Was ist {family} \u0645\u06cc\u200c\u062e {wales}?"
    )


def test_the_page_needs_nothing_but_itself():
    page = render_page(timeline()[1])
    outline = Outline(page)
    linked = [a[k] for _, a in outline.elements for k in ("src", "href", "srcset") if k in a]
    assert linked == ["data:,"]
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!\")|\bfetch\(|import\(", page)
    (policy,) = [a["content"] for t, a in outline.elements if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src blob: data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_page_of_512_hard_frames_is_under_3_mb():
    noise = np.random.default_rng(0).integers(0, 256, (512, 90, 160, 3), dtype=np.uint8)
    page = render_page(timeline(512, images=noise)[1])
    assert 1_000_000 < len(page) < 3_000_000
    data = json.loads(embedded_json(page))
    assert sum(map(len, data["sheets"])) <= MAX_PICTURE_BYTES * 4 / 3 + 4 * len(data["sheets"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": (0.5,)}, "got lengths 20, 1 and 20"),
        ({"times_s": tuple(map(float, range(1, 21)))}, "those of other times"),
        (
            {"selected": (SelectedFrame(source_idx=3, time_s=1, score=0, rank=0),)},
            "selected frame 3 is not among the thumbnails",
        ),
    ],
)
def test_a_timeline_whose_parts_do_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        timeline(**change)
