"""The public benchmarks by lmms-eval's own definitions, over rows of their shape made here.

The real rows and videos are gated or large; what is tested is all between them and our table.
"""

import json
import logging
import shutil
from pathlib import Path

import pytest
from itg_data.errors import ItgError
from itg_data.jsonl import write_jsonl
from itg_eval.lmms.documents import load_documents
from itg_eval.lmms.tasks import read_correctness
from itg_eval.records import DocumentSelection

pytestmark = [
    pytest.mark.slow,
    # compiling lmms-eval's mvbench for the first time
    pytest.mark.filterwarnings("ignore:.*invalid escape sequence"),
]

OPTIONS = ["a red one", "a green one", "a blue one", "none", "all"]
LETTERED = [f"{letter}. {option}" for letter, option in zip("ABCDE", OPTIONS, strict=True)]
VIDEOMME = {
    "videoID": "v",
    "question_id": "001-1",
    "question": "Which one?",
    "options": LETTERED[:4],
    "domain": "Knowledge",
    "sub_category": "Geography",
    "task_type": "Counting Problem",
}
MLVU = {"video_name": "v.mp4", "question": "Which one?\n(A) red", "task_type": "plotQA"}
LVB = {
    "id": "x",
    "video_path": "v.mp4",
    "question": "Which one?",
    **{f"option{n}": option for n, option in enumerate(OPTIONS)},
    "question_category": "S2E",
    "duration": 12.0,
}
CGBENCH = {
    "video_uid": "v",
    "qid": 7,
    "question": "Which one?",
    "choices": OPTIONS,
    "duration": 1800.0,
    "domain": "Life",
    "sub_category": "Food",
}
EGOSCHEMA = {"video_idx": "v", "question": "Which one?", "option": LETTERED}
NEXTQA = {"video": "v", "question": "which one", **{f"a{n}": o for n, o in enumerate(OPTIONS)}}
MVBENCH = {"video": "v.mp4", "question": "Which one?", "candidates": OPTIONS}

# task, its yaml, split, where the video lies under $HF_HOME, group, rows answered by C and by A
BENCHMARKS = [
    (
        "videomme",
        "videomme/videomme.yaml",
        "test",
        "videomme/data/v.mp4",
        "medium",
        [VIDEOMME | {"duration": "medium", "answer": answer} for answer in "CA"],
    ),
    (
        "mlvu_dev",
        "mlvu/mlvu_dev.yaml",
        "test",
        "mlvu/v.mp4",
        None,
        [MLVU | {"answer": answer} for answer in "CA"],
    ),
    (
        "mlvu_test",
        "mlvu/mlvu_test.yaml",
        "test",
        "mlvu_test/v.mp4",
        None,
        [MLVU | {"answer": answer} for answer in "CA"],
    ),
    (
        "longvideobench_val_v",
        "longvideobench/longvideobench_val_v.yaml",
        "validation",
        "datasets/longvideobench/videos/v.mp4",
        "15 s",
        [LVB | {"duration_group": 15, "correct_choice": place} for place in (2, 0)],
    ),
    (
        "cgbench",
        "cgbench/cgbench.yaml",
        "train",
        "cg_videos_720p/v.mp4",
        None,
        [CGBENCH | {"right_answer": answer} for answer in "CA"],
    ),
    (
        "egoschema_subset",
        "egoschema/egoschema_subset.yaml",
        "test",
        "egoschema/videos/v.mp4",
        None,
        [EGOSCHEMA | {"answer": answer} for answer in "20"],
    ),
    (
        "nextqa_mc_test",
        "nextqa/nextqa_mc_test.yaml",
        "test",
        "nextqa/NExTVideo/v.mp4",
        None,
        [NEXTQA | {"answer": place} for place in (2, 0)],
    ),
    (
        "mvbench_action_count",
        "mvbench/mvbench_action_count.yaml",
        "train",
        "mvbench_video/perception/videos/v.mp4",
        None,
        [MVBENCH | {"answer": OPTIONS[place]} for place in (2, 0)],
    ),
]
# members of lmms-eval's groups that do not fit: frames in a folder, answers of many words
EPISODIC = "mvbench_episodic_reasoning"
OPEN_ENDED = "nextqa_oe_test"
MISFITS = [
    (EPISODIC, "mvbench/mvbench_episodic_reasoning.yaml", "train", MVBENCH | {"video": "frames"}),
    (OPEN_ENDED, "nextqa/nextqa_oe_test.yaml", "test", NEXTQA | {"answer": "red"}),
]
NAMES = [benchmark[0] for benchmark in BENCHMARKS]
GROUPS = {
    "mvbench_group": [EPISODIC, "mvbench_action_count"],
    "nextqa_group": [OPEN_ENDED, "nextqa_mc_test"],
    "misfit_group": [EPISODIC],
}


@pytest.fixture(scope="module")
def local(task, tmp_path_factory):
    """All benchmarks, in place of lmms-eval's own, with rows and videos on this machine."""
    import lmms_eval.tasks

    builtin = Path(lmms_eval.tasks.__file__).parent
    folder, home = tmp_path_factory.mktemp("tasks"), tmp_path_factory.mktemp("home")

    def define(name, yaml, split, rows):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
        (folder / f"{name}.yaml").write_text(
            f"include: {builtin / yaml}\ntask: {name}\ndataset_path: json\n"
            f"dataset_name: null\ndataset_kwargs:\n  data_files:\n    {split}: {name}.jsonl\n"
        )

    for name, yaml, split, row in MISFITS:
        define(name, yaml, split, [row])
    for group, members in GROUPS.items():
        (folder / f"{group}.yaml").write_text(json.dumps({"group": group, "task": members}))
    for name, yaml, split, video, _, rows in BENCHMARKS:
        define(name, yaml, split, rows)
        (home / video).parent.mkdir(parents=True)
        shutil.copy(task.documents[0].video, home / video)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        # nextqa's functions ask for word lists over the network when they are loaded
        patch.setattr("nltk.download", lambda *args, **kwargs: True)
        patch.setenv("CGBENCH_VIDEO_DIR", str(home / "cg_videos_720p"))
        yield folder, home


@pytest.fixture(scope="module")
def documents(local):
    return load_documents(NAMES, local[0])


def test_documents_know_video_question_prompt_and_group(local, documents):
    assert [document.task for document in documents] == [name for name in NAMES for _ in range(2)]
    for document, (name, _, split, video, group, rows) in zip(
        documents[::2], BENCHMARKS, strict=True
    ):
        assert document.split == split, name
        assert document.video == str(local[1] / video), name
        assert document.question == rows[0]["question"], name
        assert document.duration_group == group, name
        assert rows[0]["question"] in document.context, name


def test_right_and_wrong_answers_go_all_the_way_through_lmms_eval(
    local, documents, probe, tmp_path, task
):
    from lmms_eval.tasks import TaskManager

    selection = tmp_path / "selection.jsonl"
    write_jsonl(
        selection,
        [
            DocumentSelection(
                task=document.task,
                split=document.split,
                doc_id=document.doc_id,
                video=document.video,
                question_sha256=document.question_sha256,
                scorer="none",
                sampling="none",
                policy="uniform",
                top_k=2,
                fps=4.0,
                source_idx=(3 + number, 50),
                time_s=((3 + number) / 4, 12.5),
                scores=(None, None),
            )
            for number, document in enumerate(documents)
        ],
    )
    manager = TaskManager("ERROR", include_path=str(local[0]), include_defaults=False)
    results = task.evaluate(
        "probe",
        selection,
        "frames_as=images",
        tasks=NAMES,
        task_manager=manager,
        # batches hold questions of different tasks
        batch_size=3,
    )
    # the probe always says C, which is right for the first row of each task only
    for name in NAMES:
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        assert [read_correctness(name, sample) for sample in samples] == [True, False], name
    times = [seen.texts[0] for seen in probe.seen]
    assert sorted(times) == sorted(f"<{(3 + n) / 4:.1f} seconds>" for n in range(len(documents)))


def test_a_task_that_would_end_the_program_for_want_of_a_video_is_an_error_with_its_path(local):
    (local[1] / "videomme/data/v.mp4").rename(local[1] / "videomme/data/away.mp4")
    try:
        with pytest.raises(ItgError, match=r"videomme/test/0: SystemExit: video path:.*v\.m"):
            load_documents(["videomme"], local[0])
    finally:
        (local[1] / "videomme/data/away.mp4").rename(local[1] / "videomme/data/v.mp4")


def test_a_limit_takes_the_first_documents_of_each_task(local):
    found = load_documents(NAMES[:2], local[0], limit=1)
    assert [document.key for document in found] == [(name, "test", 0) for name in NAMES[:2]]


def test_a_group_stands_for_its_tasks_without_those_that_do_not_fit_which_are_named(local, caplog):
    with caplog.at_level(logging.WARNING):
        found = load_documents(["mvbench_group", "nextqa_group"], local[0], judged=True)
    tasks = ["mvbench_action_count", "nextqa_mc_test"]
    assert [document.task for document in found] == [task for task in tasks for _ in range(2)]
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert said[0] == f"left out: {EPISODIC}/train/0: needs one video file, has 0"
    assert said[1].startswith(f"left out: {OPEN_ENDED}: no way is known to tell a right answer")
    assert len(said) == 2


def test_open_questions_can_be_scored_though_nobody_judges_their_answers(local):
    found = load_documents(["nextqa_group"], local[0])
    assert [document.task for document in found] == [OPEN_ENDED, *["nextqa_mc_test"] * 2]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([EPISODIC, "mvbench_group"], "needs one video file, has 0"),
        ([OPEN_ENDED], "no way is known to tell a right answer from a wrong one"),
        (["misfit_group"], "misfit_group: no questions that can be used"),
    ],
)
def test_a_task_asked_for_by_name_must_fit_and_so_must_something_of_a_group(names, said, local):
    with pytest.raises(ItgError, match=said):
        load_documents(names, local[0], judged=True)
