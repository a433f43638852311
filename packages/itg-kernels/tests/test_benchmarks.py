import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIELDS = [
    "op",
    "provider",
    "mode",
    "shape",
    "dtype",
    "cache",
    "p20_us",
    "p50_us",
    "p80_us",
    "gb_per_s",
    "copy_gb_per_s",
    "gpu",
    "torch",
    "triton",
    "package_version",
    "git_sha",
    "utc",
]


@pytest.fixture
def load(monkeypatch):
    def load(name):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


def test_rows_say_what_was_measured_and_who_was_absent(load, tmp_path, monkeypatch):
    run = load("run")
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    small = run.cases.TopkCase(num_rows=2, num_frames=16, k=3)
    monkeypatch.setattr(run.cases, "TOPK_CASES", [small])
    providers = ["itg-torch", "flashinfer-deterministic"]
    chosen = [part for name in providers for part in ("--provider", name)]
    out = tmp_path / "results" / "rows.jsonl"
    arguments = ["--no-tests", "--quick", "--op", "topk", *chosen, "--out", str(out)]
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    assert run.main(arguments) == 0
    measured, absent = [json.loads(line) for line in out.read_text().splitlines()]
    assert set(FIELDS) <= set(measured)
    assert measured["shape"] == "2x16/k3"
    assert 0 < measured["p20_us"] <= measured["p50_us"] <= measured["p80_us"]
    assert absent["provider"] == "flashinfer-deterministic"
    assert absent["absent"].startswith("ModuleNotFoundError")


def test_red_tests_give_no_numbers(load, tmp_path, monkeypatch):
    run = load("run")
    monkeypatch.setattr(run, "_tests_are_green", lambda: False)
    out = tmp_path / "rows.jsonl"
    assert run.main(["--op", "topk", "--out", str(out)]) == 1
    assert not out.exists()


def row(**changes):
    return {
        "op": "topk",
        "provider": "itg-triton",
        "mode": "eager",
        "shape": "1x512/k32",
        "dtype": "float32",
        "cache": "cold",
        "p20_us": 7.0,
        "p50_us": 8.0,
        "p80_us": 9.0,
        "gb_per_s": 1.0,
        "copy_gb_per_s": 4200.0,
        "gpu": "NVIDIA H200",
        "driver": "580",
        "torch": "2.11",
        "triton": "3.6",
        "package_version": "0.1.0",
        "git_sha": "0123456789abcdef",
        "dirty": False,
        "utc": "2026-01-02T00:00:00+00:00",
    } | changes


def test_the_report_holds_the_newest_rows_and_says_where_an_aim_is_missed(load, tmp_path):
    rows = [
        row(p50_us=99.0, utc="2026-01-01T00:00:00+00:00"),
        row(),
        row(provider="torch-topk-sort", p50_us=16.0),
        row(op="select", shape="12800x3584/F512/k32", mode="graph", p50_us=36.5),
    ]
    results = tmp_path / "results"
    results.mkdir()
    (results / "h200.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert load("report").main([str(tmp_path)]) == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "| `topk` | 1x512/k32 | eager | 10 µs | 8.0 µs | reached |" in text
    assert "missed by 1.5 µs" in text
    assert "2.00 x" in text
    assert "99.0" not in text
    assert "torch-topk-sort" in (tmp_path / "report.svg").read_text()


def test_the_committed_report_is_what_the_committed_rows_say(load, tmp_path):
    shutil.copytree(BENCHMARKS / "results", tmp_path / "results")
    assert load("report").main([str(tmp_path)]) == 0
    for name in ("REPORT.md", "report.svg"):
        assert (tmp_path / name).read_text() == (BENCHMARKS / name).read_text()


def test_the_packed_case_has_sorted_disjoint_spans_with_text_between(load):
    case = load("cases").SCORE_CASES[-1]
    bounds = [edge for span in case.spans for edge in span]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= case.num_rows
    assert len({end - start for start, end in case.spans}) > 3
    gaps = [b[0] - a[1] for a, b in zip(case.spans, case.spans[1:], strict=False)]
    assert set(gaps) == {0, 60}
