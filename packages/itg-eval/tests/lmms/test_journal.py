import json

import pytest
from itg_data.errors import ItgError
from itg_eval.lmms.journal import Journal, count_answers

QUESTIONS = [("videomme", "test", n, "prompt", {"max_new_tokens": 16}) for n in range(4)]


def test_answers_are_found_again_by_every_process(tmp_path):
    first = Journal(tmp_path, 0, ["host", "frames"])
    keys = first.keys_of(QUESTIONS)
    first.add(keys[0], "A")
    Journal(tmp_path, 1, ["host", "frames"]).add(keys[1], "B")
    later = Journal(tmp_path, 1, ["host", "frames"])
    assert [later.find(key) for key in keys] == ["A", "B", None, None]
    assert count_answers(tmp_path) == 2


def test_an_answer_depends_on_all_that_could_change_it(tmp_path):
    keys = set(Journal(tmp_path, 0, ["host", "frames"]).keys_of(QUESTIONS))
    keys |= set(Journal(tmp_path, 0, ["host", "other frames"]).keys_of(QUESTIONS))
    changed = [(*question[:4], {"max_new_tokens": 32}) for question in QUESTIONS]
    keys |= set(Journal(tmp_path, 0, ["host", "frames"]).keys_of(changed))
    assert len(keys) == 12


def test_a_question_asked_several_times_has_an_answer_each_time(tmp_path):
    journal = Journal(tmp_path, 0, ["host"])
    assert len(set(journal.keys_of([QUESTIONS[0]] * 3))) == 3


def test_hostile_answers_come_back_as_they_were(tmp_path):
    answers = ["", "a\nb\r\u2028c", "\ud800 half a character", '{"key": "x"}\x00', "\x85"]
    journal = Journal(tmp_path, 0, [])
    for number, answer in enumerate(answers):
        journal.add(str(number), answer)
    later = Journal(tmp_path, 0, [])
    assert [later.find(str(number)) for number in range(len(answers))] == answers


def test_lines_that_are_no_answers_are_passed_over_and_not_written_onto(tmp_path):
    path = tmp_path / "answers-000.jsonl"
    path.write_bytes(
        b'{"key": 1, "answer": "A"}\n[]\n\xff\n{"key": "a", "answer": "A"}\n{"key": "b"'
    )
    journal = Journal(tmp_path, 0, [])
    journal.add("c", "C")
    later = Journal(tmp_path, 0, [])
    assert [later.find(key) for key in "abc"] == ["A", None, "C"]
    assert json.loads(path.read_bytes().splitlines()[-1]) == {"key": "c", "answer": "C"}


FAILED = "[LMMS_EVAL_REQUEST_FAILED after 1 retries] Connection error."


def test_a_request_that_failed_is_no_answer_not_even_one_written_down_before(tmp_path):
    journal = Journal(tmp_path, 0, [])
    journal.add("a", FAILED)
    assert count_answers(tmp_path) == 0
    assert journal.find("a") is None
    (tmp_path / "answers-001.jsonl").write_text(json.dumps({"key": "a", "answer": FAILED}) + "\n")
    assert Journal(tmp_path, 0, []).find("a") is None


def test_a_full_disk_is_named_with_the_file(tmp_path):
    journal = Journal(tmp_path, 0, [])
    (tmp_path / "answers-000.jsonl").symlink_to("/dev/full")
    with pytest.raises(ItgError, match=r"answers-000\.jsonl: No space left"):
        journal.add("a", "A")
