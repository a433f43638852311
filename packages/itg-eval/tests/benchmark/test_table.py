"""From outcomes to rows: what stands or falls together, and what is counted how often."""

import dataclasses
import re

import pytest
from itg_eval.benchmark.answers import Answers
from itg_eval.benchmark.outcomes import Cost, Outcome
from itg_eval.benchmark.plan import ARMS, Host, Plan
from itg_eval.benchmark.report import to_html, to_json, to_markdown
from itg_eval.benchmark.table import Table, tabulate
from itg_eval.records import Document, by_key

PLAN = Plan(
    tasks=("videomme",),
    include_path=None,
    limit=None,
    model="m",
    scores=None,
    rate_hz=1.0,
    max_frames=None,
    policy="top-k",
    params=(),
    top_k=32,
)
HOST = Host(id="h", args="")


def ask(task, video, number, doc_id):
    return Document(
        task=task, split="test", doc_id=doc_id, video=video, question=f"{video} {number}"
    )


def tabulate_answers(documents, is_right):
    """The table of a host that answers as `is_right(arm, document)` says."""
    answers = {
        arm: Answers(
            outcomes=by_key(
                Outcome(
                    task=d.task,
                    split=d.split,
                    doc_id=d.doc_id,
                    answer="A",
                    is_correct=is_right(arm, d),
                )
                for d in documents
            ),
            cost=Cost(frames_sha="a" * 64, seconds=0.0, num_questions=0),
        )
        for arm in ARMS
    }
    return tabulate(HOST, PLAN, documents, answers, dict.fromkeys(ARMS, 0))


def to_table(host):
    return Table(
        made_by="itg-eval 0",
        plan=PLAN,
        num_questions=host.rows[-1].num_questions,
        num_left_out=0,
        num_videos=1,
        scoring_seconds_per_question=None,
        hosts=(host,),
    )


def test_the_interval_is_that_of_the_questions_share_when_videos_are_drawn():
    # 20 videos of one question, all gained; 20 of nine, of which every other gains all its nine
    sizes = [1] * 20 + [9] * 20
    gained = {f"{v}.mp4" for v in range(40) if v < 20 or v % 2}
    asked = [(f"{v}.mp4", n) for v, size in enumerate(sizes) for n in range(size)]
    documents = [ask("videomme", video, n, i) for i, (video, n) in enumerate(asked)]
    host = tabulate_answers(documents, lambda arm, d: arm == "grounded" and d.video in gained)
    (row,) = host.rows
    assert (row.num_questions, row.grounded) == (200, 0.55)
    # of a ratio of sums over videos: the squares of what each adds beyond its size's share
    squares = 20 * 0.45**2 + 10 * (9 * 0.45) ** 2 + 10 * (9 * 0.55) ** 2
    half = 1.96 * squares**0.5 / 200
    # 0.2; with questions drawn it would be 0.07, and a mean of the videos' means lies at 0.75
    assert row.difference.low == pytest.approx(0.55 - half, abs=0.02)
    assert row.difference.high == pytest.approx(0.55 + half, abs=0.02)


def test_one_video_has_no_interval_and_nothing_is_sure_of_it():
    documents = [ask("videomme", "v.mp4", n, n) for n in range(30)]
    host = tabulate_answers(documents, lambda arm, d: arm == "grounded")
    (row,) = host.rows
    assert (row.difference.mean, row.difference.low, row.difference.high) == (1.0, None, None)
    assert row.difference.verdict == "unsure"
    table = to_table(host)
    assert r"+100.0 \[one video: no interval\]" in to_markdown(table)
    assert '"low": null' in to_json(table)
    assert 'class="interval unsure"' in to_html(table)
    assert 'class="range"' not in to_html(table)


@pytest.mark.parametrize(("num_videos", "warns"), [(2, True), (9, True), (10, False)])
def test_few_videos_come_with_a_warning_and_are_sure_of_nothing(num_videos, warns):
    documents = [ask("videomme", f"{n}.mp4", 0, n) for n in range(num_videos)]
    host = tabulate_answers(documents, lambda arm, d: arm == "grounded")
    said = f"fewer than 10 videos (the least on {num_videos})"
    assert (said in to_markdown(to_table(host))) is warns
    assert host.rows[0].difference.verdict == ("unsure" if warns else "gain")


@pytest.mark.parametrize(
    ("gained", "lost", "kind"), [(10, 0, "gain"), (0, 10, "loss"), (3, 2, "unsure")]
)
def test_a_difference_is_drawn_as_sure_only_if_its_whole_interval_is(gained, lost, kind):
    documents = [ask("videomme", f"{n}.mp4", 0, n) for n in range(20)]
    right = {"grounded": range(gained), "uniform": range(10, 10 + lost)}
    host = tabulate_answers(documents, lambda arm, d: d.doc_id in right[arm])
    drawn = re.findall(r'class="interval (\w+)"', to_html(to_table(host)))
    assert drawn == [kind]


def test_a_question_of_two_tasks_counts_once_in_the_row_of_all():
    # the second task is a part of the first, under numbers of its own
    whole = [ask("videomme", f"{n // 2}.mp4", n, n) for n in range(12)]
    part = [dataclasses.replace(d, task="videomme_long", doc_id=d.doc_id - 8) for d in whole[8:]]
    host = tabulate_answers([*whole, *part], lambda arm, d: arm == "grounded")
    counts = {row.task: row.num_questions for row in host.rows}
    assert counts == {"videomme": 12, "videomme_long": 4, "all tasks": 12}
    assert host.rows[-1].difference.num_gained == 12
    assert "4 questions are in several tasks" in to_markdown(to_table(host))


def test_a_task_that_asks_a_question_twice_keeps_both():
    documents = [ask("mvbench_a", "v.mp4", 0, 0), ask("mvbench_a", "v.mp4", 0, 1)]
    host = tabulate_answers([*documents, ask("mvbench_b", "v.mp4", 1, 0)], lambda arm, d: True)
    assert host.rows[-1].num_questions == 3
