import json
import shutil
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def report(load_script):
    return load_script(BENCHMARKS / "report.py")


@pytest.fixture
def write(report, tmp_path):
    """Has a report of some rows written; returns its lines."""

    def write(*rows) -> list[str]:
        results = tmp_path / "results"
        results.mkdir()
        (results / "gpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert report.main([str(tmp_path)]) == 0
        return (tmp_path / "REPORT.md").read_text().splitlines()

    return write


def row(**changes):
    return {
        "case": "network",
        "frames": 512,
        "precision": "native",
        "decode": None,
        "seconds": 1.0,
        "stages": {},
        "peak_gib": 15.0,
        "reference_seconds": 1.65,
        "gpu": "NVIDIA H200",
        "cores": 16,
        "torch": "2.11",
        "cudnn": 91900,
        "git_sha": "0123456",
        "utc": "2026-01-02T00:00:00+00:00",
    } | changes


def test_the_committed_report_is_what_the_committed_rows_say(report, tmp_path):
    shutil.copytree(BENCHMARKS / "results", tmp_path / "results")
    assert report.main([str(tmp_path)]) == 0
    for name in ("REPORT.md", "latency.svg"):
        assert (tmp_path / name).read_text() == (BENCHMARKS / name).read_text()


def test_every_committed_row_says_what_was_measured_where():
    for path in (BENCHMARKS / "results").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert set(json.loads(line)) >= set(row())


def test_an_aim_is_judged_by_the_newest_row(write):
    lines = write(row(), row(seconds=0.9, utc="2026-01-01T00:00:00+00:00"))
    assert "| network | 512 | native | - | 0.95 | 1.0 | missed |" in lines
    assert "| cold | 512 | native | nvdec | 1.6 | - | not measured |" in lines
    assert not any("0.900" in line for line in lines)


def test_an_overlap_is_judged_by_the_least_that_must_stay(write):
    case = "overlap with bfloat16, itg-tiny"
    low = row(case=case, frames=120, precision="fp8", seconds=None, peak_gib=None)
    lines = write(low | {"overlap": 0.9499, "reference_seconds": None})
    assert f"| {case} | 120 | fp8 | 0.95 | 0.9499 | missed |" in lines


def test_ours_is_set_beside_the_reference_only_where_both_ran_at_once(write):
    cold = {"case": "cold", "decode": "auto"}
    rival = {"case": "literal, cold", "decode": "decord", "seconds": 12.0, "git_sha": "76543210"}
    lines = write(row(), row(case="literal", seconds=1.5), row(**cold), row(**rival))
    assert "| network | 1.0 | literal | 1.5 | 1.50x |" in lines
    assert "| cold | - | literal, cold | - | not measured in one run |" in lines
