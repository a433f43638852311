"""From a set's annotations, all its other files: records, table, published format, card."""

from collections.abc import Iterator
from pathlib import Path

from itg_data.files import write_atomic
from itg_data.jsonl import write_jsonl
from itg_data.published import publishing
from itg_data.records import GroundingRecord
from itg_data.sets.card import write_card
from itg_data.sets.folder import SetFolder
from itg_data.sets.parquet import writing_parquet
from itg_data.sets.statistics import SetStatistics


def write_derived(root: Path) -> SetStatistics:
    """Writes everything that follows from a set's `annotations.jsonl` and `dropped.jsonl`.

    One pass, in constant memory. Each file appears whole or not at all, and again from the same
    annotations with the same content.

    Args:
        root: The set's folder.

    Returns:
        What was counted on the way.

    Raises:
        RecordError: A line of the annotations cannot be read.
    """
    folder, statistics = SetFolder(root), SetStatistics()
    with (
        writing_parquet(folder.parquet) as add_row,
        publishing(folder.published) as publish,
    ):

        def records() -> Iterator[GroundingRecord]:
            for sample in folder.iterate_samples():
                if sample.annotation is not None:
                    add_row(sample.annotation)
                    publish(sample.annotation)
                statistics.add(sample)
                yield sample.record

        write_jsonl(folder.records, records())
    for dropped in folder.iterate_dropped():
        statistics.add_dropped(dropped)
    write_atomic(folder.card, write_card(statistics))
    return statistics
