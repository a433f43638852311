"""Runs of real processes: one that is killed, and two under torchrun."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_eval.records import DocumentScores

# The real command, slowed down and telling what it asks.
SLOW = """
import sys, time
from pathlib import Path
from itg_model.grounder import FrameGrounder
score, log = FrameGrounder.score, Path(sys.argv.pop(1))
def slow(self, video, question):
    with log.open("a") as file:
        file.write(question.splitlines()[0] + "\\n")
    time.sleep(float(sys.argv[1]))
    return score(self, video, question)
FrameGrounder.score = slow
pause = sys.argv[1]
from itg_eval.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def start(documents_file, grounder_dir, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the run: `start(pause_s)`."""

    def start(pause_s: float) -> subprocess.Popen[str]:
        arguments = ["score", "--documents", str(documents_file), "--model", str(grounder_dir)]
        arguments += ["--output", str(tmp_path / "run"), "--device", "cpu"]
        return subprocess.Popen(
            [sys.executable, "-c", SLOW, str(tmp_path / "asked"), str(pause_s), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_for_lines(path: Path, number: int) -> None:
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path.name} has no {number} lines after a minute")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice_that_was_answered(
    start, documents, tmp_path
):
    shard, asked = tmp_path / "run" / "shards" / "scores.rank0of1.jsonl", tmp_path / "asked"
    process = start(0.3)
    wait_for_lines(shard, 4)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "run" / "scores.jsonl").exists()
    with shard.open("ab") as file:
        file.write(b'{"schema_version": 1, "task": "to')  # torn, as a kill within a write leaves it
    answered = {r.scored.question.splitlines()[0] for r in whole_records(shard)}
    asked.unlink()
    process = start(0.0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == f"{tmp_path / 'run' / 'scores.jsonl'}\n"
    asked_again = asked.read_text().splitlines()
    assert len(answered) >= 4
    assert sorted([*answered, *asked_again]) == sorted(d.question for d in documents)
    rows = list(read_jsonl(tmp_path / "run" / "scores.jsonl", DocumentScores))
    assert [row.key for row in rows] == [document.key for document in documents]


def whole_records(shard: Path) -> list[DocumentScores]:
    whole = shard.with_name("whole.jsonl")
    whole.write_bytes(shard.read_bytes().rpartition(b"\n")[0] + b"\n")
    records = list(read_jsonl(whole, DocumentScores))
    whole.unlink()
    return records


@pytest.mark.slow
def test_two_processes_share_the_videos_and_a_bad_one_stops_neither(
    documents, documents_file, grounder_dir, tmp_path
):
    # the fourth video, so the second of the second process
    write_jsonl(documents_file, [*documents[:8], replace(documents[8], video="none.mp4")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "-m", "itg_eval", "score", "--device", "cpu"]
    command += ["--documents", str(documents_file), "--model", str(grounder_dir)]
    run = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    rows = list(read_jsonl(tmp_path / "run" / "scores.jsonl", DocumentScores))
    assert [row.doc_id for row in rows] == list(range(8)), run.stderr
    assert "none.mp4: no such file" in run.stderr
    shards = [
        [row.scored.video for row in read_jsonl(path, DocumentScores)]
        for path in sorted((tmp_path / "run" / "shards").glob("scores.*"))
    ]
    assert [set(videos) for videos in shards] == [
        {documents[0].video, documents[2].video},
        {documents[1].video},
    ]
    assert sum(map(len, shards)) == 8
    # the last process says by its exit code that not all was scored
    assert run.returncode == 1
