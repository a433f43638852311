import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from itg_data.errors import RecordError
from itg_data.records import (
    FrameScores,
    FrameSelection,
    GroundingRecord,
    Provenance,
    SelectedFrame,
    TimeSpan,
    from_json,
    label_frames,
    seconds_of,
    to_json,
)

SCORES = FrameScores(
    video="v.mp4",
    question="q",
    model="m",
    sampling="train-1hz-max512",
    source_idx=(0, 25, 50),
    time_s=(0.0, 1.0, 2.0),
    scores=(0.1, 0.9, 0.5),
)
SELECTION = FrameSelection(
    video="v.mp4",
    question="q",
    model="m",
    sampling="train-1hz-max512",
    policy="top-k",
    num_sampled=3,
    selected=(
        SelectedFrame(source_idx=25, time_s=1.0, score=0.9, rank=0),
        SelectedFrame(source_idx=50, time_s=2.0, score=0.5, rank=1),
    ),
    scores=(0.1, 0.9, 0.5),
    times_s=(0.0, 1.0, 2.0),
    missing_source_idx=(75,),
)
GROUNDING = GroundingRecord(
    id="1",
    video="a/b.mp4",
    question="q",
    answer="a",
    question_type="motion",
    spans=(TimeSpan(start_s=0.0, end_s=1.5), TimeSpan(start_s=1.5, end_s=2.0)),
    split="train",
    provenance=Provenance(annotator="x", prompt_sha256="00", seed=3),
)
RECORDS = [SCORES, SELECTION, GROUNDING, TimeSpan(start_s=0.0, end_s=1.0)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_json(record):
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_every_field_is_checked(record):
    data = json.loads(json.dumps(to_json(record)))
    for field in dataclasses.fields(record):
        without = {k: v for k, v in data.items() if k != field.name}
        if field.default is dataclasses.MISSING:
            with pytest.raises(RecordError, match=f"missing field {field.name}"):
                from_json(type(record), without)
        else:
            from_json(type(record), without)
        with pytest.raises(RecordError, match=field.name):
            from_json(type(record), {**data, field.name: {"unexpected": True}})
    with pytest.raises(RecordError, match="unknown field extra"):
        from_json(type(record), {**data, "extra": 1})
    with pytest.raises(RecordError, match="schema_version must be 1, got '1'"):
        from_json(type(record), {**data, "schema_version": "1"})


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_records_cannot_be_changed(record):
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)


def test_an_error_inside_a_nested_record_says_where():
    data = json.loads(json.dumps(to_json(GROUNDING)))
    data["spans"][1]["end_s"] = "late"
    with pytest.raises(RecordError, match=r"spans\[1\]\.end_s must be float, got 'late'"):
        from_json(GroundingRecord, data)
    data["spans"][1] = {"start_s": 3, "end_s": 2}
    with pytest.raises(RecordError, match=r"spans\[1\]\..*0 <= start_s < end_s"):
        from_json(GroundingRecord, data)


@pytest.mark.parametrize("value", [True, "1", None, [1.0]])
def test_a_time_is_a_number_and_a_boolean_is_none(value):
    with pytest.raises(RecordError, match="start_s must be float"):
        from_json(TimeSpan, {"schema_version": 1, "start_s": value, "end_s": 9})


def test_an_integer_will_do_as_a_time():
    span = from_json(TimeSpan, {"schema_version": 1, "start_s": 1, "end_s": 2})
    assert isinstance(span.start_s, float)


@pytest.mark.parametrize("data", [None, [], "text", 1])
def test_what_is_no_object_is_no_record(data):
    with pytest.raises(RecordError, match="expected an object"):
        from_json(TimeSpan, data)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(1, 1), (2, 1), (-1, 1), (0, math.inf), (math.nan, 1)]
)
def test_a_span_has_a_length_and_lies_in_the_video(start_s, end_s):
    with pytest.raises(RecordError, match="span"):
        TimeSpan(start_s=start_s, end_s=end_s)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", " "),
        ("video", ""),
        ("video", "/etc/passwd"),
        ("video", "a/../../b.mp4"),
        ("video", "a\\b.mp4"),
        ("question", "\n"),
        ("spans", ()),
        ("spans", (TimeSpan(start_s=1.0, end_s=2.0), TimeSpan(start_s=0.0, end_s=1.0))),
        ("spans", (TimeSpan(start_s=0.0, end_s=2.0), TimeSpan(start_s=1.0, end_s=3.0))),
    ],
)
def test_a_grounding_record_is_checked_when_made(field, value):
    with pytest.raises(RecordError, match=field):
        dataclasses.replace(GROUNDING, **{field: value})


@pytest.mark.parametrize(
    "change",
    [
        {"source_idx": (0, 25)},
        {"time_s": ()},
        {"source_idx": (0, 50, 25)},
        {"source_idx": (0, 25, 25)},
    ],
)
def test_frame_scores_are_as_long_as_each_other_and_in_order(change):
    with pytest.raises(RecordError, match="source_idx"):
        dataclasses.replace(SCORES, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"num_sampled": 4},
        {"scores": (0.1,)},
        {"times_s": (0.0,)},
        {"selected": SELECTION.selected[::-1]},
        {"selected": SELECTION.selected[:1] * 2},
    ],
)
def test_a_selection_is_consistent(change: dict[str, Any]):
    with pytest.raises(RecordError, match=r"num_sampled|selected"):
        dataclasses.replace(SELECTION, **change)


@pytest.mark.parametrize(
    "change", [{"source_idx": -1}, {"rank": -1}, {"score": 1.1}, {"score": math.nan}]
)
def test_a_selected_frame_is_in_range(change):
    with pytest.raises(RecordError, match=next(iter(change))):
        dataclasses.replace(SELECTION.selected[0], **change)


def test_frames_are_labelled_by_half_open_spans():
    spans = (TimeSpan(start_s=1.0, end_s=2.0), TimeSpan(start_s=3.5, end_s=3.6))
    labels = label_frames([0.0, 0.999, 1.0, 1.999, 2.0, 3.5, 3.6], spans)
    np.testing.assert_array_equal(labels, [False, False, True, True, False, True, False])
    assert label_frames([], spans).shape == (0,)


@pytest.mark.parametrize("start_ms", [0, 1, 40, 512, 1400, 4999, 95_443_717])
def test_each_second_of_a_video_labels_its_own_frame_wherever_its_clock_starts(start_ms):
    # as videos tell times, quotients of ticks, and as annotations tell spans, sums of seconds
    times_s = (start_ms + np.arange(180) * 1000) / 1000
    start_s = float(times_s[0])
    for second in range(180):
        span = TimeSpan(start_s=start_s + second, end_s=start_s + (second + 1))
        assert label_frames(times_s, [span]).nonzero()[0].tolist() == [second]
    assert seconds_of(times_s, start_s).tolist() == list(range(180))


def test_spans_that_adjoin_share_no_frame_and_leave_none_out():
    times_s = np.sort(np.random.default_rng(0).uniform(0, 3, 100_000))
    times_s = np.concatenate([times_s, 1 + np.linspace(-2e-4, 2e-4, 1001)])
    ends_s = [0.0, 1.0, 2.5, 4.0]
    spans = [TimeSpan(start_s=a, end_s=b) for a, b in itertools.pairwise(ends_s)]
    held = np.stack([label_frames(times_s, [span]) for span in spans])
    assert (held.sum(axis=0) == 1).all()


def test_a_time_before_the_start_lies_in_a_second_below_zero():
    assert seconds_of([-0.5, 0.0, 0.99], 0.0).tolist() == [-1, 0, 0]
