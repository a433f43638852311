"""Stage 3: one host model answers every question, shown one selection of frames.

lmms-eval runs as it is, through its own command line and in a process of its own: what it leaves
on the GPU goes with it, and the command in the log can be run by hand. It is done when
`outcomes.jsonl` is there, with the hash of the selection that it holds for.
"""

import json
import logging
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from itg_data.errors import ItgError
from itg_data.files import write_atomic
from itg_data.jsonl import format_record, read_jsonl, write_jsonl
from itg_data.progress import show_progress

from itg_eval.benchmark.children import run_child, to_launcher
from itg_eval.benchmark.outcomes import Cost, Outcome, RequestsFailedError, read_outcomes
from itg_eval.benchmark.plan import Host, read_record
from itg_eval.lmms.arguments import HIDDEN, SECRETS_VARIABLE, split_secrets
from itg_eval.lmms.entry import SHADOW_VARIABLE, is_builtin, is_simple_model
from itg_eval.lmms.forms import choose_form, frame_count
from itg_eval.lmms.journal import count_answers, is_failed
from itg_eval.records import Document, Selections, by_key

logger = logging.getLogger(__name__)

_DONE = "done.json"
"""Written last: what answering cost, and with which frames."""

_OUTPUT = "lmms-eval"
"""Folder of what lmms-eval writes, inside the arm's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One host model over one selection.

    `missing` is `fail` or `uniform`, for documents without a selection.
    """

    host: Host
    name: str
    selection: Path
    folder: Path
    tasks: tuple[str, ...]
    include_path: Path | None
    limit: int | None
    missing: str
    batch_size: int
    num_processes: int
    left_out: Path | None = None
    """File of the documents that are not asked, for their videos cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What came of one arm."""

    outcomes: dict[tuple[str, str, int], Outcome]
    cost: Cost


def answer(arm: Arm, documents: Sequence[Document]) -> Answers:
    """Has the host model answer, unless it has already.

    Args:
        arm: The host model and what it is shown.
        documents: What it is asked: those of the tasks without those left out.

    Raises:
        ItgError: lmms-eval left no complete results; the message ends with its last words.
    """
    frames_sha = Selections.load(arm.selection).sha256
    host_sha256 = arm.host.fingerprint()
    done = load_answers(arm.folder, frames_sha, documents, host_sha256)
    if done is not None:
        return done
    output = arm.folder / _OUTPUT
    shutil.rmtree(output, ignore_errors=True)
    arm.folder.mkdir(parents=True, exist_ok=True)
    _run_lmms_eval(arm, frames_sha, documents)
    try:
        outcomes, cost = read_outcomes(output, documents, frames_sha)
    except RequestsFailedError:
        raise  # the log knows no more
    except ItgError as error:
        raise ItgError(f"{error}; {_last_words(arm.folder / 'log.txt')}") from None
    cost = replace(cost, host_sha256=host_sha256)
    write_jsonl(arm.folder / "outcomes.jsonl", outcomes)
    write_atomic(arm.folder / _DONE, format_record(cost))
    return Answers(outcomes=by_key(outcomes), cost=cost)


def check_host(host: Host, top_k: int) -> None:
    """Finds out, before frames are scored for hours, whether a host can be asked at all.

    Raises:
        ItgError: lmms-eval has no such model, or it is not known how it takes `top_k` frames.
    """
    try:
        is_simple = is_simple_model(host.id)
    except ValueError as error:
        raise ItgError(f"--host {host.id}: lmms-eval has no such model; {error}") from None
    given = dict(arg.split("=", 1) for arg in filter(None, host.args.split(",")))
    try:
        choose_form(host.id, is_simple, given.get("frames_as"))
        frame_count(host.id, given, top_k)
    except ItgError as error:
        raise ItgError(f"--host {host.id}: {error}") from None


def load_answers(
    folder: Path,
    frames_sha: str,
    documents: Sequence[Document],
    host_sha256: str | None = None,
) -> Answers | None:
    """Reads what an arm came to; None if it is not done, or not with these frames and questions.

    An arm is not done either where requests failed, which older folders may hold as answers, or
    if the host's weights have changed in place; weights that are gone have not.

    Raises:
        ItgError: Its files are not what they were.
    """
    path = folder / _DONE
    if not path.exists():
        return None
    cost = read_record(path, Cost)
    if cost.frames_sha != frames_sha or host_sha256 not in (None, cost.host_sha256):
        return None
    outcomes = by_key(read_jsonl(folder / "outcomes.jsonl", Outcome))
    if outcomes.keys() != {document.key for document in documents}:
        return None
    if any(is_failed(outcome.answer) for outcome in outcomes.values()):
        return None
    return Answers(outcomes=outcomes, cost=cost)


def to_command(arm: Arm, frames_sha: str) -> list[str]:
    """The command line of lmms-eval; `to_environment` goes with it."""
    own = {
        "selection": arm.selection.resolve(),
        "frames_sha": frames_sha,
        "missing": arm.missing,
        "journal": _journal(arm, frames_sha).resolve(),
    }
    if arm.left_out is not None:
        own["left_out"] = arm.left_out.resolve()
    host_args, _ = split_secrets(arm.host.args)
    args = [f"{name}={value}" for name, value in own.items()]
    if any("," in arg for arg in args):
        raise ItgError(f"{arm.folder}: lmms-eval takes no path with a comma in it")
    if not is_builtin(arm.host.id):
        args.insert(0, f"inner={arm.host.id}")
    model = arm.host.id if is_builtin(arm.host.id) else "itg"
    command = [*to_launcher("lmms_eval", arm.num_processes), "--model", model]
    command += ["--model_args", ",".join(filter(None, [*args, host_args]))]
    command += ["--tasks", ",".join(arm.tasks), "--batch_size", str(arm.batch_size)]
    command += ["--log_samples", "--output_path", str((arm.folder / _OUTPUT).resolve())]
    if arm.include_path is not None:
        command += ["--include_path", str(arm.include_path.resolve())]
    if arm.limit is not None:
        command += ["--limit", str(arm.limit)]
    return command


def to_environment(arm: Arm) -> dict[str, str]:
    """What the command needs in its environment beyond what is there."""
    # imported here: a run whose answers are all there does without
    import torch

    needed = {SHADOW_VARIABLE: arm.host.id} if is_builtin(arm.host.id) else {}
    if not torch.cuda.is_available():
        needed["ACCELERATE_USE_CPU"] = "1"
    _, secrets = split_secrets(arm.host.args)
    if secrets:
        needed[SECRETS_VARIABLE] = json.dumps(secrets)
    return needed


def _run_lmms_eval(arm: Arm, frames_sha: str, documents: Sequence[Document]) -> None:
    command, needed = to_command(arm, frames_sha), to_environment(arm)
    title = f"{arm.host.label}, {arm.name} frames"
    journal, log_path = _journal(arm, frames_sha), arm.folder / "log.txt"
    shown = {n: HIDDEN if n == SECRETS_VARIABLE else value for n, value in needed.items()}
    variables = [f"{name}={value}" for name, value in shown.items()]
    write_atomic(log_path, shlex.join([*variables, *command]) + "\n")
    with (
        log_path.open("a", encoding="utf-8") as log,
        show_progress(title, len(documents), unit="questions") as advance,
    ):
        logger.info("%s: lmms-eval starts, its log is %s", title, log_path)

        num_seen = 0

        def watch() -> None:
            nonlocal num_seen
            num_answers = min(count_answers(journal), len(documents))
            if num_answers != num_seen:
                num_seen = num_answers
                advance(num_answers, "")

        # the exit status says little: lmms-eval catches its errors and ends with 0
        run_child(command, env=needed, stdout=log, stderr=log, watch=watch)
        watch()


def _journal(arm: Arm, frames_sha: str) -> Path:
    return arm.folder / "journal" / frames_sha[:16]


def _last_words(log: Path) -> str:
    """The last error in a log, or its last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    said = (errors or [line for line in lines if line] or ["nothing"])[-1]
    return f"its last words in {log}: {said:.600}"
