import json

import pytest
from itg_data.errors import ItgError
from itg_eval.benchmark.outcomes import read_outcomes
from itg_eval.records import Document

DOCUMENTS = [
    Document(task="itg_scripted", split="test", doc_id=n, video=f"{n}.mp4", question="What?")
    for n in range(3)
]
SUMMARY = {
    "config": {"model_backend": "itg_eval.lmms.wrapper.Shadow (chat)"},
    "throughput": {"avg_itg_seconds": 6.0, "avg_itg_questions": 4.0, "avg_speed": 0.0},
}
SHA = "a" * 64


def write(folder, summary=SUMMARY, samples=None, stem="20261123_000000"):
    """What lmms-eval leaves, in a folder named after the checkpoint."""
    place = folder / "org__model"
    place.mkdir(parents=True, exist_ok=True)
    if samples is None:
        samples = [
            {"doc_id": n, "filtered_resps": ["A"], "itg_scripted_acc": float(n == 1)}
            for n in (2, 0, 1)
        ]
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    (place / f"{stem}_samples_itg_scripted.jsonl").write_text(lines)
    (place / f"{stem}_results.json").write_text(json.dumps(summary))


def test_outcomes_come_in_the_order_of_the_questions_whatever_lmms_evals(tmp_path):
    write(tmp_path)
    outcomes, cost = read_outcomes(tmp_path, DOCUMENTS, SHA)
    assert [(o.doc_id, o.is_correct) for o in outcomes] == [(0, False), (1, True), (2, False)]
    assert cost.seconds_per_question == 1.5
    assert cost.frames_sha == SHA


def test_of_several_results_the_newest_count(tmp_path):
    for hour, right in enumerate((0, 2, 1)):
        samples = [
            {"doc_id": n, "filtered_resps": ["A"], "itg_scripted_acc": float(n == right)}
            for n in range(3)
        ]
        throughput = {"avg_itg_seconds": float(hour), "avg_itg_questions": 3.0}
        stem = f"20261123_{hour:02}0000"
        write(tmp_path, {**SUMMARY, "throughput": throughput}, samples, stem)
    outcomes, cost = read_outcomes(tmp_path, DOCUMENTS, SHA)
    assert [outcome.is_correct for outcome in outcomes] == [False, True, False]
    assert cost.seconds == 2.0


def test_a_document_that_is_there_twice_is_refused(tmp_path):
    samples = [
        {"doc_id": n, "filtered_resps": ["A"], "itg_scripted_acc": 1.0} for n in (0, 1, 2, 1)
    ]
    write(tmp_path, samples=samples)
    with pytest.raises(ItgError, match=r"samples_itg_scripted\.jsonl: document 1 is there twice"):
        read_outcomes(tmp_path, DOCUMENTS, SHA)


def test_nothing_measured_is_said_as_such(tmp_path):
    write(tmp_path, {**SUMMARY, "throughput": None})
    assert read_outcomes(tmp_path, DOCUMENTS, SHA)[1].seconds_per_question is None


def test_no_results_are_no_results_though_lmms_eval_ended_with_zero(tmp_path):
    with pytest.raises(ItgError, match="lmms-eval left no results"):
        read_outcomes(tmp_path, DOCUMENTS, SHA)


def test_a_question_that_was_not_answered_is_named(tmp_path):
    write(tmp_path, samples=[{"doc_id": 0, "filtered_resps": ["A"], "itg_scripted_acc": 1.0}])
    with pytest.raises(ItgError, match="document 1 of itg_scripted was not answered"):
        read_outcomes(tmp_path, DOCUMENTS, SHA)


@pytest.mark.parametrize("backend", ["lmms_eval.models.chat.qwen3_vl.Qwen3_VL (chat)", "", None])
def test_answers_that_did_not_go_through_the_wrapper_do_not_count(backend, tmp_path):
    write(tmp_path, {"config": {"model_backend": backend}})
    with pytest.raises(ItgError, match="not through itg-eval's wrapper"):
        read_outcomes(tmp_path, DOCUMENTS, SHA)


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"doc_id": "0"}', '{"doc_id": 0}', '{"doc_id": 0, "itg_scripted_acc": {}}']
)
def test_hostile_lines_are_refused_or_passed_over_and_never_counted_as_right(line, tmp_path):
    write(tmp_path)
    (path,) = tmp_path.rglob("*_samples_itg_scripted.jsonl")
    path.write_text(line + "\n")
    try:
        outcomes, _ = read_outcomes(tmp_path, DOCUMENTS[:1], SHA)
    except ItgError:
        return
    assert not outcomes[0].is_correct


def test_what_a_host_says_is_kept_whatever_it_is(tmp_path):
    said = ["a\u2028b\x85c", {"not": "text"}, ["<script>"]]
    samples = [
        {"doc_id": n, "filtered_resps": answer, "itg_scripted_acc": 0.0}
        for n, answer in enumerate(said)
    ]
    write(tmp_path, samples=samples)
    outcomes, _ = read_outcomes(tmp_path, DOCUMENTS, SHA)
    assert [outcome.answer for outcome in outcomes] == [
        "a\u2028b\x85c",
        '{"not": "text"}',
        '["<script>"]',
    ]


FAILED = "[LMMS_EVAL_REQUEST_FAILED after 1 retries] Connection error."


@pytest.mark.parametrize("answer", [FAILED, [FAILED], [[FAILED]]], ids=["text", "list", "nested"])
def test_requests_that_failed_are_no_answers_though_a_letter_can_be_read_out_of_them(
    answer, tmp_path
):
    samples = [
        {"doc_id": n, "filtered_resps": "D", "resps": answer if n else "D", "itg_scripted_acc": 1.0}
        for n in range(3)
    ]
    write(tmp_path, samples=samples)
    said = "2 requests failed, the first is itg_scripted/test/1: .*Connection error.*run the same"
    with pytest.raises(ItgError, match=said):
        read_outcomes(tmp_path, DOCUMENTS, SHA)


@pytest.mark.parametrize(
    ("answer", "is_empty"),
    [("", True), ([""], True), ([[" \n"]], True), (["A"], False), ("[x]", False)],
)
def test_an_answer_that_says_nothing_is_known_as_such(answer, is_empty, tmp_path):
    sample = {"doc_id": 0, "filtered_resps": answer, "itg_scripted_acc": 0.0}
    write(tmp_path, samples=[sample])
    ((outcome,), _) = read_outcomes(tmp_path, DOCUMENTS[:1], SHA)
    assert outcome.is_empty is is_empty
