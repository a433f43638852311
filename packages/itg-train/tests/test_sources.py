import json

import pytest
from itg_data.records import to_json
from itg_train.chat import ChatRecord
from itg_train.config import DataConfig
from itg_train.sources import load_records, split_records


@pytest.mark.parametrize("task", ["grounding", "chat"])
def test_a_record_with_half_a_character_is_left_out_by_name(tmp_path, scripted, caplog, task):
    if task == "chat":
        said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A square."}]
        good, bad = ({"id": i, "video": i, "conversations": said} for i in ("a.mp4", "b.mp4"))
        bad["video"] = "n\udcf6.mp4"
        path = tmp_path / "chat.json"
        path.write_text(json.dumps([good, bad]))
    else:
        good, bad = (to_json(record) for record in scripted[1][:2])
        bad["video"] = "n\udcf6.mp4"
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in (good, bad)))
    found = load_records(DataConfig(root=tmp_path, annotations=path), task)
    assert [record.id for record in found.train] == [good["id"]]
    assert bad["id"] in caplog.messages[0]
    assert r"n\udcf6.mp4" in caplog.messages[0]
    assert "1 of 2 records left out" in caplog.messages[1]


def test_a_question_with_half_a_character_is_left_out_as_well(tmp_path, scripted, caplog):
    good, bad = (to_json(record) for record in scripted[1][:2])
    bad["question"] = "Wh\udcf6?"
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, bad)))
    found = load_records(DataConfig(root=tmp_path, annotations=path), "grounding")
    assert [record.id for record in found.train] == [good["id"]]
    assert "half a character" in caplog.messages[0]


@pytest.mark.parametrize("num_heldout", [1, 2, 3])
def test_conversations_about_nothing_to_see_are_learnt_and_no_video_to_hold_out(num_heldout):
    # by the hash of its name each comes after that of no name at all
    seen = ["", "f.jpg", "", "p.jpg", "", "t.jpg"]
    turns = (("human", "What?"), ("gpt", "A square."))
    records = [ChatRecord(id=str(i), video=video, turns=turns) for i, video in enumerate(seen)]
    train, heldout = split_records(records, num_heldout)
    assert len(heldout) == num_heldout
    assert [record.id for record in train if not record.video] == ["0", "2", "4"]
