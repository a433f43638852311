"""The commands around frame scores: `score`, `select`, `frames`, `import-results`.

Nothing here imports torch before a command runs.
"""

import json
import logging
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from itg_data.errors import ItgError
from itg_data.files import write_atomic
from itg_data.jsonl import format_record, read_jsonl
from itg_data.sampling import SamplingConfig, SamplingRule
from itg_model.policies import parse_policy_params

from itg_eval.documents import load_task, read_documents, read_records
from itg_eval.frame_report import format_table, report_frames
from itg_eval.labels import read_labels
from itg_eval.options import check_folder, refuse_unused
from itg_eval.records import Document, DocumentScores, DocumentSelection, Selections
from itg_eval.reference import Tally, join_documents, read_results
from itg_eval.scorers import ScorerKind, fingerprint, load_scorer, pick_device
from itg_eval.scores import MERGED, Outcome, score_documents
from itg_eval.selecting import check_request, select_documents
from itg_eval.settings import Asked, Settings

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_INCOMPLETE = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the documents come from: exactly one of the three."""

    task: tuple[str, ...] = ()
    """Tasks or groups of lmms-eval."""

    documents: Path | None = None
    """File of documents, one JSON object a line."""

    records: Path | None = None
    """File of labelled records, as data sets for training are; its videos lie beside it."""

    split: str | None = None
    """Only the records of this split, such as heldout."""

    include_path: Path | None = None
    """Folder of further task definitions for lmms-eval."""

    limit: int | None = None
    """Documents of each task, or of the file, at most."""

    def load(self) -> list[Document]:
        """Reads the documents.

        Raises:
            ItgError: Not exactly one source is named, the limit is below 1, or a file is not what
                it should be.
        """
        named = [bool(self.task), self.documents is not None, self.records is not None]
        if sum(named) != 1:
            raise ItgError("name the questions by one of --task, --documents and --records")
        if self.limit is not None and self.limit < 1:
            raise ItgError(f"--limit must be >= 1, got {self.limit}")
        if self.records is None:
            refuse_unused(self, ("split",), "--task" if self.task else "--documents")
        if not self.task:
            source = "--records" if self.documents is None else "--documents"
            refuse_unused(self, ("include_path",), source)
        check_folder(self.include_path)
        if self.task:
            return load_task(self.task, self.include_path, self.limit)
        if self.documents is not None:
            return read_documents(self.documents)[: self.limit]
        assert self.records is not None  # one of the three
        return read_records(self.records, self.split)[: self.limit]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Score the frames of videos for the questions about them.

    Writes to the output folder: scores.jsonl, results/TASK.jsonl in the form that VideoITG's host
    models read, and failed.jsonl for questions whose video cannot be read. Killed at any time, the
    same command goes on where it was. Several GPUs:
    torchrun --nproc-per-node 8 -m itg_eval score ...

    Prints the path of the scores. Exit codes: 0 done, 1 done but for videos that cannot be
    read, 2 bad input, 130 interrupted.
    """

    model: str
    """Checkpoint directory of the scorer; of a grounder also owner/name on the hub."""

    output: Path
    """Folder of the run."""

    source: tyro.conf.OmitArgPrefixes[Source] = Source()

    scorer: ScorerKind = "grounder"
    """What the checkpoint is: grounder, or text-image for CLIP, SigLIP and their like."""

    ask: Asked = "context"
    """What the scorer reads: the benchmark's whole prompt, options included, as VideoITG does
    (where there is one), or the question alone."""

    rate_hz: float = 1.0
    """Frames looked at per second of video."""

    max_frames: int | None = None
    """Frames looked at in all; longer videos are thinned evenly. None takes 512, or fewer where
    the model takes fewer."""

    sampling_rule: SamplingRule = "lmms-eval"
    """How long videos are thinned: as VideoITG's benchmark runs, or as it trains."""

    save_embeddings: bool = False
    """Keep the frames' embeddings of a text-image scorer, for the policies mdp3 and wfs-sb."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto gives each process its own GPU."""

    dtype: str = "auto"
    """auto, float32, float16 or bfloat16."""

    def run(self) -> int:
        """Scores this process's share."""
        # imported here: it brings torch
        from itg_model.journal import Share

        with _refusing():
            share = Share.from_environment()
        settings, device = self._to_settings()
        outcome = score_documents(
            self.source.load(),
            settings,
            lambda: load_scorer(self.scorer, self.model, device, settings.dtype),
            self.output,
            share.rank,
            share.num_ranks,
        )
        return self._conclude(outcome)

    def _to_settings(self) -> tuple[Settings, str]:
        # imported here: --help and a typo should not wait for torch
        from itg_model.grounder import resolve_device, resolve_dtype

        with _refusing():
            SamplingConfig(
                rate_hz=self.rate_hz,
                max_frames=1 if self.max_frames is None else self.max_frames,
                rule=self.sampling_rule,
            )
            device = pick_device(self.device)
            dtype = resolve_dtype(self.dtype, resolve_device(device))
        settings = Settings(
            scorer=self.scorer,
            model=self.model,
            model_sha256=fingerprint(self.model),
            dtype=str(dtype).removeprefix("torch."),
            asked=self.ask,
            rate_hz=self.rate_hz,
            max_frames=self.max_frames,
            sampling_rule=self.sampling_rule,
            embeddings=self.save_embeddings,
        )
        return settings, device

    def _conclude(self, outcome: Outcome) -> int:
        if not outcome.is_merged:
            logger.info("this process is done; the last one merges")
            return EXIT_OK
        logger.info("scored %d of %d questions", outcome.num_scored, outcome.num_documents)
        sys.stdout.write(f"{self.output / MERGED}\n")
        if not outcome.failures:
            return EXIT_OK
        videos = {failure.video: failure.reason for failure in outcome.failures}
        logger.error(
            "%d questions about %d videos have no scores, see %s",
            len(outcome.failures),
            len(videos),
            self.output / "failed.jsonl",
        )
        return EXIT_INCOMPLETE


@dataclass(frozen=True, kw_only=True, slots=True)
class Select:
    """Choose the frames of every question by their scores.

    Writes one JSON object a line: the frames' places in the file, their times and scores, and
    whatever they were chosen by. Exit codes: 0 done, 2 bad input.
    """

    scores: Path
    """File of scores."""

    policy: Literal[
        "top-k",
        "uniform",
        "min-gap",
        "bin-max",
        "aks",
        "bolt",
        "wfs-sb",
        "dig",
        "mdp3",
        "q-frame",
    ] = "top-k"
    """How frames are chosen."""

    top_k: int = 32
    """Frames to choose; all where fewer were looked at."""

    policy_param: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")
    ] = ()
    """A parameter of the policy, such as min_gap_s=5; may be given several times. Of q-frame, tau
    goes with the scale of the scores: 0.8 suits logits of 10 to 30, 0.1 a grounder's probabilities,
    0.008 the cosines of a text-image model."""

    output: str = "-"
    """File for the selections, or - for stdout."""

    def run(self) -> int:
        """Chooses for all documents, then writes."""
        with _refusing():
            params = parse_policy_params(self.policy, self.policy_param)
            check_request(self.policy, self.top_k, params)
        chosen = list(select_documents(self.scores, self.policy, self.top_k, params))
        _write_lines(self.output, chosen)
        logger.info("%s", self._summarise(chosen))
        return EXIT_OK

    def _summarise(self, chosen: list[DocumentSelection]) -> str:
        fewer = sum(len(selection.source_idx) < self.top_k for selection in chosen)
        said = f"chose frames for {len(chosen)} questions"
        return f"{said}; {fewer} have fewer than {self.top_k}" if fewer else said


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Measure how well scores find the frames that matter, beside uniform frames.

    Average precision, recall and clue recall of the k best frames, span IoU (CG-Bench's mIoU) and
    rec@IoU, by kind of question. Prints a table. Exit codes: 0 done, 2 bad input.
    """

    scores: Path
    """File of scores."""

    labels: Path
    """Labelled records (.jsonl), or CG-Bench's own file (.json) with its clue intervals."""

    top_k: tuple[int, ...] = (8, 16, 32)
    """Numbers of frames for recall."""

    selection: Path | None = None
    """File of selections to measure as well, made from these scores."""

    json: str | None = None
    """File for the values as JSON; - prints them instead of the table."""

    def run(self) -> int:
        """Measures and prints."""
        if not self.top_k or min(self.top_k) < 1:
            raise ItgError(f"--top-k must be >= 1, got {self.top_k}")
        report = report_frames(
            read_jsonl(self.scores, DocumentScores),
            read_labels(self.labels),
            self.top_k,
            None if self.selection is None else Selections.load(self.selection),
        )
        for count, what in (
            (report.num_unlabelled, "questions with scores have no label"),
            (report.num_unscored, "labels have no scores"),
            (report.num_unseen, "questions have no sampled frame in their spans"),
        ):
            if count:
                logger.warning("%d %s", count, what)
        values = json.dumps(asdict(report), indent=2) + "\n"
        if self.json == "-":
            sys.stdout.write(values)
            return EXIT_OK
        if self.json is not None:
            write_atomic(self.json, values)
        sys.stdout.write(format_table(report.means) + "\n")
        return EXIT_OK


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResults:
    """Turn a results.jsonl of VideoITG's own evaluation into scores.

    The first line of a number counts, bad lines are skipped, frames keep their order: as its host
    models read it. The videos are opened for their times, not decoded. Exit codes: 0 done, 1 done
    but for what could not be used, 2 bad input.
    """

    results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")]
    """The file."""

    source: tyro.conf.OmitArgPrefixes[Source] = Source()

    model: str = "nvidia/VideoITG-8B"
    """What made the scores."""

    output: str = "-"
    """File for the scores, or - for stdout."""

    def run(self) -> int:
        """Reads, joins with the documents, and writes."""
        if not self.results.is_file():
            raise ItgError(f"{self.results}: no such file")
        documents = self.source.load()
        tally = Tally()
        results = read_results(self.results, tally)
        scores = list(join_documents(results, documents, self.model, tally))
        _write_lines(self.output, scores)
        logger.info("took over the scores of %d of %d questions", len(scores), len(documents))
        for count, example, what in tally.complaints():
            logger.warning("%d %s%s", count, what, f", such as {example}" if example else "")
        return EXIT_OK if len(scores) == len(documents) else EXIT_INCOMPLETE


@contextmanager
def _refusing() -> Generator[None]:
    """Turns what is wrong with a request into an error that is shown without a traceback."""
    try:
        yield
    except ValueError as error:
        raise ItgError(str(error)) from None


def _write_lines(output: str, records: Iterable[object]) -> None:
    lines = b"".join(map(format_record, records))
    if output == "-":
        sys.stdout.write(lines.decode())
        sys.stdout.flush()
        return
    try:
        write_atomic(output, lines)
    except OSError as error:
        raise ItgError(f"--output {output}: {error.strerror or error}") from None
