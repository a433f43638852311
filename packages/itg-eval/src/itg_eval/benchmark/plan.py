"""What is run, and where it lies.

    RUN_DIR/
        run.json             what is run; a folder belongs to one benchmark and one way of choosing
        scripted/            itg_scripted's data and definition, if that is asked for
        documents.jsonl      stage 0: the questions, from lmms-eval's own tasks
        scores/              stage 1: `itg-eval score`
        uniform.jsonl        stage 2: `itg-eval select`, once evenly spaced
        grounded.jsonl       and once by the scores
        answers/HOST/ARM/    stage 3: `outcomes.jsonl` when done; `journal/`, `lmms-eval/`, `log.txt`
        report.{md,json,html}    stage 4
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from itg_data.errors import ItgError
from itg_data.files import write_atomic

ARMS = ("uniform", "grounded")
"""The two ways of choosing frames that are held against each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """A host model: its id in lmms-eval and its own arguments."""

    id: str
    args: str
    """As lmms-eval takes them, such as `pretrained=Qwen/Qwen3-VL-8B-Instruct`."""

    @classmethod
    def parse(cls, text: str) -> "Host":
        """Reads `ID` or `ID,key=value,...`.

        Raises:
            ItgError: It is not of that form.
        """
        name, _, args = text.partition(",")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ItgError(f"--host must be ID or ID,key=value,..., got {text!r:.200}")
        if args and not all("=" in arg for arg in args.split(",")):
            raise ItgError(f"--host {name}: arguments must be key=value, got {args!r:.200}")
        return cls(id=name, args=args)

    @property
    def checkpoint(self) -> str:
        """Name or path of its weights, as far as its arguments tell."""
        found = re.search(r"(?:^|,)(?:pretrained|model|model_version|model_name)=([^,]+)", self.args)
        return found[1].rstrip("/") if found else ""

    @property
    def label(self) -> str:
        """What it is called in a table."""
        weights = self.checkpoint.rsplit("/", 1)[-1]
        return f"{self.id} ({weights})" if weights and weights != self.id else self.id

    @property
    def folder(self) -> str:
        """A name of its own for its files."""
        return f"{self.id}-{hashlib.sha256(self.args.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What decides the frames and the questions; hosts may be added to a folder later."""

    tasks: tuple[str, ...]
    include_path: str | None
    limit: int | None
    model: str
    rate_hz: float
    max_frames: int | None
    policy: str
    params: Mapping[str, float]
    top_k: int


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
        self.scores = root / "scores"
        self.answers = root / "answers"

    def selection(self, arm: str) -> Path:
        """The file of selected frames of one arm."""
        return self.root / f"{arm}.jsonl"

    def arm(self, host: Host, arm: str) -> Path:
        """The folder of one host's answers over one selection."""
        return self.answers / host.folder / arm

    def report(self, suffix: str) -> Path:
        """The report in one of its forms."""
        return self.root / f"report.{suffix}"

    def claim(self, plan: Plan) -> None:
        """Makes the folder this plan's, or checks that it is.

        Raises:
            ItgError: It is another plan's, or cannot be written to.
        """
        described = json.loads(json.dumps(asdict(plan)))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.plan.exists():
                write_atomic(self.plan, json.dumps(described, indent=2) + "\n")
                return
            there = json.loads(self.plan.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ItgError(f"--run-dir {self.root}: {error}") from None
        for name, value in described.items():
            found = there.get(name) if isinstance(there, dict) else None  # pyright: ignore
            if found != value:
                raise ItgError(
                    f"--run-dir {self.root}: holds a run with {name} {found!r}, not {value!r}; "
                    "name another folder, or remove this one"
                )
