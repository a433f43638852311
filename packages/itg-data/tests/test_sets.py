import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from itg_data.annotate.records import Annotation
from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.published import read_published
from itg_data.records import SCHEMA_VERSION, GroundingRecord, from_json, to_json
from itg_data.sets import SetFolder
from itg_data.sets.derive import write_derived
from itg_data.sets.parquet import arrow_schema
from itg_data.sets.statistics import Distribution, measure_set


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


def test_records_for_training_are_what_the_annotations_say(annotated_set, scripted_root):
    folder = SetFolder(annotated_set())
    truth = read_jsonl(scripted_root / "records.jsonl", GroundingRecord)
    made = read_jsonl(folder.records, GroundingRecord)
    annotations = list(read_jsonl(folder.annotations, Annotation))
    for true, record, annotation in zip(truth, made, annotations, strict=True):
        assert (record.id, record.question, record.split) == (true.id, true.question, true.split)
        assert record == annotation.to_grounding()


def test_the_table_holds_every_field_of_every_annotation(annotated_set):
    folder = SetFolder(annotated_set())
    table = pq.read_table(folder.parquet)
    assert table.schema.equals(arrow_schema(), check_metadata=True)
    assert table.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    rows = table.to_pylist()
    for row, annotation in zip(rows, read_jsonl(folder.annotations, Annotation), strict=True):
        assert row.pop("label_s") == list(annotation.label_s)
        assert from_json(Annotation, {"schema_version": SCHEMA_VERSION, **row}) == annotation


def test_the_published_format_holds_the_same_labels(annotated_set):
    folder = SetFolder(annotated_set())
    annotations = read_jsonl(folder.annotations, Annotation)
    for record, annotation in zip(read_published(folder.published), annotations, strict=True):
        assert record.video == annotation.video
        seconds = {
            int(s) for span in record.spans for s in range(int(span.start_s), int(span.end_s))
        }
        assert seconds == set(annotation.label_s)


def test_the_card_says_what_is_in_the_set_and_how_it_was_made(annotated_set):
    root = annotated_set(changes={0: {"model": "evil | </td> `x` [y](http://z) <b>"}})
    card = (root / "README.md").read_text()
    statistics = measure_set(SetFolder(root))
    assert f"{statistics.num_samples} of {statistics.num_samples + 1} QA pairs" in card
    assert f"| caption | {'0' * 64} | {statistics.num_samples} |" in card
    assert r"| no\_clip | 1 |" in card
    assert r"| evil \| \</td\> \`x\` \[y\](http://z) \<b\> | 1 |" in card
    for name, count in statistics.types.items():
        assert f"| {name.replace('_', chr(92) + '_')} | {count} |" in card


def test_everything_made_from_the_same_annotations_is_the_same(annotated_set):
    root = annotated_set()
    made = contents(root)
    assert set(made) == {
        "README.md",
        "annotations.jsonl",
        "annotations.parquet",
        "dropped.jsonl",
        "records.jsonl",
        "video_itg_data.json",
    }
    write_derived(root)
    assert contents(root) == made


def test_a_bad_line_leaves_the_files_that_were_there(annotated_set):
    root = annotated_set()
    made = contents(root)
    with (root / "annotations.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RecordError, match=r"annotations.jsonl:\d+: schema_version"):
        write_derived(root)
    assert {name for name, data in contents(root).items() if data != made.get(name)} == {
        "annotations.jsonl"
    }


def test_an_empty_set_has_all_its_files(tmp_path):
    write_jsonl(tmp_path / "annotations.jsonl", [])
    statistics = write_derived(tmp_path)
    assert statistics.num_samples == 0
    assert pq.read_table(tmp_path / "annotations.parquet").num_rows == 0
    assert list(read_published(tmp_path / "video_itg_data.json")) == []
    with pytest.raises(RecordError, match="is no set: it has neither"):
        measure_set(SetFolder(tmp_path / "elsewhere"))


def test_statistics_count_types_clips_labels_and_drops(annotated_set):
    root = annotated_set()
    figures = measure_set(SetFolder(root)).to_json()
    assert json.loads(json.dumps(figures)) == figures
    assert sum(figures["types"].values()) == figures["num_samples"]
    assert figures["types"]["no_clue"] == figures["num_videos"] == 3
    assert figures["dropped"] == {"no_clip": 1}
    assert figures["splits"]["heldout"] + figures["splits"]["train"] == figures["num_samples"]
    assert figures["duration_s"]["median"] == 18
    assert figures["labelled_share"]["no_clue"]["min"] == 1
    assert 0 < figures["num_refused_frames"] < figures["num_checked_frames"]


def test_statistics_of_a_set_from_elsewhere_say_what_is_known(scripted_root):
    figures = measure_set(SetFolder(scripted_root)).to_json()
    assert figures["num_samples"] == sum(figures["types"].values())
    assert figures["clips"] is None
    assert figures["labelled_s"]["max"] == 18


def test_quantiles_are_values_that_were_counted():
    numbers = Distribution()
    for value in (1, 1, 2, 9):
        numbers.add(value)
    assert numbers.summarise() == {
        "n": 4,
        "mean": 3.25,
        "min": 1,
        "p25": 1,
        "median": 1,
        "p75": 2,
        "max": 9,
    }
    assert Distribution().summarise() is None


PEAKS = """
import gc, sys, tracemalloc
from pathlib import Path
from itg_data.sets import parquet
from itg_data.sets.derive import write_derived
from itg_data.sets.statistics import SetStatistics

root, line = Path(sys.argv[1]), Path(sys.argv[1], "annotations.jsonl").open("rb").readline()
parquet._ROWS_PER_GROUP = 20
add = SetStatistics.add

def add_and_tidy(self, sample):
    add(self, sample)
    if self.num_samples % 20 == 0:  # json's encoders wait for the collector
        gc.collect()

SetStatistics.add = add_and_tidy
gc.freeze()
for num_lines in (40, 40, 240):  # the first time only warms up
    (root / "annotations.jsonl").write_bytes(line * num_lines)
    tracemalloc.start()
    write_derived(root)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_set(annotated_set):
    # in a process of its own: threads that other tests left behind allocate, too
    command = [sys.executable, "-c", PEAKS, str(annotated_set())]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    _, small, large = map(int, said.stdout.split())
    assert large < 1.2 * small


def test_annotations_survive_writing_and_reading(annotated_set):
    root = annotated_set(changes={1: {"question": '\u2028 "<b>\\', "options": ("a", "b")}})
    for annotation in read_jsonl(root / "annotations.jsonl", Annotation):
        assert from_json(Annotation, json.loads(json.dumps(to_json(annotation)))) == annotation
