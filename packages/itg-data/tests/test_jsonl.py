import pytest
from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_data.records import GroundingRecord, Provenance, TimeSpan

GOOD = '{"schema_version": 1, "start_s": 0.5, "end_s": 2}'


def record(number: int = 0) -> GroundingRecord:
    return GroundingRecord(
        id=f"r{number}",
        video="videos/a b.mp4",
        question="Was geschieht?\u2028Naïve „Frage“ \U0001f3ac\n",
        answer=None,
        question_type="semantic_motion",
        spans=(TimeSpan(start_s=0.1, end_s=1 / 3), TimeSpan(start_s=1.0, end_s=1e300)),
        provenance=Provenance(annotator="test 1", seed=2**62),
    )


def test_records_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "records.jsonl"
    written = [record(i) for i in range(3)]
    assert write_jsonl(path, iter(written)) == 3
    assert list(read_jsonl(path, GroundingRecord)) == written
    assert path.read_bytes().count(b"\n") == 3


def test_no_records_make_an_empty_file(tmp_path):
    path = tmp_path / "none.jsonl"
    assert write_jsonl(path, []) == 0
    assert path.read_bytes() == b""
    assert list(read_jsonl(path, GroundingRecord)) == []


BAD_LINES = {
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode() + b"\n", "byte order mark"),
    "blank": (b"\n", "blank"),
    "spaces": (b" \t\r\n", "blank"),
    "not UTF-8": (GOOD.encode().replace(b"end_s", b"end_\xff") + b"\n", "UTF-8 at byte"),
    "UTF-16": (GOOD.encode("utf-16") + b"\n", "UTF-8 at byte"),
    "cut off": (GOOD.encode()[:-9], "cut off"),
    "no newline at the end": (GOOD.encode(), "cut off"),
    "no JSON": (b"start_s: 1\n", "not JSON"),
    "two objects": (GOOD.encode() + GOOD.encode() + b"\n", "not JSON"),
    "list": (b"[1, 2]\n", "expected an object"),
    "key twice": (GOOD.encode().replace(b"}", b', "end_s": 3}') + b"\n", "'end_s' is there twice"),
    "NaN": (GOOD.encode().replace(b"0.5", b"NaN") + b"\n", "NaN is not a JSON number"),
    "Infinity": (GOOD.encode().replace(b"2}", b"Infinity}") + b"\n", "Infinity is not"),
    "-Infinity": (GOOD.encode().replace(b"0.5", b"-Infinity") + b"\n", "-Infinity is not"),
    "overflow": (GOOD.encode().replace(b"2}", b"1e999}") + b"\n", "1e999 is too large"),
    "huge integer": (GOOD.encode().replace(b"2}", b"9" * 400 + b"}") + b"\n", "end_s is too large"),
    "absurd integer": (GOOD.encode().replace(b"2}", b"9" * 9999 + b"}") + b"\n", "not readable"),
    "deep nesting": (b"[" * 200_000 + b"\n", "nested too deeply"),
    "other version": (GOOD.encode().replace(b": 1,", b": 2,") + b"\n", "schema_version must be 1"),
    "no version": (b'{"start_s": 0, "end_s": 2}\n', "schema_version must be 1"),
    "unknown field": (GOOD.encode().replace(b"}", b', "x": 1}') + b"\n", "unknown field x"),
    "missing field": (b'{"schema_version": 1, "start_s": 0.5}\n', "missing field end_s"),
    "wrong type": (GOOD.encode().replace(b"0.5", b'"0.5"') + b"\n", "start_s must be float"),
    "invalid record": (GOOD.encode().replace(b"0.5", b"5") + b"\n", "0 <= start_s < end_s"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_names_file_line_and_what_is_wrong(case, tmp_path):
    line, complaint = BAD_LINES[case]
    path = tmp_path / "spans.jsonl"
    path.write_bytes(f"{GOOD}\n".encode() + line)
    records = read_jsonl(path, TimeSpan)
    assert next(records) == TimeSpan(start_s=0.5, end_s=2.0)
    with pytest.raises(RecordError) as caught:
        next(records)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "spans.jsonl"
    path.write_bytes(f"{GOOD}\r\n{GOOD}\r\n".encode())
    assert len(list(read_jsonl(path, TimeSpan))) == 2


def test_a_missing_file_is_a_record_error(tmp_path):
    with pytest.raises(RecordError, match=r"none\.jsonl: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl", TimeSpan))


@pytest.mark.parametrize("text", ["a\ud800b"])
def test_what_utf8_cannot_hold_is_refused_and_the_old_file_kept(text, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("old")
    bad = GroundingRecord(
        id=text,
        video="v.mp4",
        question="q",
        spans=(TimeSpan(start_s=0.0, end_s=1.0),),
        provenance=Provenance(annotator="a"),
    )
    complaint = r'records\.jsonl:2: holds half a character at the end of .*"id": "a\\ud800'
    with pytest.raises(RecordError, match=complaint):
        write_jsonl(path, [record(), bad])
    assert path.read_text() == "old"


def test_a_failure_while_records_are_drawn_keeps_the_old_file(tmp_path):
    def records():
        yield record()
        raise KeyboardInterrupt

    path = tmp_path / "records.jsonl"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, records())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]
