"""A table as a run would make it."""

import dataclasses

import pytest
from itg_eval.benchmark.answers import Answers
from itg_eval.benchmark.outcomes import Cost, Outcome
from itg_eval.benchmark.plan import Plan
from itg_eval.benchmark.table import Table, tabulate
from itg_eval.records import Document, by_key


def _make_table(
    host, label="scorer", with_two_tasks=False, num_silent=0, num_left_out=0, **changes
):
    """12 short and 12 long questions; grounded frames answer 9 more long ones and lose one."""
    tasks = ("videomme", "mlvu_dev") if with_two_tasks else ("videomme",)
    documents = [
        Document(
            task=task,
            split="test",
            doc_id=n,
            video=f"{n // 2}.mp4",
            question=f"What of {task}?",
            duration_group=None if task == "mlvu_dev" else ("short" if n < 12 else "long"),
        )
        for task in tasks
        for n in range(24)
    ]
    answers = {}
    for arm in ("uniform", "grounded"):
        outcomes = [
            Outcome(
                task=document.task,
                split="test",
                doc_id=document.doc_id,
                answer="" if arm == "grounded" and document.doc_id < num_silent else "A",
                is_correct=document.doc_id < (12 if arm == "uniform" else 21)
                and (arm, document.doc_id) != ("grounded", 0),
            )
            for document in documents
        ]
        cost = Cost(frames_sha="a" * 64, seconds=12.0, num_questions=24)
        answers[arm] = Answers(outcomes=by_key(outcomes), cost=cost)
    plan = Plan(
        tasks=tasks,
        include_path=None,
        limit=None,
        model=label,
        scores=None,
        rate_hz=1.0,
        max_frames=None,
        policy="min-gap",
        params=("min_gap_s=5",),
        top_k=32,
    )
    plan = dataclasses.replace(plan, **changes)
    return Table(
        made_by="itg-eval 0",
        plan=plan,
        num_questions=len(documents),
        num_left_out=num_left_out,
        num_videos=12,
        scoring_seconds_per_question=None,
        hosts=(tabulate(host, plan, documents, answers, {"uniform": 0, "grounded": 3}),),
    )


@pytest.fixture(scope="session")
def make_table():
    return _make_table
