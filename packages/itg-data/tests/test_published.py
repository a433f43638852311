import gc
import json
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import itg_data.published as published
import pytest
from itg_data.annotate.records import Annotation, LabelledFrame, TokenCount
from itg_data.errors import RecordError
from itg_data.published import read_published, write_published
from itg_data.records import TimeSpan


def entry(number: int = 0, **change: Any) -> dict[str, Any]:
    return {
        "id": number,
        "video": "LLaVA-Video-178K/1_2_m_youtube_v0_1/a b.mp4",
        "question": "<image>\nWhat falls?\nA. a cup\nB. a lamp",
        "answer": "A",
        "frame_num": [15, 16, 18, 50, 52, 54],
        "clip_num": [3, 10],
        "motion": "No",
        "existence": "No",
    } | change


def write(path: Path, entries: list[Any], **how: Any) -> Path:
    path.write_text(json.dumps(entries, **how))
    return path


def spans(*pairs: tuple[float, float]) -> tuple[TimeSpan, ...]:
    return tuple(TimeSpan(start_s=start, end_s=end) for start, end in pairs)


def test_labels_are_the_seconds_of_frame_num(tmp_path):
    (record,) = read_published(write(tmp_path / "x.json", [entry(7)]), split="train")
    assert record.spans == spans((15, 17), (18, 19), (50, 51), (52, 53), (54, 55))
    assert (record.id, record.answer, record.split) == ("7", "A", "train")
    assert record.question == "What falls?\nA. a cup\nB. a lamp"
    assert record.question_type == "semantic"


def test_the_references_reading_takes_clip_numbers_for_seconds(tmp_path):
    path = write(tmp_path / "x.json", [entry()])
    (record,) = read_published(path, labels="clip_num_as_seconds")
    assert record.spans == spans((3, 4), (10, 11))
    with pytest.raises(ValueError, match="labels must be frame_num or clip_num_as_seconds"):
        list(read_published(path, labels="clips"))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("flags", "question_type"),
    [
        ({"motion": "Yes", "existence": "Yes"}, "motion"),
        ({"motion": "Yes", "existence": "No"}, "semantic_motion"),
        ({"motion": "No", "existence": "Yes"}, "no_clue"),
    ],
)
def test_the_two_flags_are_the_question_type(flags, question_type, tmp_path):
    (record,) = read_published(write(tmp_path / "x.json", [entry(**flags)]))
    assert record.question_type == question_type


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 50, 1 << 20])
def test_the_list_is_read_alike_however_its_pieces_fall(chunk, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_CHUNK_CHARACTERS", chunk)
    entries = [entry(i, question=f'Was heißt "}}], {i}"?\u2028 \\') for i in range(20)]
    path = write(tmp_path / "x.json", entries, indent=indent)
    assert [record.id for record in read_published(path)] == [str(i) for i in range(20)]
    assert list(read_published(write(tmp_path / "none.json", []))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id must be a number or a string, got None"),
        ({"video": "../x.mp4"}, "video must be a relative path"),
        ({"video": 3}, "video must be a string, got 3"),
        ({"question": "<image>\n"}, "question must not be blank"),
        ({"frame_num": []}, "frame_num must be a list of at least one number"),
        ({"frame_num": "None"}, "frame_num must be a list of at least one number"),
        ({"frame_num": [1, -2]}, "frame_num must hold whole numbers >= 0, got -2"),
        ({"frame_num": [True]}, "frame_num must hold whole numbers >= 0, got True"),
        ({"frame_num": [10**400]}, "frame_num must hold whole numbers below"),
        ({"itg_start_s": "0"}, "itg_start_s must be a number of seconds, got '0'"),
        ({"itg_start_s": 10**400}, "itg_start_s must be a number of seconds, got 1000"),
        ({"id": "\ud800"}, "id holds half a character at place 0"),
        ({"video": "n\udcf6.mp4"}, "video holds half a character at place 1"),
        ({"question": "half \ud800"}, "question holds half a character at place 5"),
        ({"answer": "\udfff"}, "answer holds half a character at place 0"),
        ({"motion": "no"}, "motion must be Yes or No, got 'no'"),
    ],
)
def test_a_bad_record_is_named_by_place_and_field(change, message, tmp_path):
    path = write(tmp_path / "x.json", [entry(0), entry(1, **change), entry(2)])
    with pytest.raises(RecordError) as complaint:
        list(read_published(path))
    assert str(complaint.value).startswith(f"{path}: record 1: {message}")
    complaints: list[RecordError] = []
    kept = [record.id for record in read_published(path, on_bad=complaints.append)]
    assert kept == ["0", "2"]
    assert [str(c) for c in complaints] == [str(complaint.value)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a JSON list of records"),
        ('{"id": 1}', "must be a JSON list of records"),
        ("[", "record 0: is not JSON, or was cut off"),
        ("[{}, ", "record 0: frame_num must be"),
        ('[{"id": 0, "vid', "record 0: is not JSON, or was cut off"),
        ("[3]", "record 0: must be an object, got int"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[" * 100_000, "record 0: is nested too deeply"),
    ],
)
def test_a_file_that_is_no_whole_list_is_refused(text, message, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        list(read_published(tmp_path / "x.json"))


@pytest.mark.parametrize("tail", ["", ",", " 3", "] x", ",]"])
def test_a_list_that_does_not_end_as_one_is_refused(tail, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(f"[{json.dumps(entry())}{tail}")
    found = read_published(path)
    assert next(found).id == "0"
    with pytest.raises(RecordError):
        next(found)


def test_a_file_that_is_not_there_or_not_text_is_one_error(tmp_path):
    with pytest.raises(RecordError, match="No such file"):
        list(read_published(tmp_path / "none.json"))
    (tmp_path / "x.json").write_bytes(b'[{"id": "\xff"}]')
    with pytest.raises(RecordError, match="is not UTF-8"):
        list(read_published(tmp_path / "x.json"))


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_CHUNK_CHARACTERS", 1 << 14)
    peaks: list[int] = []
    # the first time only warms up; the interpreter keeps up to 2000 tuples to use them again, and
    # lets go of them when it collects garbage: both others are long enough to fill that store anew
    for num_entries in (500, 4000, 12000):
        path = write(tmp_path / "x.json", [entry(i) for i in range(num_entries)])
        gc.collect()
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_published(path)) == num_entries
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


def annotation(number: int, **change: Any) -> Annotation:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "video": "a.mp4",
        "question": "What falls?",
        "answer": "A cup",
        "duration_s": 18.5,
        "clip_s": 5,
        "cues": ("cup",),
        "captions": ("A table.", "A cup falls.", "Nothing.", "A lamp."),
        "explanation": "Clip 1 shows it.",
        "clips": (1, 3),
        "question_type": "semantic",
        "candidate_s": (5, 6, 7, 8, 9, 15, 16, 17, 18),
        "frames": (
            LabelledFrame(second=5, source_idx=125, relevant=True),
            LabelledFrame(second=8, source_idx=200, relevant=False),
            LabelledFrame(second=18, source_idx=450, relevant=True),
        ),
        "model": "m",
        "seed": 0,
        "temperature": 0.0,
        "features": "f",
        "prompts": (),
        "tokens": TokenCount(num_calls=1, prompt_tokens=1, completion_tokens=1),
    }
    return Annotation(**(fields | change))


def test_what_is_exported_comes_back_with_the_same_labels(tmp_path):
    made = [
        annotation(0),
        annotation(1, question_type="motion"),
        annotation(2, question_type="semantic_motion", question='"\u00e9"\n'),
        annotation(3, question_type="no_clue", clips=(), candidate_s=tuple(range(19))),
    ]
    path = tmp_path / "video_itg_data.json"
    assert write_published(path, iter(made)) == 4
    assert json.loads(path.read_text())[0] == {
        "id": 0,
        "video": "a.mp4",
        "question": "What falls?",
        "answer": "A cup",
        "frame_num": [5, 18],
        "clip_num": [1, 3],
        "motion": "No",
        "existence": "No",
    }
    assert json.loads(path.read_text())[3]["clip_num"] == [0, 1, 2, 3]
    for record, original in zip(read_published(path), made, strict=True):
        assert record.question == original.question.strip()
        assert record.question_type == original.question_type
        # the format does not know how long the video is, so its last second ends after it
        assert record.spans[0] == original.to_grounding().spans[0]
        assert record.spans[-1].start_s == original.to_grounding().spans[-1].start_s
    assert write_published(path, []) == 0
    assert list(read_published(path)) == []


@pytest.mark.parametrize("start_s", [0.0, 0.08, 95443.717])
def test_labels_stay_on_the_clock_of_a_video_that_does_not_start_at_0(start_s, tmp_path):
    made, path = annotation(0, start_s=start_s), tmp_path / "video_itg_data.json"
    write_published(path, [made])
    (record,) = read_published(path)
    assert record.spans[0] == made.to_grounding().spans[0]
    assert record.spans[0].start_s == start_s + 5
    assert ("itg_start_s" in path.read_text()) == (start_s > 0)


def test_random_damage_is_an_error_and_nothing_else(tmp_path):
    good = json.dumps([entry(i) for i in range(3)])
    path, rng = tmp_path / "x.json", random.Random(0)
    complaints: list[str] = []
    for _ in range(200):
        at = rng.randrange(len(good))
        path.write_text(good[:at] + rng.choice(["", '"', "}", "]", "9", "\\"]) + good[at + 1 :])
        with suppress(RecordError):
            list(read_published(path, on_bad=lambda error: complaints.append(str(error))))
    assert complaints
    assert all(complaint.startswith(f"{path}: record ") for complaint in complaints)
