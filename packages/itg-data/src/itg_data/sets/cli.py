"""`itg-data check`, `stats` and `view`: a set's soundness, figures and looks."""

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import tyro

from itg_data.annotate.records import require_whole_characters
from itg_data.errors import InputError, ItgError, RecordError, to_one_line
from itg_data.jsonl import write_jsonl
from itg_data.published import Labels, read_published
from itg_data.sets.folder import Sample, SetFolder
from itg_data.sets.table import write_table

EXIT_OK, EXIT_UNSOUND = 0, 1

SetArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SET")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Say whether a set is sound, against its own rules and its videos.

    Looks for lines that break the schema, labels outside their video, questions that are there
    twice, videos in two splits, under two names as well, and files that no longer follow from the
    annotations. Prints one line for each fault and each oddity, with file, record and field, and a
    summary. Exit code 0: sound, 1: faults, 2: no set there.
    """

    set: SetArgument
    """Folder of the set: what `itg-data annotate` wrote, or any folder with a records.jsonl."""

    videos: Path | None = None
    """Folder that the records' video paths are relative to; None means SET itself."""

    num_workers: int = max(1, min(8, len(os.sched_getaffinity(0))))
    """Videos that are read at once."""

    def run(self) -> int:
        """Checks, and tells."""
        from itg_data.sets.check import check_set

        if self.num_workers < 1:
            raise InputError(f"--num-workers must be >= 1, got {self.num_workers}")
        folder = SetFolder(self.set)
        with progress("reading videos") as on_video:
            report = check_set(
                folder, self.videos or self.set, num_workers=self.num_workers, on_video=on_video
            )
        for finding in report.findings:
            print(to_one_line(str(finding)))
        num_faults = sum(finding.is_fault for finding in report.findings)
        statistics = report.statistics
        print(
            f"{'sound' if report.is_sound else 'unsound'}: {statistics.num_samples} records of "
            f"{len(statistics.questions_of)} videos, {num_faults} faults, "
            f"{len(report.findings) - num_faults} oddities"
        )
        return EXIT_OK if report.is_sound else EXIT_UNSOUND


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Say what is in a set: types, clips, labels, durations, drops.

    Prints a table, or all figures as one JSON object.
    """

    set: SetArgument
    """Folder of the set."""

    json: bool = False
    """Print JSON instead of the table."""

    plots: Path | None = None
    """Folder to draw plots to, as PNG; made if it is not there. Needs itg-data[annotate]."""

    def run(self) -> int:
        """Counts, and tells."""
        from itg_data.sets.statistics import measure_set

        statistics = measure_set(SetFolder(self.set))
        print(json.dumps(statistics.to_json()) if self.json else write_table(statistics))
        if self.plots is not None:
            try:
                from itg_data.sets.plots import draw_plots
            except ImportError as error:
                raise ItgError(f"plots need itg-data[annotate]: {error}") from None
            for path in draw_plots(statistics, self.plots):
                print(f"drew {path}", file=sys.stderr)
        return EXIT_OK


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Write pages to look at: frames over time with labels, captions and retrieval's reasons.

    Each sample becomes one HTML file that opens anywhere, without a network; `index.html` leads to
    them. Prints the index's path. A video that cannot be read is named on stderr and in the index.
    """

    set: SetArgument
    """Folder of the set."""

    out: Path
    """Folder to write to; made if it is not there."""

    videos: Path | None = None
    """Folder that the records' video paths are relative to; None means SET itself."""

    limit: int = 50
    """Most samples to show: the set's first ones, some 100 kB to 3 MB each. 0 for all."""

    ids: tuple[str, ...] = ()
    """Show these records instead."""

    def run(self) -> int:
        """Writes the pages."""
        from itg_data.sets.view import write_pages

        if self.limit < 0:
            raise InputError(f"--limit must be >= 0, got {self.limit}")
        samples = self._choose(SetFolder(self.set))
        with progress("writing pages") as on_page:
            complaints = write_pages(samples, self.videos or self.set, self.out, on_page)
        for complaint in complaints:
            print(f"itg-data view: {to_one_line(complaint)}", file=sys.stderr)
        print(self.out / "index.html")
        return EXIT_UNSOUND if complaints else EXIT_OK

    def _choose(self, folder: SetFolder) -> list[Sample]:
        if not self.ids:
            return list(islice(folder.iterate_samples(), self.limit or None))
        chosen = [s for s in folder.iterate_samples() if s.record.id in self.ids]
        if missing := sorted(set(self.ids) - {sample.record.id for sample in chosen}):
            raise RecordError(f"{folder.source}: ids must be of records, got {missing[0]!r}")
        return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """Turn the published data set's file into records that itg-train reads.

    Prints how many were read; each record that breaks the format is named on stderr and left out.
    Exit code 0: records were read, 2: none could be, and nothing was written.
    """

    published: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file: `video_itg_data.json`, or another of its format."""

    out: Path
    """Folder to write `records.jsonl` to; made if it is not there."""

    labels: Labels = "frame_num"
    """Which field says what is relevant. `clip_num_as_seconds` takes clip numbers for seconds, as
    the reference's training code does: wrong, and there to compare with."""

    split: str | None = None
    """Split of all records; the format has none."""

    overwrite: bool = False
    """Replace a `records.jsonl` that is there already."""

    def run(self) -> int:
        """Reads, and writes."""
        self._check()
        num_bad = 0

        def on_bad(error: RecordError) -> None:
            nonlocal num_bad
            num_bad += 1
            print(f"itg-data import: {to_one_line(str(error))}", file=sys.stderr)

        found = read_published(self.published, labels=self.labels, split=self.split, on_bad=on_bad)
        first = list(islice(found, 1))
        if num_bad and not first:
            raise RecordError(f"{self.published}: none of its {num_bad} records can be read")
        self.out.mkdir(parents=True, exist_ok=True)
        num_records = write_jsonl(SetFolder(self.out).records, chain(first, found))
        print(json.dumps({"num_records": num_records, "num_bad": num_bad}))
        return EXIT_OK

    def _check(self) -> None:
        """Refuses what would go wrong for every record, or destroy what is there."""
        folder = SetFolder(self.out)
        if folder.annotations.exists():
            raise InputError(
                f"--out {self.out} is an annotated set, whose records follow from "
                f"{folder.annotations.name}; choose another folder"
            )
        if folder.records.exists() and not self.overwrite:
            raise InputError(
                f"--out {self.out} holds a {folder.records.name} already; choose another folder, "
                "or replace it with --overwrite"
            )
        if self.split is not None:
            try:
                require_whole_characters("--split", self.split)
            except RecordError as error:
                raise InputError(str(error)) from None


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int], None]]:
    """Yields what shows (done, in all) on stderr, with the time left, where people see it."""
    try:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:  # itg-data without its extra annotate
        yield lambda done, total: None
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)
