"""Which frames a page shows: of long videos not every second, but every label."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from itg_data.annotate.records import Annotation
from itg_data.cli import main
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.records import GroundingRecord, Provenance, TimeSpan
from itg_data.sets import pictures
from itg_data.sets.folder import Sample
from itg_data.sets.pictures import first_of_seconds, frames_to_show, take_pictures, thin
from itg_data.timeline.page import record_in

NUM_SECONDS = 60


def record(start_s: float, end_s: float) -> GroundingRecord:
    return GroundingRecord(
        id=f"{start_s}",
        video="long.mkv",
        question=f"What happens at {start_s}?",
        spans=(TimeSpan(start_s=start_s, end_s=end_s),),
        provenance=Provenance(annotator="by hand"),
    )


@pytest.fixture
def long_set(tmp_path: Path, encode_video: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set about a video of a minute, on pages of few pictures."""
    monkeypatch.setattr(pictures, "MAX_EVEN_FRAMES", 8)
    times_ms = [512 + 500 * i for i in range(2 * NUM_SECONDS)]
    how = {"num_frames": len(times_ms), "times_ms": times_ms, "options": {"bf": "0"}}
    encode_video(tmp_path / "long.mkv", **how)
    write_jsonl(tmp_path / "records.jsonl", [record(0.512 + s, 1.512 + s) for s in range(20, 30)])
    return tmp_path


def data_of(page: Path) -> dict[str, Any]:
    _, _, rest = page.read_text().partition('id="data">')
    return json.loads(rest.partition("</script>")[0])


def test_a_page_of_a_long_video_shows_every_label_and_says_what_it_leaves_out(long_set, tmp_path):
    assert main(["view", str(long_set), "--out", str(tmp_path / "pages")]) == 0
    for number in range(1, 11):
        page = tmp_path / "pages" / f"{number:05d}.html"
        data = data_of(page)
        (labelled,) = [data["source_idx"][frame["sample_idx"]] for frame in data["chosen"]]
        assert labelled == 2 * (19 + number)
        assert 8 <= len(data["source_idx"]) <= 9
        assert "Of the video&#x27;s 60 seconds this page shows 8, evenly spread" in page.read_text()
        assert record_in(page.read_text())["spans"] == data["record"]["spans"]


def test_a_page_that_shows_every_second_has_no_note(long_set, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_EVEN_FRAMES", 60)
    assert main(["view", str(long_set), "--out", str(tmp_path / "pages")]) == 0
    page = tmp_path / "pages" / "00001.html"
    assert data_of(page)["source_idx"] == list(range(0, 2 * NUM_SECONDS, 2))
    assert "evenly spread" not in page.read_text()


def test_all_that_the_check_saw_is_on_the_page_of_a_thinned_video(
    annotated_set, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "MAX_EVEN_FRAMES", 2)
    root = annotated_set()
    assert main(["view", str(root), "--out", str(tmp_path / "pages"), "--limit", "0"]) == 0
    found = list(read_jsonl(root / "annotations.jsonl", Annotation))
    assert any(frame.relevant is False for annotation in found for frame in annotation.frames)
    for number, annotation in enumerate(found, start=1):
        data = data_of(tmp_path / "pages" / f"{number:05d}.html")
        chosen = [data["source_idx"][frame["sample_idx"]] for frame in data["chosen"]]
        refused = [data["source_idx"][place] for place in data["dismissed"]]
        is_label = {f.source_idx: f.relevant is not False for f in annotation.frames}
        assert chosen == [idx for idx, yes in is_label.items() if yes]
        assert refused == [idx for idx, yes in is_label.items() if not yes]
        assert {0, 68} <= set(data["source_idx"])


def test_pages_of_one_video_show_their_own_labels_and_share_a_pass(long_set):
    samples = [Sample(record=record(s + 0.512, s + 1.512)) for s in (20, 41)]
    one, other = take_pictures(long_set / "long.mkv", samples)
    assert set(one.thumbnails.source_idx) ^ set(other.thumbnails.source_idx) == {40, 82}
    np.testing.assert_array_equal(one.thumbnails.pick([0]), other.thumbnails.pick([0]))


def test_a_span_between_two_seconds_shows_the_frame_that_it_holds():
    times_s = np.arange(100) / 10
    every = first_of_seconds(times_s)
    assert every.tolist() == list(range(0, 100, 10))
    wanted = frames_to_show(Sample(record=record(4.25, 4.45)), times_s, every)
    assert wanted.tolist() == [43]
    assert frames_to_show(Sample(record=record(4.25, 6.5)), times_s, every).tolist() == [50, 60]
    assert frames_to_show(Sample(record=record(40.0, 41.0)), times_s, every).tolist() == []


def test_seconds_without_a_frame_cost_nothing():
    times_s = np.array([0.512, 1.512, 1.9, 4e9])
    assert first_of_seconds(times_s).tolist() == [0, 1, 3]


def test_thinning_keeps_both_ends():
    assert thin(np.arange(100), 4).tolist() == [0, 33, 66, 99]
    assert thin(np.arange(4), 4).tolist() == [0, 1, 2, 3]
