"""The commands around answers: `run`, `report`, `documents`, `scripted`.

Nothing here imports torch or lmms-eval before a command runs.
"""

import logging
import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from itg_data.errors import ItgError
from itg_data.jsonl import write_jsonl
from itg_data.progress import show_progress
from itg_data.sampling import SamplingConfig
from itg_model.locate import check_name
from itg_model.policies import parse_policy_params

from itg_eval.benchmark.answers import check_host
from itg_eval.benchmark.plan import Host, Plan, RunDir
from itg_eval.benchmark.report import to_html, to_json, to_markdown
from itg_eval.benchmark.run import Settings, run_stages, write_report
from itg_eval.documents import load_task
from itg_eval.options import check_folder, check_place, refuse_unused
from itg_eval.scorers import fingerprint, hash_file
from itg_eval.scripted.benchmark import TASK, ScriptedConfig, write_benchmark
from itg_eval.selecting import check_request

logger = logging.getLogger(__name__)

Repeated = tyro.conf.UseAppendAction


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Run all four stages: score frames, choose them, let host models answer, and compare.

    Every question is answered twice by every host model: shown evenly spaced frames, and shown the
    frames chosen by their scores. Killed at any time, the same command goes on where it was;
    further hosts may be added to a folder later. Prints the table as Markdown.

    The task itg_scripted needs no download: its videos are written into the run's folder, and
    without --host two small host models are, one that sees them and a tiny Qwen3-VL that does not.
    """

    run_dir: Path
    """Folder of the run."""

    model: str | None = None
    """Checkpoint of the grounder that scores frames: a directory, or owner/name on the hub."""

    scores: Path | None = None
    """Instead of --model: scores made before, by `itg-eval score` or by another run."""

    task: tuple[str, ...] = ()
    """Tasks or groups of lmms-eval, or itg_scripted."""

    host: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(metavar="ID,KEY=VALUE,...")] = ()
    """A host model: its id in lmms-eval and its own arguments; may be given several times."""

    top_k: int = 32
    """Frames that the host model is shown."""

    policy: str = "top-k"
    """How frames are chosen by their scores; see `itg-eval select --help`."""

    policy_param: Annotated[tuple[str, ...], Repeated, tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """A parameter of the policy; may be given several times. For q-frame with a grounder say
    tau=0.1."""

    rate_hz: float = 1.0
    """Frames scored per second of video."""

    max_frames: int | None = None
    """Frames scored in all; longer videos are thinned evenly. None takes 512, or fewer where the
    model takes fewer."""

    include_path: Path | None = None
    """Folder of further task definitions for lmms-eval."""

    limit: int | None = None
    """Questions of each task at most, the first ones."""

    missing: Literal["fail", "uniform"] = "fail"
    """What becomes of questions without a selection: nothing is run, or they are shown evenly
    spaced frames, and are left out of both arms if their video cannot be read at all; the report
    says how many."""

    batch_size: int = 1
    """Questions at once, for host models that can."""

    num_processes: int = 1
    """Processes, one a GPU, for scoring and for answering."""

    device: str = "auto"
    """Of the scorer: auto, cpu, cuda or cuda:N."""

    dtype: str = "auto"
    """Of the scorer: auto, float32, float16 or bfloat16."""

    def run(self) -> int:
        """Checks everything before anything costly starts."""
        self._check_sources()
        hosts = [Host.parse(text) for text in self.host]
        plan, settings = self._to_plan(), self._to_settings()
        if not hosts and self.task != (TASK,):
            raise ItgError("--host is missing: name a model, such as qwen3_vl,pretrained=...")
        for host in hosts:
            check_host(host, plan.top_k)
        if self.model is not None:
            check_place(self.device, self.dtype)
        run_dir = RunDir(self.run_dir)
        if self.model is not None and not run_dir.scores(plan).exists():
            # before videos are written and hosts trained for it
            check_name(self.model)
        run_dir.claim(plan)
        if TASK in self.task and self.include_path is None:
            _write_scripted(run_dir.scripted, ScriptedConfig())
        hosts = hosts or _write_hosts(run_dir.scripted)
        table = run_stages(plan, hosts, run_dir, settings)
        sys.stdout.write(to_markdown(table))
        logger.info("the same as a page: %s", run_dir.report("html"))
        return 0

    def _check_sources(self) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise ItgError(
                "run starts its own processes: call it without torchrun, with --num-processes N"
            )
        if not self.task:
            raise ItgError("--task is missing: name a task of lmms-eval, or itg_scripted")
        if (self.model is None) == (self.scores is None):
            raise ItgError("name either --model, a grounder's checkpoint, or --scores, made before")
        if self.scores is not None:
            refuse_unused(self, ("rate_hz", "max_frames", "device", "dtype"), "--scores")
            if not self.scores.is_file():
                raise ItgError(f"--scores {self.scores}: no such file")
        check_folder(self.include_path)

    def _to_plan(self) -> Plan:
        try:
            params = parse_policy_params(self.policy, self.policy_param)
            check_request(self.policy, self.top_k, params)
            SamplingConfig(rate_hz=self.rate_hz, max_frames=self.max_frames or 1)
        except ValueError as error:
            raise ItgError(str(error)) from None
        if self.limit is not None and self.limit < 1:
            raise ItgError(f"--limit must be >= 1, got {self.limit}")
        include_path = self.include_path
        if TASK in self.task and include_path is None:
            include_path = RunDir(self.run_dir).scripted
        return Plan(
            tasks=self.task,
            include_path=None if include_path is None else str(include_path.resolve()),
            limit=self.limit,
            model=self.model,
            scores=None if self.scores is None else str(self.scores.resolve()),
            rate_hz=self.rate_hz,
            max_frames=self.max_frames,
            policy=self.policy,
            params=self.policy_param,
            top_k=self.top_k,
            model_sha256=None if self.model is None else fingerprint(self.model),
            scores_sha256=None if self.scores is None else hash_file(self.scores),
        )

    def _to_settings(self) -> Settings:
        for name in ("batch_size", "num_processes"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ItgError(f"--{option} must be >= 1, got {getattr(self, name)}")
        return Settings(
            missing=self.missing,
            batch_size=self.batch_size,
            num_processes=self.num_processes,
            device=self.device,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Write the report of a run again, of all hosts that have answered.

    Leaves report.md, report.json and report.html in the run's folder and prints one of them.
    """

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of the run."""

    format: Literal["md", "json", "html"] = "md"
    """Which form is printed."""

    def run(self) -> int:
        """Reads what hosts answered, asks nobody anything."""
        table = write_report(RunDir(self.run_dir))
        forms = {"md": to_markdown, "json": to_json, "html": to_html}
        sys.stdout.write(forms[self.format](table))
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """List the questions of tasks by lmms-eval's own definitions, one JSON object a line."""

    task: tuple[str, ...]
    """Tasks or groups of lmms-eval."""

    output: Path
    """File for them."""

    include_path: Path | None = None
    """Folder of further task definitions for lmms-eval."""

    limit: int | None = None
    """Questions of each task at most, the first ones."""

    judged: bool = False
    """Only tasks for which `itg-eval run` can tell right answers from wrong ones."""

    def run(self) -> int:
        """Asks lmms-eval."""
        if self.limit is not None and self.limit < 1:
            raise ItgError(f"--limit must be >= 1, got {self.limit}")
        documents = load_task(self.task, self.include_path, self.limit, judged=self.judged)
        write_jsonl(self.output, documents)
        logger.info("%d questions", len(documents))
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scripted:
    """Write the benchmark itg_scripted and its two host models into a folder.

    For `lmms-eval --include_path FOLDER --tasks itg_scripted`. Prints the hosts as `run --host`
    takes them. What is there already stays.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Where to."""

    num_videos: int = ScriptedConfig().num_videos
    """Videos of each of the two lengths."""

    seed: int = ScriptedConfig().seed
    """Everything drawn follows from it."""

    def run(self) -> int:
        """Writes what is missing."""
        try:
            config = ScriptedConfig(num_videos=self.num_videos, seed=self.seed)
        except ValueError as error:
            raise ItgError(str(error)) from None
        _write_scripted(self.folder, config)
        for host in _write_hosts(self.folder):
            sys.stdout.write(f"{host.id},{host.args}\n")
        return 0


def _write_scripted(folder: Path, config: ScriptedConfig) -> None:
    workers = len(os.sched_getaffinity(0))
    with show_progress("writing scripted videos", 2 * config.num_videos, unit="videos") as advance:
        write_benchmark(
            folder, config, num_workers=workers, progress=lambda done, _: advance(done, "")
        )


def _write_hosts(folder: Path) -> list[Host]:
    """Writes the two host models, unless they are there, and says how to call them."""
    # imported here: these bring torch
    from itg_eval.scripted.qwen import write_tiny_qwen
    from itg_eval.scripted.reader import NUM_STEPS, WEIGHTS, train_reader

    reader, qwen = (folder / name for name in ("itg_reader", "tiny-qwen3-vl"))
    if not (reader / WEIGHTS).exists():
        with show_progress("training the reader", NUM_STEPS, unit="steps") as advance:
            train_reader(reader, lambda done, _: advance(done, ""))
    if not qwen.exists():
        # where DeepSpeed is installed, it is imported here and says so on stdout
        with redirect_stdout(sys.stderr):
            write_tiny_qwen(qwen)
    pixels = "min_pixels=4096,max_pixels=16384"
    return [
        Host(id="itg_reader", args=f"pretrained={reader.resolve()}"),
        Host(
            id="qwen3_vl",
            args=f"pretrained={qwen.resolve()},device=cpu,device_map=cpu,{pixels}",
        ),
    ]
