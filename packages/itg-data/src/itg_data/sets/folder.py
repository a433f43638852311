"""What lies where in the folder of a set."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from itg_data.annotate.records import Annotation, DroppedSample
from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl, read_jsonl_places, read_record_at
from itg_data.records import GroundingRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One record of a set, with the steps that led to it where they are known."""

    record: GroundingRecord
    annotation: Annotation | None = None
    place: int = 0
    """Byte of the file at which its line begins, for `SetFolder.read_samples_at`."""


@dataclass(frozen=True, slots=True)
class SetFolder:
    """The files of a set; `annotations` and what else was made from them may be missing.

    A set that was annotated holds all of them. One that came from elsewhere holds `records.jsonl`.
    """

    root: Path

    @property
    def annotations(self) -> Path:
        """Annotations with every step that led to them: what all other files are made from."""
        return self.root / "annotations.jsonl"

    @property
    def dropped(self) -> Path:
        """QA pairs that did not become records, with their reasons."""
        return self.root / "dropped.jsonl"

    @property
    def records(self) -> Path:
        """What training reads."""
        return self.root / "records.jsonl"

    @property
    def parquet(self) -> Path:
        """The annotations as a table."""
        return self.root / "annotations.parquet"

    @property
    def published(self) -> Path:
        """The labels in the published data set's format."""
        return self.root / "video_itg_data.json"

    @property
    def card(self) -> Path:
        """What the set is, for people."""
        return self.root / "README.md"

    @property
    def source(self) -> Path:
        """The file that the samples are read from.

        Raises:
            RecordError: There is none.
        """
        for path in (self.annotations, self.records):
            if path.is_file():
                return path
        raise RecordError(
            f"{self.root}: is no set: it has neither {self.annotations.name} nor "
            f"{self.records.name}"
        )

    def iterate_samples(
        self, on_bad: Callable[[RecordError], None] | None = None
    ) -> Iterator[Sample]:
        """Reads the samples one by one.

        Args:
            on_bad: Called with the complaint about a line that cannot be read, which is then left
                out. None stops at the first one.

        Raises:
            RecordError: The folder holds no set, or a line is bad and `on_bad` is None.
        """
        source = self.source
        for place, line in read_jsonl_places(source, self._line_type, on_bad=on_bad):
            try:
                sample = _to_sample(line, place)
            except RecordError as error:
                complaint = RecordError(f"{source}: {line.id}: {error}")
                if on_bad is None:
                    raise complaint from None
                on_bad(complaint)
            else:
                yield sample

    def read_samples_at(self, places: Iterable[int]) -> Iterator[Sample]:
        """Reads some samples again, by the places that `iterate_samples` gave them.

        Raises:
            RecordError: The file has changed since and holds no sample there.
        """
        with self.source.open("rb") as file:
            for place in places:
                yield _to_sample(read_record_at(file, place, self._line_type), place)

    @property
    def _line_type(self) -> type[Annotation] | type[GroundingRecord]:
        return Annotation if self.source == self.annotations else GroundingRecord

    def iterate_dropped(self) -> Iterator[DroppedSample]:
        """Reads what was dropped; nothing where the set does not say."""
        if self.dropped.is_file():
            yield from read_jsonl(self.dropped, DroppedSample)


def _to_sample(line: Annotation | GroundingRecord, place: int) -> Sample:
    if isinstance(line, Annotation):
        return Sample(record=line.to_grounding(), annotation=line, place=place)
    return Sample(record=line, place=place)
