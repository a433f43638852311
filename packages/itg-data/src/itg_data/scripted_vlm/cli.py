"""`python -m itg_data.scripted_vlm DIR`: makes a scripted set unless it is there, and serves it."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from itg_data.annotate.records import QaPair
from itg_data.errors import InputError, ItgError, in_one_line
from itg_data.helptext import join_help
from itg_data.jsonl import write_jsonl
from itg_data.records import GroundingRecord
from itg_data.scripted_vlm.server import Behaviour, ScriptedServer
from itg_data.scripted_vlm.sight import ScriptedSet
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_data.synthetic.dataset import read_config

_QA = "qa.jsonl"
_USUAL = SyntheticConfig(num_train=16, num_heldout=8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Answer as a vision-language model would, for scripted videos, from their script.

    Writes a scripted set to DIR unless one is there: `videos/`, `qa.jsonl` with the questions and
    answers that a pipeline may see, and `records.jsonl` with the truth that it may not. A set that
    is there is served as it is; options that ask for another one are refused. Then it serves the
    OpenAI protocol until it is interrupted, and prints the address for `--base-url`. `GET /stats`,
    beside `/v1`, says what was asked so far.
    """

    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of the scripted set."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 8011
    """Port to listen on; 0 for any free one."""

    behaviour: Behaviour = field(default_factory=Behaviour)

    synthetic: SyntheticConfig = field(default_factory=lambda: _USUAL)

    def run(self) -> int:
        """Serves until interrupted."""
        if self.root.exists():
            complete_set(self.root, self.synthetic)
            print(f"{self.root} is there and is served as it is", file=sys.stderr)
        else:
            print(f"writing a scripted set to {self.root} ...", file=sys.stderr)
            write_set(self.root, self.synthetic)
        scripted = ScriptedSet(self.root)
        with ScriptedServer(scripted, self.behaviour, self.host, self.port) as server:
            print(server.base_url, flush=True)
            print(f"{len(scripted)} videos; {json.dumps(asdict(self.behaviour))}", file=sys.stderr)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print(json.dumps(server.tally.snapshot()), file=sys.stderr)
        return 0


def write_set(root: Path, config: SyntheticConfig) -> None:
    """Writes a scripted set and, beside it, `qa.jsonl`: what a pipeline may know of it.

    Raises:
        FileExistsError: `root` is there and is another set.
    """
    write_jsonl(root / _QA, _questions(load_or_write_dataset(root, config)))


def complete_set(root: Path, asked: SyntheticConfig) -> None:
    """Sees to it that a set that is there is what is asked for, and whole.

    Args:
        root: The set's folder.
        asked: What it must be, unless that is what stands for no wish of its own.

    Raises:
        RecordError: It is no scripted set.
        InputError: It is another one.
    """
    there = read_config(root)
    if asked not in (there, _USUAL):
        name, value = next(
            (name, value) for name, value in asdict(asked).items() if value != asdict(there)[name]
        )
        option = f"synthetic.{name.replace('_', '-')}"
        raise InputError(
            f"{root} is there with --{option} {asdict(there)[name]}, not {value}: leave the "
            "--synthetic options out to serve it as it is, or name another folder"
        )
    if not (root / _QA).exists():  # its writer was killed before it came to this
        write_set(root, there)


def _questions(records: Sequence[GroundingRecord]) -> Iterator[QaPair]:
    """What is known before anything is annotated; paths are relative to the folder of videos."""
    for record in records:
        yield QaPair(
            id=record.id,
            video=record.video.removeprefix("videos/"),
            question=record.question,
            answer=record.answer or "",
            split=record.split,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    prog = "python -m itg_data.scripted_vlm"
    try:
        return tyro.cli(join_help(Serve), args=argv, prog=prog).run()
    except (ItgError, OSError, ValueError) as error:
        print(f"{prog}: {in_one_line(error)}", file=sys.stderr)
        return 2
