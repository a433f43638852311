"""The `itg-eval` command: what frame selection does to a Video LLM, stage by stage.

Each subcommand is a dataclass with a `run` method that returns the exit code, and its name in
`COMMANDS`. Results go to stdout, progress and complaints to stderr.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Protocol

import tyro
from itg_data.errors import ItgError, in_one_line, to_one_line
from itg_data.helptext import join_help, says_version

from itg_eval.benchmark.commands import Documents, Report, Run, Scripted
from itg_eval.commands import Frames, ImportResults, Score, Select

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


class _OneLine(logging.Formatter):
    """Paths and names of others may hold what moves a terminal's cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return to_one_line(super().formatMessage(record))


class Command(Protocol):
    """What a subcommand must be."""

    def run(self) -> int:
        """Does the work and returns the exit code."""
        ...


COMMANDS: dict[str, type[Command]] = {
    "run": Run,
    "report": Report,
    "documents": Documents,
    "score": Score,
    "select": Select,
    "frames": Frames,
    "import-results": ImportResults,
    "scripted": Scripted,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if says_version(arguments, "itg-eval", "itg-eval"):
        return 0
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("itg-eval: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for talkative in ("httpx", "numexpr", "torch", "transformers"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            {name: join_help(command) for name, command in COMMANDS.items()},
            args=arguments,
            prog="itg-eval",
            description=(
                "Measure what frame selection does to a Video LLM. --version says which release "
                "this is."
            ),
        )
        return command.run()
    except (ItgError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # whoever read stdout has gone; keep Python from complaining about it on the way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"itg-eval: {in_one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("itg-eval: interrupted; the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
