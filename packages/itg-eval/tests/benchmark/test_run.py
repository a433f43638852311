"""`itg-eval run` as a user starts it: real processes, killed, started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from itg_data.jsonl import write_jsonl
from itg_eval.lmms.documents import document_of
from itg_eval.scripted.benchmark import ScriptedConfig, write_benchmark
from itg_eval.scripted.reader import train_reader

SECONDS_AT_MOST = 900


@pytest.fixture
def start(tmp_path, grounder_dir):
    """Starts `itg-eval run` on two processes, in a process group of its own."""
    started = []

    def start(*more):
        command = [sys.executable, "-m", "itg_eval", "run", "--task", "itg_scripted"]
        command += ["--model", str(grounder_dir), "--run-dir", str(tmp_path / "run")]
        command += ["--top-k", "4", "--max-frames", "16", "--num-processes", "2"]
        command += ["--include-path", str(tmp_path / "task")]
        command += ["--host", f"itg_reader,pretrained={tmp_path / 'reader'}", *more]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env | {"OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def list_questions(folder):
    rows = map(json.loads, (folder / "questions.jsonl").read_text().splitlines())
    return [
        document_of(("itg_scripted", "test", number), row, str(folder / row["video"]))
        for number, row in enumerate(rows)
    ]


def running(text):
    """Processes whose command line holds a text."""
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True)
    return found.stdout.split()


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_behind_and_goes_on_where_it_was_also_past_a_torn_video(
    start, tmp_path
):
    write_benchmark(tmp_path / "task", ScriptedConfig(num_videos=2), num_workers=2)
    rows = map(json.loads, (tmp_path / "task" / "questions.jsonl").read_text().splitlines())
    of_video = Counter(row["video"] for row in rows)
    torn, num_torn = of_video.most_common()[-1]
    (tmp_path / "task" / torn).write_bytes(b"no video")
    train_reader(tmp_path / "reader")
    run = tmp_path / "run"
    run.mkdir()
    # as the stage before leaves it; asking lmms-eval takes 20 seconds of its own
    write_jsonl(run / "documents.jsonl", list_questions(tmp_path / "task"))
    first = start("--missing", "uniform")
    deadline = time.monotonic() + SECONDS_AT_MOST
    while not list(run.glob("answers/*/grounded/log.txt")):
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (uniform,) = run.glob("answers/*/uniform/done.json")
    done_before = {
        path: path.stat().st_mtime_ns
        for path in (uniform, run / "documents.jsonl", run / "scores/scores.jsonl")
    }
    while running(str(run)):
        assert time.monotonic() < deadline, "lmms-eval outlives the run that started it"
        time.sleep(0.2)

    again = start("--missing", "uniform")
    out, err = again.communicate(timeout=SECONDS_AT_MOST)
    assert again.returncode == 0, err
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert "uniform frames: lmms-eval starts" not in err
    num_questions = of_video.total() - num_torn
    assert out.startswith("# Does frame selection help? itg\\_scripted")
    report = json.loads((run / "report.json").read_text())
    assert (report["num_questions"], report["num_left_out"]) == (num_questions, num_torn)
    assert report["hosts"][0]["num_without_selection"] == {"uniform": 0, "grounded": 0}
    for arm in ("uniform", "grounded"):
        (journal,) = run.glob(f"answers/*/{arm}/journal/*")
        # each of the two processes answered its half, and nothing was answered twice
        counts = [path.read_bytes().count(b"\n") for path in sorted(journal.iterdir())]
        assert len(counts) == 2
        assert sum(counts) - num_questions in (0, 1), "one more where the halves are uneven"
    assert (run / "report.html").exists()


def test_a_run_without_a_task_a_host_or_sense_is_refused_at_once(tmp_path, capsys):
    from itg_eval.cli import main

    base = ["run", "--model", "m", "--run-dir", str(tmp_path / "run")]
    assert main(["run", "--run-dir", str(tmp_path / "run"), "--task", "itg_scripted"]) == 2
    assert "name either --model" in capsys.readouterr().err
    for more, said in {
        ("--task", "videomme", "--scores", "x.jsonl"): "name either --model",
        (): "--task is missing",
        ("--task", "videomme"): "--host is missing",
        ("--task", "itg_scripted"): "m: no such directory",
        ("--task", "videomme", "--host", "a b"): "--host must be ID",
        ("--task", "videomme", "--host", "x", "--top-k", "0"): "0",
        ("--task", "videomme", "--host", "x", "--policy", "guess"): "guess",
        ("--task", "videomme", "--host", "x", "--limit", "0"): "--limit must be >= 1",
        ("--task", "videomme", "--host", "x", "--batch-size", "0"): "--batch-size must be >= 1",
        ("--task", "videomme", "--host", "qwen3vl"): "--host qwen3vl: lmms-eval has no such model",
        ("--task", "videomme", "--host", "oryx"): "no form is known in which oryx (simple) takes",
        ("--task", "videomme", "--host", "qwen3_vl,frames_as=film"): "frames_as must be one of",
        ("--task", "videomme", "--host", "llava_vid,max_frames_num=64"): "selected frames, 32, got",
        ("--task", "videomme", "--include-path", "/none"): "--include-path /none: no such folder",
        ("--task", "videomme", "--host", "qwen3_vl", "--device", "cuda:99"): "device cuda:99 was",
        ("--task", "videomme", "--host", "qwen3_vl", "--dtype", "nonsense"): "nonsense",
    }.items():
        assert main([*base, *more]) == 2, more
        complaint = capsys.readouterr().err
        assert said in complaint
        assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--device", "cuda:7"),
        ("--dtype", "nonsense"),
        ("--rate-hz", "2"),
        ("--max-frames", "9"),
    ],
)
def test_an_option_of_scoring_is_refused_where_scores_were_made_before(option, tmp_path, capsys):
    from itg_eval.cli import main

    (tmp_path / "s.jsonl").write_bytes(b"")
    arguments = ["run", "--task", "videomme", "--scores", str(tmp_path / "s.jsonl")]
    assert main([*arguments, "--run-dir", str(tmp_path / "run"), *option]) == 2
    assert f"{option[0]} makes no difference with --scores" in capsys.readouterr().err


def test_run_is_not_for_torchrun(tmp_path, capsys, monkeypatch):
    from itg_eval.cli import main

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    arguments = ["run", "--task", "videomme", "--model", "m", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "call it without torchrun, with --num-processes N" in capsys.readouterr().err


def test_what_a_launcher_left_in_the_environment_does_not_reach_a_child(monkeypatch, tmp_path):
    from itg_eval.benchmark.children import run_child

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "3")
    code = "import os; print([n for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if n in os.environ])"
    with (tmp_path / "out").open("w") as out:
        assert run_child([sys.executable, "-c", code], env={}, stdout=out) == 0
    assert (tmp_path / "out").read_text() == "[]\n"


@pytest.mark.parametrize("option", ["--model", "--scores"])
def test_a_run_is_not_continued_with_a_checkpoint_or_scores_that_changed_in_place(
    option, grounder_dir, tmp_path, capsys
):
    from itg_eval.benchmark.commands import Run
    from itg_eval.benchmark.plan import RunDir
    from itg_eval.cli import main

    given = tmp_path / option
    if option == "--model":
        shutil.copytree(grounder_dir, given)
    else:
        given.write_bytes(b"")
    run = {"run_dir": tmp_path / "run", "task": ("videomme",), option[2:]: str(given)}
    run |= {} if option == "--model" else {"scores": given}
    RunDir(tmp_path / "run").claim(Run(**run)._to_plan())
    changed = given / "config.json" if given.is_dir() else given
    changed.write_bytes(changed.read_bytes() + b"\n")
    arguments = ["run", "--task", "videomme", option, str(given), "--host", "qwen3_vl"]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"holds a run of what {option} {given} held before it changed" in said


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    from itg_eval.cli import main

    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run of itg-eval" in capsys.readouterr().err


def test_a_child_ends_with_its_parent(tmp_path):
    code = (
        "import sys; from itg_eval.benchmark.children import run_child; "
        "run_child(['sleep', '60'], env={}, watch=lambda: print('up', flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"up\n"
        (child,) = subprocess.run(
            ["pgrep", "-P", str(parent.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        parent.kill()
    deadline = time.monotonic() + 20
    while _state(child) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(pid):
    """Z, a zombie, also for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"
