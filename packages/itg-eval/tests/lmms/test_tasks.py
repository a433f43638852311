import pytest
from itg_data.errors import ItgError
from itg_eval.lmms.documents import document_of, video_path
from itg_eval.lmms.tasks import facts_of, read_correctness

# as `process_results` of lmms-eval 0.7.3 returns them, right and wrong
SAMPLES = {
    "videomme": (
        "videomme_perception_score",
        {"pred_answer": "B", "answer": "B", "score": 1.0, "duration": "short"},
        {"pred_answer": "", "answer": "B", "score": 0.0, "duration": "short"},
    ),
    "mlvu_dev": (
        "mlvu_percetion_score",
        {"task_type": "count", "pred_answer": "A", "answer": "A"},
        {"task_type": "count", "pred_answer": "", "answer": "A"},
    ),
    "longvideobench_val_v": (
        "lvb_acc",
        {"id": "x", "duration_group": 15, "answer": "C", "parsed_pred": "C"},
        {"id": "x", "duration_group": 15, "answer": "C", "parsed_pred": "D"},
    ),
    "cgbench": ("cgbench_accuracy", {"score": 1.0}, {"score": 0.0}),
    "egoschema_subset": (
        "score",
        {"pred": 3, "ground_truth": "3"},
        {"pred": -1, "ground_truth": "3"},
    ),
    "nextqa_mc_test": ("exact_match", True, False),
    "mvbench_action_count": ("mvbench_accuracy", {"score": 1}, {"score": 0}),
    "itg_scripted": ("itg_scripted_acc", 1.0, 0.0),
}


@pytest.mark.parametrize("task", SAMPLES)
def test_right_is_told_from_wrong(task):
    metric, right, wrong = SAMPLES[task]
    assert read_correctness(task, {"doc_id": 0, metric: right}) is True
    assert read_correctness(task, {"doc_id": 0, metric: wrong}) is False


def test_a_sample_that_lacks_the_metric_names_its_document():
    with pytest.raises(ItgError, match="videomme: document 7 has no readable 'videomme_percep"):
        read_correctness("videomme", {"doc_id": 7})
    with pytest.raises(ItgError, match="document 7"):
        read_correctness("cgbench", {"doc_id": 7, "cgbench_accuracy": None})


@pytest.mark.parametrize("task", ["egoschema", "no_such_task"])
def test_what_cannot_be_judged_is_refused_with_what_to_do(task):
    with pytest.raises(ItgError, match=r"run egoschema_subset|TASKS"):
        read_correctness(task, {"doc_id": 0, "submission": {}})


def test_members_of_a_family_are_known_and_namesakes_are_not():
    assert facts_of("mvbench_state_change") is facts_of("mvbench_action_count")
    assert facts_of("mvbenchmark") is None
    assert facts_of("videomme_long") is facts_of("videomme")


@pytest.mark.parametrize(
    "task",
    [
        "videomme_v2",
        "videomme_video_only_abcd",
        "videomme_convert_mcq_oe",
        "videomme_number_option",
        "egoschema_subset_mcppl",
        "longvideobench_val_v_other",
    ],
)
def test_a_task_that_is_only_named_alike_is_not_judged_by_anothers_rules(task):
    assert facts_of(task) is None


@pytest.mark.parametrize("value", [float("nan"), 0.5, -1, 2, "1", None, [1]])
@pytest.mark.parametrize("task", ["itg_scripted", "nextqa_mc_test", "videomme", "cgbench"])
def test_a_metric_that_is_neither_0_nor_1_is_neither_right_nor_wrong(task, value):
    metric = facts_of(task).metric
    result = {"score": value} if task in ("videomme", "cgbench") else value
    with pytest.raises(ItgError, match=f"{task}: document 7 has no readable"):
        read_correctness(task, {"doc_id": 7, metric: result})


@pytest.mark.parametrize(
    ("task", "row", "group"),
    [
        ("videomme", {"duration": "medium"}, "medium"),
        ("longvideobench_val_v", {"duration_group": 3600}, "3600 s"),
        ("mlvu_dev", {"task_type": "count"}, None),
    ],
)
def test_duration_groups_are_the_benchmarks_own(task, row, group):
    document = document_of((task, "test", 0), {"question": "Why?", **row}, "a.mp4")
    assert document.duration_group == group


@pytest.mark.parametrize("question", [None, "", "  \n", 7])
def test_a_row_without_a_question_is_refused_by_name(question):
    with pytest.raises(ItgError, match="videomme/test/3: the row has no field 'question'"):
        document_of(("videomme", "test", 3), {"question": question, "duration": "short"}, "a.mp4")


@pytest.mark.parametrize(
    ("visual", "path"),
    [
        ("/v/a.mp4", "/v/a.mp4"),
        ("/v/A.MKV", "/v/A.MKV"),
        *[(f"/v/a{suffix}", f"/v/a{suffix}") for suffix in (".wmv", ".3gp", ".ogv")],
        ({"type": "video", "url": "/v/a.webm"}, "/v/a.webm"),
        ({"type": "video", "path": "/v/a.avi"}, "/v/a.avi"),
        # of a part of a video nothing is known: scores are of the whole
        ({"type": "video", "url": "/v/a.mp4", "video_start": 2.0}, None),
        ({"type": "video", "url": "/v/a.mp4", "start_time": 2.0}, None),
        ({"type": "video", "url": ["not a path"]}, None),
        ("/v/a.jpg", None),
        ("/v/folder", None),
        (b"/v/a.mp4", None),
        (None, None),
    ],
)
def test_only_whole_video_files_are_taken_for_videos(visual, path):
    assert video_path(visual) == path
