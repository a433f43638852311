"""The four stages in order; started again, a run goes on where it was.

Each stage leaves a file that appears whole or not at all, and is skipped once that file is there.
What needs much memory or a GPU runs in a process of its own, so that the scorer is gone before the
host model comes.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from itg_data.errors import ItgError, VideoError, to_one_line
from itg_data.files import write_atomic
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_model.policies import parse_policy_params

from itg_eval.benchmark.answers import Arm, answer, load_answers
from itg_eval.benchmark.children import run_child, to_launcher
from itg_eval.benchmark.plan import ARMS, Host, Plan, RunDir
from itg_eval.benchmark.report import to_html, to_json, to_markdown
from itg_eval.benchmark.table import HostTable, Table, tabulate
from itg_eval.documents import group_by_video, read_documents
from itg_eval.lmms.frames import read_frames, uniform_source_idx
from itg_eval.records import Document, Selections, by_key, format_key
from itg_eval.scorers import hash_file
from itg_eval.scores import Failure, fail
from itg_eval.selecting import select_documents

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What does not change results, but how they are come by."""

    missing: str = "fail"
    batch_size: int = 1
    num_processes: int = 1
    device: str = "auto"
    dtype: str = "auto"


def run_stages(plan: Plan, hosts: Sequence[Host], run_dir: RunDir, settings: Settings) -> Table:
    """Runs what is not done yet, and writes the report.

    Raises:
        ItgError: A stage failed; what was done before it stays.
    """
    run_dir.claim(plan)
    documents = _list_documents(plan, run_dir)
    _score(plan, run_dir, documents, settings)
    _select(plan, run_dir, documents, settings)
    _leave_out(plan, run_dir, documents)
    asked = read_asked(run_dir, documents)
    # not the plan's: a group may hold tasks that were left out
    tasks = tuple(dict.fromkeys(document.task for document in documents))
    for host in hosts:
        run_dir.welcome(host)
        for name in ARMS:
            answer(_to_arm(plan, run_dir, host, name, settings, tasks), asked)
    return write_report(run_dir)


def write_report(run_dir: RunDir) -> Table:
    """Makes the table of all hosts that have answered, and writes it in all forms.

    Raises:
        ItgError: The folder holds no run, or no host has answered everything.
    """
    plan = run_dir.load_plan()
    listed = read_documents(run_dir.documents)
    documents = read_asked(run_dir, listed)
    selections = {arm: Selections.load(run_dir.selection(arm)) for arm in ARMS}
    without = {
        arm: sum(document.key not in found for document in documents)
        for arm, found in selections.items()
    }
    tables: list[HostTable] = []
    for host in run_dir.hosts():
        loaded = {
            arm: load_answers(run_dir.arm(host, arm), found.sha256, documents, host.fingerprint())
            for arm, found in selections.items()
        }
        answers = {arm: found for arm, found in loaded.items() if found is not None}
        if len(answers) == len(ARMS):
            tables.append(tabulate(host, plan, documents, answers, without))
        else:
            logger.warning(
                "%s has not answered everything, or has changed since; it is left out", host.label
            )
    if not tables:
        raise ItgError(f"{run_dir.root}: no host has answered everything yet")
    table = Table(
        made_by=f"itg-eval {version('itg-eval')}, lmms-eval {version('lmms-eval')}",
        plan=plan,
        num_questions=len(documents),
        num_left_out=len(listed) - len(documents),
        num_videos=len({document.video for document in documents}),
        scoring_seconds_per_question=_read_scoring_time(run_dir),
        hosts=tuple(tables),
    )
    for suffix, to_text in {"md": to_markdown, "json": to_json, "html": to_html}.items():
        write_atomic(run_dir.report(suffix), to_text(table))
    return table


def _list_documents(plan: Plan, run_dir: RunDir) -> list[Document]:
    if not run_dir.documents.exists():
        command = ["documents", "--output", str(run_dir.documents)]
        command += ["--judged", "--task", *plan.tasks]
        if plan.include_path is not None:
            command += ["--include-path", plan.include_path]
        if plan.limit is not None:
            command += ["--limit", str(plan.limit)]
        logger.info("asking lmms-eval for the questions of %s", ", ".join(plan.tasks))
        _itg_eval(command)
    return read_documents(run_dir.documents)


def _score(plan: Plan, run_dir: RunDir, documents: Sequence[Document], settings: Settings) -> None:
    if plan.model is None:
        return
    # a video that could not be read may have been mended; who is content without asks no more
    is_wanted = settings.missing == "fail" and _some_failed(run_dir)
    if run_dir.scores(plan).exists() and not is_wanted:
        return
    command = ["score", "--documents", str(run_dir.documents), "--model", plan.model]
    command += ["--output", str(run_dir.scoring), "--rate-hz", str(plan.rate_hz)]
    command += ["--device", settings.device, "--dtype", settings.dtype]
    if plan.max_frames is not None:
        command += ["--max-frames", str(plan.max_frames)]
    num_before = _count_scored(run_dir)
    started_s = time.monotonic()
    # 1: done, but for videos that cannot be read
    _itg_eval(command, settings.num_processes, accepted=(0, 1))
    seconds, num_questions = _read_scoring(run_dir)
    measured = {
        "seconds": seconds + time.monotonic() - started_s,
        "num_questions": num_questions + _count_scored(run_dir) - num_before,
    }
    write_atomic(run_dir.scoring / "seconds.json", json.dumps(measured) + "\n")


def _select(plan: Plan, run_dir: RunDir, documents: Sequence[Document], settings: Settings) -> None:
    params = parse_policy_params(plan.policy, plan.params)
    scores = run_dir.scores(plan)
    source = hash_file(scores)
    for arm, policy, numbers in ((ARMS[0], "uniform", {}), (ARMS[1], plan.policy, params)):
        path = run_dir.selection(arm)
        if not (path.exists() and _read_source(run_dir.source(arm)) == source):
            count = write_jsonl(path, select_documents(scores, policy, plan.top_k, numbers))
            # after the selection: where it is, that was made from these scores
            write_atomic(run_dir.source(arm), json.dumps({"scores_sha256": source}) + "\n")
            logger.info("chose %s frames for %d questions", arm, count)
        without = _unselected(path, documents)
        # found out here, before a host model is loaded for nothing
        if without and settings.missing == "fail":
            failed = run_dir.scoring / "failed.jsonl"
            why = f" ({failed} says why)" if _some_failed(run_dir) else ""
            raise ItgError(
                f"{len(without)} of {len(documents)} questions have no scores in {scores}{why}, "
                f"the first is {format_key(without[0].key)}; mend that and run the same again, or "
                "add --missing uniform to show them evenly spaced frames, and to leave out those "
                "whose video cannot be read at all"
            )


def _leave_out(plan: Plan, run_dir: RunDir, documents: Sequence[Document]) -> None:
    """Lists the questions that cannot be shown even uniform frames: both arms do without them.

    Looked at anew at every start: a video may have been mended since.
    """
    without = {d.key: d for arm in ARMS for d in _unselected(run_dir.selection(arm), documents)}
    failures: list[Failure] = []
    for video, group in group_by_video(without.values()).items():
        try:
            read_frames(video, uniform_source_idx(video, plan.top_k))
        except VideoError as error:
            said = to_one_line(str(error))
            logger.warning("%s; its %d questions are left out of both arms", said, len(group))
            failures += [fail(document, error.reason) for document in group]
    write_jsonl(run_dir.left_out, failures)
    if len(failures) == len(documents):
        raise ItgError(
            f"no video of {len(documents)} questions can be read, see {run_dir.left_out}"
        )


def read_asked(run_dir: RunDir, documents: Sequence[Document]) -> list[Document]:
    """The documents that host models are asked: without those left out."""
    if not run_dir.left_out.exists():
        return list(documents)
    left_out = by_key(read_jsonl(run_dir.left_out, Failure))
    return [document for document in documents if document.key not in left_out]


def _read_source(path: Path) -> str | None:
    """Hash of the scores that a selection was made from; None where that is not known."""
    try:
        return json.loads(path.read_text())["scores_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unselected(selection: Path, documents: Sequence[Document]) -> list[Document]:
    chosen = Selections.load(selection)
    return [document for document in documents if document.key not in chosen]


def _to_arm(
    plan: Plan, run_dir: RunDir, host: Host, name: str, settings: Settings, tasks: tuple[str, ...]
) -> Arm:
    return Arm(
        host=host,
        name=name,
        selection=run_dir.selection(name),
        folder=run_dir.arm(host, name),
        tasks=tasks,
        include_path=None if plan.include_path is None else Path(plan.include_path),
        limit=plan.limit,
        missing=settings.missing,
        batch_size=settings.batch_size,
        num_processes=settings.num_processes,
        left_out=run_dir.left_out if run_dir.left_out.stat().st_size else None,
    )


def _itg_eval(
    command: Sequence[str], num_processes: int = 1, accepted: Sequence[int] = (0,)
) -> None:
    """Runs one of our own commands in a process, or several, of its own."""
    launcher = to_launcher("itg_eval", num_processes)
    # its results are files; what it prints is not this command's result
    with Path(os.devnull).open("w") as nowhere:
        status = run_child([*launcher, *command], env={}, stdout=nowhere)
    if status not in accepted:
        raise ItgError(f"itg-eval {command[0]} ended with exit status {status}, see above")


def _some_failed(run_dir: RunDir) -> bool:
    failed = run_dir.scoring / "failed.jsonl"
    return failed.exists() and failed.stat().st_size > 0


def _count_scored(run_dir: RunDir) -> int:
    shards = (run_dir.scoring / "shards").glob("scores*")
    return sum(path.read_bytes().count(b"\n") for path in shards)


def _read_scoring_time(run_dir: RunDir) -> float | None:
    seconds, num_questions = _read_scoring(run_dir)
    return seconds / num_questions if num_questions > 0 else None


def _read_scoring(run_dir: RunDir) -> tuple[float, int]:
    """Seconds and questions of all scoring that came to its end; 0 where there was none."""
    try:
        measured = json.loads((run_dir.scoring / "seconds.json").read_text())
    except (OSError, ValueError):
        return 0.0, 0
    return measured["seconds"], measured["num_questions"]
