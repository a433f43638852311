import json
import shutil
import subprocess
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
def load(load_script):
    return lambda name: load_script(BENCHMARKS / f"{name}.py")


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


def test_a_missing_pytest_is_no_red_test(load, tmp_path, monkeypatch):
    run = load("run")
    monkeypatch.setitem(sys.modules, "pytest", None)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: pytest.fail("started something"))
    with pytest.raises(SystemExit, match="cannot run without pytest"):
        run.main(["--op", "topk", "--out", str(tmp_path / "rows.jsonl")])


@pytest.mark.parametrize(("code", "green"), [(0, True), (1, False), (2, None), (4, None)])
def test_only_tests_that_ran_are_green_or_red(code, green, load, monkeypatch):
    run = load("run")
    done = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: done)
    if green is None:
        with pytest.raises(SystemExit, match=f"pytest exits with {code}"):
            run._tests_are_green()
    else:
        assert run._tests_are_green() is green


@pytest.fixture
def repository(load, tmp_path, monkeypatch):
    """`run` of a repository of its own, and a function that calls git there."""
    run = load("run")
    monkeypatch.delenv("ITG_GIT_SHA", raising=False)
    monkeypatch.setattr(run, "PACKAGE", tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path / "benchmarks")
    for name in ("src/kernel.py", "benchmarks/cases.py", "benchmarks/results/rows.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old\n")

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", *who, *words]
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "trunk")
    git("add", ".")
    git("commit", "-qm", "first")
    return run, git


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("src/kernel.py", True),
        ("benchmarks/cases.py", True),
        ("benchmarks/new.py", True),
        ("benchmarks/results/rows.jsonl", False),
    ],
)
def test_rows_are_dirty_where_kernels_or_the_scripts_that_measure_are(name, dirty, repository):
    run, _ = repository
    assert not run._is_dirty()
    (run.PACKAGE / name).write_text("new\n")
    assert run._is_dirty() is dirty


def test_rows_of_a_base_name_its_commit_and_no_branch(repository, monkeypatch):
    run, git = repository
    seen = []
    real = subprocess.run

    def measure(command, **options):
        if "env" not in options:
            return real(command, **options)
        seen.append(options["env"]["ITG_GIT_SHA"])
        Path(command[command.index("--out") + 1]).write_text("")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run.subprocess, "run", measure)
    assert run._rows_of_base(run._parse(["--base", "trunk"])) == []
    assert seen == [git("rev-parse", "HEAD")]


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
    assert "| `topk` | 1x512/k32 | eager | 10 µs | 8.0 µs at 0123456 | reached |" in text
    assert "missed by 1.5 µs" in text
    assert "2.00 x" in text
    assert "99.0" not in text
    assert "torch-topk-sort" in (tmp_path / "report.svg").read_text()


def test_a_run_without_a_competitor_keeps_what_was_measured_beside_it_before(load):
    before, now = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    rows = [
        row(p50_us=10.0, utc=before),
        row(provider="liger", p50_us=30.0, utc=before, git_sha="before0"),
        row(p50_us=5.0, utc=now),
        {k: v for k, v in row(provider="liger", utc=now, absent="?").items() if k != "p50_us"},
    ]
    report = load("report")
    text = report.report(report.newest(rows))
    assert "liger | 7.0 | 30.0 | 9.0 |" in text
    assert "3.00 x | before0 |" in text
    assert "absent" not in text


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
