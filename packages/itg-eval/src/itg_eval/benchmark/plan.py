"""What is run, and where it lies.

RUN_DIR/
run.json             what is run; a folder belongs to one benchmark and one way of choosing
scripted/            itg_scripted's data and definition, if that is asked for
documents.jsonl      stage 0: the questions, from lmms-eval's own tasks
scores/              stage 1: `itg-eval score`
uniform.jsonl        stage 2: `itg-eval select`, once evenly spaced
grounded.jsonl       and once by the scores
*.source.json        from which scores each was chosen
left-out.jsonl       questions that no host model is asked: their videos cannot be read
answers/HOST/ARM/    stage 3: `outcomes.jsonl` when done; `journal/`, `lmms-eval/`, `log.txt`
report.{md,json,html}    stage 4
"""

import hashlib
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from itg_data.errors import ItgError, RecordError
from itg_data.files import write_atomic
from itg_data.jsonl import format_record, parse_record

from itg_eval.lmms.arguments import fingerprint_weights, redact

RecordT = TypeVar("RecordT")

ARMS = ("uniform", "grounded")
"""The two ways of choosing frames that are held against each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A host model: its id in lmms-eval and its own arguments."""

    id: str
    args: str
    """As lmms-eval takes them, such as `pretrained=Qwen/Qwen3-VL-8B-Instruct`. May hold secrets:
    write `public_args`."""

    @classmethod
    def parse(cls, text: str) -> "Host":
        """Reads `ID` or `ID,key=value,...`.

        Raises:
            ItgError: It is not of that form.
        """
        name, _, args = text.partition(",")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ItgError(f"--host must be ID or ID,key=value,..., got {redact(text)!r:.200}")
        if args and not all("=" in arg for arg in args.split(",")):
            raise ItgError(f"--host {name}: arguments must be key=value, got {redact(args)!r:.200}")
        return cls(id=name, args=args)

    @property
    def checkpoint(self) -> str:
        """Name or path of its weights, as far as its arguments tell."""
        found = re.search(r"(?:^|,)(?:pretrained|model(?:_version|_name)?)=([^,]+)", self.args)
        return found[1].rstrip("/") if found else ""

    @property
    def label(self) -> str:
        """What it is called in a table."""
        weights = self.checkpoint.rsplit("/", 1)[-1]
        return f"{self.id} ({weights})" if weights and weights != self.id else self.id

    @property
    def folder(self) -> str:
        """A name of its own for its files; another API key leaves it as it is."""
        return f"{self.id}-{hashlib.sha256(self.public_args.encode()).hexdigest()[:8]}"

    @property
    def public_args(self) -> str:
        """Its arguments with secrets hidden."""
        return redact(self.args)

    def fingerprint(self) -> str | None:
        """Tells its weights from others that lay there before; None if they are in no folder."""
        pairs = (arg.partition("=") for arg in self.args.split(","))
        return fingerprint_weights({name: value for name, _, value in pairs})


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What decides the frames and the questions; hosts may be added to a folder later."""

    tasks: tuple[str, ...]
    include_path: str | None
    limit: int | None
    model: str | None
    """Checkpoint of the scorer; None where scores made before are used."""
    scores: str | None
    """File of these; None where the scorer makes them."""
    rate_hz: float
    max_frames: int | None
    policy: str
    params: tuple[str, ...]
    """The policy's parameters, each `name=value`."""
    top_k: int
    model_sha256: str | None = None
    """Fingerprint of the scorer's files; None for a hub id."""
    scores_sha256: str | None = None
    """Hash of the file of scores."""


class RunDir:
    """Paths of one run.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plan = root / "run.json"
        self.scripted = root / "scripted"
        self.documents = root / "documents.jsonl"
        self.left_out = root / "left-out.jsonl"
        self.scoring = root / "scores"
        self.answers = root / "answers"

    def scores(self, plan: Plan) -> Path:
        """The file of scores: the run's own, or one made before."""
        return Path(plan.scores) if plan.scores else self.scoring / "scores.jsonl"

    def selection(self, arm: str) -> Path:
        """The file of selected frames of one arm."""
        return self.root / f"{arm}.jsonl"

    def source(self, arm: str) -> Path:
        """The file that says from which scores the frames of one arm were chosen."""
        return self.root / f"{arm}.source.json"

    def arm(self, host: Host, arm: str) -> Path:
        """The folder of one host's answers over one selection."""
        return self.answers / host.folder / arm

    def load_plan(self) -> Plan:
        """Reads what is run here.

        Raises:
            ItgError: The folder holds no run.
        """
        if not self.plan.is_file():
            raise ItgError(f"{self.root}: holds no run of itg-eval")
        return read_record(self.plan, Plan)

    def hosts(self) -> list[Host]:
        """The hosts that have begun to answer here, in the order of their folders' names."""
        return [read_record(path, Host) for path in sorted(self.answers.glob("*/host.json"))]

    def welcome(self, host: Host) -> None:
        """Makes the folder of a host."""
        folder = self.answers / host.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "host.json", format_record(replace(host, args=host.public_args)))

    def report(self, suffix: str) -> Path:
        """The report in one of its forms."""
        return self.root / f"report.{suffix}"

    def claim(self, plan: Plan) -> None:
        """Makes the folder this plan's, or checks that it is.

        Raises:
            ItgError: It is another plan's, or cannot be written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.plan.exists():
                write_atomic(self.plan, format_record(plan))
                return
        except OSError as error:
            raise ItgError(f"--run-dir {self.root}: {error.strerror or error}") from None
        there = asdict(self.load_plan())
        for name, now in {"model": plan.model_sha256, "scores": plan.scores_sha256}.items():
            was = there[f"{name}_sha256"]
            if there[name] == getattr(plan, name) and was != now:
                raise ItgError(
                    f"--run-dir {self.root}: holds a run of what --{name} {there[name]} held "
                    f"before it changed (its hash was {was}, now {now}); name another folder, or "
                    "remove this one"
                )
        for name, value in asdict(plan).items():
            found = there[name]
            if found != value:
                raise ItgError(
                    f"--run-dir {self.root}: holds a run with {name} {found!r}, not {value!r}; "
                    "name another folder, or remove this one"
                )


def read_record(path: Path, record_type: type[RecordT]) -> RecordT:
    """Reads a file that holds one record.

    Raises:
        ItgError: It cannot be read, or holds something else; the message names it.
    """
    try:
        return parse_record(path.read_bytes(), record_type)
    except (OSError, RecordError) as error:
        raise ItgError(f"{path}: {error}; remove it to start over") from None
