"""What a run does again and what it does not; the commands that it starts are played here."""

import pytest
from itg_data.errors import ItgError, VideoError
from itg_data.files import write_atomic
from itg_data.jsonl import format_record, read_jsonl, write_jsonl
from itg_data.records import FrameScores
from itg_eval.benchmark import run as stages
from itg_eval.benchmark.answers import load_answers
from itg_eval.benchmark.outcomes import Cost, Outcome
from itg_eval.benchmark.plan import ARMS, Host, Plan, RunDir
from itg_eval.records import Document, DocumentScores, Selections
from itg_eval.scores import Failure

# a group of lmms-eval, one task of which does not fit
PLAN = Plan(
    tasks=("mvbench",),
    include_path=None,
    limit=None,
    model="m",
    scores=None,
    rate_hz=1.0,
    max_frames=None,
    policy="top-k",
    params=(),
    top_k=2,
)
DOCUMENTS = [
    Document(task=f"mvbench_{part}", split="train", doc_id=n, video=f"{n}.mp4", question="What?")
    for part in ("action_count", "state_change")
    for n in range(2)
]


def score(document, scores=(0.1, 0.9, 0.5)):
    scored = FrameScores(
        video=document.video,
        question=document.question,
        model="m",
        sampling="s",
        source_idx=(0, 4, 8),
        time_s=(0.0, 1.0, 2.0),
        scores=scores,
    )
    return DocumentScores(
        task=document.task,
        split=document.split,
        doc_id=document.doc_id,
        question_sha256=document.question_sha256,
        fps=4.0,
        scored=scored,
    )


class Played:
    """Plays the commands; videos named in `broken` cannot be read."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        self.broken: set[str] = set()
        self.commands: list[list[str]] = []
        self.arms: list[stages.Arm] = []

    def itg_eval(self, command, num_processes=1, accepted=(0,)) -> None:
        self.commands.append(command)
        if command[0] == "documents":
            write_jsonl(self.run_dir.documents, DOCUMENTS)
            return
        folder = self.run_dir.scoring
        (folder / "shards").mkdir(parents=True, exist_ok=True)
        sound = [score(d) for d in DOCUMENTS if d.video not in self.broken]
        write_jsonl(folder / "shards/scores.rank0of1.jsonl", sound)
        failures = [
            Failure(task=d.task, split=d.split, doc_id=d.doc_id, video=d.video, reason="torn")
            for d in DOCUMENTS
            if d.video in self.broken
        ]
        write_jsonl(folder / "failed.jsonl", failures)
        write_jsonl(folder / "scores.jsonl", sound)

    def run(self, **settings) -> list[str]:
        """Names of the commands that a run starts."""
        self.commands.clear()
        self.arms.clear()
        host = Host(id="qwen3_vl", args="")
        stages.run_stages(PLAN, [host], self.run_dir, stages.Settings(**settings))
        return [command[0] for command in self.commands]


@pytest.fixture
def played(tmp_path, monkeypatch):
    played = Played(RunDir(tmp_path / "run"))
    monkeypatch.setattr(stages, "_itg_eval", played.itg_eval)
    monkeypatch.setattr(stages, "answer", lambda arm, documents: played.arms.append(arm))
    monkeypatch.setattr(stages, "write_report", lambda run_dir: None)
    return played


def test_each_stage_is_done_once(played):
    assert played.run() == ["documents", "score"]
    assert played.run() == []
    assert [arm.name for arm in played.arms] == ["uniform", "grounded"]


def test_of_a_group_host_models_are_asked_the_tasks_that_fit(played):
    played.run()
    (documents, _) = played.commands
    assert documents[-3:] == ["--judged", "--task", "mvbench"]
    assert {arm.tasks for arm in played.arms} == {("mvbench_action_count", "mvbench_state_change")}


def test_questions_without_scores_stop_a_run_before_a_host_model_starts(played):
    played.broken = {"1.mp4"}
    said = r"2 of 4 questions have no scores .*failed.jsonl says why.*mvbench_action_count/train/1"
    for commands in (["documents", "score"], ["score"]):
        with pytest.raises(ItgError, match=said):
            played.run()
        assert [command[0] for command in played.commands] == commands
        assert not played.arms


def test_a_mended_video_is_scored_and_frames_of_it_are_chosen(played):
    played.broken = {"1.mp4"}
    with pytest.raises(ItgError, match="have no scores"):
        played.run()
    played.broken = set()
    assert played.run() == ["score"]
    for arm in ("uniform", "grounded"):
        assert len(Selections.load(played.run_dir.selection(arm))) == len(DOCUMENTS)
    assert len(played.arms) == 2


def test_frames_are_chosen_again_when_the_scores_have_changed(played):
    played.run()
    before = {arm: played.run_dir.selection(arm).read_bytes() for arm in ARMS}
    changed = [score(d, scores=(0.9, 0.1, 0.8)) for d in DOCUMENTS]
    write_jsonl(played.run_dir.scoring / "scores.jsonl", changed)
    assert played.run() == []
    assert played.run_dir.selection("uniform").read_bytes() != before["uniform"]
    assert {
        s.source_idx for s in Selections.load(played.run_dir.selection("grounded")).values()
    } == {(0, 8)}


def test_whoever_is_content_with_even_frames_is_not_made_to_wait_for_broken_videos_again(played):
    played.broken = {"1.mp4"}
    assert played.run(missing="uniform") == ["documents", "score"]
    before = played.run_dir.selection("grounded").read_bytes()
    assert played.run(missing="uniform") == []
    assert played.run_dir.selection("grounded").read_bytes() == before
    assert [arm.missing for arm in played.arms] == ["uniform", "uniform"]


def test_a_question_whose_video_cannot_be_opened_is_left_out_of_both_arms_and_no_other(
    played, monkeypatch
):
    torn = {"1.mp4"}
    monkeypatch.setattr(stages, "read_frames", lambda video, source_idx: None)
    monkeypatch.setattr(stages, "uniform_source_idx", _tear(torn))
    asked = []
    monkeypatch.setattr(stages, "answer", lambda arm, documents: asked.append((arm, documents)))
    played.broken = {"0.mp4", "1.mp4"}
    played.run(missing="uniform")
    left_out = [f.key for f in read_jsonl(played.run_dir.left_out, Failure)]
    assert left_out == [d.key for d in DOCUMENTS if d.video == "1.mp4"]
    for arm, documents in asked:
        assert {d.video for d in documents} == {"0.mp4"}
        assert arm.left_out == played.run_dir.left_out
    # mended, it is asked
    torn.clear()
    asked.clear()
    played.run(missing="uniform")
    assert [(arm.left_out, len(documents)) for arm, documents in asked] == [(None, 4)] * 2


def _tear(torn):
    def uniform(video, top_k):
        if video in torn:
            raise VideoError(video, "torn")
        return [0, 1]

    return uniform


def test_a_run_of_which_no_video_can_be_read_says_so(played):
    played.broken = {"0.mp4", "1.mp4"}
    with pytest.raises(ItgError, match=r"no video of 4 questions can be read, see .*left-out"):
        played.run(missing="uniform")


def test_the_time_of_scoring_is_that_of_all_that_was_scored(played, monkeypatch):
    played.broken = {"1.mp4"}
    clock = iter([0.0, 6.0, 100.0, 102.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    with pytest.raises(ItgError, match="have no scores"):
        played.run()
    assert stages._read_scoring_time(played.run_dir) == 3.0
    played.broken = set()
    played.run()
    assert stages._read_scoring_time(played.run_dir) == 2.0


def test_an_arm_whose_requests_failed_is_not_done_however_long_ago(tmp_path):
    said = "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Connection error."
    for answer, is_done in (("A", True), (said, False), (f'["{said}"]', False)):
        outcomes = [
            Outcome(task=d.task, split=d.split, doc_id=d.doc_id, answer=answer, is_correct=False)
            for d in DOCUMENTS
        ]
        write_jsonl(tmp_path / "outcomes.jsonl", outcomes)
        cost = Cost(frames_sha="a" * 64, seconds=1.0, num_questions=4)
        write_atomic(tmp_path / "done.json", format_record(cost))
        assert (load_answers(tmp_path, "a" * 64, DOCUMENTS) is not None) is is_done


def test_an_arm_that_answered_other_questions_is_not_done(tmp_path):
    outcomes = [
        Outcome(task=d.task, split=d.split, doc_id=d.doc_id, answer="A", is_correct=True)
        for d in DOCUMENTS
    ]
    cost = Cost(frames_sha="a" * 64, seconds=1.0, num_questions=4)
    write_atomic(tmp_path / "done.json", format_record(cost))
    for there, is_done in ((outcomes, True), (outcomes[1:], False)):
        write_jsonl(tmp_path / "outcomes.jsonl", there)
        assert (load_answers(tmp_path, "a" * 64, DOCUMENTS) is not None) is is_done


def test_an_arm_is_asked_anew_once_its_hosts_weights_have_changed_and_not_for_their_being_gone(
    tmp_path,
):
    outcomes = [
        Outcome(task=d.task, split=d.split, doc_id=d.doc_id, answer="A", is_correct=True)
        for d in DOCUMENTS
    ]
    write_jsonl(tmp_path / "outcomes.jsonl", outcomes)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"1")
    host = Host.parse(f"qwen3_vl,pretrained={weights}")
    cost = Cost(frames_sha="a" * 64, seconds=1.0, num_questions=4, host_sha256=host.fingerprint())
    write_atomic(tmp_path / "done.json", format_record(cost))

    def is_done():
        return load_answers(tmp_path, "a" * 64, DOCUMENTS, host.fingerprint()) is not None

    assert is_done()
    (weights / "model.safetensors").write_bytes(b"2")
    assert not is_done()
    (weights / "model.safetensors").unlink()
    weights.rmdir()
    assert is_done()
