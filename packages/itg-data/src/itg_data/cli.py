"""The `itg-data` command: look at videos and data sets from a shell.

Each subcommand is a dataclass with a `run` method that returns the exit code, and its name in
`COMMANDS`. Output of record goes to stdout, one JSON object a line; complaints go to stderr.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import tyro

from itg_data.annotate.cli import Annotate
from itg_data.errors import ItgError, VideoError, in_one_line
from itg_data.helptext import join_help, says_version
from itg_data.sets.cli import Check, Import, Stats, View
from itg_data.video import Backend, open_video

EXIT_OK, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130


class Command(Protocol):
    """What a subcommand must be."""

    def run(self) -> int:
        """Does the work and returns the exit code."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Say what video files hold and how their frames would be read.

    Prints one JSON object a line: codec, frame size as shown, frame rate, frames counted from the
    packets, duration, what is odd about the file, and the backend that would read it. A file that
    is no readable video gives one line on stderr, and exit code 2 at the end.
    """

    videos: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="VIDEO...", help_behavior_hint="(at least one)"),
    ]
    """Files to look at."""

    backend: Backend = "auto"
    """Ask for one decoder: auto is pyav, and decord refuses files that it might read wrongly."""

    def run(self) -> int:
        """Probes every file, good or bad, in order."""
        if not self.videos:
            print("itg-data probe: name at least one video", file=sys.stderr)
            return EXIT_BAD_INPUT
        exit_code = EXIT_OK
        for path in self.videos:
            try:
                print(json.dumps(_describe(path, self.backend)), flush=True)
            except VideoError as error:
                print(f"itg-data probe: {in_one_line(error)}", file=sys.stderr)
                exit_code = EXIT_BAD_INPUT
        return exit_code


COMMANDS: dict[str, type[Command]] = {
    "probe": Probe,
    "annotate": Annotate,
    "check": Check,
    "stats": Stats,
    "view": View,
    "import": Import,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if says_version(arguments, "itg-data", "itg-data"):
        return 0
    command = tyro.extras.subcommand_cli_from_dict(
        {name: join_help(command) for name, command in COMMANDS.items()},
        args=arguments,
        prog="itg-data",
        description=(
            "Look at videos and data sets the way all itg packages see them. --version says which "
            "release this is."
        ),
    )
    try:
        return command.run()
    except BrokenPipeError:
        # whoever read stdout has gone; keep Python from complaining about it on the way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ItgError, OSError) as error:
        print(f"itg-data: {in_one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("itg-data: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _describe(path: str, backend: Backend) -> dict[str, object]:
    with open_video(path, backend=backend) as video:
        return {
            "video": path,
            "format": video.probe.format,
            "codec": video.probe.codec,
            "pix_fmt": video.probe.pix_fmt,
            "height": video.height,
            "width": video.width,
            "fps": video.fps,
            "num_frames": video.num_frames,
            "duration_s": video.duration_s,
            "oddities": list(video.probe.oddities),
            "backend": video.backend,
        }


if __name__ == "__main__":
    sys.exit(main())
