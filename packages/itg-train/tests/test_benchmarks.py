import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIELDS = {
    *("case", "gpus", "frames", "s_per_step", "samples_per_s", "mfu", "peak_gib", "data_wait"),
    *("gpu", "git_sha", "utc"),
}


@pytest.fixture
def report(load_script):
    return load_script(BENCHMARKS / "report.py")


@pytest.fixture
def write(report, tmp_path):
    """Has a report of some rows written; returns its lines."""

    def write(*rows) -> list[str]:
        results = tmp_path / "results"
        results.mkdir()
        (results / "h200.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert report.main([str(tmp_path)]) == 0
        return (tmp_path / "REPORT.md").read_text().splitlines()

    return write


def row(**changes):
    return {
        "case": "step",
        "gpus": 2,
        "frames": 120,
        "questions_per_video": 1,
        "groups_per_step": 16,
        "layers_recomputed": 0,
        "tokens_per_sample": 5600.0,
        "s_per_step": 10.0,
        "samples_per_s_per_gpu": 0.8,
        "mfu": 0.3,
        "data_wait": 0.001,
        "peak_gib": 100.0,
        "gpu": "NVIDIA H200",
        "git_sha": "0123456789abcdef",
        "utc": "2026-01-02T00:00:00+00:00",
    } | changes


def test_the_committed_report_is_what_the_committed_rows_say(report):
    rows = report.newest(report.read_rows(BENCHMARKS / "results"))
    assert report.report(rows) == (BENCHMARKS / "REPORT.md").read_text()


def test_every_committed_row_says_what_was_measured_where(report):
    for found in report.read_rows(BENCHMARKS / "results"):
        assert set(found) >= FIELDS


def test_an_aim_is_judged_by_the_newest_row_of_a_measurement(write):
    old = row(samples_per_s_per_gpu=1.7, utc="2026-01-01T00:00:00+00:00")
    lines = write(row(samples_per_s_per_gpu=1.3), old)
    aim = "step, a question a video, two GPUs | at least 1.4 samples/s a GPU"
    assert f"| {aim} | 1.300 at 0123456 | missed |" in lines
    assert not any("1.700" in line for line in lines)


def test_an_aim_takes_the_best_of_what_is_installed_and_says_what_was_not_measured(write):
    passes = [
        row(case="forward-backward", gpus=1, frames=512, s_per_step=seconds, attention=attention)
        for seconds, attention in ((2.0, "torch"), (1.9, "flash-attn-4"))
    ]
    lines = write(row(), *passes)
    met = "forward and backward, 512 frames | at most 1.9 s | 1.900 at 0123456"
    assert f"| {met} | met |" in lines
    assert "| the same with features | at most 1.2 s | - | not measured |" in lines


def test_gpus_are_compared_only_where_nothing_else_differs(write):
    alone = row(gpus=1, groups_per_step=8, layers_recomputed=20, samples_per_s_per_gpu=1.0)
    same = row(layers_recomputed=20, samples_per_s_per_gpu=0.9)
    lines = write(alone, same, row(samples_per_s_per_gpu=2.0))
    (linear,) = [line for line in lines if "against one" in line]
    measured = "90.0% at 0123456 and 0123456"
    assert linear == f"| step, 2 GPUs against one | at least 90% of linear | {measured} | met |"


def test_without_a_step_its_wait_for_data_is_not_measured(write):
    lines = write(row(case="forward-backward", gpus=1, frames=512))
    assert "| waiting for data, any step | under 3% | - | not measured |" in lines


def test_no_rows_are_no_report(report, tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 1
    assert "No rows" in capsys.readouterr().err
    assert not (tmp_path / "REPORT.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", [["forward-backward"], ["step", "--features"]])
def test_a_case_is_measured_and_leaves_a_row(case, tmp_path):
    small = ["--shape", "tiny", "--frames", "64", "--videos", "4", "--groups-per-step", "2"]
    short = ["--warm-up", "1", "--steps", "2", "--workers", "1"]
    out = ["--out", "rows.jsonl", "--scratch", "scratch"]
    script = [sys.executable, str(BENCHMARKS / "throughput.py")]
    subprocess.run([*script, "--case", *case, *small, *short, *out], cwd=tmp_path, check=True)
    measured = json.loads((tmp_path / "rows.jsonl").read_text())
    assert set(measured) >= FIELDS
    assert measured["case"] == "-".join(case).replace("---", "-")
    assert measured["s_per_step"] > 0
