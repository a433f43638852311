import dataclasses
import json

import pytest
from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.records import FrameScores, to_json
from itg_eval.records import (
    Document,
    DocumentScores,
    DocumentSelection,
    Selections,
    by_key,
    hash_question,
)

DOCUMENT = Document(
    task="videomme", split="test", doc_id=7, video="/videos/a.mp4", question="Where is the cat?"
)
SCORES = DocumentScores(
    task="videomme",
    split="test",
    doc_id=7,
    question_sha256=DOCUMENT.question_sha256,
    fps=25.0,
    scored=FrameScores(
        video="/videos/a.mp4",
        question="Where is the cat?",
        model="grounder",
        sampling="train-1hz-max512",
        source_idx=(0, 25, 50),
        time_s=(0.0, 1.0, 2.0),
        scores=(0.1, 0.9, 0.5),
    ),
)
SELECTION = DocumentSelection(
    task="videomme",
    split="test",
    doc_id=7,
    video="/videos/a.mp4",
    question_sha256=DOCUMENT.question_sha256,
    scorer="grounder",
    sampling="train-1hz-max512",
    policy="top-k",
    top_k=2,
    fps=25.0,
    source_idx=(25, 50),
    time_s=(1.0, 2.0),
    scores=(0.9, None),
)


@pytest.mark.parametrize("record", [DOCUMENT, SCORES, SELECTION], ids=lambda r: type(r).__name__)
def test_what_is_written_is_read_back(record, tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [record])
    assert list(read_jsonl(tmp_path / "x.jsonl", type(record))) == [record]


def test_selections_are_found_by_document(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [SELECTION])
    selections = Selections.load(tmp_path / "x.jsonl")
    assert selections.find(DOCUMENT) == SELECTION == selections["videomme", "test", 7]
    assert selections.find(dataclasses.replace(DOCUMENT, doc_id=8)) is None
    assert selections.find(dataclasses.replace(DOCUMENT, video="/elsewhere/a.mp4")) == SELECTION


@pytest.mark.parametrize(
    ("change", "message"),
    [({"question": "Where is the dog?"}, "another question"), ({"video": "b.mp4"}, "'b.mp4'")],
)
def test_a_selection_for_something_else_is_refused(change, message):
    with pytest.raises(RecordError, match=message):
        Selections([SELECTION]).find(dataclasses.replace(DOCUMENT, **change))


def test_the_hash_is_of_what_is_said_not_of_how():
    other = dataclasses.replace(SELECTION, doc_id=8)
    assert Selections([SELECTION, other]).sha256 == Selections([other, SELECTION]).sha256
    moved = dataclasses.replace(SELECTION, source_idx=(24, 50))
    assert Selections([SELECTION]).sha256 != Selections([moved]).sha256


def test_a_document_there_twice_is_refused_with_the_file_named(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [SELECTION, SELECTION])
    with pytest.raises(RecordError, match=r"x\.jsonl: videomme/test/7 is there twice"):
        Selections.load(tmp_path / "x.jsonl")
    with pytest.raises(RecordError, match="twice"):
        by_key([DOCUMENT, DOCUMENT])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "../etc"}, "task must be a name"),
        ({"task": ".hidden"}, "task must be a name"),
        ({"doc_id": -1}, "doc_id must be in 0"),
        ({"doc_id": True}, "doc_id must be int"),
        ({"doc_id": "7"}, "doc_id must be int"),
        ({"video": " "}, "video must not be blank"),
        ({"video": "\ud800"}, "video must be valid Unicode"),
        ({"question_sha256": hash_question("x")[:63]}, "question_sha256 must be 64 hex digits"),
        ({"top_k": 1}, r"1\.\.top_k \(1\) frames, got 2"),
        ({"top_k": 0}, r"1\.\.top_k \(0\) frames"),
        ({"source_idx": [], "time_s": [], "scores": []}, r"1\.\.top_k \(2\) frames, got 0"),
        ({"source_idx": [50, 25]}, "ascend"),
        ({"source_idx": [25, 25]}, "ascend"),
        ({"source_idx": [-1, 25]}, "ascend"),
        ({"source_idx": [25, 2**63]}, r"below 2\*\*63"),
        ({"source_idx": [25.0, 50]}, r"source_idx\[0\] must be int"),
        ({"time_s": [2.0, 1.0]}, "time_s must not descend"),
        ({"time_s": [1.0]}, "time_s must be as many as source_idx, 2, got 1"),
        ({"scores": [0.5]}, "scores must be as many"),
        ({"scores": ["0.5", None]}, r"scores\[0\] must be float"),
        ({"fps": 0}, "fps must be finite and > 0"),
        ({"frames": [1]}, "unknown field frames"),
    ],
    ids=str,
)
def test_a_hostile_row_is_refused_with_file_line_and_field(change, message, tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [to_json(dataclasses.replace(SELECTION, doc_id=1)), to_json(SELECTION) | change]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecordError, match=message) as caught:
        Selections.load(path)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("name", ["../x.npy", "/etc/passwd", "a.npy"])
def test_a_file_of_embeddings_cannot_lie_elsewhere(name):
    with pytest.raises(RecordError, match="embeddings must be 64 hex digits"):
        dataclasses.replace(SCORES, embeddings=name, query_embedding=(1.0,))


def test_scores_know_whether_they_answer_a_document():
    assert SCORES.answers(DOCUMENT)
    assert not SCORES.answers(dataclasses.replace(DOCUMENT, question="Where is the dog?"))
    assert not SCORES.answers(dataclasses.replace(DOCUMENT, video="b.mp4"))
