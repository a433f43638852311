import dataclasses
import json

import numpy as np
import pytest
from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl
from itg_eval.cli import main
from itg_eval.records import Document, DocumentScores, Selections
from itg_eval.reference import Tally, format_result, join_documents, read_results
from itg_eval.selecting import select_document
from itg_model.policies import select_frames


def load_as_the_host_models_do(path) -> dict[int, list[int]]:
    """The loader of the reference's host models, from the description of what it does."""
    frames: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            doc_id, index = int(row["doc_id"]), row["index"]
            if not isinstance(index, list):
                continue
            numbers = [int(i) for i in index]
        except (ValueError, KeyError, TypeError):
            continue
        if doc_id not in frames:
            frames[doc_id] = numbers
    return frames


def pick_as_the_host_models_do(index: list[int], k: int) -> list[int]:
    return sorted(index[:k])


@pytest.fixture
def one_video(documents) -> list[Document]:
    """Documents 0, 3 and 6 are about the same 24 frames."""
    return [d for d in documents if d.video == documents[0].video]


def write_rows(path, rows) -> None:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def row(doc_id=0, index=(8, 0, 16, 4), **fields):
    logits = [round(0.9 - 0.1 * i, 2) for i in range(len(index))]
    base = {"index": list(index), "logits": logits, "num_frames": 1, "contexts": "prompt"}
    return base | {"video_path": "/far/away/0.mp4", "doc_id": doc_id} | fields


def test_the_host_models_take_the_frames_that_top_k_takes(
    documents_file, documents, grounder_dir, tmp_path
):
    arguments = ["score", "--documents", str(documents_file), "--model", str(grounder_dir)]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 0
    loaded = load_as_the_host_models_do(tmp_path / "run" / "results" / "toy.jsonl")
    scored = list(read_jsonl(tmp_path / "run" / "scores.jsonl", DocumentScores))
    assert set(loaded) == {d.doc_id for d in documents}
    for k in (1, 3, 5, 99):
        for scores in scored:
            ours = select_document(scores, "top-k", k, {}).source_idx
            assert pick_as_the_host_models_do(loaded[scores.doc_id], k) == list(ours)


def test_a_line_has_all_fields_of_the_reference(documents_file, grounder_dir, tmp_path):
    arguments = ["score", "--documents", str(documents_file), "--model", str(grounder_dir)]
    main([*arguments, "--output", str(tmp_path), "--device", "cpu", "--limit", "1"])
    (scores,) = read_jsonl(tmp_path / "scores.jsonl", DocumentScores)
    line = json.loads((tmp_path / "results" / "toy.jsonl").read_text())
    order = np.argsort(-np.array(scores.scored.scores), kind="stable")
    assert line == {
        "index": [scores.scored.source_idx[i] for i in order],
        "logits": [round(scores.scored.scores[i], 2) for i in order],
        "num_frames": 6,
        "contexts": scores.scored.question,
        "video_path": scores.scored.video,
        "doc_id": 0,
    }


def test_what_we_write_we_read(documents_file, documents, grounder_dir, tmp_path, capsys):
    arguments = ["score", "--documents", str(documents_file), "--model", str(grounder_dir)]
    main([*arguments, "--output", str(tmp_path / "run"), "--device", "cpu"])
    results = tmp_path / "run" / "results" / "toy.jsonl"
    back = tmp_path / "back.jsonl"
    arguments = ["import-results", str(results), "--documents", str(documents_file)]
    assert main([*arguments, "--output", str(back), "--model", "ours"]) == 0
    ours = list(read_jsonl(tmp_path / "run" / "scores.jsonl", DocumentScores))
    for left, right in zip(ours, read_jsonl(back, DocumentScores), strict=True):
        assert right.key == left.key
        assert right.scored.source_idx == left.scored.source_idx
        assert right.scored.time_s == left.scored.time_s
        assert right.fps == left.fps
        np.testing.assert_allclose(right.scored.scores, left.scored.scores, atol=0.0051)
        for k in range(1, 7):
            chosen = select_frames(right.scored.scores, k).tolist()
            assert chosen == select_frames(left.scored.scores, k).tolist()


def test_their_file_is_read_as_their_loaders_read_it(one_video, tmp_path):
    path = tmp_path / "results.jsonl"
    rows = [
        row(0, (8, 0, 16, 4)),
        row(0, (1, 2, 3)),  # a rerun appended: the first counts
        "{not json",
        "",
        row(3, (5, 7, 9), logits=[0.01, 0.01, 0.01]),  # ties of rounding: the order counts
        row("6", (20, 12, 12, 4)),  # text and a repeat
        {"doc_id": 7, "index": "1,2"},
        {"index": [1]},
        "[1, 2]",
        row(99),
    ]
    write_rows(path, rows)
    loaded, tally = load_as_the_host_models_do(path), Tally()
    scores = list(join_documents(read_results(path, tally), one_video, "theirs", tally))
    assert [s.doc_id for s in scores] == [0, 3, 6]
    for s in scores:
        distinct = list(dict.fromkeys(loaded[s.doc_id]))
        for k in range(1, len(distinct) + 1):
            chosen = select_document(s, "top-k", k, {})
            assert list(chosen.source_idx) == pick_as_the_host_models_do(distinct, k)
        assert s.scored.time_s == tuple(i / 4 for i in s.scored.source_idx)
    assert len(tally.unreadable) == 4
    assert tally.unreadable[0].startswith("line 3: ")
    assert (tally.repeated, tally.unknown, tally.out_of_range) == (1, 1, 0)


def test_a_line_that_names_no_video_is_of_its_questions(one_video, tmp_path):
    unnamed = row(0)
    del unnamed["video_path"]
    write_rows(tmp_path / "r.jsonl", [unnamed, row(3, video_path="other.mp4")])
    tally = Tally()
    found = join_documents(read_results(tmp_path / "r.jsonl", tally), one_video, "m", tally)
    assert [scores.doc_id for scores in found] == [0]
    assert tally.other_video == ["3: other.mp4"]


@pytest.mark.parametrize(
    "logits",
    [None, "high", [0.5], [0.1, 0.5, 0.2], [0.5, float("nan"), 0.2], [True, True, True]],
    ids=str,
)
def test_where_the_scores_contradict_the_order_the_order_counts(logits, one_video, tmp_path):
    write_rows(tmp_path / "r.jsonl", [row(0, (9, 2, 5), logits=logits)])
    tally = Tally()
    results = read_results(tmp_path / "r.jsonl", tally)
    (scores,) = join_documents(results, one_video, "theirs", tally)
    assert [select_document(scores, "top-k", k, {}).source_idx for k in (1, 2, 3)] == [
        (9,),
        (2, 9),
        (2, 5, 9),
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"doc_id": 0, "index": []}',
        '{"doc_id": -1, "index": [1]}',
        '{"doc_id": true, "index": [1]}',
        '{"doc_id": 0, "index": [1, null]}',
        '{"doc_id": 0, "index": [1e400]}',
        '{"doc_id": 0, "index": [-3]}',
        '{"doc_id": 1' + "0" * 5000 + ', "index": [1]}',
        "[" * 100_000,
        "\x00",
    ],
    ids=lambda line: line[:30],
)
def test_a_hostile_line_is_skipped_and_counted(line, one_video, tmp_path):
    write_rows(tmp_path / "r.jsonl", [line, row(0)])
    tally = Tally()
    assert list(read_results(tmp_path / "r.jsonl", tally)) == [0]
    assert len(tally.unreadable) == 1


def test_frames_beyond_the_end_are_left_out(one_video, tmp_path):
    write_rows(tmp_path / "r.jsonl", [row(0, (8, 24, 4)), row(3, (24, 25))])
    tally = Tally()
    results = read_results(tmp_path / "r.jsonl", tally)
    (scores,) = join_documents(results, one_video, "theirs", tally)
    assert scores.scored.source_idx == (4, 8)
    assert tally.out_of_range == 3
    assert "has none of the frames listed" in tally.bad_videos[0]


def test_a_line_about_another_video_is_refused(one_video, tmp_path, capsys):
    write_rows(tmp_path / "r.jsonl", [row(0, video_path="/far/away/other.mp4")])
    tally = Tally()
    results = read_results(tmp_path / "r.jsonl", tally)
    assert list(join_documents(results, one_video, "theirs", tally)) == []
    assert tally.other_video == ["0: /far/away/other.mp4"]


def test_one_file_is_of_one_task(one_video):
    other = dataclasses.replace(one_video[0], task="other")
    with pytest.raises(RecordError, match="here are 2: other/test, toy/test"):
        list(join_documents({}, [one_video[0], other], "theirs", Tally()))


def test_the_command_says_what_it_left_out(documents_file, tmp_path, capsys):
    write_rows(tmp_path / "r.jsonl", [row(0), row(0), "{", row(3, (1, 99))])
    arguments = ["import-results", str(tmp_path / "r.jsonl"), "--documents", str(documents_file)]
    assert main([*arguments, "--output", str(tmp_path / "s.jsonl")]) == 1
    err = capsys.readouterr().err
    assert "took over the scores of 2 of 9 questions" in err
    assert "1 lines cannot be read, such as line 3: " in err
    assert "1 lines repeat a number" in err
    assert "1 frames are beyond the end" in err
    assert (
        main(["select", "--scores", str(tmp_path / "s.jsonl"), "--output", str(tmp_path / "c")])
        == 0
    )
    assert len(Selections.load(tmp_path / "c")) == 2


def test_half_a_character_does_not_get_into_our_records(one_video, tmp_path):
    write_rows(tmp_path / "r.jsonl", [row(0, contexts="\ud800")])
    tally = Tally()
    results = read_results(tmp_path / "r.jsonl", tally)
    (scores,) = join_documents(results, one_video, "theirs", tally)
    assert format_result(scores)
