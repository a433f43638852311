"""The folder of a run: what was asked for, by which code, what happened, what came out.

    config.json      the whole config and the recipe it came from
    provenance.json  code version, package versions, machine
    data.json        how much is learnt from, and a hash of what it is
    metrics.jsonl    one line per step and per measurement on the held-out split
    tensorboard/     the same as curves
    state/           DeepSpeed's own files, to resume from
    checkpoint/      the trained grounder: config, safetensors, tokenizer, and a card
    heldout.json     quality on the held-out split
    selection.json   frames chosen from one held-out video; report.html and scores.png show it

A folder belongs to one config, but for its `FREE` fields, and to what is learnt from. Started again
with the same ones, an unfinished run goes on, with any number of processes; with others it is
refused, because its results would be of neither. Two runs at once in one folder would spoil each
other's states, so a run holds the lock `.lock` for as long as it lives; the system takes it back
however the run ends.
"""

import copy
import fcntl
import importlib.metadata
import json
import logging
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from itg_data.errors import ItgError
from itg_data.files import write_atomic

from itg_train.config import TrainConfig, to_plain

logger = logging.getLogger(__name__)

_PACKAGES = (
    "itg-data",
    "itg-kernels",
    "itg-model",
    "itg-train",
    "torch",
    "transformers",
    "deepspeed",
    "peft",
    "triton",
    "numpy",
    "av",
    "decord",
)


FREE = (
    ("data", "cache_mib"),
    ("data", "num_workers"),
    ("engine", "layers_recomputed"),
    ("engine", "recompute"),
    ("frame_chunk",),
    ("save_every",),
    ("tokens_per_pass",),
)
"""Fields that say what a run may take and not what it learns: a run that ended for want of memory
goes on with less. Losses stay what they would have been but for the last digits, as they do with
another number of processes."""

LOCK_PATIENCE_S = 10.0
"""How long a run waits for one before it, just killed, to be gone."""


class RunError(ItgError):
    """A run cannot start or go on in its folder; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What a run learns from and is measured on, in short."""

    num_videos: int
    num_questions: int
    sha256: str
    """Of the groups in their order: each one's video, number of frames, questions and labels."""

    def __str__(self) -> str:
        return f"{self.num_videos} videos with {self.num_questions} questions"


class RunDir:
    """Paths and small files of one run.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / ".lock"
        self.config = root / "config.json"
        self.provenance = root / "provenance.json"
        self.data = root / "data.json"
        self.metrics = root / "metrics.jsonl"
        self.tensorboard = root / "tensorboard"
        self.state = root / "state"
        self.checkpoint = root / "checkpoint"
        self.heldout = root / "heldout.json"
        self.selection = root / "selection.json"
        self.picture = root / "scores.png"
        self.report = root / "report.html"

    def check(self, recipe: str, config: TrainConfig) -> None:
        """Makes the folder if need be, and confirms that this run may have it.

        Raises:
            RunError: The folder holds another run or something that is not a run, or cannot be
                made.
        """
        if self.config.exists():
            found, described = _read_json(self.config), _describe(recipe, config)
            if _bound(found) != _bound(described):
                changed = _first_difference(_bound(found), _bound(described))
                raise RunError(
                    f"{self.root} holds a run with another config ({changed}); "
                    "remove it or pass another --run-dir"
                )
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # what a run leaves that was killed before it wrote its config
            if set(self.root.iterdir()) - {self.lock, self.provenance, self.data}:
                raise RunError(f"{self.root} is not empty and not a run; pass another --run-dir")
        except OSError as error:
            raise RunError(f"--run-dir {self.root}: {error.strerror or error}") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder, which must be there.

        Raises:
            RunError: Another run is at work in it, or it cannot be written to.
        """
        try:
            lock = self.lock.open("w")
        except OSError as error:
            raise RunError(f"--run-dir {self.root}: {error.strerror or error}") from None
        with lock:
            deadline_s = time.monotonic() + LOCK_PATIENCE_S
            while not _is_locked(lock.fileno()):
                if time.monotonic() > deadline_s:
                    raise RunError(
                        f"{self.root}: another run is at work in this folder; wait until it ends, "
                        "or pass another --run-dir"
                    )
                time.sleep(0.1)
            yield

    def claim(self, recipe: str, config: TrainConfig, data: DataFacts) -> None:
        """Makes the folder this run's own, unless it is already.

        Raises:
            RunError: As `check`, the folder cannot be written to, or the data are not those that
                its run began with.
        """
        self.check(recipe, config)
        if self.config.exists():
            self._check_data(data)
            self._note_changes(_describe(recipe, config))
            return
        try:
            write_json(self.provenance, describe_origin())
            write_json(self.data, asdict(data))
            write_json(self.config, _describe(recipe, config))
        except OSError as error:
            raise RunError(f"--run-dir {self.root}: {error.strerror or error}") from None

    def _note_changes(self, described: dict[str, Any]) -> None:
        """Says how the run goes on otherwise than it began, and keeps it as the run's config."""
        found = _read_json(self.config)
        if found != described:
            logger.info("goes on changed: %s", _first_difference(found, described))
            write_json(self.config, described)

    def _check_data(self, data: DataFacts) -> None:
        """Steps of other data would not be those that the run left off before."""
        # folders of before there was such a file go on
        if not self.data.exists():
            return
        found = _read_json(self.data)
        if found == asdict(data):
            return
        try:
            then = str(DataFacts(**found))
        except TypeError:
            raise RunError(f"{self.data}: does not say what the run learns from") from None
        now = f"{data} now" if str(data) != then else "as many now, but not the same"
        raise RunError(
            f"{self.root} holds a run on other data ({then} then, {now}); restore the videos and "
            "annotations, or pass another --run-dir"
        )

    def cut_metrics(self, num_steps: int) -> None:
        """Drops lines of steps that a resumed run takes again, and a last line cut off."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < num_steps:
                    kept.append(line + "\n")
            except ValueError:
                continue
        write_atomic(self.metrics, "".join(kept))


def _is_locked(fd: int) -> bool:
    """Takes a file's lock if it is free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # a file system without locks, as some clusters have: the run is worth more than the lock
        return True
    return True


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(data, indent=2) + "\n")


def _describe(recipe: str, config: TrainConfig) -> dict[str, Any]:
    return {"recipe": recipe, "config": to_plain(config)}


def describe_origin() -> dict[str, Any]:
    """Says which code on which machine: git commit, versions, processor or GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": _git("status", "--porcelain") not in ("", None),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "gpu": gpu,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """Asks git about this code; None where it does not lie in a repository or there is no git."""
    try:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def _bound(described: Any) -> Any:
    """What a folder belongs to: a description without its free fields."""
    bound = copy.deepcopy(described)
    for *parts, name in FREE:
        holder = bound
        for part in ("config", *parts):
            holder = holder.get(part) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop(name, None)
    return bound


def _first_difference(found: Any, wanted: Any, path: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(set(found) | set(wanted)):
            if found.get(key) != wanted.get(key):
                return _first_difference(found.get(key), wanted.get(key), f"{path}.{key}")
    return f"{path.removeprefix('.').removeprefix('config.')} is {found!r}, not {wanted!r}"
