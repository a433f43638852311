import dataclasses
import json

import pytest
from itg_data.errors import RecordError
from itg_data.jsonl import write_jsonl
from itg_data.records import FrameScores, GroundingRecord, Provenance, TimeSpan
from itg_eval.cli import main
from itg_eval.frame_report import report_frames
from itg_eval.labels import read_labels
from itg_eval.records import DocumentScores, hash_question

TRUTH = (0, 0, 1, 1, 0, 0, 0, 0, 0, 0)


def make_scores(values, question, video="/data/v/a.mp4", doc_id=0) -> DocumentScores:
    return DocumentScores(
        task="t",
        split="s",
        doc_id=doc_id,
        question_sha256=hash_question(question),
        fps=1.0,
        scored=FrameScores(
            video=video,
            question=f"{question} A. B. C.",
            model="m",
            sampling="s",
            source_idx=tuple(range(len(values))),
            time_s=tuple(map(float, range(len(values)))),
            scores=tuple(map(float, values)),
        ),
    )


def make_record(question, video="v/a.mp4", spans=((2, 4),), kind=None) -> GroundingRecord:
    return GroundingRecord(
        id=question,
        video=video,
        question=question,
        question_type=kind,
        spans=tuple(TimeSpan(start_s=a, end_s=b) for a, b in spans),
        provenance=Provenance(annotator="me"),
    )


@pytest.fixture
def files(tmp_path):
    """Scores of two questions, one found and one missed, and their labels."""
    missed = [1 - t for t in TRUTH]
    rows = [make_scores(TRUTH, "found"), make_scores(missed, "missed", doc_id=1)]
    write_jsonl(tmp_path / "scores.jsonl", rows)
    records = [make_record("found", kind="motion"), make_record("missed", kind="semantic")]
    write_jsonl(tmp_path / "labels.jsonl", records)
    return ["--scores", str(tmp_path / "scores.jsonl"), "--labels", str(tmp_path / "labels.jsonl")]


def test_the_table_has_a_row_for_each_kind_of_question_and_method(files, capsys):
    assert main(["frames", *files, "--top-k", "2"]) == 0
    captured = capsys.readouterr()
    table = [line.split() for line in captured.out.splitlines()]
    assert table[0] == [
        "questions",
        "n",
        "frames",
        "average_precision",
        "span_iou",
        "recall@2",
        "clue_recall@2",
        "rec@iou",
    ]
    assert table[1] == ["motion", "1", "scores", "1.000", "1.000", "1.000", "1.000", "1.000"]
    assert table[2] == ["motion", "1", "uniform", "-", "-", "0.500", "1.000", "-"]
    assert table[5][:3] == ["all", "2", "scores"]
    assert table[5][4:] == ["0.500"] * 4
    assert captured.err == ""


def test_the_values_are_to_be_had_as_json(files, capsys, tmp_path):
    assert main(["frames", *files, "--top-k", "2", "4", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["means"]["all"]["scores"]["recall@4"] == 0.5
    assert report["means"]["motion"]["scores"]["num_questions"] == 1
    assert main(["frames", *files, "--json", str(tmp_path / "x.json")]) == 0
    assert capsys.readouterr().out.startswith("questions")
    assert json.loads((tmp_path / "x.json").read_text())["num_unlabelled"] == 0


def test_a_selection_is_measured_beside(files, capsys, tmp_path):
    chosen = tmp_path / "chosen.jsonl"
    options = ["--policy", "min-gap", "--top-k", "2", "--output", str(chosen)]
    assert main(["select", *files[:2], *options]) == 0
    assert main(["frames", *files, "--selection", str(chosen), "--json", "-"]) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    # of the two relevant neighbours only one
    assert means["motion"]["min-gap"] == {
        "recall@2": 0.5,
        "clue_recall@2": 1.0,
        "num_questions": 1,
    }


def test_a_selection_of_other_scores_is_refused(files, capsys, tmp_path):
    chosen = tmp_path / "chosen.jsonl"
    main(["select", *files[:2], "--top-k", "2", "--output", str(chosen)])
    lines = chosen.read_text().splitlines(keepends=True)
    chosen.write_text(lines[0])
    assert main(["frames", *files, "--selection", str(chosen)]) == 2
    assert "t/s/1 has no selection" in capsys.readouterr().err
    chosen.write_text(lines[0].replace('"source_idx": [2, 3]', '"source_idx": [2, 33]') + lines[1])
    assert main(["frames", *files, "--selection", str(chosen)]) == 2
    assert "frames were chosen that were not scored" in capsys.readouterr().err


def test_what_has_no_partner_is_counted(tmp_path, files, capsys):
    rows = [
        make_scores(TRUTH, "found"),
        make_scores(TRUTH, "unlabelled", doc_id=1),
        make_scores(TRUTH, "sparse", doc_id=2),
    ]
    write_jsonl(tmp_path / "scores.jsonl", rows)
    records = [make_record(q) for q in ("found", "unscored")]
    write_jsonl(tmp_path / "labels.jsonl", [*records, make_record("sparse", spans=((4.2, 4.8),))])
    assert main(["frames", *files]) == 0
    err = capsys.readouterr().err
    assert "1 questions with scores have no label" in err
    assert "1 labels have no scores" in err
    assert "1 questions have no sampled frame in their spans" in err


def test_scores_and_labels_without_a_pair_are_an_error(tmp_path):
    write_jsonl(tmp_path / "labels.jsonl", [make_record("other")])
    labels = read_labels(tmp_path / "labels.jsonl")
    with pytest.raises(RecordError, match="none of the 1 documents with scores has a label"):
        report_frames([make_scores(TRUTH, "found")], labels, [2])


def test_one_question_about_two_videos_of_one_name_is_told_apart_by_their_folders(tmp_path):
    records = [make_record("q", "v/a.mp4"), make_record("q", "w/a.mp4", spans=((6, 8),))]
    write_jsonl(tmp_path / "labels.jsonl", records)
    labels = read_labels(tmp_path / "labels.jsonl")
    for folder, start_s in (("v", 2), ("w", 6)):
        label = labels.find(make_scores(TRUTH, "q", f"/data/{folder}/a.mp4"))
        assert label is not None
        assert label.spans[0].start_s == start_s


def test_a_label_of_a_video_of_the_same_name_in_another_folder_is_not_taken(tmp_path):
    write_jsonl(tmp_path / "labels.jsonl", [make_record("q", "train/7.mp4")])
    labels = read_labels(tmp_path / "labels.jsonl")
    assert labels.find(make_scores(TRUTH, "q", "/d/heldout/7.mp4")) is None
    assert labels.find(make_scores(TRUTH, "q", "/d/train/7.mp4")) is not None
    assert labels.find(make_scores(TRUTH, "q", "/d/train/7.mkv")) is not None


def test_two_labels_of_one_question_are_an_error_and_not_none(tmp_path):
    row = {"video_uid": "a", "question": "q"}
    rows = [row | {"clue_intervals": [[start, start + 1]]} for start in (0, 5)]
    (tmp_path / "cg.json").write_text(json.dumps(rows))
    with pytest.raises(RecordError, match="t/s/0 has 2 labels"):
        read_labels(tmp_path / "cg.json").find(make_scores(TRUTH, "q", "/d/a.mp4"))


def test_a_label_that_two_tasks_meet_in_is_counted_once_and_a_repeated_document_refused(tmp_path):
    write_jsonl(tmp_path / "labels.jsonl", [make_record("q"), make_record("unscored")])
    labels = read_labels(tmp_path / "labels.jsonl")
    rows = [make_scores(TRUTH, "q"), dataclasses.replace(make_scores(TRUTH, "q"), task="t2")]
    report = report_frames(rows, labels, [2])
    assert (report.num_unscored, report.num_unlabelled) == (1, 0)
    with pytest.raises(RecordError, match="t/s/0 is there twice"):
        report_frames([rows[0], rows[0]], labels, [2])


def test_cg_benchs_own_file_is_read(tmp_path, capsys):
    row = {
        "qid": 7,
        "video_uid": "a",
        "question": "found",
        "choices": ["x", "y"],
        "right_answer": "A",
        "clue_intervals": [[2, 4], [9, 9]],
        "sub_category": "Entity Perception",
    }
    (tmp_path / "cgbench_mini.json").write_text(json.dumps([row]))
    write_jsonl(tmp_path / "scores.jsonl", [make_scores(TRUTH, "found")])
    arguments = ["frames", "--scores", str(tmp_path / "scores.jsonl"), "--json", "-"]
    assert main([*arguments, "--labels", str(tmp_path / "cgbench_mini.json")]) == 0
    means = json.loads(capsys.readouterr().out)["means"]
    assert means["Entity Perception"]["scores"]["span_iou"] == 1.0
    assert means["all"]["scores"]["rec@iou"] == 1.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a list of questions"),
        ("[", "is not JSON"),
        ("[1]", "question 0: needs video_uid"),
        ('[{"video_uid": "a", "question": "q", "clue_intervals": [[3, 3]]}]', "question 0"),
        ('[{"video_uid": "a", "question": "q", "clue_intervals": [[4, 3]]}]', "question 0"),
        ('[{"video_uid": "a", "question": "q", "clue_intervals": [[1e999, 3]]}]', "question 0"),
    ],
)
def test_a_broken_file_of_cg_bench_is_refused(content, message, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        read_labels(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "0"], "--top-k must be >= 1"),
        (["--selection", "no.jsonl"], "no.jsonl: No such"),
    ],
)
def test_bad_input_exits_2_with_one_line(options, message, files, capsys):
    assert main(["frames", *files, *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
